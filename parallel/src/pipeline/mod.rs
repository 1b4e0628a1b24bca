//! Pipelines: schedules as data, their proof, their prediction and their pictures, and the one interpreter that runs
//! them.
//!
//! A pipeline cuts a model into *stages*, puts each on a rank, and sends *microbatches* through
//! them. Who does what when is a [`Schedule`]: one list of [`Action`]s per rank, printed as
//! `2F0, 1B3`. Everything but [`Pipeline`] is a pure function over such lists: **nothing else in this module touches
//! a tensor, a thread or a file**. So a plan can be made, proved, timed and drawn before it runs. **No schedule has a loop
//! of its own**: [`Pipeline`] reads a rank's list and does it.
//!
//! | step | function |
//! | --- | --- |
//! | make a plan by a known rule | [`Named::schedule`] |
//! | or search for one | [`optimize`](fn@optimize) |
//! | or write it by hand | [`Schedule`]'s `FromStr`, see [`text`] |
//! | write out transfers, reductions | [`lower`](fn@lower), [`releases`] |
//! | prove that it is right | [`validate`](fn@validate) |
//! | predict time and memory | [`simulate`](fn@simulate) |
//! | draw it | [`render`] |
//! | cut a model | [`Layers`] |
//! | run it | [`Pipeline`] |
//!
//! ```
//! use phalanx_parallel::pipeline::*;
//!
//! let plan = Named::ZbH1.schedule(4, 1, 8)?;
//! let lowered = lower(&plan, &Lowering::default())?;
//! validate(&lowered, &Rules::default())?; // no deadlock, even with blocking sends
//! let time = simulate(&plan, &Costs::unit(4), Transfers::Overlapped)?;
//! assert_eq!(time.idle, [3.0; 4]); // 1F1B would idle for 9
//! # Ok::<(), PlanError>(())
//! ```

mod action;
mod costs;
mod error;
mod graph;
mod layers;
mod lower;
pub mod optimize;
mod plan;
mod release;
pub mod render;
mod runtime;
pub mod schedules;
mod simulate;
pub mod text;
pub mod validate;
mod wiring;

pub use action::{Action, ActionError, Kind};
pub use costs::{Cost, Costs, StageCosts};
pub use error::PlanError;
pub use graph::StageGraph;
pub use layers::Layers;
pub use lower::{Lowering, lower};
pub use optimize::{Budget, Found, optimize};
pub use plan::Schedule;
pub use release::{Buffer, releases};
pub use runtime::{EdgeOutputs, Loss, LossOn, Pipeline, PipelineConfig, Step, Tie};
pub use schedules::{Named, UnknownName};
pub use simulate::{Span, Timeline, Transfers, simulate};
pub use validate::{Fault, Invalid, Proof, Rules, Sends, validate};
