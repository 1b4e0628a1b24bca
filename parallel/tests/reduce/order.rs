//! Buckets leave in the order of the plan, and hooks see what they are.

use crate::model::{on_ranks, values};
use crate::support::{ALONE, SHAPES, gradient, reducer, shuffled, small, step};
use phalanx_autograd::ParamId;
use phalanx_comm::{ProcessGroup, ReduceOp, Work};
use phalanx_parallel::reduce::bucket::Bucket;
use phalanx_parallel::{
    Average, CommHook, Completion, GradBucket, ReduceConfig, Result, TraceEvent,
};
use phalanx_tensor::{DType, Tensor};
use std::sync::{Arc, Mutex};

#[test]
fn in_the_order_of_the_plan_whatever_comes_first() {
    on_ranks(3, |group| {
        let config = ReduceConfig {
            trace: true,
            ..small()
        };
        let reducer = reducer(&group, config)?;
        for i in 0..6 {
            let order = shuffled(1 + 5 * i + group.rank());
            drop(step(&reducer, &order, i, &Average::EQUAL)?);
            let trace = reducer.trace();
            let started = trace.events().iter().filter_map(|(_, e)| match e {
                TraceEvent::Started(b) => Some(*b),
                _ => None,
            });
            let buckets = reducer.buckets().unwrap().len();
            assert!(buckets > 2);
            assert!(started.eq(0..buckets), "{trace}");
        }
        Ok(())
    });
}

#[test]
fn the_first_rank_s_order_plans_the_buckets() {
    let plans = on_ranks(2, |group| {
        let reducer = reducer(&group, small())?;
        assert!(reducer.buckets().is_none());
        let order = match group.rank() {
            0 => [6, 5, 4, 3, 2, 1, 0],
            _ => [0, 1, 2, 3, 4, 5, 6],
        };
        drop(step(&reducer, &order, 0, &Average::EQUAL)?);
        let plan = reducer.buckets().unwrap();
        let members = |b: &Bucket| b.slots.iter().map(|s| s.param).collect();
        Ok(plan.iter().map(members).collect::<Vec<Vec<usize>>>())
    });
    assert_eq!(plans[0], plans[1]);
    assert_eq!(plans[0].concat(), [6, 5, 4, 3, 2, 1, 0]);
    assert!(plans[0].contains(&vec![ALONE]) && plans[0].len() > 2);
}

#[test]
fn a_complete_bucket_leaves_before_the_step_ends() {
    on_ranks(2, |group| {
        let config = ReduceConfig {
            trace: true,
            ..small()
        };
        let reducer = reducer(&group, config)?;
        drop(step(&reducer, &shuffled(4), 0, &Average::EQUAL)?);
        let trace = reducer.trace();
        let kinds = trace.events().iter().map(|(_, event)| event);
        let before = kinds.take_while(|e| **e != TraceEvent::Started(0)).count();
        assert!(before < SHAPES.len() / 2, "{trace}");
        Ok(())
    });
}

/// What a hook has seen of a bucket.
#[derive(Debug, Clone)]
struct Seen {
    index: usize,
    is_last: bool,
    parameters: Vec<ParamId>,
    /// The gradients of each, and how many elements the buffer has.
    gradients: Vec<Vec<f64>>,
    len: usize,
    unique: bool,
}

/// The exact average, which notes what it gets.
#[derive(Default)]
struct Notes(Mutex<Vec<Seen>>);

impl CommHook for Notes {
    fn start(
        &self,
        group: &Arc<dyn ProcessGroup>,
        bucket: GradBucket<'_>,
    ) -> Result<Box<dyn Completion>> {
        let unique = bucket.buffer.is_unique();
        self.0.lock().unwrap().push(Seen {
            index: bucket.index,
            is_last: bucket.is_last,
            parameters: bucket.parameters.iter().map(|p| p.id()).collect(),
            gradients: bucket.gradients()?.iter().map(values).collect(),
            len: bucket.buffer.numel(),
            unique,
        });
        let work = group.all_reduce(bucket.buffer, ReduceOp::Sum)?;
        Ok(Box::new(move || Ok(work.wait()?)))
    }
}

#[test]
fn a_hook_sees_each_bucket_with_its_parameters() {
    on_ranks(2, |group| {
        let notes = Arc::new(Notes::default());
        let config = ReduceConfig {
            hook: Some(Arc::clone(&notes) as Arc<dyn CommHook>),
            ..small()
        };
        let reducer = reducer(&group, config)?;
        for i in 0..3 {
            drop(step(&reducer, &shuffled(2), i, &Average::EQUAL)?);
            let seen = std::mem::take(&mut *notes.0.lock().unwrap());
            let plan = reducer.buckets().unwrap();
            assert_eq!(seen.len(), plan.len());
            for (b, (seen, bucket)) in seen.iter().zip(&*plan).enumerate() {
                assert_eq!((seen.index, seen.is_last), (b, b + 1 == plan.len()));
                assert_eq!((seen.len, seen.unique), (bucket.len, true));
                let slots = bucket.slots.iter();
                let ids = slots.clone().map(|s| reducer.parameters()[s.param].1.id());
                assert!(ids.eq(seen.parameters.iter().copied()));
                // This rank's own gradients, divided by the number of ranks already.
                for (slot, found) in slots.zip(&seen.gradients) {
                    let device = group.device();
                    let own = gradient(slot.param, group.rank(), i, DType::F32, device);
                    assert_eq!(*found, values(&own.mul_scalar(0.5)?));
                }
            }
        }
        Ok(())
    });
}

/// Sums in two parts: gradients, then the mean of these sums, which are equal.
struct Twice(Arc<Mutex<Vec<String>>>);

struct Part {
    notes: Arc<Mutex<Vec<String>>>,
    group: Arc<dyn ProcessGroup>,
    index: usize,
    work: Option<Work<Tensor>>,
}

impl CommHook for Twice {
    fn start(
        &self,
        group: &Arc<dyn ProcessGroup>,
        bucket: GradBucket<'_>,
    ) -> Result<Box<dyn Completion>> {
        let part = Part {
            notes: Arc::clone(&self.0),
            group: Arc::clone(group),
            index: bucket.index,
            work: Some(group.all_reduce(bucket.buffer, ReduceOp::Sum)?),
        };
        part.note("start");
        Ok(Box::new(part))
    }
}

impl Part {
    fn note(&self, what: &str) {
        let note = format!("{what} {}", self.index);
        self.notes.lock().unwrap().push(note);
    }
}

impl Completion for Part {
    fn proceed(&mut self) -> Result<()> {
        self.note("proceed");
        let sum = self.work.take().unwrap().wait()?;
        self.work = Some(self.group.all_reduce(sum, ReduceOp::Avg)?);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Tensor> {
        self.note("finish");
        Ok(self.work.unwrap().wait()?)
    }
}

#[test]
fn the_second_part_starts_when_all_buckets_have_left() {
    on_ranks(2, |group| {
        let notes = Arc::default();
        let config = ReduceConfig {
            hook: Some(Arc::new(Twice(Arc::clone(&notes)))),
            ..small()
        };
        let (plain, hooked) = (reducer(&group, small())?, reducer(&group, config)?);
        for i in 0..2 {
            let order = shuffled(1 + 5 * i + group.rank());
            let found = step(&hooked, &order, i, &Average::EQUAL)?;
            let wanted = step(&plain, &order, i, &Average::EQUAL)?;
            for ((_, a), (_, b)) in hooked.parameters().iter().zip(plain.parameters()) {
                let (found, wanted) = (found.get(a).unwrap(), wanted.get(b).unwrap());
                assert_eq!(values(found), values(wanted));
            }
            let buckets = hooked.buckets().unwrap().len();
            let parts = ["start", "proceed", "finish"].iter();
            let wanted = parts.flat_map(|part| (0..buckets).map(move |b| format!("{part} {b}")));
            let notes = std::mem::take(&mut *notes.lock().unwrap());
            assert_eq!(notes, wanted.collect::<Vec<_>>());
        }
        Ok(())
    });
}
