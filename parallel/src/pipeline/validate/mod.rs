//! The proof that a plan does what it should and cannot get stuck, before anything runs.
//!
//! Two passes, both linear in the number of actions:
//!
//! 1. **Each rank for itself, in its own order** (`local.rs`). Every action stands on the rank of
//!    its stage; every microbatch goes once through each stage, forward and backward; what an
//!    action needs was computed or received on this rank before it; every edge to another rank has
//!    its send and its receive; no more activations are live than allowed.
//! 2. **All ranks together** (`progress.rs`). The plan is run without time: a rank goes on until it
//!    must wait. That one run decides: a transfer is between two given ranks, each does its actions
//!    in a fixed order, and nobody chooses between messages, so whether a rank gets stuck does not
//!    depend on who is faster (a Kahn network with bounded channels).
//!
//! Collectives are in the proof. A `REDUCE_TIED` is a meeting of two ranks of the plan, like a send that waits for its
//! receive. A `REDUCE_GRAD` meets the same rank of the other replicas, which run the same plan: they come to it in the same
//! order, and each replica comes to it by what it does alone, so a plan that is through without the others is through with
//! them. (By induction over the plan's run: what one replica has done by then, all have.)
//!
//! A plan that has no transfer at all is taken as not lowered yet: transfers are understood, and a
//! rank waits for the action itself.

mod excerpt;
mod fault;
mod local;
mod progress;

use std::fmt;
use std::num::NonZeroUsize;

use super::Schedule;

pub use fault::{Fault, Wait};

/// When a send lets its rank go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sends {
    /// When the receiver takes the message: the strictest reading, and the safest to plan for.
    #[default]
    Blocking,
    /// At once, as long as fewer than so many messages of the channel wait to be received.
    Buffered(NonZeroUsize),
}

/// What a plan must hold to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// How sends behave.
    pub sends: Sends,
    /// The most (stage, microbatch) pairs that may be live on a rank: forward done, weight gradient
    /// not yet.
    pub live_limit: Option<usize>,
}

/// What the validator found out about a plan that it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Proof {
    /// Whether the plan has transfers written out.
    pub lowered: bool,
    /// Per rank, the most (stage, microbatch) pairs that are live at once.
    pub peak_live: Vec<usize>,
}

/// Why a plan is refused: where, the grid around it with the place marked, and a sentence.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Invalid {
    /// The rank of the offending action.
    pub rank: usize,
    /// Its place in the rank's list; the list's length where something is missing.
    pub index: usize,
    /// What is wrong.
    pub fault: Fault,
    /// The grid around it, the offending action in brackets.
    pub excerpt: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rank {}, place {}: {}\n{}",
            self.rank, self.index, self.fault, self.excerpt
        )
    }
}

/// A `main` that returns an error prints its `Debug`: a derived one would hide the sentence.
impl fmt::Debug for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Invalid {}

/// A fault and its place, before the excerpt is drawn.
pub(crate) struct Finding {
    rank: usize,
    index: usize,
    fault: Fault,
}

/// Proves that `schedule` does every microbatch once in every stage, has every input in time, and
/// cannot deadlock.
///
/// # Errors
/// [`Invalid`] marks the first offending action in the grid and says in a sentence what is wrong.
///
/// ```
/// use phalanx_parallel::pipeline::{Rules, Schedule, validate};
///
/// let plan: Schedule = "0F0, 0F1, 0B0, 0B1\n1F0, 1B0, 1F1, 1B1".parse()?;
/// assert_eq!(validate(&plan, &Rules::default())?.peak_live, [2, 1]);
///
/// let plan: Schedule = "0F0, 0B0, 0F1, 0B1\n1F0, 1F1, 1B0, 1B1".parse()?;
/// let error = validate(&plan, &Rules::default()).unwrap_err().to_string();
/// assert!(error.contains("wait for each other in a circle"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn validate(schedule: &Schedule, rules: &Rules) -> Result<Proof, Box<Invalid>> {
    let lowered = schedule.has_transfers();
    let mut local = local::Checker::new(schedule, rules, lowered);
    let peaks = (0..schedule.rank_count())
        .map(|rank| local.rank(rank))
        .collect();
    let verdict = Result::and_then(peaks, |peaks: Vec<usize>| {
        if lowered {
            progress::lowered(schedule, rules.sends)?;
        } else {
            progress::compute_only(schedule)?;
        }
        Ok(peaks)
    });
    match verdict {
        Ok(peak_live) => Ok(Proof { lowered, peak_live }),
        Err(Finding { rank, index, fault }) => {
            let excerpt = excerpt::draw(schedule, rank, index, &fault);
            Err(Box::new(Invalid {
                rank,
                index,
                fault,
                excerpt,
            }))
        }
    }
}
