//! What every engine decides in the same way: pure, with no lock, no clock and no transport of its own.
//!
//! An engine brings what it has heard, and does what comes out. `ls` is the index: who differs (`verdict`), who is
//! late and what that one waits for (`late`), which memory a call uses (`buffers`), who is in a group that is split
//! off and what it is called (`naming`), and the bytes in which a failure travels (`fault`).

pub(crate) mod buffers;
pub(crate) mod fault;
pub(crate) mod late;
pub(crate) mod naming;
pub(crate) mod verdict;
