//! The options that all benchmarks with samples have.

use clap::Args;

use crate::peer::PeerArgs;
use crate::sample::Sampling;

/// How long to measure, whom to compare with, and how to say it.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// End with one line of JSON per row
    #[arg(long)]
    pub json: bool,
    /// How long to measure.
    #[command(flatten)]
    pub sampling: Sampling,
    /// Whom to compare with.
    #[command(flatten)]
    pub peer: PeerArgs,
}
