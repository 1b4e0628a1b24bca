//! The reduction of one step: gradients come in as the sweep makes them final, buckets leave in
//! the order of the plan.

use super::bucket::Bucket;
use super::flat;
use super::hook::Completion;
use super::share::Share;
use super::step::Joint;
use super::trace::{Trace, TraceEvent};
use super::uses::{self, Uses};
use crate::{Error, Result};
use phalanx_autograd::Gradients;
use phalanx_comm::{Label, ProcessGroup, ReduceOp, Work};
use phalanx_tensor::Tensor;
use phalanx_tensor::ops::optim::scale;
use std::slice;
use std::sync::Arc;

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

fn divided(sum: &Tensor, divisor: f64) -> Result<Tensor> {
    Ok(match divisor == 1.0 {
        true => sum.clone(),
        false => sum.div_scalar(divisor)?,
    })
}

/// A bucket in flight.
enum Flight {
    Plain(Work<Tensor>),
    Hooked(Box<dyn Completion>),
}

impl Flight {
    fn poll(&mut self) -> bool {
        match self {
            Flight::Plain(work) => work.poll().unwrap_or(true),
            Flight::Hooked(completion) => completion.poll(),
        }
    }
}

/// One step's reduction. Dropping it waits for what is in flight.
pub(super) struct Reducer<'a> {
    joint: Joint<'a>,
    /// The number of the step, which labels what is sent.
    step: u64,
    plan: Arc<[Bucket]>,
    /// For each parameter: its bucket and its slot there.
    place: Vec<(usize, usize)>,
    /// For each bucket: the gradients that it still waits for.
    pending: Vec<usize>,
    /// For each bucket: the tensor that will travel, from its first gradient on.
    filling: Vec<Option<Tensor>>,
    /// For each bucket: the flat buffer of the last step, until this one fills it.
    flats: Vec<Option<Tensor>>,
    flights: Vec<Flight>,
    /// So many of them, the first ones, have been seen to be complete.
    landed: usize,
    /// Which parameters this rank has gradients for, …
    used: Vec<bool>,
    /// … and any rank.
    uses: Uses,
    /// Which of them it has given.
    arrived: Vec<bool>,
    /// What gradients are multiplied by before they leave.
    factor: f64,
    op: ReduceOp,
    /// What their sums are divided by.
    divisor: f64,
    trace: Trace,
}

impl<'a> Reducer<'a> {
    /// Starts the step: `used` says which parameters this rank has gradients for.
    pub(super) fn new(
        joint: Joint<'a>,
        plan: Arc<[Bucket]>,
        share: Share,
        used: &[bool],
    ) -> Result<Self> {
        let (group, config) = (joint.group(), &joint.lead().config);
        let hooked = config.hook.is_some();
        let uses = Uses::start(&plan, used, hooked, group)?;
        let (factor, divisor) = share.factors(group.rank(), group.size());
        let (factor, op, divisor) = match (hooked, &share) {
            // A hook's sum is the average.
            (true, _) => (factor / divisor, ReduceOp::Sum, 1.0),
            (false, Share::Equal) => (1.0, ReduceOp::Avg, 1.0),
            // Divided last, as in the plain average: ranks that have data average as if they were alone.
            (false, Share::Weighted { .. }) => (factor, ReduceOp::Sum, divisor),
        };
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
            flats: joint.take_flats(&plan),
            flights: Vec::with_capacity(plan.len()),
            landed: 0,
            place,
            uses,
            used: used.to_vec(),
            arrived: vec![false; used.len()],
            factor,
            op,
            divisor,
            trace: Trace::new(config.trace),
            step: joint.lead().state().step,
            joint,
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
            .record(|| TraceEvent::Ready(self.joint.param(i).0.clone()));
        if !self.used[i] {
            return Ok(());
        }
        if self.factor != 1.0 {
            scale(slice::from_mut(&mut gradient), self.factor)?;
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
            flat.write_at(self.plan[b].slots[s].offset, &gradient)?;
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

    fn allocate(&mut self, b: usize) -> Result<Tensor> {
        let kept = self.flats.get_mut(b).and_then(Option::take);
        let bucket = &self.plan[b];
        let param = |p: usize| &self.joint.param(p).1;
        let device = param(bucket.slots[0].param).device();
        let numel = |p: usize| param(p).shape().numel();
        let carries = self.uses.are_within(b);
        let more = if carries { self.used.len() } else { 0 };
        let mut flat = flat::allocate(kept, bucket, more, device, numel, |p| !self.used[p])?;
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
            // A rank that is a bucket behind, or in another wrapper, would else meet the others in a
            // reduction of equal shape.
            let group = self.joint.group().labelled(Label {
                owner: self.joint.lead().number,
                step: self.step,
                part: b as u64,
            });
            let flight = match &self.joint.lead().config.hook {
                Some(hook) => Flight::Hooked(hook.start(&*group, tensor)?),
                None => Flight::Plain(group.all_reduce(tensor, self.op)?),
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
            rank: world_rank(self.joint.group()),
            bucket: b,
            parameter: missing.map_or_else(String::new, |s| self.joint.param(s.param).0.clone()),
        })
    }

    /// Waits for all buckets: the averaged gradients of the parameters that some rank uses.
    pub(super) fn finish(mut self) -> Result<(Gradients, Trace)> {
        self.trace.record(|| TraceEvent::SweepEnded);
        self.all_launched()?;
        let group = self.joint.group();
        let mut reduced = Vec::with_capacity(self.plan.len());
        let mut flats = Vec::with_capacity(self.plan.len());
        for (b, flight) in self.flights.into_iter().enumerate() {
            let (bucket, divisor) = (&self.plan[b], self.divisor);
            let sum = match flight {
                Flight::Plain(work) => work.wait()?,
                Flight::Hooked(completion) => stand_for(b, bucket, completion.finish()?, group)?,
            };
            reduced.push(divided(&sum, divisor)?);
            // A gradient that travels alone is not copied into a buffer, and leaves none.
            flats.push((!bucket.is_single()).then_some(sum));
            if b >= self.landed {
                self.trace.record(|| TraceEvent::Reduced(b));
            }
        }
        let used = self.uses.wait(&self.plan, &reduced)?;
        let mut gradients = Gradients::default();
        for (bucket, flat) in self.plan.iter().zip(&reduced) {
            for slot in bucket.slots.iter().filter(|s| used[s.param]) {
                let param = &self.joint.param(slot.param).1;
                let gradient = flat::get(flat, slot.offset, param.shape())?;
                gradients.insert(param, gradient.to_device(param.device())?);
            }
        }
        self.joint.keep_flats(&self.plan, flats);
        Ok((gradients, self.trace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DdpConfig;
    use crate::ddp::replica::Replica;
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
            let replica = &Replica::new(&module, group, config)?;
            let joint = Joint::one(&replica);
            let plan = joint.agreed_plan(&[0, 1], 0)?; // a bucket for each parameter
            let mut reducer = Reducer::new(joint, plan, Share::Equal, &[true, true])?;
            reducer.ready(0, replica.params[0].1.value()?)?;
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
