//! Data, pipeline and model parallelism over `phalanx-autograd` and `phalanx-comm`.
//!
//! # In your project
//!
//! The profile of this workspace does not reach yours, so ask for optimised dependencies: without the
//! last two lines, a debug build is some 50 to 110 times slower, and a line on stderr says so.
//!
//! ```toml
//! [dependencies]
//! phalanx-tensor = { path = "../phalanx/tensor" }
//! phalanx-autograd = { path = "../phalanx/autograd" }
//! phalanx-comm = { path = "../phalanx/comm" }
//! phalanx-parallel = { path = "../phalanx/parallel" }
//!
//! [profile.dev.package."*"]
//! opt-level = 3
//! ```

mod chrome_trace;
pub mod ddp;
mod error;
pub mod mesh;
pub mod partition;
pub mod pipeline;
pub mod reduce;
mod replicas;
mod sampler;
mod talk;

pub use ddp::{Ddp, DdpConfig};
pub use error::{Error, Result};
pub use mesh::{Mesh, MeshError};
pub use reduce::{
    Average, CommHook, Completion, Compress, GradBucket, GradReducer, PowerSgd, PowerSgdConfig,
    ReduceConfig, ReduceStats, Reduction, Trace, TraceEvent,
};
pub use replicas::check_replicas;
pub use sampler::DistributedSampler;
