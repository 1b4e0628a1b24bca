//! What the tests on cards share: whether there is one, and tensors of known values.
#![allow(
    dead_code,
    reason = "each test program that includes this file uses its part"
)]

use phalanx_tensor::{DType, Device, Error, Tensor};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Whether there are so many cards; a loud line says why not. `PHALANX_REQUIRE_CARDS` is how many there must be: a test
/// that wants no more fails where they are missing.
pub fn are_there(test: &str, wanted: usize) -> bool {
    let reason = match (0..wanted).find_map(|card| Device::cuda(card).memory().err()) {
        None => return true,
        Some(Error::DeviceUnavailable { reason, .. }) => reason,
        Some(e) => panic!("{test}: {e}"),
    };
    let required = std::env::var("PHALANX_REQUIRE_CARDS").map_or(0, |n| n.parse().unwrap());
    assert!(
        wanted > required,
        "{test} wants {wanted} cards, {required} are required: {reason}"
    );
    eprintln!("SKIPPED: {test}: it wants {wanted} cards: {reason}");
    false
}

/// The turn of a test that wants so many cards; or `None`, with a loud line. Tests take turns, so that the figures of a
/// card are one test's.
pub fn cards(test: &str, wanted: usize) -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    are_there(test, wanted).then_some(turn)
}

/// [`cards`] for a test that wants one.
pub fn card(test: &str) -> Option<(Device, MutexGuard<'static, ()>)> {
    Some((Device::cuda(0), cards(test, 1)?))
}

/// Leaves the test, with a loud line, where there is no card.
#[macro_export]
macro_rules! card {
    () => {
        match $crate::support::card(module_path!()) {
            Some((device, turn)) => {
                let _ = &turn;
                (device, turn)
            }
            None => return,
        }
    };
}

/// The second card, of a test that has its turn; leaves the test, with a loud line, where there is none.
#[macro_export]
macro_rules! other {
    () => {{
        if !$crate::support::are_there(module_path!(), 2) {
            return;
        }
        phalanx_tensor::Device::cuda(1)
    }};
}

/// Values between -2 and 2 that a seed decides, exact in every float type but for rounding once.
pub fn values(shape: &[usize], dtype: DType, seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let n: usize = shape.iter().product();
    let data: Vec<f64> = (0..n)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f64 / (1u64 << 24) as f64 - 0.5) * 4.0
        })
        .collect();
    let t = Tensor::from_vec(data, shape, Device::cpu(0)).unwrap();
    t.cast(dtype).unwrap()
}

/// All elements as `f64`, from any device.
pub fn read(t: &Tensor) -> Vec<f64> {
    let host = t.to_device(Device::cpu(0)).unwrap();
    host.cast(DType::F64).unwrap().to_vec::<f64>().unwrap()
}

/// The norm of the difference relative to the norm of what is expected.
pub fn distance(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let apart = norm(&mut got.iter().zip(expected).map(|(g, e)| g - e));
    let size = norm(&mut expected.iter().copied());
    if apart == 0.0 {
        0.0
    } else {
        apart / size.max(f64::MIN_POSITIVE)
    }
}

/// How far a card may be from the CPU, which computes in another order and with other functions.
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-12,
        DType::F32 => 1e-5,
        DType::BF16 => 2f64.powi(-7),
        DType::F16 => 2f64.powi(-10),
        _ => 0.0,
    }
}

pub const FLOATS: [DType; 4] = [DType::F32, DType::F64, DType::BF16, DType::F16];
pub const SEEDS: [u64; 3] = [1, 2, 3];

/// The unit in the last place of a number of a half type.
pub fn ulp(dtype: DType, v: f64) -> f64 {
    let (digits, least) = match dtype {
        DType::BF16 => (7, -126),
        DType::F16 => (10, -14),
        _ => panic!("{dtype} is no half type"),
    };
    // Of 0 the logarithm is infinite, and the least exponent serves.
    let exponent = (v.abs().log2().floor() as i32).max(least);
    2f64.powi(exponent - digits)
}

/// Asserts that a card's result is the CPU's: of its shape and type, NaN and infinite where that is, and
/// else within the tolerance of the type; of half types, which are rounded once from `f32`, each element
/// within two units in its last place, and `slack` for what the sums before have lost.
pub fn assert_near(name: &str, got: &Tensor, expected: &Tensor, slack: f64) {
    let dtype = expected.dtype();
    assert!(matches!(got.device(), Device::Cuda(_)), "{name}");
    assert_eq!(
        (got.dims(), got.dtype()),
        (expected.dims(), dtype),
        "{name}"
    );
    let (got, expected) = (read(got), read(expected));
    let (mut finite, mut wanted) = (Vec::new(), Vec::new());
    for (i, (&g, &e)) in got.iter().zip(&expected).enumerate() {
        if !e.is_finite() {
            assert!(
                g == e || (g.is_nan() && e.is_nan()),
                "{name} {i}: {g}, not {e}"
            );
            continue;
        }
        if matches!(dtype, DType::BF16 | DType::F16) {
            assert!(
                (g - e).abs() <= 2.0 * ulp(dtype, e) + slack,
                "{name} {i}: {g}, not {e}"
            );
        }
        finite.push(g);
        wanted.push(e);
    }
    let apart = distance(&finite, &wanted);
    assert!(apart <= tolerance(dtype), "{name}: {apart}");
}
