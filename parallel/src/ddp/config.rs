//! [`DdpConfig`]: how a wrapper communicates.

use super::CommHook;
use phalanx_autograd::Param;
use std::fmt::Write;
use std::sync::Arc;

/// How a [`Ddp`](crate::Ddp) communicates. All ranks must use the same configuration, and
/// [`Ddp::new`](crate::Ddp::new) compares it; only `beside` is each rank's own.
#[derive(Clone)]
pub struct DdpConfig {
    /// Bytes at which the first bucket of gradients leaves; small, so that communication starts
    /// early. Default: 1 MiB, as in PyTorch.
    pub first_bucket_bytes: usize,
    /// Bytes at which every other bucket leaves (PyTorch: `bucket_cap_mb`). Default: 25 MiB.
    pub bucket_cap_bytes: usize,
    /// A gradient of this many bytes travels alone and is reduced in place, without a copy into a
    /// bucket. Default: 64 KiB.
    pub in_place_bytes: usize,
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
    /// How a bucket is reduced. Default: `None`, an exact average.
    pub hook: Option<Arc<dyn CommHook>>,
    /// Trainable parameters that are no part of the module, and that a loss may reach all the same:
    /// their gradients are this rank's own. One that is not listed is an
    /// [error](phalanx_autograd::Error::Unclaimed), since a module that forgets to show a parameter in
    /// `visit` looks just so. Default: none.
    pub beside: Vec<Param>,
    /// Record what happened when in each backward: see [`Ddp::trace`](crate::Ddp::trace). Default:
    /// false.
    pub trace: bool,
}

impl Default for DdpConfig {
    fn default() -> Self {
        DdpConfig {
            first_bucket_bytes: 1 << 20,
            bucket_cap_bytes: 25 << 20,
            in_place_bytes: 64 << 10,
            broadcast_buffers: true,
            uneven_inputs: false,
            divide_by_initial_world_size: false,
            hook: None,
            beside: Vec::new(),
            trace: false,
        }
    }
}

impl DdpConfig {
    /// What ranks must agree on, one line each: the same text where they do.
    pub(super) fn describe(&self) -> String {
        let DdpConfig {
            first_bucket_bytes,
            bucket_cap_bytes,
            in_place_bytes,
            broadcast_buffers,
            uneven_inputs,
            divide_by_initial_world_size,
            hook,
            beside: _, // each rank's own
            trace: _,  // changes nothing between ranks
        } = self;
        let hook = hook.as_ref().map_or("none".to_owned(), |hook| hook.name());
        let mut text = String::new();
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "configuration {name}: {value}");
        };
        line("first_bucket_bytes", first_bucket_bytes);
        line("bucket_cap_bytes", bucket_cap_bytes);
        line("in_place_bytes", in_place_bytes);
        line("broadcast_buffers", broadcast_buffers);
        line("uneven_inputs", uneven_inputs);
        line("divide_by_initial_world_size", divide_by_initial_world_size);
        line("hook", &hook);
        text
    }
}
