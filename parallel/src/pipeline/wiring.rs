//! Which channel each transfer of a plan goes through.
//!
//! A channel is an ordered pair of ranks. **Messages of a channel arrive in the order in which they
//! were sent**, as in MPI and NCCL; a plan must not count on tags to sort them.

use std::collections::HashMap;

use super::{Action, Kind, Schedule};

/// Marks an edge inside one rank.
const NONE: u32 = u32::MAX;

/// The channels of a plan.
pub(crate) struct Wiring {
    /// By edge: the channel of activations, and that of gradients.
    by_edge: Vec<[u32; 2]>,
    ends: Vec<(u16, u16)>,
}

impl Wiring {
    pub(crate) fn new(schedule: &Schedule) -> Self {
        let mut ids = HashMap::new();
        let mut ends = Vec::new();
        let mut id = |src: usize, dst: usize| {
            if src == dst {
                return NONE;
            }
            let pair = (src as u16, dst as u16);
            *ids.entry(pair).or_insert_with(|| {
                ends.push(pair);
                ends.len() as u32 - 1
            })
        };
        let by_edge = schedule
            .graph()
            .edges()
            .map(|(from, to)| {
                let (a, b) = (schedule.rank_of(from), schedule.rank_of(to));
                [id(a, b), id(b, a)]
            })
            .collect();
        Self { by_edge, ends }
    }

    /// How many channels there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The sending and the receiving rank of a channel.
    pub(crate) fn ends(&self, channel: usize) -> (usize, usize) {
        let (src, dst) = self.ends[channel];
        (usize::from(src), usize::from(dst))
    }

    /// The channel of an edge's activations (`direction` 0) or gradients (1); `None` inside a rank.
    pub(crate) fn channel(&self, edge: usize, direction: usize) -> Option<usize> {
        let id = self.by_edge[edge][direction];
        (id != NONE).then_some(id as usize)
    }

    /// The edge and the direction of a transfer; `None` where the stages are not joined.
    pub(crate) fn route(schedule: &Schedule, action: Action) -> Option<(usize, usize)> {
        let (from, to, direction) = match action.kind() {
            Kind::SendForward => (action.stage(), action.peer(), 0),
            Kind::RecvForward => (action.peer(), action.stage(), 0),
            Kind::SendBackward => (action.peer(), action.stage(), 1),
            Kind::RecvBackward => (action.stage(), action.peer(), 1),
            _ => return None,
        };
        Some((schedule.graph().edge(from, to)?, direction))
    }

    /// The channel of a transfer, where there is one.
    pub(crate) fn channel_of(&self, schedule: &Schedule, action: Action) -> Option<usize> {
        let (edge, direction) = Self::route(schedule, action)?;
        self.channel(edge, direction)
    }
}
