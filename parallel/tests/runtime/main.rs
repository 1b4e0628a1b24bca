//! Pipelines that run: every plan against one process that works through the same microbatches.

mod equivalence;
mod faults;
mod models;
mod random;
mod reference;
#[path = "../pipeline/rng.rs"]
mod rng;
