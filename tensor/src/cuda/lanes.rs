//! The three lanes of a card, and the order between them.
//!
//! A lane is a stream. Operations on one lane run in the order in which they were issued. Each has a
//! number, and a [`Stamp`] names one: a storage remembers the stamps of its last write and of the
//! reads since, and who wants to read or write it on another lane first lets that lane wait.
//!
//! 1. An event that was recorded after operation `n` of a lane is passed only when all its operations
//!    up to `n` are done.
//! 2. `seen[a][b]` is the number of the last operation of lane `b` that lane `a` has waited for. It
//!    only grows, so a wait for an earlier one needs no event.
//! 3. An operation has its number from its beginning ([`Lanes::next`]), and counts as issued when all of
//!    it is on the stream ([`Lanes::issued`]). An event that is recorded in between stands for the
//!    operation before it, so nobody takes it for the end of one whose kernels are yet to come.
//! 4. Copy and comm lanes record an event after every operation, so that a wait for one does not wait
//!    for those that came after it. The compute lane records one only when somebody asks.
#![allow(unsafe_code)]

use super::gpu::Handle;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUevent_flags, CUresult};
use std::collections::VecDeque;
use std::sync::Arc;

/// One of the streams of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Kernels.
    Compute,
    /// Transfers between the host and the card, and from card to card.
    Copy,
    /// Collectives.
    Comm,
}

pub(crate) const LANES: usize = 3;

/// An operation that was issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) lane: Lane,
    pub(crate) number: u64,
}

/// Events that a lane keeps, at most. A wait for an operation whose own event is no longer kept takes
/// the next one, and so waits for a little more.
const EVENTS: usize = 64;

/// An event. It is recorded anew only when nobody but its lane holds it, so that it stands for one operation as long as
/// somebody asks.
#[derive(Debug)]
pub(super) struct Event(Handle<sys::CUevent>);

impl Event {
    /// One that is recorded faster, since it has no clock.
    fn new() -> Result<Arc<Event>, DriverError> {
        Event::with(CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn with(flags: CUevent_flags) -> Result<Arc<Event>, DriverError> {
        let event = result::event::create(flags)?;
        Ok(Arc::new(Event(Handle(event))))
    }

    pub(super) fn handle(&self) -> sys::CUevent {
        self.0.0
    }

    /// Whether everything before it is done, without waiting and without the issue lock.
    pub(super) fn is_passed(&self) -> Result<bool, DriverError> {
        // SAFETY: the event lives as long as `self`; any thread may ask.
        match unsafe { result::event::query(self.handle()) } {
            Ok(()) => Ok(true),
            Err(DriverError(CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Holds the calling thread until everything before it is done.
    pub(super) fn wait(&self) -> Result<(), DriverError> {
        // SAFETY: as above.
        unsafe { result::event::synchronize(self.handle()) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if super::driver::forked().is_none() {
            // SAFETY: nobody else has the event; the driver ends it when it is passed.
            let _ = unsafe { result::event::destroy(self.handle()) };
        }
    }
}

#[derive(Debug)]
struct Stream {
    stream: Handle<sys::CUstream>,
    /// The number of the last operation that has begun.
    begun: u64,
    /// The number of the last operation that is on the stream as a whole.
    issued: u64,
    /// Recorded events, by the number of the operation that each one follows.
    events: VecDeque<(u64, Arc<Event>)>,
}

/// The lanes of one card. Its owner has the card's context current.
#[derive(Debug)]
pub(crate) struct Lanes {
    streams: [Stream; LANES],
    seen: [[u64; LANES]; LANES],
}

impl Lanes {
    pub(super) fn new() -> Result<Lanes, DriverError> {
        let (least, greatest) = result::stream::get_priority_range()?;
        let make = |priority| {
            let kind = result::stream::StreamKind::NonBlocking;
            Ok(Stream {
                stream: Handle(result::stream::create_with_priority(kind, priority)?),
                begun: 0,
                issued: 0,
                events: VecDeque::with_capacity(EVENTS),
            })
        };
        // Transfers and collectives first: kernels wait for them, and they use few of the card's
        // processors.
        Ok(Lanes {
            streams: [make(least)?, make(greatest)?, make(greatest)?],
            seen: [[0; LANES]; LANES],
        })
    }

    pub(super) fn stream(&self, lane: Lane) -> sys::CUstream {
        self.streams[lane as usize].stream.0
    }

    /// The stamp of the operation that begins now. [`issued`](Lanes::issued) ends it.
    pub(super) fn next(&mut self, lane: Lane) -> Stamp {
        let stream = &mut self.streams[lane as usize];
        stream.begun += 1;
        let number = stream.begun;
        Stamp { lane, number }
    }

    /// The operation `stamp` has been issued. Whoever makes one holds the issue lock until then, so that those of a
    /// lane end in the order in which they begin.
    pub(super) fn issued(&mut self, stamp: Stamp) -> Result<(), DriverError> {
        let stream = &mut self.streams[stamp.lane as usize];
        stream.issued = stamp.number;
        match stamp.lane {
            Lane::Compute => Ok(()),
            Lane::Copy | Lane::Comm => self.record(stamp.lane).map(drop),
        }
    }

    /// Whether the operation `stamp` is on its stream as a whole. Nobody waits for one that is not.
    pub(super) fn is_issued(&self, stamp: Stamp) -> bool {
        stamp.number <= self.streams[stamp.lane as usize].issued
    }

    /// What is issued next on `lane` runs after the operation `stamp` anyway.
    pub(super) fn has_seen(&self, lane: Lane, stamp: Stamp) -> bool {
        lane == stamp.lane || self.seen[lane as usize][stamp.lane as usize] >= stamp.number
    }

    /// Lets what is issued next on `lane` run after the operation `stamp`.
    pub(super) fn wait(&mut self, lane: Lane, stamp: Stamp) -> Result<(), DriverError> {
        if self.has_seen(lane, stamp) {
            return Ok(());
        }
        let (to, from) = (lane as usize, stamp.lane as usize);
        let (number, event) = self.event(stamp)?;
        let event = event.handle();
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: stream and event belong to the card, whose context is current.
        unsafe { result::stream::wait_event(self.stream(lane), event, flags) }?;
        self.seen[to][from] = number;
        Ok(())
    }

    /// An event that is passed when the operation `stamp` is done, for the host to wait for.
    pub(super) fn passed(&mut self, stamp: Stamp) -> Result<Arc<Event>, DriverError> {
        self.event(stamp).map(|(_, event)| event)
    }

    /// As [`passed`](Lanes::passed), of the last operation of a lane; `None` where there never was one.
    pub(super) fn last(&mut self, lane: Lane) -> Result<Option<Arc<Event>>, DriverError> {
        match self.streams[lane as usize].issued {
            0 => Ok(None),
            number => self.passed(Stamp { lane, number }).map(Some),
        }
    }

    /// An event that is passed when everything is done that is on a lane by now, also of the operation in
    /// the making: for a lane of another card to wait for.
    pub(super) fn mark(&mut self, lane: Lane) -> Result<Arc<Event>, DriverError> {
        self.record(lane).map(|(_, event)| event)
    }

    /// An event with a clock, which nobody else records, behind everything that is on a lane by now.
    pub(super) fn timed(&mut self, lane: Lane) -> Result<Arc<Event>, DriverError> {
        let event = Event::with(CUevent_flags::CU_EVENT_DEFAULT)?;
        // SAFETY: stream and event belong to the card, whose context is current.
        unsafe { result::event::record(event.handle(), self.stream(lane)) }?;
        Ok(event)
    }

    /// The first kept event that follows `stamp`, or a new one.
    fn event(&mut self, stamp: Stamp) -> Result<(u64, Arc<Event>), DriverError> {
        debug_assert!(
            self.is_issued(stamp),
            "a wait for an operation in the making"
        );
        let events = &self.streams[stamp.lane as usize].events;
        let at = events.partition_point(|(number, _)| *number < stamp.number);
        match events.get(at) {
            Some((number, event)) => Ok((*number, Arc::clone(event))),
            None => self.record(stamp.lane),
        }
    }

    /// Records an event after the last operation of a lane.
    fn record(&mut self, lane: Lane) -> Result<(u64, Arc<Event>), DriverError> {
        let stream = &mut self.streams[lane as usize];
        let oldest = match stream.events.len() < EVENTS {
            true => None,
            false => stream.events.pop_front(),
        };
        // Waits of lanes that were issued for it are not touched by recording it anew.
        let free = oldest.filter(|(_, event)| Arc::strong_count(event) == 1);
        let event = match free {
            Some((_, event)) => event,
            None => Event::new()?,
        };
        // SAFETY: stream and event belong to the card, whose context is current.
        unsafe { result::event::record(event.handle(), stream.stream.0) }?;
        stream.events.push_back((stream.issued, Arc::clone(&event)));
        Ok((stream.issued, event))
    }

    /// Whether the operation `stamp` is done, without waiting.
    pub(super) fn done(&mut self, stamp: Stamp) -> Result<bool, DriverError> {
        if !self.is_issued(stamp) {
            return Ok(false);
        }
        self.event(stamp)?.1.is_passed()
    }

    /// Events that are passed when everything that was issued is done.
    pub(super) fn all_passed(&mut self) -> Result<Vec<Arc<Event>>, DriverError> {
        let lanes = [Lane::Compute, Lane::Copy, Lane::Comm];
        lanes
            .into_iter()
            .map(|lane| {
                let number = self.streams[lane as usize].issued;
                self.passed(Stamp { lane, number })
            })
            .collect()
    }
}
