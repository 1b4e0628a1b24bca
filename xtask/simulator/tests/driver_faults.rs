//! Each planted fault is reported, and its twin that is right is not.

#![allow(clippy::macro_metavars_in_unsafe)] // `call!` takes plain arguments

mod driver;

use std::sync::{Arc, Condvar, Mutex};

use driver::*;
use simulator::device::operation::{Custom, Failure};
use simulator::driver::alloc::*;
use simulator::driver::context::*;
use simulator::driver::event::*;
use simulator::driver::module::*;
use simulator::driver::pinned::*;
use simulator::driver::pointers::Out;
use simulator::driver::stream::*;
use simulator::exec::{Memory, Touched};

const N: usize = 1000;

fn use_after_free(fault: bool) {
    let gpu = Gpu::new(0);
    let a = stream();
    let x = ints(a, N);
    assert_eq!(gpu.fill(a, x, 1, N as i32), 0);
    if fault {
        free(x, a);
    }
    let code = gpu.increment(a, x, N as i32);
    assert_eq!(code != 0, fault, "{code}");
    if fault {
        assert_eq!(call!(cuStreamSynchronize(a)), ILLEGAL_ADDRESS);
    } else {
        free(x, a);
    }
}

/// A stale pointer within a structure that a kernel gets by value.
fn stale_in_structure(fault: bool) {
    let gpu = Gpu::new(0);
    let a = stream();
    let [x, y, z] = [(); 3].map(|()| ints(a, N));
    assert_eq!(gpu.fill(a, x, 1, N as i32), 0);
    assert_eq!(gpu.fill(a, y, 2, N as i32), 0);
    if fault {
        free(y, a);
    }
    let buffers = Buffers {
        out: z,
        ins: [x, y],
        scale: 3,
    };
    let n = N as i32;
    let code = gpu.launch("add_scaled", a, n, &[&buffers, &n]);
    assert_eq!(code, if fault { ILLEGAL_ADDRESS } else { 0 });
    if !fault {
        assert_eq!(read(z, N, a), (0, vec![9; N]));
        [x, y, z].into_iter().for_each(|address| free(address, a));
    }
}

fn copy_after_free(fault: bool) {
    let _gpu = Gpu::new(0);
    let a = stream();
    let x = ints(a, N);
    write(x, &[1; N], a);
    if fault {
        free(x, a);
    }
    let code = read(x, N, a).0;
    assert_eq!(code, if fault { INVALID_VALUE } else { 0 });
    if !fault {
        free(x, a);
    }
}

fn out_of_bounds(fault: bool) {
    let gpu = Gpu::new(0);
    let a = stream();
    let x = ints(a, N);
    let n = if fault { N as i32 + 1 } else { N as i32 };
    assert_eq!(gpu.fill(a, x, 1, n), 0);
    let code = call!(cuStreamSynchronize(a));
    assert_eq!(code, if fault { ILLEGAL_ADDRESS } else { 0 });
    if !fault {
        free(x, a);
    }
}

fn uninitialised(fault: bool) {
    let gpu = Gpu::new(0);
    let a = stream();
    let x = ints(a, N);
    let n = if fault { N as i32 - 1 } else { N as i32 };
    assert_eq!(gpu.fill(a, x, 1, n), 0);
    let code = read(x, N, a).0;
    assert_eq!(code, if fault { LAUNCH_FAILED } else { 0 });
    if !fault {
        free(x, a);
    }
}

fn double_free(fault: bool) {
    let _gpu = Gpu::new(0);
    let a = stream();
    let x = ints(a, N);
    free(x, a);
    if fault {
        assert_eq!(call!(cuMemFreeAsync(x, a)), INVALID_VALUE);
        good!(cuStreamSynchronize(a));
        assert_eq!(call!(cuMemFree_v2(x)), INVALID_VALUE);
    }
}

fn wrong_context(fault: bool) {
    let first = Gpu::new(0);
    let event = event();
    let of_first = stream();
    let second = Gpu::new(1);
    let of_second = stream();
    let code = call!(cuEventRecord(
        event,
        if fault { of_second } else { of_first }
    ));
    assert_eq!(code, if fault { INVALID_HANDLE } else { 0 });
    // A wait for an event of another context is right.
    good!(cuStreamWaitEvent(of_second, event, 0));
    if fault {
        assert_eq!(first.fill(of_second, 0, 0, 0), INVALID_HANDLE);
    }
    first.bind();
    second.bind();
}

fn leak(fault: bool) {
    let gpu = Gpu::new(0);
    let a = stream();
    let (x, event) = (ints(a, N), event());
    if !fault {
        free(x, a);
        good!(cuEventDestroy_v2(event));
        good!(cuStreamDestroy_v2(a));
    }
    gpu.end();
}

/// At the end of the process only memory counts as a leak.
fn leak_at_exit(fault: bool) {
    let _gpu = Gpu::new(0);
    let a = stream();
    let (x, y) = (ints(a, N), ints(a, N));
    let mut host = 0;
    good!(cuMemHostAlloc(Out::to(&mut host), 100, 0));
    let _event = event();
    if !fault {
        free(x, a);
        assert!(simulator::driver::counts::phalanx_simulator_keep(y));
        good!(cuMemFreeHost(host));
    }
}

fn unloaded(fault: bool) {
    let gpu = Gpu::new(0);
    let function = gpu.kernel("count");
    let mut bytes = 0;
    let mut address = 0;
    let name = simulator::driver::pointers::Text::of(c"counter");
    good!(cuModuleGetGlobal_v2(
        Out::to(&mut address),
        Out::to(&mut bytes),
        gpu.module,
        name
    ));
    assert_eq!(bytes, 4);
    assert_eq!(read(address, 1, 0), (0, vec![7]));
    if fault {
        good!(cuModuleUnload(gpu.module));
        assert_eq!(read(address, 1, 0).0, INVALID_VALUE);
    }
    let mut value = 0;
    let code = call!(cuFuncGetAttribute(Out::to(&mut value), 0, function));
    assert_eq!(code, if fault { INVALID_HANDLE } else { 0 });
}

/// Work of another library that is never ready.
struct Never(bool);

impl Custom for Never {
    fn name(&self) -> Arc<str> {
        "an all-reduce that the other ranks do not call".into()
    }

    fn ready(&self) -> bool {
        !self.0
    }

    fn run(&mut self, _memory: &dyn Memory) -> Result<Vec<Touched>, Failure> {
        Ok(Vec::new())
    }
}

fn deadlock(fault: bool) {
    let _gpu = Gpu::new(0);
    let (a, b) = (stream(), stream());
    assert!(enqueue(a, Box::new(Never(fault))).is_ok());
    join(b, a);
    let code = call!(cuStreamSynchronize(b));
    assert_eq!(code, if fault { LAUNCH_TIMEOUT } else { 0 });
}

/// Work of another library that adds one to all integers at an address.
struct AddOne(u64);

impl Custom for AddOne {
    fn name(&self) -> Arc<str> {
        "a library's sum".into()
    }

    fn addresses(&self) -> Vec<u64> {
        vec![self.0]
    }

    fn run(&mut self, memory: &dyn Memory) -> Result<Vec<Touched>, Failure> {
        let explain = || Failure::address(memory.explain(self.0));
        let region = memory.find(self.0).ok_or_else(explain)?;
        // SAFETY: the region holds `N` integers, and the tests order all that uses them.
        let ints = unsafe { std::slice::from_raw_parts_mut(region.host.cast::<i32>(), N) };
        ints.iter_mut().for_each(|int| *int += 1);
        Ok(vec![Touched {
            region: region.id,
            read: Some(0..region.len),
            written: Some(0..region.len),
        }])
    }
}

fn library_in_order(fault: bool) {
    let gpu = Gpu::new(0);
    let (a, b) = (stream(), stream());
    let x = ints(a, N);
    assert_eq!(gpu.fill(a, x, 1, N as i32), 0);
    join(b, a);
    assert!(enqueue(b, Box::new(AddOne(x))).is_ok());
    if !fault {
        join(a, b);
    }
    assert_eq!(gpu.increment(a, x, N as i32), 0);
    let code = call!(cuCtxSynchronize());
    assert_eq!(code, if fault { ILLEGAL_ADDRESS } else { 0 });
    if !fault {
        assert_eq!(read(x, N, a), (0, vec![3; N]));
    }
    assert_eq!(call!(cuMemFreeAsync(x, a)), code);
}

fn library_after_free(fault: bool) {
    let gpu = Gpu::new(0);
    let a = stream();
    let x = ints(a, N);
    assert_eq!(gpu.fill(a, x, 1, N as i32), 0);
    if fault {
        free(x, a);
    }
    assert_eq!(enqueue(a, Box::new(AddOne(x))).is_err(), fault);
    if !fault {
        free(x, a);
    }
}

extern "C" fn calls_the_driver(code: *mut std::ffi::c_void) {
    let result = call!(cuCtxSynchronize());
    // SAFETY: the test passes a number that lives until it has waited.
    unsafe { code.cast::<u32>().write(result) };
}

extern "C" fn adds_one(number: *mut std::ffi::c_void) {
    // SAFETY: as above.
    unsafe { *number.cast::<u32>() += 1 };
}

fn host_function(fault: bool) {
    let _gpu = Gpu::new(0);
    let a = stream();
    let mut number = 0_u32;
    let to = (&raw mut number).cast();
    let function = if fault { calls_the_driver } else { adds_one };
    good!(cuLaunchHostFunc(a, Some(function), to));
    good!(cuStreamSynchronize(a));
    assert_eq!(number, if fault { 800 } else { 1 });
}

fn no_gpus(_fault: bool) {
    use simulator::driver::init::*;
    assert_eq!(call!(cuInit(0)), 100);
    let mut count = 9;
    good!(cuDeviceGetCount(Out::to(&mut count)));
    assert_eq!(count, 0);
}

static SENT: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

extern "C" fn sends(_: *mut std::ffi::c_void) {
    *SENT.0.lock().unwrap() = true;
    SENT.1.notify_all();
}

/// A program that waits for a function of the host, and not for the driver.
fn own_wait(_fault: bool) {
    let gpu = Gpu::new(0);
    let a = stream();
    let x = ints(a, N);
    assert_eq!(gpu.fill(a, x, 1, N as i32), 0);
    good!(cuLaunchHostFunc(a, Some(sends), std::ptr::null_mut()));
    let most = std::time::Duration::from_secs(20);
    let waited = SENT
        .1
        .wait_timeout_while(SENT.0.lock().unwrap(), most, |sent| !*sent);
    assert!(*waited.unwrap().0);
    free(x, a);
}

fn not_simulated(fault: bool) {
    let _gpu = Gpu::new(0);
    if fault {
        assert_eq!(simulator::driver::unsupported::cuGraphCreate(), 801);
    }
}

macro_rules! programs {
    ($($name:ident)*) => {
        &[$((stringify!($name), || $name(false)), (concat!(stringify!($name), ", wrong"), || $name(true))),*]
    };
}

const PROGRAMS: &[(&str, fn())] = programs! {
    use_after_free stale_in_structure copy_after_free out_of_bounds uninitialised double_free wrong_context leak leak_at_exit unloaded
    deadlock library_in_order library_after_free host_function not_simulated no_gpus own_wait
};

#[test]
fn program() {
    run_program(PROGRAMS);
}

fn judge(name: &str, words: &[&str]) -> Outcome {
    let variables = [
        ("PHALANX_SIMULATOR_GPUS", "2"),
        ("PHALANX_SIMULATOR_PATIENCE", "1"),
    ];
    run(name, &variables).finds_nothing();
    let outcome = run(&format!("{name}, wrong"), &variables);
    outcome.finds(words);
    outcome
}

#[test]
fn use_after_free_is_found() {
    judge(
        "stale_in_structure",
        &["add_scaled", "stale pointer", "number 3 on GPU 0"],
    );
    judge(
        "use_after_free",
        &[
            "increment",
            "stale pointer",
            "4000 bytes",
            "free was enqueued on stream 1",
        ],
    );
    judge(
        "copy_after_free",
        &[
            "copy that reads 4000 bytes",
            "free was enqueued on stream 1",
        ],
    );
}

#[test]
fn accesses_out_of_bounds_are_found() {
    judge(
        "out_of_bounds",
        &[
            "fill",
            "bytes behind the end of the allocation of 4000 bytes",
        ],
    );
}

#[test]
fn copies_of_what_nobody_wrote_are_found() {
    judge(
        "uninitialised",
        &["reads 4 bytes that nothing has written", "at byte 3996"],
    );
}

#[test]
fn double_free_is_found() {
    let outcome = judge("double_free", &["double free", "4000 bytes"]);
    assert_eq!(outcome.findings.len(), 2);
}

#[test]
fn handles_of_another_context_are_found() {
    let outcome = judge(
        "wrong_context",
        &["event of the context of GPU 0", "another context"],
    );
    assert_eq!(outcome.findings.len(), 2);
}

#[test]
fn leaks_are_found() {
    let outcome = judge("leak", &["Leak", "4000 bytes", "context of GPU 0 ends"]);
    assert_eq!(outcome.findings.len(), 3, "{outcome:?}");
    let outcome = judge("leak_at_exit", &["Leak", "4000 bytes", "process ends"]);
    // Pinned buffers may be kept until the process ends.
    assert_eq!(outcome.findings.len(), 2, "{outcome:?}");
}

#[test]
fn use_of_an_unloaded_module_is_found() {
    judge("unloaded", &["a module's variable", "freed"]);
}

#[test]
fn a_deadlock_is_found() {
    let words = [
        "Deadlock",
        "stream 1 of GPU 0 has an all-reduce",
        "stream 2 of GPU 0 waits for operation 2",
    ];
    judge("deadlock", &words);
}

#[test]
fn work_of_other_libraries_is_judged_too() {
    judge(
        "library_in_order",
        &[
            "a library's sum",
            "increment",
            "a wait for an event is missing",
        ],
    );
    judge("library_after_free", &["a library's sum", "stale pointer"]);
}

#[test]
fn a_host_function_runs_though_nobody_waits_for_the_driver() {
    run("own_wait", &[]).finds_nothing();
}

#[test]
fn a_driver_without_gpus_says_so() {
    run("no_gpus", &[("PHALANX_SIMULATOR_GPUS", "0")]).finds_nothing();
}

#[test]
fn a_host_function_may_not_call_the_driver() {
    judge("host_function", &["cuLaunchHostFunc"]);
}

#[test]
fn what_is_not_simulated_says_so() {
    judge(
        "not_simulated",
        &["cuGraphCreate was called, which is not simulated"],
    );
}
