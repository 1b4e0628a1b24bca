//! What ranks say to each other: process groups and collectives.
//!
//! *Ranks* run the same program, each on data of its own, and meet in *collectives*: all call the
//! same operation in the same order, and each gets its result. A [`ProcessGroup`] is one rank's
//! handle on such a group. [`launch`] starts a world of ranks, as threads of this process.
//!
//! # A first lesson
//!
//! ```
//! use phalanx_comm::{Error, LaunchError, ReduceOp, Tensor, launch};
//!
//! fn main() -> Result<(), LaunchError<Error>> {
//!     let means = launch(4, |group| {
//!         let mine = Tensor::from_slice(&[group.rank() as f32, 1.0], [2], group.device())?;
//!         let work = group.all_reduce(mine, ReduceOp::Avg)?; // on its way: compute here
//!         Ok(work.wait()?.to_vec::<f32>()?)
//!     })?;
//!     assert_eq!(means, vec![vec![1.5, 1.0]; 4]);
//!     Ok(())
//! }
//! ```
//!
//! # In your project
//!
//! The profile of this workspace does not reach yours, so ask for optimised dependencies: without the
//! last two lines, a debug build is some 50 to 110 times slower, and a line on stderr says so.
//!
//! ```toml
//! [dependencies]
//! phalanx-tensor = { path = "../phalanx/tensor" }
//! phalanx-comm = { path = "../phalanx/comm" }
//!
//! [profile.dev.package."*"]
//! opt-level = 3
//! ```
//!
//! # How operations run
//!
//! A call *issues* an operation and returns a [`Work`] at once; [`Work::wait`] gives the result.
//! Tensors go in by value and come back from `wait`, so nothing can be touched in between. Any
//! number of operations may be in flight. A tensor that nobody else holds is changed in place: keep
//! no clone of what you all-reduce, and no memory moves but what has to.
//!
//! Dropping a work waits for nobody, and the group finishes the operation: a program may leave by `?` at any time, but
//! must not return well before others have come to what it has dropped.
//!
//! Reductions run in rank order, so that a run repeats bit for bit.
//!
//! # When ranks disagree
//!
//! There is no silent hang. Every wait has a deadline, and every collective compares what the ranks
//! called. Where they differ, or where a rank returned, failed or panicked, every live rank gets
//! the same [`enum@Error`], which names the rank, the operation, its number and what differs. A rank
//! that computes meanwhile hears of it at its next call; one that never makes a call is the matter of
//! a policy, [`OnFailure`].
//!
//! The error is for the one that is wrong, not for the one that is early: ranks that disagree are judged when all have
//! come. An error of the deadline says what the late rank waits for itself, and so on, across groups; and ranks that wait
//! for each other in a circle hear so long before the deadline ([`launch`] tells the limits of this).
//!
//! ```
//! use phalanx_comm::{DType, Error, LaunchError, ReduceOp, Tensor, launch};
//!
//! let end = launch(2, |group| {
//!     let len = if group.rank() == 0 { 3 } else { 4 };
//!     let mine = Tensor::ones([len], DType::F32, group.device())?;
//!     group.all_reduce(mine, ReduceOp::Sum)?.wait()
//! });
//! let Err(LaunchError::Ranks { first, others }) = end else { panic!() };
//! assert_eq!(others.len(), 1); // both got it
//! assert_eq!(
//!     first.to_string().split(": ").nth(1).unwrap(),
//!     "the ranks of group world disagree on the shape of number 0"
//! );
//! # drop((first, others)); let _: Option<Error> = None;
//! ```
#![deny(unsafe_code)]

pub mod backends;
pub mod check;
pub mod env;
mod error;
mod group;
mod launch;
mod line;
mod meeting;
pub mod membership;
pub mod op;
mod place;
mod run;
mod store;
mod sync;
mod work;

pub use error::{Error, Link, Result, Stands};
pub use group::{Message, ProcessGroup, Progress, Record};
pub use launch::{FailureKind, LaunchConfig, LaunchError, OnFailure, RankFailure, launch};
pub use line::report;
pub use op::{Label, Name, Promises, ReduceOp};
pub use phalanx_tensor::{DType, Device, Shape, Tensor};
pub use place::{Place, Rendezvous};
pub use run::{Ranks, RunConfig, run};
pub use store::{
    MOST_KEY_BYTES, MOST_VALUE_BYTES, MemoryStore, PrefixStore, Reply, Request, Store, StoreLimits,
    StoreServer, TcpConfig, TcpStore, Until,
};
pub use work::{Outcome, Pending, Tensors, Work};
