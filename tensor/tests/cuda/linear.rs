//! The affine layer and its gradients against the CPU's.

use crate::counts::Counts;
use crate::support::*;
use phalanx_tensor::ops::linear::Activation;
use phalanx_tensor::{DType, Device, GeluKind, Tensor};

const ACTIVATIONS: [Activation; 7] = [
    Activation::None,
    Activation::Relu,
    Activation::Gelu(GeluKind::Exact),
    Activation::Gelu(GeluKind::Tanh),
    Activation::Silu,
    Activation::Tanh,
    Activation::Sigmoid,
];

/// Products of at most 33 factors up to 2 each, and what an activation makes of their sums.
fn close(name: &str, got: &Tensor, expected: &Tensor) {
    assert_near(
        name,
        got,
        expected,
        33.0 * 2f64.powi(-24) * 4.0 * 33.0 * 1.2,
    );
}

#[test]
fn linear_and_its_gradients_are_the_cpus() {
    let (device, _turn) = card!();
    for dtype in FLOATS {
        for seed in SEEDS {
            for (lead, k, n) in [
                (1, 1, 1),
                (5, 7, 3),
                (65, 33, 70),
                (3, 0, 4),
                (0, 5, 4),
                (4, 5, 0),
            ] {
                let x = values(&[lead, k], dtype, seed);
                let w = values(&[n, k], dtype, seed + 1);
                let b = values(&[n], dtype, seed + 2);
                let g = values(&[lead, n], dtype, seed + 3);
                let there = |t: &Tensor| t.to_device(device).unwrap();
                let name = format!("{lead} {k} {n}");
                for activation in ACTIVATIONS {
                    let y = x.linear(&w, Some(&b), activation).unwrap();
                    let got = there(&x)
                        .linear(&there(&w), Some(&there(&b)), activation)
                        .unwrap();
                    close(&format!("{name} {activation:?}"), &got, &y);
                    let both = |x: &Tensor, w: &Tensor, b: &Tensor| {
                        x.linear_with_sums(w, Some(b), activation).unwrap()
                    };
                    let sums = both(&x, &w, &b).1;
                    let (got, got_sums) = both(&there(&x), &there(&w), &there(&b));
                    close(&format!("{name} sums for {activation:?}"), &got_sums, &sums);
                    let apart = activation.apply(&got_sums).unwrap();
                    assert_eq!(read(&got), read(&apart), "{dtype} {name} {activation:?}");
                }
                let y = x.linear(&w, None, Activation::None).unwrap();
                close(
                    &name,
                    &there(&x)
                        .linear(&there(&w), None, Activation::None)
                        .unwrap(),
                    &y,
                );
                let dx = g.linear_input_grad(&w).unwrap();
                close(
                    &name,
                    &there(&g).linear_input_grad(&there(&w)).unwrap(),
                    &dx,
                );
                let dw = g.linear_weight_grad(&x).unwrap();
                close(
                    &name,
                    &there(&g).linear_weight_grad(&there(&x)).unwrap(),
                    &dw,
                );
            }
        }
    }
}

#[test]
fn views_multiply_as_copies_do() {
    let (device, _turn) = card!();
    let x = values(&[6, 10], DType::F32, 1);
    let w = values(&[10, 12], DType::F32, 2);
    let b = values(&[24], DType::F32, 3);
    let parts = |x: &Tensor, w: &Tensor, b: &Tensor| {
        let x = x.t().unwrap().narrow(0, 1, 7).unwrap();
        let w = w.t().unwrap().narrow(1, 2, 6).unwrap();
        let b = b.slice(0, 0..24, 2).unwrap();
        x.linear(&w, Some(&b), Activation::Relu).unwrap()
    };
    let there = |t: &Tensor| t.to_device(device).unwrap();
    close(
        "views",
        &parts(&there(&x), &there(&w), &there(&b)),
        &parts(&x, &w, &b),
    );
}

/// cuBLASLt adds a bias that lies at a multiple of 16 bytes, and a kernel adds any other.
#[test]
fn a_bias_may_begin_anywhere() {
    let (device, _turn) = card!();
    for dtype in FLOATS {
        let (x, w) = (values(&[5, 7], dtype, 1), values(&[9, 7], dtype, 2));
        let all = values(&[20], dtype, 3);
        let there = |t: &Tensor| t.to_device(device).unwrap();
        let (far_x, far_w, far) = (there(&x), there(&w), there(&all));
        for start in [0, 1, 2, 3, 4, 8] {
            let bias = |all: &Tensor| all.narrow(0, start, 9).unwrap();
            for activation in [Activation::None, Activation::Relu] {
                let y = x.linear(&w, Some(&bias(&all)), activation).unwrap();
                let got = far_x.linear(&far_w, Some(&bias(&far)), activation);
                close(&format!("{start} {activation:?}"), &got.unwrap(), &y);
            }
        }
    }
}

/// How far GELU may be from its formula where a library computes it: tanh with the error of a card's fast
/// instruction, and the sum's own error.
const ROUGH: f64 = 2.0 / 1024.0;

/// Calls `f` while the library's activations are allowed.
fn allowed<T>(device: Device, f: impl FnOnce() -> T) -> T {
    struct Forbid(Device);
    impl Drop for Forbid {
        fn drop(&mut self) {
            let _ = self.0.allow_library_activations(false);
        }
    }
    device.allow_library_activations(true).unwrap();
    let _forbid = Forbid(device); // also where `f` panics
    f()
}

/// The launches that a call makes, where they are counted.
fn launched<T>(f: impl FnOnce() -> T) -> (T, Option<u64>) {
    let before = Counts::now();
    let result = f();
    let made = before.map(|before| Counts::now().unwrap().since(before).launches);
    (result, made)
}

#[test]
fn the_librarys_activations_are_a_choice() {
    let (device, _turn) = card!();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let there = |t: Tensor| t.to_device(device).unwrap();
        let (x, w, b) = (
            there(values(&[5, 9], dtype, 1)),
            there(values(&[16, 9], dtype, 2)),
            there(values(&[16], dtype, 3)),
        );
        for bias in [Some(&b), None] {
            for activation in [Activation::Relu, Activation::Gelu(GeluKind::Tanh)] {
                let what = format!("{dtype} {activation:?} {}", bias.is_some());
                let linear = || x.linear(&w, bias, activation).unwrap();
                let both = || x.linear_with_sums(&w, bias, activation).unwrap();
                // What is loaded once, is.
                let _ = (
                    linear(),
                    both(),
                    allowed(device, linear),
                    allowed(device, both),
                );
                let (exact, passes) = launched(linear);
                let (fused, one) = allowed(device, || launched(linear));
                if let (Some(passes), Some(one)) = (passes, one) {
                    assert_eq!((passes, one), (2, 1), "{what}");
                }
                let close = |got: &Tensor| {
                    for (got, exact) in read(got).into_iter().zip(read(&exact)) {
                        let unit = if dtype == DType::F32 {
                            0.0
                        } else {
                            ulp(dtype, exact)
                        };
                        assert!(
                            (got - exact).abs() <= ROUGH + 2.0 * unit,
                            "{what}: {got} {exact}"
                        );
                    }
                };
                close(&fused);
                let sums = read(&x.linear(&w, bias, Activation::None).unwrap());
                let ((y, kept), passes) = launched(both);
                close(&y);
                assert_eq!(read(&kept), sums, "{what}");
                let ((y, kept), one) = allowed(device, || launched(both));
                close(&y);
                // A card's library may compute them otherwise.
                match one {
                    Some(_) => assert_eq!(read(&kept), sums, "{what}"),
                    None => assert!(distance(&read(&kept), &sums) <= tolerance(dtype), "{what}"),
                }
                // The derivative of ReLU follows from its result: nothing else is kept of it.
                let fused = if activation == Activation::Relu { 2 } else { 1 };
                if let (Some(passes), Some(one)) = (passes, one) {
                    assert_eq!((passes, one), (2, fused), "{what}");
                }
            }
        }
    }
}

#[test]
fn only_the_librarys_relu_may_drop_nan() {
    let (device, _turn) = card!();
    let nan = Tensor::full([8, 8], f64::NAN, DType::F32, device).unwrap();
    let relu = || read(&nan.linear(&nan, None, Activation::Relu).unwrap());
    assert!(relu().iter().all(|v| v.is_nan()));
    let dropped = allowed(device, relu);
    match Counts::now() {
        // The simulated library drops it, so that it is seen who computes.
        Some(_) => assert!(dropped.iter().all(|v| *v == 0.0)),
        None => assert!(dropped.iter().all(|v| v.is_nan() || *v == 0.0)),
    }
    assert!(relu().iter().all(|v| v.is_nan()));
    Device::cpu(0).allow_library_activations(true).unwrap();
}

/// Results that cuBLASLt cannot make in one product are those of the passes, bit for bit: GELU's arguments
/// in rows of another number of elements than a multiple of 8, a bias that begins elsewhere, `f64`, another
/// activation, and sums of nothing.
#[test]
fn what_the_library_has_no_product_for_is_made_in_passes() {
    let (device, _turn) = card!();
    let tanh = Activation::Gelu(GeluKind::Tanh);
    for (dtype, k, n, start, activation) in [
        (DType::F32, 9, 12, 0, tanh),
        (DType::BF16, 9, 16, 1, tanh),
        (DType::F64, 9, 16, 0, tanh),
        (DType::F32, 9, 16, 0, Activation::Gelu(GeluKind::Exact)),
        (DType::F32, 9, 16, 0, Activation::Silu),
        (DType::F16, 0, 16, 0, tanh),
    ] {
        let there = |t: Tensor| t.to_device(device).unwrap();
        let (x, w) = (
            there(values(&[5, k], dtype, 1)),
            there(values(&[n, k], dtype, 2)),
        );
        let b = there(values(&[n + start], dtype, 3));
        let b = b.narrow(0, start, n).unwrap();
        let both = || {
            let (y, sums) = x.linear_with_sums(&w, Some(&b), activation).unwrap();
            (read(&y), read(&sums))
        };
        let expected = both();
        assert_eq!(
            allowed(device, both),
            expected,
            "{dtype} {k} {n} {activation:?}"
        );
    }
}

#[test]
fn operands_of_two_devices_are_refused() {
    let (device, _turn) = card!();
    let x = values(&[2, 2], DType::F32, 1);
    let w = x.to_device(device).unwrap();
    let e = x.linear(&w, None, Activation::None).unwrap_err();
    assert_eq!(
        e.to_string(),
        "linear: operands are on cpu:0 and on cuda:0; move one with to_device"
    );
    let _ = Device::cpu(0);
}
