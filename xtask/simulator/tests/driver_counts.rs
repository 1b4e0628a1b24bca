//! What the simulated driver counts of a program's calls, and how many of them it takes in a second.

#![allow(clippy::macro_metavars_in_unsafe)] // `call!` takes plain arguments

mod driver;

use driver::*;
use simulator::device::report::Count;
use simulator::driver::counts::*;
use simulator::driver::init::*;
use simulator::driver::module::*;
use simulator::driver::pinned::*;
use simulator::driver::pointers::Out;
use simulator::driver::pool::*;
use simulator::driver::set::*;
use simulator::driver::stream::*;

const N: usize = 1000;

fn counting() {
    let gpu = Gpu::new(0);
    let a = stream();
    let x = ints(a, N);
    assert_eq!(gpu.fill(a, x, 1, N as i32), 0);
    let kinds = [
        Count::Waits,
        Count::Queries,
        Count::PageableCopies,
        Count::Launches,
    ];
    assert_eq!(kinds.map(count), [0, 0, 0, 1]);
    write(x, &[2; N], a);
    assert_eq!(kinds.map(count), [0, 0, 1, 1]);
    assert_eq!(read(x, N, a).0, 0);
    assert_eq!(kinds.map(count), [1, 0, 2, 1]);
    while call!(cuStreamQuery(a)) != 0 {}
    good!(cuStreamSynchronize(a));
    assert_eq!(kinds.map(count), [2, 1, 2, 1]);
    assert_eq!((count(Count::Allocations), count(Count::Copies)), (2, 2));
    assert_eq!(gpu.fill(a, x, 3, N as i32), 0);
    assert_eq!([c"fill", c"add"].map(launched), [2, 0]);
    let (mut host, mut pool) = (0, 0);
    good!(cuMemHostAlloc(Out::to(&mut host), 64, 0));
    good!(cuMemFreeHost(host));
    good!(cuDeviceGetDefaultMemPool(Out::to(&mut pool), 0));
    good!(cuMemPoolTrimTo(pool, 0));
    let kinds = [Count::Pinned, Count::Unpinned, Count::Trims];
    assert_eq!(kinds.map(count), [1, 1, 1]);
    free(x, a);
}

/// A record of two streams, one of which waits for the other once; and what the main thread has done of it.
fn tracing() {
    let gpu = Gpu::new(0);
    let (a, b) = (stream(), stream());
    let (x, y) = (ints(a, N), ints(b, N));
    good!(cuStreamSynchronize(a));
    let waits = phalanx_simulator_count_here(Count::Waits as u32);
    phalanx_simulator_trace(true);
    assert_eq!(gpu.fill(a, x, 1, N as i32), 0);
    join(b, a);
    assert_eq!(gpu.increment(a, x, N as i32), 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            gpu.bind();
            good!(cuStreamSynchronize(a));
        });
    });
    assert_eq!(gpu.add(b, y, x, x, N as i32), 0);
    phalanx_simulator_trace(false);
    assert_eq!(phalanx_simulator_count_here(Count::Waits as u32), waits);
    let traced: Vec<_> = (0..phalanx_simulator_traced()).map(operation).collect();
    assert!(operation(traced.len() as u64).is_none());
    let find = |name: &str| {
        let at = traced.iter().position(|o| o.as_ref().unwrap().1 == name);
        at.unwrap() as u64
    };
    let [fill, increment, add] = ["fill", "increment", "add"].map(find);
    assert!(phalanx_simulator_before(fill, increment));
    assert!(phalanx_simulator_before(fill, add));
    // Only a thread that waited knows that one of these is over.
    assert!(!phalanx_simulator_before(increment, add));
    assert!(!phalanx_simulator_before(add, fill));
    assert!(!phalanx_simulator_before(fill, 1000));
    let stream_of = |at: u64| traced[at as usize].as_ref().unwrap().0;
    assert_eq!(stream_of(fill), stream_of(increment));
    assert_ne!(stream_of(fill), stream_of(add));
    free(x, a);
    free(y, b);
}

/// An operation of the record: its stream and its name.
fn operation(index: u64) -> Option<(u64, String)> {
    let (mut gpu, mut stream, mut name) = (9, 0, [0; 64]);
    // SAFETY: the places can be written, and the text has 64 bytes.
    let found = unsafe {
        phalanx_simulator_operation(
            index,
            Out::to(&mut gpu),
            Out::to(&mut stream),
            Out::to(&mut name[0]),
            name.len(),
        )
    };
    assert!(!found || gpu == 0);
    let bytes: Vec<u8> = name
        .iter()
        .take_while(|c| **c != 0)
        .map(|c| *c as u8)
        .collect();
    found.then(|| (stream, String::from_utf8(bytes).unwrap()))
}

/// A function is loaded when it is launched first, or when the program asks for it.
fn loading() {
    let gpu = Gpu::new(0);
    let a = stream();
    let x = ints(a, N);
    let is_loaded = |function: u64| {
        let mut loaded = 9;
        good!(cuFuncIsLoaded(Out::to(&mut loaded), function));
        loaded
    };
    assert_eq!(is_loaded(gpu.kernel("fill")), 0);
    assert_eq!(gpu.fill(a, x, 1, N as i32), 0);
    assert_eq!(gpu.fill(a, x, 1, N as i32), 0);
    assert_eq!(
        (is_loaded(gpu.kernel("fill")), count(Count::LazyLoads)),
        (1, 1)
    );
    let mut n = 0;
    good!(cuModuleGetFunctionCount(Out::to(&mut n), gpu.module));
    let mut all = vec![0; n as usize + 1];
    good!(cuModuleEnumerateFunctions(
        Out::to(&mut all[0]),
        n + 1,
        gpu.module
    ));
    assert_eq!(all.pop(), Some(0));
    assert!(all.contains(&gpu.kernel("increment")) && !all.contains(&0));
    for function in all {
        good!(cuFuncLoad(function));
        assert_eq!(is_loaded(function), 1);
    }
    assert_eq!(gpu.increment(a, x, N as i32), 0);
    assert_eq!(
        [Count::LazyLoads, Count::Loads].map(count),
        [1, u64::from(n) - 1]
    );
    assert_eq!(read(x, N, a), (0, vec![2; N]));
    free(x, a);
}

/// A launch of a tiny kernel, again and again.
fn speed() {
    let gpu = Gpu::new(0);
    let a = stream();
    let x = ints(a, 4);
    assert_eq!(gpu.fill(a, x, 0, 4), 0);
    good!(cuStreamSynchronize(a));
    let launches = 20_000;
    let start = std::time::Instant::now();
    for _ in 0..launches {
        assert_eq!(gpu.increment(a, x, 4), 0);
    }
    assert_eq!(read(x, 4, a), (0, vec![launches; 4]));
    let seconds = start.elapsed().as_secs_f64();
    println!("{:.0} launches a second", f64::from(launches) / seconds);
    free(x, a);
}

/// Allocations that are used and freed, as those of a training step are.
fn allocations() {
    let _gpu = Gpu::new(0);
    let a = stream();
    for n in [1 << 8, 1 << 14, 1 << 18] {
        let rounds = (1 << 27) / (n + (1 << 16)) as i32;
        let start = std::time::Instant::now();
        for round in 0..rounds {
            let x = ints(a, n);
            good!(cuMemsetD32Async(x, round as u32, n, a));
            free(x, a);
        }
        good!(cuStreamSynchronize(a));
        let seconds = start.elapsed().as_secs_f64();
        let microseconds = 1e6 * seconds / f64::from(rounds);
        println!(
            "{microseconds:.1} us for an allocation of {} KiB that is used and freed",
            n / 256
        );
    }
}

const PROGRAMS: &[(&str, fn())] = &[
    ("counting", counting),
    ("tracing", tracing),
    ("loading", loading),
    ("speed", speed),
    ("allocations", allocations),
];

#[test]
fn program() {
    run_program(PROGRAMS);
}

#[test]
fn functions_are_loaded_late_or_when_asked_for() {
    run("loading", &[]).finds_nothing();
}

#[test]
fn what_the_host_does_is_counted() {
    run("counting", &[]).finds_nothing();
}

#[test]
fn what_is_put_into_streams_is_recorded() {
    run("tracing", &[]).finds_nothing();
}

#[test]
fn launches_and_allocations_are_quick() {
    for (name, unit) in [("speed", "launches a second"), ("allocations", "us for")] {
        let outcome = run(name, &[]);
        outcome.finds_nothing();
        let lines = outcome.output.lines().filter(|line| line.contains(unit));
        lines.for_each(|line| println!("{line}"));
    }
}
