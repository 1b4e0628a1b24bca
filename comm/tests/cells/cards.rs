//! What cells on cards need: so many cards, and what their processes find in the environment.

use crate::table::{Cell, Fault, RANKS};
use phalanx_comm::{DType, Device, Result, Tensor};
use std::time::{Duration, Instant};

/// Where rank 0's results live: on a CPU, or where `PHALANX_TEST_DEVICE` says.
pub fn first_device() -> Device {
    let named = std::env::var("PHALANX_TEST_DEVICE");
    named.map_or(Device::cpu(0), |name| {
        name.parse().expect("PHALANX_TEST_DEVICE names a device")
    })
}

fn devices() -> impl Iterator<Item = Device> {
    (0..RANKS).map(|rank| match first_device() {
        Device::Cuda(first) => Device::cuda(first + rank),
        _ => Device::cpu(rank),
    })
}

/// Why there are not so many cards as ranks, if that is so.
///
/// # Panics
/// Where there must be so many.
pub fn missing() -> Option<String> {
    let why = devices().find_map(|device| device.memory().err())?;
    let required = std::env::var("PHALANX_REQUIRE_CARDS");
    let required: usize = required.map_or(0, |n| n.parse().expect("a number of cards"));
    assert!(
        RANKS > required,
        "the cells want {RANKS} cards, {required} are required: {why}"
    );
    Some(format!("they want {RANKS} cards: {why}"))
}

/// What the process of a cell finds in its environment.
pub fn environment(cell: Cell) -> Option<(&'static str, &'static str)> {
    match (cell.fault, cell.compares) {
        (Fault::Differs, true) => Some(("PHALANX_COMM_DEBUG", "1")),
        // On a card calls that differ hang, or end with any numbers. A simulated card would report them.
        (Fault::Differs, false) => Some(("PHALANX_SIMULATOR_NCCL_MISMATCH", "hang")),
        _ => None,
    }
}

/// Makes the kernels that the ranks will need: else a rank could be late for that.
pub fn warm_up() -> Result<()> {
    for device in devices() {
        let ones = Tensor::ones([4], DType::F32, device)?;
        ones.cast(DType::F64)?.to_vec::<f64>()?;
        ones.sum_all()?.item::<f32>()?;
        ones.narrow(0, 0, 1)?.neg()?.item::<f32>()?;
        ones.narrow(0, 0, 1)?.contiguous()?.item::<f32>()?;
    }
    Ok(())
}

/// How many bytes are left on the ranks' devices when all that was issued there is done, after a moment for threads that
/// are about to end.
///
/// # Errors
/// A device that no longer works.
pub fn left() -> Result<usize> {
    devices().try_for_each(Device::synchronize)?;
    let start = Instant::now();
    loop {
        let live = |device: Device| device.memory().map_or(0, |memory| memory.live);
        let left = devices().map(live).sum();
        if left == 0 || start.elapsed() > Duration::from_secs(5) {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
