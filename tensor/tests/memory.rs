//! What virtual CPU devices alone have of a memory limit: each has its own, it holds on several threads,
//! and the host's writes are refused or counted where they have to copy. What holds on any device is in `ops/limit.rs`.

mod level;

use phalanx_tensor::{DType, Device, Error, Tensor, cpu};
use std::sync::Barrier;

fn bytes(n: usize, device: Device) -> Result<Tensor, Error> {
    Tensor::zeros([n], DType::U8, device)
}

#[test]
fn the_hosts_write_is_refused_where_it_has_to_copy() {
    let device = Device::cpu(302);
    let mut x = Tensor::arange(100, DType::F32, device).unwrap();
    let shared = x.clone();
    device.set_memory_limit(Some(10)).unwrap();
    let e = x.make_mut::<f32>().unwrap_err();
    assert!(
        matches!(e, Error::OutOfMemory { op: "make_mut", .. }),
        "{e}"
    );
    assert_eq!(
        x.to_vec::<f32>().unwrap()[99],
        99.0,
        "whole after a refusal"
    );
    drop(shared);
    x.make_mut::<f32>().unwrap()[99] = 0.0;
}

#[test]
fn other_devices_are_not_limited() {
    let (a, b) = (Device::cpu(303), Device::cpu(304));
    a.set_memory_limit(Some(0)).unwrap();
    let t = bytes(8, b).unwrap();
    let e = t.to_device(a).unwrap_err();
    assert!(
        matches!(
            e,
            Error::OutOfMemory {
                op: "to_device",
                ..
            }
        ),
        "{e}"
    );
    let e = Device::cuda(63).set_memory_limit(None).unwrap_err();
    assert!(
        matches!(
            e,
            Error::DeviceUnavailable {
                op: "set_memory_limit",
                ..
            }
        ),
        "{e}"
    );
}

/// Threads that take and give at random, near the limit. What is live is never above it, a request
/// that fits is never refused, and the peak is what was had.
#[test]
fn the_limit_holds_on_several_threads() {
    const THREADS: usize = 4;
    const SMALL: usize = 100;
    let device = Device::cpu(305);
    // Room for one small buffer each, always; a large one fits at no time.
    let limit = THREADS * SMALL;
    device.set_memory_limit(Some(limit)).unwrap();
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                for round in 0..20_000 {
                    if (round + thread) % 2 == 0 {
                        let e = bytes(limit + 1, device).unwrap_err();
                        assert!(matches!(e, Error::OutOfMemory { live, .. } if live <= limit));
                    }
                    // Another thread's refused request does not take this one's room.
                    let small = bytes(SMALL, device).unwrap();
                    assert!(device.memory().unwrap().live <= limit);
                    drop(small);
                }
            });
        }
    });
    let end = device.memory().unwrap();
    assert_eq!(end.live, 0);
    assert!(end.peak >= SMALL && end.peak <= limit, "{}", end.peak);

    // All want half at once, and two can have it.
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                start.wait();
                (0..50_000).for_each(|_| drop(bytes(limit / 2, device)));
            });
        }
    });
    let end = device.memory().unwrap();
    assert_eq!((end.live, end.limit), (0, Some(limit)));
    assert!(end.peak <= limit, "{} of {limit}", end.peak);
}

#[test]
fn a_write_that_had_to_copy_is_counted() {
    let device = Device::cpu(306);
    cpu::with_threads(1, || {
        let copies = || device.memory().unwrap().copies;
        let mut a = Tensor::zeros([10], DType::F32, device).unwrap();
        a.make_mut::<f32>().unwrap()[0] = 1.0;
        let mut column = Tensor::zeros([4, 4], DType::F32, device)
            .unwrap()
            .select(1, 0)
            .unwrap();
        column.make_mut::<f32>().unwrap()[0] = 1.0;
        assert_eq!(copies(), 0, "a view with gaps that nobody shares");
        let b = a.clone();
        a.make_mut::<f32>().unwrap()[0] = 2.0;
        assert_eq!(copies(), 1);
        a.make_mut::<f32>().unwrap()[0] = 3.0;
        a.bytes_mut().unwrap()[0] = 0;
        assert_eq!(copies(), 1, "it is alone now");
        let c = a.clone();
        a.bytes_mut().unwrap()[0] = 1;
        assert_eq!(copies(), 2);
        drop((b, c));
    });
}
