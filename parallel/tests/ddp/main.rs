//! `Ddp` against the single process, against PyTorch's values, and where things go wrong.

mod addresses;
mod buffers;
mod claims;
mod drift;
mod empty;
mod equivalence;
mod faults;
mod golden;
mod join;
mod kinds;
mod memory;
mod model;
mod overlap;
mod poison;
mod replicas;
mod unused;
