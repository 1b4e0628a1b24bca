//! Data parallelism: one replica of the module per rank, gradients averaged while backward runs.

pub mod bucket;
mod flat;
mod hook;
mod reducer;
mod trace;
mod uses;
mod verify;

pub use hook::{CommHook, Completion, Compress};
pub use trace::{Trace, TraceEvent};

use crate::{Error, Result};
use bucket::{Bucket, Entry, Limits};
use phalanx_autograd::nn::{Module, Visitor};
use phalanx_autograd::{Backward, Buffer, Gradients, OnReady, Param, ParamId, Tape, Var};
use phalanx_comm::ProcessGroup;
use phalanx_tensor::Tensor;
use reducer::{Reducer, Share};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// How a [`Ddp`] communicates. All ranks must use the same configuration.
#[derive(Clone)]
pub struct DdpConfig {
    /// Bytes at which the first bucket of gradients leaves; small, so that communication starts
    /// early. Default: 1 MiB, as in PyTorch.
    pub first_bucket_bytes: usize,
    /// Bytes at which every other bucket leaves (PyTorch: `bucket_cap_mb`). Default: 25 MiB.
    pub bucket_cap_bytes: usize,
    /// A gradient of this many bytes travels alone and is reduced in place, without a copy into a
    /// bucket. Default: 64 KiB.
    pub in_place_bytes: usize,
    /// Whether each [`backward`](Ddp::backward) makes the buffers (batch norm's running
    /// statistics) of all ranks equal to those of the first rank that has data. Default: true.
    pub broadcast_buffers: bool,
    /// Ranks may run out of data at different steps: see [`Ddp::join`]. Default: false.
    pub uneven_inputs: bool,
    /// How a bucket is reduced. Default: `None`, an exact average.
    pub hook: Option<Arc<dyn CommHook>>,
    /// Record what happened when in each backward: see [`Ddp::trace`]. Default: false.
    pub trace: bool,
}

impl Default for DdpConfig {
    fn default() -> Self {
        DdpConfig {
            first_bucket_bytes: 1 << 20,
            bucket_cap_bytes: 25 << 20,
            in_place_bytes: 64 << 10,
            broadcast_buffers: true,
            uneven_inputs: false,
            hook: None,
            trace: false,
        }
    }
}

/// What lasts from step to step.
#[derive(Default)]
struct State {
    /// The bucket plan, agreed with the other ranks in the first step.
    plan: Option<Arc<[Bucket]>>,
    /// Local gradients of [`Ddp::accumulate`].
    accumulated: Gradients,
    trace: Trace,
}

/// A replica of a module, kept equal to the replicas of the other ranks
/// (PyTorch: `DistributedDataParallel`; Li et al., *PyTorch Distributed*, VLDB 2020).
///
/// [`backward`](Ddp::backward) returns gradients averaged over the ranks. The average of each
/// bucket of gradients is on its way while the sweep still runs, from the first step on: the tape
/// knows before the sweep which parameters the loss reaches and in which order their gradients
/// become final. Where ranks are threads, which move data themselves, each does a small share of
/// it whenever a gradient has become final.
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
///     let mut sgd = Sgd::new(ddp.parameters(), SgdConfig { lr: 0.1, ..Default::default() });
///     let x = Tensor::full([8, 4], 1.0 + group.rank() as f64, DType::F32, device)?;
///     let mut last = 0.0;
///     for _ in 0..3 {
///         let tape = Tape::new();
///         let y = ddp.forward(&tape, &tape.constant(x.clone()))?;
///         let loss = y.square()?.mean_all()?;
///         let gradients = ddp.backward(&tape, &loss)?; // averaged over both ranks
///         sgd.step(&gradients)?;
///         last = loss.value().item()?;
///     }
///     Ok(last)
/// })?;
/// assert_eq!(losses.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Ddp<M> {
    module: M,
    group: Arc<dyn ProcessGroup>,
    config: DdpConfig,
    params: Vec<(String, Param)>,
    index: HashMap<ParamId, usize>,
    /// The parameters that were frozen in [`Ddp::new`]: they have no place in the plan.
    frozen: Vec<(String, Param)>,
    buffers: Vec<(String, Buffer)>,
    buffer_plan: Vec<Bucket>,
    state: Mutex<State>,
}

impl<M: Module> Ddp<M> {
    /// Wraps `module`. Checks that all ranks hold the same parameters and buffers (names, shapes,
    /// element types, in order; frozen ones too), then takes rank 0's values. Every rank must call it.
    ///
    /// A parameter may be frozen later, and thawed again. One that is frozen now stays out of the
    /// averages: thawing it is [`Error::Thawed`] in the next backward, and wants a new `Ddp`.
    ///
    /// # Errors
    /// [`Error::ReplicasDiffer`], the same on every rank, where a rank's module is another one;
    /// errors of the communication.
    pub fn new(module: M, group: Arc<dyn ProcessGroup>, config: DdpConfig) -> Result<Ddp<M>> {
        let params = module.named_parameters();
        let buffers = module.named_buffers();
        verify::replicas_agree(&params, &buffers, &*group)?;
        take_parameters_of(0, &params, &*group)?;
        let (params, frozen): (Vec<_>, Vec<_>) =
            params.into_iter().partition(|(_, p)| p.requires_grad());
        let buffer_entries: Vec<Entry> = buffers.iter().map(|(_, b)| entry(&b.value())).collect();
        let everything = Limits {
            first: usize::MAX,
            cap: usize::MAX,
            single: usize::MAX,
        };
        let order: Vec<usize> = (0..buffers.len()).collect();
        let buffer_plan = bucket::plan(&buffer_entries, &order, everything);
        let ddp = Ddp {
            module,
            index: params
                .iter()
                .enumerate()
                .map(|(i, (_, p))| (p.id(), i))
                .collect(),
            group,
            config,
            params,
            frozen,
            buffers,
            buffer_plan,
            state: Mutex::default(),
        };
        ddp.send_buffers(0)?.receive(&ddp.buffers)?;
        Ok(ddp)
    }

    /// The wrapped module.
    pub fn module(&self) -> &M {
        &self.module
    }

    /// The group that averages the gradients.
    pub fn group(&self) -> &Arc<dyn ProcessGroup> {
        &self.group
    }

    /// The trainable parameters, in the module's order.
    pub fn parameters(&self) -> Vec<Param> {
        self.params.iter().map(|(_, p)| p.clone()).collect()
    }

    /// The bucket plan, once the first step has agreed on it. Slots index
    /// [`parameters`](Ddp::parameters).
    pub fn buckets(&self) -> Option<Arc<[Bucket]>> {
        self.state().plan.clone()
    }

    /// What happened when in the last backward, where [`DdpConfig::trace`] is set.
    pub fn trace(&self) -> Trace {
        self.state().trace.clone()
    }

    /// Differentiates `loss` and averages the gradients over all ranks, bucket by bucket while the
    /// sweep runs. Adds what [`accumulate`](Ddp::accumulate) has kept. Every rank must call it.
    ///
    /// A parameter that the loss of no rank reaches has no gradient (not zero); one that only some
    /// reach gets their sum over the number of ranks. With [`DdpConfig::uneven_inputs`], the
    /// average is over the ranks that still have data. What is not the module's (inputs, parameters
    /// beside it) has this rank's own gradient.
    ///
    /// # Errors
    /// Errors of the sweep and of the communication; one of another rank is an error here too, at
    /// the latest in the next step. [`Error::HookResult`] for a hook's, [`Error::Thawed`].
    pub fn backward(&self, tape: &Tape, loss: &Var) -> Result<Gradients> {
        let sweep = self.plan_sweep(tape, loss)?;
        let share = match self.config.uneven_inputs {
            true => self.share_with(1.0)?,
            false => Share::Equal,
        };
        self.step(Some(sweep), share)
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
        let sweep = self.plan_sweep(tape, loss)?;
        let share = self.share_with(weight)?;
        self.step(Some(sweep), share)
    }

    /// Differentiates `loss` and keeps the gradients for the next [`backward`](Ddp::backward),
    /// without communication (PyTorch: a backward inside `no_sync`). Gradients add up: divide the
    /// loss by the number of micro-steps where their mean is meant.
    ///
    /// # Errors
    /// Errors of the sweep; [`Error::Thawed`].
    pub fn accumulate(&self, tape: &Tape, loss: &Var) -> Result<()> {
        self.plan_sweep(tape, loss)?;
        let gradients = tape.backward(loss)?;
        Ok(self.state().accumulated.accumulate(gradients)?)
    }

    /// For a rank whose data has run out: takes part in the remaining steps of the others until
    /// all ranks have arrived here (PyTorch: the `join` context). Needs
    /// [`DdpConfig::uneven_inputs`].
    ///
    /// `step` gets the averaged gradients of each of those steps; let it run the optimizer, so that
    /// parameters and optimizer state stay equal on every rank. Returns the number of those steps.
    /// One that fails on the ranks with data because all of their weights are 0 is none.
    ///
    /// # Errors
    /// [`Error::InvalidUse`] without `uneven_inputs`, and where [`accumulate`](Ddp::accumulate) has
    /// left gradients that no [`backward`](Ddp::backward) has averaged: they would count for
    /// nothing. Errors of the communication and of `step`.
    pub fn join(&self, mut step: impl FnMut(&Gradients) -> Result<()>) -> Result<usize> {
        if !self.config.uneven_inputs {
            return Err(Error::InvalidUse {
                op: "Ddp::join",
                reason: "set DdpConfig::uneven_inputs on every rank".into(),
            });
        }
        if !self.state().accumulated.is_empty() {
            return Err(Error::InvalidUse {
                op: "Ddp::join",
                reason: "gradients of accumulate are left over; let the last micro-step be a \
                         backward, which averages them"
                    .into(),
            });
        }
        let mut steps = 0;
        loop {
            match reducer::gather_share(&*self.group, None) {
                Ok(None) => return Ok(steps), // nobody has data
                Ok(Some(share)) => step(&self.step(None, share)?)?,
                // Nobody's data counts: the others may go on with their next batch.
                Err(Error::InvalidWeight { rank: None, .. }) => continue,
                Err(error) => return Err(error),
            }
            steps += 1;
        }
    }

    /// The shares of a step in which this rank has data.
    fn share_with(&self, weight: f64) -> Result<Share> {
        let share = reducer::gather_share(&*self.group, Some(weight))?;
        Ok(share.unwrap_or(Share::Equal)) // this rank has not joined: there is one
    }

    /// What a sweep will reach, and in which order. Changes nothing and talks to nobody.
    fn plan_sweep<'a>(&self, tape: &'a Tape, loss: &'a Var) -> Result<Sweep<'a>> {
        let plan = tape.plan(&[loss])?;
        let unplanned = |p: &&Param| !self.index.contains_key(&p.id());
        let unplanned: Vec<ParamId> = plan
            .params()
            .iter()
            .filter(unplanned)
            .map(Param::id)
            .collect();
        // Thawed now, or when it was recorded: its gradient would be this rank's own.
        let thawed = |p: &Param| p.requires_grad() || unplanned.contains(&p.id());
        if let Some((name, _)) = self.frozen.iter().find(|(_, p)| thawed(p)) {
            return Err(Error::Thawed {
                rank: self.group.world_ranks()[self.group.rank()],
                parameter: name.clone(),
            });
        }
        let place = |p: &Param| self.index.get(&p.id()).copied();
        let order = plan.params().iter().filter_map(place).collect();
        Ok(Sweep { tape, loss, order })
    }

    /// One synchronised step: a sweep where this rank has data, its part of the averages in any
    /// case.
    fn step(&self, sweep: Option<Sweep<'_>>, share: Share) -> Result<Gradients> {
        let leader = share.leader();
        let order = sweep.as_ref().map_or(&[][..], |sweep| &sweep.order);
        // Taken only now: a loss that cannot be differentiated leaves them for the next call.
        let mut accumulated = std::mem::take(&mut self.state().accumulated);
        let mut in_sweep = vec![false; self.params.len()];
        order.iter().for_each(|&i| in_sweep[i] = true);
        let kept = |i: usize| accumulated.get(&self.params[i].1).is_some();
        let counts = share.counts(self.group.rank());
        let used: Vec<bool> = (0..in_sweep.len())
            .map(|i| counts && (in_sweep[i] || kept(i)))
            .collect();

        let plan = self.agreed_plan(order, leader)?;
        // Before the reducer, which sends at once the buckets that this rank has nothing for: ranks
        // differ in which these are, and must not in the order of their collectives.
        let buffers = match self.config.broadcast_buffers && !self.buffers.is_empty() {
            true => Some(self.send_buffers(leader)?),
            false => None,
        };
        let mut reducer = Reducer::new(self, plan, share, &used)?;

        // Gradients that only earlier micro-steps have are final already.
        for (i, (_, param)) in self.params.iter().enumerate() {
            if !in_sweep[i]
                && let Some(gradient) = accumulated.take(param)
            {
                reducer.ready(i, gradient)?;
            }
        }
        let mut own = Gradients::new();
        if let Some(Sweep { tape, loss, .. }) = sweep {
            let mut failure = None;
            let mut on_ready = |param: &Param, mut gradient: Tensor| {
                let Some(&i) = self.index.get(&param.id()) else {
                    return Ok(Some(gradient));
                };
                if let Some(earlier) = accumulated.take(param) {
                    gradient = gradient.add_into(&earlier)?;
                }
                reducer.ready(i, gradient).map_err(|error| {
                    let stop = phalanx_autograd::Error::other(error.to_string());
                    failure = Some(error);
                    stop
                })?;
                Ok(None)
            };
            let (roots, on_ready) = ([(loss, None)], Some(&mut on_ready as &mut OnReady<'_>));
            let swept = tape.sweep(Backward {
                roots: &roots,
                on_ready,
                ..Default::default()
            });
            // The communication's failure as it is, not as the sweep's.
            own = match failure {
                Some(error) => return Err(error),
                None => swept?,
            };
        }
        let (mut gradients, trace) = reducer.finish()?;
        // Of inputs, and of parameters beside the module's.
        gradients.accumulate(own)?;
        gradients.accumulate(accumulated)?;
        if let Some(buffers) = buffers {
            buffers.receive(&self.buffers)?;
        }
        self.state().trace = trace;
        Ok(gradients)
    }

    /// The bucket plan; in the first step, `leader`'s order of readiness becomes everybody's.
    fn agreed_plan(&self, order: &[usize], leader: usize) -> Result<Arc<[Bucket]>> {
        if let Some(plan) = &self.state().plan {
            return Ok(Arc::clone(plan));
        }
        let n = self.params.len();
        let mut seen = vec![false; n];
        order.iter().for_each(|&i| seen[i] = true);
        // What this loss does not reach comes last, in reverse order of registration.
        let rest = (0..n).rev().filter(|&i| !seen[i]);
        let order: Vec<i64> = order
            .iter()
            .copied()
            .chain(rest)
            .map(|i| i as i64)
            .collect();
        let order = Tensor::from_vec(order, n, self.group.device())?;
        let order = self
            .group
            .broadcast(order, leader)?
            .wait()?
            .to_vec::<i64>()?;
        let order: Vec<usize> = order.into_iter().map(|i| i as usize).collect();
        let entries: Vec<Entry> = self.params.iter().map(|(_, p)| entry(&p.value())).collect();
        let limits = Limits {
            first: self.config.first_bucket_bytes,
            cap: self.config.bucket_cap_bytes,
            single: self.config.in_place_bytes,
        };
        let plan: Arc<[Bucket]> = bucket::plan(&entries, &order, limits).into();
        self.state().plan = Some(Arc::clone(&plan));
        Ok(plan)
    }

    fn send_buffers(&self, root: usize) -> Result<flat::Broadcast> {
        let values: Vec<Tensor> = self.buffers.iter().map(|(_, b)| b.value()).collect();
        flat::Broadcast::start(&self.buffer_plan, &values, &*self.group, root)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of the state is one assignment: a panic leaves nothing half-done.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// A sweep that is to come.
struct Sweep<'a> {
    tape: &'a Tape,
    loss: &'a Var,
    /// The parameters that it will reach, by their index, in the order of their gradients.
    order: Vec<usize>,
}

fn take_parameters_of(
    root: usize,
    params: &[(String, Param)],
    group: &dyn ProcessGroup,
) -> Result<()> {
    let works = params.iter().map(|(_, p)| group.broadcast(p.value(), root));
    let works = works.collect::<Result<Vec<_>, _>>()?;
    for ((_, param), work) in params.iter().zip(works) {
        param.set(work.wait()?)?;
    }
    Ok(())
}

fn entry(t: &Tensor) -> Entry {
    Entry {
        shape: t.shape().clone(),
        dtype: t.dtype(),
        device: t.device(),
    }
}

/// The replica is a module like the one that it wraps, with the same names.
impl<M: Module> Module for Ddp<M> {
    fn forward(&self, tape: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        self.module.forward(tape, x)
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        self.module.visit(v);
    }
}
