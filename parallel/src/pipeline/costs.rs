//! What the stages of a plan cost, in any unit of time and in bytes.

use super::{Kind, PlanError};

/// A time that is the same for every microbatch, or one for each.
#[derive(Clone, Debug, PartialEq)]
pub enum Cost {
    /// The same for all.
    All(f64),
    /// One per microbatch.
    Each(Vec<f64>),
}

impl Cost {
    /// The time for one microbatch.
    ///
    /// # Panics
    /// If there is one per microbatch and this is not among them; [`Costs::check`] tells before.
    pub fn of(&self, microbatch: usize) -> f64 {
        match self {
            Cost::All(time) => *time,
            Cost::Each(times) => times[microbatch],
        }
    }

    fn fits(&self, microbatches: usize) -> bool {
        let fine = |t: &f64| t.is_finite() && *t >= 0.0;
        match self {
            Cost::All(time) => fine(time),
            Cost::Each(times) => times.len() == microbatches && times.iter().all(fine),
        }
    }
}

impl From<f64> for Cost {
    fn from(time: f64) -> Self {
        Cost::All(time)
    }
}

/// What one stage costs per microbatch, and at the end of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StageCosts {
    /// F.
    pub forward: Cost,
    /// I.
    pub input: Cost,
    /// W.
    pub weight: Cost,
    /// B, where the whole backward pass is not simply I and W one after the other.
    pub backward: Option<Cost>,
    /// To bring an output to another rank, and the gradient of it back; 0 between stages of one
    /// rank.
    pub transfer: f64,
    /// To average the gradients over the replicas (`REDUCE_GRAD`), once in a step and beside the compute.
    pub reduce: f64,
    /// To exchange the gradients of what it shares with a stage of another rank (`REDUCE_TIED`), once in a step; of two
    /// stages that differ, the longer time counts.
    pub tied: f64,
    /// Bytes that a microbatch holds from its forward to the end of its backward.
    pub activation: u64,
    /// Bytes out of those that are still held between I and W.
    pub kept_for_weight: u64,
    /// Bytes held all the time: parameters, gradients, optimizer state.
    pub resident: u64,
}

impl StageCosts {
    /// A stage with these times, free transfers and collectives, and one byte of activation.
    pub fn new(forward: f64, input: f64, weight: f64) -> Self {
        Self {
            forward: forward.into(),
            input: input.into(),
            weight: weight.into(),
            backward: None,
            transfer: 0.0,
            reduce: 0.0,
            tied: 0.0,
            activation: 1,
            kept_for_weight: 1,
            resident: 0,
        }
    }

    /// The time that a compute action takes; 0 for other kinds.
    pub fn time(&self, kind: Kind, microbatch: usize) -> f64 {
        match kind {
            Kind::Forward => self.forward.of(microbatch),
            Kind::Input => self.input.of(microbatch),
            Kind::Weight => self.weight.of(microbatch),
            Kind::Backward => match &self.backward {
                Some(cost) => cost.of(microbatch),
                None => self.input.of(microbatch) + self.weight.of(microbatch),
            },
            _ => 0.0,
        }
    }
}

/// What every stage costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// By stage.
    pub stages: Vec<StageCosts>,
}

impl Costs {
    /// F = I = W = 1, so B = 2, and free transfers.
    pub fn unit(stages: usize) -> Self {
        Self {
            stages: vec![StageCosts::new(1.0, 1.0, 1.0); stages],
        }
    }

    /// The same costs with every transfer taking so long.
    #[must_use]
    pub fn with_transfer(mut self, time: f64) -> Self {
        for stage in &mut self.stages {
            stage.transfer = time;
        }
        self
    }

    /// Whether there are costs for so many stages and microbatches, none of them negative or not a
    /// number.
    ///
    /// # Errors
    /// [`PlanError::Costs`] names the first stage that does not fit.
    pub fn check(&self, stages: usize, microbatches: usize) -> Result<(), PlanError> {
        let wrong = |reason| Err(PlanError::Costs { reason });
        if self.stages.len() != stages {
            let given = self.stages.len();
            return wrong(format!("there are {stages} stages, but costs for {given}"));
        }
        for (s, stage) in self.stages.iter().enumerate() {
            let all = [
                ("forward", Some(&stage.forward)),
                ("input", Some(&stage.input)),
                ("weight", Some(&stage.weight)),
                ("backward", stage.backward.as_ref()),
            ];
            for (name, cost) in all {
                if cost.is_some_and(|c| !c.fits(microbatches)) {
                    return wrong(format!(
                        "the {name} times of stage {s} must be one number, or one for each of \
                         {microbatches} microbatches, and none may be negative"
                    ));
                }
            }
            let all = [
                ("transfer", stage.transfer),
                ("reduce", stage.reduce),
                ("tied", stage.tied),
            ];
            for (name, time) in all {
                if !(time.is_finite() && time >= 0.0) {
                    return wrong(format!(
                        "the {name} time of stage {s} must be finite, and not negative"
                    ));
                }
            }
            if stage.kept_for_weight > stage.activation {
                return wrong(format!("stage {s} keeps more for its W than it has"));
            }
        }
        Ok(())
    }
}
