//! No way of reading a tensor on a card gives out a number that is undefined.

#[path = "../host_reads/walk.rs"]
mod walk;

use crate::support::*;
use phalanx_tensor::collective::Collective;
use phalanx_tensor::{DType, Device, Error, Tensor, WriteFault};
use std::time::Duration;

#[test]
fn lost_writes_are_never_read() {
    let (device, _turn) = card!();
    // The door through which operations go is one, for the host's devices, too.
    for device in [device, Device::cpu(0)] {
        walk::lost_writes_are_never_read(device);
    }
}

/// Of a write whose issuer says in any case how it ended, nobody reads anything before: also where it is lost late.
#[test]
fn a_copy_to_the_host_waits_until_the_outcome_is_told() {
    let (card, _turn) = card!();
    for device in [card, Device::cpu(0)] {
        type Read = fn(&Tensor) -> Result<(), Error>;
        let reads: [Read; 4] = [
            |t| t.to_vec::<f32>().map(drop),
            |t| t.t()?.to_vec::<f32>().map(drop),
            |t| t.t()?.to_device(Device::cpu(1)).map(drop),
            |t| t.mul_scalar(2.0)?.to_vec::<f32>().map(drop),
        ];
        for (read, is_lost) in reads.into_iter().flat_map(|r| [(r, true), (r, false)]) {
            let t = values(&[3, 4], DType::F32, 1).to_device(device).unwrap();
            let write = WriteFault::told();
            t.set_last_write(&write);
            let told = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(30));
                match is_lost {
                    true => write.declare("it was lost late"),
                    false => write.settle(),
                }
            });
            let outcome = read(&t);
            assert_eq!(
                matches!(outcome, Err(Error::LostWrite { .. })),
                is_lost,
                "{device}: {outcome:?}"
            );
            told.join().unwrap();
        }
    }
}

/// An index out of range is seen by whatever is copied to the host next, and by everything after it,
/// until the error is cleared.
#[test]
fn an_index_out_of_range_is_seen_by_every_copy_to_the_host() {
    let (device, _turn) = card!();
    let table = values(&[4, 3], DType::F32, 1);
    let ids = Tensor::from_slice(&[1i64, 7, 9], [3], Device::cpu(0)).unwrap();
    let (there, ids) = (
        table.to_device(device).unwrap(),
        ids.to_device(device).unwrap(),
    );
    let unrelated = walk::matrix(device);
    let rows = there.index_select(0, &ids).unwrap();
    let late = |e: &Error| {
        let Error::IndexOutOfRange {
            op,
            index,
            extent,
            late,
        } = e
        else {
            return false;
        };
        (*op, *extent, *late) == ("index_select", 4, true) && (*index == 7 || *index == 9)
    };
    for read in walk::READS.iter().filter(|read| read.copies) {
        let e = (read.run)(&unrelated).expect_err(read.name);
        assert!(late(&e), "{}: {e}", read.name);
    }
    let e = rows.to_vec::<f32>().unwrap_err();
    assert!(late(&e), "{e}");
    assert!(
        e.to_string()
            .ends_with("computed on the device since is undefined)"),
        "{e}"
    );
    assert!(late(&device.synchronize().unwrap_err()));
    device.clear_index_error().unwrap();
    device.synchronize().unwrap();
    assert_eq!(
        unrelated.to_vec::<f32>().unwrap(),
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    );
    let ids = Tensor::from_slice(&[3i64, 0], [2], device).unwrap();
    let got = there
        .index_select(0, &ids)
        .unwrap()
        .to_vec::<f32>()
        .unwrap();
    let all = table.to_vec::<f32>().unwrap();
    assert_eq!(got, [&all[9..], &all[..3]].concat());
}

/// A collective whose operand turns out to be lost has made nothing that anybody may read.
#[test]
fn what_a_collective_makes_of_a_lost_write_is_lost() {
    let (device, _turn) = card!();
    let given = values(&[100], DType::F32, 1).to_device(device).unwrap();
    let made = Tensor::zeros([100], DType::F32, device).unwrap();
    let fault = WriteFault::new();
    given.set_last_write(&fault);
    let collective = Collective::begin("all_reduce", device, &[&given], &[&made]).unwrap();
    collective.end().unwrap();
    assert_eq!(made.to_vec::<f32>().unwrap(), [0.0; 100]);
    fault.declare("all_reduce number 7 was aborted");
    let error = made.to_vec::<f32>().unwrap_err();
    assert!(matches!(error, Error::LostWrite { .. }), "{error}");
}
