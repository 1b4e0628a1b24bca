//! [`Schedule`]: the learning rate as a function of the step.

use super::check::expect_rate;
use crate::error::{Error, Result};
use std::f64::consts::PI;

/// A factor for the learning rate at every step, counted from 0. Pure: the same step gives the same
/// factor, so a run that continues from a saved state needs only its step.
///
/// ```
/// use phalanx_autograd::optim::Schedule;
///
/// let schedule = Schedule::Cosine { steps: 90, end: 0.1 }.after_warmup(10);
/// assert_eq!(schedule.factor(0)?, 0.1); // a tenth of the way up
/// assert_eq!(schedule.factor(9)?, 1.0);
/// assert_eq!(schedule.factor(10)?, 1.0); // the cosine begins
/// assert_eq!(schedule.factor(100)?, 0.1);
/// assert_eq!(schedule.factor(1_000_000)?, 0.1);
/// # Ok::<(), phalanx_autograd::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Schedule {
    /// Always 1.
    Constant,
    /// Times `gamma` after every `every` steps (PyTorch: `StepLR`).
    Step {
        /// Steps from one change to the next.
        every: u64,
        /// The factor of each change.
        gamma: f64,
    },
    /// Times `gamma` at each of these steps (PyTorch: `MultiStepLR`).
    MultiStep {
        /// The steps at which the rate changes.
        at: Vec<u64>,
        /// The factor of each change.
        gamma: f64,
    },
    /// From 1 to `end` in a straight line (PyTorch: `LinearLR`).
    Linear {
        /// Steps until `end` is reached.
        steps: u64,
        /// The last factor.
        end: f64,
    },
    /// From 1 to `end` along half a cosine, and constant afterwards (Loshchilov and Hutter 2017;
    /// PyTorch: `CosineAnnealingLR`).
    Cosine {
        /// Steps until `end` is reached.
        steps: u64,
        /// The last factor.
        end: f64,
    },
    /// Up from `1 / div` to 1 and down to `1 / (div · final_div)`, both along half a cosine (Smith
    /// and Topin 2018; PyTorch: `OneCycleLR` with this optimizer's rate as `max_lr`).
    OneCycle {
        /// Steps of the whole cycle.
        steps: u64,
        /// Share of the steps that go up, in `0..=1`; PyTorch's default is 0.3.
        rise: f64,
        /// How much lower than the peak it starts; PyTorch's default is 25.
        div: f64,
        /// How much lower than the start it ends; PyTorch's default is 1e4.
        final_div: f64,
    },
    /// First up in a straight line, `(step + 1) / steps`, then another schedule from its own step
    /// 0 on.
    Warmup {
        /// Steps of the way up.
        steps: u64,
        /// What follows.
        then: Box<Schedule>,
    },
}

impl Schedule {
    /// This schedule after a warm-up of `steps` steps.
    #[must_use]
    pub fn after_warmup(self, steps: u64) -> Schedule {
        Schedule::Warmup {
            steps,
            then: Box::new(self),
        }
    }

    /// The factor at `step`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for numbers that make no learning rate: a `gamma` or an `end`
    /// that is negative, infinite or no number; in a cycle, no step, a `rise` outside `0..=1`, or a
    /// `div` or `final_div` that is not finite and positive.
    pub fn factor(&self, step: u64) -> Result<f64> {
        self.check()?;
        Ok(match self {
            Schedule::Constant => 1.0,
            Schedule::Step { every, gamma } => gamma.powf((step / (*every).max(1)) as f64),
            Schedule::MultiStep { at, gamma } => {
                gamma.powf(at.iter().filter(|&&at| at <= step).count() as f64)
            }
            Schedule::Linear { steps, end } => 1.0 + (end - 1.0) * share(step, *steps as f64),
            Schedule::Cosine { steps, end } => cosine(1.0, *end, share(step, *steps as f64)),
            Schedule::OneCycle {
                steps,
                rise,
                div,
                final_div,
            } => {
                // Where the peak and the end lie, counted as PyTorch does.
                let (peak, last) = (rise * *steps as f64 - 1.0, *steps as f64 - 1.0);
                let (start, end) = (1.0 / div, 1.0 / (div * final_div));
                if step as f64 <= peak {
                    cosine(start, 1.0, share(step, peak))
                } else {
                    cosine(1.0, end, ((step as f64 - peak) / (last - peak)).min(1.0))
                }
            }
            Schedule::Warmup { steps, then } => match step.checked_sub(*steps) {
                Some(step) => then.factor(step)?,
                None => (step + 1) as f64 / *steps as f64,
            },
        })
    }

    fn check(&self) -> Result<()> {
        const OP: &str = "Schedule::factor";
        let positive = |name: &str, value: f64| match value > 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(Error::InvalidArgument {
                op: OP,
                reason: format!("{name} is {value}, must be finite and positive"),
            }),
        };
        match self {
            Schedule::Constant => {}
            Schedule::Step { gamma, .. } | Schedule::MultiStep { gamma, .. } => {
                expect_rate(OP, "gamma", *gamma)?;
            }
            Schedule::Linear { end, .. } | Schedule::Cosine { end, .. } => {
                expect_rate(OP, "end", *end)?;
            }
            Schedule::OneCycle {
                steps,
                rise,
                div,
                final_div,
            } => {
                positive("steps", *steps as f64)?;
                positive("div", *div)?;
                positive("final_div", *final_div)?;
                if !(0.0..=1.0).contains(rise) {
                    let reason = format!("rise is {rise}, must lie in [0, 1]");
                    return Err(Error::InvalidArgument { op: OP, reason });
                }
            }
            Schedule::Warmup { then, .. } => then.check()?,
        }
        Ok(())
    }
}

/// How much of `steps` has passed, at most 1.
fn share(step: u64, steps: f64) -> f64 {
    if step as f64 >= steps {
        1.0
    } else {
        step as f64 / steps
    }
}

/// From `start` to `end` along half a cosine.
fn cosine(start: f64, end: f64, share: f64) -> f64 {
    if share == 1.0 {
        end // exactly
    } else {
        end + (start - end) * (1.0 + (PI * share).cos()) / 2.0
    }
}
