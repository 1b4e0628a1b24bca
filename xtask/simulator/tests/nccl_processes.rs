//! The stand-in for NCCL between processes: the same calls, and what is left in shared memory.

#![allow(clippy::macro_metavars_in_unsafe)] // `call!` takes plain arguments

mod driver;
mod ranks;

use std::path::PathBuf;
use std::time::Duration;

use driver::*;
use ranks::*;
use simulator::driver::counts::*;
use simulator::driver::init::*;
use simulator::driver::pointers::{Array, Out};
use simulator::driver::stream::*;
use simulator::nccl::calls::*;
use simulator::nccl::life::*;

const ID: &str = "NCCL_TEST_ID";
const RANK: &str = "NCCL_TEST_RANK";
const RANKS: &str = "NCCL_TEST_RANKS";

fn number(name: &str) -> usize {
    std::env::var(name).unwrap().parse().unwrap()
}

/// The id that all processes of a test have.
fn common() -> UniqueId {
    let text = std::env::var(ID).unwrap();
    let mut bytes = [0; 128];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    // SAFETY: an id is so many bytes.
    unsafe { std::mem::transmute::<[u8; 128], UniqueId>(bytes) }
}

/// The rank that this process is.
fn this(blocking: bool) -> Rank {
    Rank::join(common(), number(RANK), number(RANKS), blocking)
}

/// Each process has two ranks.
fn mixed() {
    good!(cuInit(0));
    std::thread::scope(|scope| {
        for thread in 0..2 {
            scope.spawn(move || {
                let number_of = 2 * number(RANK) + thread;
                let rank = Rank::join(common(), number_of, 4, true);
                let x = rank.buffer(&[rank.rank as i32; 4]);
                for _ in 0..10 {
                    assert_eq!(rank.sum(x, 4), 0);
                    let peer = [2, 3, 0, 1][rank.rank];
                    good!(ncclGroupStart());
                    good!(ncclSend(x, 2, I32, peer, rank.comm, rank.stream));
                    good!(ncclRecv(x + 8, 2, I32, peer, rank.comm, rank.stream));
                    good!(ncclGroupEnd());
                }
                assert_eq!(rank.values::<i32>(x, 4), [6 * 4_i32.pow(9); 4]);
                rank.free(&[x]);
                rank.destroy();
            });
        }
    });
}

/// All kinds of calls, often.
fn calls(blocking: bool) {
    let rank = this(blocking);
    let (me, count) = (rank.rank, rank.ranks);
    let (comm, stream) = (rank.comm, rank.stream);
    const N: usize = 1000;
    let sum = (count * (count + 1) / 2) as i32;
    let x = rank.buffer(&[me as i32 + 1; N]);
    let all = rank.empty(4 * N * count);
    for round in 0..20 {
        rank.done(call!(ncclAllGather(x, all, N, I32, comm, stream)));
        let gathered = rank.values::<i32>(all, N * count);
        let expected = (0..N * count).map(|at| (at / N) as i32 + 1);
        assert_eq!(gathered, expected.collect::<Vec<_>>(), "{round}");
        let mine = all + (4 * N * me) as u64;
        rank.done(call!(ncclReduceScatter(
            all, mine, N, I32, SUM, comm, stream
        )));
        assert_eq!(
            rank.values::<i32>(mine, N),
            vec![(me as i32 + 1) * count as i32; N]
        );
        // A ring.
        let (next, before) = ((me + 1) % count, (me + count - 1) % count);
        good!(ncclGroupStart());
        for call in [
            call!(ncclSend(x, N, I32, next as i32, comm, stream)),
            call!(ncclRecv(all, N, I32, before as i32, comm, stream)),
        ] {
            assert_eq!(call, 0);
        }
        rank.done(call!(ncclGroupEnd()));
        assert_eq!(rank.values::<i32>(all, N), vec![before as i32 + 1; N]);
        rank.done(call!(ncclAllReduce(x, all, N, I32, SUM, comm, stream)));
        rank.done(call!(ncclBroadcast(all, all, N, I32, 0, comm, stream)));
        assert_eq!(rank.values::<i32>(all, N), vec![sum; N]);
    }
    // Floats have the same bits everywhere; the test compares them.
    let y = rank.buffer(&[[1e8_f32, 1.0, -1e8, 3.0][me]; N]);
    rank.done(call!(ncclAllReduce(y, y, N, F32, SUM, comm, stream)));
    println!("bits {:x?}", rank.values::<u32>(y, N));
    // The even ranks, and the odd ones.
    let mut half = 0;
    let out = Out::to(&mut half);
    let code = call!(ncclCommSplit(comm, me as i32 % 2, 0, out, Array::null()));
    assert_eq!(
        (code, settle(comm)),
        (if blocking { 0 } else { IN_PROGRESS }, 0)
    );
    assert_eq!(settle(half), 0);
    let z = rank.buffer(&[1]);
    let code = call!(ncclAllReduce(z, z, 1, I32, SUM, half, stream));
    assert!(code == 0 || code == IN_PROGRESS);
    assert_eq!(settle(half), 0);
    assert_eq!(
        rank.values::<i32>(z, 1),
        [count.div_ceil(2) as i32 - (me % 2 * count % 2) as i32]
    );
    good!(ncclCommDestroy(half));
    rank.free(&[x, y, z, all]);
    rank.destroy();
}

/// Rank 1 ends, as one that is killed, before its second call; rank 0 hangs until it aborts.
fn killed() {
    let rank = this(true);
    let x = rank.buffer(&[1; 4]);
    assert_eq!(rank.sum(x, 4), 0);
    assert_eq!(rank.values::<i32>(x, 4), [2; 4]);
    if rank.rank == 1 {
        // SAFETY: nothing of this process is needed any more.
        unsafe { libc::_exit(0) };
    }
    assert_eq!(rank.sum(x, 4), 0);
    let comm = rank.comm;
    let aborting = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        good!(ncclCommAbort(comm));
    });
    good!(cuStreamSynchronize(rank.stream));
    aborting.join().unwrap();
    assert_eq!(rank.values::<i32>(x, 4), [-1; 4]);
    rank.free(&[x]);
    rank.end();
}

/// The ranks ask for different things, and abort.
fn mismatch() {
    let rank = this(true);
    let x = rank.buffer(&[1; 4]);
    assert_eq!(rank.sum(x, 3 + rank.rank), 0);
    let start = std::time::Instant::now();
    let is_silent = std::env::var("PHALANX_SIMULATOR_NCCL_MISMATCH").is_ok();
    let limit = Duration::from_millis(if is_silent { 500 } else { 30_000 });
    while start.elapsed() < limit && phalanx_simulator_findings() == 0 {
        assert_eq!(call!(cuStreamQuery(rank.stream)), NOT_READY);
    }
    good!(ncclCommAbort(rank.comm));
    assert_eq!(rank.values::<i32>(x, 3), [-1; 3]);
    rank.free(&[x]);
    rank.end();
}

/// All ranks say that they use GPU 0.
fn one_card() {
    let id = common();
    let _gpu = Gpu::new(0);
    let mut comm = 0;
    let rank = number(RANK) as i32;
    let code = call!(ncclCommInitRank(Out::to(&mut comm), 2, id, rank));
    println!("joined {code}");
}

const PROGRAMS: &[(&str, fn())] = &[
    ("calls", || calls(true)),
    ("calls without blocking", || calls(false)),
    ("mixed", mixed),
    ("killed", killed),
    ("mismatch", mismatch),
    ("one card", one_card),
];

#[test]
fn program() {
    run_program(PROGRAMS);
}

/// The text of a new id.
fn text() -> String {
    // SAFETY: an id is so many bytes.
    let bytes = unsafe { std::mem::transmute::<UniqueId, [u8; 128]>(id()) };
    let len = bytes.iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8(bytes[..len].to_vec()).unwrap()
}

/// Runs a program as so many processes.
fn processes(
    name: &str,
    id: &str,
    count: usize,
    seed: &str,
    more: &[(&str, &str)],
) -> Vec<Outcome> {
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..count)
            .map(|rank| {
                scope.spawn(move || {
                    let (rank, ranks) = (rank.to_string(), count.to_string());
                    let mut variables = vec![
                        ("PHALANX_SIMULATOR_GPUS", "4"),
                        ("PHALANX_SIMULATOR_SEED", seed),
                        (ID, id),
                        (RANK, &rank),
                        (RANKS, &ranks),
                    ];
                    variables.extend(more);
                    run(name, &variables)
                })
            })
            .collect();
        started.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

fn folder(id: &str) -> PathBuf {
    PathBuf::from("/dev/shm").join(id)
}

#[test]
fn processes_get_what_they_should_and_leave_nothing() {
    for (count, seed) in [(2, "0"), (3, "1"), (4, "2")] {
        for name in ["calls", "calls without blocking"] {
            let id = text();
            let outcomes = processes(name, &id, count, seed, &[]);
            outcomes.iter().for_each(Outcome::finds_nothing);
            let bits = outcomes.iter().map(|outcome| {
                let line = outcome.output.lines().find(|line| line.contains("bits ["));
                line.unwrap().to_owned()
            });
            let bits: Vec<_> = bits.collect();
            assert!(bits.iter().all(|line| *line == bits[0]));
            assert!(!folder(&id).exists(), "{:?} is left", folder(&id));
        }
    }
}

#[test]
fn processes_may_have_several_ranks() {
    let id = text();
    let outcomes = processes("mixed", &id, 2, "0", &[]);
    outcomes.iter().for_each(Outcome::finds_nothing);
    assert!(!folder(&id).exists());
}

#[test]
fn calls_of_processes_that_do_not_match_are_reported() {
    let outcomes = processes("mismatch", &text(), 2, "0", &[]);
    for outcome in outcomes {
        outcome.finds(&["do not match", "ncclAllReduce of 3", "ncclAllReduce of 4"]);
    }
    let hang = [("PHALANX_SIMULATOR_NCCL_MISMATCH", "hang")];
    let outcomes = processes("mismatch", &text(), 2, "0", &hang);
    outcomes.iter().for_each(Outcome::finds_nothing);
}

#[test]
fn who_waits_for_a_process_that_is_gone_can_abort() {
    let id = text();
    let outcomes = processes("killed", &id, 2, "0", &[]);
    outcomes.iter().for_each(Outcome::finds_nothing);
    // What the process has left is still there; the next id clears it away, once its maker is gone too.
    assert!(folder(&id).exists());
    std::fs::remove_dir_all(folder(&id)).unwrap();
}

#[test]
fn two_processes_on_one_card_are_reported() {
    let id = text();
    let outcomes = processes("one card", &id, 2, "0", &[]);
    // They end without a call that ends a communicator.
    let _ = std::fs::remove_dir_all(folder(&id));
    assert!(outcomes.iter().any(|outcome| {
        let mut findings = outcome.findings.iter();
        findings.any(|finding| finding.contains("both use GPU 0"))
    }));
}
