//! [`GradReducer`](phalanx_parallel::GradReducer) alone, without modules and tapes: what it averages, in which
//! order buckets leave, whose memory the averages are in, and what ends it.

mod averages;
mod memory;
#[allow(dead_code, unused_imports, reason = "the tests of `Ddp` use all of it")]
#[path = "../ddp/model.rs"]
mod model;
mod order;
mod poison;
#[allow(dead_code, reason = "as above")]
#[path = "../support/ranks.rs"]
mod ranks;
mod support;
mod unused;
