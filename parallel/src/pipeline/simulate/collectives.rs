//! The collectives of a plan in time: they run beside the compute, and the step ends when they have.

use std::collections::HashMap;

use super::{Simulator, Span};
use crate::pipeline::Action;

/// What is under way.
pub(super) struct Collectives {
    /// By rank: when what averages over the replicas is free again. It does one stage after the other.
    free: Vec<f64>,
    /// By stage: when its gradients are averaged; 0 where no action does that.
    averaged: Vec<f64>,
    /// Exchanges that only one of both ranks has begun, by their stages: that rank, and which of its spans it is.
    half: HashMap<(usize, usize), (usize, usize)>,
}

impl Collectives {
    pub(super) fn new(ranks: usize, stages: usize) -> Collectives {
        Collectives {
            free: vec![0.0; ranks],
            averaged: vec![0.0; stages],
            half: HashMap::new(),
        }
    }
}

impl Simulator<'_> {
    /// `REDUCE_GRAD`: the rank begins it, and goes on.
    pub(super) fn reduce(&mut self, rank: usize, action: Action) {
        let stage = action.stage();
        let start = self.clock[rank].max(self.collectives.free[rank]);
        let end = start + self.costs.stages[stage].reduce;
        self.collectives.free[rank] = end;
        self.collectives.averaged[stage] = end;
        self.spans[rank].push(Span { action, start, end });
    }

    /// `REDUCE_TIED`: the rank waits until its stage's gradients are averaged, begins the exchange, and goes on. The two
    /// stages may be on one rank: then nothing is exchanged.
    pub(super) fn reduce_tied(&mut self, rank: usize, action: Action) {
        let ends = [action.stage(), action.peer()];
        let own = ends
            .into_iter()
            .filter(|&s| self.schedule.rank_of(s) == rank);
        let averaged = own.map(|stage| self.collectives.averaged[stage]);
        let start = averaged.fold(self.clock[rank], f64::max);
        self.clock[rank] = start;
        let mut end = start;
        if ends.iter().any(|&s| self.schedule.rank_of(s) != rank) {
            let pair = (ends[0].min(ends[1]), ends[0].max(ends[1]));
            match self.collectives.half.remove(&pair) {
                None => {
                    let place = (rank, self.spans[rank].len());
                    self.collectives.half.insert(pair, place);
                }
                Some((other, at)) => {
                    let time = ends.map(|s| self.costs.stages[s].tied);
                    let theirs = &mut self.spans[other][at];
                    end = start.max(theirs.start) + time[0].max(time[1]);
                    theirs.end = end;
                }
            }
        }
        self.spans[rank].push(Span { action, start, end });
    }
}
