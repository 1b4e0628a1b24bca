//! `cargo xtask`: the project's chores, one file each. It depends on no library crate, so that it builds in
//! seconds and still runs when they do not build.

mod cargo;
mod check;
mod drill;
mod features;
mod gpu;
mod host_access;
mod hosts;
mod job;
mod launch;
mod lines;
mod machine;
mod mpi;
mod mutate;
mod parts;
mod program;
mod rank;
mod report;
mod rust_code;
mod signals;
mod tally;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's chores.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Run every test that this machine can run, and print the totals.
    Test(test::Args),
    /// Run the tests of CUDA devices, on the cards of this machine or on simulated ones.
    TestMultiGpu(gpu::Args),
    /// Gather what a machine needs to run the tests of CUDA devices without Rust.
    Bundle(gpu::bundle::Args),
    /// Compile every kernel for all architectures, and print registers and spills.
    Kernels(gpu::kernels::Args),
    /// Make small mistakes in the code for CUDA devices, and look whether the tests notice.
    MutateCuda(mutate::Args),
    /// Check files, formatting, lints and documentation; warnings are errors.
    Check,
    /// Time the library, and its peers beside it.
    Bench(program::Args),
    /// Let a rank go wrong in all ways, on threads and on processes, and print what the others hold.
    Drill(drill::Args),
    /// Play scenes in which a rank of several processes goes wrong, made from seeds.
    Fuzz(mpi::fuzz::Args),
    /// Start an example as processes, under mpirun.
    Launch(launch::Args),
    /// The part `mpi` of `test`, by itself.
    #[command(hide = true)]
    Mpi(mpi::Args),
    /// The part `mpich` of `test`, by itself.
    #[command(hide = true)]
    Mpich,
    /// What mpirun calls to start something on a host of `launch --hosts`.
    #[command(hide = true)]
    Rsh {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// What mpirun starts as a rank.
    #[command(hide = true)]
    Rank(rank::Args),
    /// Make, prove, predict and draw a pipeline plan.
    Schedule(program::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().chore {
        Chore::Test(args) => test::run(&args),
        Chore::TestMultiGpu(args) => gpu::run(&args),
        Chore::Bundle(args) => gpu::bundle::run(&args),
        Chore::Kernels(args) => gpu::kernels::run(&args),
        Chore::MutateCuda(args) => mutate::run(&args),
        Chore::Check => check::run(),
        Chore::Bench(args) => program::bench(&args),
        Chore::Drill(args) => drill::run(&args),
        Chore::Fuzz(args) => mpi::fuzz::run(&args),
        Chore::Launch(args) => launch::run(&args),
        Chore::Mpi(args) => mpi::run(&args),
        Chore::Mpich => mpi::mpich::run(),
        Chore::Rsh { args } => job::rsh(&args),
        Chore::Rank(args) => rank::run(&args),
        Chore::Schedule(args) => program::schedule(&args),
    };
    done.unwrap_or_else(|error| {
        // Where it cannot be written, nobody can be told.
        let _ = lines::report(format_args!("error: {error:#}"));
        ExitCode::FAILURE
    })
}
