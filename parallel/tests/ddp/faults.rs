//! One rank of three fails in the middle of a step: the others learn which one, and nobody hangs.

use crate::model::{Mlp, mse};
use phalanx_autograd::nn::Module;
use phalanx_autograd::{Error as AutogradError, Grads, Tape, Var, Vjp};
use phalanx_comm::{Error as CommError, FailureKind, LaunchConfig, LaunchError};
use phalanx_comm::{ProcessGroup, ReduceOp, launch};
use phalanx_parallel::{CommHook, Completion, Ddp, DdpConfig, Error, GradBucket, Result};
use phalanx_tensor::{DType, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

const WORLD: usize = 3;
const BAD: usize = 1;
const DEADLINE: Duration = Duration::from_secs(20);
const DIMS: [usize; 4] = [3, 5, 4, 2];

/// Where the bad rank's second step goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    SweepFails,
    SweepPanics,
    StartFails,
    CompletionFails,
    TooLong,
    OtherType,
}

fn fault(what: &str) -> AutogradError {
    AutogradError::other(format!("a fault in {what}"))
}

/// An exact average that goes wrong on the second bucket of the second step.
struct Hook {
    /// `None` on the ranks that are well.
    fault: Option<Fault>,
    buckets_of_a_step: usize,
    started: AtomicUsize,
    finished: Arc<AtomicUsize>,
}

impl Hook {
    fn in_flight(&self) -> usize {
        self.started.load(Relaxed) - self.finished.load(Relaxed)
    }
}

impl CommHook for Hook {
    fn start(
        &self,
        group: &Arc<dyn ProcessGroup>,
        bucket: GradBucket<'_>,
    ) -> Result<Box<dyn Completion>> {
        let now = self.started.load(Relaxed) == self.buckets_of_a_step + 1;
        let fault_here = self.fault.filter(|_| now);
        if fault_here == Some(Fault::StartFails) {
            assert_eq!(self.in_flight(), 1);
            return Err(fault("start").into());
        }
        self.started.fetch_add(1, Relaxed);
        let work = group.all_reduce(bucket.buffer, ReduceOp::Sum)?;
        let finished = Arc::clone(&self.finished);
        Ok(Box::new(move || {
            let sum = work.wait()?;
            finished.fetch_add(1, Relaxed);
            match fault_here {
                Some(Fault::CompletionFails) => Err(fault("completion").into()),
                Some(Fault::TooLong) => Ok(Tensor::cat(&[&sum, &sum], 0)?),
                Some(Fault::OtherType) => Ok(sum.cast(DType::F32)?),
                _ => Ok(sum),
            }
        }))
    }
}

/// The identity, whose backward goes wrong.
#[derive(Debug)]
struct Broken(Option<Fault>);

impl Vjp for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn backward(&self, grad: Tensor, _: &[bool]) -> phalanx_autograd::Result<Grads> {
        match self.0 {
            Some(Fault::SweepFails) => Err(fault("the sweep")),
            Some(Fault::SweepPanics) => panic!("a fault in the sweep"),
            _ => Ok([Some(grad)].into_iter().collect()),
        }
    }

    fn saved_bytes(&self) -> usize {
        0
    }
}

/// The model with a [`Broken`] before its last layer, whose two gradients are then under way.
fn forward(ddp: &Ddp<Mlp>, tape: &Tape, fault: Option<Fault>) -> Result<Var> {
    let device = ddp.group().device();
    let mut x = tape.constant(Tensor::ones([4, DIMS[0]], DType::F64, device)?);
    let (last, first) = ddp.module().0.split_last().unwrap();
    for layer in first {
        x = layer.forward(tape, &x)?.tanh()?;
    }
    let x = Var::from_vjp(tape, &[&x], x.value().clone(), |_| Broken(fault))?;
    let y = tape.constant(Tensor::zeros([4, DIMS[3]], DType::F64, device)?);
    Ok(mse(&last.forward(tape, &x)?, &y)?)
}

/// What all ranks end with when [`BAD`] fails; at most the deadline may pass until then.
fn failures(
    program: impl Fn(Arc<dyn ProcessGroup>) -> Result<()> + Sync,
) -> Vec<FailureKind<Error>> {
    let start = Instant::now();
    let config = LaunchConfig::new(WORLD).deadline(DEADLINE);
    let Err(LaunchError::Ranks { first, others }) = launch(config, program) else {
        panic!("a rank has failed");
    };
    assert!(start.elapsed() < DEADLINE);
    assert_eq!(first.rank, BAD, "{first}");
    assert_eq!(others.len(), WORLD - 1, "nobody goes on without it");
    let mut all = vec![first];
    all.extend(others);
    all.sort_by_key(|failure| failure.rank);
    all.into_iter().map(|failure| failure.kind).collect()
}

/// Holds the other ranks to an error that names [`BAD`] and says what it said.
fn assert_others_know(ends: &[FailureKind<Error>], words: &str) {
    for (rank, end) in ends.iter().enumerate().filter(|(rank, _)| *rank != BAD) {
        let told = match end {
            FailureKind::Error(Error::Comm(
                CommError::RankFailed { rank: BAD, message }
                | CommError::RankPanicked { rank: BAD, message },
            )) => message.contains(words),
            _ => false,
        };
        assert!(told, "rank {rank} ended with {end:?}, not with `{words}`");
    }
}

/// Three steps on every rank with a bucket for each parameter; the bad rank's second goes wrong.
fn three_steps(fault: Fault, hooked: bool) -> Vec<FailureKind<Error>> {
    failures(|group| {
        let (rank, device) = (group.rank(), group.device());
        let fault = (rank == BAD).then_some(fault);
        let hook = Arc::new(Hook {
            fault,
            buckets_of_a_step: 2 * (DIMS.len() - 1),
            started: AtomicUsize::new(0),
            finished: Arc::default(),
        });
        let config = DdpConfig {
            in_place_bytes: Some(1),
            hook: hooked.then(|| Arc::clone(&hook) as Arc<dyn CommHook>),
            ..Default::default()
        };
        let ddp = Ddp::new(Mlp::new(&DIMS, DType::F64, device, 5), group, config)?;
        for step in 0..3 {
            let tape = Tape::new();
            let loss = forward(&ddp, &tape, fault.filter(|_| step == 1))?;
            ddp.backward(&tape, &loss).inspect_err(|_| {
                assert!(
                    fault.is_none() || step == 1,
                    "rank {rank} failed in step {step}"
                );
            })?;
            assert!(fault.is_none() || step == 0, "the fault went unnoticed");
            assert_eq!(hook.in_flight(), 0);
        }
        Ok(())
    })
}

#[test]
fn a_sweep_that_fails_with_reductions_in_flight() {
    for hooked in [false, true] {
        let ends = three_steps(Fault::SweepFails, hooked);
        assert!(
            matches!(&ends[BAD], FailureKind::Error(Error::Autograd(e)) if e.to_string().contains("the sweep")),
            "{:?}",
            ends[BAD]
        );
        assert_others_know(&ends, "a fault in the sweep");
    }
}

#[test]
fn a_sweep_that_panics_with_reductions_in_flight() {
    let ends = three_steps(Fault::SweepPanics, false);
    assert!(matches!(&ends[BAD], FailureKind::Panic(m) if m == "a fault in the sweep"));
    assert_others_know(&ends, "a fault in the sweep");
}

#[test]
fn a_hook_that_fails() {
    for (fault, words) in [
        (Fault::StartFails, "a fault in start"),
        (Fault::CompletionFails, "a fault in completion"),
    ] {
        let ends = three_steps(fault, true);
        assert!(
            matches!(&ends[BAD], FailureKind::Error(Error::Autograd(e)) if e.to_string() == words),
            "as the hook said it: {:?}",
            ends[BAD]
        );
        assert_others_know(&ends, words);
    }
}

#[test]
fn a_hook_that_returns_what_is_no_bucket() {
    for fault in [Fault::TooLong, Fault::OtherType] {
        let ends = three_steps(fault, true);
        let FailureKind::Error(Error::HookResult {
            rank: BAD,
            bucket: 1,
            shape,
            dtype: DType::F64,
            found_shape,
            found_dtype,
        }) = &ends[BAD]
        else {
            panic!("{:?}", ends[BAD]);
        };
        let (length, found) = (shape.numel(), found_shape.numel());
        match fault {
            Fault::TooLong => assert_eq!((found, *found_dtype), (2 * length, DType::F64)),
            _ => assert_eq!((found, *found_dtype), (length, DType::F32)),
        }
        assert_others_know(&ends, "for bucket 1");
    }
}

#[test]
fn a_step_that_fails_inside_join() {
    // The others train on, or have joined as well.
    for steps_of in [[3, 0, 3], [3, 1, 2], [0, 0, 3]] {
        let ends = failures(|group| {
            let (rank, device) = (group.rank(), group.device());
            let config = DdpConfig {
                uneven_inputs: true,
                ..Default::default()
            };
            let ddp = Ddp::new(Mlp::new(&DIMS, DType::F64, device, 5), group, config)?;
            for _ in 0..steps_of[rank] {
                let tape = Tape::new();
                ddp.backward(&tape, &forward(&ddp, &tape, None)?)?;
            }
            let step = |_: &_| match rank {
                BAD => Err(fault("the optimizer").into()),
                _ => Ok(()),
            };
            ddp.join(step).map(drop)
        });
        assert!(
            matches!(&ends[BAD], FailureKind::Error(Error::Autograd(e)) if e.to_string() == "a fault in the optimizer"),
            "{:?}",
            ends[BAD]
        );
        assert_others_know(&ends, "a fault in the optimizer");
    }
}
