//! [`Work`]: an operation on its way. It owns its tensors until it is waited for.

use crate::backends::Together;
use crate::error::Result;
use crate::group::Ticket;
use phalanx_tensor::Tensor;
use smallvec::SmallVec;
use std::fmt;
use std::marker::PhantomData;

/// The tensors of a call: mostly one.
pub type Tensors = SmallVec<[Tensor; 1]>;

/// Where the calls of a work are on record.
pub(crate) type Tickets = SmallVec<[Ticket; 1]>;

/// A backend's side of a [`Work`].
///
/// Dropping it without [`wait`](Pending::wait) abandons it: this rank wants nothing of the operation any more, which the
/// group finishes all the same. It must be sound at any time, while others still copy from its buffers and on a thread
/// that unwinds, and it must not block. What the rank would have got is freed when the operation is done, at the
/// latest at the rank's next call after that. If the rank ends its program well before others have come to the
/// operation, the world fails with [`Error::Abandoned`](crate::Error::Abandoned).
pub trait Pending: Send {
    /// Does a bounded share of what is left to do, without blocking. Returns whether
    /// [`wait`](Pending::wait) would return at once.
    ///
    /// # Errors
    /// The group's failure, which `wait` would give.
    fn poll(&mut self) -> Result<bool>;

    /// Blocks until the operation is done, and returns what this rank gets out of it, in the order of the call.
    ///
    /// # Errors
    /// The group's failure, at the latest when the deadline has passed.
    fn wait(self: Box<Self>) -> Result<Tensors>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for () {}
    impl Sealed for super::Tensor {}
    impl Sealed for Option<super::Tensor> {}
    impl Sealed for Vec<super::Tensor> {}
}

/// What an operation gives: nothing, a tensor, a tensor on one rank only, or several.
pub trait Outcome: sealed::Sealed {
    #[doc(hidden)]
    fn from_backend(tensors: Tensors) -> Self;
}

impl Outcome for () {
    fn from_backend(_: Tensors) {}
}

impl Outcome for Option<Tensor> {
    fn from_backend(mut tensors: Tensors) -> Self {
        tensors.pop()
    }
}

impl Outcome for Tensor {
    fn from_backend(mut tensors: Tensors) -> Self {
        let tensor = tensors.pop();
        tensor.expect("check.rs has asked the backend for an output on every rank")
    }
}

impl Outcome for Vec<Tensor> {
    fn from_backend(tensors: Tensors) -> Self {
        tensors.into_vec()
    }
}

/// An operation that was issued and not yet waited for.
///
/// Tensors go in by value and come back from [`wait`](Work::wait), so nothing can be touched while
/// it is in flight.
///
/// Dropping a work waits for nobody, so that a program may leave by `?` at any time. The group finishes the operation,
/// and the other ranks get from it what they would have got; an error shows in this rank's next call. A program that
/// returns well must not leave works behind: where it has dropped one to which others are still to come, the world
/// fails with [`Error::Abandoned`](crate::Error::Abandoned). (What all have come to is done by those who are there.)
///
/// Works may be waited for in any order, and on another thread than the one that issued them.
#[must_use = "an operation is finished by `wait`"]
pub struct Work<T: Outcome> {
    pending: Box<dyn Pending>,
    tickets: Tickets,
    gives: PhantomData<fn() -> T>,
}

impl<T: Outcome> Work<T> {
    /// Wraps a backend's operation. The backend gives a tensor on every rank where `T` is one, and no more than `T` holds.
    pub(crate) fn new(pending: Box<dyn Pending>, tickets: Tickets) -> Work<T> {
        Work {
            pending,
            tickets,
            gives: PhantomData,
        }
    }

    /// Several works as one, which gives the results of all, in order: no more than `T` holds.
    pub(crate) fn all(works: impl IntoIterator<Item = Work<T>>) -> Work<T> {
        let mut tickets = Tickets::new();
        let mut pending = Vec::new();
        for work in works {
            tickets.extend(work.tickets);
            pending.push(work.pending);
        }
        Work::new(Box::new(Together(pending)), tickets)
    }

    /// Blocks until the operation is done.
    ///
    /// # Errors
    /// The group's failure: a divergence, a rank that returned or panicked, or the deadline, which
    /// starts to run when `wait` is called.
    pub fn wait(mut self) -> Result<T> {
        let outputs = self.pending.wait()?;
        std::mem::take(&mut self.tickets)
            .into_iter()
            .for_each(Ticket::done);
        Ok(T::from_backend(outputs))
    }

    /// Whether [`wait`](Work::wait) would return at once.
    ///
    /// Never blocks, but lends a hand: where the other ranks have come, it does one small share of
    /// the data movement (at most some 100 µs). A rank that calls it now and then between two
    /// pieces of its own work finds less to do in `wait`. It need not be called at all.
    ///
    /// # Errors
    /// The group's failure, which [`wait`](Work::wait) would give.
    pub fn poll(&mut self) -> Result<bool> {
        self.pending.poll()
    }
}

impl<T: Outcome> fmt::Debug for Work<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Work<{}>", std::any::type_name::<T>())
    }
}
