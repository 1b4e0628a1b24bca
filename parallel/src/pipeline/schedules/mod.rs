//! The schedules that have names, each made by the rule of its paper.
//!
//! With *p* ranks, *v* stages per rank, *m* microbatches, and F, I, W (B = I + W) the time that a
//! rank needs for one microbatch in all its stages:
//!
//! | | idle per rank | peak of live (stage, microbatch) pairs | source |
//! | --- | --- | --- | --- |
//! | [`gpipe`] | (p−1)(F+B) | m | Huang et al. 2019 |
//! | [`one_f_one_b`] | (p−1)(F+B) | p−r on rank r | Narayanan et al. 2021 (PipeDream-Flush) |
//! | [`interleaved`] | (p−1)(F+B)/v | p(v−1) + 2(p−r) − 1 on rank r, where p divides m | Narayanan et al. 2021 |
//! | [`looped_bfs`] | (p−1)(F+B)/v | vm | Lamy-Poirier 2023 |
//! | [`zero_bubble`] | (p−1)(F+I−W)/v | pv where p divides m | Qi et al. 2023 |
//! | [`zbv`] | (p−1)F/2 at F = I = W, none of it inside | 2p | Qi et al. 2024 |
//! | [`dualpipev`] | (p−1)F/2 at F = I = W | 2p + 1 | DeepSeek 2025, Sea AI Lab 2025 |
//!
//! The figures hold for m ≥ p (m ≥ 2p for the last two) and free transfers, and those of
//! [`zero_bubble`] for W no longer than F and I. `tests/pipeline/formulas.rs` holds the plans to
//! them for every size.

pub mod dualpipev;
pub mod gpipe;
pub mod interleaved;
pub mod looped_bfs;
pub mod one_f_one_b;
mod rounds;
pub mod zbv;
pub mod zero_bubble;

use std::fmt;
use std::str::FromStr;

use super::{Action, Kind, PlanError, Schedule, StageGraph};

/// A schedule with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Named {
    /// All forwards, then all backwards.
    Gpipe,
    /// One forward, one backward.
    OneFOneB,
    /// One forward, one backward, over several stages per rank.
    Interleaved,
    /// Stage after stage, all microbatches each.
    LoopedBfs,
    /// 1F1B with the weight gradients put off into the bubble.
    ZbH1,
    /// The same over several stages per rank.
    Zb1p,
    /// Zero bubbles with the stages laid out as a V.
    Zbv,
    /// Two directions at once, folded into a V.
    DualPipeV,
}

/// The numbers a schedule is made for, checked to be at least 1 and to fit a plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    name: &'static str,
    pub(crate) ranks: u16,
    pub(crate) per_rank: u16,
    pub(crate) microbatches: u16,
}

impl Shape {
    fn new(
        name: Named,
        ranks: usize,
        per_rank: usize,
        microbatches: usize,
    ) -> Result<Self, PlanError> {
        let shape = |reason: String| PlanError::Shape {
            schedule: name.title(),
            ranks,
            stages_per_rank: per_rank,
            microbatches,
            reason,
        };
        if ranks == 0 || per_rank == 0 || microbatches == 0 {
            return Err(shape("each of them must be at least 1".into()));
        }
        let max = usize::from(u16::MAX);
        if ranks
            .checked_mul(per_rank)
            .is_none_or(|stages| stages > max)
            || microbatches > max
        {
            return Err(shape(format!(
                "a plan holds at most {max} stages and microbatches"
            )));
        }
        Ok(Self {
            name: name.title(),
            ranks: ranks as u16,
            per_rank: per_rank as u16,
            microbatches: microbatches as u16,
        })
    }

    pub(crate) fn stages(self) -> u16 {
        self.ranks * self.per_rank
    }

    /// The error for numbers that this schedule cannot do.
    pub(crate) fn refuse<T>(self, reason: String) -> Result<T, PlanError> {
        Err(PlanError::Shape {
            schedule: self.name,
            ranks: usize::from(self.ranks),
            stages_per_rank: usize::from(self.per_rank),
            microbatches: usize::from(self.microbatches),
            reason,
        })
    }

    fn wants_per_rank(self, per_rank: u16) -> Result<(), PlanError> {
        if self.per_rank == per_rank {
            return Ok(());
        }
        let plural = if per_rank == 1 {
            "one stage"
        } else {
            "two stages"
        };
        self.refuse(format!("it has exactly {plural} on each rank"))
    }

    /// Stages dealt out like cards: 0, 1, …, p−1, 0, 1, …
    pub(crate) fn looped(self) -> Vec<u16> {
        (0..self.stages()).map(|s| s % self.ranks).collect()
    }

    /// Stages laid out as a V: 0, 1, …, p−1, p−1, …, 1, 0.
    pub(crate) fn vee(self) -> Vec<u16> {
        (0..self.ranks).chain((0..self.ranks).rev()).collect()
    }

    /// Puts the list that `actions` yields for each rank into a plan over a chain of stages.
    fn plan(
        self,
        rank_of: Vec<u16>,
        actions: impl Fn(u16) -> Vec<Action>,
    ) -> Result<Schedule, PlanError> {
        let ranks = (0..self.ranks).map(actions).collect();
        Schedule::new(
            StageGraph::chain(self.stages()),
            rank_of,
            self.microbatches,
            ranks,
        )
    }
}

impl Named {
    /// All of them.
    pub const ALL: [Named; 8] = [
        Named::Gpipe,
        Named::OneFOneB,
        Named::Interleaved,
        Named::LoopedBfs,
        Named::ZbH1,
        Named::Zb1p,
        Named::Zbv,
        Named::DualPipeV,
    ];

    /// The compute-only plan for so many ranks, stages on each of them, and microbatches.
    ///
    /// # Errors
    /// [`PlanError::Shape`] says in a sentence why the schedule does not exist for these numbers.
    ///
    /// ```
    /// use phalanx_parallel::pipeline::Named;
    ///
    /// let plan = Named::OneFOneB.schedule(2, 1, 3)?;
    /// assert_eq!(plan.to_string(), "0F0, 0F1, 0B0, 0F2, 0B1, 0B2\n1F0, 1B0, 1F1, 1B1, 1F2, 1B2\n");
    /// # Ok::<(), phalanx_parallel::pipeline::PlanError>(())
    /// ```
    pub fn schedule(
        self,
        ranks: usize,
        stages_per_rank: usize,
        microbatches: usize,
    ) -> Result<Schedule, PlanError> {
        let shape = Shape::new(self, ranks, stages_per_rank, microbatches)?;
        match self {
            Named::Gpipe => {
                shape.wants_per_rank(1)?;
                shape.plan(shape.looped(), |r| gpipe::rank(shape, r))
            }
            Named::OneFOneB => {
                shape.wants_per_rank(1)?;
                shape.plan(shape.looped(), |r| one_f_one_b::rank(shape, r))
            }
            Named::Interleaved => {
                let round = rounds::round_length(shape)?;
                shape.plan(shape.looped(), |r| interleaved::rank(shape, round, r))
            }
            Named::LoopedBfs => shape.plan(shape.looped(), |r| looped_bfs::rank(shape, r)),
            Named::ZbH1 => {
                shape.wants_per_rank(1)?;
                shape.plan(shape.looped(), |r| {
                    zero_bubble::rank(shape, shape.microbatches, r)
                })
            }
            Named::Zb1p => {
                let round = rounds::round_length(shape)?;
                shape.plan(shape.looped(), |r| zero_bubble::rank(shape, round, r))
            }
            Named::Zbv => {
                shape.wants_per_rank(2)?;
                shape.plan(shape.vee(), |r| zbv::rank(shape, r))
            }
            Named::DualPipeV => {
                shape.wants_per_rank(2)?;
                dualpipev::check(shape)?;
                shape.plan(shape.vee(), |r| dualpipev::rank(shape, r))
            }
        }
    }

    /// The stages per rank where none are asked for: 2 where one is not possible or not the point.
    pub fn default_stages_per_rank(self) -> usize {
        match self {
            Named::Gpipe | Named::OneFOneB | Named::ZbH1 | Named::Zb1p => 1,
            Named::Interleaved | Named::LoopedBfs | Named::Zbv | Named::DualPipeV => 2,
        }
    }

    /// The name in prose: `interleaved 1F1B`.
    pub fn title(self) -> &'static str {
        match self {
            Named::Gpipe => "GPipe",
            Named::OneFOneB => "1F1B",
            Named::Interleaved => "interleaved 1F1B",
            Named::LoopedBfs => "looped BFS",
            Named::ZbH1 => "ZB-H1",
            Named::Zb1p => "ZB1P",
            Named::Zbv => "ZBV",
            Named::DualPipeV => "DualPipeV",
        }
    }

    /// The name on a command line: `interleaved`.
    pub fn as_str(self) -> &'static str {
        match self {
            Named::Gpipe => "gpipe",
            Named::OneFOneB => "1f1b",
            Named::Interleaved => "interleaved",
            Named::LoopedBfs => "bfs",
            Named::ZbH1 => "zbh1",
            Named::Zb1p => "zb1p",
            Named::Zbv => "zbv",
            Named::DualPipeV => "dualpipev",
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Not the name of a schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no schedule; there are gpipe, 1f1b, interleaved, bfs, zbh1, zb1p, zbv, dualpipev"
)]
pub struct UnknownName(pub String);

impl FromStr for Named {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let named = Self::ALL.into_iter().find(|n| n.as_str() == text);
        named.ok_or_else(|| UnknownName(text.chars().take(40).collect()))
    }
}

/// Writes one rank's list: remembers which microbatch is next for each stage and kind.
pub(crate) struct Writer {
    actions: Vec<Action>,
    /// Next microbatch by stage on this rank: forward, input gradient, weight gradient.
    next: Vec<[u16; 3]>,
    stages: Vec<u16>,
}

impl Writer {
    /// For the rank that holds `stages`; `actions` is how many will be written.
    pub(crate) fn new(stages: Vec<u16>, actions: usize) -> Self {
        Self {
            actions: Vec::with_capacity(actions),
            next: vec![[0; 3]; stages.len()],
            stages,
        }
    }

    /// The next microbatch of `kind` in the rank's `local`-th stage.
    pub(crate) fn push(&mut self, kind: Kind, local: usize) {
        let next = &mut self.next[local];
        let microbatch = match kind {
            Kind::Forward => next[0],
            Kind::Weight => next[2],
            _ => next[1],
        };
        match kind {
            Kind::Forward => next[0] += 1,
            Kind::Input => next[1] += 1,
            Kind::Weight => next[2] += 1,
            _ => {
                next[1] += 1;
                next[2] += 1;
            }
        }
        self.actions
            .push(Action::compute(kind, self.stages[local], microbatch));
    }

    /// How many of (forward, input gradient, weight gradient) stand in the list.
    pub(crate) fn count(&self, local: usize) -> [u16; 3] {
        self.next[local]
    }

    pub(crate) fn finish(self) -> Vec<Action> {
        self.actions
    }
}
