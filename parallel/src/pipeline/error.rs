//! What can be wrong with a plan before anything runs.

use std::fmt;

use super::validate::Invalid;

/// A plan that cannot be made, read, or trusted.
#[derive(Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A named schedule that does not exist for these numbers.
    #[error(
        "{schedule} with {ranks} ranks, {stages_per_rank} stages per rank and {microbatches} \
         microbatches makes no sense: {reason}"
    )]
    Shape {
        /// The schedule's name.
        schedule: &'static str,
        /// Ranks asked for.
        ranks: usize,
        /// Stages per rank asked for.
        stages_per_rank: usize,
        /// Microbatches asked for.
        microbatches: usize,
        /// Why not, as a sentence without its full stop.
        reason: String,
    },
    /// An edge between stages that cannot be.
    #[error("the edge {from}>{to} {fault}")]
    Edge {
        /// Where it begins.
        from: u16,
        /// Where it ends.
        to: u16,
        /// What is wrong.
        fault: &'static str,
    },
    /// A placement of stages that cannot be.
    #[error("the placement of stages is wrong: {reason}")]
    Placement {
        /// What is wrong.
        reason: String,
    },
    /// Text that is not a schedule.
    #[error("line {line}, column {column}: `{token}`: {reason}")]
    Parse {
        /// Counted from 1.
        line: usize,
        /// Counted in characters from 1.
        column: usize,
        /// The offending piece of text, cut short if it is long.
        token: String,
        /// Why it is wrong.
        reason: String,
    },
    /// A plan that the validator refuses.
    #[error(transparent)]
    Invalid(#[from] Box<Invalid>),
    /// A plan of compute actions was wanted, and this one is lowered already.
    #[error("the schedule is lowered already: rank {rank} has {action}")]
    Lowered {
        /// Where.
        rank: usize,
        /// The first action that does not compute.
        action: super::Action,
    },
    /// Costs that do not fit the schedule.
    #[error("the costs do not fit: {reason}")]
    Costs {
        /// What is wrong.
        reason: String,
    },
    /// No schedule stays under the memory limit.
    #[error(
        "no schedule that was found keeps every rank at or under {limit}; the smallest peak found \
         is {needed}"
    )]
    Memory {
        /// The limit given.
        limit: u64,
        /// What the most frugal schedule needs.
        needed: u64,
    },
}

/// A `main` that returns an error prints its `Debug`: a derived one would hide the sentence.
impl fmt::Debug for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
