//! Data, pipeline and model parallelism over `phalanx-autograd` and `phalanx-comm`.

pub mod partition;
pub mod pipeline;
