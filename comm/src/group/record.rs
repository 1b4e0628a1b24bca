//! [`Record`]: the last calls of a rank, always kept: what PyTorch calls the flight recorder.

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
use std::time::{Duration, Instant};

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
    start: Instant,
    groups: Mutex<VecDeque<Arc<GroupRecord>>>,
}

impl Default for Flight {
    fn default() -> Flight {
        Flight {
            start: Instant::now(),
            groups: Mutex::default(),
        }
    }
}

/// The calls of a rank in a group. The lock is taken once for each call: its end needs none.
#[derive(Debug)]
pub(super) struct GroupRecord {
    name: Arc<str>,
    /// When the flight began.
    start: Instant,
    calls: Mutex<Calls>,
    /// How far each of the kept calls has come, at its number modulo [`KEPT`]: an [`End`], and whose it is. Set anew
    /// under the lock, and no other memory is read by it.
    ends: [AtomicU64; KEPT],
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
    call: Called,
    issued: Instant,
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

/// How far a call has come, in one word: below, in so many bits, which of the calls at its place it is; above, one of
/// these, or else one more than the nanoseconds after which it was done, 4 hours at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End(u64);

const BELOW: u32 = 20;
const UNDER_WAY: u64 = 0;
const REFUSED: u64 = u64::MAX >> BELOW;

impl End {
    fn new(number: u64, above: u64) -> End {
        let turn = number / KEPT as u64;
        End(above << BELOW | turn & ((1 << BELOW) - 1))
    }

    fn done(number: u64, after: Duration) -> End {
        let nanoseconds = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        End::new(number, nanoseconds.min(REFUSED - 2) + 1)
    }

    fn progress(self) -> Progress {
        match self.0 >> BELOW {
            UNDER_WAY => Progress::UnderWay,
            REFUSED => Progress::Refused,
            more => Progress::Done(Duration::from_nanos(more - 1)),
        }
    }
}

/// Ends the record of a call.
#[derive(Debug)]
pub struct Ticket {
    record: Arc<GroupRecord>,
    number: u64,
    issued: Instant,
}

impl Ticket {
    /// The result was taken.
    pub(crate) fn done(&self) {
        self.end(End::done(self.number, self.issued.elapsed()));
    }

    /// The engine has not issued the call: because of the call, or since the world has failed.
    pub(super) fn refused(&self) {
        self.end(End::new(self.number, REFUSED));
    }

    /// Nothing, where another call is kept in its place by now.
    fn end(&self, end: End) {
        let before = End::new(self.number, UNDER_WAY);
        let of_place = &self.record.ends[place(self.number)];
        let _ = of_place.compare_exchange(before.0, end.0, Relaxed, Relaxed);
    }
}

impl Flight {
    /// The record of a group, which the rank gets now.
    pub(super) fn group(&self, name: Arc<str>) -> Arc<GroupRecord> {
        let record = Arc::new(GroupRecord {
            name,
            start: self.start,
            calls: Mutex::default(),
            ends: [const { AtomicU64::new(0) }; KEPT],
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
            after: self.start.elapsed(),
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
        let issued = Instant::now();
        let entry = Entry {
            call: Called::of(signature),
            issued,
        };
        let mut calls = self.calls.lock();
        let number = calls.count;
        calls.count += 1;
        let at = place(number);
        self.ends[at].store(End::new(number, UNDER_WAY).0, Relaxed);
        match calls.kept.get_mut(at) {
            Some(kept) => *kept = entry,
            None => calls.kept.push(entry),
        }
        drop(calls);
        Ticket {
            record: Arc::clone(self),
            number,
            issued,
        }
    }

    /// The last calls, the oldest first.
    pub(super) fn recent(&self) -> Vec<Record> {
        let calls = self.calls.lock();
        let first = calls.count - calls.kept.len() as u64;
        let record = |number: u64| {
            let at = place(number);
            let Entry { call, issued } = &calls.kept[at];
            Record {
                number,
                call: match call {
                    Called::Signature(signature) => signature.to_string(),
                    Called::Words(words) => words.clone(),
                },
                issued: issued.saturating_duration_since(self.start),
                progress: End(self.ends[at].load(Relaxed)).progress(),
            }
        };
        (first..calls.count).map(record).collect()
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
    fn an_end_keeps_its_time() {
        let number = u64::from(u32::MAX) * KEPT as u64 + 3;
        let done = |after| End::done(number, after).progress();
        for after in [
            Duration::ZERO,
            Duration::from_nanos(1),
            Duration::from_secs(14_000),
        ] {
            assert_eq!(done(after), Progress::Done(after));
        }
        let Progress::Done(longest) = done(Duration::MAX) else {
            panic!("it is done");
        };
        assert!(longest > Duration::from_secs(4 * 3600), "{longest:?}");
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
