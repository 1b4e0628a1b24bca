//! Plans built event by event: whenever a rank is free, a rule picks the next of its actions.
//!
//! A rule says which kind goes first, whether weight gradients fill gaps or come at once, whether a
//! rank would rather wait a little than begin one, and how many activations a rank takes on. No
//! rule is best for all costs, so all are tried (`trials.rs`).

use std::fmt;

use super::super::Kind;
use super::Action;
use super::instance::{Instance, Plan};

/// Which goes first where a forward and a backward could both begin.
#[derive(Clone, Copy, Debug, PartialEq)]
enum First {
    Backward,
    Forward,
    /// The other of what the rank did last.
    InTurn,
}

/// How many pairs a rank takes on, counted in stages from its first one to the end of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Room {
    /// As many as those: what 1F1B holds.
    Once,
    /// One less than twice as many: what interleaved 1F1B and ZB-H2 hold.
    Twice,
    /// As many as there are stages.
    Stages,
    /// As many as memory holds.
    All,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    first: First,
    room: Room,
    /// Weight gradients come before forwards; else they fill gaps.
    eager_weights: bool,
    /// A rank waits rather than begin a W if something better comes within this share of it.
    pub(super) patience: f64,
    /// Later stages first; else earlier microbatches.
    deep: bool,
    /// Backward passes stay whole.
    whole: bool,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.first {
            First::Backward => "backward first",
            First::Forward => "forward first",
            First::InTurn => "forward and backward in turn",
        })?;
        f.write_str(match (self.whole, self.eager_weights) {
            (true, _) => ", whole",
            (false, true) => ", W early",
            (false, false) => ", W in gaps",
        })?;
        f.write_str(match self.room {
            Room::Once => ", as many in flight as 1F1B",
            Room::Twice => ", twice as many in flight as 1F1B",
            Room::Stages => ", as many in flight as stages",
            Room::All => ", as many in flight as memory holds",
        })
    }
}

/// Every rule that can be of use.
pub(super) fn rules(instance: &Instance) -> Vec<Rule> {
    let mut rules = Vec::new();
    // Where B is I and W, a whole backward never ends sooner than a split one.
    let wholes: &[bool] = if instance.merges {
        &[true, false]
    } else {
        &[false]
    };
    for &whole in wholes {
        for room in [Room::Once, Room::Twice, Room::Stages, Room::All] {
            for first in [First::Backward, First::InTurn, First::Forward] {
                for deep in [true, false] {
                    for (eager_weights, patience) in [
                        (false, 0.0),
                        (false, 0.5),
                        (false, 1.0),
                        (true, 0.0),
                        (true, 1.0),
                    ] {
                        if whole && (eager_weights || patience > 0.0) {
                            continue;
                        }
                        rules.push(Rule {
                            first,
                            room,
                            eager_weights,
                            patience,
                            deep,
                            whole,
                        });
                    }
                }
            }
        }
    }
    rules
}

/// A plan that grows.
struct Builder<'a> {
    instance: &'a Instance,
    placement: &'a [u16],
    rule: &'a Rule,
    /// By stage: how many F, I, W are done; microbatches go in turn.
    done: Vec<[usize; 3]>,
    /// By stage and microbatch: when the input, or the output's gradient, is there; infinite before.
    input: Vec<f64>,
    gradient: Vec<f64>,
    links: Vec<f64>,
    clock: Vec<f64>,
    held: Vec<i64>,
    live: Vec<usize>,
    room: Vec<i64>,
    places: Vec<usize>,
    stages_of: Vec<Vec<usize>>,
    lists: Vec<Vec<Action>>,
}

/// Something that a rank could do next, and from when on.
#[derive(Clone, Copy)]
struct Choice {
    kind: Kind,
    stage: usize,
    mb: usize,
    ready: f64,
}

/// The plan that a rule makes on a placement; `None` if it does not fit into memory.
pub(super) fn build(instance: &Instance, placement: &[u16], rule: &Rule) -> Option<Plan> {
    let (n, m, p) = (instance.stages, instance.microbatches, instance.ranks);
    let mut stages_of = vec![Vec::new(); p];
    for s in 0..n {
        stages_of[usize::from(placement[s])].push(s);
    }
    let room = |rank: usize| {
        let resident = instance.resident_of(placement, rank);
        let free = instance.limit.checked_sub(resident)?;
        Some(i64::try_from(free).unwrap_or(i64::MAX))
    };
    let places = |stages: &Vec<usize>| {
        let to_end = n - stages.first().copied().unwrap_or(0);
        let wanted = match rule.room {
            Room::Once => to_end,
            Room::Twice => 2 * to_end - 1,
            Room::Stages => n,
            Room::All => usize::MAX,
        };
        wanted.max(stages.len())
    };
    let mut builder = Builder {
        instance,
        placement,
        rule,
        done: vec![[0; 3]; n],
        input: vec![f64::INFINITY; n * m],
        gradient: vec![f64::INFINITY; n * m],
        links: vec![0.0; p * p],
        clock: vec![0.0; p],
        held: vec![0; p],
        live: vec![0; p],
        room: (0..p).map(room).collect::<Option<_>>()?,
        places: stages_of.iter().map(places).collect(),
        lists: stages_of
            .iter()
            .map(|s| Vec::with_capacity(3 * m * s.len()))
            .collect(),
        stages_of,
    };
    builder.input[..m].fill(0.0);
    builder.gradient[(n - 1) * m..].fill(0.0);
    while builder.step()? {}
    Some(Plan {
        placement: placement.to_vec(),
        lists: builder.lists,
    })
}

impl Builder<'_> {
    /// Begins the action that can begin first of all; `None` if there is none but should be.
    fn step(&mut self) -> Option<bool> {
        let mut first: Option<(f64, usize)> = None;
        for rank in 0..self.instance.ranks {
            self.choices(rank, |choice| {
                let start = choice.ready.max(self.clock[rank]);
                if first.is_none_or(|(time, _)| start < time) {
                    first = Some((start, rank));
                }
            });
        }
        let Some((now, rank)) = first else {
            let m = self.instance.microbatches;
            return self.done.iter().all(|d| *d == [m; 3]).then_some(false);
        };
        let choice = self.pick(rank, now)?;
        self.begin(rank, choice);
        Some(true)
    }

    /// What `rank` could do next, as far as is known yet.
    fn choices(&self, rank: usize, mut visit: impl FnMut(Choice)) {
        let m = self.instance.microbatches;
        for &stage in &self.stages_of[rank] {
            let [forwards, inputs, weights] = self.done[stage];
            if forwards < m {
                let ready = self.input[stage * m + forwards];
                if ready < f64::INFINITY && self.fits(rank, stage) {
                    visit(Choice {
                        kind: Kind::Forward,
                        stage,
                        mb: forwards,
                        ready,
                    });
                }
            }
            if inputs < forwards {
                let ready = self.gradient[stage * m + inputs];
                let kind = if self.rule.whole {
                    Kind::Backward
                } else {
                    Kind::Input
                };
                if ready < f64::INFINITY {
                    visit(Choice {
                        kind,
                        stage,
                        mb: inputs,
                        ready,
                    });
                }
            }
            if weights < inputs {
                visit(Choice {
                    kind: Kind::Weight,
                    stage,
                    mb: weights,
                    ready: 0.0,
                });
            }
        }
    }

    /// Whether one more forward leaves room for the oldest microbatch to come to its end.
    fn fits(&self, rank: usize, stage: usize) -> bool {
        let stages = &self.stages_of[rank];
        let oldest = self.done[stages[0]][1];
        let (mut bytes, mut pairs) = (self.held[rank], self.live[rank]);
        for &s in stages {
            if s == stage || self.done[s][0] <= oldest {
                bytes += self.instance.activation[s] as i64;
                pairs += 1;
            }
        }
        bytes <= self.room[rank] && pairs <= self.places[rank]
    }

    fn pick(&self, rank: usize, now: f64) -> Option<Choice> {
        let last = self.lists[rank].last().map(|a| a.kind());
        let backward_first = match self.rule.first {
            First::Backward => true,
            First::Forward => false,
            First::InTurn => last == Some(Kind::Forward),
        };
        // Smaller is better.
        let rank_of = |choice: &Choice| {
            let class = match (choice.kind, backward_first) {
                (Kind::Weight, _) if self.rule.eager_weights => 1,
                (Kind::Weight, _) => 3,
                (Kind::Forward, false) | (Kind::Input | Kind::Backward, true) => 0,
                _ => 2,
            };
            let depth = self.instance.stages - choice.stage;
            match self.rule.deep {
                true => (class, depth, choice.mb),
                false => (class, choice.mb, depth),
            }
        };
        let mut best: Option<Choice> = None;
        let mut soon: Option<Choice> = None;
        self.choices(rank, |choice| {
            if choice.ready <= now {
                if best.is_none_or(|b| rank_of(&choice) < rank_of(&b)) {
                    best = Some(choice);
                }
            } else if soon.is_none_or(|s| choice.ready < s.ready) {
                soon = Some(choice);
            }
        });
        let best = best?;
        if let Some(soon) = soon.filter(|_| best.kind == Kind::Weight) {
            let time = self.instance.time(Kind::Weight, best.stage, best.mb);
            if soon.ready - now < self.rule.patience * time {
                return Some(soon);
            }
        }
        Some(best)
    }

    fn begin(&mut self, rank: usize, choice: Choice) {
        let Choice {
            kind,
            stage,
            mb,
            ready,
        } = choice;
        let m = self.instance.microbatches;
        let end = ready.max(self.clock[rank]) + self.instance.time(kind, stage, mb);
        self.clock[rank] = end;
        self.held[rank] += self.instance.held(kind, stage);
        self.lists[rank].push(Action::compute(kind, stage as u16, mb as u16));
        let done = &mut self.done[stage];
        match kind {
            Kind::Forward => done[0] += 1,
            Kind::Input => done[1] += 1,
            Kind::Weight => done[2] += 1,
            _ => {
                done[1] += 1;
                done[2] += 1;
            }
        }
        match kind {
            Kind::Forward => {
                self.live[rank] += 1;
                if stage + 1 < self.instance.stages {
                    let there = self.deliver(stage, stage + 1, self.instance.transfer[stage], end);
                    self.input[(stage + 1) * m + mb] = there;
                }
            }
            Kind::Weight => self.live[rank] -= 1,
            _ => {
                self.live[rank] -= usize::from(kind == Kind::Backward);
                if stage > 0 {
                    let transfer = self.instance.transfer[stage - 1];
                    self.gradient[(stage - 1) * m + mb] =
                        self.deliver(stage, stage - 1, transfer, end);
                }
            }
        }
    }

    fn deliver(&mut self, from: usize, to: usize, transfer: f64, now: f64) -> f64 {
        let (a, b) = (
            usize::from(self.placement[from]),
            usize::from(self.placement[to]),
        );
        if a == b {
            return now;
        }
        let link = &mut self.links[a * self.clock.len() + b];
        *link = link.max(now) + transfer;
        *link
    }
}
