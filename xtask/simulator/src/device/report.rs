//! What the simulator has to say: findings, as sentences, and counts of what the host has called.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What is counted. The numbers are those that `phalanx_simulator_count` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Count {
    /// Waits of the host: for a stream, an event, a context, or in a call that waits for one of them.
    Waits = 0,
    /// Questions of the host whether a stream or an event is done.
    Queries = 1,
    /// Copies between the device and memory of the host that is not pinned.
    PageableCopies = 2,
    /// Kernels launched.
    Launches = 3,
    /// Copies of any kind.
    Copies = 4,
    /// Fillings of memory (`cuMemset…`).
    Sets = 5,
    /// Allocations of device memory.
    Allocations = 6,
    /// Allocations and registrations of pinned memory.
    Pinned = 7,
    /// Modules loaded.
    Modules = 8,
}

const COUNTS: usize = 9;

/// The findings and the counts of a process.
#[derive(Debug)]
pub struct Report {
    file: Option<PathBuf>,
    findings: Mutex<Vec<String>>,
    counts: [AtomicU64; COUNTS],
}

impl Report {
    /// An empty report that also appends to `file`.
    pub fn new(file: Option<PathBuf>) -> Report {
        Report {
            file,
            findings: Mutex::default(),
            counts: Default::default(),
        }
    }

    /// Takes in a finding: one sentence or more, without line breaks (they become spaces).
    pub fn finding(&self, sentence: &str) {
        let line = sentence.replace('\n', " ");
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        // One write each: other processes write to the same file and to the same stderr.
        let text = format!("simulated device: {line}\n");
        let _ = std::io::stderr().write_all(text.as_bytes());
        if let Some(file) = &self.file {
            let opened = OpenOptions::new().create(true).append(true).open(file);
            let written =
                opened.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
            if let Err(error) = written {
                let text = format!("simulated device: cannot write to {file:?}: {error}\n");
                let _ = std::io::stderr().write_all(text.as_bytes());
            }
        }
        findings.push(line);
    }

    /// All findings so far.
    pub fn findings(&self) -> Vec<String> {
        let findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        findings.clone()
    }

    /// Counts one more.
    pub fn count(&self, what: Count) {
        self.counts[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often it was counted; `None` if `kind` is no [`Count`].
    pub fn counted(&self, kind: u32) -> Option<u64> {
        let count = self.counts.get(kind as usize)?;
        Some(count.load(Ordering::Relaxed))
    }
}
