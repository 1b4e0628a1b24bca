//! Trains replicas of a pipeline over a mesh: each replica's layers are spread over several ranks, and the replicas' gradients
//! are averaged.

use std::process::ExitCode;

use clap::Parser as _;
use phalanx_examples::cli::exit;
use phalanx_examples::pipeline::{Cli, run};

fn main() -> ExitCode {
    exit(run(&Cli::parse(), "ddp_pipeline", 2))
}
