//! [`Replica`]: what a wrapper keeps of its module, and knows of the other ranks' replicas.

use super::bucket::{self, Bucket, Entry, Limits};
use super::{DdpConfig, Trace, flat, verify};
use crate::{Error, Result};
use phalanx_autograd::nn::Module;
use phalanx_autograd::{Buffer, Claim, Gradients, Holder, Param, ParamId};
use phalanx_comm::ProcessGroup;
use phalanx_tensor::Tensor;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

/// What the errors of a claim say of a wrapper.
const HOLDER: Holder = Holder {
    name: "a Ddp",
    outside: "call Ddp::backward, which averages over the ranks (Ddp::accumulate: without communication; \
              ddp::backward_all: a loss over several wrapped modules), or freeze the parameter",
    unclaimed: "show it in the wrapped module's `visit`, or list it in DdpConfig::beside, where its \
                gradient is this rank's own",
};

/// The plan of the steps of a wrapper with the others of these numbers.
pub(super) struct Known {
    pub(super) with: Vec<u64>,
    pub(super) plan: Arc<[Bucket]>,
    /// The flat buffers of the last step, by bucket: the next one fills them again, so that they stay
    /// where they are.
    pub(super) flats: Vec<Option<Tensor>>,
}

/// What lasts from step to step.
#[derive(Default)]
pub(super) struct State {
    /// The bucket plans of this wrapper alone and together with others, each agreed with the other
    /// ranks in its first step.
    pub(super) plans: Vec<Known>,
    /// Local gradients of [`Ddp::accumulate`](super::Ddp::accumulate).
    pub(super) accumulated: Gradients,
    /// How many steps have been done.
    pub(super) step: u64,
    /// Why a step was left half done.
    pub(super) broken: Option<Cow<'static, str>>,
    pub(super) trace: Trace,
}

/// One rank's replica of a module: its tensors, not its computation.
pub struct Replica {
    /// The wrapper's number, the same on all ranks of the group, and of no other wrapper there.
    pub(super) number: u64,
    pub(super) group: Arc<dyn ProcessGroup>,
    pub(super) config: DdpConfig,
    pub(super) params: Vec<(String, Param)>,
    pub(super) index: HashMap<ParamId, usize>,
    /// The parameters that were frozen at first: they have no place in the plan.
    pub(super) frozen: Vec<(String, Param)>,
    pub(super) buffers: Vec<(String, Buffer)>,
    buffer_plan: Vec<Bucket>,
    pub(super) claim: Claim,
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
        verify::replicas_agree(&config, &params, &buffers, &*group)?;
        let number = agreed_number(&*group)?;
        take_parameters_of(0, &params, &*group)?;
        let (params, frozen): (Vec<_>, Vec<_>) =
            params.into_iter().partition(|(_, p)| p.requires_grad());
        let buffer_entries: Vec<Entry> = buffers.iter().map(|(_, b)| entry_of_buffer(b)).collect();
        let everything = Limits {
            first: usize::MAX,
            cap: usize::MAX,
            single: usize::MAX,
        };
        let order: Vec<usize> = (0..buffers.len()).collect();
        let buffer_plan = bucket::plan(&buffer_entries, &order, everything);
        let index = params.iter().enumerate().map(|(i, (_, p))| (p.id(), i));
        let replica = Replica {
            number,
            index: index.collect(),
            group,
            config,
            params,
            frozen,
            buffers,
            buffer_plan,
            claim,
            state: Mutex::default(),
        };
        replica.send_buffers(0)?.receive(&replica.buffers)?;
        Ok(replica)
    }

    /// Sends `root`'s buffers to all ranks.
    pub(super) fn send_buffers(&self, root: usize) -> Result<flat::Broadcast> {
        flat::Broadcast::start(&self.buffer_plan, &self.buffers, &*self.group, root)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // What a panic has left half done, `broken` tells.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// This rank's number in the world, which errors name.
    pub(super) fn world_rank(&self) -> usize {
        self.group.world_ranks()[self.group.rank()]
    }

    /// # Errors
    /// [`Error::Poisoned`] if a step was left half done.
    pub(super) fn expect_whole(&self) -> Result<()> {
        let state = self.state();
        match &state.broken {
            None => Ok(()),
            Some(reason) => Err(Error::Poisoned {
                rank: self.world_rank(),
                step: state.step,
                reason: reason.to_string(),
            }),
        }
    }
}

/// The first rank's count of wrappers: as a part of what labels reductions, it keeps those of two
/// wrappers of equal shape apart.
fn agreed_number(group: &dyn ProcessGroup) -> Result<u64> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mine = NEXT.fetch_add(1, Relaxed) as i64;
    let first = group.broadcast(Tensor::scalar(mine, group.device())?, 0)?;
    Ok(first.wait()?.item::<i64>()? as u64)
}

fn take_parameters_of(
    root: usize,
    params: &[(String, Param)],
    group: &dyn ProcessGroup,
) -> Result<()> {
    // Shared until it has arrived everywhere: it is only read.
    let works = params
        .iter()
        .map(|(_, p)| group.broadcast(p.read(Tensor::clone), root));
    let works = works.collect::<Result<Vec<_>, _>>()?;
    for ((_, param), work) in params.iter().zip(works) {
        let value = work.wait()?;
        if group.rank() != root {
            param.set(value)?;
        }
    }
    Ok(())
}

pub(super) fn entry_of(param: &Param) -> Entry {
    Entry {
        shape: param.shape().clone(),
        dtype: param.dtype(),
        device: param.device(),
    }
}

pub(super) fn entry_of_buffer(buffer: &Buffer) -> Entry {
    Entry {
        shape: buffer.shape().clone(),
        dtype: buffer.dtype(),
        device: buffer.device(),
    }
}
