//! What holds for every loss: one shape, and `f32` for half types.

use crate::CPU;
use phalanx_autograd::{Error, Tape, Var, nn};
use phalanx_tensor::{DType, Tensor};

#[test]
fn losses_do_not_broadcast() {
    let tape = Tape::new();
    let var = |shape: &[usize]| tape.constant(Tensor::ones(shape, DType::F32, CPU).unwrap());
    type Loss = fn(&Var, &Var) -> phalanx_autograd::Result<Var>;
    let losses: [(&str, Loss); 3] = [
        ("mse", nn::mse),
        ("l1", nn::l1),
        ("binary_cross_entropy", nn::binary_cross_entropy),
    ];
    for (name, loss) in losses {
        assert!(loss(&var(&[3, 1]), &var(&[3, 1])).is_ok(), "{name}");
        for (a, b) in [(&[3, 1][..], &[3][..]), (&[3], &[]), (&[2, 3], &[1, 3])] {
            let (a, b) = (var(a), var(b));
            for (a, b) in [(&a, &b), (&b, &a)] {
                let e = loss(a, b).unwrap_err();
                let Error::Tensor(phalanx_tensor::Error::ShapeMismatch { op, .. }) = e else {
                    panic!("{name}: {e}");
                };
                assert_eq!(op, name);
            }
        }
    }
    let log_p = var(&[4, 3]);
    for shape in [&[2][..], &[4, 1], &[4, 3], &[]] {
        let targets = Tensor::zeros(shape, DType::I64, CPU).unwrap();
        let e = nn::nll(&log_p, &targets).unwrap_err().to_string();
        assert!(e.starts_with("nll: shapes [4, 3]"), "{e}");
        assert!(nn::cross_entropy(&log_p, &targets).is_err());
    }
}

#[test]
fn losses_of_half_types_are_f32_and_do_not_overflow() {
    type Loss = fn(&Var, &Var) -> phalanx_autograd::Result<Var>;
    let losses: [(Loss, f64); 3] = [
        (nn::mse, 90_000.0),
        (nn::l1, 300.0),
        (nn::binary_cross_entropy, 300.0),
    ];
    for dtype in [DType::BF16, DType::F16] {
        let full = |value: f64| Tensor::full([256], value, dtype, CPU).unwrap();
        for (i, (loss, want)) in losses.into_iter().enumerate() {
            let tape = Tape::new();
            let x = tape.input(full(300.0)).unwrap();
            let out = loss(&x, &tape.constant(full(0.0))).unwrap();
            assert_eq!(out.dtype(), DType::F32, "{dtype}, loss {i}");
            assert_eq!(out.item::<f64>().unwrap(), want, "{dtype}, loss {i}");
            let slope = tape.backward(&out).unwrap();
            assert_eq!(slope.wrt(&x).unwrap().dtype(), dtype);
        }
        let tape = Tape::new();
        let logits = Tensor::zeros([64, 10], dtype, CPU).unwrap();
        let logits = tape.input(logits).unwrap();
        let targets = Tensor::zeros([64], DType::I64, CPU).unwrap();
        let out = nn::cross_entropy(&logits, &targets).unwrap();
        assert_eq!(out.dtype(), DType::F32);
        assert!((out.item::<f64>().unwrap() - 10f64.ln()).abs() < 1e-6);
        let log_p = logits.log_softmax(1).unwrap();
        let nll = nn::nll(&log_p, &targets).unwrap();
        assert_eq!(nll.dtype(), DType::F32);
        let slope = tape.backward(&out).unwrap();
        assert_eq!(slope.wrt(&logits).unwrap().dtype(), dtype);
    }
}
