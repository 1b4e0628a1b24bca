//! Whether a plan is right, by trying every order in which its ranks can run.
//!
//! Written from the meaning of the actions alone and as plainly as possible: it shares nothing with
//! the validator but the plan's type. A plan is right if, from the start, no order of events leads
//! to a wrong step or to ranks that are stuck, and at the end all was done once.

use std::collections::HashSet;

use phalanx_parallel::pipeline::*;

/// How sends behave: `None` is blocking, else so many messages wait on each channel.
pub type Depth = Option<usize>;

struct Oracle<'a> {
    plan: &'a Schedule,
    depth: Depth,
    lowered: bool,
}

enum Step {
    Wrong,
    Wait,
    /// The ranks that advance.
    Go(Vec<usize>),
}

pub fn is_right(plan: &Schedule, depth: Depth) -> bool {
    let lowered = plan
        .ranks()
        .iter()
        .flatten()
        .any(|a| a.kind().is_transfer());
    let oracle = Oracle {
        plan,
        depth,
        lowered,
    };
    let sensible = (0..plan.rank_count())
        .all(|rank| (0..plan.ranks()[rank].len()).all(|at| oracle.sensible(rank, at)));
    sensible && oracle.complete() && oracle.every_order_ends_well()
}

impl Oracle<'_> {
    fn has(&self, rank: usize, before: usize, kind: Kind, stage: usize, mb: usize) -> bool {
        self.plan.ranks()[rank][..before]
            .iter()
            .any(|a| a.kind() == kind && a.stage() == stage && a.microbatch() == mb)
    }

    /// The input gradient of (stage, mb) is computed before this place.
    fn has_gradient(&self, rank: usize, before: usize, stage: usize, mb: usize) -> bool {
        self.has(rank, before, Kind::Input, stage, mb)
            || self.has(rank, before, Kind::Backward, stage, mb)
    }

    fn joined(&self, from: usize, to: usize) -> bool {
        self.plan.graph().edges().any(|edge| edge == (from, to))
    }

    /// Whether an action is right as far as its own rank can tell.
    fn sensible(&self, rank: usize, at: usize) -> bool {
        let list = &self.plan.ranks()[rank];
        let action = list[at];
        let (kind, stage, mb, peer) = (
            action.kind(),
            action.stage(),
            action.microbatch(),
            action.peer(),
        );
        let has = |kind| self.has(rank, at, kind, stage, mb);
        if self.plan.rank_of(stage) != rank
            || mb >= self.plan.microbatches()
            || list[..at].contains(&action)
        {
            return false;
        }
        let away = self.plan.rank_of(peer) != rank;
        match kind {
            Kind::Forward => self.plan.graph().predecessors(stage).iter().all(|&q| {
                let q = usize::from(q);
                if self.plan.rank_of(q) == rank {
                    return self.has(rank, at, Kind::Forward, q, mb);
                }
                !self.lowered
                    || list[..at].contains(&Action::transfer(
                        Kind::RecvForward,
                        stage as u16,
                        q as u16,
                        mb as u16,
                    ))
            }),
            Kind::Input | Kind::Backward => {
                let fresh = !has(Kind::Input) && !has(Kind::Backward) && !has(Kind::Weight);
                fresh
                    && has(Kind::Forward)
                    && self.plan.graph().successors(stage).iter().all(|&t| {
                        let t = usize::from(t);
                        if self.plan.rank_of(t) == rank {
                            return self.has_gradient(rank, at, t, mb);
                        }
                        !self.lowered
                            || list[..at].contains(&Action::transfer(
                                Kind::RecvBackward,
                                stage as u16,
                                t as u16,
                                mb as u16,
                            ))
                    })
            }
            Kind::Weight => has(Kind::Input) && !has(Kind::Backward),
            Kind::SendForward => away && self.joined(stage, peer) && has(Kind::Forward),
            Kind::RecvForward => away && self.joined(peer, stage),
            Kind::SendBackward => {
                away && self.joined(peer, stage) && self.has_gradient(rank, at, stage, mb)
            }
            Kind::RecvBackward => away && self.joined(stage, peer),
            Kind::ReduceGrad => (0..self.plan.microbatches()).all(|mb| {
                self.has(rank, at, Kind::Weight, stage, mb)
                    || self.has(rank, at, Kind::Backward, stage, mb)
            }),
            Kind::ReduceTied => {
                let reduces = |stage: usize| {
                    let reduce = Action::whole_stage(Kind::ReduceGrad, stage as u16);
                    self.plan.ranks()[self.plan.rank_of(stage)].contains(&reduce)
                };
                let whole = (0..self.plan.microbatches()).all(|mb| {
                    self.has(rank, at, Kind::Weight, stage, mb)
                        || self.has(rank, at, Kind::Backward, stage, mb)
                });
                let other = Action::tied(peer as u16, stage as u16);
                whole
                    && self.plan.ranks()[self.plan.rank_of(peer)].contains(&other)
                    && reduces(stage) == reduces(peer)
                    && (!reduces(stage) || has(Kind::ReduceGrad))
            }
            Kind::Unshard | Kind::Reshard => unreachable!("not in these plans"),
        }
    }

    /// Whether all that must be done stands somewhere.
    fn complete(&self) -> bool {
        let stages = self.plan.stages();
        let done =
            |action: Action| self.plan.ranks()[self.plan.rank_of(action.stage())].contains(&action);
        let all = (0..stages).all(|s| {
            (0..self.plan.microbatches()).all(|mb| {
                let compute = |kind| done(Action::compute(kind, s as u16, mb as u16));
                compute(Kind::Forward)
                    && (compute(Kind::Backward) || compute(Kind::Input) && compute(Kind::Weight))
            })
        });
        let moved = |from: usize, to: usize, mb: usize| {
            let (from, to, mb) = (from as u16, to as u16, mb as u16);
            done(Action::transfer(Kind::SendForward, from, to, mb))
                && done(Action::transfer(Kind::RecvForward, to, from, mb))
                && done(Action::transfer(Kind::SendBackward, to, from, mb))
                && done(Action::transfer(Kind::RecvBackward, from, to, mb))
        };
        all && (!self.lowered
            || self.plan.graph().edges().all(|(from, to)| {
                self.plan.rank_of(from) == self.plan.rank_of(to)
                    || (0..self.plan.microbatches()).all(|mb| moved(from, to, mb))
            }))
    }

    /// The transfers on the channel `src` → `dst` that stand before a place, sends or receives.
    fn on_channel(&self, src: usize, dst: usize, sends: bool, before: usize) -> Vec<Action> {
        let (rank, other) = if sends { (src, dst) } else { (dst, src) };
        self.plan.ranks()[rank][..before]
            .iter()
            .copied()
            .filter(|a| {
                if sends {
                    a.kind().is_send()
                } else {
                    a.kind().is_recv()
                }
            })
            .filter(|a| self.plan.rank_of(a.peer()) == other)
            .collect()
    }

    fn step(&self, at: &[u8], rank: usize) -> Step {
        let place = |rank: usize| usize::from(at[rank]);
        let Some(&action) = self.plan.ranks()[rank].get(place(rank)) else {
            return Step::Wait;
        };
        let (stage, mb) = (action.stage(), action.microbatch());
        let other = self.plan.rank_of(action.peer());
        if action.kind() == Kind::ReduceTied && other != rank {
            let head = self.plan.ranks()[other].get(place(other)).copied();
            if head != Some(Action::tied(action.peer() as u16, stage as u16)) {
                return Step::Wait;
            }
            // Both have done what stands before: what was sent has been received.
            let through = |src: usize, dst: usize| {
                let sent = self.on_channel(src, dst, true, place(src)).len();
                sent == self.on_channel(src, dst, false, place(dst)).len()
            };
            return match through(rank, other) && through(other, rank) {
                true => Step::Go(vec![rank, other]),
                false => Step::Wrong,
            };
        }
        if !action.kind().is_transfer() {
            let ready = self.lowered
                || match action.kind() {
                    Kind::Forward => self.plan.graph().predecessors(stage).iter().all(|&q| {
                        let home = self.plan.rank_of(usize::from(q));
                        self.has(home, place(home), Kind::Forward, usize::from(q), mb)
                    }),
                    Kind::Input | Kind::Backward => {
                        self.plan.graph().successors(stage).iter().all(|&t| {
                            let home = self.plan.rank_of(usize::from(t));
                            self.has_gradient(home, place(home), usize::from(t), mb)
                        })
                    }
                    _ => true,
                };
            return if ready {
                Step::Go(vec![rank])
            } else {
                Step::Wait
            };
        }
        let is_send = action.kind().is_send();
        let (src, dst) = if is_send {
            (rank, other)
        } else {
            (other, rank)
        };
        match self.depth {
            None => match self.plan.ranks()[other].get(place(other)) {
                Some(&met)
                    if met.kind().is_transfer()
                        && met.kind().is_send() != is_send
                        && self.plan.rank_of(met.peer()) == rank =>
                {
                    if Some(met) == action.counterpart() {
                        Step::Go(vec![rank, other])
                    } else {
                        Step::Wrong
                    }
                }
                _ => Step::Wait,
            },
            Some(depth) => {
                let sent = self.on_channel(src, dst, true, place(src));
                let received = self.on_channel(src, dst, false, place(dst)).len();
                if is_send && sent.len() - received < depth {
                    Step::Go(vec![rank])
                } else if is_send || sent.len() == received {
                    Step::Wait
                } else if Some(sent[received]) == action.counterpart() {
                    Step::Go(vec![rank])
                } else {
                    Step::Wrong
                }
            }
        }
    }

    fn every_order_ends_well(&self) -> bool {
        let ranks = self.plan.rank_count();
        let end: Vec<u8> = self.plan.ranks().iter().map(|l| l.len() as u8).collect();
        let mut seen = HashSet::new();
        let mut open = vec![vec![0u8; ranks]];
        while let Some(at) = open.pop() {
            if !seen.insert(at.clone()) {
                continue;
            }
            let mut stuck = at != end;
            for rank in 0..ranks {
                match self.step(&at, rank) {
                    Step::Wrong => return false,
                    Step::Wait => {}
                    Step::Go(ranks) => {
                        stuck = false;
                        let mut next = at.clone();
                        for rank in ranks {
                            next[rank] += 1;
                        }
                        open.push(next);
                    }
                }
            }
            if stuck {
                return false;
            }
        }
        true
    }
}
