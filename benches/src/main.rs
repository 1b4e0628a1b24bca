//! The program behind `cargo xtask bench`: times Phalanx, and its peers beside it.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
#[cfg(feature = "cuda")]
use phalanx_benches::card;
use phalanx_benches::{collectives, ddp, gemm, mpi, overlap, startup, train};
use phalanx_examples::cli::exit;

/// Times Phalanx, and its peers beside it.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Matrix products: GFLOP/s, and the share of what the cores can do
    Gemm(gemm::GemmArgs),
    /// A card's kernels: bytes beside a copy's, products beside cuBLASLt called straight
    #[cfg(feature = "cuda")]
    Card(card::CardArgs),
    /// Collectives: time, algorithm and bus bandwidth
    Collectives(collectives::CollectivesArgs),
    /// An all_reduce behind computation of the same length
    Overlap(overlap::OverlapArgs),
    /// Training in one process: steps per second
    Train(train::TrainArgs),
    /// Data-parallel training beside one process and beside replicas that do not communicate
    Ddp(ddp::DdpArgs),
    /// From the start of the process to the first data-parallel step
    Startup(startup::StartupArgs),
    #[command(hide = true)]
    FirstStep(startup::FirstStepArgs),
    #[command(hide = true)]
    MpiRank(mpi::RankArgs),
}

fn main() -> ExitCode {
    exit(run(Cli::parse().what))
}

fn run(what: What) -> Result<()> {
    match what {
        What::Gemm(args) => gemm::run(&args),
        #[cfg(feature = "cuda")]
        What::Card(args) => card::run(&args),
        What::Collectives(args) => collectives::run(&args),
        What::Overlap(args) => overlap::run(&args),
        What::Train(args) => train::run(&args),
        What::Ddp(args) => ddp::run(&args),
        What::Startup(args) => startup::run(&args),
        What::FirstStep(args) => startup::first_step(&args),
        What::MpiRank(args) => mpi::rank(&args),
    }
}
