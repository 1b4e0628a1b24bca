//! A process that was forked from one that uses a card is told that it cannot.
#![allow(unsafe_code)] // fork

use crate::support::*;
use phalanx_tensor::{DType, Device, Error, Tensor};

/// What the child does; `false` where something is not as it should be.
fn child(device: Device, tensor: Tensor) -> bool {
    let refused = |e: Error| matches!(&e, Error::DeviceUnavailable { reason, .. } if reason.contains("was forked from it"));
    let all = [
        Tensor::zeros([3], DType::F32, device).map(drop),
        tensor.neg().map(drop),
        tensor.to_vec::<f32>().map(drop),
        tensor.to_device(Device::cpu(0)).map(drop),
        device.synchronize(),
        device.load_kernels(),
        // A card that was not used before the fork.
        Tensor::zeros([3], DType::F32, Device::cuda(1)).map(drop),
    ];
    let all = all.into_iter().all(|done| done.is_err_and(refused));
    drop(tensor); // frees nothing, and does not hang
    // The CPU is there.
    all && values(&[3], DType::F32, 1).neg().is_ok()
}

#[test]
fn a_forked_process_is_told() {
    let (device, _turn) = card!();
    let tensor = values(&[3], DType::F32, 1).to_device(device).unwrap();
    // SAFETY: the child calls nothing that another thread of the parent could have left locked: it
    // allocates, which the C library prepares for a fork, and ends without the parent's handlers.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: a child that hangs is ended by the signal.
        unsafe { libc::alarm(60) };
        let right = std::panic::catch_unwind(|| child(device, tensor)).unwrap_or(false);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(!right)) };
    }
    assert!(pid > 0, "there is no second process");
    let mut status = -1;
    // SAFETY: the child exists, and the pointer is valid.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0, "the child ended otherwise");
    assert_eq!(read(&tensor), read(&values(&[3], DType::F32, 1)));
}
