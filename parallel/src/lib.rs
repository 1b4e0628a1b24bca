//! Data, pipeline and model parallelism over `phalanx-autograd` and `phalanx-comm`.

pub mod ddp;
mod error;
pub mod partition;
pub mod pipeline;
mod sampler;

pub use ddp::{CommHook, Completion, Compress, Ddp, DdpConfig, Trace, TraceEvent};
pub use error::{Error, Result};
pub use sampler::DistributedSampler;
