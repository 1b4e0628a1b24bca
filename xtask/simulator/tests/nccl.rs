//! The stand-in for NCCL between threads: collectives are right, and an abort ends what hangs.

#![allow(clippy::macro_metavars_in_unsafe)] // `call!` takes plain arguments

mod driver;
mod ranks;

use std::time::Duration;

use driver::*;
use ranks::*;
use simulator::driver::event::*;
use simulator::driver::stream::*;
use simulator::nccl::life::*;

const GPUS: &[(&str, &str)] = &[("PHALANX_SIMULATOR_GPUS", "4")];

/// Sums over 4 ranks, whose communicators block or not.
fn sums(blocking: bool) {
    ranks(4, blocking, |rank| {
        let own = rank.rank as i32;
        let buffer = rank.buffer(&[own, 10 * own, 1]);
        for _ in 0..3 {
            rank.done(rank.sum(buffer, 3));
        }
        assert_eq!(rank.values::<i32>(buffer, 3), [6 * 16, 60 * 16, 64]);
        rank.free(&[buffer]);
        if !blocking {
            assert_eq!(call!(ncclCommFinalize(rank.comm)), IN_PROGRESS);
            assert_eq!(settle(rank.comm), 0);
        }
        rank.destroy();
    });
}

/// Rank 0 waits for a rank that never calls, until another thread aborts.
fn abort(wait: fn(&Rank, u64)) {
    ranks(2, true, |rank| {
        if rank.rank == 1 {
            std::thread::sleep(Duration::from_millis(300));
            good!(ncclCommAbort(rank.comm));
            return rank.end();
        }
        let buffer = rank.buffer(&[1, 2, 3]);
        assert_eq!(rank.sum(buffer, 3), 0);
        let event = event();
        good!(cuEventRecord(event, rank.stream));
        let comm = rank.comm;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(200));
                assert_eq!(call!(cuEventQuery(event)), NOT_READY);
                good!(ncclCommAbort(comm));
            });
            wait(&rank, event);
        });
        good!(cuEventDestroy_v2(event));
        assert_eq!(rank.values::<i32>(buffer, 3), [-1; 3]);
        rank.free(&[buffer]);
        rank.end();
    });
}

/// What a call that is in progress was given has no place in the stream before it has succeeded.
fn put_off() {
    ranks(2, false, |rank| {
        let own = rank.rank as i32;
        let buffer = rank.buffer(&[own; 3]);
        let code = rank.sum(buffer, 3);
        if code == IN_PROGRESS {
            println!("put off");
            assert_eq!(rank.values::<i32>(buffer, 3), [own; 3]);
        }
        rank.done(code);
        assert_eq!(rank.values::<i32>(buffer, 3), [1; 3]);
        rank.free(&[buffer]);
        rank.destroy();
    });
}

const PROGRAMS: &[(&str, fn())] = &[
    ("sums", || sums(true)),
    ("sums without blocking", || sums(false)),
    ("put off", put_off),
    ("abort a stream", || {
        abort(|rank, _| good!(cuStreamSynchronize(rank.stream)))
    }),
    ("abort an event", || {
        abort(|_, event| good!(cuEventSynchronize(event)))
    }),
    ("abort while asking", || {
        abort(|_, event| while call!(cuEventQuery(event)) == NOT_READY {})
    }),
];

#[test]
fn program() {
    run_program(PROGRAMS);
}

#[test]
fn sums_are_right() {
    for seed in ["0", "1", "2"] {
        let variables = [GPUS[0], ("PHALANX_SIMULATOR_SEED", seed)];
        run("sums", &variables).finds_nothing();
        run("sums without blocking", &variables).finds_nothing();
    }
}

#[test]
fn calls_that_are_in_progress_are_put_off() {
    let outcomes: Vec<_> = (0..10)
        .map(|seed: u32| {
            let seed = seed.to_string();
            let outcome = run("put off", &[GPUS[0], ("PHALANX_SIMULATOR_SEED", &seed)]);
            outcome.finds_nothing();
            outcome
        })
        .collect();
    let mut outputs = outcomes.iter().map(|outcome| &outcome.output);
    assert!(outputs.any(|output| output.contains("put off")));
}

#[test]
fn an_abort_ends_what_hangs() {
    run("abort a stream", GPUS).finds_nothing();
    run("abort an event", GPUS).finds_nothing();
    run("abort while asking", GPUS).finds_nothing();
}
