//! Memory: what pools count, where it ends, copies between GPUs, and many threads at once.

#![allow(clippy::macro_metavars_in_unsafe)] // `call!` takes plain arguments

mod driver;

use driver::*;
use simulator::driver::alloc::*;
use simulator::driver::context::*;
use simulator::driver::copy::*;
use simulator::driver::init::*;
use simulator::driver::pointers::{Array, Out};
use simulator::driver::pool::*;
use simulator::driver::set::*;
use simulator::driver::stream::*;

const N: usize = 1000;
const MEGABYTE: usize = 1 << 20;

fn pool() -> u64 {
    let mut pool = 0;
    good!(cuDeviceGetDefaultMemPool(Out::to(&mut pool), 0));
    pool
}

/// Reserved, the most reserved, used, the most used.
fn counts(pool: u64) -> [u64; 4] {
    [5, 6, 7, 8].map(|attribute| {
        let mut value = 0_u64;
        let to = (&raw mut value).cast();
        good!(cuMemPoolGetAttribute(pool, attribute, to));
        value
    })
}

fn set(pool: u64, attribute: u32, mut value: u64) {
    let from = (&raw mut value).cast();
    good!(cuMemPoolSetAttribute(pool, attribute, from));
}

fn pools() {
    let _gpu = Gpu::new(0);
    let a = stream();
    let pool = pool();
    let allocate = |len: usize| {
        let mut address = 0;
        let code = call!(cuMemAllocAsync(Out::to(&mut address), len, a));
        (code, address)
    };
    let (_, x) = allocate(1000);
    let (_, y) = allocate(512);
    assert_eq!(counts(pool), [1536, 1536, 1536, 1536]);
    free(x, a);
    assert_eq!(counts(pool), [1536, 1536, 512, 1536]);
    // What was freed in stream order is there to be used again, without a wait.
    let (_, x) = allocate(1024);
    assert_eq!(counts(pool), [1536, 1536, 1536, 1536]);
    free(x, a);
    good!(cuStreamSynchronize(a));
    assert_eq!(counts(pool), [512, 1536, 512, 1536]);
    set(pool, 6, 0);
    set(pool, 8, 0);
    assert_eq!(counts(pool), [512, 512, 512, 512]);
    set(pool, 4, 1 << 30);
    free(y, a);
    good!(cuStreamSynchronize(a));
    assert_eq!(counts(pool), [512, 512, 0, 512]);
    good!(cuMemPoolTrimTo(pool, 0));
    assert_eq!(counts(pool), [0, 512, 0, 512]);
    // The GPU has 4 MB; a module's variable takes 512 bytes of it.
    let (mut free_bytes, mut total) = (0, 0);
    good!(cuMemGetInfo_v2(
        Out::to(&mut free_bytes),
        Out::to(&mut total)
    ));
    assert_eq!((free_bytes, total), (4 * MEGABYTE - 512, 4 * MEGABYTE));
    assert_eq!(allocate(4 * MEGABYTE).0, OUT_OF_MEMORY);
    let (code, all) = allocate(4 * MEGABYTE - 512);
    assert_eq!(code, 0);
    let mut plain = 0;
    assert_eq!(call!(cuMemAlloc_v2(Out::to(&mut plain), 1)), OUT_OF_MEMORY);
    free(all, a);
    // What a pool has reserved and does not use goes to who needs it.
    good!(cuMemAlloc_v2(Out::to(&mut plain), 4 * MEGABYTE - 512));
    assert_eq!(allocate(1).0, OUT_OF_MEMORY);
    good!(cuMemFree_v2(plain));
    // Steps that allocate and free without any wait need no more than one of them.
    for _ in 0..100 {
        let (code, x) = allocate(4 * MEGABYTE - 512);
        assert_eq!(code, 0);
        free(x, a);
    }
    good!(cuStreamSynchronize(a));
}

fn peers() {
    let first = Gpu::new(0);
    let of_first = stream();
    let second = Gpu::new(1);
    let of_second = stream();
    let (x, y) = (ints(of_first, N), ints(of_second, N));
    assert_eq!(first.fill(of_first, x, 5, N as i32), 0);
    join_contexts(&first, of_first, of_second);
    good!(cuMemcpyPeerAsync(
        y,
        second.context,
        x,
        first.context,
        4 * N,
        of_second
    ));
    assert_eq!(second.increment(of_second, y, N as i32), 0);
    assert_eq!(read(y, N, of_second), (0, vec![6; N]));
    // A kernel reads the other GPU's memory once it has access.
    let access = [[1, 1, 3]];
    first.bind();
    good!(cuMemPoolSetAccess(pool(), Array::of(&access), 1));
    second.bind();
    assert_eq!(second.add(of_second, y, x, x, N as i32), 0);
    assert_eq!(read(y, N, of_second), (0, vec![10; N]));
    first.bind();
    let mut plain = 0;
    good!(cuMemAlloc_v2(Out::to(&mut plain), 4 * N));
    good!(cuMemsetD32_v2(plain, 4, N));
    good!(cuStreamSynchronize(0));
    second.bind();
    good!(cuCtxEnablePeerAccess(first.context, 0));
    assert_eq!(second.add(of_second, y, plain, plain, N as i32), 0);
    assert_eq!(read(y, N, of_second), (0, vec![8; N]));
    good!(cuMemFree_v2(plain));
    good!(cuCtxDisablePeerAccess(first.context));
    join_contexts(&second, of_second, of_first);
    free(x, of_first);
    free(y, of_second);
}

/// Two GPUs that cannot access each other's memory; copies between them go through the host.
fn strangers() {
    const UNSUPPORTED: u32 = 217;
    const INVALID_DEVICE: u32 = 101;
    let can = |a: i32, b: i32| {
        let mut can = 9;
        good!(cuDeviceCanAccessPeer(Out::to(&mut can), a, b));
        can
    };
    let [first, second] = [0, 1].map(Gpu::new);
    assert_eq!(
        [(0, 1), (1, 0), (0, 2), (2, 1), (0, 0)].map(|(a, b)| can(a, b)),
        [0, 0, 1, 1, 0]
    );
    second.bind();
    assert_eq!(call!(cuCtxEnablePeerAccess(first.context, 0)), UNSUPPORTED);
    let access = |device: i32| {
        let access = [[1, device, 3]];
        call!(cuMemPoolSetAccess(pool(), Array::of(&access), 1))
    };
    assert_eq!([0, 1, 2].map(access), [0, INVALID_DEVICE, 0]);
    let b = stream();
    let y = ints(b, N);
    first.bind();
    let a = stream();
    let x = ints(a, N);
    assert_eq!(first.fill(a, x, 5, N as i32), 0);
    good!(cuStreamSynchronize(a));
    second.bind();
    good!(cuMemcpyPeerAsync(
        y,
        second.context,
        x,
        first.context,
        4 * N,
        b
    ));
    assert_eq!(read(y, N, b), (0, vec![5; N]));
    free(y, b);
    first.bind();
    free(x, a);
}

fn join_contexts(of_before: &Gpu, before: u64, after: u64) {
    of_before.bind();
    join(after, before);
}

fn no_peer_access(of_a_pool: bool) {
    let first = Gpu::new(0);
    let of_first = stream();
    let mut x = 0;
    match of_a_pool {
        true => x = ints(of_first, N),
        false => good!(cuMemAlloc_v2(Out::to(&mut x), 4 * N)),
    }
    assert_eq!(first.fill(of_first, x, 5, N as i32), 0);
    good!(cuStreamSynchronize(of_first));
    let second = Gpu::new(1);
    let of_second = stream();
    assert_eq!(second.increment(of_second, x, N as i32), 0);
    assert_eq!(call!(cuStreamSynchronize(of_second)), ILLEGAL_ADDRESS);
    // The other context goes on.
    first.bind();
    assert_eq!(read(x, N, of_first), (0, vec![5; N]));
}

/// `cuMemFree` waits for the GPU whose memory it is, and not for another one that uses it.
fn free_of_a_peer(waits: bool) {
    let first = Gpu::new(0);
    let mut plain = 0;
    good!(cuMemAlloc_v2(Out::to(&mut plain), 4 * N));
    good!(cuMemsetD32_v2(plain, 4, N));
    good!(cuStreamSynchronize(0));
    let second = Gpu::new(1);
    let (a, b) = (stream(), stream());
    let y = ints(a, N);
    good!(cuMemcpyDtoDAsync_v2(y, plain, 4 * N, a));
    if waits {
        good!(cuStreamSynchronize(a));
    } else {
        // The copy runs while the host waits for something else, and the host does not know of it.
        let z = ints(b, N);
        for _ in 0..20 {
            good!(cuMemsetD32Async(z, 1, N, b));
        }
        good!(cuStreamSynchronize(b));
    }
    first.bind();
    let code = call!(cuMemFree_v2(plain));
    assert_eq!(code == 0, waits, "{code}");
    second.bind();
    if waits {
        free(y, a);
    }
}

/// Several threads on each of several GPUs, as the ranks of a program are.
fn threads() {
    let gpus: Vec<_> = (0..4).map(Gpu::new).collect();
    std::thread::scope(|scope| {
        for (rank, gpu) in (0..16).flat_map(|rank| gpus.get(rank % 4).map(|gpu| (rank, gpu))) {
            scope.spawn(move || {
                gpu.bind();
                let (a, b) = (stream(), stream());
                for round in 0..100 {
                    let (x, y) = (ints(a, N), ints(a, N));
                    let value = (rank * 1000 + round) as i32;
                    assert_eq!(gpu.fill(a, x, value, N as i32), 0);
                    join(b, a);
                    assert_eq!(gpu.add(b, y, x, x, N as i32), 0);
                    assert_eq!(read(y, N, b), (0, vec![2 * value; N]));
                    free(y, b);
                    free(x, b);
                }
                good!(cuStreamDestroy_v2(a));
                good!(cuStreamDestroy_v2(b));
            });
        }
    });
    gpus.into_iter().for_each(Gpu::end);
}

/// A fault on one GPU while several threads use each: theirs fail, the others go on.
fn one_fails() {
    let gpus: Vec<_> = (0..4).map(Gpu::new).collect();
    std::thread::scope(|scope| {
        for (rank, gpu) in (0..12).flat_map(|rank| gpus.get(rank % 4).map(|gpu| (rank, gpu))) {
            scope.spawn(move || {
                let mut a = 0;
                let mut code = call!(cuCtxSetCurrent(gpu.context));
                if code == 0 {
                    code = call!(cuStreamCreate(Out::to(&mut a), 1));
                }
                // Those of the GPU that fails go on until they see it.
                let rounds = if rank % 4 == 1 { i32::MAX } else { 100 };
                for round in 0..rounds {
                    if code != 0 {
                        break;
                    }
                    let n = if (rank, round) == (1, 50) { N + 9 } else { N };
                    let mut x = 0;
                    for step in 0..4 {
                        if code == 0 {
                            code = match step {
                                0 => call!(cuMemAllocAsync(Out::to(&mut x), 4 * N, a)),
                                1 => gpu.fill(a, x, round, n as i32),
                                2 => call!(cuStreamSynchronize(a)),
                                _ => call!(cuMemFreeAsync(x, a)),
                            };
                        }
                    }
                }
                assert_eq!(code, if rank % 4 == 1 { ILLEGAL_ADDRESS } else { 0 });
                if code == 0 {
                    good!(cuStreamDestroy_v2(a));
                }
            });
        }
    });
    for gpu in gpus {
        if gpu.device != 1 {
            gpu.end();
        }
    }
}

const PROGRAMS: &[(&str, fn())] = &[
    ("pools", pools),
    ("peers", peers),
    ("strangers", strangers),
    ("no peer access 0", || no_peer_access(false)),
    ("no peer access 1", || no_peer_access(true)),
    ("free of a peer, right", || free_of_a_peer(true)),
    ("free of a peer, wrong", || free_of_a_peer(false)),
    ("threads", threads),
    ("one fails", one_fails),
];

#[test]
fn program() {
    run_program(PROGRAMS);
}

#[test]
fn pools_count_exactly() {
    let memory = (4 * MEGABYTE).to_string();
    run("pools", &[("PHALANX_SIMULATOR_MEMORY", &memory)]).finds_nothing();
}

#[test]
fn gpus_copy_between_each_other() {
    run("peers", &[("PHALANX_SIMULATOR_GPUS", "2")]).finds_nothing();
    for kind in 0..2 {
        let name = format!("no peer access {kind}");
        let outcome = run(&name, &[("PHALANX_SIMULATOR_GPUS", "2")]);
        outcome.finds(&["increment", "no peer access"]);
    }
}

#[test]
fn gpus_may_be_strangers() {
    let variables = [
        ("PHALANX_SIMULATOR_GPUS", "3"),
        ("PHALANX_SIMULATOR_STRANGERS", "1-0"),
    ];
    run("strangers", &variables).finds_nothing();
}

#[test]
fn memory_that_another_gpu_uses_is_not_freed_in_silence() {
    let gpus = [("PHALANX_SIMULATOR_GPUS", "2")];
    run("free of a peer, right", &gpus).finds_nothing();
    run("free of a peer, wrong", &gpus).finds(&["without having waited", "a copy", "GPU 1"]);
}

#[test]
fn many_threads_drive_many_gpus() {
    run("threads", &[("PHALANX_SIMULATOR_GPUS", "4")]).finds_nothing();
}

#[test]
fn a_fault_stays_with_its_gpu() {
    for seed in 0..5 {
        let seed = seed.to_string();
        let variables = [
            ("PHALANX_SIMULATOR_GPUS", "4"),
            ("PHALANX_SIMULATOR_SEED", &*seed),
        ];
        let outcome = run("one fails", &variables);
        outcome.finds(&["fill", "GPU 1"]);
        assert_eq!(outcome.findings.len(), 1, "{outcome:?}");
    }
}
