//! What can be wrong with a plan, each said in a sentence.

use std::fmt;

use super::super::Action;

/// A rank that cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wait {
    /// The rank.
    pub rank: usize,
    /// The place in its list where it stands.
    pub index: usize,
    /// What it cannot do.
    pub action: Action,
    /// The rank that it waits for.
    pub waits_for: usize,
}

/// What is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// An action stands on a rank that does not hold its stage.
    WrongRank {
        /// The action.
        action: Action,
        /// The rank that holds its stage.
        home: usize,
    },
    /// An action names a stage that the model does not have.
    NoSuchStage {
        /// The action.
        action: Action,
        /// How many there are.
        stages: usize,
    },
    /// An action names a microbatch that the step does not have.
    NoSuchMicrobatch {
        /// The action.
        action: Action,
        /// How many there are.
        microbatches: usize,
    },
    /// A transfer between stages that no edge joins.
    NoEdge {
        /// The transfer.
        action: Action,
    },
    /// A transfer between stages of one rank.
    WithinRank {
        /// The transfer.
        action: Action,
    },
    /// An action that was done before.
    Repeated {
        /// The action.
        action: Action,
    },
    /// A backward pass that is done both whole and split.
    WholeAndSplit {
        /// The later of the two.
        action: Action,
    },
    /// An action whose input is not there yet.
    NotYet {
        /// The action.
        action: Action,
        /// What must come before it on the same rank.
        needs: Action,
    },
    /// An action that is never done.
    Missing {
        /// The action.
        action: Action,
    },
    /// A receive that meets another message than it expects.
    OutOfOrder {
        /// The receive.
        receive: Action,
        /// The message that comes first on its channel.
        sent: Action,
        /// The rank that sent it.
        sender: usize,
    },
    /// Ranks that wait for each other in a circle.
    Deadlock {
        /// Each waits for the next, the last for the first.
        circle: Vec<Wait>,
    },
    /// More live activations than allowed.
    OverLimit {
        /// The forward that is one too many.
        action: Action,
        /// How many are live after it.
        live: usize,
        /// How many may be.
        limit: usize,
    },
    /// A stage is computed, or dropped, while its parameters are not gathered; or gathered twice.
    Sharding {
        /// The action.
        action: Action,
        /// Whether the parameters are gathered then.
        gathered: bool,
    },
    /// A gradient is reduced before it is whole.
    ReducedEarly {
        /// The reduction.
        action: Action,
        /// How many microbatches are in the gradient by then.
        done: usize,
        /// How many there are.
        microbatches: usize,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::WrongRank { action, home } => {
                write!(
                    f,
                    "{action} stands here, but stage {} lives on rank {home}",
                    action.stage()
                )
            }
            Fault::NoSuchStage { action, stages } => {
                write!(f, "{action} is in one of {stages} stages, counted from 0")
            }
            Fault::NoSuchMicrobatch {
                action,
                microbatches,
            } => {
                write!(
                    f,
                    "{action} is one of {microbatches} microbatches, counted from 0"
                )
            }
            Fault::NoEdge { action } => {
                let (a, b) = (action.stage(), action.peer());
                write!(
                    f,
                    "{action} is between stages {a} and {b}, which no edge joins that way"
                )
            }
            Fault::WithinRank { action } => {
                let (a, b) = (action.stage(), action.peer());
                write!(
                    f,
                    "{action} is between stages {a} and {b}, which live on the same rank"
                )
            }
            Fault::Repeated { action } => write!(f, "{action} was done before"),
            Fault::WholeAndSplit { action } => write!(
                f,
                "{action} does again what the other form of the same backward pass did before"
            ),
            Fault::NotYet { action, needs } => {
                write!(f, "{action} needs {needs}, which has not been done by then")
            }
            Fault::Missing { action } => write!(f, "{action} is never done"),
            Fault::OutOfOrder {
                receive,
                sent,
                sender,
            } => write!(
                f,
                "{receive} expects another message, but {sent} of rank {sender} comes \
                 first: both sides must have the same order"
            ),
            Fault::Deadlock { circle } => {
                f.write_str("ranks wait for each other in a circle: ")?;
                for (i, wait) in circle.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    let Wait {
                        rank,
                        action,
                        waits_for,
                        ..
                    } = wait;
                    write!(
                        f,
                        "{comma}rank {rank} at {action} waits for rank {waits_for}"
                    )?;
                }
                Ok(())
            }
            Fault::OverLimit {
                action,
                live,
                limit,
            } => write!(
                f,
                "{action} makes {live} live activations on this rank, and the limit is {limit}"
            ),
            Fault::Sharding {
                action,
                gathered: true,
            } => {
                write!(f, "{action} gathers parameters that are gathered already")
            }
            Fault::Sharding {
                action,
                gathered: false,
            } => {
                write!(
                    f,
                    "{action} comes while the parameters of its stage are not gathered"
                )
            }
            Fault::ReducedEarly {
                action,
                done,
                microbatches,
            } => write!(
                f,
                "{action} comes when only {done} of {microbatches} microbatches are in the gradient"
            ),
        }
    }
}
