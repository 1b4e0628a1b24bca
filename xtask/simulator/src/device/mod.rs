//! The simulated GPUs: memory, streams, events, the order of operations, and what is reported.

pub mod clock;
pub mod code;
pub mod history;
pub mod idle;
pub mod leaks;
pub mod machine;
pub mod memory;
pub mod modules;
pub mod operation;
pub mod pages;
pub mod pool;
pub mod report;
pub mod settings;
pub mod state;
pub mod trace;
pub mod transfer;
pub mod view;
