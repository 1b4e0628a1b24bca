//! [`Replica`]: what a wrapper keeps of its module, and knows of the other ranks' replicas.

use super::DdpConfig;
use crate::reduce::{GradReducer, Poison};
use crate::replicas::broadcast::Buffers;
use crate::{Result, replicas, talk};
use phalanx_autograd::nn::Module;
use phalanx_autograd::{Claim, Gradients, Holder, Param};
use phalanx_comm::ProcessGroup;
use std::sync::{Arc, Mutex, MutexGuard};

/// What the errors of a claim say of a wrapper.
const HOLDER: Holder = Holder {
    name: "a Ddp",
    outside: "call Ddp::backward, which averages over the ranks (Ddp::accumulate: without communication; \
              ddp::backward_all: a loss over several wrapped modules), or freeze the parameter",
    unclaimed: "show it in the wrapped module's `visit`, or list it in DdpConfig::beside, where its \
                gradient is this rank's own",
};

/// What lasts from step to step.
#[derive(Default)]
pub(super) struct State {
    /// The reducers of this wrapper together with others, of these numbers.
    pub(super) joint: Vec<(Vec<u64>, Arc<GradReducer>)>,
    /// Local gradients of [`Ddp::accumulate`](super::Ddp::accumulate).
    pub(super) accumulated: Gradients,
    /// How many steps have been done.
    pub(super) step: u64,
    /// What has averaged the gradients of the last one.
    pub(super) last: Option<Arc<GradReducer>>,
}

/// One rank's replica of a module: its tensors, not its computation.
pub struct Replica {
    pub(super) config: DdpConfig,
    /// It knows the group, and the parameters that are averaged.
    pub(super) reducer: Arc<GradReducer>,
    /// The parameters that were frozen at first: they have no place in the plan.
    pub(super) frozen: Vec<(String, Param)>,
    pub(super) buffers: Buffers,
    pub(super) claim: Claim,
    /// Why a step was left half done.
    pub(super) poison: Poison,
    state: Mutex<State>,
}

impl Replica {
    pub(super) fn new(
        module: &(impl Module + ?Sized),
        group: Arc<dyn ProcessGroup>,
        config: DdpConfig,
    ) -> Result<Replica> {
        let params = module.named_parameters();
        let buffers = module.named_buffers();
        // Before anything is sent: it concerns this rank alone.
        let claim = Claim::new(HOLDER, params.iter().map(|(_, p)| p))?;
        replicas::structures_agree(&*group, config.describe(&*group), &params, &buffers)?;
        let devices = params.iter().map(|(_, p)| p.device());
        let group = talk::over_devices(
            group,
            devices.chain(buffers.iter().map(|(_, b)| b.device())),
        )?;
        let buffers = replicas::take_values_of(0, &params, buffers, &*group)?;
        let (params, frozen): (Vec<_>, Vec<_>) =
            params.into_iter().partition(|(_, p)| p.requires_grad());
        let reducer = GradReducer::of_agreed(params, group, config.reduce())?;
        Ok(Replica {
            config,
            reducer: Arc::new(reducer),
            frozen,
            buffers,
            claim,
            poison: Poison::default(),
            state: Mutex::default(),
        })
    }

    pub(super) fn group(&self) -> &dyn ProcessGroup {
        &**self.reducer.group()
    }

    /// The parameters that are averaged.
    pub(super) fn params(&self) -> &[(String, Param)] {
        self.reducer.parameters()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // What a panic has left half done, `poison` tells.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Compares the values of this rank's parameters, and of the buffers that the wrapper keeps equal, with
    /// every other rank's.
    pub(super) fn values_agree(&self) -> Result<()> {
        let params = self.params().iter().chain(&self.frozen);
        let kept = self.config.broadcast_buffers;
        let buffers = self.buffers.named.iter().filter(|_| kept);
        replicas::values_agree(self.group(), params, buffers)
    }

    /// # Errors
    /// [`Error::Poisoned`](crate::Error::Poisoned) if a step was left half done.
    /// What has averaged the gradients of the last backward.
    pub(super) fn last(&self) -> Arc<GradReducer> {
        let last = self.state().last.clone();
        last.unwrap_or_else(|| Arc::clone(&self.reducer))
    }

    pub(super) fn expect_whole(&self) -> Result<()> {
        let step = self.state().step;
        self.poison
            .expect_whole(talk::world_rank(self.group()), step)
    }
}
