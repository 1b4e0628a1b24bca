//! What has to come before what on a card: nothing waits for the host here, so that a wait which is missing is a race,
//! and the simulated device reports it.

use crate::counts::{Count, counted, pool_use};
use crate::support::*;
use phalanx_tensor::ops::optim::{AdamConfig, AdamState, adam_step, scale};
use phalanx_tensor::{DType, Device, Error, Tensor};
use std::process::Command;

/// What only the simulated device counts, or leaves the test with a loud line.
macro_rules! count {
    ($what:ident) => {
        match counted(Count::$what) {
            Some(count) => count,
            None => {
                eprintln!("SKIPPED: {}: a real card does not count", module_path!());
                return;
            }
        }
    };
}

/// Notes an index out of range on a card, by an operation that is only issued.
fn wrong_index(device: Device, ids: &Tensor) -> Tensor {
    let table = Tensor::zeros([4, 3], DType::F32, device).unwrap();
    table.index_select(0, ids).unwrap()
}

/// Whether a wait for everything on the card gives the error of the wrong index.
fn is_flagged(device: Device) -> bool {
    match device.synchronize() {
        Ok(()) => false,
        Err(Error::IndexOutOfRange { index: 7, .. }) => true,
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn a_card_that_is_not_there_is_named() {
    let (_device, _turn) = card!();
    let missing = (0..)
        .map(Device::cuda)
        .find_map(|device| device.memory().err());
    let Some(Error::DeviceUnavailable { reason, .. }) = missing else {
        panic!("{missing:?}");
    };
    assert!(reason.starts_with("there "), "{reason}");
}

/// Operands that are written in place were read by another lane before.
#[test]
fn what_a_transfer_reads_is_written_behind_it() {
    let (device, _turn) = card!();
    let other = other!();
    for (here, there) in [(device, other), (other, device)] {
        let start = values(&[3000], DType::F32, 1);
        let mut x = start.to_device(here).unwrap();
        let doubled = start.mul_scalar(2.0).unwrap();
        // By a kernel.
        let copy = x.to_device(there).unwrap();
        scale([&mut x], 2.0).unwrap();
        let again = x.to_device(there).unwrap();
        // By a copy within the card, and by an upload, which a kernel reads before.
        x.copy_from(&Tensor::zeros([3000], DType::F32, here).unwrap())
            .unwrap();
        let sum = x.add_scalar(1.0).unwrap();
        x.write_at(0, &start).unwrap();
        // Over what a kernel reads on the other card.
        let mut over = again.neg().unwrap();
        let same = over.mul_scalar(1.0).unwrap();
        over.copy_from(&x).unwrap();
        assert_eq!(read(&copy), read(&start));
        assert_eq!(read(&again), read(&doubled));
        assert_eq!(read(&sum), vec![1.0; 3000]);
        assert_eq!(read(&x), read(&start));
        assert_eq!(read(&same), read(&doubled.neg().unwrap()));
        assert_eq!(read(&over), read(&start));
    }
}

/// Memory that two lanes have used, of which neither has waited for the other one, while another card's context is
/// the thread's.
#[test]
fn memory_is_freed_behind_all_that_use_it() {
    let (device, _turn) = card!();
    let other = other!();
    for (here, there) in [(device, other), (other, device)] {
        let start = values(&[2000], DType::F32, 3);
        for _ in 0..3 {
            let x = start.to_device(here).unwrap();
            let y = x.neg().unwrap();
            let z = x.to_device(there).unwrap();
            drop(x);
            // Written by one lane and read by another one alone.
            let w = y.add_scalar(0.0).unwrap();
            let v = w.to_device(there).unwrap();
            drop(w);
            let u = start.to_device(here).unwrap();
            let t = u.to_device(there).unwrap().add(&v).unwrap();
            drop((u, v));
            // Nobody has a context in a new thread.
            std::thread::spawn(move || drop(y)).join().unwrap();
            assert_eq!(read(&z), read(&start));
            assert_eq!(read(&t), vec![0.0; 2000]);
        }
    }
}

/// Kernels set the flag, transfers read it, and it is cleared: each in the order in which they were asked for.
#[test]
fn the_index_flag_is_used_in_order() {
    let (device, _turn) = card!();
    let other = other!();
    let ids = Tensor::from_slice(&[1i64, 7], [2], device).unwrap();
    let fresh = || values(&[500], DType::F32, 2).to_device(device).unwrap();
    // The flag is there.
    drop(wrong_index(device, &ids));
    assert!(is_flagged(device));
    device.clear_index_error().unwrap();
    // Set at once after it was cleared.
    drop(wrong_index(device, &ids));
    assert!(is_flagged(device));
    // Cleared at once after it was set.
    drop(wrong_index(device, &ids));
    device.clear_index_error().unwrap();
    assert!(!is_flagged(device));
    // Read by a download that has nothing else to do with what sets it.
    let unrelated = fresh();
    drop(wrong_index(device, &ids));
    assert!(unrelated.to_vec::<f32>().is_err());
    // A copy over a tensor of the host breaks off, and what is there then nobody reads.
    let mut here = Tensor::zeros([500], DType::F32, Device::cpu(0)).unwrap();
    assert!(here.copy_from(&unrelated).is_err());
    let e = here.to_vec::<f32>().unwrap_err();
    assert!(matches!(&e, Error::LostWrite { .. }), "{e}");
    device.clear_index_error().unwrap();
    // It leaves for another card before it is set again, and after.
    for is_set in [false, true] {
        let moved = fresh();
        if is_set {
            drop(wrong_index(device, &ids));
        }
        let there = moved.to_device(other).unwrap();
        drop(wrong_index(device, &ids));
        assert_eq!(there.to_vec::<f32>().is_err(), is_set);
        assert!(is_flagged(device));
        device.clear_index_error().unwrap();
        other.clear_index_error().unwrap();
        assert!(!is_flagged(device) && !is_flagged(other));
    }
    // It is cleared while a copy of it leaves.
    drop(wrong_index(device, &ids));
    let there = fresh().to_device(other).unwrap();
    device.clear_index_error().unwrap();
    assert!(!is_flagged(device));
    assert!(there.to_vec::<f32>().is_err());
    // What has arrived is cleared while a next one arrives, which is clean.
    other.clear_index_error().unwrap();
    let there = fresh().to_device(other).unwrap();
    assert_eq!(read(&there), read(&fresh()));
}

/// Pinned buffers are not freed while a transfer uses them, and are made anew afterwards.
#[test]
fn the_cache_is_emptied_behind_transfers() {
    let (device, _turn) = card!();
    let mut params = [values(&[40], DType::F32, 1).to_device(device).unwrap()];
    let mut held = Vec::new();
    for round in 0..3 {
        held.push(
            values(&[3000], DType::F32, round)
                .to_device(device)
                .unwrap(),
        );
        // Its table is new, and so goes to the card.
        let mut fresh = params[0].add_scalar(0.0).unwrap();
        scale([&mut fresh], 0.5).unwrap();
        params = [fresh];
        let (made, freed) = (count!(Pinned), count!(Unpinned));
        let trims = count!(Trims);
        device.empty_cache().unwrap();
        assert!(
            count!(Unpinned) - freed >= 2,
            "transfers and tables have buffers of their own"
        );
        assert_eq!(count!(Pinned), made);
        assert!(count!(Trims) > trims);
    }
    for (round, t) in held.iter().enumerate() {
        assert_eq!(read(t), read(&values(&[3000], DType::F32, round as u64)));
    }
}

/// A host that runs ahead has some buffers in flight, and no more; it then waits for the transfer that is the oldest.
#[test]
fn transfers_in_flight_are_bounded() {
    let (device, _turn) = card!();
    let other = values(&[8], DType::F32, 9).to_device(device).unwrap();
    let mut x = values(&[8], DType::F32, 1).to_device(device).unwrap();
    let mut tensors: Vec<Tensor> = (0..40)
        .map(|seed| values(&[3], DType::F32, seed).to_device(device).unwrap())
        .collect();
    device.synchronize().unwrap();
    device.empty_cache().unwrap();
    // Each question whether a transfer is done lets the simulated device do something: it has enough to do.
    let busy = |x: &mut Tensor| (0..900).for_each(|_| x.copy_from(&other).unwrap());
    let made = count!(Pinned);
    let waits = count!(Waits);
    busy(&mut x);
    for seed in 0..40 {
        x.write_at(0, &values(&[1 + seed % 8], DType::F32, 50))
            .unwrap();
    }
    assert_eq!(count!(Pinned) - made, 32);
    assert!(count!(Waits) > waits, "the host does not wait");
    assert!(count!(Waits) <= waits + 8);
    // Tables have buffers of their own.
    let (made, waits) = (count!(Pinned), count!(Waits));
    busy(&mut x);
    for t in &mut tensors {
        scale([t], 2.0).unwrap();
    }
    assert_eq!(count!(Pinned) - made, 32);
    assert!(count!(Waits) > waits, "the host does not wait");
    assert!(count!(Waits) <= waits + 8);
    device.synchronize().unwrap();
    // An upload does not wait for the tables' kernels.
    busy(&mut x);
    tensors
        .iter_mut()
        .take(32)
        .for_each(|t| scale([t], 2.0).unwrap());
    let (made, waits) = (count!(Pinned), count!(Waits));
    let up = values(&[8], DType::F32, 5).to_device(device).unwrap();
    assert_eq!((count!(Pinned), count!(Waits)), (made, waits));
    assert_eq!(read(&up), read(&values(&[8], DType::F32, 5)));
    for (seed, t) in tensors.iter().enumerate() {
        let factor = if seed < 32 { 4.0 } else { 2.0 };
        let expected = values(&[3], DType::F32, seed as u64)
            .mul_scalar(factor)
            .unwrap();
        assert_eq!(read(t), read(&expected));
    }
    // Reading takes the same buffer each time.
    device.empty_cache().unwrap();
    read(&x);
    let made = count!(Pinned);
    for _ in 0..5 {
        read(&x);
        device.synchronize().unwrap();
    }
    assert_eq!(count!(Pinned), made);
}

/// A transfer that is done gives its buffer back, though one that came later waits for kernels.
#[test]
fn a_transfer_is_done_before_the_next_one() {
    let (device, _turn) = card!();
    let elsewhere = other!();
    let on = |device, seed| values(&[8], DType::F32, seed).to_device(device).unwrap();
    let (y, mut x) = (on(device, 9), on(device, 1));
    let (from, mut to) = (on(elsewhere, 2), on(elsewhere, 3));
    device.synchronize().unwrap();
    device.empty_cache().unwrap();
    let first = on(device, 4);
    // Only the other card is waited for. Meanwhile this one does what it can.
    (0..500).for_each(|_| to.copy_from(&from).unwrap());
    read(&to);
    (0..900).for_each(|_| x.copy_from(&y).unwrap());
    let made = count!(Pinned);
    x.write_at(0, &values(&[8], DType::F32, 5)).unwrap();
    assert_eq!(count!(Pinned), made, "the first buffer is free");
    let third = on(device, 6);
    assert_eq!(count!(Pinned), made + 1, "that of the second upload is not");
    // The first transfer is known to be done whatever came after it.
    device.synchronize().unwrap();
    for (t, seed) in [(&first, 4), (&x, 5), (&third, 6)] {
        assert_eq!(read(t), read(&values(&[8], DType::F32, seed)));
    }
}

/// What an operation borrows it gives back when it has been issued, and a table that is there is not sent again.
#[test]
fn an_operation_leaves_nothing_behind() {
    let (device, _turn) = card!();
    let Device::Cuda(ordinal) = device else {
        unreachable!("{device} is no card");
    };
    count!(Waits);
    let x = values(&[20, 30], DType::F32, 1).to_device(device).unwrap();
    let mut t = values(&[30, 4], DType::F32, 2).to_device(device).unwrap();
    let rows = x.slice(0, 0..20, 2).unwrap().slice(1, 0..30, 2).unwrap();
    let column = t.narrow(0, 0, 15).unwrap();
    let used = || {
        let live = device.memory().unwrap().live;
        (pool_use(ordinal as i32), live)
    };
    let before = used();
    let product = rows.matmul(&column).unwrap();
    let rounded = pool_use(ordinal as i32).map(|bytes| bytes - 512);
    assert_eq!(rounded, before.0, "scratch memory is still there");
    drop(product);
    assert_eq!(used(), before);
    drop((rows, column));
    scale([&mut t], 2.0).unwrap();
    let (copies, before) = (count!(Copies), used());
    scale([&mut t], 0.5).unwrap();
    assert_eq!(count!(Copies), copies, "the table was there");
    assert_eq!(used(), before);
    assert_eq!(read(&t), read(&values(&[30, 4], DType::F32, 2)));
    // Memory that no kernel has written before the host does.
    let mut fresh = Tensor::empty([600], DType::F32, device).unwrap();
    fresh.write_at(0, &x).unwrap();
    assert_eq!(read(&fresh), read(&x));
}

/// One operation may need more tables than there are buffers in flight: of its own buffers none gets free.
#[test]
fn an_operation_may_have_many_tables() {
    let (device, _turn) = card!();
    let n = 16 * 33;
    let on = |device: Device| {
        let t = |seed| values(&[2], DType::F32, seed).to_device(device).unwrap();
        let mut params: Vec<Tensor> = (0..n).map(t).collect();
        let grads: Vec<Tensor> = (0..n).map(|i| t(i + 7)).collect();
        // Each has a number of steps of its own, and a launch takes sixteen different ones.
        let state = |i: u64| AdamState {
            exp_avg: t(i + 3),
            exp_avg_sq: t(i).mul(&t(i)).unwrap(),
            step: i,
        };
        let mut states: Vec<_> = (0..n).map(|i| Some(state(i))).collect();
        adam_step(&mut params, &grads, &mut states, &AdamConfig::adam()).unwrap();
        params
    };
    for (got, expected) in on(device).iter().zip(on(Device::cpu(0))) {
        assert_near("adam", got, &expected, 0.0);
    }
}

const SMALL: &str = "PHALANX_SIMULATOR_MEMORY";

/// Before memory is refused, all that still uses some is waited for, and what the pool keeps is given back.
#[test]
fn memory_is_refused_when_nothing_can_be_waited_for() {
    let (device, turn) = card!();
    count!(Waits);
    if std::env::var_os(SMALL).is_none() {
        drop(turn);
        let mut again = Command::new(std::env::current_exe().unwrap());
        let name = "order::memory_is_refused_when_nothing_can_be_waited_for";
        let output = again.arg(name).env(SMALL, "16777216").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("test result: ok. 1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let refused = |what: &str, run: &dyn Fn() -> phalanx_tensor::Result<Tensor>| {
        let (waits, trims) = (count!(Waits), count!(Trims));
        let e = run().unwrap_err();
        assert!(matches!(e, Error::OutOfMemory { .. }), "{what}: {e}");
        assert!(count!(Waits) > waits, "{what}: nothing is waited for");
        assert!(
            count!(Trims) > trims,
            "{what}: the pool keeps what nobody uses"
        );
    };
    let x = Tensor::zeros([512, 1024], DType::F32, device).unwrap();
    let rows = x.slice(0, 0..512, 2).unwrap().slice(1, 0..1024, 2).unwrap();
    let column = Tensor::zeros([512, 1], DType::F32, device).unwrap();
    // The product copies a view that is not dense to scratch memory.
    read(&rows.matmul(&column).unwrap());
    let free = |bytes: usize| Tensor::empty([bytes], DType::U8, device);
    let mut all = Vec::new();
    for bytes in [4 << 20, 1 << 20, 256 << 10, 64 << 10] {
        while let Ok(some) = free(bytes) {
            all.push(some);
        }
    }
    refused("a tensor", &|| free(1 << 20));
    refused("scratch memory", &|| rows.matmul(&column));
    drop(all);
    read(&rows.matmul(&column).unwrap());
}
