//! The affine layer and its gradients against the CPU's.

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
