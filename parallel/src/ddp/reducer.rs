//! The reduction of one step: gradients come in as the sweep makes them final, buckets leave in
//! the order of the plan.

use super::bucket::Bucket;
use super::hook::Completion;
use super::trace::{Trace, TraceEvent};
use super::uses::{self, Uses};
use super::{Ddp, flat};
use crate::{Error, Result};
use phalanx_autograd::Gradients;
use phalanx_autograd::nn::Module;
use phalanx_comm::{ProcessGroup, ReduceOp, Work};
use phalanx_tensor::Tensor;
use phalanx_tensor::ops::optim::scale;
use std::slice;
use std::sync::Arc;

/// How much each rank's gradients count in the average.
pub(super) enum Share {
    /// All the same.
    Equal,
    /// In proportion to these weights, one per rank, not all zero.
    Weighted(Vec<f64>),
}

impl Share {
    /// Of weights, which are not all zero. Where nothing is uneven, the average is the plain one:
    /// the same bits, and no multiplication.
    fn of(weights: Vec<f64>) -> Share {
        match weights.iter().all(|&w| w == weights[0]) {
            true => Share::Equal,
            false => Share::Weighted(weights),
        }
    }

    /// The first rank that has data: the one whose buffers and order of gradients are taken.
    pub(super) fn leader(&self) -> usize {
        match self {
            Share::Equal => 0,
            Share::Weighted(w) => w.iter().position(|&w| w > 0.0).unwrap_or(0),
        }
    }

    /// Whether `rank`'s gradients count at all.
    pub(super) fn counts(&self, rank: usize) -> bool {
        match self {
            Share::Equal => true,
            Share::Weighted(w) => w[rank] > 0.0,
        }
    }

    /// What `rank`'s gradients are multiplied by before they are summed.
    fn factor(&self, rank: usize, size: usize) -> f64 {
        match self {
            Share::Equal => 1.0 / size as f64,
            Share::Weighted(w) => w[rank] / w.iter().sum::<f64>(),
        }
    }
}

/// Every rank's share of a step, from this rank's weight; a rank that has joined gives none.
/// `None`: all ranks have joined.
pub(super) fn gather_share(group: &dyn ProcessGroup, weight: Option<f64>) -> Result<Option<Share>> {
    // Next to the weight, whether the rank has data: a weight of 0 is no farewell.
    let mine = [weight.unwrap_or(0.0), f64::from(u8::from(weight.is_some()))];
    let mine = Tensor::from_slice(&mine, [2], group.device())?;
    let all = group.all_gather(mine)?.wait()?.to_vec::<f64>()?;
    if all.chunks_exact(2).all(|rank| rank[1] == 0.0) {
        return Ok(None);
    }
    let weights: Vec<f64> = all.chunks_exact(2).map(|rank| rank[0]).collect();
    let bad = weights.iter().position(|w| !(w.is_finite() && *w >= 0.0));
    match bad {
        Some(rank) => Err(Error::InvalidWeight {
            rank: Some(group.world_ranks()[rank]),
            weight: weights[rank],
        }),
        None if weights.iter().all(|&w| w == 0.0) => Err(Error::InvalidWeight {
            rank: None,
            weight: 0.0,
        }),
        None => Ok(Some(Share::of(weights))),
    }
}

/// What a hook returned for `bucket`, number `b`, if it can stand for its average.
fn stand_for(b: usize, bucket: &Bucket, found: Tensor, group: &dyn ProcessGroup) -> Result<Tensor> {
    if found.dims() == [bucket.len] && found.dtype() == bucket.dtype {
        return Ok(found);
    }
    Err(Error::HookResult {
        rank: world_rank(group),
        bucket: b,
        shape: bucket.len.into(),
        dtype: bucket.dtype,
        found_shape: found.shape().clone(),
        found_dtype: found.dtype(),
    })
}

fn world_rank(group: &dyn ProcessGroup) -> usize {
    group.world_ranks()[group.rank()]
}

/// A bucket in flight.
enum Flight {
    Plain(Work<Tensor>),
    Hooked(Box<dyn Completion>),
}

impl Flight {
    fn poll(&mut self) -> bool {
        match self {
            Flight::Plain(work) => work.poll(),
            Flight::Hooked(completion) => completion.poll(),
        }
    }
}

/// One step's reduction. Dropping it waits for what is in flight.
pub(super) struct Reducer<'a, M> {
    ddp: &'a Ddp<M>,
    plan: Arc<[Bucket]>,
    /// For each parameter: its bucket and its slot there.
    place: Vec<(usize, usize)>,
    /// For each bucket: the gradients that it still waits for.
    pending: Vec<usize>,
    /// For each bucket: the tensor that will travel, from its first gradient on.
    filling: Vec<Option<Tensor>>,
    flights: Vec<Flight>,
    /// So many of them, the first ones, have been seen to be complete.
    landed: usize,
    /// Which parameters this rank has gradients for, …
    used: Vec<bool>,
    /// … and any rank.
    uses: Uses,
    /// Which of them it has given.
    arrived: Vec<bool>,
    /// What gradients are multiplied by before they leave; `None`: the reduction averages.
    factor: Option<f64>,
    trace: Trace,
}

impl<'a, M: Module> Reducer<'a, M> {
    /// Starts the step: `used` says which parameters this rank has gradients for.
    pub(super) fn new(
        ddp: &'a Ddp<M>,
        plan: Arc<[Bucket]>,
        share: Share,
        used: &[bool],
    ) -> Result<Self> {
        let group = &*ddp.group;
        let uses = Uses::start(&plan, used, ddp.config.hook.is_some(), group)?;
        let averaging = matches!(share, Share::Equal) && ddp.config.hook.is_none();
        let mut place = vec![(0, 0); used.len()];
        for (b, bucket) in plan.iter().enumerate() {
            bucket
                .slots
                .iter()
                .enumerate()
                .for_each(|(s, slot)| place[slot.param] = (b, s));
        }
        let pending = plan
            .iter()
            .map(|b| b.slots.iter().filter(|s| used[s.param]).count());
        let mut reducer = Reducer {
            pending: pending.collect(),
            filling: plan.iter().map(|_| None).collect(),
            flights: Vec::with_capacity(plan.len()),
            landed: 0,
            place,
            uses,
            used: used.to_vec(),
            arrived: vec![false; used.len()],
            factor: (!averaging).then(|| share.factor(group.rank(), group.size())),
            trace: Trace::new(ddp.config.trace),
            ddp,
            plan,
        };
        reducer.launch()?; // a bucket that this rank has nothing for can leave at once
        Ok(reducer)
    }

    /// Takes the final gradient of parameter `i`; sends what has become complete, and lends what
    /// is on its way a hand. One that `used` does not announce counts for nothing.
    pub(super) fn ready(&mut self, i: usize, mut gradient: Tensor) -> Result<()> {
        let (b, s) = self.place[i];
        self.trace
            .record(|| TraceEvent::Ready(self.ddp.params[i].0.clone()));
        if !self.used[i] {
            return Ok(());
        }
        if let Some(factor) = self.factor {
            scale(slice::from_mut(&mut gradient), factor)?;
        }
        let bucket = &self.plan[b];
        if bucket.is_single() {
            let flat = gradient.reshape(bucket.len)?;
            drop(gradient); // its only holder now is the bucket: it is reduced in place
            self.filling[b] = Some(flat);
        } else {
            let mut flat = match self.filling[b].take() {
                Some(flat) => flat,
                None => self.allocate(b)?,
            };
            flat::put(&mut flat, bucket.slots[s].offset, &gradient)?;
            self.filling[b] = Some(flat);
        }
        self.arrived[i] = true;
        self.pending[b] -= 1;
        self.launch()?;
        self.progress();
        Ok(())
    }

    /// Does one share of the oldest reduction under way. Between ranks that are threads, nobody
    /// else moves data while all of them compute.
    fn progress(&mut self) {
        while let Some(flight) = self.flights.get_mut(self.landed)
            && flight.poll()
        {
            let b = self.landed;
            self.trace.record(|| TraceEvent::Reduced(b));
            self.landed += 1;
        }
    }

    fn allocate(&self, b: usize) -> Result<Tensor> {
        let bucket = &self.plan[b];
        let param = |p: usize| &self.ddp.params[p].1;
        let device = param(bucket.slots[0].param).device();
        let numel = |p: usize| param(p).shape().numel();
        let carries = self.uses.are_within(b);
        let more = if carries { self.used.len() } else { 0 };
        let mut flat = flat::allocate(bucket, more, device, numel, |p| !self.used[p])?;
        if carries {
            uses::write(&mut flat, bucket.len, &self.used)?;
        }
        Ok(flat)
    }

    /// Starts the reduction of every complete bucket that is next in the plan.
    fn launch(&mut self) -> Result<()> {
        while self.flights.len() < self.plan.len() && self.pending[self.flights.len()] == 0 {
            let b = self.flights.len();
            let tensor = match self.filling[b].take() {
                Some(tensor) => tensor,
                None => self.allocate(b)?, // nothing from this rank: zeros
            };
            let group = &*self.ddp.group;
            let flight = match &self.ddp.config.hook {
                Some(hook) => Flight::Hooked(hook.start(group, tensor)?),
                None => {
                    let op = if self.factor.is_some() {
                        ReduceOp::Sum
                    } else {
                        ReduceOp::Avg
                    };
                    Flight::Plain(group.all_reduce(tensor, op)?)
                }
            };
            self.flights.push(flight);
            self.trace.record(|| TraceEvent::Started(b));
        }
        Ok(())
    }

    /// Whether every bucket has left. The tape promises it; a bucket that stays behind would leave
    /// the other ranks waiting, and this one without its gradients.
    fn all_launched(&self) -> Result<()> {
        let b = self.flights.len();
        let Some(bucket) = self.plan.get(b) else {
            return Ok(());
        };
        let mut used = bucket.slots.iter().filter(|s| self.used[s.param]);
        let missing = used.find(|s| !self.arrived[s.param]);
        Err(Error::GradientMissing {
            rank: world_rank(&*self.ddp.group),
            bucket: b,
            parameter: missing.map_or_else(String::new, |s| self.ddp.params[s.param].0.clone()),
        })
    }

    /// Waits for all buckets: the averaged gradients of the parameters that some rank uses.
    pub(super) fn finish(mut self) -> Result<(Gradients, Trace)> {
        self.trace.record(|| TraceEvent::SweepEnded);
        self.all_launched()?;
        let group = &*self.ddp.group;
        let mut reduced = Vec::with_capacity(self.plan.len());
        for (b, flight) in self.flights.into_iter().enumerate() {
            reduced.push(match flight {
                Flight::Plain(work) => work.wait()?,
                Flight::Hooked(completion) => {
                    stand_for(b, &self.plan[b], completion.finish()?, group)?
                }
            });
            if b >= self.landed {
                self.trace.record(|| TraceEvent::Reduced(b));
            }
        }
        let used = self.uses.wait(&self.plan, &reduced)?;
        let mut gradients = Gradients::default();
        for (bucket, flat) in self.plan.iter().zip(&reduced) {
            for slot in bucket.slots.iter().filter(|s| used[s.param]) {
                let param = &self.ddp.params[slot.param].1;
                let gradient = flat::get(flat, slot.offset, param.shape())?;
                gradients.insert(param, gradient.to_device(param.device())?);
            }
        }
        Ok((gradients, self.trace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DdpConfig;
    use phalanx_autograd::nn::{Factory, Linear};
    use phalanx_comm::launch;

    #[test]
    fn a_gradient_that_never_comes_is_an_error() {
        let ends = launch(1, |group| -> Result<_> {
            let module = Linear::new(2, 3, &mut Factory::new(group.device(), 0))?;
            let config = DdpConfig {
                in_place_bytes: 1,
                ..Default::default()
            };
            let ddp = Ddp::new(module, group, config)?;
            let plan = ddp.agreed_plan(&[0, 1], 0)?; // a bucket for each parameter
            let mut reducer = Reducer::new(&ddp, plan, Share::Equal, &[true, true])?;
            reducer.ready(0, ddp.params[0].1.value())?;
            Ok(reducer.finish().map(drop))
        });
        let end = ends.unwrap().remove(0);
        let Err(Error::GradientMissing {
            rank: 0,
            bucket: 1,
            parameter,
        }) = end
        else {
            panic!("{end:?}");
        };
        assert_eq!(parameter, "bias");
    }
}
