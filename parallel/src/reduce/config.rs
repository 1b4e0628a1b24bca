//! [`ReduceConfig`]: how gradients become averages.

use super::CommHook;
use super::bucket::Limits;
use phalanx_comm::ProcessGroup;
use std::fmt::Write;
use std::sync::Arc;

/// How a [`GradReducer`](crate::GradReducer) averages. All ranks must use the same configuration, and
/// [`GradReducer::new`](crate::GradReducer::new) compares it.
#[derive(Clone)]
pub struct ReduceConfig {
    /// Bytes at which the first bucket of gradients leaves; small, so that communication starts
    /// early. Default: what the group's engine likes ([`Limits::liked_by`]).
    pub first_bucket_bytes: Option<usize>,
    /// Bytes at which every other bucket leaves (PyTorch: `bucket_cap_mb`). Default: as above.
    pub bucket_cap_bytes: Option<usize>,
    /// A gradient of this many bytes travels alone and is reduced in place, without a copy into a
    /// bucket. Default: as above.
    pub in_place_bytes: Option<usize>,
    /// How a bucket is reduced: [`Compress`](crate::Compress), [`PowerSgd`](crate::PowerSgd), or a hook of your own.
    /// Default: `None`, an exact average.
    pub hook: Option<Arc<dyn CommHook>>,
    /// Whether a step may leave parameters out, on this rank or that. One that no rank has a gradient for
    /// has none then, and one that some have gets their sum over the number of ranks. The ranks tell each
    /// other which these are, in the host's memory and while gradients are computed, so that it costs a
    /// microsecond or a few. Without it they don't, and a parameter that is left out is
    /// [`Error::UnusedParameter`](crate::Error::UnusedParameter). Default: true. (In PyTorch it walks the
    /// graph, and is off.)
    pub find_unused_parameters: bool,
    /// Record what happened when in each step: see [`GradReducer::trace`](crate::GradReducer::trace)
    /// and [`chrome_trace`](crate::GradReducer::chrome_trace). Default: false.
    pub trace: bool,
}

impl Default for ReduceConfig {
    fn default() -> Self {
        ReduceConfig {
            first_bucket_bytes: None,
            bucket_cap_bytes: None,
            in_place_bytes: None,
            hook: None,
            find_unused_parameters: true,
            trace: false,
        }
    }
}

impl ReduceConfig {
    /// The sizes of buckets: what is asked for, else what the engine likes.
    pub fn limits(&self, group: &dyn ProcessGroup) -> Limits {
        let liked = Limits::liked_by(group);
        Limits {
            first: self.first_bucket_bytes.unwrap_or(liked.first),
            cap: self.bucket_cap_bytes.unwrap_or(liked.cap),
            single: self.in_place_bytes.unwrap_or(liked.single),
        }
    }

    /// What ranks must agree on, one line each: the same text where they do.
    pub(crate) fn describe(&self, group: &dyn ProcessGroup) -> String {
        let ReduceConfig {
            first_bucket_bytes: _, // in the limits, as all three
            bucket_cap_bytes: _,
            in_place_bytes: _,
            hook,
            find_unused_parameters,
            trace: _, // changes nothing between ranks
        } = self;
        let Limits { first, cap, single } = self.limits(group);
        let hook = hook.as_ref().map_or("none".to_owned(), |hook| hook.name());
        let mut text = String::new();
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "configuration {name}: {value}");
        };
        line("first_bucket_bytes", &first);
        line("bucket_cap_bytes", &cap);
        line("in_place_bytes", &single);
        line("hook", &hook);
        line("find_unused_parameters", find_unused_parameters);
        text
    }
}
