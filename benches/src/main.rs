//! The program behind `cargo xtask bench`: times Phalanx, and its peers beside it.

use anyhow::Result;
use clap::{Parser, Subcommand};
use phalanx_benches::collectives;

/// Times Phalanx, and its peers beside it.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Collectives: time, algorithm and bus bandwidth
    Collectives(collectives::CollectivesArgs),
}

fn main() -> Result<()> {
    match Cli::parse().what {
        What::Collectives(args) => collectives::run(&args),
    }
}
