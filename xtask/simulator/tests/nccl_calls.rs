//! Each call of the stand-in for NCCL between threads: what every rank gets, of which types, in place, in groups, after a
//! split.

#![allow(clippy::macro_metavars_in_unsafe)] // `call!` takes plain arguments

mod driver;
mod ranks;

use driver::*;
use half::{bf16, f16};
use ranks::*;
use simulator::driver::context::*;
use simulator::driver::copy::*;
use simulator::driver::pointers::{Array, Out};
use simulator::driver::stream::*;
use simulator::nccl::calls::*;
use simulator::nccl::life::*;

/// What rank `rank` has at `at`.
fn own(rank: usize, at: usize) -> i32 {
    (100 * rank + at) as i32
}

/// Each collective with a send buffer and a receive buffer of its own.
fn collectives(count: usize, in_place: bool) {
    const N: usize = 100;
    ranks(count, true, |rank| {
        let (comm, stream, me) = (rank.comm, rank.stream, rank.rank);
        let of = |rank: usize, len: usize| (0..len).map(move |at| own(rank, at));
        let all = || 0..count;
        let total = |at: usize| all().map(|rank| own(rank, at)).sum::<i32>();
        let (root, mine) = (count - 1, 4 * N * me);
        let made = std::cell::RefCell::new(Vec::new());
        let keep = |buffer| {
            made.borrow_mut().push(buffer);
            buffer
        };
        let fresh = || keep(rank.buffer(&of(me, count * N).collect::<Vec<_>>()));
        let out = |send| match in_place {
            true => send,
            false => keep(rank.empty(4 * count * N)),
        };

        let send = fresh();
        let receive = out(send);
        good!(ncclAllReduce(send, receive, N, I32, SUM, comm, stream));
        let sums: Vec<i32> = (0..N).map(total).collect();
        assert_eq!(rank.values::<i32>(receive, N), sums);

        let send = fresh();
        let receive = out(send);
        good!(ncclReduce(
            send,
            receive,
            N,
            I32,
            SUM,
            root as i32,
            comm,
            stream
        ));
        if me == root {
            assert_eq!(rank.values::<i32>(receive, N), sums);
        } else if in_place {
            assert_eq!(
                rank.values::<i32>(receive, N),
                of(me, N).collect::<Vec<_>>()
            );
        }

        let send = fresh();
        let receive = out(send);
        good!(ncclBroadcast(
            send,
            receive,
            N,
            I32,
            root as i32,
            comm,
            stream
        ));
        assert_eq!(
            rank.values::<i32>(receive, N),
            of(root, N).collect::<Vec<_>>()
        );

        let send = fresh();
        let (send, receive) = match in_place {
            true => (send + mine as u64, send),
            false => (send, out(send)),
        };
        good!(ncclAllGather(send, receive, N, I32, comm, stream));
        let start = if in_place { N } else { 0 };
        let gathered = all().flat_map(|rank| (0..N).map(move |at| own(rank, rank * start + at)));
        assert_eq!(
            rank.values::<i32>(receive, count * N),
            gathered.collect::<Vec<_>>()
        );

        let send = fresh();
        let receive = match in_place {
            true => send + mine as u64,
            false => out(send),
        };
        good!(ncclReduceScatter(send, receive, N, I32, SUM, comm, stream));
        let part: Vec<i32> = (0..N).map(|at| total(me * N + at)).collect();
        assert_eq!(rank.values::<i32>(receive, N), part);

        if !in_place {
            let (long, receive) = (fresh(), out(0));
            good!(ncclAlltoAll(long, receive, N, I32, comm, stream));
            let parts = all().flat_map(|rank| (0..N).map(move |at| own(rank, me * N + at)));
            assert_eq!(
                rank.values::<i32>(receive, count * N),
                parts.collect::<Vec<_>>()
            );

            let receive = out(0);
            good!(ncclGather(long, receive, N, I32, 0, comm, stream));
            if me == 0 {
                let parts = all().flat_map(|rank| of(rank, N));
                assert_eq!(
                    rank.values::<i32>(receive, count * N),
                    parts.collect::<Vec<_>>()
                );
            }

            let receive = out(0);
            good!(ncclScatter(long, receive, N, I32, 0, comm, stream));
            let part = (0..N).map(|at| own(0, me * N + at));
            assert_eq!(rank.values::<i32>(receive, N), part.collect::<Vec<_>>());
        }
        rank.free(&made.borrow());
        rank.destroy();
    });
}

/// Reductions of one type over two ranks that hold 6 and 3.
fn reductions<T>(data: u32, of: impl Fn(f32) -> T + Sync)
where
    T: Copy + Default + PartialEq + std::fmt::Debug + Send + Sync,
{
    ranks(2, true, |rank| {
        let send = rank.buffer(&[of([6.0, 3.0][rank.rank])]);
        let receive = rank.empty(size_of::<T>());
        for (op, expected) in [9.0, 18.0, 6.0, 3.0, 4.5].into_iter().enumerate() {
            let (comm, stream) = (rank.comm, rank.stream);
            good!(ncclAllReduce(
                send, receive, 1, data, op as u32, comm, stream
            ));
            assert_eq!(rank.values::<T>(receive, 1), [of(expected)], "{data} {op}");
        }
        rank.free(&[send, receive]);
        rank.destroy();
    });
}

fn types() {
    reductions(0, |v| v as i8);
    reductions(1, |v| v as u8);
    reductions(2, |v| v as i32);
    reductions(3, |v| v as u32);
    reductions(4, |v| v as i64);
    reductions(5, |v| v as u64);
    reductions(6, f16::from_f32);
    reductions(7, |v| v);
    reductions(8, f64::from);
    reductions(9, bf16::from_f32);
}

/// Floating sums of 4 ranks: the same bits on all of them, printed for the test.
fn bits() {
    let all = std::sync::Mutex::new(Vec::new());
    ranks(4, true, |rank| {
        let values = [[1e8_f32], [1.0], [-1e8], [3.0]];
        let buffer = rank.buffer(&values[rank.rank].repeat(200));
        good!(ncclAllReduce(
            buffer,
            buffer,
            200,
            F32,
            SUM,
            rank.comm,
            rank.stream
        ));
        let sums = rank.values::<u32>(buffer, 200);
        all.lock().unwrap().push(sums);
        rank.free(&[buffer]);
        rank.destroy();
    });
    let all = all.into_inner().unwrap();
    assert!(all.iter().all(|bits| *bits == all[0]));
    println!("bits {:x?}", all[0]);
}

/// Each rank sends to the next one and receives from the one before, in a group.
fn ring() {
    ranks(4, true, |rank| {
        let (next, before) = ((rank.rank + 1) % 4, (rank.rank + 3) % 4);
        let (comm, stream) = (rank.comm, rank.stream);
        let send = rank.buffer(&[rank.rank as i32; 10]);
        let receive = rank.empty(40);
        for _ in 0..3 {
            good!(ncclGroupStart());
            good!(ncclSend(send, 10, I32, next as i32, comm, stream));
            good!(ncclRecv(receive, 10, I32, before as i32, comm, stream));
            good!(ncclGroupEnd());
        }
        assert_eq!(rank.values::<i32>(receive, 10), [before as i32; 10]);
        // And a rank to itself.
        good!(ncclGroupStart());
        good!(ncclSend(send, 10, I32, rank.rank as i32, comm, stream));
        good!(ncclRecv(receive, 10, I32, rank.rank as i32, comm, stream));
        good!(ncclGroupEnd());
        assert_eq!(rank.values::<i32>(receive, 10), [rank.rank as i32; 10]);
        rank.free(&[send, receive]);
        rank.destroy();
    });
}

/// A pipeline without groups, and with a group around the groups: its order fits.
fn pipeline() {
    ranks(2, true, |rank| {
        let (comm, stream, peer) = (rank.comm, rank.stream, 1 - rank.rank as i32);
        let buffer = rank.buffer(&[rank.rank as i32]);
        if rank.rank == 0 {
            good!(ncclSend(buffer, 1, I32, peer, comm, stream));
            good!(ncclRecv(buffer, 1, I32, peer, comm, stream));
        } else {
            good!(ncclGroupStart());
            good!(ncclGroupStart());
            good!(ncclRecv(buffer, 1, I32, peer, comm, stream));
            good!(ncclGroupEnd());
            good!(ncclGroupEnd());
            assert_eq!(rank.values::<i32>(buffer, 1), [0]);
            good!(ncclSend(buffer, 1, I32, peer, comm, stream));
        }
        assert_eq!(rank.values::<i32>(buffer, 1), [0]);
        rank.free(&[buffer]);
        rank.destroy();
    });
}

/// One thread for all GPUs.
fn one_thread() {
    let gpus: Vec<Gpu> = (0..4).map(Gpu::new).collect();
    let mut comms = [0; 4];
    let out = Out::to(&mut comms[0]);
    good!(ncclCommInitAll(out, 4, Array::null()));
    let mut made = Vec::new();
    for (gpu, comm) in gpus.iter().zip(comms) {
        gpu.bind();
        let stream = stream();
        let buffer = ints(stream, 1);
        write(buffer, &[gpu.device], stream);
        made.push((comm, stream, buffer));
    }
    good!(ncclGroupStart());
    for (comm, stream, buffer) in &made {
        good!(ncclAllReduce(*buffer, *buffer, 1, I32, SUM, *comm, *stream));
    }
    good!(ncclGroupEnd());
    for (gpu, (comm, stream, buffer)) in gpus.into_iter().zip(made) {
        gpu.bind();
        let (mut device, mut rank, mut count) = (9, 9, 9);
        good!(ncclCommCuDevice(comm, Out::to(&mut device)));
        good!(ncclCommUserRank(comm, Out::to(&mut rank)));
        good!(ncclCommCount(comm, Out::to(&mut count)));
        assert_eq!([device, rank, count], [gpu.device, gpu.device, 4]);
        assert_eq!(read(buffer, 1, stream), (0, vec![6]));
        free(buffer, stream);
        good!(ncclCommDestroy(comm));
        good!(cuStreamSynchronize(stream));
        good!(cuStreamDestroy_v2(stream));
        gpu.end();
    }
}

/// Ranks 0, 1 and 3 go to two communicators, in another order; rank 2 to none.
fn split(blocking: bool) {
    let others = std::sync::Barrier::new(4);
    ranks(4, blocking, |rank| {
        let (color, key) = [(0, 5), (7, 0), (-1, 0), (0, 1)][rank.rank];
        let mut new = 77;
        let out = Out::to(&mut new);
        if !blocking && rank.rank == 3 {
            others.wait();
        }
        let code = call!(ncclCommSplit(rank.comm, color, key, out, Array::null()));
        if !blocking && rank.rank != 3 {
            // The old communicator is in progress, and there is no new one, until all have come.
            assert_eq!([state(rank.comm), state(rank.comm)], [IN_PROGRESS; 2]);
            // SAFETY: it points to `new`, which nobody writes to at this moment.
            assert_eq!(unsafe { std::ptr::read_volatile(&raw const new) }, 77);
            others.wait();
        }
        let expected = if blocking { 0 } else { IN_PROGRESS };
        assert_eq!((code, settle(rank.comm)), (expected, 0));
        if rank.rank == 2 {
            assert_eq!(new, 0);
            return rank.destroy();
        }
        assert_eq!(settle(new), 0);
        let (mut number, mut count) = (9, 9);
        good!(ncclCommUserRank(new, Out::to(&mut number)));
        good!(ncclCommCount(new, Out::to(&mut count)));
        assert_eq!((number, count), [(1, 2), (0, 1), (9, 9), (0, 2)][rank.rank]);
        let buffer = rank.buffer(&[rank.rank as i32 + 1]);
        let code = call!(ncclAllReduce(buffer, buffer, 1, I32, SUM, new, rank.stream));
        assert!(code == 0 || !blocking && code == IN_PROGRESS);
        assert_eq!(settle(new), 0);
        assert_eq!(
            rank.values::<i32>(buffer, 1),
            [[5], [2], [9], [5]][rank.rank]
        );
        rank.free(&[buffer]);
        good!(ncclCommDestroy(new));
        rank.destroy();
    });
}

/// A collective orders the streams of its ranks: rank 1 reads memory of rank 0 after it.
fn orders() {
    let place = std::sync::Mutex::new(0);
    let called = std::sync::Barrier::new(2);
    ranks(2, true, |rank| {
        let flag = rank.buffer(&[1]);
        let mut data = 0;
        if rank.rank == 0 {
            data = rank.buffer(&[5]);
            assert_eq!(rank.gpu.increment(rank.stream, data, 1), 0);
            *place.lock().unwrap() = data;
            assert_eq!(rank.sum(flag, 1), 0);
            called.wait();
        } else {
            // In one of two runs rank 1 calls first.
            assert_eq!(rank.sum(flag, 1), 0);
            called.wait();
            let copy = rank.empty(4);
            let from = *place.lock().unwrap();
            good!(cuMemcpyDtoDAsync_v2(copy, from, 4, rank.stream));
            assert_eq!(rank.values::<i32>(copy, 1), [6]);
            rank.free(&[copy]);
        }
        good!(cuCtxSynchronize());
        called.wait();
        if data != 0 {
            rank.free(&[data]);
        }
        rank.free(&[flag]);
        rank.destroy();
    });
}

const PROGRAMS: &[(&str, fn())] = &[
    ("collectives of 2", || collectives(2, false)),
    ("collectives of 4", || collectives(4, false)),
    ("in place", || collectives(4, true)),
    ("types", types),
    ("bits", bits),
    ("ring", ring),
    ("pipeline", pipeline),
    ("one thread", one_thread),
    ("split", || split(true)),
    ("split without blocking", || split(false)),
    ("orders", orders),
];

#[test]
fn program() {
    run_program(PROGRAMS);
}

fn fine(name: &str, seed: &str) -> Outcome {
    let seed = ("PHALANX_SIMULATOR_SEED", seed);
    let outcome = run(name, &[("PHALANX_SIMULATOR_GPUS", "4"), seed]);
    outcome.finds_nothing();
    outcome
}

#[test]
fn each_rank_gets_what_it_should() {
    for (name, _) in PROGRAMS.iter().filter(|(name, _)| *name != "bits") {
        for seed in ["0", "1"] {
            fine(name, seed);
        }
    }
}

#[test]
fn the_seed_turns_the_order_of_sums_and_all_ranks_have_the_same_bits() {
    let bits = |seed: u32| {
        let output = fine("bits", &seed.to_string()).output;
        let line = output.lines().find(|line| line.contains("bits ["));
        line.expect("the program prints them").to_owned()
    };
    let first = bits(0);
    assert!((1..9).any(|seed| bits(seed) != first));
}
