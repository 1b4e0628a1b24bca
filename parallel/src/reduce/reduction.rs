//! [`Reduction`], one step: gradients come in as they become final, buckets leave in the order of the plan.

use super::bucket::Bucket;
use super::flat::{self, Flat, Marks};
use super::hook::{Completion, GradBucket};
use super::poison::Attempt;
use super::trace::{Trace, TraceEvent};
use super::uses::Uses;
use super::{Average, GradReducer, Plan};
use crate::{Error, Result, talk};
use phalanx_autograd::{Gradients, Param};
use phalanx_comm::{Label, Name, ProcessGroup, ReduceOp, Work};
use phalanx_tensor::Tensor;
use phalanx_tensor::ops::optim::scale;
use std::slice;
use std::sync::Arc;

/// A step of a [`GradReducer`] that is under way. To drop it without [`finish`](Reduction::finish) gives the
/// step up, and poisons the reducer.
#[must_use = "a step is ended by `finish`"]
pub struct Reduction<'a> {
    parts: Parts<'a>,
    attempt: Attempt<'a>,
}

impl<'a> Reduction<'a> {
    pub(super) fn new(parts: Parts<'a>, attempt: Attempt<'a>) -> Reduction<'a> {
        Reduction { parts, attempt }
    }

    /// Takes the gradient of a parameter, which is final; sends the buckets that are next and complete, and
    /// lends what is on its way a hand, as [`poll`](Reduction::poll).
    ///
    /// The gradient has the parameter's shape, and is of its type or of that of its gradients
    /// ([`Param::grad_dtype`]). One that nobody else holds and that travels alone is reduced in place. Where
    /// this rank's weight is 0, it counts for nothing.
    ///
    /// # Errors
    /// [`Error::InvalidUse`] for a parameter that `begin` does not expect, or not once more, and for a gradient
    /// that cannot be its; errors of the hook and of the communication. Then [`Error::Poisoned`].
    pub fn ready(&mut self, param: &Param, gradient: Tensor) -> Result<()> {
        self.expect_whole()?;
        let place = self.parts.reducer.expect_place("ready", param);
        let taken = place.and_then(|i| self.parts.take(i, gradient));
        self.attempt.note(taken)
    }

    /// As [`ready`](Reduction::ready), for the parameter of this index.
    pub(crate) fn ready_at(&mut self, i: usize, gradient: Tensor) -> Result<()> {
        self.expect_whole()?;
        let taken = self.parts.take(i, gradient);
        self.attempt.note(taken)
    }

    /// Does a small share of the oldest reduction under way, without blocking: between ranks that are
    /// threads, nobody else moves data while all of them compute. Returns whether all that has left has
    /// arrived.
    pub fn poll(&mut self) -> bool {
        self.parts.poll()
    }

    /// Waits for all buckets: the average for each parameter that some rank has a gradient for, on the
    /// parameter's device, in the order of the plan.
    ///
    /// # Errors
    /// [`Error::GradientMissing`] where a gradient that `begin` expects has not come;
    /// [`Error::HookResult`]; errors of the hook and of the communication.
    pub fn finish(mut self) -> Result<Gradients> {
        self.expect_whole()?;
        let averages = self.parts.finish();
        let averages = self.attempt.note(averages)?;
        self.attempt.done();
        Ok(averages)
    }

    /// A step of which a part has failed stays so: no rank goes on one bucket behind.
    fn expect_whole(&self) -> Result<()> {
        match self.attempt.has_failed() {
            true => self.parts.reducer.expect_whole(),
            false => Ok(()),
        }
    }
}

/// `factor` times a gradient that travels alone, as the bucket that it is: where nobody else holds it, it is
/// reduced in place.
fn single(bucket: &Bucket, gradient: Tensor, factor: f64) -> Result<Tensor> {
    if gradient.dtype() != bucket.dtype {
        let mut flat = Tensor::empty([bucket.len], bucket.dtype, gradient.device())?;
        flat.write_scaled_at(0, &gradient, factor)?;
        return Ok(flat);
    }
    let mut flat = gradient.reshape(bucket.len)?;
    drop(gradient); // its only holder now is the bucket
    if factor != 1.0 {
        scale(slice::from_mut(&mut flat), factor)?;
    }
    Ok(flat)
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

    fn proceed(&mut self) -> Result<()> {
        match self {
            Flight::Plain(_) => Ok(()),
            Flight::Hooked(completion) => completion.proceed(),
        }
    }
}

/// How a sum over the ranks becomes the average.
struct Arithmetic {
    /// What gradients are multiplied by before they leave.
    factor: f64,
    op: ReduceOp,
    /// What their sums are divided by.
    divisor: f64,
}

impl Arithmetic {
    fn of(average: &Average, hooked: bool, group: &dyn ProcessGroup) -> Arithmetic {
        let (factor, divisor) = average.factors(group.rank(), group.size());
        let (factor, op, divisor) = match (hooked, average.is_equal()) {
            // A hook's sum is the average.
            (true, _) => (factor / divisor, ReduceOp::Sum, 1.0),
            (false, true) => (1.0, ReduceOp::Avg, 1.0),
            // Divided last, as in the plain average: ranks that have data average as if they were alone.
            (false, false) => (factor, ReduceOp::Sum, divisor),
        };
        Arithmetic {
            factor,
            op,
            divisor,
        }
    }

    fn divided(&self, sum: &Tensor) -> Result<Tensor> {
        Ok(match self.divisor == 1.0 {
            true => sum.clone(),
            false => sum.div_scalar(self.divisor)?,
        })
    }
}

/// What a step is made of. Dropping it waits for nothing: the group finishes what is in flight.
pub(super) struct Parts<'a> {
    reducer: &'a GradReducer,
    /// The number of the step, which labels what is sent.
    step: u64,
    plan: Arc<Plan>,
    arithmetic: Arithmetic,
    /// Whether this rank's gradients count.
    counts: bool,
    /// For each parameter: whether this rank has a gradient that has not come yet.
    awaited: Vec<bool>,
    /// Which parameters this rank has gradients for that count, …
    used: Vec<bool>,
    /// … and any rank.
    uses: Uses,
    /// Whether the answer to that has been seen to be there.
    heard: bool,
    /// For each bucket: how many of the gradients that it waits for have not come.
    pending: Vec<usize>,
    /// For each bucket of several gradients: its memory, until it leaves.
    flats: Vec<Option<Flat>>,
    /// For each bucket of one gradient: that, until it leaves.
    singles: Vec<Option<Tensor>>,
    /// The buckets that have left, in order.
    flights: Vec<(Flight, Option<Marks>)>,
    /// So many of them, the first ones, have been seen to be complete.
    landed: usize,
    trace: Trace,
}

impl<'a> Parts<'a> {
    /// Starts the step: `expected` says which parameters this rank has gradients for, `order` in which order
    /// they will come.
    pub(super) fn start(
        reducer: &'a GradReducer,
        order: &[usize],
        expected: Vec<bool>,
        average: &Average,
    ) -> Result<Self> {
        let (group, config) = (&*reducer.group, &reducer.config);
        let plan = reducer.agreed_plan(order, average.leader())?;
        let counts = average.counts(group.rank());
        let used: Vec<bool> = expected
            .iter()
            .map(|&expected| counts && expected)
            .collect();
        let devices = plan.params.iter().map(|params| params[0].device());
        let trace = Trace::new(config.trace, devices)?;
        let uses = Uses::start(&used, !config.find_unused_parameters, group)?;
        let pending = |bucket: &Bucket| bucket.slots.iter().filter(|s| used[s.param]).count();
        let mut parts = Parts {
            step: reducer.stats().steps,
            arithmetic: Arithmetic::of(average, config.hook.is_some(), group),
            counts,
            awaited: expected,
            pending: plan.buckets.iter().map(pending).collect(),
            used,
            uses,
            heard: false,
            flats: reducer.take_flats(&plan)?,
            singles: plan.buckets.iter().map(|_| None).collect(),
            flights: Vec::with_capacity(plan.buckets.len()),
            landed: 0,
            trace,
            reducer,
            plan,
        };
        parts.launch()?; // a bucket that this rank has nothing for can leave at once
        Ok(parts)
    }

    /// Takes the final gradient of parameter `i`.
    fn take(&mut self, i: usize, gradient: Tensor) -> Result<()> {
        let (name, param) = &self.reducer.params[i];
        self.trace.ready(i, name);
        if !self.counts {
            return Ok(());
        }
        let wrong = |reason: String| Error::InvalidUse {
            op: "Reduction::ready",
            reason,
        };
        if !std::mem::take(&mut self.awaited[i]) {
            return Err(wrong(match self.used[i] {
                true => format!("`{name}` has its gradient already"),
                false => format!("begin does not expect a gradient of `{name}`"),
            }));
        }
        let fits = [param.dtype(), param.grad_dtype()].contains(&gradient.dtype());
        if !fits || gradient.shape() != param.shape() {
            return Err(wrong(format!(
                "`{name}` is {} {}, and no gradient of it is {} {}",
                param.dtype(),
                param.shape(),
                gradient.dtype(),
                gradient.shape()
            )));
        }
        let (b, s) = self.plan.place[i];
        let bucket = &self.plan.buckets[b];
        let factor = self.arithmetic.factor;
        match &mut self.flats[b] {
            Some(flat) => flat.write(s, &bucket.slots[s], &gradient, factor)?,
            None => self.singles[b] = Some(single(bucket, gradient, factor)?),
        }
        self.pending[b] -= 1;
        self.launch()?;
        self.poll();
        Ok(())
    }

    fn poll(&mut self) -> bool {
        self.heard = self.heard || self.uses.poll(); // the oldest
        while let Some((flight, _)) = self.flights.get_mut(self.landed)
            && flight.poll()
        {
            let b = self.landed;
            self.trace.record(|| TraceEvent::Reduced(b));
            self.landed += 1;
        }
        self.heard && self.landed == self.flights.len()
    }

    /// What bucket `b`, which is complete, sends; and what is known of it when that comes back.
    fn filled(&mut self, b: usize) -> Result<(Tensor, Option<Marks>)> {
        let bucket = &self.plan.buckets[b];
        if let Some(flat) = self.flats[b].take() {
            let (memory, marks) = flat.leave(bucket, |p| !self.used[p])?;
            return Ok((memory, Some(marks)));
        }
        let gradient = match self.singles[b].take() {
            Some(gradient) => gradient,
            None => {
                // Nothing from this rank.
                let device = self.plan.params[b][0].device();
                Tensor::zeros([bucket.len], bucket.dtype, device)?
            }
        };
        Ok((gradient, None))
    }

    /// Starts the reduction of every complete bucket that is next in the plan.
    fn launch(&mut self) -> Result<()> {
        let buckets = self.plan.buckets.len();
        while self.flights.len() < buckets && self.pending[self.flights.len()] == 0 {
            let b = self.flights.len();
            let (buffer, marks) = self.filled(b)?;
            let device = buffer.device();
            self.trace.filled(b, device)?;
            // A rank that is a bucket behind, or in another reducer, would else meet the others in a
            // reduction of equal shape.
            let group = self.reducer.group.labelled(Label {
                name: Name::new(format_args!("bucket {b} of {buckets}")),
                ..Label::new(self.reducer.number, self.step, b as u64)
            });
            let flight = match &self.reducer.config.hook {
                Some(hook) => {
                    let bucket = GradBucket {
                        index: b,
                        is_last: b + 1 == buckets,
                        parameters: &self.plan.params[b],
                        buffer,
                        slots: &self.plan.buckets[b].slots,
                    };
                    Flight::Hooked(hook.start(&group, bucket)?)
                }
                None => Flight::Plain(group.all_reduce(buffer, self.arithmetic.op)?),
            };
            self.trace.asked(b, device)?;
            self.flights.push((flight, marks));
            self.trace.record(|| TraceEvent::Started(b));
        }
        Ok(())
    }

    /// Whether every bucket has left. One that stays behind would leave the other ranks waiting, and this one
    /// without its gradients.
    fn all_launched(&self) -> Result<()> {
        let b = self.flights.len();
        let Some(bucket) = self.plan.buckets.get(b) else {
            return Ok(());
        };
        let missing = bucket.slots.iter().find(|s| self.awaited[s.param]);
        let name = |slot: &super::bucket::Slot| self.reducer.params[slot.param].0.clone();
        Err(Error::GradientMissing {
            rank: talk::world_rank(&*self.reducer.group),
            bucket: b,
            parameter: missing.map_or_else(String::new, name),
        })
    }

    /// What a hook returned for bucket `b`, if it can stand for its average.
    fn stand_for(&self, b: usize, found: Tensor) -> Result<Tensor> {
        let bucket = &self.plan.buckets[b];
        if found.dims() == [bucket.len] && found.dtype() == bucket.dtype {
            return Ok(found);
        }
        Err(Error::HookResult {
            rank: talk::world_rank(&*self.reducer.group),
            bucket: b,
            shape: bucket.len.into(),
            dtype: bucket.dtype,
            found_shape: found.shape().clone(),
            found_dtype: found.dtype(),
        })
    }

    fn finish(mut self) -> Result<Gradients> {
        self.trace.sweep_ended()?;
        self.all_launched()?;
        let plan = Arc::clone(&self.plan);
        for (flight, _) in &mut self.flights {
            flight.proceed()?;
        }
        let mut arrived = Vec::with_capacity(plan.buckets.len());
        for (b, (flight, marks)) in std::mem::take(&mut self.flights).into_iter().enumerate() {
            let sum = match flight {
                Flight::Plain(work) => work.wait()?,
                Flight::Hooked(completion) => self.stand_for(b, completion.finish()?)?,
            };
            if b >= self.landed {
                self.trace.record(|| TraceEvent::Reduced(b));
            }
            arrived.push((self.arithmetic.divided(&sum)?, sum, marks));
        }
        let used = self.uses.wait()?;
        // A hook may leave something where no rank has a gradient.
        let hooked = self.reducer.config.hook.is_some();
        let mut averages = Gradients::new();
        let mut flats = Vec::with_capacity(plan.buckets.len());
        for ((average, sum, marks), bucket) in arrived.into_iter().zip(&*plan.buckets) {
            for slot in bucket.slots.iter().filter(|s| used[s.param]) {
                let (_, param) = &self.reducer.params[slot.param];
                let gradient = flat::view(&average, slot.offset, param.shape())?;
                averages.insert(param, gradient.to_device(param.device())?);
            }
            flats.push(marks.map(|marks| marks.arrive(bucket, sum, |p| hooked || used[p])));
        }
        let mut state = self.reducer.state();
        state.flats = flats;
        state.stats.steps += 1;
        state.trace = self.trace;
        Ok(averages)
    }
}
