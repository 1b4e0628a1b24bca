//! A rank that fails at a random action: every rank hears of it in time; of an error and a panic with the stage, the action
//! and the microbatch, of a stall with the rank that is waited for.

use crate::models::{batch, loss, parts};
use crate::ranks::device_for;
use crate::rng::Rng;
use phalanx_autograd::nn::{Module, Visitor};
use phalanx_autograd::{Grads, Tape, Var, Vjp};
use phalanx_comm::{LaunchConfig, ProcessGroup};
use phalanx_parallel::pipeline::{
    Action, Kind, Lowering, Named, Pipeline, PipelineConfig, Schedule, lower,
};
use phalanx_parallel::{Error, Result};
use phalanx_tensor::{DType, Tensor};
use std::slice::from_ref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Error,
    Panic,
    Stall,
}

/// Long enough that a rank which has to wait for a core, or for the first use of a card's kernel, is not taken for one that
/// stalls.
fn deadline() -> Duration {
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

/// What a rank's program ends with.
fn program(
    group: Arc<dyn ProcessGroup>,
    plan: &Schedule,
    at: Action,
    fault: Fault,
) -> Result<String, String> {
    let (rank, device) = (group.rank(), group.device());
    let stages = plan.stages_of(rank).map(|s| {
        let inner = parts(plan.graph(), s, DType::F32, device);
        if s != at.stage() {
            return (s, inner);
        }
        let faulty = Faulty {
            inner,
            fault,
            forward: at.kind() == Kind::Forward,
            microbatch: at.microbatch(),
            calls: AtomicUsize::new(0),
        };
        (s, Box::new(faulty) as Box<dyn Module>)
    });
    let words = |error: Error| error.to_string();
    let stages = stages.collect();
    let mut pipeline =
        Pipeline::new(group, plan, stages, loss, PipelineConfig::default()).map_err(words)?;
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

/// The sentences that the ranks get, and how long it took.
fn strike(plan: &Schedule, at: Action, fault: Fault) -> (Vec<String>, Duration) {
    let start = Instant::now();
    let ranks = plan.rank_count();
    let config = LaunchConfig::new(ranks)
        .deadline(deadline())
        .device(device_for(ranks));
    let heard = std::sync::Mutex::new(Vec::new());
    let ends = phalanx_comm::launch(config, |group| {
        let end = program(group, plan, at, fault);
        heard.lock().unwrap().push(end.clone());
        end.map(drop)
    });
    drop(ends); // a panic's launch has failed, the others' programs have ended well
    let heard = heard.into_inner().unwrap().into_iter();
    (
        heard
            .map(|end| end.unwrap_or_else(|e| panic!("{e}")))
            .collect(),
        start.elapsed(),
    )
}

/// A case: a plan, an action of it, and what goes wrong there.
fn case(rng: &mut Rng) -> (String, Schedule, Action, Fault) {
    loop {
        let named = *rng.pick(&Named::ALL);
        let (p, m) = (2 + rng.below(3), 8);
        let Ok(plan) = named.schedule(p, named.default_stages_per_rank(), m) else {
            continue;
        };
        let plan = lower(&plan, &Lowering::default()).unwrap();
        let actions = plan.ranks().iter().flatten().copied();
        let compute = actions.filter(|a| a.kind().is_compute() && a.kind() != Kind::Weight);
        let at = *rng.pick(&compute.collect::<Vec<Action>>());
        let fault = *rng.pick(&[Fault::Error, Fault::Panic, Fault::Stall]);
        let name = format!("{named} on {p} ranks, {fault:?} in {at}");
        return (name, plan, at, fault);
    }
}

#[test]
fn one_error_on_every_rank() {
    let mut rng = Rng(7);
    // On cards fewer, and one after the other: launches share the cards.
    let (count, at_once) = if device_for(1).is_cpu() {
        (200, 4)
    } else {
        (15, 1)
    };
    let cases: Vec<_> = (0..count).map(|_| case(&mut rng)).collect();
    // Most of the time somebody sleeps: several at once.
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some((name, plan, at, fault)) = cases.get(next.fetch_add(1, Relaxed)) {
                    check(name, plan, *at, *fault);
                }
            });
        }
    });
}

fn check(name: &str, plan: &Schedule, at: Action, fault: Fault) {
    let (heard, took) = strike(plan, at, fault);
    let ranks = plan.rank_count() - usize::from(fault == Fault::Panic);
    assert_eq!(heard.len(), ranks, "{name}");
    // What belongs to the weights alone happens in the second half of a backward.
    let half = Action::compute(Kind::Weight, at.stage() as u16, at.microbatch() as u16);
    let names = |s: &&String| [at, half].iter().any(|a| s.contains(&format!(" {a} ")));
    for sentence in &heard {
        match fault {
            // All get the failure of the rank whose patience ended first: in what it waited, and for whom.
            Fault::Stall => {
                let rank = plan.rank_of(at.stage()).to_string();
                // "for rank 1, which waits in … for rank 3", or "for ranks 0, 3".
                let missing = sentence.split(" for rank").skip(1);
                let mut missing = missing.flat_map(|rest| {
                    let end = rest.find([';', ':']).unwrap_or(rest.len());
                    let ranks = rest[..end].split(", which").next().unwrap_or_default();
                    ranks.trim_start_matches('s').split(',').map(str::trim)
                });
                let told = sentence.contains(" waited ") && missing.any(|other| other == rank);
                assert!(told, "{name}: {sentence}");
            }
            _ => assert!(names(&sentence), "{name}: {sentence}"),
        }
    }
    assert!(
        took < 3 * deadline() + Duration::from_secs(2),
        "{name}: {took:?}"
    );
}
