//! Ranks as threads of a process, each with a GPU, a stream and a communicator.

#![allow(dead_code)] // each test file uses its part

use std::ffi::c_void;

use simulator::driver::alloc::*;
use simulator::driver::copy::*;
use simulator::driver::init::*;
use simulator::driver::pointers::{Array, Out};
use simulator::driver::stream::*;
use simulator::nccl::calls::*;
use simulator::nccl::life::*;

use crate::driver::*;
use crate::{call, good};

pub const IN_PROGRESS: u32 = 7;
pub const INVALID_ARGUMENT: u32 = 4;
pub const INVALID_USAGE: u32 = 5;

pub const I32: u32 = 2;
pub const F32: u32 = 7;
pub const SUM: u32 = 0;

/// An id for a communicator.
pub fn id() -> UniqueId {
    let mut id = std::mem::MaybeUninit::<UniqueId>::uninit();
    // SAFETY: the call fills the id.
    unsafe {
        assert_eq!(ncclGetUniqueId(Out::to(&mut *id.as_mut_ptr())), 0);
        id.assume_init()
    }
}

/// A configuration.
pub fn config(blocking: i32) -> Config {
    Config {
        size: size_of::<Config>(),
        magic: 0xcafe_beef,
        version: 22803,
        blocking,
    }
}

/// What the communicator says of itself.
pub fn state(comm: u64) -> u32 {
    let mut state = 99;
    good!(ncclCommGetAsyncError(comm, Out::to(&mut state)));
    state
}

/// Asks until nothing is in progress.
pub fn settle(comm: u64) -> u32 {
    loop {
        match state(comm) {
            IN_PROGRESS => std::thread::yield_now(),
            state => return state,
        }
    }
}

/// Ends the process when it takes far too long: where one rank fails, the others would wait for ever.
fn watch() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::thread::spawn(|| {
            std::thread::sleep(std::time::Duration::from_secs(60));
            eprintln!("the ranks have not ended within a minute");
            std::process::exit(70);
        });
    });
}

/// A rank.
pub struct Rank {
    pub gpu: Gpu,
    pub rank: usize,
    pub ranks: usize,
    pub comm: u64,
    pub stream: u64,
}

impl Rank {
    /// Joins on the GPU of the rank's number.
    pub fn join(id: UniqueId, rank: usize, ranks: usize, blocking: bool) -> Rank {
        watch();
        let gpu = Gpu::new(rank as i32);
        let mut comm = 0;
        let configs = [config(blocking.into())];
        let code = call!(ncclCommInitRankConfig(
            Out::to(&mut comm),
            ranks as i32,
            id,
            rank as i32,
            Array::of(&configs)
        ));
        match blocking {
            true => assert_eq!(code, 0),
            false => assert_eq!((code, settle(comm)), (IN_PROGRESS, 0)),
        }
        let stream = stream();
        Rank {
            gpu,
            rank,
            ranks,
            comm,
            stream,
        }
    }

    /// What a call has returned, when it is no longer in progress.
    pub fn done(&self, code: u32) {
        match code {
            IN_PROGRESS => assert_eq!(settle(self.comm), 0),
            code => assert_eq!(code, 0),
        }
    }

    /// A buffer with values.
    pub fn buffer<T>(&self, values: &[T]) -> u64 {
        let mut address = 0;
        let bytes = size_of_val(values);
        good!(cuMemAllocAsync(Out::to(&mut address), bytes, self.stream));
        let from = values.as_ptr().cast::<c_void>();
        good!(cuMemcpyHtoDAsync_v2(address, from, bytes, self.stream));
        address
    }

    /// A buffer with nothing in it.
    pub fn empty(&self, bytes: usize) -> u64 {
        let mut address = 0;
        good!(cuMemAllocAsync(Out::to(&mut address), bytes, self.stream));
        address
    }

    /// Its values.
    pub fn values<T: Copy + Default>(&self, address: u64, n: usize) -> Vec<T> {
        let mut values = vec![T::default(); n];
        let to = values.as_mut_ptr().cast::<c_void>();
        good!(cuMemcpyDtoHAsync_v2(
            to,
            address,
            n * size_of::<T>(),
            self.stream
        ));
        good!(cuStreamSynchronize(self.stream));
        values
    }

    /// `ncclAllReduce` of integers by their sum, in place.
    pub fn sum(&self, buffer: u64, n: usize) -> u32 {
        call!(ncclAllReduce(
            buffer,
            buffer,
            n,
            I32,
            SUM,
            self.comm,
            self.stream
        ))
    }

    pub fn free(&self, buffers: &[u64]) {
        buffers.iter().for_each(|buffer| free(*buffer, self.stream));
    }

    /// Ends as a program does that leaves nothing behind.
    pub fn end(self) {
        good!(cuStreamSynchronize(self.stream));
        good!(cuStreamDestroy_v2(self.stream));
        self.gpu.end();
    }

    /// The same, and destroys the communicator.
    pub fn destroy(self) {
        good!(ncclCommDestroy(self.comm));
        self.end();
    }
}

/// Runs ranks in threads of their own.
pub fn ranks(count: usize, blocking: bool, rank: impl Fn(Rank) + Sync) {
    good!(cuInit(0));
    let id = id();
    std::thread::scope(|scope| {
        for number in 0..count {
            let rank = &rank;
            scope.spawn(move || rank(Rank::join(id, number, count, blocking)));
        }
    });
}
