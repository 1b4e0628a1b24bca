//! Joining, cutting and padding against plain loops.

use crate::util::*;
use phalanx_tensor::{DType, Device, Error, Tensor};

#[test]
fn what_is_split_and_joined_is_what_it_was() {
    let mut rng = TestRng::new(61);
    for _ in 0..200 {
        let mut shape = rng.shape(3, 6);
        let axis = rng.below(shape.len() + 1);
        shape.insert(axis, rng.below(9));
        let mut sizes = Vec::new();
        let mut rest = shape[axis];
        while rest > 0 || sizes.is_empty() {
            let size = rng.below(rest + 1);
            sizes.push(size);
            rest -= size;
        }
        let signed = axis as isize - shape.len() as isize;
        for dtype in DType::ALL {
            let x = rng.tensor(&shape, dtype, (0.0, 100.0));
            let parts = x.split(&sizes, signed).unwrap();
            assert!(parts.iter().zip(&sizes).all(|(p, &n)| p.dims()[axis] == n));
            let parts: Vec<&Tensor> = parts.iter().collect();
            let joined = Tensor::cat(&parts, axis as isize).unwrap();
            assert_close(&joined, &shape, &values(&x), 0.0, "cat");
            assert!(joined.is_contiguous());
        }
    }
}

#[test]
fn cat_takes_each_of_its_tensors_from_its_own_view() {
    let mut rng = TestRng::new(62);
    for _ in 0..200 {
        let shape = rng.shape(3, 5);
        if shape.is_empty() {
            continue;
        }
        let axis = rng.below(shape.len());
        let parts: Vec<Tensor> = (0..1 + rng.below(4))
            .map(|_| {
                let mut shape = shape.clone();
                shape[axis] = rng.below(5);
                rng.tensor(&shape, DType::F32, (-1.0, 1.0))
            })
            .collect();
        let mut expected = Vec::new();
        let outer: usize = shape[..axis].iter().product();
        for o in 0..outer {
            for part in &parts {
                let row = part.numel() / outer;
                expected.extend_from_slice(&values(part)[o * row..(o + 1) * row]);
            }
        }
        let mut out_shape = shape.clone();
        out_shape[axis] = parts.iter().map(|p| p.dims()[axis]).sum();
        let parts: Vec<&Tensor> = parts.iter().collect();
        let joined = Tensor::cat(&parts, axis as isize).unwrap();
        assert_close(&joined, &out_shape, &expected, 0.0, "cat");
    }
}

#[test]
fn stack_is_the_inverse_of_select() {
    let mut rng = TestRng::new(63);
    for _ in 0..100 {
        let shape = rng.shape(3, 5);
        let axis = rng.below(shape.len() + 1);
        let parts: Vec<Tensor> = (0..1 + rng.below(4))
            .map(|_| rng.tensor(&shape, DType::F64, (-1.0, 1.0)))
            .collect();
        let refs: Vec<&Tensor> = parts.iter().collect();
        let signed = axis as isize - shape.len() as isize - 1;
        let stacked = Tensor::stack(&refs, signed).unwrap();
        for (i, part) in parts.iter().enumerate() {
            let back = stacked.select(axis as isize, i).unwrap();
            assert_close(&back, &shape, &values(part), 0.0, "stack");
        }
    }
}

#[test]
fn chunks_are_pytorchs() {
    let x = |n| Tensor::zeros([n], DType::U8, device()).unwrap();
    let sizes = |n, count| -> Vec<usize> {
        x(n).chunk(count, 0)
            .unwrap()
            .iter()
            .map(Tensor::numel)
            .collect()
    };
    // [len(c) for c in torch.zeros(n).chunk(count)]
    assert_eq!(sizes(6, 4), [2, 2, 2]);
    assert_eq!(sizes(7, 3), [3, 3, 1]);
    assert_eq!(sizes(2, 5), [1, 1]);
    assert_eq!(sizes(0, 3), [0, 0, 0]);
}

#[test]
fn padding_surrounds_and_unpad_takes_it_away() {
    let mut rng = TestRng::new(64);
    for _ in 0..150 {
        let shape = rng.shape(4, 4);
        let widths: Vec<(usize, usize)> =
            shape.iter().map(|_| (rng.below(3), rng.below(3))).collect();
        for dtype in DType::ALL {
            let x = rng.tensor(&shape, dtype, (0.0, 100.0));
            let v = values(&x);
            let out_shape: Vec<usize> = shape
                .iter()
                .zip(&widths)
                .map(|(d, (lo, hi))| d + lo + hi)
                .collect();
            let n: usize = out_shape.iter().product();
            let expected: Vec<f64> = (0..n)
                .map(|flat| {
                    let at = coordinates(flat, &out_shape);
                    let inside = at.iter().zip(&widths).zip(&shape).try_fold(
                        0,
                        |flat, ((&i, &(lo, _)), &d)| {
                            let i = i.checked_sub(lo).filter(|i| *i < d)?;
                            Some(flat * d + i)
                        },
                    );
                    inside.map_or(1.0, |i| v[i])
                })
                .collect();
            let padded = x.pad(&widths, 1.0).unwrap();
            assert_close(&padded, &out_shape, &expected, 0.0, "pad");
            assert_close(&padded.unpad(&widths).unwrap(), &shape, &v, 0.0, "unpad");
        }
    }
}

#[test]
fn misuse_is_named() {
    let t = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, device()).unwrap();
    let (a, b) = (t(&[2, 3], DType::F32), t(&[2, 4], DType::F32));
    assert_eq!(Tensor::cat(&[&a, &b], 1).unwrap().dims(), [2, 7]);
    let e = Tensor::cat(&[&a, &b], 0).unwrap_err().to_string();
    assert!(e.contains("[2, 3]") && e.contains("[2, 4]"), "{e}");
    assert!(matches!(
        Tensor::cat(&[], 0),
        Err(Error::InvalidArgument { op: "cat", .. })
    ));
    assert!(matches!(
        Tensor::stack(&[&a, &b], 0),
        Err(Error::ShapeMismatch { op: "stack", .. })
    ));
    assert!(matches!(
        Tensor::cat(&[&a, &t(&[2, 3], DType::F64)], 0),
        Err(Error::DTypeMismatch { .. })
    ));
    let far = a.to_device(Device::cpu(1)).unwrap();
    assert!(matches!(
        Tensor::cat(&[&a, &far], 0),
        Err(Error::DeviceMismatch { .. })
    ));
    let e = a.split(&[1, 1], 1).unwrap_err().to_string();
    assert!(e.contains("[1, 1]") && e.contains("[2, 3]"), "{e}");
    assert!(a.split(&[usize::MAX, 4], 1).is_err());
    assert!(a.chunk(0, 0).is_err());
    assert!(a.pad(&[(1, 1)], 0.0).is_err());
    assert!(a.unpad(&[(1, 1), (2, 2)]).is_err());
}
