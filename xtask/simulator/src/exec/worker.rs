//! What launches need of memory, and leave to the next one. This is one of the few files with `unsafe` code.

use std::collections::VecDeque;
use std::sync::Mutex;

use super::abi::{Ctx, Site};
use super::access::Known;
use super::barrier::Barriers;
use super::copies::Copies;
use super::fences::Fences;
use super::fiber::Stacks;
use super::race::Clocks;
use super::shadow::Shadows;
use super::warp::Warps;

/// What a launch needs of memory; kept from launch to launch.
#[derive(Debug, Default)]
pub struct Worker {
    pub stacks: Option<Stacks>,
    pub threads: Vec<Ctx>,
    pub pointers: Vec<usize>,
    pub ready: VecDeque<u32>,
    pub sites: Vec<Site>,
    pub memory: Vec<u8>,
    pub local: Vec<u128>,
    pub clocks: Clocks,
    pub warps: Warps,
    pub barriers: Barriers,
    pub regions: Vec<Known>,
    pub copies: Copies,
    pub shadows: Shadows,
    pub fences: Fences,
    /// The tick at which each block of the launch was born, in the order in which they run.
    pub births: Vec<u64>,
}

// SAFETY: the pointers in `threads` and `sites` are set anew by each launch, which a worker serves in one thread; all
// owners of what is counted in `fences` are in there, and move with it.
unsafe impl Send for Worker {}

/// Workers that no launch uses.
static IDLE: Mutex<Vec<Worker>> = Mutex::new(Vec::new());

impl Worker {
    /// One that no launch uses.
    pub fn take() -> Worker {
        let mut idle = IDLE.lock();
        let worker = idle.as_mut().ok().and_then(|idle| idle.pop());
        worker.unwrap_or_default()
    }

    /// Leaves it to the next launch.
    pub fn leave(self) {
        if let Ok(mut idle) = IDLE.lock() {
            idle.push(self);
        }
    }
}
