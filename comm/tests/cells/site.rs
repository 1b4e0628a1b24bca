//! [`Site`]: a folder in which the ranks of a cell, threads or processes, tell each other what no call of the library
//! may tell: that the fault has happened, and that a rank holds its error.

use crate::table::{CULPRIT, Cell, Must, RANKS};
use phalanx_comm::{Error, report};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// In whatever a rank says of what should not be.
pub const WRONG: &str = "WRONG";

/// Nobody waits longer for another rank's sign: whoever does has hung, and says so.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the ranks of one cell meet.
#[derive(Debug, Clone)]
pub struct Site {
    pub cell: Cell,
    pub must: Must,
    folder: PathBuf,
}

/// Nanoseconds since 1970: the clock that processes share.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |time| time.as_nanos() as u64)
}

impl Site {
    pub fn new(cell: Cell, must: Must, folder: &Path) -> Site {
        Site {
            cell,
            must,
            folder: folder.to_owned(),
        }
    }

    /// Leaves a sign; nobody sees half of one.
    fn leave(&self, name: &str, text: &str) {
        let draft = self.folder.join(format!("draft-{name}"));
        let left = std::fs::write(&draft, text)
            .and_then(|()| std::fs::rename(&draft, self.folder.join(name)));
        left.unwrap_or_else(|error| report(format_args!("no sign {name}: {error}")));
    }

    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.folder.join(name)).ok()
    }

    // Ranks say what they say by `report`, in one write: lines of threads and of processes do not mix, and
    // ThreadSanitizer, which does not see the lock of stdout, finds no race in its buffer.

    /// The culprit goes wrong now.
    pub fn note_fault(&self) {
        let now = now();
        report(format_args!("fault at {now}"));
        self.leave("fault", &now.to_string());
    }

    /// When the culprit went wrong, if it has.
    pub fn fault(&self) -> Option<u64> {
        self.read("fault")?.parse().ok()
    }

    /// Waits, without a call of the library, until the culprit has gone wrong, and a little longer: by then its fault is
    /// done.
    ///
    /// Not where calls are compared before they are issued: there the culprit does not come to its fault without the
    /// others.
    pub fn wait_for_fault(&self) {
        if self.cell.compares {
            return;
        }
        let start = Instant::now();
        while self.fault().is_none() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(50));
    }

    /// This rank holds an error: says so, with all that is wrong with it.
    pub fn hold(&self, rank: usize, error: &Error) {
        let after = self.fault().map(|fault| now().saturating_sub(fault));
        let millis = after.map_or(0, |nanos| nanos / 1_000_000);
        let verdict = match self.must.held().map(|held| (held, held.fault_of(error))) {
            Some((held, None)) => held.to_string(),
            Some((_, Some(why))) => format!("{WRONG}, {why},"),
            // Its process is about to be ended.
            None => "an error".to_owned(),
        };
        report(format_args!(
            "rank {rank} holds {verdict} after {millis} ms: {error}"
        ));
        self.leave(&format!("held-{rank}"), "");
    }

    /// Computes, with no call, until all others hold their error; then lets go.
    pub fn compute(&self) {
        let start = Instant::now();
        let holds = |rank: usize| self.folder.join(format!("held-{rank}")).exists();
        let others = || (0..RANKS).filter(|&rank| rank != CULPRIT);
        while !(self.cell.lets_go && others().all(holds)) {
            for _ in 0..100_000 {
                std::hint::spin_loop();
            }
            if self.cell.lets_go && start.elapsed() > PATIENCE {
                report(format_args!(
                    "{WRONG}: after {PATIENCE:?} of its loop the others do not hold an error"
                ));
                return;
            }
        }
    }
}
