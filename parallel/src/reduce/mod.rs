//! [`GradReducer`]: the one engine of gradient averaging. It knows parameters, a group and a plan of
//! buckets, and nothing of modules, forward passes or tapes.

mod average;
pub mod bucket;
mod config;
pub(crate) mod flat;
mod hook;
mod poison;
mod power_sgd;
mod reduction;
mod timeline;
mod trace;
mod uses;

pub use average::Average;
pub(crate) use average::{Turn, gather};
pub use config::ReduceConfig;
pub use hook::{CommHook, Completion, Compress, GradBucket};
pub(crate) use poison::{Attempt, Poison};
pub use power_sgd::{PowerSgd, PowerSgdConfig};
pub use reduction::Reduction;
pub use trace::{Trace, TraceEvent};

use crate::{Error, Result, talk};
use bucket::{Bucket, Entry};
use flat::{Flat, Kept};
use phalanx_autograd::{Param, ParamId};
use phalanx_comm::ProcessGroup;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Averages gradients over the ranks of a group, bucket by bucket while they are computed (PyTorch: the
/// `Reducer` below `DistributedDataParallel`).
///
/// A step is [`begin`](GradReducer::begin), which says what will come, then
/// [`ready`](Reduction::ready) for each gradient as soon as it is final, then
/// [`finish`](Reduction::finish), which waits and gives the averages.
///
/// - **Buckets leave in the order of the plan**, whatever order the gradients come in, so all ranks send the
///   same. The first step makes the plan, from the order in which the first rank expects its gradients.
/// - **Averages are views of the buckets** (PyTorch: `gradient_as_bucket_view`). The next `begin` takes
///   that memory back: drop the averages before it. Where somebody still holds one, the bucket gets other
///   memory, and [`stats`](GradReducer::stats) counts it. (With weights, the sum is in the bucket, and the
///   average is a tensor of its own. A gradient that travels alone is its own bucket.)
/// - **An error in mid-step poisons the reducer**, and so does a step that is given up: this rank may be a
///   bucket behind the others, so every further call is [`Error::Poisoned`].
///
/// [`Ddp`](crate::Ddp) puts one under a module. By itself it serves whoever makes gradients in another way:
///
/// ```
/// use phalanx_autograd::Param;
/// use phalanx_comm::launch;
/// use phalanx_parallel::{Average, GradReducer, ReduceConfig};
/// use phalanx_tensor::{DType, Device, Tensor};
///
/// let means = launch(2, |group| -> phalanx_parallel::Result<Vec<f32>> {
///     let (rank, device) = (group.rank() as f64, Device::cpu(group.rank()));
///     let weight = Param::new(Tensor::zeros([2, 2], DType::F32, device)?);
///     let bias = Param::new(Tensor::zeros([2], DType::F32, device)?);
///     let named = [("weight", &weight), ("bias", &bias)];
///     let named = named.map(|(name, param)| (name.to_owned(), param.clone()));
///     let reducer = GradReducer::new(named, group, ReduceConfig::default())?;
///
///     let mut step = reducer.begin([&bias, &weight], &Average::EQUAL)?;
///     step.ready(&bias, Tensor::full([2], rank, DType::F32, device)?)?;
///     step.ready(&weight, Tensor::full([2, 2], 10.0 * rank, DType::F32, device)?)?;
///     let averages = step.finish()?;
///
///     let mean = |param| averages.get(param).map(Tensor::to_vec::<f32>);
///     assert_eq!(mean(&weight).transpose()?, Some(vec![5.0; 4]));
///     Ok(mean(&bias).transpose()?.unwrap_or_default())
/// })?;
/// assert_eq!(means, [[0.5; 2]; 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct GradReducer {
    /// The same on all ranks of the group, and of no other reducer there.
    number: u64,
    group: Arc<dyn ProcessGroup>,
    config: ReduceConfig,
    params: Vec<(String, Param)>,
    index: HashMap<ParamId, usize>,
    poison: Poison,
    state: Mutex<State>,
}

/// Figures of a [`GradReducer`] since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ReduceStats {
    /// Steps that were finished.
    pub steps: u64,
    /// How often memory was taken for a bucket. Each takes it once; then again where it was held, or where
    /// its parameters have moved to another device. (A gradient that travels alone takes none.)
    pub buckets_made: u64,
    /// How often a step found memory of the step before still held by somebody, and took other memory.
    pub buckets_held: u64,
}

/// What lasts from step to step.
#[derive(Default)]
struct State {
    plan: Option<Arc<Plan>>,
    /// By bucket, where it has several gradients: what the last step has left. Views of it may be lent out.
    flats: Vec<Option<Flat>>,
    stats: ReduceStats,
    trace: Trace,
}

/// The plan, and what is looked up in it.
struct Plan {
    buckets: Arc<[Bucket]>,
    /// The parameters of each bucket.
    params: Vec<Box<[Param]>>,
    /// For each parameter: its bucket and its slot there.
    place: Vec<(usize, usize)>,
}

impl GradReducer {
    /// A reducer of the gradients of these parameters, named for errors. Checks that all ranks give the same
    /// ones (names, shapes, element types, in order) and the same configuration. Every rank must call it.
    ///
    /// # Errors
    /// [`Error::InvalidUse`] where a parameter occurs twice; [`Error::RanksDiffer`], the same on every rank;
    /// errors of the communication.
    pub fn new(
        params: impl IntoIterator<Item = (String, Param)>,
        group: Arc<dyn ProcessGroup>,
        config: ReduceConfig,
    ) -> Result<GradReducer> {
        let params: Vec<_> = params.into_iter().collect();
        let mut seen: HashMap<ParamId, &str> = HashMap::new();
        for (name, param) in &params {
            if let Some(first) = seen.insert(param.id(), name) {
                return Err(Error::InvalidUse {
                    op: "GradReducer::new",
                    reason: format!("`{first}` and `{name}` are one parameter"),
                });
            }
        }
        let entries = params.iter();
        let entries = entries.map(|(name, p)| ("parameter", &**name, Entry::of_gradient(p)));
        let text = config.describe(&*group) + &bucket::describe(entries);
        talk::agree(&*group, "gradients to average", &text)?;
        let group = talk::over_devices(group, params.iter().map(|(_, p)| p.device()))?;
        GradReducer::of_agreed(params, group, config)
    }

    /// As [`new`](GradReducer::new), where all ranks are known to give the same. Every rank must call it.
    pub(crate) fn of_agreed(
        params: Vec<(String, Param)>,
        group: Arc<dyn ProcessGroup>,
        mut config: ReduceConfig,
    ) -> Result<GradReducer> {
        // What a hook keeps belongs to these buckets on this rank.
        let fresh = config.hook.as_ref().and_then(|hook| hook.fresh());
        config.hook = fresh.or(config.hook);
        let number = talk::owner(&*group)?;
        let index = params.iter().enumerate();
        let index = index.map(|(i, (_, p))| (p.id(), i)).collect();
        Ok(GradReducer {
            number,
            group,
            config,
            params,
            index,
            poison: Poison::default(),
            state: Mutex::default(),
        })
    }

    /// Starts a step. `expected` are the parameters that this rank will give gradients for, each once, best in
    /// the order in which these will come: by the first rank's order in the first step, buckets are planned.
    /// Other ranks may expect others, unless [`ReduceConfig::find_unused_parameters`] is off. Every rank must
    /// call it, with the same `average`; one whose weight is 0 may expect none.
    ///
    /// What this rank has nothing for leaves at once.
    ///
    /// # Errors
    /// Before anything is sent: [`Error::Poisoned`], also while another step is under way;
    /// [`Error::UnusedParameter`]; [`Error::InvalidUse`] for a parameter that is none of the reducer's or
    /// occurs twice, and for an average over another group. Then errors of the communication.
    pub fn begin<'p>(
        &self,
        expected: impl IntoIterator<Item = &'p Param>,
        average: &Average,
    ) -> Result<Reduction<'_>> {
        let expected = expected.into_iter();
        let expected = expected.map(|param| self.expect_place("begin", param));
        self.begin_in_order(&expected.collect::<Result<Vec<_>>>()?, average)
    }

    /// As [`begin`](GradReducer::begin), with parameters by their index.
    pub(crate) fn begin_in_order(
        &self,
        order: &[usize],
        average: &Average,
    ) -> Result<Reduction<'_>> {
        self.expect_whole()?;
        let wrong = |reason: String| Error::InvalidUse {
            op: "GradReducer::begin",
            reason,
        };
        if !average.is_of(self.group.size()) {
            return Err(wrong("the average is one over another group".into()));
        }
        let mut expected = vec![false; self.params.len()];
        for &i in order {
            if std::mem::replace(&mut expected[i], true) {
                let (name, _) = &self.params[i];
                return Err(wrong(format!("`{name}` is expected twice")));
            }
        }
        if average.counts(self.group.rank()) {
            self.expect_all(&expected)?;
        }
        let mut attempt = self.poison.attempt();
        let parts = reduction::Parts::start(self, order, expected, average);
        let parts = attempt.note(parts)?;
        Ok(Reduction::new(parts, attempt))
    }

    /// Where every parameter must be used: whether these are all.
    ///
    /// # Errors
    /// [`Error::UnusedParameter`].
    pub(crate) fn expect_all(&self, used: &[bool]) -> Result<()> {
        let unused = used.iter().position(|used| !used);
        match unused.filter(|_| !self.config.find_unused_parameters) {
            None => Ok(()),
            Some(i) => Err(Error::UnusedParameter {
                rank: talk::world_rank(&*self.group),
                parameter: self.params[i].0.clone(),
            }),
        }
    }

    /// The parameters with their names, in the order in which they were given.
    pub fn parameters(&self) -> &[(String, Param)] {
        &self.params
    }

    /// The group whose ranks average.
    pub fn group(&self) -> &Arc<dyn ProcessGroup> {
        &self.group
    }

    /// The bucket plan, once the first step has agreed on it. Slots index
    /// [`parameters`](GradReducer::parameters).
    pub fn buckets(&self) -> Option<Arc<[Bucket]>> {
        let state = self.state();
        state.plan.as_ref().map(|plan| Arc::clone(&plan.buckets))
    }

    /// What happened when in the last step that was finished, where [`ReduceConfig::trace`] is set.
    pub fn trace(&self) -> Trace {
        self.state().trace.clone()
    }

    /// What it has counted.
    pub fn stats(&self) -> ReduceStats {
        self.state().stats
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The index of a parameter, if it is one of these.
    pub(crate) fn place_of(&self, id: ParamId) -> Option<usize> {
        self.index.get(&id).copied()
    }

    fn expect_place(&self, call: &str, param: &Param) -> Result<usize> {
        self.place_of(param.id()).ok_or_else(|| Error::InvalidUse {
            op: "GradReducer",
            reason: format!("{call} got {param:?}, which is none of its parameters"),
        })
    }

    fn expect_whole(&self) -> Result<()> {
        let step = self.stats().steps;
        self.poison
            .expect_whole(talk::world_rank(&*self.group), step)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panic has left half done, `poison` tells.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The plan; in the first step, the order of the rank `leader` becomes everybody's.
    fn agreed_plan(&self, order: &[usize], leader: usize) -> Result<Arc<Plan>> {
        if let Some(plan) = &self.state().plan {
            return Ok(Arc::clone(plan));
        }
        let n = self.params.len();
        let mut seen = vec![false; n];
        order.iter().for_each(|&i| seen[i] = true);
        // What the step does not reach comes last, in reverse order of registration.
        let rest = (0..n).rev().filter(|&i| !seen[i]);
        let order = order.iter().copied().chain(rest).map(|i| i as i64);
        let order = talk::numbers_of(leader, order.collect(), &*self.group)?;
        let order: Vec<usize> = order.into_iter().map(|i| i as usize).collect();
        let entries = self.params.iter().map(|(_, p)| Entry::of_gradient(p));
        let entries: Vec<Entry> = entries.collect();
        let buckets = bucket::plan(&entries, &order, self.config.limits(&*self.group));
        let plan = Arc::new(Plan::new(buckets.into(), &self.params));
        self.state().plan = Some(Arc::clone(&plan));
        Ok(plan)
    }

    /// The memory of each bucket that has several gradients.
    fn take_flats(&self, plan: &Plan) -> Result<Vec<Option<Flat>>> {
        let mut state = self.state();
        let mut kept = std::mem::take(&mut state.flats).into_iter();
        let buckets = plan.buckets.iter().zip(&plan.params);
        let flats = buckets.map(|(bucket, params)| {
            let kept = kept.next().flatten();
            if bucket.is_single() {
                return Ok(None);
            }
            // Where its members live now: they may have moved since it was planned.
            let (flat, became) = Flat::take_back(kept, bucket, params[0].device())?;
            state.stats.buckets_made += u64::from(became != Kept::Back);
            state.stats.buckets_held += u64::from(became == Kept::Held);
            Ok(Some(flat))
        });
        flats.collect()
    }
}

impl Plan {
    fn new(buckets: Arc<[Bucket]>, params: &[(String, Param)]) -> Plan {
        let mut place = vec![(0, 0); params.len()];
        for (b, bucket) in buckets.iter().enumerate() {
            let slots = bucket.slots.iter().enumerate();
            slots.for_each(|(s, slot)| place[slot.param] = (b, s));
        }
        let members = buckets.iter().map(|bucket| {
            let slots = bucket.slots.iter();
            slots.map(|slot| params[slot.param].1.clone()).collect()
        });
        Plan {
            params: members.collect(),
            place,
            buckets,
        }
    }
}
