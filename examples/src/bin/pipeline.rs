//! Trains a classifier of clothing whose layers are spread over several ranks: each has a part of the model, and
//! microbatches go through them by a plan.

use std::process::ExitCode;

use clap::Parser as _;
use phalanx_examples::cli::exit;
use phalanx_examples::pipeline::{Cli, run};

fn main() -> ExitCode {
    exit(run(&Cli::parse(), "pipeline", 1))
}
