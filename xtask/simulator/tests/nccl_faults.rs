//! What programs do wrong with NCCL: each fault is reported, with every seed, and what is only late is not.

#![allow(clippy::macro_metavars_in_unsafe)] // `call!` takes plain arguments

mod driver;
mod ranks;

use std::sync::Barrier;

use driver::*;
use ranks::*;
use simulator::driver::context::*;
use simulator::driver::pointers::{Array, Out};
use simulator::driver::set::*;
use simulator::driver::stream::*;
use simulator::nccl::calls::*;
use simulator::nccl::life::*;

/// Two ranks make calls that hang; then both abort, and the outputs hold `0xff`.
fn hangs(calls: impl Fn(&Rank, u64) + Sync) {
    let both = Barrier::new(2);
    ranks(2, true, |rank| {
        let buffer = rank.buffer(&[1; 8]);
        calls(&rank, buffer);
        both.wait();
        assert_eq!(call!(cuStreamQuery(rank.stream)), NOT_READY);
        assert_eq!(state(rank.comm), 0);
        good!(ncclCommAbort(rank.comm));
        assert_eq!(rank.values::<i32>(buffer, 2), [-1; 2]);
        rank.free(&[buffer]);
        rank.end();
    });
}

fn counts() {
    hangs(|rank, buffer| assert_eq!(rank.sum(buffer, 2 + rank.rank), 0));
}

fn operations() {
    hangs(|rank, buffer| {
        let (comm, stream) = (rank.comm, rank.stream);
        match rank.rank {
            0 => good!(ncclAllReduce(buffer, buffer, 4, I32, SUM, comm, stream)),
            _ => good!(ncclBroadcast(buffer, buffer, 4, I32, 0, comm, stream)),
        }
    });
}

fn roots() {
    hangs(|rank, buffer| {
        let root = rank.rank as i32;
        good!(ncclBroadcast(
            buffer,
            buffer,
            4,
            I32,
            root,
            rank.comm,
            rank.stream
        ));
    });
}

fn reductions() {
    hangs(|rank, buffer| {
        let op = rank.rank as u32;
        good!(ncclAllReduce(
            buffer,
            buffer,
            4,
            I32,
            op,
            rank.comm,
            rank.stream
        ));
    });
}

/// A send of more than the receive takes.
fn transfers() {
    hangs(|rank, buffer| {
        let (comm, stream) = (rank.comm, rank.stream);
        match rank.rank {
            0 => {
                good!(ncclSend(buffer, 5, I32, 1, comm, stream));
                // It also takes part in something whose output can be looked at.
                good!(ncclAllReduce(buffer, buffer, 4, I32, SUM, comm, stream));
            }
            _ => {
                good!(ncclRecv(buffer, 4, F32, 0, comm, stream));
                good!(ncclAllReduce(buffer, buffer, 4, I32, SUM, comm, stream));
            }
        }
    });
}

/// Both send first, and in no group.
fn opposite_sends() {
    hangs(|rank, buffer| {
        let (comm, stream, peer) = (rank.comm, rank.stream, 1 - rank.rank as i32);
        good!(ncclSend(buffer + 16, 4, I32, peer, comm, stream));
        good!(ncclRecv(buffer, 4, I32, peer, comm, stream));
    });
}

/// Two communicators, which the ranks use in opposite orders on one stream.
fn two_communicators(same_stream: bool, wrong: bool) {
    let second = id();
    let both = Barrier::new(2);
    ranks(2, true, |rank| {
        let mut other = 0;
        let number = rank.rank as i32;
        good!(ncclCommInitRank(Out::to(&mut other), 2, second, number));
        let another = if same_stream { rank.stream } else { stream() };
        let (x, y) = (rank.buffer(&[1; 4]), rank.buffer(&[1; 4]));
        join(another, rank.stream);
        let calls = [(x, rank.comm, rank.stream), (y, other, another)];
        for at in [0, 1] {
            let at = if wrong && number == 1 { 1 - at } else { at };
            let (buffer, comm, stream) = calls[at];
            good!(ncclAllReduce(buffer, buffer, 4, I32, SUM, comm, stream));
        }
        both.wait();
        if wrong && same_stream {
            good!(ncclCommAbort(rank.comm));
            good!(ncclCommAbort(other));
            assert_eq!(call!(cuStreamSynchronize(rank.stream)), 0);
        } else {
            join(rank.stream, another);
            assert_eq!(rank.values::<i32>(y, 4), [2; 4]);
        }
        rank.free(&[x, y]);
        if !same_stream {
            good!(cuStreamSynchronize(another));
            good!(cuStreamDestroy_v2(another));
        }
        rank.end();
    });
}

/// Another stream fills the buffer of rank 0, and the collective does not wait for it.
fn missing_wait(waits: bool) {
    ranks(2, true, |rank| {
        let buffer = rank.buffer(&[1; 4]);
        let other = stream();
        join(other, rank.stream);
        if rank.rank == 0 {
            good!(cuMemsetD32Async(buffer, 7, 4, other));
            if waits {
                join(rank.stream, other);
            }
        }
        assert_eq!(rank.sum(buffer, 4), 0);
        if waits {
            assert_eq!(rank.values::<i32>(buffer, 4), [8; 4]);
            rank.free(&[buffer]);
        } else if rank.rank == 0 {
            assert_ne!(call!(cuCtxSynchronize()), 0);
        }
    });
}

/// Another stream reads the result of rank 0 without waiting for the collective.
fn missing_wait_after() {
    let both = Barrier::new(2);
    ranks(2, true, |rank| {
        let buffer = rank.buffer(&[1; 4]);
        let other = stream();
        join(other, rank.stream);
        assert_eq!(rank.sum(buffer, 4), 0);
        both.wait();
        if rank.rank == 0 {
            let _ = read(buffer, 4, other);
            assert_ne!(call!(cuCtxSynchronize()), 0);
        }
    });
}

fn unwritten() {
    ranks(2, true, |rank| {
        let buffer = match rank.rank {
            0 => rank.empty(16),
            _ => rank.buffer(&[1; 4]),
        };
        assert_eq!(rank.sum(buffer, 4), 0);
        if rank.rank == 0 {
            assert_eq!(call!(cuStreamSynchronize(rank.stream)), LAUNCH_FAILED);
        }
    });
}

/// The call reaches 4 bytes too far.
fn too_long() {
    ranks(2, true, |rank| {
        let buffer = rank.buffer(&[1; 4]);
        assert_eq!(rank.sum(buffer, 5), 0);
        assert_eq!(call!(cuStreamSynchronize(rank.stream)), ILLEGAL_ADDRESS);
    });
}

fn freed() {
    ranks(2, true, |rank| {
        let buffer = rank.buffer(&[1; 4]);
        rank.free(&[buffer]);
        assert_eq!(rank.sum(buffer, 4), 1);
    });
}

/// Rank 0 splits while an all-reduce is under way, to which rank 1 has not come.
fn busy_split() {
    let both = Barrier::new(2);
    ranks(2, true, |rank| {
        let buffer = rank.buffer(&[1; 4]);
        if rank.rank == 1 {
            both.wait();
        }
        assert_eq!(rank.sum(buffer, 4), 0);
        if rank.rank == 0 {
            let mut new = 0;
            let out = Out::to(&mut new);
            let code = call!(ncclCommSplit(rank.comm, 0, 0, out, Array::null()));
            assert_ne!(code, 0);
            both.wait();
        }
        assert_eq!(rank.values::<i32>(buffer, 4), [2; 4]);
        rank.free(&[buffer]);
        rank.end();
    });
}

/// Rank 1 does not come to a split: rank 0 waits until it aborts, and gets no communicator.
fn left_split() {
    let both = Barrier::new(2);
    ranks(2, false, |rank| {
        if rank.rank == 0 {
            let mut new = 77;
            let out = Out::to(&mut new);
            let code = call!(ncclCommSplit(rank.comm, 0, 0, out, Array::null()));
            assert_eq!(code, IN_PROGRESS);
            assert_eq!([state(rank.comm), state(rank.comm)], [IN_PROGRESS; 2]);
            good!(ncclCommAbort(rank.comm));
            assert_eq!(new, 77);
            both.wait();
        } else {
            both.wait();
            good!(ncclCommAbort(rank.comm));
        }
        rank.end();
    });
}

/// A call that must be refused.
fn refused(call: fn(&Rank, u64) -> u32) {
    ranks(2, true, |rank| {
        let buffer = rank.buffer(&[1; 8]);
        assert_ne!(call(&rank, buffer), 0);
        // SAFETY: the library's texts end with a zero, and stay.
        let last = unsafe { std::ffi::CStr::from_ptr(ncclGetLastError(rank.comm)) };
        assert!(
            last.to_string_lossy().contains("is called with"),
            "{last:?}"
        );
        assert_eq!(call!(cuStreamSynchronize(rank.stream)), 0);
        rank.free(&[buffer]);
        rank.end();
    });
}

const PROGRAMS: &[(&str, fn())] = &[
    ("counts", counts),
    ("operations", operations),
    ("roots", roots),
    ("reductions", reductions),
    ("transfers", transfers),
    ("opposite sends", opposite_sends),
    ("crossed", || two_communicators(true, true)),
    ("not crossed", || two_communicators(true, false)),
    ("two streams", || two_communicators(false, true)),
    ("missing wait", || missing_wait(false)),
    ("wait", || missing_wait(true)),
    ("missing wait after", missing_wait_after),
    ("unwritten", unwritten),
    ("too long", too_long),
    ("freed", freed),
    ("busy split", busy_split),
    ("left split", left_split),
    ("null", || refused(|rank, _| rank.sum(0, 4))),
    ("root", || {
        refused(|rank, x| call!(ncclBroadcast(x, x, 4, I32, 2, rank.comm, rank.stream)))
    }),
    ("type", || {
        refused(|rank, x| call!(ncclBroadcast(x, x, 4, 10, 0, rank.comm, rank.stream)))
    }),
    ("overlap", || {
        refused(|rank, x| call!(ncclAllReduce(x, x + 4, 4, I32, SUM, rank.comm, rank.stream)))
    }),
    ("foreign stream", || {
        refused(|rank, x| {
            let other = Gpu::new(1 - rank.gpu.device);
            let foreign = stream();
            rank.gpu.bind();
            let code = call!(ncclAllReduce(x, x, 4, I32, SUM, rank.comm, foreign));
            good!(cuStreamDestroy_v2(foreign));
            other.end();
            rank.gpu.bind();
            code
        })
    }),
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
fn calls_that_do_not_match_are_reported_and_hang() {
    finds(
        "counts",
        &["do not match", "ncclAllReduce of 2", "ncclAllReduce of 3"],
    );
    finds(
        "operations",
        &["do not match", "ncclAllReduce", "ncclBroadcast"],
    );
    finds("roots", &["do not match", "root 0", "root 1"]);
    finds("reductions", &["do not match", "ncclSum", "ncclProd"]);
    finds(
        "transfers",
        &["do not match", "ncclSend of 5", "ncclRecv of 4"],
    );
}

#[test]
fn calls_that_wait_for_each_other_are_reported() {
    finds(
        "opposite sends",
        &["Deadlock", "ncclSend", "ncclRecv", "ncclGroupStart"],
    );
    finds("crossed", &["Deadlock", "ncclAllReduce"]);
    for seed in ["0", "1", "2"] {
        let seed = [("PHALANX_SIMULATOR_SEED", seed)];
        outcome("not crossed", &seed).finds_nothing();
        outcome("two streams", &seed).finds_nothing();
    }
}

#[test]
fn a_split_beside_other_work_is_reported() {
    finds("busy split", &["ncclCommSplit splits", "is under way"]);
}

#[test]
fn a_split_that_a_rank_does_not_come_to_can_be_aborted() {
    for seed in ["0", "1", "2"] {
        outcome("left split", &[("PHALANX_SIMULATOR_SEED", seed)]).finds_nothing();
    }
}

#[test]
fn a_test_of_failures_can_ask_for_silence() {
    let hang = [("PHALANX_SIMULATOR_NCCL_MISMATCH", "hang")];
    for name in ["counts", "operations", "opposite sends", "crossed"] {
        outcome(name, &hang).finds_nothing();
    }
}

#[test]
fn the_memory_of_calls_is_checked() {
    finds(
        "missing wait",
        &["Unordered use", "ncclAllReduce of rank 0"],
    );
    finds(
        "missing wait after",
        &["Unordered use", "ncclAllReduce of rank 0"],
    );
    outcome("wait", &[]).finds_nothing();
    finds(
        "unwritten",
        &["ncclAllReduce of rank 0 reads 16 bytes that nothing has written"],
    );
    finds("too long", &["ncclAllReduce of rank", "behind the end"]);
    finds("freed", &["stale pointer", "ncclAllReduce"]);
}

#[test]
fn wrong_arguments_are_reported() {
    finds("null", &["a send buffer that is null"]);
    finds("root", &["ncclBroadcast", "rank 2"]);
    finds("type", &["type 10"]);
    finds("overlap", &["overlap"]);
    finds("foreign stream", &["on GPU", "is called with stream"]);
}
