//! [`DdpConfig`]: how a wrapper communicates.

use crate::{CommHook, ReduceConfig};
use phalanx_autograd::Param;
use phalanx_comm::ProcessGroup;
use std::sync::Arc;

/// How a [`Ddp`](crate::Ddp) communicates. All ranks must use the same configuration, and
/// [`Ddp::new`](crate::Ddp::new) compares it; only `beside` is each rank's own.
#[derive(Clone)]
pub struct DdpConfig {
    /// Bytes at which the first bucket of gradients leaves; small, so that communication starts
    /// early. Default: `None`, what the group's engine likes
    /// ([`Limits::liked_by`](crate::reduce::bucket::Limits::liked_by)); between CPUs 1 MiB, as in PyTorch.
    pub first_bucket_bytes: Option<usize>,
    /// Bytes at which every other bucket leaves (PyTorch: `bucket_cap_mb`). Default: as above; between CPUs
    /// 25 MiB.
    pub bucket_cap_bytes: Option<usize>,
    /// A gradient of this many bytes travels alone and is reduced in place, without a copy into a
    /// bucket. Default: as above; between CPUs 64 KiB.
    pub in_place_bytes: Option<usize>,
    /// Whether each [`backward`](crate::Ddp::backward) makes the buffers (batch norm's running
    /// statistics) of all ranks equal to those of the first rank that has data. Default: true.
    pub broadcast_buffers: bool,
    /// Ranks may run out of data at different steps: see [`Ddp::join`](crate::Ddp::join). Default:
    /// false.
    pub uneven_inputs: bool,
    /// Once ranks have joined, whether the gradients of the others are still divided by the number of
    /// all ranks (PyTorch: `join(divide_by_initial_world_size=True)`, its default), so that a sample
    /// counts the same in every step; else by the number of ranks that have data. Default: false.
    pub divide_by_initial_world_size: bool,
    /// How a bucket is reduced: [`Compress`](crate::Compress), [`PowerSgd`](crate::PowerSgd), or a hook of your own.
    /// Default: `None`, an exact average.
    pub hook: Option<Arc<dyn CommHook>>,
    /// Whether a loss may leave parameters of the module out, on this rank or that: see
    /// [`ReduceConfig::find_unused_parameters`](crate::ReduceConfig::find_unused_parameters). Without it, one
    /// that is left out is [`Error::UnusedParameter`](crate::Error::UnusedParameter). Default: true.
    pub find_unused_parameters: bool,
    /// Trainable parameters that are no part of the module, and that a loss may reach all the same:
    /// their gradients are this rank's own. One that is not listed is an
    /// [error](phalanx_autograd::Error::Unclaimed), since a module that forgets to show a parameter in
    /// `visit` looks just so. Default: none.
    pub beside: Vec<Param>,
    /// Record what happened when in each backward: see [`Ddp::trace`](crate::Ddp::trace) and
    /// [`Ddp::chrome_trace`](crate::Ddp::chrome_trace). Default: false.
    pub trace: bool,
}

impl Default for DdpConfig {
    fn default() -> Self {
        let ReduceConfig {
            first_bucket_bytes,
            bucket_cap_bytes,
            in_place_bytes,
            hook,
            find_unused_parameters,
            trace,
        } = ReduceConfig::default();
        DdpConfig {
            first_bucket_bytes,
            bucket_cap_bytes,
            in_place_bytes,
            broadcast_buffers: true,
            uneven_inputs: false,
            divide_by_initial_world_size: false,
            hook,
            find_unused_parameters,
            beside: Vec::new(),
            trace,
        }
    }
}

impl DdpConfig {
    /// What the engine below needs of it.
    pub(super) fn reduce(&self) -> ReduceConfig {
        ReduceConfig {
            first_bucket_bytes: self.first_bucket_bytes,
            bucket_cap_bytes: self.bucket_cap_bytes,
            in_place_bytes: self.in_place_bytes,
            hook: self.hook.clone(),
            find_unused_parameters: self.find_unused_parameters,
            trace: self.trace,
        }
    }

    /// What ranks must agree on, one line each: the same text where they do. `beside` is each rank's own.
    pub(super) fn describe(&self, group: &dyn ProcessGroup) -> String {
        let DdpConfig {
            broadcast_buffers,
            uneven_inputs,
            divide_by_initial_world_size,
            ..
        } = self;
        self.reduce().describe(group)
            + &format!(
                "configuration broadcast_buffers: {broadcast_buffers}\n\
                 configuration uneven_inputs: {uneven_inputs}\n\
                 configuration divide_by_initial_world_size: {divide_by_initial_world_size}\n"
            )
    }
}
