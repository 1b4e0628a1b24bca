//! Pipeline plans against PyTorch's, against the papers' formulas, and against exhaustive search.

mod formulas;
mod golden;
mod lowering;
mod mutations;
mod oracle;
mod pictures;
mod rng;
mod search;
mod text;
