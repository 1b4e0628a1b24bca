//! [`Buffers`]: the buffers of a module, which travel together from one rank to all.

use crate::Result;
use crate::reduce::bucket::{self, Bucket, Entry, Limits};
use crate::reduce::flat::{self, Flat, Marks};
use phalanx_autograd::Buffer;
use phalanx_comm::{ProcessGroup, Work};
use phalanx_tensor::Tensor;
use std::sync::{Mutex, PoisonError};

/// A module's buffers, and how they are laid out to travel.
pub(crate) struct Buffers {
    pub(crate) named: Vec<(String, Buffer)>,
    plan: Vec<Bucket>,
    /// The memory of each bucket, between two steps.
    flats: Mutex<Vec<Option<Flat>>>,
}

/// Buffers on their way.
pub(crate) struct Broadcast<'a> {
    buffers: &'a Buffers,
    parts: Vec<(Work<Tensor>, Marks)>,
}

impl Buffers {
    pub(crate) fn new(named: Vec<(String, Buffer)>) -> Buffers {
        let entries: Vec<Entry> = named.iter().map(|(_, b)| Entry::of_buffer(b)).collect();
        let everything = Limits {
            first: usize::MAX,
            cap: usize::MAX,
            single: usize::MAX,
        };
        let order: Vec<usize> = (0..named.len()).collect();
        Buffers {
            plan: bucket::plan(&entries, &order, everything),
            named,
            flats: Mutex::default(),
        }
    }

    /// Sends those of rank `root` to all ranks.
    pub(crate) fn send(&self, group: &dyn ProcessGroup, root: usize) -> Result<Broadcast<'_>> {
        let mut kept = self.take_flats().into_iter();
        let send = |bucket: &Bucket| {
            let buffer = |i: usize| &self.named[i].1;
            let device = buffer(bucket.slots[0].param).device();
            let (mut flat, _) = Flat::take_back(kept.next().flatten(), bucket, device)?;
            for (s, slot) in bucket.slots.iter().enumerate() {
                buffer(slot.param).read(|value| flat.write(s, slot, value, 1.0))?;
            }
            let (memory, marks) = flat.leave(bucket, |_| false)?;
            Ok((group.broadcast(memory, root)?, marks))
        };
        Ok(Broadcast {
            parts: self.plan.iter().map(send).collect::<Result<_>>()?,
            buffers: self,
        })
    }

    fn take_flats(&self) -> Vec<Option<Flat>> {
        let mut flats = self.flats.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut flats)
    }
}

impl Broadcast<'_> {
    /// Waits for them, and writes them.
    pub(crate) fn receive(self) -> Result<()> {
        let mut flats = Vec::with_capacity(self.parts.len());
        for ((work, marks), bucket) in self.parts.into_iter().zip(&self.buffers.plan) {
            let memory = work.wait()?;
            for slot in &bucket.slots {
                let (_, buffer) = &self.buffers.named[slot.param];
                buffer.set(flat::view(&memory, slot.offset, buffer.shape())?)?;
            }
            flats.push(Some(marks.arrive(bucket, memory, |_| true)));
        }
        let kept = &self.buffers.flats;
        *kept.lock().unwrap_or_else(PoisonError::into_inner) = flats;
        Ok(())
    }
}
