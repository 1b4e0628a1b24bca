//! The lanes of a card: which of them waits for which, counted on the simulated device, whose own
//! checks say whether a wait is missing.
#![allow(unsafe_code)] // functions of the driver are looked up by name

use crate::counts::{Count, counted, of_driver};
use crate::support::*;
use phalanx_tensor::ops::optim::scale;
use phalanx_tensor::{DType, Device, Error, Queue, Tensor};

/// The number of waits of a lane for another one while `work` runs; `None` on a real card.
fn waits<T>(work: impl FnOnce() -> T) -> Option<(u64, T)> {
    let before = counted(Count::StreamWaits)?;
    let made = work();
    Some((counted(Count::StreamWaits)? - before, made))
}

#[test]
fn moments_are_in_the_order_of_their_lane() {
    let (device, _turn) = card!();
    let moment = || device.moment(Queue::Compute).unwrap();
    let x = values(&[1 << 16], DType::F32, 1).to_device(device).unwrap();
    let start = moment();
    let y = x.exp().unwrap();
    let middle = moment();
    let z = y.exp().unwrap();
    let end = moment();
    let (first, whole) = (
        middle.seconds_since(&start).unwrap(),
        end.seconds_since(&start).unwrap(),
    );
    assert!(0.0 < first && first < whole, "{first} {whole}");
    assert_eq!(start.seconds_since(&end).unwrap(), -whole);
    // On a lane on which nothing ever was, too.
    let other = device.moment(Queue::Collectives).unwrap();
    assert!(other.seconds_since(&start).unwrap().is_finite());
    let host = Device::cpu(0).moment(Queue::Compute).unwrap();
    let error = host.seconds_since(&start).unwrap_err();
    assert!(matches!(error, Error::DeviceMismatch { .. }), "{error}");
    drop(z);
}

#[test]
fn an_upload_waits_for_no_kernel() {
    let (device, _turn) = card!();
    let host = values(&[1000], DType::F32, 1);
    let busy = host.to_device(device).unwrap().exp().unwrap();
    let Some((before, batch)) = waits(|| host.to_device(device).unwrap()) else {
        eprintln!("SKIPPED: an_upload_waits_for_no_kernel: a real card counts no waits");
        return;
    };
    assert_eq!(before, 0, "the copy lane waits for kernels");
    // The kernel waits for the upload, and nobody waits for the end of either.
    let (reading, y) = waits(|| batch.add(&busy).unwrap()).unwrap();
    assert_eq!(reading, 1);
    let (freeing, ()) = waits(|| drop(batch)).unwrap();
    assert_eq!(freeing, 0, "memory is freed where all its uses are known");
    let (again, _) = waits(|| Tensor::from_slice(&[1.0f32; 9], [9], device).unwrap()).unwrap();
    assert_eq!(again, 0);
    read(&y);
    let (freeing, ()) = waits(|| drop((y, busy))).unwrap();
    assert_eq!(
        freeing, 0,
        "the copy lane has waited for what it has copied"
    );
}

/// Where a lane has to wait so that memory can be freed, it is not the one of the kernels.
#[test]
fn kernels_do_not_wait_for_the_end_of_memory() {
    let (device, _turn) = card!();
    let other = other!();
    let host = values(&[50], DType::F32, 1);
    let (mut w, x) = (
        host.to_device(device).unwrap(),
        host.to_device(device).unwrap(),
    );
    let sum = w.add(&x).unwrap();
    scale([&mut w], 1.0).unwrap(); // its table is there
    let Some((_, there)) = waits(|| [&w, &x].map(|t| t.to_device(other).unwrap())) else {
        eprintln!(
            "SKIPPED: kernels_do_not_wait_for_the_end_of_memory: a real card counts no waits"
        );
        return;
    };
    let y = x.neg().unwrap();
    let (freeing, ()) = waits(|| drop(x)).unwrap();
    assert_eq!(freeing, 1, "one lane waits for the other");
    let (writing, ()) = waits(|| scale([&mut w], 2.0).unwrap()).unwrap();
    assert_eq!(
        writing, 1,
        "the kernels have waited for what the transfers read"
    );
    // One lane alone has used it.
    let alone = host.to_device(device).unwrap();
    assert_eq!(waits(|| drop(alone)).unwrap().0, 0);
    for (t, factor) in [
        (&w, 2.0),
        (&y, -1.0),
        (&sum, 2.0),
        (&there[0], 1.0),
        (&there[1], 1.0),
    ] {
        assert_eq!(read(t), read(&host.mul_scalar(factor).unwrap()));
    }
}

#[test]
fn memory_goes_from_lane_to_lane_in_order() {
    let (device, _turn) = card!();
    let mut sum = Tensor::zeros([300], DType::F32, device).unwrap();
    let mut expected = vec![0.0f64; 300];
    for round in 0..40 {
        let batch = values(&[300], DType::F32, round);
        expected
            .iter_mut()
            .zip(read(&batch))
            .for_each(|(e, v)| *e += v);
        let there = batch.to_device(device).unwrap();
        let doubled = there.add(&there).unwrap();
        if round % 7 == 0 {
            // Read by both lanes before it dies.
            read(&there);
        }
        drop(there);
        let half = doubled.mul_scalar(0.5).unwrap();
        if round % 5 == 0 {
            read(&doubled);
        }
        drop(doubled);
        sum = sum.add(&half).unwrap();
    }
    assert!(distance(&read(&sum), &expected) <= tolerance(DType::F32));
}

/// The pool lets no lane wait behind the library's back.
#[test]
fn the_pool_adds_no_waits() {
    type Find = extern "C" fn(*mut usize, i32) -> u32;
    type Get = extern "C" fn(usize, u32, *mut i32) -> u32;
    let (device, _turn) = card!();
    let Device::Cuda(ordinal) = device else {
        unreachable!("{device} is no card");
    };
    let (mut pool, mut value) = (0, -1);
    let find = of_driver(c"cuDeviceGetDefaultMemPool").unwrap();
    let get = of_driver(c"cuMemPoolGetAttribute").unwrap();
    // SAFETY: the driver's functions have these types.
    let (find, get) = unsafe {
        (
            std::mem::transmute::<*mut libc::c_void, Find>(find),
            std::mem::transmute::<*mut libc::c_void, Get>(get),
        )
    };
    assert_eq!(find(&raw mut pool, ordinal as i32), 0);
    const INTERNAL_DEPENDENCIES: u32 = 3;
    assert_eq!(get(pool, INTERNAL_DEPENDENCIES, &raw mut value), 0);
    assert_eq!(value, 0);
}
