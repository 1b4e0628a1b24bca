//! [`Record`]: the last calls of a rank, always kept: what PyTorch calls the flight recorder.

use super::ticks::{Clock, Tick};
use crate::op::Signature;
use crate::sync::Mutex;
use serde::Serialize;
use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How many calls of a group are kept; and how many groups, where some of them have been dropped.
const KEPT: usize = 64;

/// One call of a rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Record {
    /// Which of the rank's calls in this group it is, collectives and messages counted together, from 0.
    pub number: u64,
    /// What was called, as errors print it.
    pub call: String,
    /// When, counted from the start of the world on this rank.
    pub issued: Duration,
    /// How far it has come.
    pub progress: Progress,
}

/// How far a call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum Progress {
    /// Its result has not been waited for, or has not come.
    UnderWay,
    /// Its result was taken so long after it was issued.
    Done(Duration),
    /// It was refused: the others have heard nothing of it.
    Refused,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record {
            number,
            call,
            issued,
            progress,
        } = self;
        write!(f, "{issued:?}: number {number}, {call}: ")?;
        match progress {
            Progress::UnderWay => f.write_str("under way"),
            Progress::Done(after) => write!(f, "done after {after:?}"),
            Progress::Refused => f.write_str("refused"),
        }
    }
}

/// The calls of a rank in all its groups.
#[derive(Debug)]
pub(crate) struct Flight {
    clock: Clock,
    groups: Mutex<VecDeque<Arc<GroupRecord>>>,
}

impl Default for Flight {
    fn default() -> Flight {
        Flight {
            clock: Clock::start(),
            groups: Mutex::default(),
        }
    }
}

/// The calls of a rank in a group.
#[derive(Debug)]
pub(super) struct GroupRecord {
    name: Arc<str>,
    /// That of the flight.
    clock: Clock,
    calls: Mutex<Calls>,
    /// How the last calls have ended, each at its place.
    ends: [End; KEPT],
}

#[derive(Debug, Default)]
struct Calls {
    /// How many there have been.
    count: u64,
    /// The last ones, each at its number modulo [`KEPT`].
    kept: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    call: Called,
    issued: Tick,
}

/// How a call has ended. Whoever ends it takes no lock, and nothing else is told by it: every access is relaxed.
///
/// 1. A call under way is its number, twice and one more; an end is even. So the exchange of a ticket fails whose place
///    another call has taken, or that has ended.
/// 2. A place is given to a call, and looked at, under the lock of the calls.
#[derive(Debug, Default)]
struct End(AtomicU64);

impl End {
    /// What stands for a refusal. The others are odd, or ticks twice.
    const REFUSED: u64 = 0;

    /// The call of this number is under way.
    fn begin(&self, number: u64) {
        self.0.store(number << 1 | 1, Relaxed);
    }

    /// The call of this number has ended, unless another one has its place.
    fn set(&self, number: u64, end: u64) {
        let under_way = number << 1 | 1;
        let _ = self.0.compare_exchange(under_way, end, Relaxed, Relaxed);
    }

    fn progress(&self, issued: Duration, read: impl Fn(Tick) -> Duration) -> Progress {
        match self.0.load(Relaxed) {
            End::REFUSED => Progress::Refused,
            end if end & 1 == 1 => Progress::UnderWay,
            end => Progress::Done(read(Tick(end >> 1)).saturating_sub(issued)),
        }
    }
}

/// Where the call of this number is kept.
fn place(number: u64) -> usize {
    (number % KEPT as u64) as usize
}

/// What was called. Of a call with many tensors, its words take less memory.
#[derive(Debug)]
enum Called {
    Signature(Signature),
    Words(String),
}

impl Called {
    fn of(signature: &Signature) -> Called {
        match signature.tensors.len() {
            0..=4 => Called::Signature(signature.clone()),
            _ => Called::Words(signature.to_string()),
        }
    }
}

/// Ends the record of a call.
#[derive(Debug)]
pub struct Ticket {
    record: Arc<GroupRecord>,
    number: u64,
}

impl Ticket {
    /// The result was taken.
    pub(crate) fn done(self) {
        let Tick(now) = self.record.clock.now();
        self.end(now.max(1) << 1); // 0 is a refusal
    }

    /// The engine has not issued the call: because of the call, or since the world has failed.
    pub(super) fn refused(&self) {
        self.end(End::REFUSED);
    }

    fn end(&self, end: u64) {
        self.record.ends[place(self.number)].set(self.number, end);
    }
}

impl Flight {
    /// The record of a group, which the rank gets now.
    pub(super) fn group(&self, name: Arc<str>) -> Arc<GroupRecord> {
        let record = Arc::new(GroupRecord {
            name,
            clock: self.clock,
            calls: Mutex::default(),
            ends: std::array::from_fn(|_| End::default()),
        });
        let mut groups = self.groups.lock();
        // The oldest of those that are gone, until the rest are few.
        let mut surplus = (groups.len() + 1).saturating_sub(KEPT);
        groups.retain(|group| {
            let goes = surplus > 0 && Arc::strong_count(group) == 1;
            surplus -= usize::from(goes);
            !goes
        });
        groups.push_back(Arc::clone(&record));
        record
    }

    /// Writes `rank-<rank>.json` into this folder: why, and the last calls by group.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn write(&self, folder: &Path, rank: usize, why: &str) -> io::Result<()> {
        #[derive(Serialize)]
        struct Group {
            name: String,
            calls: Vec<Record>,
        }
        #[derive(Serialize)]
        struct Page<'a> {
            rank: usize,
            why: &'a str,
            after: Duration,
            groups: Vec<Group>,
        }
        let groups: Vec<_> = self.groups.lock().iter().cloned().collect();
        let groups = groups.iter().map(|group| Group {
            name: group.name.to_string(),
            calls: group.recent(),
        });
        let page = Page {
            rank,
            why,
            after: self.clock.elapsed(),
            groups: groups.collect(),
        };
        fs::create_dir_all(folder)?;
        let text = serde_json::to_string_pretty(&page)?;
        fs::write(folder.join(format!("rank-{rank}.json")), text)
    }
}

impl GroupRecord {
    /// A call is issued.
    pub(super) fn issue(self: &Arc<GroupRecord>, signature: &Signature) -> Ticket {
        let (call, issued) = (Called::of(signature), self.clock.now());
        let mut calls = self.calls.lock();
        let number = calls.count;
        calls.count += 1;
        let entry = Entry {
            number,
            call,
            issued,
        };
        self.ends[place(number)].begin(number);
        match calls.kept.get_mut(place(number)) {
            Some(oldest) => *oldest = entry,
            None => calls.kept.push(entry),
        }
        drop(calls);
        Ticket {
            record: Arc::clone(self),
            number,
        }
    }

    /// The last calls, the oldest first.
    pub(super) fn recent(&self) -> Vec<Record> {
        let calls = self.calls.lock();
        let first = calls.count - calls.kept.len() as u64;
        let entries = (first..calls.count).map(|number| &calls.kept[place(number)]);
        let read = self.clock.reader();
        let record = |entry: &Entry| {
            let issued = read(entry.issued);
            Record {
                number: entry.number,
                call: match &entry.call {
                    Called::Signature(signature) => signature.to_string(),
                    Called::Words(words) => words.clone(),
                },
                issued,
                progress: self.ends[place(entry.number)].progress(issued, &read),
            }
        };
        entries.map(record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Op;
    use smallvec::SmallVec;

    fn barrier() -> Signature {
        Signature {
            op: Op::Barrier,
            tensors: SmallVec::new(),
            label: None,
            beside: None,
        }
    }

    #[test]
    fn the_last_calls_are_kept() {
        let flight = Flight::default();
        let group = flight.group("world".into());
        let first = group.issue(&barrier());
        let second = group.issue(&barrier());
        second.done();
        let recent = group.recent();
        assert_eq!(recent[0].progress, Progress::UnderWay);
        assert!(matches!(recent[1].progress, Progress::Done(_)));
        for _ in 0..KEPT {
            group.issue(&barrier());
        }
        first.done(); // it is no longer kept
        group.issue(&barrier()).refused();
        assert_eq!(group.recent().pop().unwrap().progress, Progress::Refused);
        let recent = group.recent();
        assert_eq!((recent.len(), recent[0].number), (KEPT, 3));
        let kept = &recent[..KEPT - 1];
        assert!(kept.iter().all(|r| r.progress == Progress::UnderWay));
        assert!(
            recent[0]
                .to_string()
                .ends_with("number 3, barrier: under way")
        );
    }

    #[test]
    fn a_rank_writes_what_its_groups_did() {
        let flight = Flight::default();
        let world = flight.group("world".into());
        for _ in 0..2 * KEPT {
            drop(flight.group("gone".into())); // the first ones are forgotten
        }
        world.issue(&barrier()).done();
        let folder = std::env::temp_dir().join(format!("flight-{}", std::process::id()));
        flight
            .write(&folder, 3, "rank 3 failed: on purpose")
            .unwrap();
        let text = fs::read_to_string(folder.join("rank-3.json")).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let page: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(page["why"], "rank 3 failed: on purpose");
        assert_eq!(page["groups"].as_array().unwrap().len(), KEPT);
        assert_eq!(page["groups"][0]["calls"][0]["call"], "barrier");
    }
}
