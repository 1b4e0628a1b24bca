//! [`Collective`]: the door for engines that carry tensors of a card to other ranks. Their library puts its own work on
//! the card's comm lane; this orders it with everything else on the card, and says how far the card has come with it.

use super::gpu::{Gpu, gpu};
use super::issue::place;
use super::lanes::{Event, Lane};
use crate::storage::{Memory, Storage};
use crate::{Device, Error, Result, Tensor};
use smallvec::SmallVec;
use std::ffi::c_void;
use std::sync::Arc;

/// Work of a library on the comm lane of a card, in the making: everything that it waits for is on the lane before it.
///
/// What the library issues until [`end`](Collective::end) counts as one operation, which reads and writes the tensors
/// that were given. The card's issue lock is not held meanwhile, since a library may wait in its calls for other ranks;
/// so whoever has a communicator makes one of these at a time for it. Where it is dropped, that counts as its end.
#[derive(Debug)]
pub struct Collective {
    op: &'static str,
    gpu: &'static Gpu,
    stream: *mut c_void,
    /// Passed when the lane has come to what follows.
    reached: Arc<Event>,
    reads: SmallVec<[Arc<Storage>; 2]>,
    writes: SmallVec<[Arc<Storage>; 2]>,
    has_ended: bool,
}

/// An operation on the comm lane of a card that was issued as a whole.
#[derive(Debug, Clone)]
pub struct Issued {
    op: &'static str,
    gpu: &'static Gpu,
    reached: Arc<Event>,
    done: Arc<Event>,
}

impl Collective {
    /// Lets the comm lane of `device`, a card, wait for whoever writes `reads`, and for whoever reads or writes
    /// `writes`. All of them are contiguous, and nobody else holds what is written. A tensor that is read and written
    /// is in both lists.
    ///
    /// # Errors
    /// A tensor is not on the card, or has lost its last write; the card's failures.
    pub fn begin(
        op: &'static str,
        device: Device,
        reads: &[&Tensor],
        writes: &[&Tensor],
    ) -> Result<Collective> {
        let Device::Cuda(ordinal) = device else {
            return Err(Error::InvalidArgument {
                op,
                reason: format!("{device} is no card"),
            });
        };
        for tensor in reads.iter().chain(writes) {
            if tensor.device() != device {
                let (lhs, rhs) = (device, tensor.device());
                return Err(Error::DeviceMismatch { op, lhs, rhs });
            }
        }
        for tensor in reads {
            tensor.storage().expect_written(op)?;
        }
        let is_read = |tensor: &Tensor| {
            let same = |read: &&Tensor| Arc::ptr_eq(read.shared(), tensor.shared());
            reads.iter().any(same)
        };
        let gpu = gpu(op, ordinal)?;
        let mut issuing = gpu.lock();
        let lanes = issuing.lanes();
        let before = lanes.next(Lane::Comm);
        let waits = || {
            for tensor in reads {
                uses(tensor.shared()).before_read(lanes, Lane::Comm)?;
            }
            for tensor in writes {
                uses(tensor.shared()).before_write(lanes, Lane::Comm)?;
            }
            Ok(())
        };
        let waited: std::result::Result<(), _> = { waits }();
        // An operation of its own, without work, for the sake of its event.
        let ended = lanes.issued(before).and_then(|()| lanes.passed(before));
        let reached = waited
            .and(ended)
            .map_err(|e| gpu.failed(op, "waiting for an operand", e))?;
        let stream = lanes.stream(Lane::Comm).cast();
        for tensor in writes {
            if !is_read(tensor) {
                tensor.storage().rewritten();
            }
            for read in reads {
                tensor.storage().inherits(read.storage());
            }
        }
        let shared = |tensors: &[&Tensor]| tensors.iter().map(|t| Arc::clone(t.shared())).collect();
        Ok(Collective {
            op,
            gpu,
            stream,
            reached,
            reads: shared(reads),
            writes: shared(writes),
            has_ended: false,
        })
    }

    /// The stream on which the library works: a `cudaStream_t`, which is a `CUstream`. The card's context is the calling
    /// thread's.
    pub fn stream(&self) -> *mut c_void {
        self.stream
    }

    /// The address of a tensor's first element on the card; 0 where it has none.
    pub fn address(&self, tensor: &Tensor) -> u64 {
        place(tensor)
    }

    /// Everything is on the stream. Whoever uses the tensors from now on is ordered behind it.
    ///
    /// # Errors
    /// The card's failures.
    pub fn end(mut self) -> Result<Issued> {
        self.close()
    }

    fn close(&mut self) -> Result<Issued> {
        self.has_ended = true;
        let entered = self.gpu.enter(self.op);
        let mut issuing = self.gpu.lock();
        let lanes = issuing.lanes();
        let stamp = lanes.next(Lane::Comm);
        let ended = lanes.issued(stamp).and_then(|()| lanes.passed(stamp));
        self.reads.iter().for_each(|s| on_card(s).read(stamp));
        self.writes.iter().for_each(|s| on_card(s).written(stamp));
        entered?;
        let done = ended.map_err(|e| self.gpu.failed(self.op, "recording an event", e))?;
        Ok(Issued {
            op: self.op,
            gpu: self.gpu,
            reached: Arc::clone(&self.reached),
            done,
        })
    }
}

impl Drop for Collective {
    fn drop(&mut self) {
        if !self.has_ended {
            // Where no event could be recorded, the card has failed, and its next operation says so.
            let _ = self.close();
        }
    }
}

impl Issued {
    /// Whether the lane has come to the operation: all that it waits for on this card is done.
    ///
    /// # Errors
    /// The card's failures.
    pub fn is_reached(&self) -> Result<bool> {
        self.is_past(&self.reached)
    }

    /// Whether the card is done with the operation.
    ///
    /// # Errors
    /// The card's failures.
    pub fn is_done(&self) -> Result<bool> {
        self.is_past(&self.done)
    }

    // The issue lock is not taken: who holds it may be waiting for this lane.
    fn is_past(&self, event: &Event) -> Result<bool> {
        self.gpu.enter(self.op)?;
        event
            .is_passed()
            .map_err(|e| self.gpu.failed(self.op, "asking for its end", e))
    }
}

fn on_card(storage: &Storage) -> &super::CudaStorage {
    match storage.memory() {
        Memory::Cuda(storage) => storage,
        Memory::Cpu(_) => unreachable!("a tensor on a card was expected"),
    }
}

fn uses(storage: &Storage) -> super::memory::Uses {
    on_card(storage).uses()
}
