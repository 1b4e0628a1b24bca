//! All kernels, compiled ahead for the architectures that cards have, in as many processes as there are cores; and what
//! each kernel takes of a card. What is compiled stays in a folder of `target` until the compiling program changes.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use super::nvrtc::Nvrtc;
use super::simulator::search;
use crate::cargo::{cargo, executables, root};
use crate::features;
use crate::lines::report;
use crate::machine::lanes;

/// The compute capabilities for which there is machine code: 8.0 is the A100's, 9.0 the H100's, 10.0 the B200's, 12.0
/// that of the RTX 50 series.
pub const CAPABILITIES: &[&str] = &["80", "90", "100", "120"];

/// What a kernel takes of a card (`tensor/src/kernels.rs`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The family of the kernel.
    pub family: String,
    /// The family and the element types, `unary-f32`.
    pub variant: String,
    pub kernel: String,
    pub capability: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory of a thread.
    pub stack: u32,
    /// Bytes that a thread stores there, and loads from there, for want of registers.
    pub spills: [u32; 2],
    /// Bytes of shared memory of a block.
    pub shared: u32,
}

impl Usage {
    fn parse(line: &str) -> Option<Usage> {
        let mut words = line.strip_prefix("usage ")?.split(' ');
        let (variant, kernel) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut number = || words.next()?.parse().ok();
        Some(Usage {
            family: family(&variant).to_owned(),
            variant,
            kernel,
            capability: number()?,
            registers: number()?,
            stack: number()?,
            spills: [number()?, number()?],
            shared: number()?,
        })
    }
}

/// The names of element types, which stand behind the family.
const TYPES: &[&str] = &["f32", "f64", "bf16", "f16", "i64", "i32", "u8", "bool"];

/// `layer-norm` of `layer-norm-f32`.
fn family(variant: &str) -> &str {
    match variant.rsplit_once('-') {
        Some((before, last)) if TYPES.contains(&last) => family(before),
        _ => variant,
    }
}

/// All kernels, compiled.
pub struct Compiled {
    /// The folder that a program takes them from.
    pub folder: PathBuf,
    pub usages: Vec<Usage>,
}

/// Compiles all kernels, unless that was done before.
///
/// # Errors
/// The compiling program does not build, a kernel does not compile, a folder cannot be written.
pub fn compile(nvrtc: &Nvrtc) -> Result<Compiled> {
    let program = program()?;
    let mut hasher = DefaultHasher::new();
    fs::read(&program)?.hash(&mut hasher);
    (nvrtc.name(), CAPABILITIES).hash(&mut hasher);
    let all = root().join("target/kernels-ahead");
    let whole = all.join(format!("{:016x}", hasher.finish()));
    if !whole.join("usage").is_file() {
        clear(&all);
        let draft = all.join(format!("draft-{}", std::process::id()));
        let text = in_shares(&program, &draft.join("kernels"), nvrtc)?;
        fs::write(draft.join("usage"), text)?;
        // Where another process was first, its folder stays.
        if let Err(error) = fs::rename(&draft, &whole)
            && !whole.is_dir()
        {
            return Err(error).with_context(|| whole.display().to_string());
        }
    }
    let text = fs::read_to_string(whole.join("usage"))?;
    let usages = text.lines().map(Usage::parse).collect::<Option<Vec<_>>>();
    let usages = usages.context("the compiler of kernels says what is not understood")?;
    ensure!(!usages.is_empty(), "there are no kernels");
    Ok(Compiled {
        folder: whole.join("kernels"),
        usages,
    })
}

/// Puts what was compiled ahead, if it was, into the folder `cache` in which programs look for kernels: they compile the
/// rest. Files are named by what decides which code comes out, so none is taken for another one.
///
/// # Errors
/// The folder cannot be written.
pub fn lend(cache: &Path) -> Result<()> {
    let all = root().join("target/kernels-ahead");
    let names = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let whole = names(&all).map(|entry| entry.path());
    for folder in whole.filter(|folder| folder.join("usage").is_file()) {
        fs::create_dir_all(cache)?;
        for kernel in names(&folder.join("kernels")) {
            let to = cache.join(kernel.file_name());
            if !to.exists() {
                fs::hard_link(kernel.path(), &to).with_context(|| to.display().to_string())?;
            }
        }
    }
    Ok(())
}

/// Removes older results, and what processes have left that are no more.
fn clear(all: &Path) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let draft = name.to_str().and_then(|name| name.strip_prefix("draft-"));
        let is_at_work = draft.is_some_and(|process| Path::new("/proc").join(process).exists());
        if !is_at_work {
            // What is left of it takes room, and nothing else.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn program() -> Result<PathBuf> {
    let mut build = cargo(["build", "--quiet", "--workspace", "--example=kernels"]);
    build.args(["--features", features::all()]);
    let built = executables(&mut build)?;
    let program = built.into_iter().find(|(name, _)| name == "kernels");
    let (_, program) = program.context("the compiler of kernels was not built")?;
    Ok(program)
}

/// Compiles in as many processes as there are cores; what they say of kernels comes back, in order.
fn in_shares(program: &Path, folder: &Path, nvrtc: &Nvrtc) -> Result<String> {
    let shares = lanes();
    report(format_args!(
        "all kernels are compiled, in {shares} processes"
    ))?;
    fs::create_dir_all(folder)?;
    let start = |share: usize| {
        let mut command = Command::new(program);
        command.arg(folder);
        command.args(["--share", &format!("{share}/{shares}")]);
        command.args(CAPABILITIES);
        command.env("LD_LIBRARY_PATH", search([nvrtc.folder.as_deref()]));
        command.stdin(Stdio::null()).stderr(Stdio::inherit());
        command.stdout(Stdio::piped()).spawn()
    };
    let started: Vec<_> = (0..shares).map(start).collect();
    let mut lines = Vec::new();
    let mut failed = false;
    // Each is waited for, also where one fails; a pipe holds what a process says until it is read, and then it waits.
    thread::scope(|scope| {
        let reads: Vec<_> = started
            .into_iter()
            .map(|child| scope.spawn(|| child?.wait_with_output()))
            .collect();
        for read in reads {
            match read.join() {
                Ok(Ok(output)) if output.status.success() => {
                    let text = String::from_utf8_lossy(&output.stdout);
                    let own = text.lines().filter(|line| line.starts_with("usage "));
                    lines.extend(own.map(str::to_owned));
                }
                Ok(Err(error)) => {
                    let _ = report(format_args!("error: {}: {error}", program.display()));
                    failed = true;
                }
                _ => failed = true,
            }
        }
    });
    if failed {
        bail!("compiling the kernels failed");
    }
    lines.sort();
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_usage_is_read() {
        let usage = Usage::parse("usage reduce-f16-f32 sum 90 33 16 8 12 128").unwrap();
        assert_eq!(usage.family, "reduce");
        assert_eq!(
            (usage.variant.as_str(), usage.capability),
            ("reduce-f16-f32", 90)
        );
        let numbers = (usage.registers, usage.stack, usage.spills, usage.shared);
        assert_eq!(numbers, (33, 16, [8, 12], 128));
        assert_eq!(Usage::parse("usage reduce-f16-f32 sum 90 33 16 8"), None);
        assert_eq!(Usage::parse("55 files"), None);
        assert_eq!(family("layer-norm-bf16-bf16"), "layer-norm");
    }
}
