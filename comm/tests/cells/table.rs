//! The table of the drill: when something goes wrong, in which way, and what the ranks that did nothing wrong must
//! hold then. Everything else in this folder reads it.

use phalanx_comm::{Device, Error, Link, Stands};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How many ranks a cell has; where all but one agree, more than half do.
pub const RANKS: usize = 3;
/// The rank that goes wrong.
pub const CULPRIT: usize = 1;

/// When a rank goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before the group is made. Threads have a group from their first line on, so there it is before the first call;
    /// a process goes wrong before it calls `run`.
    Before,
    /// While a group is made: the others have called `split`, and wait in it.
    Making,
    /// Between two collectives.
    Between,
    /// While a collective is in flight: the culprit and rank 0 have issued it, and rank 2 has not.
    InFlight,
    /// The culprit is about to leave, while the others work on in a group of their own.
    Leaving,
    /// The culprit's program ends while works are in flight that it has not waited for.
    Teardown,
}

/// How it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Panic,
    /// Its program returns an error.
    Error,
    /// It is gone without a word: a thread returns well, and its handle is dropped; a process is killed, or ends.
    Gone,
    /// It computes for ever, and makes no call.
    Loop,
    /// It makes a call that differs from what the others call.
    Differs,
    Abort,
}

pub const PHASES: [Phase; 6] = [
    Phase::Before,
    Phase::Making,
    Phase::Between,
    Phase::InFlight,
    Phase::Leaving,
    Phase::Teardown,
];

pub const FAULTS: [Fault; 6] = [
    Fault::Panic,
    Fault::Error,
    Fault::Gone,
    Fault::Loop,
    Fault::Differs,
    Fault::Abort,
];

/// What the ranks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Threads of one process.
    Local,
    /// Processes under mpirun.
    Mpi,
    /// Threads of one process, each with a card of its own.
    Nccl,
}

/// What must come of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Must {
    /// Every rank whose program goes on holds this error, which names the culprit.
    Hold(Held),
    /// The whole job ends, with a code that is not 0.
    EndTheJob,
    /// The same; and a process that waits for the start of MPI says so, unless mpirun ends it before.
    EndTheStart,
    /// The same; and a line says which rank was ended by the policy, and why.
    EndByPolicy,
    /// The cell does not apply, for this reason.
    NotApply(&'static str),
}

impl Must {
    /// The error that ranks hold.
    pub fn held(self) -> Option<Held> {
        match self {
            Must::Hold(held) => Some(held),
            Must::EndByPolicy => Some(DeadlineExceeded),
            _ => None,
        }
    }
}

/// An error by its variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    RankPanicked,
    RankFailed,
    RankReturned,
    Abandoned,
    DeadlineExceeded,
    Divergence,
    Aborted,
}

use Held::{
    Abandoned, Aborted, DeadlineExceeded, Divergence, RankFailed, RankPanicked, RankReturned,
};

/// What the others hold where ranks are threads: a row for each phase, a column for each fault. A rank that is gone
/// with works in flight has abandoned them.
#[rustfmt::skip]
const LOCAL: [[Held; 6]; 6] = [
    // Panic,       Error,      Gone,         Loop,             Differs,    Abort
    [RankPanicked,  RankFailed, RankReturned, DeadlineExceeded, Divergence, Aborted], // Before
    [RankPanicked,  RankFailed, RankReturned, DeadlineExceeded, Divergence, Aborted], // Making
    [RankPanicked,  RankFailed, RankReturned, DeadlineExceeded, Divergence, Aborted], // Between
    [RankPanicked,  RankFailed, Abandoned,    DeadlineExceeded, Divergence, Aborted], // InFlight
    [RankPanicked,  RankFailed, RankReturned, DeadlineExceeded, Divergence, Aborted], // Leaving
    [RankPanicked,  RankFailed, Abandoned,    DeadlineExceeded, Divergence, Aborted], // Teardown
];

/// A process that goes wrong before it starts MPI.
const BEFORE_MPI: [Must; 6] = [
    Must::EndTheJob,
    Must::EndTheJob,
    Must::EndTheStart,
    Must::EndTheStart,
    Must::NotApply("a process that has no group yet has nothing to call that could differ"),
    Must::NotApply("a process that has no group yet has nothing to abort"),
];

/// A phase and a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    pub phase: Phase,
    pub fault: Fault,
    /// Whether calls on cards are compared before they are issued, and not behind.
    pub compares: bool,
    /// Whether a loop ends when the others have their error. One that does not is a matter of the policy.
    pub lets_go: bool,
}

/// The cell whose loop never ends.
const POLICY: Cell = Cell {
    phase: Phase::Between,
    fault: Fault::Loop,
    compares: false,
    lets_go: false,
};

/// How long a rank that goes wrong may go on where the policy ends it.
pub const END_AFTER: Duration = Duration::from_millis(300);

/// How long processes wait for MPI to start, where one of them never starts it.
pub const START: Duration = Duration::from_secs(1);

/// After its deadline, a rank has its error within this.
pub const SLACK: Duration = Duration::from_secs(1);

/// A job that is to end has ended so long after the fault.
pub const JOB_ENDS_WITHIN: Duration = Duration::from_secs(2);

impl Cell {
    /// All 36 cells, and the one for the policy. On cards, calls that differ have one more in each phase.
    pub fn all(backend: Backend) -> impl Iterator<Item = Cell> {
        let row = move |phase| {
            let cell = move |fault, compares| Cell {
                phase,
                fault,
                compares,
                lets_go: true,
            };
            let compared = (backend == Backend::Nccl).then(|| cell(Fault::Differs, true));
            let cells = FAULTS.into_iter().map(move |fault| cell(fault, false));
            cells.chain(compared)
        };
        PHASES.into_iter().flat_map(row).chain([POLICY])
    }

    pub fn must(self, backend: Backend) -> Must {
        let (row, column) = (self.phase as usize, self.fault as usize);
        match (backend, self.phase, self.fault) {
            _ if !self.lets_go => Must::EndByPolicy,
            (Backend::Mpi, Phase::Before, _) => BEFORE_MPI[column],
            (Backend::Mpi, _, Fault::Gone) => Must::EndTheJob,
            // A call on cards is done without its rank: to wait for one is to hand out what was issued, and a rank that
            // returns stays until its card is through. So nothing is abandoned; what others lack is its next call.
            (Backend::Nccl, _, Fault::Gone) => Must::Hold(RankReturned),
            _ => Must::Hold(LOCAL[row][column]),
        }
    }

    /// Who must hold the error: all but the culprit, and the culprit too where its program goes on.
    pub fn holders(self) -> impl Iterator<Item = usize> {
        let goes_on = matches!(self.fault, Fault::Loop | Fault::Differs | Fault::Abort);
        (0..RANKS).filter(move |&rank| goes_on || rank != CULPRIT)
    }

    /// The code with which its processes end that hold the error, and then run a second world. What the end of a
    /// program with works in flight leaves in MPI's hands forbids to end MPI in order, and to mpirun that is a failure:
    /// such a process is to say so itself.
    pub fn code(self, backend: Backend) -> u8 {
        u8::from(backend == Backend::Mpi && self.phase == Phase::Teardown)
    }

    /// How long ranks wait. Short where somebody waits in vain; everywhere else the error comes long before it, however
    /// slow the machine. ThreadSanitizer makes ranks slower, and mpirun shares the cores with them.
    pub fn deadline(self, backend: Backend) -> Duration {
        let millis = match (self.fault, backend) {
            (Fault::Loop, Backend::Local) if cfg!(phalanx_tsan) => 1500,
            (Fault::Loop, Backend::Local) => 400,
            (Fault::Loop, Backend::Mpi | Backend::Nccl) => 1000,
            _ => 5000,
        };
        Duration::from_millis(millis)
    }

    /// How soon after the fault its holders hold the error.
    pub fn limit(self, backend: Backend) -> Duration {
        match self.fault {
            Fault::Loop => self.deadline(backend) + SLACK,
            // A verdict waits a tenth of the deadline, or a second at most, for those that have not come.
            _ => Duration::from_secs(2),
        }
    }
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Before => "before",
            Phase::Making => "making",
            Phase::Between => "between",
            Phase::InFlight => "in-flight",
            Phase::Leaving => "leaving",
            Phase::Teardown => "teardown",
        }
    }
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::Panic => "panic",
            Fault::Error => "error",
            Fault::Gone => "gone",
            Fault::Loop => "loop",
            Fault::Differs => "differs",
            Fault::Abort => "abort",
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = match (self.lets_go, self.compares) {
            (false, _) => "-for-ever",
            (_, true) => "-compared",
            _ => "",
        };
        write!(f, "{}/{}{end}", self.phase.name(), self.fault.name())
    }
}

impl FromStr for Cell {
    type Err = String;

    fn from_str(name: &str) -> Result<Cell, String> {
        let found = Cell::all(Backend::Nccl).find(|cell| cell.to_string() == name);
        found.ok_or_else(|| format!("there is no cell {name}"))
    }
}

impl Backend {
    /// Of threads whose results live on devices of this kind.
    pub fn on(device: Device) -> Backend {
        match device.is_cpu() {
            true => Backend::Local,
            false => Backend::Nccl,
        }
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(name: &str) -> Result<Backend, String> {
        match name {
            "local" => Ok(Backend::Local),
            "mpi" => Ok(Backend::Mpi),
            "nccl" => Ok(Backend::Nccl),
            _ => Err(format!("there is no backend {name}")),
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Held {
    /// What is wrong with an error that a rank holds, if anything is: it must be of this variant, and name the culprit
    /// alone; one of a deadline says too where the culprit stands.
    pub fn fault_of(self, error: &Error) -> Option<String> {
        if error.to_string().contains(BESIDE) {
            return Some("it names a call that no program has made".into());
        }
        let named = match (self, error) {
            (RankPanicked, Error::RankPanicked { rank, message })
            | (RankFailed, Error::RankFailed { rank, message })
            | (
                Aborted,
                Error::Aborted {
                    rank,
                    reason: message,
                },
            ) if message.contains(ON_PURPOSE) => *rank,
            (RankReturned, Error::RankReturned { rank, .. })
            | (Abandoned, Error::Abandoned { rank, .. })
            | (Divergence, Error::Divergence { rank, .. }) => *rank,
            (DeadlineExceeded, Error::DeadlineExceeded { missing, chain, .. }) => {
                let runs = Link {
                    rank: CULPRIT,
                    stands: Stands::Runs {
                        activity: String::new(),
                    },
                };
                if *chain != [runs] {
                    return Some(format!(
                        "it does not say that rank {CULPRIT} waits in no call"
                    ));
                }
                match missing[..] {
                    [rank] => rank,
                    _ => return Some(format!("it names ranks {missing:?}")),
                }
            }
            _ => return Some(format!("it is no {self}")),
        };
        (named != CULPRIT).then(|| format!("it names rank {named}"))
    }
}

/// What ranks on cards say to each other beside each call.
const BESIDE: &str = "all_gather of i64 [8]";

/// What panics, errors and aborts say.
pub const ON_PURPOSE: &str = "on purpose";
