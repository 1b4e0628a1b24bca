//! The two operations of a call in its stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::buffer;
use super::call::Call;
use super::meeting::Meeting;
use crate::device::code::Code;
use crate::device::machine::Machine;
use crate::device::operation::{Custom, Failure};
use crate::exec::{Memory, Touched};

/// A call with its buffers.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What is called.
    pub call: Call,
    /// The send buffer; it means nothing where nothing is read.
    pub send: u64,
    /// The receive buffer; it means nothing where nothing is written.
    pub receive: u64,
}

/// One call among those that are made together.
#[derive(Clone)]
pub struct Item {
    /// The call.
    pub request: Request,
    /// Where the ranks meet.
    pub meeting: Arc<Meeting>,
    /// Which party of the meeting this rank is.
    pub party: usize,
}

/// Calls of one communicator that are made together on one stream.
#[derive(Clone)]
pub struct Batch {
    /// The calls.
    pub items: Arc<[Item]>,
    /// The rank, and how many there are.
    pub rank: usize,
    /// How many ranks there are.
    pub ranks: usize,
    /// Whether the communicator was aborted.
    pub aborted: Arc<AtomicBool>,
}

impl Batch {
    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    fn name(&self) -> Arc<str> {
        let first = self.items.first();
        let name = first.map_or("a group", |item| item.request.call.kind.name());
        match self.items.len() {
            1 => format!("{name} of rank {}", self.rank).into(),
            more => format!(
                "a group of {more} calls from {name} on, of rank {}",
                self.rank
            )
            .into(),
        }
    }

    fn who(&self, call: &Call) -> String {
        format!("{} of rank {}", call.kind.name(), self.rank)
    }

    fn reads(&self, call: &Call) -> u64 {
        call.reads(self.rank, self.ranks)
    }

    fn writes(&self, call: &Call) -> u64 {
        call.writes(self.rank, self.ranks)
    }
}

/// The first operation: it gives what the rank has.
pub struct Post(pub Batch);

/// The second operation: it ends the calls when all have given.
pub struct Finish(pub Batch);

/// Whether all have given what a meeting needs, also those in other processes.
fn is_complete(meeting: &Meeting) -> bool {
    if meeting.is_complete() {
        return true;
    }
    for sentence in meeting.look() {
        if let Some(machine) = Machine::peek().filter(|machine| !machine.settings.nccl_hangs) {
            machine.report.finding(&sentence);
        }
    }
    meeting.is_complete()
}

impl Custom for Post {
    fn name(&self) -> Arc<str> {
        self.0.name()
    }

    fn addresses(&self) -> Vec<u64> {
        let items = self.0.items.iter();
        let used = items.filter(|item| self.0.reads(&item.request.call) > 0);
        used.map(|item| item.request.send).collect()
    }

    fn run(&mut self, memory: &dyn Memory) -> Result<Vec<Touched>, Failure> {
        let mut touched = Vec::new();
        for item in self.0.items.iter() {
            if self.0.is_aborted() {
                break;
            }
            let Request { call, send, .. } = &item.request;
            let (who, len) = (self.0.who(call), self.0.reads(call));
            let bytes = buffer::read(memory, &who, *send, len, &mut touched)?;
            let given = item.meeting.give(item.party, bytes);
            // After an abort the others may have cleared away what they had in common.
            if let Err(message) = given
                && !self.0.is_aborted()
            {
                return Err(Failure {
                    code: Code::LAUNCH_FAILED,
                    message,
                });
            }
        }
        Ok(touched)
    }
}

impl Custom for Finish {
    fn name(&self) -> Arc<str> {
        let mut open = self
            .0
            .items
            .iter()
            .filter(|item| !item.meeting.is_complete());
        match open.next() {
            Some(item) => format!("{} ({})", self.0.name(), item.meeting.missing()).into(),
            None => self.0.name(),
        }
    }

    fn ready(&self) -> bool {
        self.0.is_aborted() || {
            // All are looked at: the sentence about one must not wait for another one.
            let items = self.0.items.iter();
            let open = items.filter(|item| !is_complete(&item.meeting));
            open.count() == 0
        }
    }

    fn waits_for_others(&self) -> bool {
        true
    }

    fn addresses(&self) -> Vec<u64> {
        let items = self.0.items.iter();
        let used = items.filter(|item| self.0.writes(&item.request.call) > 0);
        used.map(|item| item.request.receive).collect()
    }

    fn run(&mut self, memory: &dyn Memory) -> Result<Vec<Touched>, Failure> {
        let mut touched = Vec::new();
        // As on a card, an abort may come too late for some of the calls.
        for item in self.0.items.iter() {
            let Request { call, receive, .. } = &item.request;
            let (who, len) = (self.0.who(call), self.0.writes(call));
            if len == 0 {
                continue;
            }
            if item.meeting.is_complete() {
                let bytes = item.meeting.result(self.0.rank, call);
                buffer::write(memory, &who, *receive, &bytes, &mut touched)?;
            } else {
                let poison = vec![0xff; len as usize];
                buffer::write(memory, &who, *receive, &poison, &mut touched)?;
            }
        }
        Ok(touched)
    }
}
