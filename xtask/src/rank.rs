//! What mpirun starts as a rank: the rank's program as a child, whose end is noted. So the launcher knows of a failure
//! as soon as it has happened, on whatever host, and which rank was first; mpirun tells when all ranks have ended.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::cargo::exit_code;
use crate::signals;

/// Begins the name of a note.
const NOTE: &str = "end-";

/// A program to run as a rank.
#[derive(clap::Args)]
pub struct Args {
    /// Where to note its end
    folder: PathBuf,
    program: PathBuf,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// How a rank has ended.
pub struct Note {
    /// When, since 1970.
    nanoseconds: u128,
    pub rank: usize,
    status: ExitStatus,
}

impl Note {
    fn write(&self) -> String {
        let raw = self.status.into_raw();
        format!("{} {} {raw}", self.nanoseconds, self.rank)
    }

    fn read(text: &str) -> Option<Note> {
        let mut numbers = text.split(' ');
        Some(Note {
            nanoseconds: numbers.next()?.parse().ok()?,
            rank: numbers.next()?.parse().ok()?,
            status: ExitStatus::from_raw(numbers.next()?.parse().ok()?),
        })
    }

    /// The code as shells have it: 128 and the signal, where a signal has ended the rank.
    pub fn code(&self) -> i32 {
        let signal = || self.status.signal().map(|signal| 128 + signal);
        self.status.code().or_else(signal).unwrap_or(1)
    }

    /// How the rank has ended, in words.
    pub fn end(&self) -> String {
        let verb = match self.status.signal() {
            Some(_) => "was ended by",
            None => "ended with",
        };
        format!("rank {} {verb} {}", self.rank, self.status)
    }

    /// What nobody but the launcher may have said: that a signal has ended the rank.
    pub fn complaint(&self) -> Option<String> {
        self.status.signal().map(|_| self.end())
    }
}

/// Runs the program, notes its end, and ends in the same way.
pub fn run(args: &Args) -> Result<ExitCode> {
    let rank = std::env::var("OMPI_COMM_WORLD_RANK").context("it is not started by mpirun")?;
    let rank: usize = rank.parse()?;
    let status = Command::new(&args.program)
        .args(&args.args)
        .status()
        .with_context(|| format!("cannot start {}", args.program.display()))?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let note = Note {
        nanoseconds: now.as_nanos(),
        rank,
        status,
    };
    // Nobody reads half a note.
    let draft = args.folder.join(format!("draft-{rank}"));
    fs::write(&draft, note.write())?;
    fs::rename(&draft, args.folder.join(format!("{NOTE}{rank}")))?;
    if let Some(signal) = status.signal() {
        signals::send(std::process::id(), signal);
    }
    Ok(exit_code(status))
}

/// The first failure that is noted in `folder`.
pub fn first_failure(folder: &Path) -> Option<Note> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let notes = files.filter(|file| file.file_name().to_string_lossy().starts_with(NOTE));
    let notes = notes.filter_map(|file| Note::read(&fs::read_to_string(file.path()).ok()?));
    notes
        .filter(|note| note.code() != 0)
        .min_by_key(|note| note.nanoseconds)
}
