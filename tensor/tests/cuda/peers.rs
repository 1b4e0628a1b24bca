//! Copies between cards, with and without access to each other's memory: what arrives, who waits, and
//! what goes along with the elements.
#![allow(unsafe_code)] // functions of the driver are looked up by name

use crate::counts::{Count, counted, of_driver};
use crate::support::*;
use phalanx_tensor::{DType, Device, Error, Tensor, WriteFault};
use std::process::Command;

#[test]
fn what_goes_to_another_card_arrives() {
    let (device, _turn) = card!();
    let other = other!();
    for dtype in DType::ALL {
        for n in [0, 1, 3, 1000, 1 << 16] {
            let t = values(&[n], DType::F32, 7).cast(dtype).unwrap();
            let there = t.to_device(device).unwrap().to_device(other).unwrap();
            assert_eq!(there.device(), other);
            let back = there.to_device(device).unwrap();
            let back = back.to_device(Device::cpu(0)).unwrap();
            assert_eq!(
                back.as_bytes().unwrap(),
                t.as_bytes().unwrap(),
                "{dtype} {n}"
            );
        }
    }
    // A view, and a piece in place.
    let here = values(&[5, 7, 3], DType::F32, 3).to_device(device).unwrap();
    let view = here.permute(&[2, 0, 1]).unwrap().slice(2, 1..7, 2).unwrap();
    assert_eq!(read(&view.to_device(other).unwrap()), read(&view));
    let mut flat = values(&[100], DType::F32, 4).to_device(other).unwrap();
    let mut expected = read(&flat);
    flat.write_at(11, &view).unwrap();
    expected[11..][..view.numel()].copy_from_slice(&read(&view));
    assert_eq!(read(&flat), expected);
    flat.copy_from(&values(&[100], DType::F32, 5).to_device(device).unwrap())
        .unwrap();
    assert_eq!(read(&flat), read(&values(&[100], DType::F32, 5)));
}

/// Kernels on either card run before and after each copy, in that order, and the host waits for none.
#[test]
fn cards_wait_for_each_other_and_the_host_for_neither() {
    let (device, _turn) = card!();
    let other = other!();
    let start = values(&[2000], DType::F32, 1);
    let mut ball = start.to_device(device).unwrap();
    let mut kept = Tensor::zeros([2000], DType::F32, other).unwrap();
    let mut expected = start.clone();
    let mut sum = Tensor::zeros([2000], DType::F32, Device::cpu(0)).unwrap();
    let before = counted(Count::Waits);
    for round in 0..20 {
        let to = if round % 2 == 0 { other } else { device };
        ball = ball.mul_scalar(1.5).unwrap().to_device(to).unwrap();
        ball = ball.add_scalar(-0.5).unwrap();
        expected = expected.mul_scalar(1.5).unwrap().add_scalar(-0.5).unwrap();
        if to == device {
            // Over memory that the other card still reads.
            kept.copy_from(&ball).unwrap();
            kept = kept.mul_scalar(1.0).unwrap();
            sum = expected.clone();
        }
    }
    assert_eq!(counted(Count::Waits), before, "the host has waited");
    assert!(distance(&read(&ball), &read(&expected)) <= tolerance(DType::F32));
    assert!(distance(&read(&kept), &read(&sum)) <= tolerance(DType::F32));
}

/// Copies in both directions at once, from two threads: nobody waits for a lock that the other has.
#[test]
fn both_directions_at_once() {
    let (device, _turn) = card!();
    let other = other!();
    std::thread::scope(|scope| {
        for (from, to, seed) in [(device, other, 1), (other, device, 2), (device, other, 3)] {
            scope.spawn(move || {
                for round in 0..30 {
                    let t = values(&[500], DType::F32, seed + 10 * round);
                    let there = t.to_device(from).unwrap().to_device(to).unwrap();
                    assert_eq!(read(&there), read(&t));
                }
            });
        }
    });
}

/// An index out of range on one card is seen by whoever reads what was copied to another one, and the
/// copy itself does not wait to find out.
#[test]
fn an_index_out_of_range_goes_along() {
    let (device, _turn) = card!();
    let other = other!();
    let table = values(&[4, 3], DType::F32, 1).to_device(device).unwrap();
    let unrelated = values(&[3], DType::F32, 2).to_device(other).unwrap();
    read(&unrelated);
    let ids = Tensor::from_slice(&[1i64, 7], [2], device).unwrap();
    let rows = table.index_select(0, &ids).unwrap();
    let before = counted(Count::Waits);
    let there = rows.to_device(other).unwrap().mul_scalar(2.0).unwrap();
    assert_eq!(counted(Count::Waits), before, "the host has waited");
    let late = |e: Error| {
        let expected = Error::IndexOutOfRange {
            op: "index_select",
            index: 7,
            extent: 4,
            late: true,
        };
        assert_eq!(e, expected);
    };
    late(there.to_vec::<f32>().unwrap_err());
    late(unrelated.to_vec::<f32>().unwrap_err());
    // It goes on to the next card, also when the card of the index has been cleared.
    device.clear_index_error().unwrap();
    device.synchronize().unwrap();
    let back = there.to_device(device).unwrap();
    late(back.to_vec::<f32>().unwrap_err());
    late(device.synchronize().unwrap_err());
    for card in [device, other] {
        card.clear_index_error().unwrap();
        card.synchronize().unwrap();
    }
    // A kernel there with an index of its own, and clean data of the other card.
    let ids = Tensor::from_slice(&[3i64, 0], [2], other).unwrap();
    let table = table.to_device(other).unwrap();
    let rows = table.index_select(0, &ids).unwrap();
    let all = read(&table);
    assert_eq!(read(&rows), [&all[9..], &all[..3]].concat());
}

#[test]
fn a_lost_write_goes_along() {
    let (device, _turn) = card!();
    let other = other!();
    let received = values(&[3], DType::F32, 1).to_device(device).unwrap();
    let fault = WriteFault::new();
    received.set_last_write(&fault);
    let there = received.to_device(other).unwrap().neg().unwrap();
    let mut over = values(&[3], DType::F32, 2).to_device(other).unwrap();
    over.copy_from(&received).unwrap();
    fault.declare("all_reduce number 7 was aborted");
    for t in [&received, &there, &over] {
        let e = t.to_vec::<f32>().unwrap_err();
        assert!(matches!(&e, Error::LostWrite { .. }), "{e}");
    }
    let e = received.to_device(other).unwrap_err();
    assert!(matches!(&e, Error::LostWrite { .. }), "{e}");
    over.copy_from(&values(&[3], DType::F32, 3)).unwrap();
    assert_eq!(read(&over), read(&values(&[3], DType::F32, 3)));
    device.synchronize().unwrap();
    other.synchronize().unwrap();
}

/// Whether the memory of the pool of `cuda:of` may be accessed by `cuda:by`.
fn has_access(of: i32, by: i32) -> bool {
    type Pool = extern "C" fn(*mut usize, i32) -> u32;
    type Access = extern "C" fn(*mut i32, usize, *const [i32; 2]) -> u32;
    let find = of_driver(c"cuDeviceGetDefaultMemPool").unwrap();
    let get = of_driver(c"cuMemPoolGetAccess").unwrap();
    // SAFETY: the driver's functions have these types.
    let (find, get) = unsafe {
        (
            std::mem::transmute::<*mut libc::c_void, Pool>(find),
            std::mem::transmute::<*mut libc::c_void, Access>(get),
        )
    };
    let (mut pool, mut flags) = (0, -1);
    assert_eq!(find(&raw mut pool, of), 0);
    assert_eq!(get(&raw mut flags, pool, &[1, by]), 0);
    flags == 3
}

const STRANGERS: &str = "PHALANX_SIMULATOR_STRANGERS";

/// Access is enabled where it can be had. On the simulated device, the tests above run a second time
/// with cards of which none can access another one's memory.
#[test]
fn access_is_enabled_where_there_is_some() {
    let (device, turn) = card!();
    let other = other!();
    let t = values(&[3], DType::F32, 1).to_device(device).unwrap();
    read(&t.to_device(other).unwrap().to_device(device).unwrap());
    let strangers = std::env::var_os(STRANGERS).is_some();
    if counted(Count::Waits).is_some() {
        assert_eq!([has_access(0, 1), has_access(1, 0)], [!strangers; 2]);
    } else {
        eprintln!("SKIPPED: cards without access to each other are simulated only");
        return;
    }
    drop(turn);
    if !strangers {
        let mut again = Command::new(std::env::current_exe().unwrap());
        let output = again.arg("peers::").env(STRANGERS, "0-1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("test result: ok"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
