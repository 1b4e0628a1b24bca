//! Modules, their functions and their variables.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use super::alloc::allocate;
use super::api;
use super::context;
use super::handles::{self, Handle};
use super::pointers::{Out, Text};
use crate::device::code::{Code, Result};
use crate::device::machine::Machine;
use crate::device::memory::Owner;
use crate::device::modules::{Function, Module};

use crate::device::report::Count;
use crate::device::state::State;
use crate::device::view::View;
use crate::exec::{self, Memory};

fn load(out: Out<Handle>, image: &[u8]) -> Result<()> {
    let machine = Machine::get()?;
    let gpu = context::current(machine)?;
    machine.lock().context(gpu)?;
    if out.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    machine.report.count(Count::Modules);
    let refuse = |why: &str| {
        machine
            .report
            .finding(&format!("A module cannot be loaded: {why}"));
        Err(Code::INVALID_PTX)
    };
    let Ok(text) = std::str::from_utf8(image) else {
        return refuse("the image is not PTX; the simulator has no use for machine code.");
    };
    let image = match exec::Module::load(text, &machine.settings.cache, machine.settings.checks) {
        Ok(image) => image,
        Err(error) => return refuse(&error.to_string()),
    };
    let mut state = machine.lock();
    state.context(gpu)?;
    let id = state.number();
    let mut variables = Vec::new();
    for name in image.global_names() {
        let Some(variable) = image.global(&name).filter(|variable| variable.size > 0) else {
            continue;
        };
        let (back, block) = allocate(machine, state, gpu, variable.size as u64, Owner::Module(id))?;
        state = back;
        let view = View {
            space: &machine.space,
            gpu,
            peers: 0,
            pools: 0,
        };
        if let Some(region) = view.find(block.base) {
            let known = variable.bytes.len().min(variable.size);
            // SAFETY: the region has `size` bytes, and as many that say whether they are valid; nobody has its address.
            unsafe {
                region.host.write_bytes(0, variable.size);
                std::ptr::copy_nonoverlapping(variable.bytes.as_ptr(), region.host, known);
                region.valid.write_bytes(1, variable.size);
            }
        }
        if variable.constant {
            machine.space.protect(block.id);
        }
        image.bind_global(&name, block.base);
        variables.push((name, block.base));
    }
    let module = Module {
        id,
        gpu,
        image: Arc::new(image),
        functions: Vec::new(),
        variables,
    };
    state.modules.insert(id, module);
    out.put(handles::of_module(id))
}

/// A module whose context has not failed.
fn find(state: &State, handle: Handle) -> Result<&Module> {
    let module = state.modules.get(&handles::module(handle)?);
    let module = module.ok_or(Code::INVALID_HANDLE)?;
    match state.contexts[module.gpu].error {
        Some(code) => Err(code),
        None => Ok(module),
    }
}

/// The function of a handle.
///
/// # Errors
/// `INVALID_HANDLE`, and a finding if its module was unloaded.
pub fn function(machine: &Machine, state: &State, handle: Handle) -> Result<Arc<Function>> {
    let number = handles::function(handle)?;
    match state.functions.get(number) {
        Some(Some(function)) => Ok(function.clone()),
        Some(None) => {
            machine
                .report
                .finding("A call uses a function of a module that was unloaded.");
            Err(Code::INVALID_HANDLE)
        }
        None => Err(Code::INVALID_HANDLE),
    }
}

fn get_function(state: &mut State, module: Handle, name: &str) -> Result<Handle> {
    let found = find(state, module)?;
    let id = found.id;
    let functions = found.functions.iter();
    let known = functions.copied().find(|number| {
        let function = state.functions[*number as usize].as_ref();
        function.is_some_and(|function| &*function.name == name)
    });
    let number = match known {
        Some(number) => number,
        None => {
            let function = Function::new(found, name).ok_or(Code::NOT_FOUND)?;
            state.functions.push(Some(Arc::new(function)));
            let number = state.functions.len() as u64 - 1;
            if let Some(module) = state.modules.get_mut(&id) {
                module.functions.push(number);
            }
            number
        }
    };
    Ok(handles::of_function(number as usize))
}

api! {
    cuModuleLoadData(module: Out<Handle>, image: Text) {
        load(module, image.bytes()?)
    }

    cuModuleLoadDataEx(
        module: Out<Handle>,
        image: Text,
        _count: u32,
        _options: *mut u32,
        _values: *mut *mut c_void,
    ) {
        load(module, image.bytes()?)
    }

    cuModuleLoad(module: Out<Handle>, name: Text) {
        let image = std::fs::read(name.get()?).map_err(|_| Code::FILE_NOT_FOUND)?;
        load(module, &image)
    }

    cuModuleUnload(module: Handle) {
        let machine = Machine::get()?;
        let state = machine.lock();
        let (id, gpu) = find(&state, module).map(|module| (module.id, module.gpu))?;
        // As a card does it: the call waits for the kernels that may still need the module.
        let mut state = machine.wait_context(state, gpu)?;
        machine.unload(&mut state, id);
        Ok(())
    }

    cuModuleGetFunction(function: Out<Handle>, module: Handle, name: Text) {
        let machine = Machine::get()?;
        let name = name.get()?;
        if function.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        function.put(get_function(&mut machine.lock(), module, name)?)
    }

    cuModuleGetFunctionCount(count: Out<u32>, module: Handle) {
        let machine = Machine::get()?;
        let state = machine.lock();
        count.put(find(&state, module)?.image.kernel_names().len() as u32)
    }

    cuModuleEnumerateFunctions(functions: Out<Handle>, most: u32, module: Handle) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let names = find(&state, module)?.image.kernel_names();
        for (i, name) in names.iter().take(most as usize).enumerate() {
            functions.at(i).put(get_function(&mut state, module, name)?)?;
        }
        Ok(())
    }

    cuFuncLoad(function_: Handle) {
        let machine = Machine::get()?;
        let state = machine.lock();
        if function(machine, &state, function_)?.load() {
            machine.report.count(Count::Loads);
        }
        Ok(())
    }

    cuFuncIsLoaded(loaded: Out<u32>, function_: Handle) {
        let machine = Machine::get()?;
        let state = machine.lock();
        loaded.put(function(machine, &state, function_)?.is_loaded().into())
    }

    cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: Handle, name: Text) {
        let machine = Machine::get()?;
        let name = name.get()?;
        let state = machine.lock();
        let module = find(&state, module)?;
        let variable = module.image.global(name).ok_or(Code::NOT_FOUND)?;
        let bound = module.bound(name).ok_or(Code::NOT_FOUND)?;
        address.put_if_asked(bound);
        bytes.put_if_asked(variable.size);
        Ok(())
    }

    cuFuncGetModule(module: Out<Handle>, function_: Handle) {
        let machine = Machine::get()?;
        let state = machine.lock();
        module.put(handles::of_module(function(machine, &state, function_)?.module))
    }

    cuFuncGetName(name: Out<*const c_char>, function_: Handle) {
        let machine = Machine::get()?;
        let state = machine.lock();
        // The function, and so its name, lives as long as its module.
        name.put(function(machine, &state, function_)?.c_name.as_ptr())
    }

    cuFuncGetAttribute(value: Out<i32>, attribute: u32, function_: Handle) {
        let machine = Machine::get()?;
        let state = machine.lock();
        let function = function(machine, &state, function_)?;
        value.put(match attribute {
            0 => function.max_threads() as i32,
            1 => function.static_shared() as i32,
            2 | 7 => 0,
            3 => function.kernel.local as i32,
            // Registers are not simulated; this is the number with which a kernel may have the most threads.
            4 => 32,
            5 | 6 => 80,
            8 => function.dynamic_shared() as i32,
            9 => -1,
            10..=15 => 0,
            _ => return Err(Code::INVALID_VALUE),
        })
    }

    cuFuncSetAttribute(function_: Handle, attribute: u32, value: i32) {
        let machine = Machine::get()?;
        let state = machine.lock();
        let function = function(machine, &state, function_)?;
        match (attribute, u32::try_from(value)) {
            (8, Ok(bytes)) if function.set_dynamic_shared(bytes) => Ok(()),
            (9, _) if (-1..=100).contains(&value) => Ok(()),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    cuFuncSetCacheConfig(function_: Handle, _config: u32) {
        let machine = Machine::get()?;
        let state = machine.lock();
        function(machine, &state, function_).map(|_| ())
    }

    cuFuncGetParamInfo(function_: Handle, index: usize, offset: Out<usize>, size: Out<usize>) {
        let machine = Machine::get()?;
        let state = machine.lock();
        let function = function(machine, &state, function_)?;
        let param = function.kernel.params.get(index).ok_or(Code::INVALID_VALUE)?;
        offset.put(param.offset)?;
        size.put_if_asked(param.size);
        Ok(())
    }

    cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: Out<i32>,
        function_: Handle,
        threads: i32,
        dynamic: usize,
    ) {
        let machine = Machine::get()?;
        let state = machine.lock();
        let function = function(machine, &state, function_)?;
        let threads = u32::try_from(threads).map_err(|_| Code::INVALID_VALUE)?;
        blocks.put(function.blocks_of_a_multiprocessor(threads, dynamic) as i32)
    }

    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: Out<i32>,
        function_: Handle,
        threads: i32,
        dynamic: usize,
        _flags: u32,
    ) {
        let machine = Machine::get()?;
        let state = machine.lock();
        let function = function(machine, &state, function_)?;
        let threads = u32::try_from(threads).map_err(|_| Code::INVALID_VALUE)?;
        blocks.put(function.blocks_of_a_multiprocessor(threads, dynamic) as i32)
    }
}
