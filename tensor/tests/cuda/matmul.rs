//! Products of matrices and of stacks of matrices against the CPU's.

use crate::support::*;
use phalanx_tensor::{DType, Device, Tensor};

/// The product here and there.
fn compare(name: &str, device: Device, a: &Tensor, b: &Tensor) {
    let here = a.matmul(b).unwrap();
    let there = a
        .to_device(device)
        .unwrap()
        .matmul(&b.to_device(device).unwrap())
        .unwrap();
    judge(name, &there, &here);
}

/// Sums of at most 130 products of factors up to 2.
fn judge(name: &str, there: &Tensor, here: &Tensor) {
    assert_near(name, there, here, 130.0 * 2f64.powi(-24) * 4.0 * 130.0);
}

#[test]
fn products_of_every_shape_are_the_cpus() {
    let (device, _turn) = card!();
    let shapes: [(&[usize], &[usize]); 16] = [
        (&[1, 1], &[1, 1]),
        (&[5, 7], &[7, 3]),
        (&[33, 130], &[130, 65]),
        (&[7], &[7]),
        (&[7], &[7, 3]),
        (&[5, 7], &[7]),
        (&[2, 5, 7], &[7, 3]),
        (&[2, 5, 7], &[2, 7, 3]),
        (&[5, 7], &[2, 7, 3]),
        (&[2, 1, 5, 7], &[3, 7, 2]),
        (&[3, 2, 4, 5], &[3, 1, 5, 6]),
        (&[1, 3, 4, 5], &[2, 1, 5, 6]),
        (&[3, 0], &[0, 4]),
        (&[0, 3], &[3, 4]),
        (&[0, 2, 3], &[0, 3, 4]),
        (&[2, 3, 0], &[2, 0, 4]),
    ];
    for dtype in FLOATS {
        for seed in SEEDS {
            for (a, b) in shapes {
                let (x, y) = (values(a, dtype, seed), values(b, dtype, seed + 9));
                compare(&format!("{a:?} by {b:?}"), device, &x, &y);
            }
        }
    }
}

#[test]
fn a_product_is_added_as_on_the_cpu() {
    let (device, _turn) = card!();
    let sizes = [[1, 1, 1], [5, 7, 3], [33, 130, 65], [3, 0, 4], [0, 3, 4]];
    for dtype in FLOATS {
        let wide = match dtype {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        for (seed, [m, k, n]) in (1..).zip(sizes) {
            // The first transposed, as in a weight's gradient.
            let (a, b) = (
                values(&[k, m], dtype, seed),
                values(&[k, n], dtype, seed + 9),
            );
            let old = values(&[m, n], wide, seed + 18);
            let run = |at: Device| {
                let [a, b] = [&a, &b].map(|t| t.to_device(at).unwrap());
                let mut sum = old.to_device(at).unwrap().copy().unwrap();
                let address = sum.address();
                sum.addmm(&a.t().unwrap(), &b).unwrap();
                assert_eq!(sum.address(), address);
                sum
            };
            let name = format!("{dtype} {m} by {k} by {n} added");
            judge(&name, &run(device), &run(Device::cpu(0)));
        }
    }
}

/// A view of a tensor.
type View = fn(&Tensor) -> Tensor;

#[test]
fn products_of_views_are_the_cpus() {
    let (device, _turn) = card!();
    // Each makes a stack of 3 matrices of 6 by 6.
    let views: [View; 10] = [
        |t| t.narrow(1, 1, 6).unwrap().narrow(2, 3, 6).unwrap(),
        |t| {
            t.transpose(1, 2)
                .unwrap()
                .narrow(1, 0, 6)
                .unwrap()
                .narrow(2, 2, 6)
                .unwrap()
        },
        |t| t.slice(1, 0..12, 2).unwrap().narrow(2, 0, 6).unwrap(),
        |t| t.slice(2, 1..12, 2).unwrap().narrow(1, 0, 6).unwrap(),
        |t| t.slice(1, 0..12, 2).unwrap().slice(2, 1..12, 2).unwrap(),
        |t| {
            t.narrow(0, 1, 1)
                .unwrap()
                .narrow(1, 0, 6)
                .unwrap()
                .slice(2, 0..12, 2)
                .unwrap()
                .broadcast_to([3, 6, 6])
                .unwrap()
        },
        |t| {
            t.narrow(1, 4, 1)
                .unwrap()
                .narrow(2, 0, 6)
                .unwrap()
                .broadcast_to([3, 6, 6])
                .unwrap()
        },
        // A column beside itself: each column lies densely, and the next one at the same place.
        |t| {
            t.transpose(1, 2)
                .unwrap()
                .narrow(2, 4, 1)
                .unwrap()
                .narrow(1, 0, 6)
                .unwrap()
                .broadcast_to([3, 6, 6])
                .unwrap()
        },
        |t| {
            t.permute(&[1, 0, 2])
                .unwrap()
                .narrow(0, 0, 3)
                .unwrap()
                .narrow(2, 0, 6)
                .unwrap()
                .broadcast_to([2, 3, 3, 6])
                .unwrap()
                .narrow(0, 1, 1)
                .unwrap()
                .squeeze(0)
                .unwrap()
        },
        |t| {
            t.slice(0, 0..3, 2)
                .unwrap()
                .narrow(1, 0, 6)
                .unwrap()
                .narrow(2, 0, 6)
                .unwrap()
        },
    ];
    for dtype in FLOATS {
        let a = values(&[3, 12, 12], dtype, 1);
        let b = values(&[3, 12, 12], dtype, 2);
        let there = |t: &Tensor| t.to_device(device).unwrap();
        let (far_a, far_b) = (there(&a), there(&b));
        for (i, left) in views.iter().enumerate() {
            for (j, right) in views.iter().enumerate() {
                match left(&a).matmul(&right(&b)) {
                    Ok(here) => {
                        let there = left(&far_a).matmul(&right(&far_b)).unwrap();
                        judge(&format!("views {i} and {j}"), &there, &here);
                    }
                    Err(here) => {
                        let there = left(&far_a).matmul(&right(&far_b)).unwrap_err();
                        let sentence = here.to_string();
                        assert_eq!(there.to_string(), sentence, "views {i} and {j}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_product_lets_nan_and_infinity_pass_and_repeats_bit_for_bit() {
    let (device, _turn) = card!();
    for dtype in FLOATS {
        let a = values(&[40, 300], dtype, 5).to_device(device).unwrap();
        let b = values(&[300, 20], dtype, 6).to_device(device).unwrap();
        let first = read(&a.matmul(&b).unwrap());
        for _ in 0..3 {
            assert_eq!(read(&a.matmul(&b).unwrap()), first, "{dtype}");
        }
        let edge = Tensor::from_slice(&[f64::NAN, 1.0, f64::INFINITY, 1.0], [2, 2], Device::cpu(0));
        let edge = edge
            .unwrap()
            .cast(dtype)
            .unwrap()
            .to_device(device)
            .unwrap();
        let one = Tensor::ones([2, 2], dtype, device).unwrap();
        let y = read(&edge.matmul(&one).unwrap());
        assert!(
            y[0].is_nan() && y[1].is_nan() && y[2] == f64::INFINITY,
            "{y:?}"
        );
    }
}

#[test]
fn tf32_is_a_choice() {
    let (device, _turn) = card!();
    // 1 + 2⁻¹² has no TF32: its product with 1 tells which type it was.
    let fine = Tensor::full([16, 16], 1.0 + 2f64.powi(-12), DType::F32, device).unwrap();
    let mut one = vec![0f32; 256];
    (0..16).for_each(|i| one[i * 17] = 1.0);
    let one = Tensor::from_vec(one, [16, 16], device).unwrap();
    let exact = 1.0 + 2f64.powi(-12);
    let product = || read(&fine.matmul(&one).unwrap());
    assert!(product().iter().all(|v| *v == exact));
    device.allow_tf32(true).unwrap();
    let rounded = product();
    device.allow_tf32(false).unwrap();
    assert!(rounded.iter().all(|v| (v - 1.0).abs() < 1e-3));
    assert!(rounded.iter().any(|v| *v != exact));
    assert!(product().iter().all(|v| *v == exact));
    Device::cpu(0).allow_tf32(true).unwrap();
}

#[test]
fn a_wrong_product_is_the_cpus_error() {
    let (device, _turn) = card!();
    let a = values(&[2, 3], DType::F32, 1).to_device(device).unwrap();
    let e = a.matmul(&a).unwrap_err();
    let here = a.to_device(Device::cpu(0)).unwrap();
    assert_eq!(e.to_string(), here.matmul(&here).unwrap_err().to_string());
}
