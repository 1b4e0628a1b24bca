//! Communicators: the handles of a program, and what a rank knows of its own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::gather::{Clique, Gathering};
use super::post::Request;
use super::{Result, Status, wrong};
use crate::driver::handles::Handle;
use crate::driver::pointers::Out;

/// What handles of communicators begin with: numbers that no pointer looks like, and that are never used again.
const TAG: u64 = 0xc8 << 56;

/// What has become of a communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It may be used.
    Live,
    /// `ncclCommFinalize` was called.
    Finalized,
    /// `ncclCommDestroy` was called.
    Destroyed,
    /// `ncclCommAbort` was called.
    Aborted,
}

/// What changes.
pub struct Inside {
    /// What has become of it.
    pub life: Life,
    /// Calls that have no place in their streams yet, because the communicator does not block.
    pub deferred: Vec<(usize, Vec<Request>)>,
    /// How often the next questions find it in progress.
    pub polls: u32,
    /// How many collectives it has begun.
    pub collectives: u64,
    /// How many sends (true) and receives it has begun with each peer.
    pub pairs: HashMap<(bool, usize), u64>,
    /// How often it was split.
    pub splits: u64,
    /// The split that is in progress, if the communicator does not block.
    pub split: Option<Splitting>,
    /// The last operation in each stream that it was used with.
    pub last: HashMap<usize, u32>,
    /// What went wrong in the background.
    pub error: Option<Status>,
}

/// A split that waits for the other ranks.
pub struct Splitting {
    /// The new communicator; also of a rank that gets none, whose ranks find each other by it.
    pub comm: Arc<Comm>,
    /// Where its handle goes when the ranks have come, and not before.
    pub out: Out<Handle>,
    /// The handle; 0 where the rank gets no communicator.
    pub handle: Handle,
}

// SAFETY: the place is written to once, by whoever takes this out of `Inside`, whose lock it holds; the caller keeps the
// place until the old communicator is no longer in progress, as the library asks for.
unsafe impl Send for Splitting {}

/// A rank's communicator.
pub struct Comm {
    /// The GPU.
    pub gpu: usize,
    /// Whether calls block.
    pub blocking: bool,
    /// Whether it was aborted, for its operations.
    pub aborted: Arc<AtomicBool>,
    /// Where the ranks find each other, and as which rank there.
    pub gathering: Arc<Gathering>,
    /// The rank in the gathering.
    pub old: usize,
    ready: OnceLock<(usize, Arc<Clique>)>,
    busy: AtomicBool,
    /// Held while calls that were put off get their places: who asks meanwhile must not hear that they have them.
    pub catching_up: Mutex<()>,
    inside: Mutex<Inside>,
}

impl Splitting {
    /// Nothing comes of it.
    pub fn give_up(&self) {
        self.comm.lock().life = Life::Aborted;
        self.comm.gathering.leave(self.comm.old);
    }
}

impl Inside {
    /// Whether an earlier call of a communicator that does not block has not been carried out.
    fn is_waiting(&self) -> bool {
        !self.deferred.is_empty() || self.split.is_some()
    }
}

static COMMS: Mutex<Vec<Arc<Comm>>> = Mutex::new(Vec::new());

impl Comm {
    /// A communicator that joins a gathering, and its handle.
    pub fn new(
        gathering: Arc<Gathering>,
        old: usize,
        gpu: usize,
        blocking: bool,
    ) -> (Handle, Arc<Comm>) {
        let comm = Arc::new(Comm {
            gpu,
            blocking,
            aborted: Arc::default(),
            gathering,
            old,
            ready: OnceLock::new(),
            busy: AtomicBool::new(false),
            catching_up: Mutex::new(()),
            inside: Mutex::new(Inside {
                life: Life::Live,
                deferred: Vec::new(),
                polls: 1,
                collectives: 0,
                pairs: HashMap::new(),
                splits: 0,
                split: None,
                last: HashMap::new(),
                error: None,
            }),
        });
        let mut comms = COMMS.lock().unwrap_or_else(PoisonError::into_inner);
        comms.push(comm.clone());
        (TAG | comms.len() as u64, comm)
    }

    /// What changes.
    pub fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rank and the communicator's ranks, when all ranks have joined.
    pub fn joined(&self) -> Option<&(usize, Arc<Clique>)> {
        if self.ready.get().is_none() {
            let _ = self.ready.set(self.gathering.clique(self.old)?);
        }
        self.ready.get()
    }

    /// What it is called in a report.
    pub fn name(&self) -> String {
        match self.joined() {
            Some((rank, clique)) => {
                format!("the communicator of rank {rank} of {}", clique.ranks())
            }
            None => format!("the communicator that rank {} joins", self.old),
        }
    }

    /// Whether an earlier call is still in progress.
    pub fn in_progress(&self) -> bool {
        self.joined().is_none() || self.lock().is_waiting()
    }

    /// The rank and the ranks, for a call that needs all of it.
    ///
    /// # Errors
    /// An earlier call is in progress, or has failed.
    pub fn usable(&self, call: &str) -> Result<(usize, &Arc<Clique>)> {
        let inside = self.lock();
        if let Some(error) = inside.error {
            return Err(error);
        }
        if inside.life == Life::Finalized {
            let sentence = format!("{call} uses {}, which was finalized.", self.name());
            return Err(wrong(&sentence, Status::INVALID_USAGE));
        }
        let is_waiting = inside.is_waiting();
        drop(inside);
        match self.joined() {
            Some((rank, clique)) if !is_waiting => Ok((*rank, clique)),
            _ => {
                let sentence = format!(
                    "{call} uses {} while an earlier call is in progress: ncclCommGetAsyncError has not said \
                     ncclSuccess.",
                    self.name()
                );
                Err(wrong(&sentence, Status::INVALID_ARGUMENT))
            }
        }
    }
}

/// The use of a communicator by one call.
pub struct Use(pub Arc<Comm>);

impl Drop for Use {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

/// The communicator of a handle, whatever has become of it.
///
/// # Errors
/// There is none.
pub fn find(handle: Handle, call: &str) -> Result<Arc<Comm>> {
    let number = handle.wrapping_sub(TAG);
    let comms = COMMS.lock().unwrap_or_else(PoisonError::into_inner);
    let found = number.checked_sub(1).and_then(|at| comms.get(at as usize));
    let found = found.cloned();
    drop(comms);
    found.ok_or_else(|| {
        let sentence = format!("{call} is called with {handle:#x}, which is no communicator.");
        wrong(&sentence, Status::INVALID_ARGUMENT)
    })
}

/// The communicator of a handle, if it is alive.
///
/// # Errors
/// It was destroyed or aborted, or there is none.
pub fn alive(handle: Handle, call: &str) -> Result<Arc<Comm>> {
    let comm = find(handle, call)?;
    let life = comm.lock().life;
    let how = match life {
        Life::Live | Life::Finalized => return Ok(comm),
        Life::Destroyed => "destroyed",
        Life::Aborted => "aborted",
    };
    let sentence = format!("{call} uses {}, which was {how}.", comm.name());
    Err(wrong(&sentence, Status::INVALID_ARGUMENT))
}

/// The communicator of a handle, for a call that no other thread may make at the same time.
///
/// # Errors
/// As [`alive`]; or another thread is in a call with it.
pub fn alone(handle: Handle, call: &str) -> Result<Use> {
    let comm = alive(handle, call)?;
    if comm.busy.swap(true, Ordering::AcqRel) {
        let sentence = format!(
            "{call} uses {} while another thread is in a call with it.",
            comm.name()
        );
        return Err(wrong(&sentence, Status::INVALID_USAGE));
    }
    Ok(Use(comm))
}
