//! Pipelines that run: every plan against one process that works through the same microbatches.

#[path = "../../../comm/tests/child/mod.rs"]
mod child;
mod equivalence;
mod faults;
#[path = "../support/faulty.rs"]
mod faulty;
mod layers;
mod meshes;
#[path = "../support/mistakes.rs"]
mod mistakes;
mod models;
mod random;
#[path = "../support/ranks.rs"]
mod ranks;
mod reference;
#[path = "../support/rng.rs"]
mod rng;
mod shapes;
mod tied;
