//! Stands in for `libcublasLt`: products of matrices, computed on the CPU as one operation of a stream.
//!
//! It takes what cuBLASLt 13 documents, and is strict: an attribute that it does not know, a size that is not the
//! attribute's, an address that is less aligned than the preference said, a workspace that is too small, an algorithm that
//! was chosen for another problem, and a description that is destroyed are findings. What it does not simulate is a finding
//! too, and returns `CUBLAS_STATUS_NOT_SUPPORTED`.

mod epilogue;
mod numbers;
pub mod objects;
pub mod product;

use std::ffi::c_void;

use crate::device::code::Code;
use crate::device::machine::Machine;
use crate::device::operation::Work;
use crate::device::report::Count;
use crate::driver::context;
use crate::driver::handles::{self, Handle};
use crate::driver::pointers::{Array, Out};
use objects::{Data, Kind, Object, Objects};
use product::{Algorithm, Problem, Product};

/// What a call returns when it does not succeed: a `cublasStatus_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u32);

#[allow(missing_docs)] // the names are the library's
impl Status {
    pub const NOT_INITIALIZED: Status = Status(1);
    pub const INVALID_VALUE: Status = Status(7);
    pub const EXECUTION_FAILED: Status = Status(13);
    pub const NOT_SUPPORTED: Status = Status(15);
}

/// A result of a call.
pub type Result<T> = std::result::Result<T, Status>;

impl From<Code> for Status {
    fn from(code: Code) -> Status {
        match code {
            Code::INVALID_VALUE => Status::INVALID_VALUE,
            Code::NOT_INITIALIZED | Code::INVALID_CONTEXT => Status::NOT_INITIALIZED,
            _ => Status::EXECUTION_FAILED,
        }
    }
}

/// Reports what is wrong with a call.
fn wrong(sentence: String, status: Status) -> Status {
    match Machine::peek() {
        Some(machine) => machine.report.finding(&sentence),
        None => eprintln!("simulated device: {sentence}"),
    }
    status
}

/// What `cublasLtMatmulAlgoGetHeuristic` gives: `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Heuristic {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Bytes of workspace that it needs.
    pub workspace: usize,
    /// Whether it can be used: 0.
    pub state: u32,
    /// How well it fills the card.
    pub waves: f32,
    /// Nothing.
    pub reserved: [i32; 4],
}

macro_rules! api {
    ($($name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        #[doc = concat!("`", stringify!($name), "` of cuBLASLt.")]
        ///
        /// # Safety
        /// As in the library's documentation: pointers point to what it says, or are null.
        #[unsafe(no_mangle)]
        #[allow(clippy::too_many_arguments)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> u32 {
            let call = || -> Result<()> { $body };
            match call() {
                Ok(()) => 0,
                Err(status) => status.0,
            }
        }
    )*};
}

fn put(place: Out<u64>, object: Object) -> Result<()> {
    Ok(place.put(Objects::lock().add(object))?)
}

/// The value of an attribute, of which the caller says how long it is.
fn value(bytes: Array<u8>, len: usize) -> Result<Vec<u8>> {
    Ok(bytes.items(len)?)
}

api! {
    cublasLtCreate(handle: Out<u64>) {
        let gpu = context::current(Machine::get()?)?;
        put(handle, Object::Library { gpu })
    }

    cublasLtDestroy(handle: u64) {
        Objects::lock().remove(handle, Kind::Library)
    }

    cublasLtMatmulDescCreate(description: Out<u64>, compute: u32, scale: u32) {
        put(description, Object::Operation(objects::Operation::new(compute, Data::new(scale)?)))
    }

    cublasLtMatmulDescDestroy(description: u64) {
        Objects::lock().remove(description, Kind::Operation)
    }

    cublasLtMatmulDescSetAttribute(description: u64, which: u32, bytes: Array<u8>, len: usize) {
        let value = value(bytes, len)?;
        Objects::lock().operation(description)?.set(which, &value)
    }

    cublasLtMatrixLayoutCreate(layout: Out<u64>, data: u32, rows: u64, cols: u64, ld: i64) {
        put(layout, Object::Layout(objects::Layout::new(Data::new(data)?, rows, cols, ld)?))
    }

    cublasLtMatrixLayoutDestroy(layout: u64) {
        Objects::lock().remove(layout, Kind::Layout)
    }

    cublasLtMatrixLayoutSetAttribute(layout: u64, which: u32, bytes: Array<u8>, len: usize) {
        let value = value(bytes, len)?;
        Objects::lock().layout(layout)?.set(which, &value)
    }

    cublasLtMatmulPreferenceCreate(preference: Out<u64>) {
        put(preference, Object::Preference(objects::Preference::default()))
    }

    cublasLtMatmulPreferenceDestroy(preference: u64) {
        Objects::lock().remove(preference, Kind::Preference)
    }

    cublasLtMatmulPreferenceSetAttribute(preference: u64, which: u32, bytes: Array<u8>, len: usize) {
        let value = value(bytes, len)?;
        Objects::lock().preference(preference)?.set(which, &value)
    }

    cublasLtMatmulAlgoGetHeuristic(
        handle: u64,
        description: u64,
        a: u64,
        b: u64,
        c: u64,
        d: u64,
        preference: u64,
        asked: i32,
        results: Out<Heuristic>,
        found: Out<i32>,
    ) {
        let mut objects = Objects::lock();
        objects.library(handle)?;
        if asked < 1 {
            return Err(Status::INVALID_VALUE);
        }
        let problem = Problem::new(&mut objects, description, [a, b, c, d])?;
        if problem.is_rare() {
            // No finding: a program asks, and has another way.
            found.put(0)?;
            return Err(Status::NOT_SUPPORTED);
        }
        let given = objects.operation(description)?.given;
        let algorithm = problem.algorithm(objects.preference(preference)?, given);
        found.put(1)?;
        Ok(results.put(Heuristic {
            workspace: algorithm.workspace(),
            algorithm,
            state: 0,
            waves: 1.0,
            reserved: [0; 4],
        })?)
    }

    cublasLtMatmul(
        handle: u64,
        description: u64,
        alpha: *const c_void,
        a: u64,
        a_layout: u64,
        b: u64,
        b_layout: u64,
        beta: *const c_void,
        c: u64,
        c_layout: u64,
        d: u64,
        d_layout: u64,
        algorithm: Array<Algorithm>,
        workspace: u64,
        bytes: usize,
        stream: Handle,
    ) {
        let machine = Machine::get()?;
        let (gpu, problem, given) = {
            let mut objects = Objects::lock();
            let gpu = objects.library(handle)?;
            let problem = Problem::new(&mut objects, description, [a_layout, b_layout, c_layout, d_layout])?;
            (gpu, problem, objects.operation(description)?.given)
        };
        if algorithm.is_null() {
            return Err(wrong("cublasLtMatmul without an algorithm is not simulated.".into(), Status::NOT_SUPPORTED));
        }
        let algorithm = algorithm.item(0)?;
        let factors = [problem.factor(alpha as u64)?, problem.factor(beta as u64)?];
        let product = Product::new(problem, algorithm, factors, [a, b, c, d], given, (workspace, bytes))?;
        let mut state = machine.lock();
        let stream = handles::stream(machine, &mut state, stream)?;
        if state.streams[stream].gpu != gpu {
            let sentence = format!("cublasLtMatmul of a handle of GPU {gpu} is called with {}.", state.name(stream));
            return Err(wrong(sentence, Status::INVALID_VALUE));
        }
        machine.report.count(Count::Launches);
        let work = Work::Custom(Box::new(product));
        machine.refuse_stale(&mut state, gpu, &work)?;
        drop(machine.submit(state, stream, work)?);
        Ok(())
    }
}

/// `cublasLtGetVersion` of cuBLASLt: 13.0.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetVersion() -> usize {
    130_000
}
