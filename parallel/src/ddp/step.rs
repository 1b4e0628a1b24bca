//! One synchronised step: a sweep, and the averages of what it makes, for one replica or for several
//! that a loss reaches together.

use super::replica::Replica;
use crate::reduce::{self, Attempt, Average, GradReducer, Turn};
use crate::{Error, Result, talk};
use phalanx_autograd::{Backward, Claim, Claims, Gradients, OnReady, Param, ParamId, Tape, Var};
use phalanx_comm::ProcessGroup;
use phalanx_tensor::Tensor;
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
            if !same_group(lead.group(), other.group()) {
                return Err(wrong("the wrappers must share one group of ranks"));
            }
            if lead.config.describe(lead.group()) != other.config.describe(other.group()) {
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
        self.lead().group()
    }

    /// The number of parameters.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|r| r.params().len()).sum()
    }

    pub(super) fn params(&self) -> impl Iterator<Item = &'a (String, Param)> + use<'a> {
        self.0.iter().flat_map(|r| r.params())
    }

    /// The index of a parameter.
    fn place(&self, id: ParamId) -> Option<usize> {
        let mut before = 0;
        self.0.iter().find_map(|r| {
            let found = r.reducer.place_of(id).map(|i| before + i);
            before += r.params().len();
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
                rank: talk::world_rank(self.group()),
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

    /// Where every parameter must be used: whether `sweep`, and what was accumulated, use them all.
    pub(super) fn expect_all(&self, sweep: &Sweep<'_>) -> Result<()> {
        if self.lead().config.find_unused_parameters {
            return Ok(());
        }
        let mut first = 0;
        self.0.iter().try_for_each(|r| {
            let state = r.state();
            let params = r.params().iter();
            let mut used: Vec<bool> = params
                .map(|(_, p)| state.accumulated.get(p).is_some())
                .collect();
            let own = first..first + used.len();
            let reached = sweep.order.iter().filter(|i| own.contains(i));
            reached.for_each(|i| used[i - first] = true);
            first = own.end;
            r.reducer.expect_all(&used)
        })
    }

    /// The average of a step in which this rank has data.
    pub(super) fn average(&self, turn: Turn) -> Result<Average> {
        let over_all = self.lead().config.divide_by_initial_world_size;
        let average = reduce::gather(self.group(), turn, over_all)?;
        Ok(average.unwrap_or(Average::EQUAL)) // this rank has not joined: there is one
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
                for (_, param) in replica.params() {
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
        let mut attempts: Vec<Attempt<'_>> = self.0.iter().map(|r| r.poison.attempt()).collect();
        let mut result = f();
        for attempt in &mut attempts {
            result = attempt.note(result);
        }
        attempts.into_iter().for_each(Attempt::done);
        result
    }

    /// One synchronised step: a sweep where this rank has data, its part of the averages in any
    /// case.
    pub(super) fn step(&self, sweep: Option<Sweep<'_>>, average: &Average) -> Result<Gradients> {
        self.whole_or_broken(|| self.run(sweep, average))
    }

    fn run(&self, sweep: Option<Sweep<'_>>, average: &Average) -> Result<Gradients> {
        let leader = average.leader();
        let in_order = sweep.as_ref().map_or(&[][..], |sweep| &sweep.order);
        // Taken only now: a loss that cannot be differentiated leaves them for the next call.
        let mut accumulated = Gradients::new();
        for replica in self.0 {
            accumulated.accumulate(std::mem::take(&mut replica.state().accumulated))?;
        }
        let mut in_sweep = vec![false; self.len()];
        in_order.iter().for_each(|&i| in_sweep[i] = true);
        // Gradients that only earlier micro-steps have are final already, and come first.
        let earlier = self.params().enumerate();
        let earlier = earlier.filter(|(i, (_, p))| !in_sweep[*i] && accumulated.get(p).is_some());
        let earlier: Vec<(usize, &Param)> = earlier.map(|(i, (_, p))| (i, p)).collect();
        let order = earlier.iter().map(|(i, _)| *i);
        let order: Vec<usize> = order.chain(in_order.iter().copied()).collect();

        let reducer = self.reducer()?;
        // Before the reduction, which sends at once the buckets that this rank has nothing for: ranks
        // differ in which these are, and must not in the order of their collectives.
        let with_buffers = self.0.iter().filter(|r| !r.buffers.named.is_empty());
        let others = self.group().size() > 1;
        let buffers = match self.lead().config.broadcast_buffers && others {
            true => with_buffers
                .map(|r| r.buffers.send(self.group(), leader))
                .collect::<Result<Vec<_>>>()?,
            false => Vec::new(),
        };
        let mut reduction = reducer.begin_in_order(&order, average)?;
        for (i, param) in earlier {
            if let Some(gradient) = accumulated.take(param) {
                reduction.ready_at(i, gradient)?;
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
                reduction.ready_at(i, gradient).map_err(|error| {
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
        let mut gradients = reduction.finish()?;
        // Of inputs, and of parameters beside the module's.
        gradients.accumulate(own)?;
        gradients.accumulate(accumulated)?;
        for buffers in buffers {
            buffers.receive()?;
        }
        for replica in self.0 {
            let mut state = replica.state();
            state.last = Some(Arc::clone(&reducer));
            state.step += 1;
        }
        Ok(gradients)
    }

    /// What averages the gradients of these replicas; for several, all ranks agree on one in their first step.
    fn reducer(&self) -> Result<Arc<GradReducer>> {
        let lead = self.lead();
        if self.0.len() == 1 {
            return Ok(Arc::clone(&lead.reducer));
        }
        let with: Vec<u64> = self.0[1..].iter().map(|r| r.reducer.number()).collect();
        let known = lead.state();
        if let Some((_, reducer)) = known.joint.iter().find(|(others, _)| *others == with) {
            return Ok(Arc::clone(reducer));
        }
        drop(known);
        // Of equal shape, say, wrappers in another order would meet in silence.
        let text = format!("{} with {with:?}", lead.reducer.number());
        talk::agree(self.group(), "wrappers in one backward", &text)?;
        let params = self.params().cloned().collect();
        let group = Arc::clone(lead.reducer.group());
        let reducer = GradReducer::of_agreed(params, group, lead.config.reduce())?;
        let reducer = Arc::new(reducer);
        lead.state().joint.push((with, Arc::clone(&reducer)));
        Ok(reducer)
    }
}
