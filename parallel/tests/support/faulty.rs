//! Pipelines in which a rank fails at an action of the plan by an error, a panic or a stall, and what the ranks are told.

use crate::models::{batch, loss, parts};
use crate::ranks::device_for;
use crate::rng::Rng;
use phalanx_autograd::nn::{Module, Visitor};
use phalanx_autograd::{Grads, Tape, Var, Vjp};
use phalanx_comm::ProcessGroup;
use phalanx_parallel::pipeline::{
    Action, Kind, Lowering, Named, Pipeline, PipelineConfig, Schedule, lower,
};
use phalanx_parallel::{Error, Result};
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
    inner: Box<dyn Module>,
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
    fn forward(&self, _: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        Ok(x.clone())
    }
    fn forward_all(&self, tape: &Tape, inputs: &[Var]) -> phalanx_autograd::Result<Vec<Var>> {
        let strikes = self.calls.fetch_add(1, Relaxed) == self.microbatch;
        if strikes && self.forward {
            self.fault.strike()?;
        }
        let y = self.inner.forward_all(tape, inputs)?.remove(0);
        let fault = (strikes && !self.forward).then_some(self.fault);
        Ok(vec![Var::from_vjp(tape, &[&y], y.value().clone(), |_| {
            Trap(fault)
        })?])
    }
    fn visit(&self, v: &mut Visitor<'_>) {
        self.inner.visit(v);
    }
}

/// A plan, the action of it in which its rank fails, and how.
pub struct Case {
    pub name: String,
    pub plan: Schedule,
    pub at: Action,
    pub fault: Fault,
}

impl Case {
    /// A named plan for so many ranks.
    pub fn random(rng: &mut Rng, ranks: usize) -> Case {
        loop {
            let named = *rng.pick(&Named::ALL);
            let Ok(plan) = named.schedule(ranks, named.default_stages_per_rank(), 8) else {
                continue;
            };
            let plan = lower(&plan, &Lowering::default()).unwrap();
            let actions = plan.ranks().iter().flatten().copied();
            let compute = actions.filter(|a| a.kind().is_compute() && a.kind() != Kind::Weight);
            let at = *rng.pick(&compute.collect::<Vec<Action>>());
            let fault = *rng.pick(&[Fault::Error, Fault::Panic, Fault::Stall]);
            return Case {
                name: format!("{named} on {ranks} ranks, {fault:?} in {at}"),
                plan,
                at,
                fault,
            };
        }
    }

    /// The rank that fails.
    pub fn culprit(&self) -> usize {
        self.plan.rank_of(self.at.stage())
    }

    /// What a rank is told.
    ///
    /// # Errors
    /// The pipeline was not made.
    pub fn play(&self, group: Arc<dyn ProcessGroup>) -> Result<String> {
        let Case {
            plan, at, fault, ..
        } = self;
        let (rank, device) = (group.rank(), group.device());
        let stages = plan.stages_of(rank).map(|s| {
            let inner = parts(plan.graph(), s, DType::F32, device);
            if s != at.stage() {
                return (s, inner);
            }
            let faulty = Faulty {
                inner,
                fault: *fault,
                forward: at.kind() == Kind::Forward,
                microbatch: at.microbatch(),
                calls: AtomicUsize::new(0),
            };
            (s, Box::new(faulty) as Box<dyn Module>)
        });
        let stages = stages.collect();
        let mut pipeline = Pipeline::new(group, plan, stages, loss, PipelineConfig::default())?;
        let (x, y) = batch(2 * plan.microbatches(), 0, DType::F32, device).unwrap();
        let error = pipeline
            .step(from_ref(&x), from_ref(&y))
            .map(drop)
            .expect_err("a rank has failed");
        let again = pipeline
            .step(&[x], &[y])
            .map(drop)
            .expect_err("it is poisoned");
        assert!(matches!(again, Error::Poisoned { .. }), "{again}");
        Ok(error.to_string())
    }

    /// Whether a sentence says what went wrong: an error and a panic with stage, action and microbatch; a stall with the
    /// action in which somebody waited in vain, and the rank that stalls.
    pub fn is_told(&self, sentence: &str) -> bool {
        let at = self.at;
        match self.fault {
            Fault::Stall => {
                let rank = self.culprit().to_string();
                // "for rank 1, which waits in … for rank 3", or "for ranks 0, 3".
                let missing = sentence.split(" for rank").skip(1);
                let mut missing = missing.flat_map(|rest| {
                    let end = rest.find([';', ':']).unwrap_or(rest.len());
                    let ranks = rest[..end].split(", which").next().unwrap_or_default();
                    ranks.trim_start_matches('s').split(',').map(str::trim)
                });
                // The action in which somebody waits, such as "(owner 3, step 0, part 0: 1RECV_F2)"; who is through waits in
                // the end of the step.
                let place = sentence.split("step 0, part ").nth(1).unwrap_or_default();
                let named = match place.split_once(": ").unwrap_or_default() {
                    ("0", action) => action
                        .split(')')
                        .next()
                        .unwrap_or_default()
                        .parse::<Action>()
                        .is_ok(),
                    ("1", end) => end.starts_with("the end of the step"),
                    _ => false,
                };
                named && sentence.contains(" waited ") && missing.any(|other| other == rank)
            }
            Fault::Error | Fault::Panic => {
                // What belongs to the weights alone happens in the second half of a backward.
                let half = Action::compute(Kind::Weight, at.stage() as u16, at.microbatch() as u16);
                let mut actions = [at, half].into_iter();
                actions.any(|action| sentence.contains(&format!(" {action} ")))
            }
        }
    }
}
