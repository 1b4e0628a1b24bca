//! Data parallelism: one replica of the module per rank, gradients averaged while backward runs.

mod config;
mod replica;
mod step;

pub use crate::reduce::{
    CommHook, Completion, Compress, GradBucket, PowerSgd, PowerSgdConfig, Trace, TraceEvent,
    bucket, bucket::Bucket,
};
pub use crate::talk::agree;
pub use config::DdpConfig;

use crate::reduce::{self, Average, GradReducer, Turn};
use crate::{Error, Result};
use phalanx_autograd::nn::{Module, Visitor};
use phalanx_autograd::{Claim, Gradients, Param, Tape, Var};
use phalanx_comm::ProcessGroup;
use replica::Replica;
use std::sync::Arc;
use step::Joint;

/// A replica of a module, kept equal to the replicas of the other ranks
/// (PyTorch: `DistributedDataParallel`; Li et al., *PyTorch Distributed*, VLDB 2020).
///
/// [`backward`](Ddp::backward) returns gradients averaged over the ranks. The average of each
/// bucket of gradients is on its way while the sweep still runs, from the first step on: the tape
/// knows before the sweep which parameters the loss reaches and in which order their gradients
/// become final. Where ranks are threads, which move data themselves, each does a small share of
/// it whenever a gradient has become final. A replica that is alone in its group sends nothing, and
/// may live on a card, for which no step waits.
///
/// ```
/// use phalanx_autograd::nn::{Factory, Linear, Module};
/// use phalanx_autograd::{Tape, optim::{Optimizer, Sgd, SgdConfig}};
/// use phalanx_comm::launch;
/// use phalanx_parallel::{Ddp, DdpConfig};
/// use phalanx_tensor::{DType, Device, Tensor};
///
/// let losses = launch(2, |group| -> phalanx_parallel::Result<f64> {
///     let device = Device::cpu(group.rank());
///     let model = Linear::new(4, 1, &mut Factory::new(device, 0))?;
///     let ddp = Ddp::new(model, group.clone(), DdpConfig::default())?;
///     let mut sgd = Sgd::new(ddp.parameters(), SgdConfig { lr: 0.1, ..Default::default() })?;
///     let x = Tensor::full([8, 4], 1.0 + group.rank() as f64, DType::F32, device)?;
///     let mut last = 0.0;
///     for _ in 0..3 {
///         let tape = Tape::new();
///         let y = ddp.forward(&tape, &tape.constant(x.clone()))?;
///         let loss = y.square()?.mean_all()?;
///         let gradients = ddp.backward(&tape, &loss)?; // averaged over both ranks
///         sgd.step(&gradients)?;
///         last = loss.value().item::<f64>()?;
///     }
///     Ok(last)
/// })?;
/// assert_eq!(losses.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Ddp<M> {
    module: M,
    replica: Replica,
}

impl<M: Module> Ddp<M> {
    /// Wraps `module`. Checks that all ranks hold the same parameters and buffers (names, shapes,
    /// element types, in order; frozen ones too) and use the same configuration, then takes rank 0's
    /// values, which are written in place. Every rank must call it.
    ///
    /// The wrapper claims the parameters: as long as it lives, a plain [`Tape::backward`] that reaches
    /// one is an error, since that rank's replica would go its own way.
    ///
    /// A parameter may be frozen later, and thawed again. One that is frozen now stays out of the
    /// averages: thawing it is [`Error::Thawed`] in the next backward, and wants a new `Ddp`.
    ///
    /// # Errors
    /// [`Error::ReplicasDiffer`], the same on every rank, where a rank's module or configuration is
    /// another one; [`ClaimedTwice`](phalanx_autograd::Error::ClaimedTwice) where another wrapper holds
    /// a parameter; errors of the communication.
    pub fn new(module: M, group: Arc<dyn ProcessGroup>, config: DdpConfig) -> Result<Ddp<M>> {
        let replica = Replica::new(&module, group, config)?;
        Ok(Ddp { module, replica })
    }

    /// The wrapped module.
    pub fn module(&self) -> &M {
        &self.module
    }

    /// Ends the wrapper, and hands the module out.
    pub fn into_module(self) -> M {
        self.module
    }

    /// The group that averages the gradients.
    pub fn group(&self) -> &Arc<dyn ProcessGroup> {
        self.replica.reducer.group()
    }

    /// The trainable parameters, in the module's order.
    pub fn parameters(&self) -> Vec<Param> {
        let params = self.replica.params().iter();
        params.map(|(_, p)| p.clone()).collect()
    }

    /// The claim on the parameters. A sweep that holds it makes this rank's own gradients, without
    /// communication: to look at them, not to train with them.
    pub fn claim(&self) -> &Claim {
        &self.replica.claim
    }

    /// The bucket plan, once the first step has agreed on it. Slots index
    /// [`parameters`](Ddp::parameters).
    pub fn buckets(&self) -> Option<Arc<[Bucket]>> {
        self.replica.reducer.buckets()
    }

    /// What averages the gradients, in the steps of this wrapper alone: to look at its figures.
    pub fn reducer(&self) -> &GradReducer {
        &self.replica.reducer
    }

    /// What happened when in the last backward, where [`DdpConfig::trace`] is set.
    pub fn trace(&self) -> Trace {
        self.replica.last().trace()
    }

    /// The last backward of all ranks as a Chrome trace, which Perfetto opens: see [`GradReducer::chrome_trace`]. Every rank
    /// must call it.
    ///
    /// # Errors
    /// [`Error::Poisoned`]; errors of a card, and of the communication.
    pub fn chrome_trace(&self) -> Result<String> {
        self.replica.expect_whole()?;
        self.replica.last().chrome_trace()
    }

    /// Differentiates `loss` and averages the gradients over all ranks, bucket by bucket while the
    /// sweep runs. Adds what [`accumulate`](Ddp::accumulate) has kept. Every rank must call it.
    ///
    /// Gradients that travel together lie in one buffer, which the next step fills again: drop them
    /// before it, or they keep that memory, and the step takes other memory, which
    /// [`stats`](GradReducer::stats) of the [`reducer`](Ddp::reducer) count.
    ///
    /// A parameter that the loss of no rank reaches has no gradient (not zero); one that only some
    /// reach gets their sum over the number of ranks. With [`DdpConfig::uneven_inputs`], the
    /// average is over the ranks that still have data. What is not the module's (inputs, parameters
    /// in [`DdpConfig::beside`]) has this rank's own gradient.
    ///
    /// # Errors
    /// Before anything is sent: [`Error::Thawed`]; [`Error::UnusedParameter`], where
    /// [`DdpConfig::find_unused_parameters`] is off;
    /// [`Unclaimed`](phalanx_autograd::Error::Unclaimed) for a parameter that the module never showed;
    /// [`Claimed`](phalanx_autograd::Error::Claimed) for one of another wrapper: see
    /// [`backward_all`]. Then errors of the sweep and of the communication; one of another rank is an
    /// error here too, at the latest in the next step. [`Error::HookResult`] for a hook's.
    ///
    /// After an error in the middle of a step every further call is [`Error::Poisoned`]: this rank may
    /// be a bucket behind the others.
    pub fn backward(&self, tape: &Tape, loss: &Var) -> Result<Gradients> {
        self.synchronised(tape, loss, None)
    }

    /// As [`backward`](Ddp::backward), but an average with weights: the gradients of rank *r* count
    /// *wᵣ* / Σ*w*. For a mean over tokens, say, where ranks hold different numbers of them: the
    /// loss is the mean over this rank's tokens, the weight their number. Every rank must call it.
    ///
    /// With a weight of 0 a rank counts for nothing, whatever its gradients are: not a number, say,
    /// for the mean over no token.
    ///
    /// # Errors
    /// As [`backward`](Ddp::backward); [`Error::InvalidWeight`] on every rank where one is
    /// negative or not finite, or all are zero.
    pub fn backward_weighted(&self, tape: &Tape, loss: &Var, weight: f64) -> Result<Gradients> {
        self.synchronised(tape, loss, Some(weight))
    }

    /// A step of this replica alone, with a weight where this rank has one of its own.
    fn synchronised(&self, tape: &Tape, loss: &Var, weight: Option<f64>) -> Result<Gradients> {
        let replica = &self.replica;
        backward_jointly(Joint::one(&replica), tape, loss, weight)
    }

    /// Differentiates `loss` and keeps the gradients for the next [`backward`](Ddp::backward),
    /// without communication (PyTorch: a backward inside `no_sync`). Gradients add up: divide the
    /// loss by the number of micro-steps where their mean is meant.
    ///
    /// # Errors
    /// Errors of the sweep; [`Error::Thawed`] and the like, as in [`backward`](Ddp::backward).
    pub fn accumulate(&self, tape: &Tape, loss: &Var) -> Result<()> {
        let replica = &self.replica;
        Joint::one(&replica).accumulate(tape, loss)
    }

    /// For a rank whose data has run out: takes part in the remaining steps of the others until
    /// all ranks have arrived here (PyTorch: the `join` context). Needs
    /// [`DdpConfig::uneven_inputs`]; [`DdpConfig::divide_by_initial_world_size`] says what the
    /// gradients of those steps are divided by.
    ///
    /// `step` gets the averaged gradients of each of those steps; let it run the optimizer, so that
    /// parameters and optimizer state stay equal on every rank. Returns the number of those steps.
    /// One that fails on the ranks with data because all of their weights are 0 is none.
    ///
    /// # Errors
    /// [`Error::InvalidUse`] without `uneven_inputs`, and where [`accumulate`](Ddp::accumulate) has
    /// left gradients that no [`backward`](Ddp::backward) has averaged: they would count for
    /// nothing. [`Error::InvalidWeight`], where a rank gives one that is no weight. Errors of the
    /// communication and of `step`; after these, [`Error::Poisoned`].
    pub fn join(&self, mut step: impl FnMut(&Gradients) -> Result<()>) -> Result<usize> {
        let replica = &self.replica;
        if !replica.config.uneven_inputs {
            return Err(Error::InvalidUse {
                op: "Ddp::join",
                reason: "set DdpConfig::uneven_inputs on every rank".into(),
            });
        }
        replica.expect_whole()?;
        if !replica.state().accumulated.is_empty() {
            return Err(Error::InvalidUse {
                op: "Ddp::join",
                reason: "gradients of accumulate are left over; let the last micro-step be a \
                         backward, which averages them"
                    .into(),
            });
        }
        let joint = Joint::one(&replica);
        let over_all = replica.config.divide_by_initial_world_size;
        let mut steps = 0;
        loop {
            match reduce::gather(replica.group(), Turn::Joined, over_all) {
                Ok(None) => return Ok(steps), // nobody has data
                Ok(Some(average)) => {
                    let gradients = joint.step(None, &average).map_err(hint)?;
                    joint.whole_or_broken(|| step(&gradients))?;
                }
                // Nobody's data counts: the others may go on with their next batch.
                Err(Error::InvalidWeight { rank: None, .. }) => continue,
                Err(error) => return Err(hint(error)),
            }
            steps += 1;
        }
    }

    /// Whether the parameters of all ranks are still equal, bit for bit (and the buffers, where
    /// [`DdpConfig::broadcast_buffers`] keeps them so). They are, as long as every rank gives its
    /// optimizer the averaged gradients and the same numbers; call it now and then, at the end of an
    /// epoch, say, since replicas that have drifted apart train on without a sign. Every rank must call
    /// it, between a step of the optimizer and the next forward pass.
    ///
    /// Reads every value once, and sends eight bytes for each parameter.
    ///
    /// # Errors
    /// [`Error::ReplicasDiffer`], the same on every rank; errors of the communication;
    /// [`Error::Poisoned`].
    pub fn check_replicas(&self) -> Result<()> {
        self.replica.expect_whole()?;
        self.replica.values_agree().map_err(hint)
    }
}

/// A backward over several wrapped modules, where one loss reaches the parameters of more than one: as
/// [`Ddp::backward`] of each, in one sweep. Every rank must call it, with the wrappers in the same
/// order. They share one group of ranks and one configuration, without
/// [`DdpConfig::uneven_inputs`].
///
/// ```
/// use phalanx_autograd::Tape;
/// use phalanx_autograd::nn::{Factory, Linear, Module};
/// use phalanx_comm::launch;
/// use phalanx_parallel::{Ddp, DdpConfig, ddp};
/// use phalanx_tensor::{DType, Device, Tensor};
///
/// launch(2, |group| -> phalanx_parallel::Result<()> {
///     let device = Device::cpu(group.rank());
///     let mut f = Factory::new(device, 0);
///     let encoder = Ddp::new(Linear::new(4, 3, &mut f)?, group.clone(), DdpConfig::default())?;
///     let head = Ddp::new(Linear::new(3, 1, &mut f)?, group.clone(), DdpConfig::default())?;
///     let tape = Tape::new();
///     let x = tape.constant(Tensor::ones([2, 4], DType::F32, device)?);
///     let loss = head.forward(&tape, &encoder.forward(&tape, &x)?)?.mean_all()?;
///     let gradients = ddp::backward_all(&[&encoder, &head], &tape, &loss)?;
///     assert_eq!(gradients.len(), 4);
///     Ok(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::InvalidUse`] for wrappers that cannot step together; as [`Ddp::backward`].
pub fn backward_all(wrappers: &[&dyn Wrapper], tape: &Tape, loss: &Var) -> Result<Gradients> {
    let replicas: Vec<&Replica> = wrappers.iter().map(|w| w.replica()).collect();
    let joint = Joint::new("backward_all", &replicas)?;
    backward_jointly(joint, tape, loss, None)
}

/// As [`Ddp::accumulate`], for a loss that reaches the parameters of several wrappers: what
/// [`backward_all`] is to [`Ddp::backward`].
///
/// # Errors
/// As [`backward_all`], but for those of the communication.
pub fn accumulate_all(wrappers: &[&dyn Wrapper], tape: &Tape, loss: &Var) -> Result<()> {
    let replicas: Vec<&Replica> = wrappers.iter().map(|w| w.replica()).collect();
    Joint::new("accumulate_all", &replicas)?.accumulate(tape, loss)
}

fn backward_jointly(
    joint: Joint<'_>,
    tape: &Tape,
    loss: &Var,
    weight: Option<f64>,
) -> Result<Gradients> {
    joint.expect_whole()?;
    let sweep = joint.plan_sweep(tape, loss)?;
    joint.expect_all(&sweep)?;
    let plain = joint.lead().config.uneven_inputs.then_some(Turn::Plain);
    let turn = weight.map(Turn::Weighted).or(plain);
    let average = match turn {
        Some(turn) => joint.average(turn).map_err(hint)?,
        None => Average::EQUAL,
    };
    joint.step(Some(sweep), &average).map_err(hint)
}

/// A rank that has returned while others go on has most often run out of data: says what to do.
fn hint(error: Error) -> Error {
    match error {
        Error::Comm(error) if error.returned_early().is_some() => Error::EndedEarly { error },
        error => error,
    }
}

/// A [`Ddp`] of whatever module, for [`backward_all`].
pub trait Wrapper: sealed::Sealed {}

impl<M> Wrapper for Ddp<M> {}

mod sealed {
    use super::{Ddp, Replica};

    pub trait Sealed {
        fn replica(&self) -> &Replica;
    }

    impl<M> Sealed for Ddp<M> {
        fn replica(&self) -> &Replica {
            &self.replica
        }
    }
}

/// The replica is a module like the one that it wraps, with the same names.
impl<M: Module> Module for Ddp<M> {
    fn forward(&self, tape: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        self.module.forward(tape, x)
    }

    fn forward_all(&self, tape: &Tape, inputs: &[Var]) -> phalanx_autograd::Result<Vec<Var>> {
        self.module.forward_all(tape, inputs)
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        self.module.visit(v);
    }
}
