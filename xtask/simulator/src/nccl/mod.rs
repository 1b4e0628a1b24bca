//! Stands in for `libnccl`: collectives, sends and receives between the simulated GPUs, as operations of their streams.
//!
//! A call becomes two operations of its stream: the first one posts what the rank gives, and the second one ends the call
//! when all ranks that take part have posted. The host is not held. A call outside a group is a group of one.
//!
//! It takes what NCCL 2.28 documents, and is strict: ranks whose calls do not match, calls that wait for each other in a
//! circle, buffers that overlap, a stream of another GPU, two ranks on one GPU, a communicator that two threads use at
//! once or that is gone, and one whose last call is still in progress are findings. What would hang on a card hangs here
//! too, until the communicator is aborted; the outputs then hold `0xff`.
//!
//! Ranks are threads of one process, or are spread over processes, which meet in shared memory. Calls that wait for each
//! other in a circle are not found between processes: they hang, until a wait has lasted so long that it is a deadlock.
//!
//! A collective may add up in any order of its ranks, which the seed decides; all ranks get the same bits.
//!
//! A communicator that is not blocking may answer any launch with `ncclInProgress`. The seed decides; then nothing lies in
//! the stream before `ncclCommGetAsyncError` has said `ncclSuccess`.

mod buffer;
mod call;
mod comm;
mod gather;
mod group;
mod launch;
mod meeting;
mod order;
mod post;
mod reduce;
mod shared;

pub mod calls;
pub mod life;
pub mod unsupported;

use crate::device::code::Code;
use crate::device::machine::Machine;

/// What a call returns when it does not succeed: an `ncclResult_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u32);

#[allow(missing_docs)] // the names are the library's
impl Status {
    pub const UNHANDLED_CUDA_ERROR: Status = Status(1);
    pub const SYSTEM_ERROR: Status = Status(2);
    pub const INVALID_ARGUMENT: Status = Status(4);
    pub const INVALID_USAGE: Status = Status(5);
    pub const REMOTE_ERROR: Status = Status(6);
    pub const IN_PROGRESS: Status = Status(7);
}

/// A result of a call.
pub type Result<T> = std::result::Result<T, Status>;

impl From<Code> for Status {
    fn from(code: Code) -> Status {
        match code {
            Code::INVALID_VALUE => Status::INVALID_ARGUMENT,
            _ => Status::UNHANDLED_CUDA_ERROR,
        }
    }
}

/// Reports what is wrong with a call.
fn wrong(sentence: &str, status: Status) -> Status {
    match Machine::peek() {
        Some(machine) => machine.report.finding(sentence),
        None => eprintln!("simulated device: {sentence}"),
    }
    life::set_last(sentence);
    status
}

/// Functions of the interface: each body gives a [`Result`], and its error becomes the number that comes back.
macro_rules! api {
    ($($name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        #[doc = concat!("`", stringify!($name), "` of NCCL.")]
        ///
        /// # Safety
        /// As in the library's documentation: pointers point to what it says, or are null.
        #[unsafe(no_mangle)]
        #[allow(clippy::too_many_arguments)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> u32 {
            let call = || -> $crate::nccl::Result<()> { $body };
            match call() {
                Ok(()) => 0,
                Err(status) => status.0,
            }
        }
    )*};
}
use api;
