//! `cargo xtask bundle`: a folder with which a machine that has a CUDA device, its driver and bash runs the tests of CUDA
//! devices, without Rust and without a compiler of kernels.
//!
//! | in the folder | what it is |
//! | --- | --- |
//! | `run.sh` | runs all tests; it says at its start what else it can do |
//! | `bin.tar.xz` | the programs, stripped |
//! | `kernels.tar.xz` | all kernels, for the architectures of [`ahead::CAPABILITIES`](super::ahead::CAPABILITIES), and as PTX for all later ones |
//! | `programs` | for each program its kind, its name, and the libraries that it needs beside the driver |
//! | `about` | what it was made from |

use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{fs, path};

use anyhow::{Result, ensure};

use super::ahead::compile;
use super::findings::judged;
use super::nvrtc::Nvrtc;
use super::programs::{bins, tests};
use super::simulator::Simulator;
use crate::cargo::{root, succeed, watch};
use crate::tally::Tally;

/// The most bytes of a bundle, which often goes over a slow line.
const LARGEST: u64 = 64 << 20;
const RUN: &str = include_str!("run.sh");
/// What takes longest on simulated cards, and tells nothing more of the bundle than the other programs do.
const LONGEST: &[&str] = &["tensor-ops", "examples-cuda", "parallel-runtime"];

/// What to gather.
#[derive(clap::Args)]
pub struct Args {
    /// The folder, which may hold an older bundle [default: target/bundle]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Build the programs in release, as for measurements.
    #[arg(long)]
    release: bool,
    /// Then run it on this many simulated cards.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64))]
    simulate: Option<u64>,
}

/// Why there can be no bundle here that runs on simulated cards, if there can be none.
pub fn obstacle() -> Option<String> {
    let missing = |program: &str| Command::new(program).arg("--version").output().is_err();
    super::obstacle().or_else(|| {
        let tools = [("strip", "binutils"), ("xz", "xz-utils")];
        let (tool, package) = tools.into_iter().find(|(tool, _)| missing(tool))?;
        Some(format!("there is no {tool} (Debian: {package})"))
    })
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let nvrtc = Nvrtc::find().map_err(anyhow::Error::msg)?;
    let out = match &args.out {
        Some(out) => path::absolute(out)?,
        None => root().join("target/bundle"),
    };
    clear(&out)?;
    let mut list = String::new();
    let bin = out.join("bin");
    fs::create_dir_all(&bin)?;
    let programs = tests(args.release)?.into_iter().chain(bins(args.release)?);
    for (program, path) in programs {
        let to = bin.join(program.name());
        fs::copy(path, &to)?;
        succeed("strip", Command::new("strip").arg(&to))?;
        let kind = match program.is_table {
            true => "table",
            false => program.kind,
        };
        let needs = program.needs.join(",");
        write!(list, "{kind} {} {needs}", program.name())?;
        for (variable, value) in program.environment {
            write!(list, " {variable}={value}")?;
        }
        list.push('\n');
    }
    fs::write(out.join("programs"), list)?;
    pack(&out, &bin)?;
    fs::remove_dir_all(bin)?;
    pack(&out, &compile(&nvrtc)?.folder)?;
    fs::write(out.join("about"), about(&nvrtc))?;
    let script = out.join("run.sh");
    fs::write(&script, RUN)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let size = size(&out)?;
    ensure!(
        size <= LARGEST,
        "the bundle has {size} bytes, and {LARGEST} are the most that it may have"
    );
    println!(
        "{} has {:.1} MiB",
        out.display(),
        size as f64 / (1 << 20) as f64
    );
    match args.simulate {
        Some(gpus) => simulate(&script, usize::try_from(gpus)?),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Removes an older bundle.
fn clear(out: &Path) -> Result<()> {
    let is_empty = fs::read_dir(out).map_or(true, |mut entries| entries.next().is_none());
    ensure!(
        is_empty || out.join("run.sh").is_file() && out.join("programs").is_file(),
        "{} holds something that is no bundle: it is left as it is",
        out.display()
    );
    if out.exists() {
        fs::remove_dir_all(out)?;
    }
    Ok(())
}

/// Packs a folder: programs take a third of their room, and kernels, which have the lines of their source, a tenth (with
/// gzip a fifth, which is too much).
fn pack(out: &Path, folder: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else {
        anyhow::bail!("{} lies in no folder", folder.display());
    };
    let name = name.to_string_lossy();
    let mut pack = Command::new("tar");
    pack.arg("-cJf").arg(out.join(format!("{name}.tar.xz")));
    pack.env("XZ_OPT", "-2 -T0");
    succeed("packing", pack.arg("-C").arg(parent).arg(&*name))
}

/// From what the bundle is made.
fn about(nvrtc: &Nvrtc) -> String {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program)
            .args(args)
            .current_dir(root())
            .output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        text.unwrap_or_default()
    };
    let commit = said("git", &["rev-parse", "HEAD"]);
    let changed = match said("git", &["status", "--porcelain"]).is_empty() {
        true => "",
        false => ", with changes that are not committed",
    };
    let rust = said("rustc", &["--version"]);
    format!(
        "commit {commit}{changed}\n{rust}\nkernels by {}\n",
        nvrtc.name()
    )
}

/// The bytes of all files.
fn size(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        sum += match entry.file_type()?.is_dir() {
            true => size(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(sum)
}

/// Runs the bundle, with the simulated device in the place of the driver and no NVRTC but one that is installed.
fn simulate(script: &Path, gpus: usize) -> Result<ExitCode> {
    let simulator = Simulator::build(gpus)?;
    let mut command = Command::new(script);
    command
        .arg("--results")
        .arg(root().join("target/bundle-results"))
        .arg("--libraries")
        .arg(simulator.folder());
    for program in LONGEST {
        command.args(["--without", program]);
    }
    command.envs(simulator.environment(0, None));
    // Nor one that the user names.
    command.env("LD_LIBRARY_PATH", simulator.folder());
    let status = watch(&mut command, |_| ())?;
    let mut tally = Tally::default();
    for line in judged(&simulator.findings()) {
        println!("{line}");
        tally.read(&line);
    }
    Ok(super::code(status.success() && tally.failed == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bundle_is_removed() {
        let folder = std::env::temp_dir().join(format!("phalanx-bundle-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("thesis.txt"), "text").unwrap();
        assert!(clear(&folder).is_err());
        assert!(folder.join("thesis.txt").is_file());
        fs::write(folder.join("run.sh"), RUN).unwrap();
        assert!(clear(&folder).is_err());
        fs::create_dir(folder.join("bin")).unwrap();
        fs::write(folder.join("bin/one"), "1").unwrap();
        fs::write(folder.join("programs"), "").unwrap();
        assert_eq!(size(&folder).unwrap(), 5 + RUN.len() as u64);
        clear(&folder).unwrap();
        assert!(!folder.exists());
        clear(&folder).unwrap();
    }
}
