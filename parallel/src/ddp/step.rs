//! One synchronised step: a sweep, and the averages of what it makes, for one replica or for several
//! that a loss reaches together.

use super::bucket::{self, Bucket, Entry, Limits};
use super::reducer::Reducer;
use super::replica::{Known, Replica, entry_of};
use super::share::{self, Share, Turn};
use super::verify;
use crate::{Error, Result};
use phalanx_autograd::{Backward, Claim, Claims, Gradients, OnReady, Param, ParamId, Tape, Var};
use phalanx_comm::ProcessGroup;
use phalanx_tensor::Tensor;
use std::borrow::Cow;
use std::sync::Arc;

/// The replicas of one step, almost always one. Their parameters count as one list, in this order.
#[derive(Clone, Copy)]
pub(super) struct Joint<'a>(&'a [&'a Replica]);

/// A sweep that is to come.
pub(super) struct Sweep<'a> {
    tape: &'a Tape,
    loss: &'a Var,
    /// The parameters that it will reach, by their index, in the order of their gradients.
    order: Vec<usize>,
}

impl<'a> Joint<'a> {
    /// Several replicas, which must communicate in one way: their buckets leave in one order.
    pub(super) fn new(op: &'static str, replicas: &'a [&'a Replica]) -> Result<Joint<'a>> {
        let wrong = |reason: &str| Error::InvalidUse {
            op,
            reason: reason.into(),
        };
        let Some((lead, others)) = replicas.split_first() else {
            return Err(wrong("it needs at least one wrapper"));
        };
        for (i, other) in others.iter().enumerate() {
            let same_group = |a: &dyn ProcessGroup, b: &dyn ProcessGroup| {
                a.name() == b.name() && a.world_ranks() == b.world_ranks()
            };
            if replicas[..=i].iter().any(|r| std::ptr::eq(*r, *other)) {
                return Err(wrong("a wrapper occurs twice"));
            }
            if !same_group(&*lead.group, &*other.group) {
                return Err(wrong("the wrappers must share one group of ranks"));
            }
            if lead.config.describe() != other.config.describe() {
                return Err(wrong("the wrappers must have one configuration"));
            }
            if lead.config.uneven_inputs {
                return Err(wrong(
                    "with DdpConfig::uneven_inputs, wrap one module that holds both",
                ));
            }
        }
        Ok(Joint(replicas))
    }

    /// The one replica, as the rule is.
    pub(super) fn one(replica: &'a &'a Replica) -> Joint<'a> {
        Joint(std::slice::from_ref(replica))
    }

    /// The first, whose group and configuration are everybody's.
    pub(super) fn lead(&self) -> &'a Replica {
        self.0[0]
    }

    pub(super) fn group(&self) -> &'a dyn ProcessGroup {
        &*self.lead().group
    }

    /// The number of parameters.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|r| r.params.len()).sum()
    }

    pub(super) fn params(&self) -> impl Iterator<Item = &'a (String, Param)> + use<'a> {
        self.0.iter().flat_map(|r| &r.params)
    }

    /// The parameter of an index, with its name.
    pub(super) fn param(&self, mut i: usize) -> &'a (String, Param) {
        let mut replicas = self.0.iter();
        loop {
            // An index comes from `place`, or from a plan over this list.
            let params = &replicas.next().expect("an index of the list").params;
            match params.get(i) {
                Some(param) => return param,
                None => i -= params.len(),
            }
        }
    }

    /// The index of a parameter.
    fn place(&self, id: ParamId) -> Option<usize> {
        let mut before = 0;
        self.0.iter().find_map(|r| {
            let found = r.index.get(&id).map(|i| before + i);
            before += r.params.len();
            found
        })
    }

    pub(super) fn expect_whole(&self) -> Result<()> {
        self.0.iter().try_for_each(|r| r.expect_whole())
    }

    /// Calls `sweep` with what a sweep for these replicas may reach.
    fn with_claims<T>(&self, sweep: impl FnOnce(Claims<'_>) -> Result<T>) -> Result<T> {
        if let [replica] = self.0 {
            return sweep(Claims {
                held: &[&replica.claim],
                beside: &replica.config.beside,
            });
        }
        let held: Vec<&Claim> = self.0.iter().map(|r| &r.claim).collect();
        let beside = self.0.iter().flat_map(|r| r.config.beside.iter().cloned());
        sweep(Claims {
            held: &held,
            beside: &beside.collect::<Vec<_>>(),
        })
    }

    /// What a sweep will reach, and in which order. Changes nothing and talks to nobody.
    pub(super) fn plan_sweep(&self, tape: &'a Tape, loss: &'a Var) -> Result<Sweep<'a>> {
        let plan = tape.plan(&[loss])?;
        let unplanned: Vec<ParamId> = plan
            .params()
            .iter()
            .map(Param::id)
            .filter(|&id| self.place(id).is_none())
            .collect();
        // Thawed now, or when it was recorded: its gradient would be this rank's own.
        let thawed = |p: &Param| p.requires_grad() || unplanned.contains(&p.id());
        let mut frozen = self.0.iter().flat_map(|r| &r.frozen);
        if let Some((name, _)) = frozen.find(|(_, p)| thawed(p)) {
            return Err(Error::Thawed {
                rank: self.lead().world_rank(),
                parameter: name.clone(),
            });
        }
        self.with_claims(|claims| {
            let roots = [(loss, None)];
            Ok(tape.check_claims(&Backward {
                roots: &roots,
                claims,
                ..Default::default()
            })?)
        })?;
        let order = plan.params().iter().filter_map(|p| self.place(p.id()));
        Ok(Sweep {
            tape,
            loss,
            order: order.collect(),
        })
    }

    /// The shares of a step in which this rank has data.
    pub(super) fn share(&self, turn: Turn) -> Result<Share> {
        let over_all = self.lead().config.divide_by_initial_world_size;
        let share = share::gather(self.group(), turn, over_all)?;
        Ok(share.unwrap_or(Share::Equal)) // this rank has not joined: there is one
    }

    /// A sweep whose gradients are kept for the next step, without communication.
    pub(super) fn accumulate(&self, tape: &'a Tape, loss: &'a Var) -> Result<()> {
        self.expect_whole()?;
        self.plan_sweep(tape, loss)?;
        let mut gradients = self.with_claims(|claims| {
            let roots = [(loss, None)];
            Ok(tape.sweep(Backward {
                roots: &roots,
                claims,
                ..Default::default()
            })?)
        })?;
        // A sum that fails half-way is no sum of anything.
        self.whole_or_broken(|| {
            let (lead, others) = (self.lead(), &self.0[1..]);
            for replica in others {
                let mut own = Gradients::new();
                for (_, param) in &replica.params {
                    if let Some(gradient) = gradients.take(param) {
                        own.insert(param, gradient);
                    }
                }
                replica.state().accumulated.accumulate(own)?;
            }
            Ok(lead.state().accumulated.accumulate(gradients)?)
        })
    }

    /// Runs what must be done as a whole: after an error or a panic inside, the replicas refuse all
    /// further steps.
    pub(super) fn whole_or_broken<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let set = |broken: Option<Cow<'static, str>>| {
            for replica in self.0 {
                replica.state().broken.clone_from(&broken);
            }
        };
        set(Some(Cow::Borrowed("a panic ended it, or it is under way")));
        let result = f();
        set(result.as_ref().err().map(|error| error.to_string().into()));
        result
    }

    /// One synchronised step: a sweep where this rank has data, its part of the averages in any
    /// case.
    pub(super) fn step(&self, sweep: Option<Sweep<'_>>, share: Share) -> Result<Gradients> {
        self.whole_or_broken(|| self.run(sweep, share))
    }

    fn run(&self, sweep: Option<Sweep<'_>>, share: Share) -> Result<Gradients> {
        let leader = share.leader();
        let order = sweep.as_ref().map_or(&[][..], |sweep| &sweep.order);
        // Taken only now: a loss that cannot be differentiated leaves them for the next call.
        let mut accumulated = Gradients::new();
        for replica in self.0 {
            accumulated.accumulate(std::mem::take(&mut replica.state().accumulated))?;
        }
        let mut in_sweep = vec![false; self.len()];
        order.iter().for_each(|&i| in_sweep[i] = true);
        let counts = share.counts(self.group().rank());
        let used: Vec<bool> = in_sweep
            .iter()
            .zip(self.params())
            .map(|(&in_sweep, (_, p))| counts && (in_sweep || accumulated.get(p).is_some()))
            .collect();

        let plan = self.agreed_plan(order, leader)?;
        // Before the reducer, which sends at once the buckets that this rank has nothing for: ranks
        // differ in which these are, and must not in the order of their collectives.
        let with_buffers = self.0.iter().filter(|r| !r.buffers.is_empty());
        let others = self.group().size() > 1;
        let buffers = match self.lead().config.broadcast_buffers && others {
            true => with_buffers
                .map(|r| Ok((r, r.send_buffers(leader)?)))
                .collect::<Result<Vec<_>>>()?,
            false => Vec::new(),
        };
        let mut reducer = Reducer::new(*self, plan, share, &used)?;

        // Gradients that only earlier micro-steps have are final already.
        for (i, (_, param)) in self.params().enumerate() {
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
                let Some(i) = self.place(param.id()) else {
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
            let swept = self.with_claims(|claims| {
                let (roots, on_ready) = ([(loss, None)], Some(&mut on_ready as &mut OnReady<'_>));
                Ok(tape.sweep(Backward {
                    roots: &roots,
                    on_ready,
                    claims,
                    ..Default::default()
                })?)
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
        for (replica, buffers) in buffers {
            buffers.receive(&replica.buffers)?;
        }
        for replica in self.0 {
            let mut state = replica.state();
            state.trace = trace.clone();
            state.step += 1;
        }
        Ok(gradients)
    }

    /// The bucket plan; in the first step, `leader`'s order of readiness becomes everybody's.
    pub(super) fn agreed_plan(&self, order: &[usize], leader: usize) -> Result<Arc<[Bucket]>> {
        let others = self.0[1..].iter().map(|r| r.number);
        let state = self.lead().state();
        let mut known = state.plans.iter();
        if let Some(known) = known.find(|known| known.with.iter().copied().eq(others.clone())) {
            return Ok(Arc::clone(&known.plan));
        }
        drop(state);
        let with: Vec<u64> = others.collect();
        if !with.is_empty() {
            // Of equal shape, say, wrappers in another order would meet in silence.
            let text = format!("{} with {with:?}", self.lead().number);
            verify::agree(self.group(), "wrappers in one backward", &text)?;
        }
        let n = self.len();
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
        let group = self.group();
        let order = Tensor::from_vec(order, n, group.device())?;
        let order = group.broadcast(order, leader)?.wait()?.to_vec::<i64>()?;
        let order: Vec<usize> = order.into_iter().map(|i| i as usize).collect();
        let entries = self.params().map(|(_, p)| Entry {
            dtype: p.grad_dtype(), // what travels
            ..entry_of(p)
        });
        let entries: Vec<Entry> = entries.collect();
        let config = &self.lead().config;
        let limits = Limits {
            first: config.first_bucket_bytes,
            cap: config.bucket_cap_bytes,
            single: config.in_place_bytes,
        };
        let plan: Arc<[Bucket]> = bucket::plan(&entries, &order, limits).into();
        self.lead().state().plans.push(Known {
            with,
            plan: Arc::clone(&plan),
            flats: Vec::new(),
        });
        Ok(plan)
    }

    /// The flat buffers that the last step of this plan has left, or nothing.
    pub(super) fn take_flats(&self, plan: &Arc<[Bucket]>) -> Vec<Option<Tensor>> {
        let mut flats = Vec::new();
        self.swap_flats(plan, &mut flats);
        flats
    }

    /// Leaves the flat buffers of a step for the next one of this plan.
    pub(super) fn keep_flats(&self, plan: &Arc<[Bucket]>, mut flats: Vec<Option<Tensor>>) {
        self.swap_flats(plan, &mut flats);
    }

    fn swap_flats(&self, plan: &Arc<[Bucket]>, flats: &mut Vec<Option<Tensor>>) {
        let mut state = self.lead().state();
        let mut known = state.plans.iter_mut();
        if let Some(known) = known.find(|known| Arc::ptr_eq(&known.plan, plan)) {
            std::mem::swap(&mut known.flats, flats);
        }
    }
}
