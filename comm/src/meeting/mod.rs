//! What every engine decides in the same way: pure, with no lock, no clock and no transport of its own.
//!
//! An engine brings what it has heard, and does what comes out. `ls` is the index: who differs (`verdict`),
//! which memory a call uses (`buffers`), who is in a group that is split off and what it is called (`naming`).

pub(crate) mod buffers;
pub(crate) mod naming;
pub(crate) mod verdict;
