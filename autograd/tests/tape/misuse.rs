//! What is refused, and how.

use crate::{mul, param, tensor};
use phalanx_autograd::{Backward, Error, Gradients, Grads, Result, Tape, Var, Vjp};
use phalanx_tensor::{DType, Device, Tensor};

#[derive(Debug, thiserror::Error)]
#[error("rank 3 is gone")]
struct Gone;

#[test]
fn a_hooks_error_stops_the_sweep() {
    let (a, b) = (param(&[2.0]), param(&[5.0]));
    let tape = Tape::new();
    let root = mul(&tape.leaf(&a), &tape.leaf(&b)).unwrap();
    let mut calls = 0;
    let error = tape
        .sweep(Backward {
            roots: &[(&root, None)],
            on_ready: Some(&mut |_, _| {
                calls += 1;
                Err(Error::other(Gone))
            }),
            ..Backward::default()
        })
        .unwrap_err();
    assert!(
        matches!(&error, Error::Other(e) if e.is::<Gone>()),
        "{error}"
    );
    assert_eq!((calls, error.to_string().as_str()), (1, "rank 3 is gone"));
    assert!(tape.is_empty(), "consumed all the same");
}

#[test]
fn misuse_is_a_typed_error() {
    let w = param(&[2.0, 3.0]);
    let (tape, other) = (Tape::new(), Tape::new());
    let x = tape.leaf(&w);
    let e = mul(&x, &other.leaf(&w)).unwrap_err();
    assert!(matches!(e, Error::TapeMismatch { .. }), "{e}");
    let e = mul(&x, &other.constant(tensor(&[1.0, 1.0]))).unwrap_err();
    assert!(matches!(e, Error::TapeMismatch { .. }), "{e}");
    assert!(matches!(
        other.backward(&x),
        Err(Error::TapeMismatch { .. })
    ));

    let y = mul(&x, &x).unwrap();
    let e = tape.backward(&y).unwrap_err();
    assert!(
        matches!(&e, Error::SeedMissing { shape, .. } if **shape == [2]),
        "{e}"
    );
    let bad = |seed| {
        tape.sweep(Backward {
            roots: &[(&y, Some(seed))],
            ..Default::default()
        })
    };
    assert!(matches!(
        bad(tensor(&[1.0])),
        Err(Error::SeedMismatch { .. })
    ));
    let f32s = Tensor::ones([2], DType::F32, Device::cpu(0)).unwrap();
    assert!(matches!(bad(f32s), Err(Error::SeedMismatch { .. })));
    let c = tape.constant(tensor(&[1.0]));
    assert!(matches!(
        tape.backward(&c),
        Err(Error::NothingToDifferentiate { .. })
    ));
    assert!(matches!(
        tape.plan(&[&c]),
        Err(Error::NothingToDifferentiate { .. })
    ));
    let labels = Tensor::zeros([2], DType::I64, Device::cpu(0)).unwrap();
    assert!(matches!(
        tape.input(labels),
        Err(Error::InvalidArgument { .. })
    ));
    assert_eq!(
        tape.len(),
        2,
        "a refused request leaves the recording alone"
    );

    let root = [(&y, Some(tensor(&[1.0, 1.0])))];
    let how = || Backward {
        roots: &root,
        ..Backward::default()
    };
    tape.sweep(how()).unwrap();
    let e = tape.sweep(how()).unwrap_err();
    assert!(matches!(e, Error::Consumed { .. }), "{e}");
    assert!(matches!(mul(&y, &y), Err(Error::Consumed { .. })));
    assert!(matches!(tape.plan(&[&y]), Err(Error::Consumed { .. })));
    let z = mul(&tape.leaf(&w), &tape.leaf(&w)).unwrap();
    tape.clear();
    assert!(matches!(tape.backward(&z), Err(Error::Consumed { .. })));
    assert!(matches!(
        w.set(tensor(&[1.0])),
        Err(Error::ValueMismatch { .. })
    ));
}

/// Returns one gradient for two inputs.
#[derive(Debug)]
struct Careless(usize);

impl Vjp for Careless {
    fn name(&self) -> &'static str {
        "careless"
    }
    fn backward(&self, grad: Tensor, _: &[bool]) -> Result<Grads> {
        Ok((0..self.0)
            .map(|_| Some(grad.clone()))
            .chain([None])
            .collect())
    }
    fn saved_bytes(&self) -> usize {
        0
    }
}

/// Gives its input this gradient.
#[derive(Debug)]
struct Gives(Tensor);

impl Vjp for Gives {
    fn name(&self) -> &'static str {
        "gives"
    }
    fn backward(&self, _: Tensor, _: &[bool]) -> Result<Grads> {
        Ok(Grads::from_iter([Some(self.0.clone())]))
    }
    fn saved_bytes(&self) -> usize {
        0
    }
}

#[test]
fn contributions_that_differ_are_an_error_and_no_broadcast() {
    let w = param(&[2.0, 3.0]);
    let like_w = tensor(&[1.0, 1.0]);
    let f32s = Tensor::ones([2], DType::F32, Device::cpu(0)).unwrap();
    for wrong in [tensor(&[1.0]), tensor(&[1.0; 3]), f32s] {
        for order in [[&wrong, &like_w], [&like_w, &wrong]] {
            for split in [false, true] {
                let tape = Tape::new();
                let x = tape.input(tensor(&[5.0, 5.0])).unwrap();
                let h = mul(&tape.leaf(&w), &x).unwrap();
                let ends = order.map(|grad| {
                    let gives = |_: &[bool]| Gives(grad.clone());
                    Var::from_vjp(&tape, &[&h], tensor(&[1.0]), gives).unwrap()
                });
                let roots = [(&ends[0], None), (&ends[1], None)];
                let how = Backward {
                    roots: &roots,
                    ..Backward::default()
                };
                let e = match split {
                    false => tape.sweep(how).map(drop),
                    true => tape.sweep_inputs(how).map(drop),
                };
                let e = e.unwrap_err();
                assert!(matches!(e, Error::VjpContract { vjp: "gives", .. }), "{e}");
            }
        }
        let of = |grad: &Tensor| {
            let mut gradients = Gradients::new();
            gradients.insert(&w, grad.clone());
            gradients
        };
        let e = of(&like_w).accumulate(of(&wrong)).unwrap_err();
        assert!(matches!(e, Error::InvalidArgument { .. }), "{e}");
    }
}

#[test]
fn a_vjp_is_held_to_its_contract() {
    let (a, b) = (param(&[2.0]), param(&[5.0]));
    for given in [0, 1, 2] {
        let tape = Tape::new();
        let (x, y) = (tape.leaf(&a), tape.leaf(&b));
        let z = Var::from_vjp(&tape, &[&x, &y], tensor(&[1.0]), |_| Careless(given)).unwrap();
        let e = tape.backward(&z).unwrap_err();
        assert!(
            matches!(
                e,
                Error::VjpContract {
                    vjp: "careless",
                    ..
                }
            ),
            "{e}"
        );
    }
    // A gradient that is not like its parameter.
    let tape = Tape::new();
    let x = tape.leaf(&a);
    let z = Var::from_vjp(&tape, &[&x], tensor(&[1.0, 2.0]), |_| Careless(0)).unwrap();
    assert!(
        tape.sweep(Backward {
            roots: &[(&z, Some(tensor(&[1.0, 1.0])))],
            ..Default::default()
        })
        .is_err()
    );
}
