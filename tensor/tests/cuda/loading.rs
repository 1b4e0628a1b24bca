//! When kernels are loaded: a launch that loads one may wait for the card, and so for a collective that
//! waits for this program.

use crate::counts::{Count, counted};
use crate::support::*;
use phalanx_tensor::{DType, Device, Tensor};

/// A step of work that uses kernels of several families and types.
fn work(device: Device) {
    let x = values(&[5, 7], DType::F32, 1).to_device(device).unwrap();
    let y = x.t().unwrap().contiguous().unwrap().exp().unwrap();
    let z = y.cast(DType::BF16).unwrap().add_scalar(1.0).unwrap();
    read(&z.sum(&[0], false).unwrap());
    let mut grads = [x, y];
    phalanx_tensor::ops::optim::scale(&mut grads, 0.5).unwrap();
}

#[test]
fn no_launch_loads_a_kernel() {
    let (device, _turn) = card!();
    let counts = || [Count::LazyLoads, Count::Loads, Count::Modules].map(counted);
    if counts().contains(&None) {
        eprintln!("SKIPPED: no_launch_loads_a_kernel: a real card counts no loads");
        return;
    }
    work(device);
    assert_eq!(
        counted(Count::LazyLoads),
        Some(0),
        "each is loaded before its launch"
    );
    device.load_kernels().unwrap();
    let before = counts();
    work(device);
    let t = Tensor::full([3], 2.0, DType::F16, device).unwrap();
    read(&t.sqrt().unwrap());
    assert_eq!(counts(), before, "all of them are loaded");
}
