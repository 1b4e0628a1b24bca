//! What the simulator has to say: findings, as sentences, and counts of what the host has called.

use std::cell::Cell;
use std::collections::HashMap;
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
    /// Functions that were loaded when they were launched first, which may wait for the device.
    LazyLoads = 9,
    /// Waits of a stream for an event.
    StreamWaits = 10,
    /// Functions that were loaded because the program asked for it.
    Loads = 11,
    /// Pinned memory that was freed.
    Unpinned = 12,
    /// Pools that were asked to give back what they do not use.
    Trims = 13,
    /// Communicators of a rank that were split.
    Splits = 14,
}

const COUNTS: usize = 15;

thread_local! {
    /// What the thread has done of each kind.
    static HERE: [Cell<u64>; COUNTS] = const { [const { Cell::new(0) }; COUNTS] };
}

/// How often the calling thread has done what a number stands for; `None` if it stands for nothing.
pub fn counted_here(kind: u32) -> Option<u64> {
    HERE.with(|here| here.get(kind as usize).map(Cell::get))
}

/// How many findings are kept and written; of more only the number is known.
const MOST: usize = 1000;

/// The findings and the counts of a process.
#[derive(Debug)]
pub struct Report {
    file: Option<PathBuf>,
    loud: bool,
    findings: Mutex<Vec<String>>,
    found: AtomicU64,
    counts: [AtomicU64; COUNTS],
    /// How often each kernel was launched, by its name.
    launches: Mutex<HashMap<String, u64>>,
}

impl Report {
    /// An empty report that also appends to `file`, and writes to stderr if it is `loud`.
    pub fn new(file: Option<PathBuf>, loud: bool) -> Report {
        Report {
            file,
            loud,
            findings: Mutex::default(),
            found: AtomicU64::new(0),
            counts: Default::default(),
            launches: Mutex::default(),
        }
    }

    /// Takes in a finding: one sentence or more, without line breaks (they become spaces).
    pub fn finding(&self, sentence: &str) {
        self.found.fetch_add(1, Ordering::Relaxed);
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        let line = match findings.len() {
            ..MOST => sentence.replace('\n', " "),
            MOST => format!("There are more than {MOST} findings; further ones are only counted."),
            _ => return,
        };
        // One write each: other processes write to the same file and to the same stderr.
        self.note(&line);
        if let Some(file) = &self.file {
            let opened = OpenOptions::new().create(true).append(true).open(file);
            let written =
                opened.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
            if let Err(error) = written {
                self.note(&format!("The report {file:?} cannot be written: {error}."));
            }
        }
        findings.push(line);
    }

    /// Says something on stderr that is no finding.
    pub fn note(&self, sentence: &str) {
        if self.loud {
            let text = format!("simulated device: {sentence}\n");
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
    }

    /// How many findings there are.
    pub fn found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    /// The findings so far, as far as they are kept.
    pub fn findings(&self) -> Vec<String> {
        let findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        findings.clone()
    }

    /// Counts one more.
    pub fn count(&self, what: Count) {
        self.counts[what as usize].fetch_add(1, Ordering::Relaxed);
        // A thread that ends counts no more.
        let _ = HERE.try_with(|here| {
            let count = &here[what as usize];
            count.set(count.get() + 1);
        });
    }

    /// Counts a launch of the kernel `name`.
    pub fn launch(&self, name: &str) {
        self.count(Count::Launches);
        let mut launches = self.launches.lock().unwrap_or_else(PoisonError::into_inner);
        match launches.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(launches.insert(name.to_owned(), 1)),
        }
    }

    /// How often the kernel `name` was launched.
    pub fn launched(&self, name: &str) -> u64 {
        let launches = self.launches.lock().unwrap_or_else(PoisonError::into_inner);
        launches.get(name).copied().unwrap_or(0)
    }

    /// How often it was counted; `None` if `kind` is no [`Count`].
    pub fn counted(&self, kind: u32) -> Option<u64> {
        let count = self.counts.get(kind as usize)?;
        Some(count.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_stays_finite() {
        let report = Report::new(None, false);
        for number in 0..MOST + 10 {
            report.finding(&format!("This is\nnumber {number}."));
        }
        assert_eq!(report.found(), MOST as u64 + 10);
        let findings = report.findings();
        assert_eq!(findings.len(), MOST + 1);
        assert_eq!(findings[3], "This is number 3.");
        assert!(findings[MOST].contains("only counted"));
    }
}
