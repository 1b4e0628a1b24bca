//! The order of operations: what is missing is found with every seed, and what is there is not reported.

#![allow(clippy::macro_metavars_in_unsafe)] // `call!` takes plain arguments

mod driver;

use std::collections::HashSet;
use std::ffi::c_void;
use std::sync::Mutex;

use driver::*;
use simulator::driver::alloc::*;
use simulator::driver::context::*;
use simulator::driver::copy::*;
use simulator::driver::event::*;
use simulator::driver::pinned::*;
use simulator::driver::pointers::Out;
use simulator::driver::set::*;
use simulator::driver::stream::*;

const N: usize = 1000;

/// A kernel in one stream writes what a kernel in another one reads.
fn two_streams(waits: bool) {
    let gpu = Gpu::new(0);
    let (a, b) = (stream(), stream());
    let (x, y) = (ints(a, N), ints(a, N));
    join(b, a);
    assert_eq!(gpu.fill(a, x, 3, N as i32), 0);
    if waits {
        join(b, a);
    }
    assert_eq!(gpu.add(b, y, x, x, N as i32), 0);
    let (code, values) = read(y, N, b);
    assert_eq!(code == 0, waits, "{code}");
    if waits {
        assert_eq!(values, vec![6; N]);
        join(a, b);
        free(x, a);
        free(y, a);
        for stream in [a, b] {
            good!(cuStreamSynchronize(stream));
            good!(cuStreamDestroy_v2(stream));
        }
        gpu.end();
    } else {
        // Every later call says the same.
        let mut address = 0;
        assert_eq!(call!(cuMemAlloc_v2(Out::to(&mut address), 4)), code);
    }
}

/// A free in one stream while another one may still read.
fn free_elsewhere(waits: bool) {
    let gpu = Gpu::new(0);
    let (a, b) = (stream(), stream());
    let x = ints(a, N);
    assert_eq!(gpu.fill(a, x, 3, N as i32), 0);
    join(b, a);
    let mut host = 0;
    good!(cuMemHostAlloc(Out::to(&mut host), 4 * N, 0));
    good!(cuMemcpyDtoHAsync_v2(host as *mut _, x, 4 * N, b));
    if waits {
        join(a, b);
    }
    free(x, a);
    let both = (call!(cuStreamSynchronize(a)), call!(cuStreamSynchronize(b)));
    assert_eq!(both == (0, 0), waits, "{both:?}");
    if waits {
        good!(cuMemFreeHost(host));
    }
}

/// A free in one stream after another one has read, which neither the stream nor the host knows of.
fn free_after_read(waits: bool) {
    let gpu = Gpu::new(0);
    let (a, b, c) = (stream(), stream(), stream());
    let (x, y, z) = (ints(a, N), ints(b, N), ints(c, N));
    assert_eq!(gpu.fill(a, x, 3, N as i32), 0);
    join(b, a);
    assert_eq!(gpu.add(b, y, x, x, N as i32), 0);
    for _ in 0..50 {
        good!(cuMemsetD8Async(z, 0, N, c));
    }
    good!(cuStreamSynchronize(c));
    if waits {
        join(a, b);
    }
    let code = call!(cuMemFreeAsync(x, a));
    if waits {
        assert_eq!(code, 0);
        free(y, b);
        free(z, c);
    }
    assert_eq!(call!(cuCtxSynchronize()) == 0, waits);
}

/// A use in one stream of what another one allocates.
fn use_before_allocation(waits: bool) {
    let gpu = Gpu::new(0);
    let (a, b) = (stream(), stream());
    let x = ints(a, N);
    if waits {
        join(b, a);
    }
    assert_eq!(gpu.fill(b, x, 3, N as i32), 0);
    let code = call!(cuStreamSynchronize(b));
    assert_eq!(code == 0, waits, "{code}");
    if waits {
        free(x, b);
    }
}

/// The default stream orders blocking streams, and only them.
fn default_stream(blocking: bool) {
    let gpu = Gpu::new(0);
    let other = if blocking {
        blocking_stream()
    } else {
        stream()
    };
    let x = ints(0, N);
    let y = ints(0, N);
    good!(cuStreamSynchronize(0));
    assert_eq!(gpu.fill(other, x, 1, N as i32), 0);
    assert_eq!(gpu.increment(0, x, N as i32), 0);
    assert_eq!(gpu.add(other, y, x, x, N as i32), 0);
    let code = call!(cuCtxSynchronize());
    assert_eq!(code == 0, blocking, "{code}");
    let (_, values) = read(y, N, other);
    if blocking {
        assert_eq!(values, vec![4; N]);
        free(x, 0);
        free(y, 0);
    }
}

/// The wait of the host orders as well as one of a stream does.
fn host_waits(kind: u32) {
    let gpu = Gpu::new(0);
    let (a, b) = (stream(), stream());
    let x = ints(a, N);
    assert_eq!(gpu.fill(a, x, 3, N as i32), 0);
    let event = event();
    good!(cuEventRecord(event, a));
    match kind {
        0 => good!(cuStreamSynchronize(a)),
        1 => good!(cuEventSynchronize(event)),
        2 => while call!(cuEventQuery(event)) == NOT_READY {},
        3 => while call!(cuStreamQuery(a)) == NOT_READY {},
        _ => good!(cuCtxSynchronize()),
    }
    assert_eq!(gpu.increment(b, x, N as i32), 0);
    let (code, values) = read(x, N, b);
    assert_eq!((code, values), (0, vec![4; N]));
    free(x, b);
}

/// A pinned buffer is read when the copy runs, a pageable one at the call.
fn late_copies() {
    let gpu = Gpu::new(0);
    let a = stream();
    let (x, y) = (ints(a, N), ints(a, N));
    let mut host = 0;
    good!(cuMemHostAlloc(Out::to(&mut host), 4 * N, 0));
    // SAFETY: the buffer holds so many integers, and nothing else uses it while this slice is in use.
    let pinned = || unsafe { std::slice::from_raw_parts_mut(host as *mut i32, N) };
    pinned().fill(2);
    good!(cuMemcpyHtoDAsync_v2(x, host as *const _, 4 * N, a));
    let mut pageable = vec![1_i32; N];
    write(y, &pageable, a);
    pageable.fill(2);
    assert_eq!(read(x, N, a), (0, vec![2; N]));
    assert_eq!(read(y, N, a), (0, vec![1; N]));
    // To pinned memory as well: nothing that could be taken for a result is there before the wait.
    assert_eq!(gpu.fill(a, x, 7, N as i32), 0);
    good!(cuMemcpyDtoHAsync_v2(host as *mut _, x, 4 * N, a));
    assert_eq!(pinned()[0], -1);
    good!(cuStreamSynchronize(a));
    assert_eq!(pinned(), vec![7; N]);
    free(x, a);
    free(y, a);
    good!(cuMemFreeHost(host));
}

/// A pinned buffer that the host fills again while a copy may still read from it.
fn pinned_refilled(waits: bool) {
    let _gpu = Gpu::new(0);
    let a = stream();
    let x = ints(a, N);
    let mut host = 0;
    good!(cuMemHostAlloc(Out::to(&mut host), 4 * N, 0));
    // SAFETY: as above.
    let pinned = || unsafe { std::slice::from_raw_parts_mut(host as *mut i32, N) };
    for round in 0..3 {
        pinned().fill(round);
        good!(cuMemcpyHtoDAsync_v2(x, host as *const _, 4 * N, a));
        if waits {
            good!(cuStreamSynchronize(a));
        }
    }
    let (code, values) = read(x, N, a);
    if waits {
        assert_eq!((code, values), (0, vec![2; N]));
        free(x, a);
        good!(cuMemFreeHost(host));
    } else {
        assert_eq!(code, LAUNCH_FAILED);
    }
}

/// A pinned buffer that is freed while a copy may still need it.
fn pinned_freed(waits: bool) {
    let _gpu = Gpu::new(0);
    let a = stream();
    let x = ints(a, N);
    let mut host = 0;
    good!(cuMemHostAlloc(Out::to(&mut host), 4 * N, 0));
    good!(cuMemcpyHtoDAsync_v2(x, host as *const _, 4 * N, a));
    if waits {
        good!(cuStreamSynchronize(a));
    }
    assert_eq!(call!(cuMemFreeHost(host)) == 0, waits);
    free(x, a);
}

/// The process ends before a kernel has run.
fn unfinished(waits: bool) {
    let gpu = Gpu::new(0);
    let a = stream();
    let x = ints(a, N);
    assert_eq!(gpu.fill(a, x, 1, N as i32), 0);
    free(x, a);
    if waits {
        good!(cuStreamSynchronize(a));
    }
}

static TRACE: Mutex<String> = Mutex::new(String::new());

extern "C" fn trace(number: *mut c_void) {
    TRACE
        .lock()
        .unwrap()
        .push_str(&format!("{},", number as usize));
}

/// Functions of the host in several streams tell in which order they run.
fn seeded() {
    let _gpu = Gpu::new(0);
    let streams = [stream(), stream(), stream(), stream()];
    for number in 0..20 {
        let call = number as *mut c_void;
        good!(cuLaunchHostFunc(streams[number % 4], Some(trace), call));
    }
    good!(cuCtxSynchronize());
    println!("order {}", TRACE.lock().unwrap());
}

const PROGRAMS: &[(&str, fn())] = &[
    ("seeded", seeded),
    ("unfinished, right", || unfinished(true)),
    ("unfinished, wrong", || unfinished(false)),
    ("two streams, right", || two_streams(true)),
    ("two streams, wrong", || two_streams(false)),
    ("free elsewhere, right", || free_elsewhere(true)),
    ("free elsewhere, wrong", || free_elsewhere(false)),
    ("free after read, right", || free_after_read(true)),
    ("free after read, wrong", || free_after_read(false)),
    ("allocation, right", || use_before_allocation(true)),
    ("allocation, wrong", || use_before_allocation(false)),
    ("default stream, right", || default_stream(true)),
    ("default stream, wrong", || default_stream(false)),
    ("host waits 0", || host_waits(0)),
    ("host waits 1", || host_waits(1)),
    ("host waits 2", || host_waits(2)),
    ("host waits 3", || host_waits(3)),
    ("host waits 4", || host_waits(4)),
    ("late copies", late_copies),
    ("refilled, right", || pinned_refilled(true)),
    ("refilled, wrong", || pinned_refilled(false)),
    ("pinned, right", || pinned_freed(true)),
    ("pinned, wrong", || pinned_freed(false)),
];

#[test]
fn program() {
    run_program(PROGRAMS);
}

/// Runs a program with many seeds, and its twin that is right.
fn judge(name: &str, words: &[&str]) {
    for seed in 0..40 {
        let seed = [("PHALANX_SIMULATOR_SEED", &*seed.to_string())];
        run(&format!("{name}, wrong"), &seed).finds(words);
        run(&format!("{name}, right"), &seed).finds_nothing();
    }
}

#[test]
fn a_missing_wait_between_streams_is_found_with_every_seed() {
    judge("two streams", &["wait", "missing", "kernel"]);
}

#[test]
fn a_free_in_another_stream_is_found_with_every_seed() {
    judge("free elsewhere", &["free", "copy"]);
    judge(
        "free after read",
        &[
            "the kernel add",
            "frees it",
            "a wait for an event is missing",
        ],
    );
}

#[test]
fn a_use_before_the_allocation_is_found_with_every_seed() {
    judge("allocation", &["allocates it", "the kernel fill", "a wait"]);
}

#[test]
fn the_default_stream_orders_blocking_streams_only() {
    judge("default stream", &["wait", "missing", "kernel"]);
}

#[test]
fn a_process_that_ends_too_early_hears_of_it() {
    for (name, told) in [("unfinished, right", false), ("unfinished, wrong", true)] {
        let outcome = run(name, &[]);
        outcome.finds_nothing();
        assert_eq!(
            outcome.output.contains("1 operations have not run"),
            told,
            "{outcome:?}"
        );
    }
}

#[test]
fn a_seed_decides_the_order() {
    let order = |seed: u32| {
        let outcome = run("seeded", &[("PHALANX_SIMULATOR_SEED", &*seed.to_string())]);
        let output = outcome.output.split("order ").nth(1);
        output.unwrap().lines().next().unwrap().to_owned()
    };
    let orders = (0..10).map(order).collect::<Vec<_>>();
    assert_eq!(orders, (0..10).map(order).collect::<Vec<_>>());
    let different = orders.iter().collect::<HashSet<_>>();
    assert!(different.len() > 8, "{orders:?}");
    for order in &orders {
        // Each stream keeps its own order.
        let numbers: Vec<usize> = order
            .split_terminator(',')
            .map(|n| n.parse().unwrap())
            .collect();
        assert_eq!(numbers.len(), 20, "{order}");
        for stream in 0..4 {
            assert!(
                numbers.iter().filter(|n| **n % 4 == stream).is_sorted(),
                "{order}"
            );
        }
    }
}

#[test]
fn each_wait_of_the_host_orders() {
    for kind in 0..5 {
        run(&format!("host waits {kind}"), &[]).finds_nothing();
    }
}

#[test]
fn pinned_copies_are_late_and_pageable_ones_staged() {
    for seed in 0..5 {
        let seed = [("PHALANX_SIMULATOR_SEED", &*seed.to_string())];
        run("late copies", &seed).finds_nothing();
    }
}

#[test]
fn a_pinned_buffer_that_is_still_needed_is_not_freed_in_silence() {
    run("pinned, right", &[]).finds_nothing();
    run("pinned, wrong", &[]).finds(&[
        "frees the pinned buffer of 4000 bytes",
        "without having waited",
    ]);
}

#[test]
fn a_pinned_buffer_that_is_filled_too_early_is_found() {
    run("refilled, right", &[]).finds_nothing();
    run("refilled, wrong", &[]).finds(&[
        "copy of 4000 bytes",
        "the host writes to it without having waited",
    ]);
}
