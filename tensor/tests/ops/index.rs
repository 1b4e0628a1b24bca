//! Reading and adding by index against plain loops.

use crate::util::*;
use phalanx_tensor::{DType, Device, Error, Tensor, cpu};

/// Indices below `extent` as a random view, and their values.
fn indices(rng: &mut TestRng, shape: &[usize], extent: usize) -> (Tensor, Vec<usize>) {
    // Truncated to integers when the tensor is made.
    let dtype = [DType::I64, DType::I32][rng.below(2)];
    let t = rng.tensor(shape, dtype, (0.0, extent as f64));
    let plain = values(&t).iter().map(|&v| v as usize).collect();
    (t, plain)
}

fn nonempty(rng: &mut TestRng, rank: usize, extent: usize) -> Vec<usize> {
    (0..rank).map(|_| 1 + rng.below(extent)).collect()
}

#[test]
fn index_select_and_index_add_match_plain_loops() {
    let mut rng = TestRng::new(51);
    for case in 0..200 {
        let rank = 1 + rng.below(4);
        let mut shape = nonempty(&mut rng, rank, 6);
        if case % 20 == 0 {
            shape[rank - 1] = 0;
        }
        let axis = rng.below(rank);
        let count = if shape[axis] == 0 { 0 } else { rng.below(9) };
        let (index, plain) = indices(&mut rng, &[count], shape[axis].max(1));
        let mut out_shape = shape.clone();
        out_shape[axis] = count;
        let n: usize = out_shape.iter().product();
        let from: Vec<usize> = (0..n)
            .map(|flat| {
                let mut at = coordinates(flat, &out_shape);
                at[axis] = plain[at[axis]];
                at.iter().zip(&shape).fold(0, |flat, (&i, &d)| flat * d + i)
            })
            .collect();
        for dtype in DType::ALL {
            let x = rng.tensor(&shape, dtype, (0.0, 100.0));
            let v = values(&x);
            let expected: Vec<f64> = from.iter().map(|&i| v[i]).collect();
            let actual = x
                .index_select(axis as isize - rank as isize, &index)
                .unwrap();
            assert_close(&actual, &out_shape, &expected, 0.0, "index_select");
        }
        for dtype in FLOATS {
            let x = rng.tensor(&shape, dtype, (-1.0, 1.0));
            let source = rng.tensor(&out_shape, dtype, (-1.0, 1.0));
            let mut expected = values(&x);
            from.iter()
                .zip(values(&source))
                .for_each(|(&i, v)| expected[i] += v);
            let actual = x.index_add(axis as isize, &index, &source).unwrap();
            assert_eq!(actual.dtype(), dtype);
            assert_close(
                &actual,
                &shape,
                &expected,
                tolerance(dtype, 32.0),
                "index_add",
            );
        }
    }
}

#[test]
fn gather_and_scatter_add_match_plain_loops() {
    let mut rng = TestRng::new(52);
    for case in 0..300 {
        let rank = 1 + rng.below(4);
        let shape = nonempty(&mut rng, rank, 6);
        let axis = rng.below(rank);
        let mut at_shape: Vec<usize> = shape.iter().map(|&d| 1 + rng.below(d)).collect();
        at_shape[axis] = 1 + rng.below(9);
        if case % 20 == 0 {
            at_shape[rank - 1] = 0;
        }
        let (index, plain) = indices(&mut rng, &at_shape, shape[axis]);
        let from: Vec<usize> = (0..plain.len())
            .map(|flat| {
                let mut at = coordinates(flat, &at_shape);
                at[axis] = plain[flat];
                at.iter().zip(&shape).fold(0, |flat, (&i, &d)| flat * d + i)
            })
            .collect();
        for dtype in DType::ALL {
            let x = rng.tensor(&shape, dtype, (0.0, 100.0));
            let v = values(&x);
            let expected: Vec<f64> = from.iter().map(|&i| v[i]).collect();
            let actual = x.gather(axis as isize - rank as isize, &index).unwrap();
            assert_close(&actual, &at_shape, &expected, 0.0, "gather");
        }
        for dtype in FLOATS {
            let x = rng.tensor(&shape, dtype, (-1.0, 1.0));
            let source = rng.tensor(&at_shape, dtype, (-1.0, 1.0));
            let before = values(&x);
            let mut expected = before.clone();
            from.iter()
                .zip(values(&source))
                .for_each(|(&i, v)| expected[i] += v);
            let actual = x.scatter_add(axis as isize, &index, &source).unwrap();
            assert_eq!(actual.dtype(), dtype);
            assert_close(
                &actual,
                &shape,
                &expected,
                tolerance(dtype, 32.0),
                "scatter_add",
            );
            assert_eq!(values(&x), before, "the tensor that is added to is a value");
        }
    }
}

#[test]
fn adding_is_the_gradient_of_reading() {
    let mut rng = TestRng::new(53);
    let x = [rng.tensor(&[4, 5], DType::F64, (-1.0, 1.0))];
    let zeros = Tensor::zeros([4, 5], DType::F64, device()).unwrap();
    for axis in [0, 1] {
        let (index, _) = indices(&mut rng, &[7], 4);
        let f = |x: &[Tensor]| x[0].index_select(axis, &index).unwrap();
        let grad = rng.tensor(f(&x).dims(), DType::F64, (-1.0, 1.0));
        let dx = zeros.index_add(axis, &index, &grad).unwrap();
        assert_gradient(f, &x, 0, &grad, &dx, "index_select");
        let (index, _) = indices(&mut rng, if axis == 0 { &[9, 3] } else { &[2, 9] }, 4);
        let f = |x: &[Tensor]| x[0].gather(axis, &index).unwrap();
        let grad = rng.tensor(index.dims(), DType::F64, (-1.0, 1.0));
        let dx = zeros.scatter_add(axis, &index, &grad).unwrap();
        assert_gradient(f, &x, 0, &grad, &dx, "gather");
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut rng = TestRng::new(54);
    let x = rng.tensor(&[40, 30, 200], DType::F32, (-1.0, 1.0));
    let (list, _) = indices(&mut rng, &[100], 30);
    let (places, _) = indices(&mut rng, &[40, 60, 200], 30);
    let run = || {
        let selected = x.index_select(1, &list).unwrap();
        let gathered = x.gather(1, &places).unwrap();
        let sums = x.scatter_add(1, &places, &gathered).unwrap();
        [
            x.index_add(1, &list, &selected).unwrap(),
            selected,
            gathered,
            sums,
        ]
    };
    let alone = cpu::with_threads(1, run);
    for threads in [2, 5] {
        for (a, b) in alone.iter().zip(cpu::with_threads(threads, run)) {
            assert_same(a, &b, "threads");
        }
    }
}

#[test]
fn misuse_is_named() {
    let device = device();
    let x = Tensor::zeros([2, 3], DType::F32, device).unwrap();
    let list = |i: &[i64]| Tensor::from_slice(i, [i.len()], device).unwrap();
    for index in [3, -1] {
        assert_eq!(
            out_of_range(x.index_select(1, &list(&[index]))),
            Error::IndexOutOfRange {
                op: "index_select",
                index,
                extent: 3,
                late: matches!(device, Device::Cuda(_))
            }
        );
        let place = list(&[index]).reshape([1, 1]).unwrap();
        assert_eq!(
            out_of_range(x.gather(1, &place)),
            Error::IndexOutOfRange {
                op: "gather",
                index,
                extent: 3,
                late: matches!(device, Device::Cuda(_))
            }
        );
    }
    let square = Tensor::zeros([3, 1], DType::I64, device).unwrap();
    assert!(matches!(
        x.index_select(0, &square),
        Err(Error::InvalidShape { .. })
    ));
    assert!(matches!(
        x.gather(1, &square),
        Err(Error::ShapeMismatch { op: "gather", .. })
    ));
    assert!(matches!(
        x.gather(1, &list(&[0])),
        Err(Error::ShapeMismatch { .. })
    ));
    assert!(matches!(x.gather(1, &x), Err(Error::WrongDType { .. })));
    assert!(matches!(
        x.gather(2, &square),
        Err(Error::AxisOutOfRange { axis: 2, .. })
    ));
    assert!(matches!(
        x.index_add(0, &list(&[0]), &x),
        Err(Error::ShapeMismatch {
            op: "index_add",
            ..
        })
    ));
    let far = list(&[0]).to_device(Device::cpu(1)).unwrap();
    assert!(matches!(
        x.index_select(0, &far),
        Err(Error::DeviceMismatch { .. })
    ));
}
