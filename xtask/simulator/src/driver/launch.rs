//! Launches of kernels.

use std::ffi::c_void;

use super::api;
use super::handles::{self, Handle};
use super::module;
use super::pointers::{self, Array};
use crate::device::code::{Code, Result};
use crate::device::machine::Machine;
use crate::device::modules::{Function, SHARED_MOST};
use crate::device::operation::{Launch, Work};
use crate::device::report::Count;

/// The most blocks along each axis.
const GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];

/// The most threads of a block along each axis.
const BLOCK: [u32; 3] = [1024, 1024, 64];

/// Where the parameters are.
#[derive(Clone, Copy)]
struct Parameters {
    /// A pointer for each one.
    each: Array<u64>,
    /// Or pairs of a kind and a value, up to a zero: the block of all (1) and a pointer to its size (2).
    extra: Array<u64>,
}

impl Parameters {
    /// The block of parameters that a kernel gets.
    fn gather(&self, function: &Function) -> Result<Box<[u8]>> {
        let params = &function.kernel.params;
        let size = params.last().map_or(0, |last| last.offset + last.size);
        let mut block = vec![0; size];
        if !self.extra.is_null() {
            let (mut start, mut bytes) = (0, 0);
            let mut at = 0;
            loop {
                match self.extra.item(at)? {
                    0 => break,
                    1 => start = self.extra.item(at + 1)?,
                    2 => bytes = Array::<usize>::at(self.extra.item(at + 1)?).item(0)?,
                    _ => return Err(Code::INVALID_VALUE),
                }
                at += 2;
            }
            if bytes < size || size > 0 && start == 0 {
                return Err(Code::INVALID_VALUE);
            }
            // SAFETY: by the interface, `bytes` bytes are there.
            block.copy_from_slice(&unsafe { pointers::bytes(start, size) });
            return Ok(block.into());
        }
        for (index, param) in params.iter().enumerate() {
            let from = self.each.item(index)?;
            if from == 0 {
                return Err(Code::INVALID_VALUE);
            }
            // SAFETY: by the interface, each pointer points to a value of the parameter's size.
            let value = unsafe { pointers::bytes(from, param.size) };
            block[param.offset..param.offset + param.size].copy_from_slice(&value);
        }
        Ok(block.into())
    }
}

fn launch(
    function: Handle,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: Handle,
    parameters: Parameters,
) -> Result<()> {
    let machine = Machine::get()?;
    let mut state = machine.lock();
    let stream = handles::stream(machine, &mut state, stream)?;
    let function = module::function(machine, &state, function)?;
    let gpu = state.streams[stream].gpu;
    if function.gpu != gpu {
        let sentence = format!(
            "The kernel {} of the context of GPU {} is launched in {}, which belongs to another context.",
            function.name,
            function.gpu,
            state.name(stream)
        );
        machine.report.finding(&sentence);
        return Err(Code::INVALID_HANDLE);
    }
    let fits = |sizes: [u32; 3], most: [u32; 3]| {
        let mut pairs = sizes.into_iter().zip(most);
        pairs.all(|(size, most)| (1..=most).contains(&size))
    };
    let threads = block.iter().map(|size| u64::from(*size)).product::<u64>();
    if !fits(grid, GRID) || !fits(block, BLOCK) || threads > 1024 {
        return Err(Code::INVALID_VALUE);
    }
    if threads > function.max_threads().into() {
        return Err(Code::LAUNCH_OUT_OF_RESOURCES);
    }
    if shared > function.dynamic_shared() || shared + function.static_shared() > SHARED_MOST {
        return Err(Code::INVALID_VALUE);
    }
    if function.load() {
        machine.report.count(Count::LazyLoads);
    }
    machine.report.launch(&function.name);
    let launch = Launch {
        grid,
        block,
        dynamic_shared: shared as usize,
        params: parameters.gather(&function)?,
        seed: state.random(),
        function,
    };
    let work = Work::Launch(launch);
    machine.refuse_stale(&mut state, gpu, &work)?;
    machine.submit(state, stream, work).map(|_| ())
}

/// `CUlaunchConfig`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Config {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// The stream.
    pub stream: Handle,
    /// Attributes.
    pub attributes: *mut c_void,
    /// How many.
    pub count: u32,
}

api! {
    cuLaunchKernel(
        function: Handle,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: Handle,
        each: Array<u64>,
        extra: Array<u64>,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        launch(function, grid, block, shared, stream, Parameters { each, extra })
    }

    cuLaunchKernelEx(config: Array<Config>, function: Handle, each: Array<u64>, extra: Array<u64>) {
        let Config { grid, block, shared, stream, count, .. } = config.item(0)?;
        if count > 0 {
            Machine::get()?.report.finding("Attributes of launches are not simulated.");
            return Err(Code::NOT_SUPPORTED);
        }
        launch(function, grid, block, shared, stream, Parameters { each, extra })
    }
}
