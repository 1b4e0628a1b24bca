//! What the tape promises: readiness, order, reachability, freed memory, split sweeps, typed errors.
//!
//! The operations here are defined in the test, so that nothing but the tape is under test.

use phalanx_autograd::{Backward, Error, Grads, Param, Result, Tape, Var, Vjp, tensor_bytes};
use phalanx_tensor::{DType, Device, Tensor};
use std::cell::RefCell;
use std::rc::Rc;

/// Elementwise `a · b`, saving what the other's gradient needs.
#[derive(Debug)]
struct Product {
    a: Option<Tensor>,
    b: Option<Tensor>,
}

fn times(x: &Tensor, y: &Tensor) -> Tensor {
    let (x, y) = (x.to_vec::<f64>().unwrap(), y.to_vec::<f64>().unwrap());
    let out = x.iter().zip(&y).map(|(x, y)| x * y).collect::<Vec<_>>();
    let n = out.len();
    Tensor::from_vec(out, [n], DEVICE.with(|d| *d.borrow())).unwrap()
}

thread_local! {
    static DEVICE: RefCell<Device> = const { RefCell::new(Device::cpu(0)) };
}

fn on(device: usize) -> Device {
    DEVICE.with(|d| *d.borrow_mut() = Device::cpu(device));
    Device::cpu(device)
}

impl Vjp for Product {
    fn name(&self) -> &'static str {
        "product"
    }
    fn backward(&self, grad: Tensor, needs: &[bool]) -> Result<Grads> {
        let side = |needed: bool, other: &Option<Tensor>| {
            needed.then(|| times(&grad, other.as_ref().expect("saved for this gradient")))
        };
        Ok(Grads::from_iter([
            side(needs[0], &self.b),
            side(needs[1], &self.a),
        ]))
    }
    fn saved_bytes(&self) -> usize {
        self.a.iter().chain(&self.b).map(tensor_bytes).sum()
    }
    fn shrink(&mut self, needs: &[bool]) {
        self.b = self.b.take().filter(|_| needs[0]);
        self.a = self.a.take().filter(|_| needs[1]);
    }
}

fn mul(a: &Var, b: &Var) -> Result<Var> {
    Var::from_vjp(a.tape(), &[a, b], times(a.value(), b.value()), |needs| {
        Product {
            a: needs[1].then(|| a.value().clone()),
            b: needs[0].then(|| b.value().clone()),
        }
    })
}

fn tensor(values: &[f64]) -> Tensor {
    Tensor::from_slice(values, [values.len()], DEVICE.with(|d| *d.borrow())).unwrap()
}

fn param(values: &[f64]) -> Param {
    Param::new(tensor(values))
}

fn vals(t: &Tensor) -> Vec<f64> {
    t.to_vec().unwrap()
}

#[test]
fn a_parameter_used_twice_gets_the_sum() {
    let w = param(&[3.0]);
    let tape = Tape::new();
    let (x, y) = (tape.leaf(&w), tape.leaf(&w));
    assert_eq!(tape.len(), 1, "one node per parameter");
    let cube = mul(&mul(&x, &y).unwrap(), &x).unwrap();
    let gradients = tape.backward(&cube).unwrap();
    assert_eq!(vals(gradients.get(&w).unwrap()), [27.0]);
}

#[test]
fn the_value_is_the_one_at_the_first_use() {
    let w = param(&[2.0]);
    let tape = Tape::new();
    let x = tape.leaf(&w);
    w.set(tensor(&[100.0])).unwrap();
    assert_eq!(vals(tape.leaf(&w).value()), [2.0]);
    let y = mul(&x, &tape.leaf(&w)).unwrap();
    assert_eq!(vals(tape.backward(&y).unwrap().get(&w).unwrap()), [4.0]);
    assert_eq!(vals(tape.leaf(&w).value()), [100.0], "a new recording");
}

#[test]
fn a_parameter_is_ready_when_the_sweep_passes_it_in_the_planned_order() {
    let w: Vec<Param> = (0..6).map(|i| param(&[1.0 + i as f64])).collect();
    let tape = Tape::new();
    let x = tape.constant(tensor(&[1.0]));
    // w[4] is used on a branch that the loss does not see; w[5] is not used; w[0] is used first
    // and last, so that it is ready last.
    let mut h = mul(&x, &tape.leaf(&w[0])).unwrap();
    let _branch = mul(&h, &tape.leaf(&w[4])).unwrap();
    for k in [1, 2, 3, 0] {
        h = mul(&h, &tape.leaf(&w[k])).unwrap();
    }
    let after = mul(&h, &tape.leaf(&w[4])).unwrap();
    let plan = tape.plan(&[&h]).unwrap();
    let ids: Vec<_> = plan.params().iter().map(Param::id).collect();
    assert_eq!(ids, [3, 2, 1, 0].map(|k: usize| w[k].id()));
    assert!(plan.contains(w[2].id()) && !plan.contains(w[4].id()) && !plan.contains(w[5].id()));
    assert_eq!(tape.plan(&[&h, &after]).unwrap().params().len(), 5);

    let mut ready = Vec::new();
    let gradients = tape
        .sweep(Backward {
            roots: &[(&h, None)],
            on_ready: Some(&mut |p, grad| {
                ready.push((p.id(), vals(&grad)[0]));
                Ok((p.id() != w[1].id()).then_some(grad)) // the hook keeps w[1]'s
            }),
            ..Backward::default()
        })
        .unwrap();
    let order: Vec<_> = ready.iter().map(|r| r.0).collect();
    assert_eq!(order, ids, "each once, in the planned order");
    // d(w0² w1 w2 w3) at 1, 2, 3, 4: final at the moment of the call.
    assert_eq!(
        ready.iter().map(|r| r.1).collect::<Vec<_>>(),
        [6.0, 8.0, 12.0, 48.0]
    );
    assert!(gradients.get(&w[1]).is_none(), "taken by the hook");
    assert!(
        gradients.get(&w[4]).is_none() && gradients.get(&w[5]).is_none(),
        "not zero: none"
    );
    assert_eq!(gradients.len(), 3);
}

#[test]
fn saved_tensors_are_freed_as_the_sweep_passes() {
    const N: usize = 1000;
    const BYTES: usize = N * 8;
    let device = on(301);
    let live = || device.memory().unwrap().live;
    let w: Vec<Param> = (0..5).map(|_| param(&[1.5; N])).collect();
    let start = live();
    assert_eq!(start, 5 * BYTES);
    let tape = Tape::new();
    let root = {
        let mut h = tape.input(tensor(&[2.0; N])).unwrap();
        for w in &w {
            h = mul(&h, &tape.leaf(w)).unwrap();
        }
        h
    };
    // The input and five products; parameters are shared, not copied.
    assert_eq!(live() - start, 6 * BYTES);
    assert_eq!(
        tape.saved_bytes(),
        10 * BYTES,
        "each product holds both factors"
    );
    let seed = tensor(&[1.0; N]);
    let mut seen = Vec::new();
    device.reset_peak().unwrap();
    let gradients = tape
        .sweep(Backward {
            roots: &[(&root, Some(seed.clone()))],
            on_ready: Some(&mut |_, _grad| {
                seen.push((live() - start) / BYTES);
                Ok(None)
            }),
            ..Backward::default()
        })
        .unwrap();
    // The root, the seed, the gradient that travels on, the parameter's own, and the first factors
    // of the products that are still to come.
    assert_eq!(seen, [4 + 4, 4 + 3, 4 + 2, 4 + 1, 4]);
    drop(gradients);
    assert_eq!(
        live() - start,
        2 * BYTES,
        "the root and the seed, which the test holds"
    );
    assert!(
        w.iter().all(in_place),
        "the tape holds no parameter any more"
    );
}

/// Whether updating the parameter writes in place.
fn in_place(p: &Param) -> bool {
    let mut unique = false;
    p.update(|t| {
        unique = t.is_unique();
        Ok(())
    })
    .unwrap();
    unique
}

#[test]
fn several_roots_with_seeds() {
    let w = param(&[2.0, 3.0]);
    let tape = Tape::new();
    let x = tape.leaf(&w);
    let square = mul(&x, &x).unwrap();
    let cube = mul(&square, &x).unwrap();
    let gradients = tape
        .sweep(Backward {
            roots: &[
                (&square, Some(tensor(&[1.0, 10.0]))),
                (&cube, Some(tensor(&[1.0, 0.0]))),
                (&square, Some(tensor(&[0.0, 1.0]))),
            ],
            ..Backward::default()
        })
        .unwrap();
    assert_eq!(vals(gradients.get(&w).unwrap()), [4.0 + 12.0, 66.0]);
}

#[test]
fn a_sweep_stops_at_chosen_inputs() {
    let (a, b) = (param(&[2.0]), param(&[5.0]));
    let tape = Tape::new();
    let x = tape.input(tensor(&[3.0])).unwrap();
    let early = mul(&x, &tape.leaf(&a)).unwrap();
    let late = mul(&early, &tape.leaf(&b)).unwrap();
    let root = mul(&late, &early).unwrap();
    let mut calls = 0;
    let gradients = tape
        .sweep(Backward {
            roots: &[(&root, None)],
            inputs: Some(&[&early]),
            on_ready: Some(&mut |_, g| {
                calls += 1;
                Ok(Some(g))
            }),
        })
        .unwrap();
    assert_eq!(vals(gradients.wrt(&early).unwrap()), [60.0]); // 2 b early
    assert!(gradients.wrt(&x).is_none() && gradients.is_empty() && calls == 0);
}

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

#[test]
fn an_inference_tape_keeps_nothing() {
    let device = on(302);
    let w = param(&[2.0; 100]);
    let tape = Tape::inference();
    let live = device.memory().unwrap().live;
    let x = tape.input(tensor(&[3.0; 100])).unwrap();
    let mut h = mul(&x, &tape.leaf(&w)).unwrap();
    for _ in 0..10 {
        h = mul(&h, &tape.leaf(&w)).unwrap();
    }
    assert_eq!((tape.len(), h.requires_grad()), (0, false));
    drop(x);
    assert_eq!(device.memory().unwrap().live - live, 800, "only the result");
    assert!(matches!(
        tape.backward(&h),
        Err(Error::NothingToDifferentiate { .. })
    ));
}

#[test]
fn a_frozen_parameter_is_a_constant() {
    let (a, b) = (param(&[2.0]), param(&[5.0]));
    a.set_requires_grad(false);
    let tape = Tape::new();
    let root = mul(&tape.leaf(&a), &tape.leaf(&b)).unwrap();
    assert_eq!(tape.len(), 2);
    let gradients = tape.backward(&root).unwrap();
    assert!(gradients.get(&a).is_none());
    assert_eq!(vals(gradients.get(&b).unwrap()), [2.0]);
}

#[test]
fn gradients_accumulate_over_micro_batches() {
    let (a, b) = (param(&[2.0]), param(&[5.0]));
    let run = |x: f64, with_b: bool| {
        let tape = Tape::new();
        let h = mul(&tape.constant(tensor(&[x])), &tape.leaf(&a)).unwrap();
        let h = if with_b {
            mul(&h, &tape.leaf(&b)).unwrap()
        } else {
            h
        };
        tape.backward(&h).unwrap()
    };
    let mut sum = run(3.0, false);
    sum.accumulate(run(4.0, true)).unwrap();
    sum.accumulate(run(1.0, true)).unwrap();
    assert_eq!(vals(sum.get(&a).unwrap()), [28.0]);
    assert_eq!(vals(sum.get(&b).unwrap()), [10.0]);
    let order: Vec<_> = sum.iter().map(|(p, _)| p.id()).collect();
    assert_eq!(order, [a.id(), b.id()]);
    assert_eq!(vals(&sum.take(&a).unwrap()), [28.0]);
    assert!(sum.get(&a).is_none() && sum.len() == 1);
}

#[test]
fn accumulation_is_in_place_where_it_can_be() {
    let device = on(303);
    const N: usize = 500;
    let w = param(&[2.0; N]);
    let tape = Tape::new();
    let x = tape.leaf(&w);
    let mut h = x.clone();
    for _ in 0..8 {
        h = mul(&h, &x).unwrap();
    }
    let seed = tensor(&[1.0; N]);
    drop(x);
    device.reset_peak().unwrap();
    let before = device.memory().unwrap().live;
    tape.sweep(Backward {
        roots: &[(&h, Some(seed))],
        ..Default::default()
    })
    .unwrap();
    // Beyond what was live: the travelling gradient, the next one, the contribution, the sum; the
    // first product is freed only after its gradients are there.
    let peak = device.memory().unwrap().peak - before;
    assert!(peak <= 3 * N * 8, "{peak}");
}

/// A random expression over some parameters and inputs.
fn random_graph(tape: &Tape, seed: u64, params: &[Param], inputs: &[Var]) -> Var {
    let mut state = seed;
    let mut below = |n: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let mut pool: Vec<Var> = inputs.to_vec();
    for _ in 0..12 {
        let pick = |i: usize, pool: &[Var]| match i.checked_sub(pool.len()) {
            Some(k) => tape.leaf(&params[k]),
            None => pool[i].clone(),
        };
        let n = pool.len() + params.len();
        let (a, b) = (pick(below(n), &pool), pick(below(n), &pool));
        pool.push(mul(&a, &b).unwrap());
    }
    pool.pop().unwrap()
}

#[test]
fn the_two_halves_of_a_split_sweep_make_the_whole() {
    on(0);
    let params: Vec<Param> = (0..4)
        .map(|i| param(&[0.7 + 0.1 * i as f64, -1.1]))
        .collect();
    let (mut split_work, mut with_input) = (0, 0);
    for seed in 0..300 {
        let run = |split: bool| {
            let tape = Tape::new();
            let inputs = [[1.25, 0.3], [0.9, -0.4]].map(|v| tape.input(tensor(&v)).unwrap());
            let root = random_graph(&tape, seed, &params, &inputs);
            if !root.requires_grad() {
                return None;
            }
            let plan: Vec<_> = tape
                .plan(&[&root])
                .unwrap()
                .params()
                .iter()
                .map(Param::id)
                .collect();
            let mut ready = Vec::new();
            let mut hook = |p: &Param, g| {
                ready.push(p.id());
                Ok(Some(g))
            };
            let roots = [(&root, Some(tensor(&[1.0, 0.1])))];
            let mut how = Backward {
                roots: &roots,
                ..Backward::default()
            };
            let (first, second) = if split {
                let (first, later) = tape.sweep_inputs(how).unwrap();
                assert!(first.is_empty());
                let bytes = later.saved_bytes();
                (first, (later.run(Some(&mut hook)).unwrap(), bytes))
            } else {
                how.on_ready = Some(&mut hook);
                let all = tape.sweep(how).unwrap();
                (Default::default(), (all, 0))
            };
            assert_eq!(ready, plan, "both ways in the planned order");
            let bits = |t: Option<&Tensor>| {
                t.map(|t| vals(t).iter().map(|v| v.to_bits()).collect::<Vec<_>>())
            };
            let of_inputs = inputs
                .each_ref()
                .map(|x| bits(if split { first.wrt(x) } else { second.0.wrt(x) }));
            let of_params: Vec<_> = params.iter().map(|p| bits(second.0.get(p))).collect();
            Some((of_inputs, of_params, plan.len(), second.1))
        };
        let (whole, split) = (run(false), run(true));
        match (whole, split) {
            (None, None) => {}
            (Some(a), Some(b)) => {
                assert_eq!((&a.0, &a.1), (&b.0, &b.1), "seed {seed}");
                with_input += usize::from(a.0.iter().any(Option::is_some));
                split_work += usize::from(a.0.iter().any(Option::is_some) && a.2 > 0);
            }
            _ => panic!("the same graph"),
        }
    }
    assert!(
        split_work > 200 && with_input > 200,
        "the graphs exercise both halves: {split_work}"
    );
}

#[test]
fn the_second_half_keeps_only_what_it_reads() {
    const N: usize = 1000;
    let device = on(304);
    let w: Vec<Param> = (0..3).map(|_| param(&[1.5; N])).collect();
    let tape = Tape::new();
    let x = tape.input(tensor(&[2.0; N])).unwrap();
    let root = w
        .iter()
        .fold(x.clone(), |h, w| mul(&h, &tape.leaf(w)).unwrap());
    let roots = [(&root, Some(tensor(&[1.0; N])))];
    let (first, later) = tape
        .sweep_inputs(Backward {
            roots: &roots,
            ..Default::default()
        })
        .unwrap();
    assert_eq!(vals(first.wrt(&x).unwrap())[0], 1.5f64.powi(3));
    // Per product: its first factor and the gradient of its output, not the weight.
    assert_eq!(later.saved_bytes(), 6 * N * 8);
    assert!(
        w.iter().all(in_place),
        "weights may be updated before the second half"
    );
    for w in &w {
        w.set(tensor(&[0.0; N])).unwrap();
    }
    let second = later.run(None).unwrap();
    assert!(
        w.iter()
            .all(|w| vals(second.get(w).unwrap())[0] == 2.0 * 1.5 * 1.5)
    );
    drop(roots);
    drop((first, second, x, root));
    assert_eq!(device.memory().unwrap().live, 3 * N * 8);
}

#[test]
fn an_operation_without_inputs_is_swept() {
    #[derive(Debug)]
    struct Receive(Rc<RefCell<Vec<f64>>>);
    impl Vjp for Receive {
        fn name(&self) -> &'static str {
            "receive"
        }
        fn backward(&self, grad: Tensor, _: &[bool]) -> Result<Grads> {
            self.0.borrow_mut().extend(vals(&grad));
            Ok(Grads::new())
        }
        fn saved_bytes(&self) -> usize {
            0
        }
    }
    let w = param(&[4.0]);
    let tape = Tape::new();
    let sent = Rc::default();
    let x = Var::from_vjp(&tape, &[], tensor(&[2.0]), |_| Receive(Rc::clone(&sent))).unwrap();
    let y = mul(&x, &tape.leaf(&w)).unwrap();
    tape.backward(&y).unwrap();
    assert_eq!(*sent.borrow(), [4.0]);
}

#[test]
fn a_long_chain_needs_no_stack() {
    let w = param(&[1.0]);
    let tape = Tape::new();
    let x = tape.leaf(&w);
    let mut h = x.clone();
    for _ in 0..200_000 {
        h = mul(&h, &x).unwrap();
    }
    let gradients = tape.backward(&h).unwrap();
    assert_eq!(vals(gradients.get(&w).unwrap()), [200_001.0]);
}

#[test]
fn the_tape_prints() {
    let w = param(&[1.0]);
    let tape = Tape::new();
    let _y = mul(&tape.constant(tensor(&[1.0])), &tape.leaf(&w)).unwrap();
    let text = format!("{tape:?}");
    assert!(text.contains("1 = product of _, 0"), "{text}");
}
