//! Pipeline plans against PyTorch's, against the papers' formulas, and against exhaustive search.

mod collectives;
mod formulas;
mod golden;
mod lowering;
#[path = "../support/mistakes.rs"]
mod mistakes;
mod mutations;
mod oracle;
mod pictures;
#[path = "../support/rng.rs"]
mod rng;
mod search;
mod text;
mod tied;
