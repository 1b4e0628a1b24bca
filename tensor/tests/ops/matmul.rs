//! Products of tensors against plain sums over `f64`, for every mixture of leading axes.

use crate::util::*;
use phalanx_tensor::{DType, Device, Error, Tensor, cpu};

/// `[…, m, k]` by `[…, k, n]` of one leading shape, and for each element the sum of the absolute
/// products.
fn reference(a: &[f64], b: &[f64], (m, n, k): (usize, usize, usize)) -> (Vec<f64>, Vec<f64>) {
    let count = a.len().checked_div(m * k).unwrap_or(0);
    let mut out = (Vec::new(), Vec::new());
    for at in 0..count * m * n {
        let (matrix, i, j) = (at / (m * n), at / n % m, at % n);
        let terms = (0..k).map(|p| a[matrix * m * k + i * k + p] * b[matrix * k * n + p * n + j]);
        out.0.push(terms.clone().sum());
        out.1.push(terms.map(f64::abs).sum());
    }
    out
}

#[track_caller]
fn assert_product(
    actual: &Tensor,
    shape: &[usize],
    (expected, size): (Vec<f64>, Vec<f64>),
    k: usize,
    what: &str,
) {
    assert_eq!(actual.dims(), shape, "{what}");
    let dtype = actual.dtype();
    let acc = rounding(if dtype == DType::F64 {
        DType::F64
    } else {
        DType::F32
    });
    for ((a, e), s) in values(actual).into_iter().zip(expected).zip(size) {
        // The last term: half the smallest number of f16.
        let tiny = if dtype == DType::F16 {
            2f64.powi(-25)
        } else {
            1e-38
        };
        let bound = (k + 4) as f64 * acc * s + rounding(dtype) * e.abs() + tiny;
        assert!(
            (a - e).abs() <= bound,
            "{what}: {a} against {e} within {bound:e}"
        );
    }
}

#[test]
fn any_stack_of_any_views() {
    let mut rng = TestRng::new(21);
    for _ in 0..300 {
        let lead = rng.shape(3, 3);
        let (m, n, k) = (1 + rng.below(20), 1 + rng.below(20), rng.below(30));
        let full = |rows, cols| [&lead[..], &[rows, cols]].concat();
        for dtype in FLOATS {
            let a_shape = [rng.shape_below(&lead), vec![m, k]].concat();
            let b_lead = if a_shape[..a_shape.len() - 2] == lead[..] {
                rng.shape_below(&lead)
            } else {
                lead.clone()
            };
            let b_shape = [b_lead, vec![k, n]].concat();
            let a = rng.tensor(&a_shape, dtype, (-2.0, 2.0));
            let b = rng.tensor(&b_shape, dtype, (-2.0, 2.0));
            let what = format!("{dtype} {} by {}", show(&a_shape), show(&b_shape));
            let wide_a = broadcast(&values(&a), &a_shape, &full(m, k));
            let wide_b = broadcast(&values(&b), &b_shape, &full(k, n));
            let mut expected = reference(&wide_a, &wide_b, (m, n, k));
            if k == 0 {
                let n = full(m, n).iter().product();
                expected = (vec![0.0; n], vec![0.0; n]);
            }
            assert_product(&a.matmul(&b).unwrap(), &full(m, n), expected, k, &what);
        }
    }
}

#[test]
fn vectors_count_as_a_row_or_a_column() {
    let mut rng = TestRng::new(22);
    let v = rng.tensor(&[7], DType::F64, (-1.0, 1.0));
    let m = rng.tensor(&[2, 7, 5], DType::F64, (-1.0, 1.0));
    let row = v.matmul(&m).unwrap();
    assert_eq!(row.dims(), [2, 5]);
    assert_same(
        &row,
        &v.unsqueeze(0)
            .unwrap()
            .matmul(&m)
            .unwrap()
            .squeeze(-2)
            .unwrap(),
        "row",
    );
    let column = m.transpose(-2, -1).unwrap().matmul(&v).unwrap();
    assert_eq!(column.dims(), [2, 5]);
    assert_close(&column, &[2, 5], &values(&row), 1e-14, "column");
    let dot = v.matmul(&v).unwrap();
    assert_eq!(dot.rank(), 0);
    let expected: f64 = values(&v).iter().map(|x| x * x).sum();
    assert!((dot.item::<f64>().unwrap() - expected).abs() < 1e-13);
}

#[test]
fn threads_change_no_bit_of_a_stack() {
    let mut rng = TestRng::new(23);
    for (a, b) in [
        (vec![6, 40, 30], vec![6, 30, 50]),
        (vec![2, 300, 300], vec![300, 400]),
        (vec![5, 1, 64], vec![5, 64, 900]),
    ] {
        let a = rng.tensor(&a, DType::F32, (-1.0, 1.0));
        let b = rng.tensor(&b, DType::F32, (-1.0, 1.0));
        let alone = cpu::with_threads(1, || a.matmul(&b).unwrap());
        for threads in [2, 3, 4] {
            let together = cpu::with_threads(threads, || a.matmul(&b).unwrap());
            assert_same(&together, &alone, &format!("{threads} threads"));
        }
    }
}

#[test]
fn mistakes_are_named() {
    let t = |shape: &[usize], dtype, device| Tensor::zeros(shape, dtype, device).unwrap();
    let f = |shape: &[usize]| t(shape, DType::F32, device());
    let e = f(&[2, 3]).matmul(&f(&[4, 5])).unwrap_err();
    assert!(
        e.to_string().contains("matmul")
            && e.to_string().contains("[2, 3]")
            && e.to_string().contains("[4, 5]"),
        "{e}"
    );
    assert!(matches!(
        f(&[2, 2, 3]).matmul(&f(&[3, 3, 5])),
        Err(Error::ShapeMismatch { op: "matmul", .. })
    ));
    assert!(matches!(
        f(&[]).matmul(&f(&[3])),
        Err(Error::InvalidShape { op: "matmul", .. })
    ));
    let d = t(&[3, 3], DType::F64, device());
    assert!(matches!(
        f(&[3, 3]).matmul(&d),
        Err(Error::DTypeMismatch { op: "matmul", .. })
    ));
    let far = t(&[3, 3], DType::F32, Device::cpu(1));
    assert!(matches!(
        f(&[3, 3]).matmul(&far),
        Err(Error::DeviceMismatch { op: "matmul", .. })
    ));
    let i = t(&[3, 3], DType::I64, device());
    assert!(matches!(
        i.matmul(&i),
        Err(Error::UnsupportedDType { op: "matmul", .. })
    ));
}

#[test]
fn a_product_is_added_where_the_sum_is() {
    let mut rng = TestRng::new(23);
    for _ in 0..200 {
        let (m, n, k) = (rng.below(40), rng.below(40), rng.below(60));
        for dtype in FLOATS {
            // Views of any strides.
            let a = rng.tensor(&[m, k], dtype, (-2.0, 2.0));
            let b = rng.tensor(&[k, n], dtype, (-2.0, 2.0));
            let wide = computed(dtype);
            let mut sum = rng.tensor(&[m, n], wide, (-2.0, 2.0)).copy().unwrap();
            let (old, at) = (values(&sum), sum.address());
            let (mut expected, mut size) = match k {
                0 => (vec![0.0; m * n], vec![0.0; m * n]),
                _ => reference(&values(&a), &values(&b), (m, n, k)),
            };
            expected.iter_mut().zip(&old).for_each(|(e, o)| *e += o);
            size.iter_mut().zip(&old).for_each(|(s, o)| *s += o.abs());
            sum.addmm(&a, &b).unwrap();
            assert_eq!((sum.dtype(), sum.address()), (wide, at));
            let what = format!("{dtype} {m} by {k} by {n}");
            assert_product(&sum, &[m, n], (expected, size), k + 1, &what);
        }
    }
    // What somebody shares, keeps its values; so does what is read.
    let one = Tensor::ones([2, 2], DType::F32, device()).unwrap();
    let mut sum = one.clone();
    sum.addmm(&one, &sum.clone()).unwrap();
    assert_eq!((values(&one), values(&sum)), (vec![1.0; 4], vec![3.0; 4]));
}

#[test]
fn a_sum_that_is_not_like_the_product_is_named() {
    let f = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, device()).unwrap();
    let (a, b) = (f(&[2, 3], DType::F32), f(&[3, 4], DType::F32));
    let wrong = |mut sum: Tensor| sum.addmm(&a, &b).unwrap_err();
    for shape in [[2, 3], [3, 4]] {
        let e = wrong(f(&shape, DType::F32));
        assert!(matches!(e, Error::ShapeMismatch { op: "addmm", .. }), "{e}");
    }
    let e = wrong(f(&[2, 4], DType::F64));
    assert!(matches!(e, Error::WrongDType { op: "addmm", .. }), "{e}");
    let e = wrong(f(&[2, 4], DType::F32).to_device(Device::cpu(9)).unwrap());
    assert!(
        matches!(e, Error::DeviceMismatch { op: "addmm", .. }),
        "{e}"
    );
    let e = f(&[2, 2], DType::BF16).addmm(&f(&[2, 2], DType::BF16), &f(&[2, 2], DType::BF16));
    let e = e.unwrap_err();
    assert!(
        matches!(
            e,
            Error::WrongDType {
                wanted: DType::F32,
                ..
            }
        ),
        "{e}"
    );
}
