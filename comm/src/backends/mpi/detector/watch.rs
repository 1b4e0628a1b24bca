//! [`Watch`]: one wait, and when it is over. It asks where the others stand at half of the deadline; so it knows at the
//! deadline who is late, and before that, whether ranks wait for each other.

use super::super::word::Standing;
use super::Detector;
use crate::error::Link;
use crate::meeting::late::Clock;
use std::time::{Duration, Instant};

/// What a look has found.
#[derive(Debug, PartialEq)]
pub(in crate::backends::mpi) enum Finding {
    /// There is nothing to do but to wait.
    Nothing,
    /// The deadline has passed, and all had time to answer the question of this number.
    Late(u32),
    /// Ranks wait for each other, and did so when they were asked before.
    Deadlock(Vec<Link>),
}

/// How a rank waits for one operation.
#[derive(Debug)]
pub(in crate::backends::mpi) struct Watch {
    clock: Clock,
    deadline: Duration,
    /// How often data of this operation had moved. What others do to this rank's other operations is no progress of
    /// this one.
    steps: u64,
    asked: Option<Asked>,
    /// The circle that the answers had, and the second question.
    circle: Option<(Vec<Link>, Asked)>,
    is_settled: bool,
}

/// A question.
#[derive(Debug, Clone, Copy)]
struct Asked {
    round: u32,
    /// How long the rank had waited then.
    at: Duration,
}

impl Watch {
    pub(in crate::backends::mpi) fn start(now: Instant, deadline: Duration, steps: u64) -> Watch {
        Watch {
            clock: Clock::start(now, deadline),
            deadline,
            steps,
            asked: None,
            circle: None,
            is_settled: false,
        }
    }

    /// How long the rank has waited since its data last moved, by the last look.
    pub(in crate::backends::mpi) fn look(
        &mut self,
        now: Instant,
        steps: u64,
        epoch: u64,
        detector: &mut Detector,
        own: impl Fn() -> Standing,
    ) -> Finding {
        if steps != self.steps {
            *self = Watch::start(now, self.deadline, steps);
            return Finding::Nothing;
        }
        let waited = self.clock.look(now);
        if waited < self.deadline / 2 {
            return Finding::Nothing;
        }
        let Some(asked) = self.asked else {
            let round = detector.ask(epoch);
            self.asked = Some(Asked { round, at: waited });
            return Finding::Nothing;
        };
        if self.clock.is_over() && waited >= asked.at + self.deadline / 4 {
            return Finding::Late(asked.round);
        }
        if self.is_settled || waited < asked.at + self.deadline / 16 {
            return Finding::Nothing;
        }
        match &self.circle {
            None => match detector.circle(epoch, asked.round, &own()) {
                None => self.is_settled = true,
                Some(circle) => {
                    let round = detector.ask(epoch);
                    self.circle = Some((circle, Asked { round, at: waited }));
                }
            },
            Some((_, again)) if waited < again.at + self.deadline / 32 => {}
            Some((circle, again)) => {
                self.is_settled = true;
                if detector.circle(epoch, again.round, &own()).as_ref() == Some(circle) {
                    return Finding::Deadlock(circle.clone());
                }
            }
        }
        Finding::Nothing
    }
}
