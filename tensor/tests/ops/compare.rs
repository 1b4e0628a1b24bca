//! Comparisons and choice against plain loops.

use crate::util::*;
use phalanx_tensor::{Bool, DType, Device, Error, Result, Tensor};
use proptest::prelude::*;

type Row = (
    &'static str,
    fn(&Tensor, &Tensor) -> Result<Tensor>,
    fn(&f64, &f64) -> bool,
);

const ROWS: [Row; 6] = [
    ("eq", Tensor::eq, f64::eq),
    ("ne", Tensor::ne, f64::ne),
    ("lt", Tensor::lt, f64::lt),
    ("le", Tensor::le, f64::le),
    ("gt", Tensor::gt, f64::gt),
    ("ge", Tensor::ge, f64::ge),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn comparisons_broadcast_as_a_plain_loop_does(seed: u64) {
        let mut rng = TestRng::new(seed);
        let mut shape = rng.shape(3, 6);
        if let Some(last) = shape.last_mut() && rng.below(3) == 0 {
            *last = 40 + rng.below(700);
        }
        let below = rng.shape_below(&shape);
        for dtype in DType::ALL {
            // Few distinct values, so that equality happens.
            let small = |rng: &mut TestRng, shape: &[usize]| {
                rng.tensor(shape, DType::I64, (0.0, 4.0)).cast(dtype).unwrap()
            };
            let (a, b) = (small(&mut rng, &shape), small(&mut rng, &below));
            let y = broadcast(&values(&b), &below, &shape);
            for (name, op, reference) in ROWS {
                let expected: Vec<f64> = values(&a)
                    .iter()
                    .zip(&y)
                    .map(|(x, y)| f64::from(u8::from(reference(x, y))))
                    .collect();
                let mask = op(&a, &b).unwrap();
                prop_assert_eq!(mask.dtype(), DType::Bool);
                prop_assert!(bytes(&mask).iter().all(|b| *b <= 1));
                assert_close(&mask, &shape, &expected, 0.0, &format!("{name} of {dtype}"));
            }
        }
    }

    #[test]
    fn where_cond_chooses_with_three_way_broadcasting(seed: u64) {
        let mut rng = TestRng::new(seed);
        let mut shape = rng.shape(3, 6);
        if let Some(last) = shape.last_mut() && rng.below(3) == 0 {
            *last = 40 + rng.below(700);
        }
        let (sc, sa, sb) = (rng.shape_below(&shape), rng.shape_below(&shape), shape.clone());
        for dtype in DType::ALL {
            let mask = [DType::U8, DType::Bool][rng.below(2)];
            let cond = rng.tensor(&sc, mask, (0.0, 3.0));
            let a = rng.tensor(&sa, dtype, (0.0, 9.0));
            let b = rng.tensor(&sb, dtype, (0.0, 9.0));
            let c = broadcast(&values(&cond), &sc, &shape);
            let x = broadcast(&values(&a), &sa, &shape);
            let expected: Vec<f64> = c
                .iter()
                .zip(x.iter().zip(values(&b)))
                .map(|(c, (x, y))| if *c != 0.0 { *x } else { y })
                .collect();
            let out = Tensor::where_cond(&cond, &a, &b).unwrap();
            prop_assert_eq!(out.dtype(), dtype);
            assert_close(&out, &shape, &expected, 0.0, "where_cond");
        }
    }
}

#[test]
fn nan_compares_as_ieee_says() {
    let nan = f64::NAN;
    for dtype in FLOATS {
        let a = tensor_of(&[nan, nan, 1.0], &[3], dtype);
        let b = tensor_of(&[nan, 1.0, nan], &[3], dtype);
        for (name, op, _) in ROWS {
            let expected = if name == "ne" { [1.0; 3] } else { [0.0; 3] };
            assert_close(&op(&a, &b).unwrap(), &[3], &expected, 0.0, name);
        }
    }
}

#[test]
fn every_byte_but_0_is_the_same_truth() {
    let mut t = Tensor::empty([4], DType::Bool, Device::cpu(0)).unwrap();
    t.bytes_mut().unwrap().copy_from_slice(&[0, 1, 2, 255]);
    let here = t;
    let t = here.to_device(device()).unwrap();
    let truth = [false, true, true, true];
    assert_eq!(t.to_vec::<bool>().unwrap(), truth);
    let gaps = t.slice(0, 0..4, 2).unwrap();
    assert_eq!(gaps.to_vec::<bool>().unwrap(), [false, true]);
    assert_eq!(here.as_slice::<Bool>().unwrap(), truth.map(Bool::from));
    assert!(t.narrow(0, 3, 1).unwrap().item::<bool>().unwrap());
    let same = Tensor::from_slice(&truth, [4], device()).unwrap();
    let equal = t.eq(&same).unwrap();
    assert_eq!(bytes(&equal), [1; 4]);
    assert_eq!(bytes(&t.lt(&same).unwrap()), [0; 4]);
    // Only what lies in the host's memory shows its elements.
    let same = Tensor::from_slice(&truth, [4], Device::cpu(0)).unwrap();
    assert_eq!(format!("{here:?}"), format!("{same:?}"));
    assert!(format!("{here:?}").contains("[false, true, true, true]"));
}

#[test]
fn errors_name_operation_shapes_and_types() {
    let f = Tensor::zeros([2, 3], DType::F32, device()).unwrap();
    let mask = Tensor::zeros([5], DType::U8, device()).unwrap();
    let e = Tensor::where_cond(&f, &f, &f).unwrap_err();
    assert_eq!(
        e,
        Error::WrongDType {
            op: "where_cond",
            operand: "the condition",
            wanted: DType::Bool,
            found: DType::F32
        }
    );
    let message = Tensor::where_cond(&mask, &f, &f).unwrap_err().to_string();
    assert!(
        message.contains("where_cond: shapes [5] and [2, 3]"),
        "{message}"
    );
    assert!(matches!(
        f.eq(&mask).unwrap_err(),
        Error::DTypeMismatch { op: "eq", .. }
    ));
    let far = Tensor::zeros([5], DType::U8, Device::cpu(1)).unwrap();
    assert!(matches!(
        mask.le(&far).unwrap_err(),
        Error::DeviceMismatch { op: "le", .. }
    ));
}
