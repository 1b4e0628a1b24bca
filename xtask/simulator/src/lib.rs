//! A CUDA device that is simulated on the CPU, so that code for GPUs runs where there is none, and is judged more
//! strictly than a card judges it.
//!
//! The library has the names of the driver's functions. A program finds it in the place of the driver:
//!
//! ```sh
//! cargo build -p phalanx-simulator
//! mkdir -p target/simulator
//! ln -sf ../debug/libsimulator.so target/simulator/libcuda.so
//! ln -sf ../debug/libsimulator.so target/simulator/libcuda.so.1
//! LD_LIBRARY_PATH=$PWD/target/simulator PHALANX_SIMULATOR_GPUS=2 some program
//! ```
//!
//! What the environment may ask for stands in [`device::settings`].
//!
//! # What it does
//!
//! There are as many GPUs as asked for, each with its own memory and one context, and with the limits of an A100.
//! Streams hold operations until a host thread waits or asks; that thread then runs what can run, in an order that a
//! seed decides. So what a program has not ordered does happen in another order.
//!
//! The same library stands in for cuBLASLt ([`blas`]) and for NCCL ([`nccl`]), under the names `libcublasLt.so` and
//! `libnccl.so`.
//!
//! # What it finds
//!
//! Each finding is a sentence on stderr and a line of the report. A finding within an operation makes its context fail,
//! as it does on a card: every later call returns the same error.
//!
//! - **A wait that is missing between streams**, with every seed: operations carry vector clocks from the moment when
//!   they are enqueued ([`device::clock`]), and two uses of the same bytes, one of which writes, must be ordered.
//!   Allocating and freeing count as writes.
//! - **Use after free**, when a pointer to freed memory is handed to a kernel or a copy, and when it is used.
//! - **Accesses out of bounds and to another GPU** to which there is no peer access, because the program has
//!   not enabled it or because the two GPUs are strangers ([`device::settings`]).
//! - **Reads of bytes that nothing has written**, by kernels and by copies to the host.
//! - **Races within a launch**: in shared memory always; in global memory, also between blocks, where the settings ask
//!   for it.
//! - **Memory that is freed twice**, handles of another context, and handles whose object is destroyed.
//! - **Leaks**: when a context ends, all that it still has; when the process ends, device memory. What
//!   a program keeps on purpose it can name ([`driver::counts::phalanx_simulator_keep`]).
//! - **A deadlock**: a wait during which nothing happens for as long as the patience says.
//! - **Pinned memory that the host frees or fills again while a copy needs it.** A pinned buffer that a copy is going to
//!   write holds `0xff` until the copy has run, so that who reads it too early does not find the right values there.
//! - **Host functions that call the driver.**
//! - **Ranks that do not agree**: calls of NCCL that do not match or that wait for each other, and communicators that are
//!   used in ways that NCCL forbids ([`nccl`]).
//! - **Calls that are not simulated**: they return `CUDA_ERROR_NOT_SUPPORTED` and never a wrong answer.
//!
//! # What it cannot find
//!
//! - How long anything takes, what overlaps, and what real hardware does with its caches.
//! - A host thread that reads pinned memory too early, but for the values that it finds; and one that touches device
//!   memory directly, unless that is freed.
//! - Host threads that are not ordered among themselves: the wait of one thread counts for all of them.
//! - A host thread that waits by looking at pinned memory alone waits for ever: nothing runs before a call of the driver.
//!   (What `cuLaunchHostFunc` was given does run after a while in which nothing else happens.)
//! - A race between operations of which one never runs, because the process ends without waiting for it. A line on
//!   stderr says so.
//! - What a kernel touches is known as one range of bytes for each allocation. Two kernels that use alternating bytes
//!   of one allocation at the same time are reported, although they may be right.
#![allow(non_snake_case)] // the names are the driver's

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!(
    "the simulated device switches between the threads of a block by x86-64 Linux code of its own"
);

pub mod blas;
pub mod device;
pub mod driver;
pub mod exec;
pub mod nccl;
mod ptx;
