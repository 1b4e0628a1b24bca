//! The life of communicators of NCCL: what a program does wrong with it is reported, an abort ends what hangs, and what is
//! only late is no finding.

#![allow(clippy::macro_metavars_in_unsafe)] // `call!` takes plain arguments

mod driver;
mod ranks;

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use driver::*;
use ranks::*;
use simulator::driver::event::*;
use simulator::driver::init::*;
use simulator::driver::pointers::{Array, Out};
use simulator::driver::stream::*;
use simulator::nccl::life::*;

fn use_after(end: fn(u64) -> u32) {
    ranks(2, true, |rank| {
        let buffer = rank.buffer(&[1; 4]);
        assert_eq!(end(rank.comm), 0);
        assert_eq!(rank.sum(buffer, 4), INVALID_ARGUMENT);
        rank.free(&[buffer]);
        rank.end();
    });
}

/// A thread waits in `ncclCommDestroy` for a collective that hangs, while another one calls.
fn two_threads() {
    ranks(2, true, |rank| {
        let buffer = rank.buffer(&[1; 4]);
        if rank.rank == 0 {
            assert_eq!(rank.sum(buffer, 4), 0);
            std::thread::scope(|scope| {
                scope.spawn(|| call!(ncclCommDestroy(rank.comm)));
                std::thread::sleep(Duration::from_millis(200));
                assert_eq!(rank.sum(buffer, 4), INVALID_USAGE);
                good!(ncclCommAbort(rank.comm));
            });
        }
        rank.free(&[buffer]);
        rank.end();
    });
}

/// Rank 1 never joins; an abort ends the wait of rank 0, or its being in progress.
fn abort_of_a_start(blocking: bool) {
    let _gpu = Gpu::new(0);
    let comm = AtomicU64::new(0);
    let configs = [config(blocking.into())];
    let id = id();
    std::thread::scope(|scope| {
        let joining = scope.spawn(|| {
            let _gpu = Gpu::new(0);
            // SAFETY: the place outlives the scope, and is read long after the library has written to it.
            let out = Out::to(unsafe { &mut *comm.as_ptr() });
            call!(ncclCommInitRankConfig(out, 2, id, 0, Array::of(&configs)))
        });
        std::thread::sleep(Duration::from_millis(300));
        let comm = comm.load(Ordering::SeqCst); // the library has written it by now
        assert_eq!(state(comm), IN_PROGRESS);
        good!(ncclCommAbort(comm));
        let code = joining.join().unwrap();
        assert_eq!(code, if blocking { INVALID_USAGE } else { IN_PROGRESS });
    });
}

/// Both ranks abort as soon as they have joined: one of them may have left before the other one comes.
fn aborts_of_a_start() {
    good!(cuInit(0));
    let both = Barrier::new(2);
    let ids: Vec<_> = (0..1000).map(|_| id()).collect();
    std::thread::scope(|scope| {
        for number in 0..2 {
            let (both, ids) = (&both, &ids);
            scope.spawn(move || {
                let gpu = Gpu::new(number);
                for (round, id) in ids.iter().enumerate() {
                    let mut comm = 0;
                    let configs = [config(0)];
                    let out = Out::to(&mut comm);
                    both.wait();
                    let late = Duration::from_micros(round as u64 % 100 * number as u64);
                    let start = Instant::now();
                    while start.elapsed() < late {}
                    // The other rank waits for this one in any case: what goes wrong is a finding.
                    let _ = call!(ncclCommInitRankConfig(
                        out,
                        2,
                        *id,
                        number,
                        Array::of(&configs)
                    ));
                    good!(ncclCommAbort(comm));
                }
                gpu.end();
            });
        }
    });
}

/// Both ranks join on GPU 0.
fn one_gpu() {
    good!(cuInit(0));
    let id = id();
    std::thread::scope(|scope| {
        for number in 0..2 {
            scope.spawn(move || {
                let _gpu = Gpu::new(0);
                let mut comm = 0;
                let configs = [config(0)];
                let out = Out::to(&mut comm);
                let code = call!(ncclCommInitRankConfig(
                    out,
                    2,
                    id,
                    number,
                    Array::of(&configs)
                ));
                assert!(code == INVALID_USAGE || code == IN_PROGRESS);
            });
        }
    });
}

/// A launch while the first one is in progress.
fn hasty() {
    ranks(2, false, |rank| {
        let buffer = rank.buffer(&[1; 8]);
        let codes: Vec<u32> = (0..20).map(|_| rank.sum(buffer, 4)).collect();
        assert!(codes.contains(&INVALID_ARGUMENT));
    });
}

/// Rank 1 is late, by more than the patience.
fn late() {
    ranks(2, true, |rank| {
        let buffer = rank.buffer(&[1; 4]);
        if rank.rank == 1 {
            std::thread::sleep(Duration::from_millis(2500));
        }
        assert_eq!(rank.sum(buffer, 4), 0);
        assert_eq!(rank.values::<i32>(buffer, 4), [2; 4]);
        rank.free(&[buffer]);
        rank.destroy();
    });
}

/// Rank 1 never comes, and nobody aborts.
fn never() {
    ranks(2, true, |rank| {
        let buffer = rank.buffer(&[1; 4]);
        if rank.rank == 0 {
            assert_eq!(rank.sum(buffer, 4), 0);
            assert_eq!(call!(cuStreamSynchronize(rank.stream)), LAUNCH_TIMEOUT);
        }
    });
}

/// An abort of one rank: the other one still hangs, until it aborts itself.
fn one_aborts() {
    let both = Barrier::new(2);
    ranks(2, true, |rank| {
        let buffer = rank.buffer(&[1; 4]);
        if rank.rank == 0 {
            assert_eq!(rank.sum(buffer, 4), 0);
            good!(ncclCommAbort(rank.comm));
            both.wait();
        } else {
            both.wait();
            assert_eq!(rank.sum(buffer, 4), 0);
            let event = event();
            good!(cuEventRecord(event, rank.stream));
            for _ in 0..100 {
                assert_eq!(call!(cuEventQuery(event)), NOT_READY);
            }
            good!(ncclCommAbort(rank.comm));
            good!(cuEventSynchronize(event));
            good!(cuEventDestroy_v2(event));
        }
        assert_eq!(rank.values::<i32>(buffer, 4), [-1; 4]);
        rank.free(&[buffer]);
        rank.end();
    });
}

const PROGRAMS: &[(&str, fn())] = &[
    ("after abort", || {
        use_after(|comm| call!(ncclCommAbort(comm)))
    }),
    ("after destroy", || {
        use_after(|comm| call!(ncclCommDestroy(comm)))
    }),
    ("two threads", two_threads),
    ("abort of a start", || abort_of_a_start(true)),
    ("abort of a start without blocking", || {
        abort_of_a_start(false)
    }),
    ("aborts of a start", aborts_of_a_start),
    ("one gpu", one_gpu),
    ("hasty", hasty),
    ("late", late),
    ("never", never),
    ("one aborts", one_aborts),
];

#[test]
fn program() {
    run_program(PROGRAMS);
}

fn outcome(name: &str, more: &[(&str, &str)]) -> Outcome {
    let mut variables = vec![("PHALANX_SIMULATOR_GPUS", "2")];
    variables.extend(more);
    run(name, &variables)
}

fn finds(name: &str, words: &[&str]) {
    for seed in ["0", "1", "2"] {
        outcome(name, &[("PHALANX_SIMULATOR_SEED", seed)]).finds(words);
    }
}

#[test]
fn a_communicator_that_is_gone_is_reported() {
    finds("two threads", &["ncclAllReduce uses", "another thread"]);
    outcome("abort of a start", &[]).finds_nothing();
    outcome("abort of a start without blocking", &[]).finds_nothing();
    outcome("aborts of a start", &[]).finds_nothing();
    finds("after abort", &["ncclAllReduce uses", "which was aborted"]);
    finds(
        "after destroy",
        &["ncclAllReduce uses", "which was destroyed"],
    );
}

#[test]
fn a_wrong_start_is_reported() {
    finds("one gpu", &["both use GPU 0"]);
    finds("hasty", &["while an earlier call is in progress"]);
}

#[test]
fn a_late_rank_is_no_finding_and_a_missing_one_is_a_deadlock() {
    let patience = [("PHALANX_SIMULATOR_PATIENCE", "1")];
    outcome("late", &patience).finds_nothing();
    outcome("never", &patience).finds(&["Deadlock", "ncclAllReduce of rank 0", "waits for rank 1"]);
    for seed in ["0", "1", "2"] {
        outcome("one aborts", &[("PHALANX_SIMULATOR_SEED", seed)]).finds_nothing();
    }
}
