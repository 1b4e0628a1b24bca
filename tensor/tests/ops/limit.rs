//! A device's memory limit is exact to the byte, and a call that it refuses works once there is room:
//! on any device.

use crate::util::*;
use phalanx_tensor::{DType, Device, Error, Result, Tensor};

fn bytes(n: usize, device: Device) -> Result<Tensor> {
    Tensor::zeros([n], DType::U8, device)
}

#[test]
fn the_limit_is_exact_to_the_byte() {
    let device = alone(301);
    let start = device.memory().unwrap();
    assert_eq!(start.limit, None);
    let most = start.live + 1000;
    device.set_memory_limit(Some(most)).unwrap();
    let a = bytes(999, device).unwrap();
    let b = bytes(1, device).unwrap();
    let full = device.memory().unwrap();
    assert_eq!((full.live, full.limit), (most, Some(most)));
    let e = bytes(1, device).unwrap_err();
    assert_eq!(
        e.to_string(),
        format!(
            "zeros: out of memory on {device}: 1 bytes asked for, {most} live; \
             the limit set for this device is {most} bytes"
        )
    );
    let Error::OutOfMemory {
        op: "zeros",
        bytes: 1,
        live,
        limit,
        ..
    } = e
    else {
        panic!("{e}");
    };
    assert_eq!((live, limit), (most, Some(most)));
    assert_eq!(device.memory().unwrap(), full, "nothing was allocated");
    bytes(0, device).unwrap(); // asks for nothing
    drop(b);
    bytes(1, device).unwrap();
    drop(a);
    device.set_memory_limit(None).unwrap();
    assert_eq!(device.memory().unwrap().live, start.live);
    device.synchronize().unwrap();
}

#[test]
fn a_refused_call_works_once_there_is_room() {
    let device = alone(302);
    let start = device.memory().unwrap().live;
    let limit = |bytes: usize| device.set_memory_limit(Some(start + bytes)).unwrap();
    let mut x = Tensor::arange(100, DType::F32, device).unwrap();
    let shared = x.clone();
    let call = |x: &Tensor| x.add_scalar(1.0)?.mul(x);
    let want = values(&call(&x).unwrap());
    device.reset_peak().unwrap();
    // The second result does not fit, and the first is gone with the call that failed.
    limit(1199);
    let e = call(&x).unwrap_err();
    assert!(matches!(e, Error::OutOfMemory { op: "mul", .. }), "{e}");
    let after = device.memory().unwrap();
    assert_eq!(
        (after.live - start, after.peak - start),
        (400, 800),
        "what was refused was never live"
    );
    limit(1200);
    assert_eq!(values(&call(&x).unwrap()), want);
    assert_eq!(device.memory().unwrap().peak - start, 1200);

    // A limit below what is live frees nothing; a write in place needs nothing, a copy does.
    limit(10);
    let one = Tensor::from_slice(&[-1.0f32], [1], Device::cpu(303)).unwrap();
    let e = x.write_at(99, &one).unwrap_err();
    assert!(
        matches!(e, Error::OutOfMemory { op: "write_at", .. }),
        "{e}"
    );
    assert_eq!(values(&x)[99], 99.0, "whole after a refusal");
    drop(shared);
    x.write_at(99, &one).unwrap();
    assert_eq!(values(&x)[98..], [98.0, -1.0]);
    device.set_memory_limit(None).unwrap();
    bytes(1 << 20, device).unwrap();
    device.synchronize().unwrap();
}
