//! Loaded modules and their functions.

use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::machine::Machine;
use super::memory::{Life, Owner};
use super::pool::rounded;
use super::state::State;
use crate::exec;

/// The most shared memory that a block has without asking, in bytes.
pub const SHARED: u32 = 48 << 10;

/// The most shared memory that a block can ask for, in bytes: that of an A100.
pub const SHARED_MOST: u32 = 163 << 10;

/// A module that a context has loaded.
pub struct Module {
    /// The number of the module.
    pub id: u64,
    /// The GPU of its context.
    pub gpu: usize,
    /// What it holds.
    pub image: Arc<exec::Module>,
    /// The functions that were asked for: their numbers.
    pub functions: Vec<u64>,
    /// Its variables: their names and where they lie.
    pub variables: Vec<(String, u64)>,
}

/// A kernel of a module.
pub struct Function {
    /// The kernel's name.
    pub name: Arc<str>,
    /// The same, for C.
    pub c_name: CString,
    /// The GPU of its context.
    pub gpu: usize,
    /// The module.
    pub module: u64,
    /// What runs.
    pub kernel: exec::Kernel,
    /// The most dynamic shared memory of a launch, as the program has set it.
    dynamic_shared: AtomicU32,
    /// Whether its code is on the GPU. As a driver by default, this one loads a function when it is first launched.
    loaded: AtomicBool,
}

impl Function {
    /// The kernel `name` of `module`, if it has one.
    pub fn new(module: &Module, name: &str) -> Option<Function> {
        let kernel = module.image.kernel(name)?;
        let free = SHARED.saturating_sub(kernel.static_shared as u32);
        Some(Function {
            name: name.into(),
            c_name: CString::new(name).ok()?,
            gpu: module.gpu,
            module: module.id,
            kernel: kernel.clone(),
            dynamic_shared: AtomicU32::new(free),
            loaded: AtomicBool::new(false),
        })
    }

    /// The most threads of a block.
    pub fn max_threads(&self) -> u32 {
        self.kernel.max_threads.unwrap_or(1024).min(1024)
    }

    /// Bytes of shared memory that it declares.
    pub fn static_shared(&self) -> u32 {
        self.kernel.static_shared as u32
    }

    /// The most dynamic shared memory of a launch.
    pub fn dynamic_shared(&self) -> u32 {
        self.dynamic_shared.load(Ordering::Relaxed)
    }

    /// Asks for another limit; false if a block cannot have so much.
    pub fn set_dynamic_shared(&self, bytes: u32) -> bool {
        let fits = bytes.saturating_add(self.static_shared()) <= SHARED_MOST;
        if fits {
            self.dynamic_shared.store(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// Whether it is loaded.
    pub fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Relaxed)
    }

    /// Loads it; true where it was not.
    pub fn load(&self) -> bool {
        !self.loaded.swap(true, Ordering::Relaxed)
    }

    /// How many blocks one multiprocessor holds at once, as far as threads and shared memory decide it.
    pub fn blocks_of_a_multiprocessor(&self, threads: u32, dynamic: usize) -> u32 {
        if threads == 0 || threads > self.max_threads() {
            return 0;
        }
        let warps = threads.div_ceil(32);
        // A block's shared memory also holds 1 KiB for the system.
        let shared = self.static_shared() as usize + dynamic + 1024;
        let by_shared = (164 << 10) / shared;
        (64 / warps).min(32).min(by_shared as u32)
    }
}

impl Module {
    /// Where a variable lies.
    pub fn bound(&self, name: &str) -> Option<u64> {
        let mut variables = self.variables.iter();
        variables
            .find(|(variable, _)| variable == name)
            .map(|(_, address)| *address)
    }
}

impl Machine {
    /// Unloads a module: its variables and its functions are gone.
    pub fn unload(&self, state: &mut State, id: u64) {
        let Some(module) = state.modules.remove(&id) else {
            return;
        };
        for function in module.functions {
            state.functions[function as usize] = None;
        }
        for block in self.space.alive(module.gpu) {
            if block.owner == Owner::Module(id) {
                self.space.set_life(block.id, Life::Freed(None));
                let plain = &mut state.contexts[module.gpu].plain;
                *plain = plain.saturating_sub(rounded(block.len));
                self.close(state, block);
            }
        }
    }
}
