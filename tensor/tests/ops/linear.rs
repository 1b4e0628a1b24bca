//! The affine layer against product, sum and activation one after the other, and its gradients
//! against central differences.

use crate::util::*;
use phalanx_tensor::ops::linear::Activation;
use phalanx_tensor::{DType, Error, Tensor, unary_table};

type Apart = Box<dyn Fn(&Tensor) -> Tensor>;

macro_rules! table {
    (|$vx:ident, $vout:ident, $vg:ident| $({
        $Name:ident $name:ident ($($arg:ident: $ty:ty)?) [$values:expr] $($rest:tt)*
    })*) => {{
        let mut all: Vec<(Activation, Apart)> = vec![(Activation::None, Box::new(Tensor::clone))];
        $(for ($($arg,)?) in $values {
            all.push((
                Activation::$Name $(($arg))?,
                Box::new(move |x| x.$name($($arg)?).unwrap()),
            ));
        })*
        all
    }};
}

/// Each activation, and the function that it is.
fn activations() -> Vec<(Activation, Apart)> {
    unary_table!(table activations)
}

#[test]
fn one_pass_is_the_steps_one_after_the_other() {
    let (mut rng, activations) = (TestRng::new(31), activations());
    for case in 0..150 {
        let lead = rng.shape(3, 6);
        let (inputs, outputs) = (rng.below(40), 1 + rng.below(40));
        let (activation, apart) = &activations[case % activations.len()];
        for dtype in FLOATS {
            let x = rng.tensor(&[&lead[..], &[inputs]].concat(), dtype, (-1.0, 1.0));
            let w = rng.tensor(&[outputs, inputs], dtype, (-1.0, 1.0));
            let b = (case % 3 > 0).then(|| rng.tensor(&[outputs], dtype, (-1.0, 1.0)));
            // The steps in f64, so that only the operation's own roundings show.
            let wide = |t: &Tensor| t.cast(DType::F64).unwrap();
            let mut sums = wide(&x).matmul(&wide(&w).transpose(0, 1).unwrap()).unwrap();
            if let Some(b) = &b {
                sums = sums.add(&wide(b)).unwrap();
            }
            let expected = apart(&sums);
            let actual = x.linear(&w, b.as_ref(), *activation).unwrap();
            let what = format!(
                "{dtype} {activation:?} {} by {}",
                show(x.dims()),
                show(w.dims())
            );
            let shape = [&lead[..], &[outputs]].concat();
            assert_eq!(actual.dtype(), dtype);
            let tol = tolerance(dtype, 2.0 * (inputs + 8) as f64);
            assert_close(&actual, &shape, &values(&expected), tol, &what);
        }
    }
}

#[test]
fn sums_are_given_with_the_result_that_they_have() {
    let mut rng = TestRng::new(33);
    for (activation, apart) in activations() {
        for dtype in FLOATS {
            let x = rng.tensor(&[2, 3, 7], dtype, (-1.0, 1.0));
            let w = rng.tensor(&[5, 7], dtype, (-1.0, 1.0));
            let b = rng.tensor(&[5], dtype, (-1.0, 1.0));
            let (y, sums) = x.linear_with_sums(&w, Some(&b), activation).unwrap();
            let expected = x.linear(&w, Some(&b), Activation::None).unwrap();
            assert_eq!(values(&sums), values(&expected), "{dtype} {activation:?}");
            assert_eq!(values(&y), values(&apart(&sums)), "{dtype} {activation:?}");
            assert_eq!((y.dims(), sums.dims()), (&[2, 3, 5][..], &[2, 3, 5][..]));
        }
    }
}

#[test]
fn gradients_are_the_slopes() {
    let mut rng = TestRng::new(32);
    for lead in [vec![], vec![5], vec![2, 3]] {
        let x = rng.tensor(&[&lead[..], &[4]].concat(), DType::F64, (-1.0, 1.0));
        let w = rng.tensor(&[6, 4], DType::F64, (-1.0, 1.0));
        let b = rng.tensor(&[6], DType::F64, (-1.0, 1.0));
        let grad = rng.tensor(&[&lead[..], &[6]].concat(), DType::F64, (-1.0, 1.0));
        let f = |t: &[Tensor]| t[0].linear(&t[1], Some(&t[2]), Activation::None).unwrap();
        let inputs = [x.clone(), w.clone(), b];
        assert_gradient(
            f,
            &inputs,
            0,
            &grad,
            &grad.linear_input_grad(&w).unwrap(),
            "x",
        );
        assert_gradient(
            f,
            &inputs,
            1,
            &grad,
            &grad.linear_weight_grad(&x).unwrap(),
            "w",
        );
        assert_gradient(f, &inputs, 2, &grad, &grad.linear_bias_grad().unwrap(), "b");
    }
}

#[test]
fn gradients_of_every_type_match_f64() {
    let mut rng = TestRng::new(33);
    for dtype in FLOATS {
        let x = rng.tensor(&[33, 70], dtype, (-1.0, 1.0));
        let w = rng.tensor(&[50, 70], dtype, (-1.0, 1.0));
        let grad = rng.tensor(&[33, 50], dtype, (-1.0, 1.0));
        let wide = |t: &Tensor| t.cast(DType::F64).unwrap();
        let tol = tolerance(dtype, 60.0);
        let dx = wide(&grad).matmul(&wide(&w)).unwrap();
        assert_close(
            &grad.linear_input_grad(&w).unwrap(),
            &[33, 70],
            &values(&dx),
            tol,
            "x",
        );
        let dw = wide(&grad)
            .transpose(0, 1)
            .unwrap()
            .matmul(&wide(&x))
            .unwrap();
        assert_close(
            &grad.linear_weight_grad(&x).unwrap(),
            &[50, 70],
            &values(&dw),
            tol,
            "w",
        );
    }
}

#[test]
fn an_empty_batch_has_zero_gradients() {
    let t = |shape: &[usize]| Tensor::zeros(shape, DType::F32, device()).unwrap();
    let dw = t(&[0, 3]).linear_weight_grad(&t(&[0, 5])).unwrap();
    assert_close(&dw, &[3, 5], &[0.0; 15], 0.0, "weight");
    assert_eq!(
        t(&[0, 5])
            .linear(&t(&[3, 5]), None, Activation::Relu)
            .unwrap()
            .dims(),
        [0, 3]
    );
    assert_close(
        &t(&[0, 3]).linear_bias_grad().unwrap(),
        &[3],
        &[0.0; 3],
        0.0,
        "bias",
    );
}

#[test]
fn mistakes_are_named() {
    let f = |shape: &[usize]| Tensor::zeros(shape, DType::F32, device()).unwrap();
    let e = f(&[2, 3])
        .linear(&f(&[4, 5]), None, Activation::None)
        .unwrap_err();
    assert!(
        e.to_string()
            .starts_with("linear: shapes [2, 3] and [4, 5]"),
        "{e}"
    );
    let e = f(&[2, 5])
        .linear(&f(&[4, 5]), Some(&f(&[5])), Activation::None)
        .unwrap_err();
    assert!(
        matches!(e, Error::ShapeMismatch { op: "linear", .. }),
        "{e}"
    );
    assert!(matches!(
        f(&[5]).linear(&f(&[5]), None, Activation::None),
        Err(Error::InvalidShape { .. })
    ));
    assert!(matches!(
        f(&[2, 3]).linear_weight_grad(&f(&[3, 3])),
        Err(Error::ShapeMismatch {
            op: "linear_weight_grad",
            ..
        })
    ));
    assert!(matches!(
        f(&[2, 3]).linear_input_grad(&f(&[2, 3])),
        Err(Error::ShapeMismatch {
            op: "linear_input_grad",
            ..
        })
    ));
    assert!(f(&[]).linear_bias_grad().is_err());
}
