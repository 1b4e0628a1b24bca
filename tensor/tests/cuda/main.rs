//! What cards do, on real ones or on simulated ones.
#![cfg(feature = "cuda")]

#[path = "../level/mod.rs"]
mod level;

mod compile;
