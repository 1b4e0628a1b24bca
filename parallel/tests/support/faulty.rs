//! Pipelines in which a rank fails at an action of the plan by an error, a panic or a stall, and what the ranks are told.

use crate::models::{CLASSES, INPUTS, batch, loss};
use crate::ranks::device_for;
use crate::rng::Rng;
use phalanx_autograd::nn::{Linear, Module, Visitor};
use phalanx_autograd::{Grads, Tape, Var, Vjp};
use phalanx_comm::ProcessGroup;
use phalanx_parallel::pipeline::{
    Action, Kind, Layers, Lowering, Named, Pipeline, PipelineConfig, Schedule, lower,
};
use phalanx_parallel::{Error, Mesh, Result};
use phalanx_tensor::{DType, Tensor};
use std::slice::from_ref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    Error,
    Panic,
    Stall,
}

/// Long enough that a rank which has to wait for a core, or for the first use of a card's kernel, is not taken for one that
/// stalls.
pub fn deadline() -> Duration {
    let on_cpu = device_for(1).is_cpu();
    Duration::from_millis(if on_cpu { 1500 } else { 6000 })
}

impl Fault {
    fn strike(self) -> phalanx_autograd::Result<()> {
        match self {
            Fault::Error => Err(phalanx_autograd::Error::other("on purpose")),
            Fault::Panic => panic!("on purpose"),
            Fault::Stall => {
                std::thread::sleep(deadline() + deadline() / 3);
                Ok(())
            }
        }
    }
}

/// A stage that fails in the forward or the backward of one microbatch. The microbatches come in ascending order.
struct Faulty {
    inner: Linear,
    fault: Fault,
    forward: bool,
    microbatch: usize,
    calls: AtomicUsize,
}

#[derive(Debug)]
struct Trap(Option<Fault>);

impl Vjp for Trap {
    fn name(&self) -> &'static str {
        "trap"
    }
    fn backward(&self, grad: Tensor, _: &[bool]) -> phalanx_autograd::Result<Grads> {
        self.0.map_or(Ok(()), Fault::strike)?;
        Ok(Grads::from_iter([Some(grad)]))
    }
    fn saved_bytes(&self) -> usize {
        0
    }
}

impl Module for Faulty {
    fn forward(&self, tape: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        let strikes = self.calls.fetch_add(1, Relaxed) == self.microbatch;
        if strikes && self.forward {
            self.fault.strike()?;
        }
        let y = self.inner.forward(tape, x)?;
        let fault = (strikes && !self.forward).then_some(self.fault);
        Var::from_vjp(tape, &[&y], y.value().clone(), |_| Trap(fault))
    }
    fn visit(&self, v: &mut Visitor<'_>) {
        self.inner.visit(v);
    }
}

/// A plan, over replicas or not, with a weight that two stages share or not, the action in which a rank fails, and how.
pub struct Case {
    pub name: String,
    plan: Schedule,
    replicas: usize,
    /// The replica of the rank that fails.
    replica: usize,
    /// Stages whose biases are one parameter.
    tied: Option<(usize, usize)>,
    at: Action,
    pub fault: Fault,
}

impl Case {
    /// A named plan for so many ranks in all.
    pub fn random(rng: &mut Rng, ranks: usize) -> Case {
        loop {
            let replicas = match ranks.is_multiple_of(2) && rng.below(3) == 0 {
                true => 2,
                false => 1,
            };
            let named = *rng.pick(&Named::ALL);
            let per_rank = named.default_stages_per_rank();
            let Ok(plan) = named.schedule(ranks / replicas, per_rank, 8) else {
                continue;
            };
            // As it runs: halves of a backward may have become one.
            let lowered = lower(&plan, &Lowering::default()).unwrap();
            let actions = lowered.ranks().iter().flatten().copied();
            let compute = actions.filter(|a| a.kind().is_compute() && a.kind() != Kind::Weight);
            let at = *rng.pick(&compute.collect::<Vec<Action>>());
            let fault = *rng.pick(&[Fault::Error, Fault::Panic, Fault::Stall]);
            let replica = rng.below(replicas);
            let second = rng.below(plan.stages());
            let tied = (second > 0 && rng.below(2) == 0).then(|| (rng.below(second), second));
            return Case {
                name: format!(
                    "{named} on {ranks} ranks in {replicas} replicas, tied {tied:?}, {fault:?} in {at} of replica {replica}"
                ),
                plan,
                replicas,
                replica,
                tied,
                at,
                fault,
            };
        }
    }

    pub fn ranks(&self) -> usize {
        self.replicas * self.plan.rank_count()
    }

    /// The rank that fails, by its number in the world.
    pub fn culprit(&self) -> usize {
        self.replica * self.plan.rank_count() + self.plan.rank_of(self.at.stage())
    }

    /// A layer for each stage, of which one fails where this rank is the one to do so.
    fn model(&self, is_culprit: bool) -> Layers {
        let path = |stage: usize| format!("s{stage}");
        let (at, fault) = (self.at, self.fault);
        let layers = (0..self.plan.stages()).fold(Layers::new(3), |layers, stage| {
            layers.layer(path(stage), move |f| {
                let inputs = if stage == 0 { INPUTS } else { CLASSES };
                let inner = Linear::new(inputs, CLASSES, f)?;
                Ok(match is_culprit && stage == at.stage() {
                    false => Box::new(inner),
                    true => Box::new(Faulty {
                        inner,
                        fault,
                        forward: at.kind() == Kind::Forward,
                        microbatch: at.microbatch(),
                        calls: AtomicUsize::new(0),
                    }),
                })
            })
        });
        match self.tied {
            None => layers,
            Some((a, b)) => {
                let [a, b] = [a, b].map(|stage| format!("{}.bias", path(stage)));
                layers.tie(a, b)
            }
        }
    }

    /// What a rank is told.
    ///
    /// # Errors
    /// The pipeline was not made.
    pub fn play(&self, group: Arc<dyn ProcessGroup>) -> Result<String> {
        let plan = &self.plan;
        let (device, is_culprit) = (group.device(), group.rank() == self.culprit());
        let mesh = Mesh::new(
            group,
            [("data", self.replicas), ("pipe", plan.rank_count())],
        )?;
        let config = PipelineConfig {
            data: (self.replicas > 1)
                .then(|| mesh.group("data"))
                .transpose()?,
            ..PipelineConfig::default()
        };
        let layers = self.model(is_culprit);
        let cuts: Vec<usize> = (0..plan.stages()).collect();
        let model = (&layers, &cuts[..]);
        let mut pipeline =
            Pipeline::of_layers(mesh.group("pipe")?, plan, model, DType::F32, loss, config)?;
        let (x, y) = batch(2 * plan.microbatches(), 0, DType::F32, device).unwrap();
        let error = pipeline
            .step(from_ref(&x), from_ref(&y))
            .map(drop)
            .expect_err("a rank has failed");
        let again = pipeline
            .step(&[x], &[y])
            .map(drop)
            .expect_err("it is poisoned");
        // The other replica may have failed before this one began its step: then it refuses with the same error.
        let is_other = mesh.coordinate("data")? != self.replica;
        let is_as_before = is_other && again.to_string() == error.to_string();
        assert!(
            matches!(again, Error::Poisoned { .. }) || is_as_before,
            "{again}, after {error}"
        );
        Ok(error.to_string())
    }

    /// Whether a sentence says what went wrong, with stage, action and microbatch; of a stall also who stalls.
    pub fn is_told(&self, sentence: &str) -> bool {
        // What belongs to the weights alone happens in the second half of a backward.
        let (stage, microbatch) = (self.at.stage() as u16, self.at.microbatch() as u16);
        let half = Action::compute(Kind::Weight, stage, microbatch);
        let mut actions = [self.at, half].into_iter();
        match self.fault {
            Fault::Stall => {
                let who = format!("rank {}", self.culprit());
                let (before, place) = sentence
                    .split_once(" waits in no call, but is in ")
                    .unwrap_or_default();
                // "for rank 1, which waits …", or "for ranks 0, 3; rank 0 waits …".
                let is_named = before.trim_end_matches(", which").ends_with(&who);
                let mut is_there = |action| {
                    let rest = place.strip_prefix(&format!("step 0, {action}"));
                    rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
                };
                sentence.contains(" waited ") && is_named && actions.any(&mut is_there)
            }
            Fault::Error | Fault::Panic => {
                actions.any(|action| sentence.contains(&format!(" {action} ")))
            }
        }
    }
}
