//! [`Communicator`]: NCCL's communicator of one rank. It never holds the host without a limit, and can be ended at any
//! time, from any thread.
#![allow(unsafe_code)]

use super::library::{Library, library};
use crate::sync::Mutex;
use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclResult_t, ncclUniqueId};
use std::ffi::{CStr, c_int, c_uint};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// The bytes by which the ranks of a new communicator find each other.
pub(super) const ID_BYTES: usize = 128;

/// A failure of the library.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    /// The function, as in `ncclAllReduce`.
    pub(super) call: &'static str,
    pub(super) message: String,
}

/// Why there is nothing to wait for any more: asked while the library makes its way.
type Stop<'a> = &'a dyn Fn() -> bool;

/// One rank's side of a communicator.
///
/// 1. *It is used by one thread at a time*: `turn` is held while calls are issued, for the question for its state, and by
///    `abort`, for which whoever issues makes room as soon as there is a reason to stop.
/// 2. *It is ended once*: by `abort` or the drop, whoever comes first sets `has_ended`; nothing is called with the handle
///    afterwards, since all other calls hold `turn`, and look at it first.
pub(super) struct Communicator {
    library: &'static Library,
    handle: ncclComm_t,
    turn: Mutex<()>,
    has_ended: AtomicBool,
}

// SAFETY: the handle is a name of an object of the library, whose functions may be called from any thread; guarantees 1
// and 2 say how they are kept apart.
unsafe impl Send for Communicator {}
// SAFETY: as above.
unsafe impl Sync for Communicator {}

/// What came of a split.
pub(super) enum Split {
    /// The ranks have met: the new communicator, or none for a rank without color.
    Done(Option<Communicator>),
    /// There is nothing to wait for any more.
    Stopped,
}

/// What the rank that makes a communicator tells the others.
pub(super) fn unique_id() -> Result<[u8; ID_BYTES], Failure> {
    let library = library().map_err(missing)?;
    let mut id = MaybeUninit::<ncclUniqueId>::zeroed();
    // SAFETY: the pointer is valid for an id.
    let result = unsafe { (library.ncclGetUniqueId)(id.as_mut_ptr()) };
    expect(library, "ncclGetUniqueId", result)?;
    // SAFETY: it was zeroed, and is plain bytes.
    let id = unsafe { id.assume_init() };
    Ok(id.internal.map(|byte| byte as u8))
}

fn missing(reason: &str) -> Failure {
    Failure {
        call: "loading NCCL",
        message: reason.to_owned(),
    }
}

fn expect(library: &Library, call: &'static str, result: ncclResult_t) -> Result<(), Failure> {
    match result {
        ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress => Ok(()),
        failed => Err(Failure {
            call,
            message: library.sentence(failed),
        }),
    }
}

/// A number of ranks, or a rank, as the library counts.
fn number(call: &'static str, n: usize) -> Result<c_int, Failure> {
    c_int::try_from(n).map_err(|_| Failure {
        call,
        message: format!("{n} ranks are too many"),
    })
}

/// The defaults, but for `blocking`: no call holds the host for the sake of other ranks.
fn config() -> ncclConfig_t {
    /// What stands for a default.
    const UNDEFINED: c_int = c_int::MIN;
    // SAFETY: numbers and pointers, all of which may be 0. Those for which 0 is no default follow.
    let mut config: ncclConfig_t = unsafe { MaybeUninit::zeroed().assume_init() };
    config.size = size_of::<ncclConfig_t>();
    config.magic = 0xcafe_beef;
    config.version = 22_800 as c_uint;
    config.blocking = 0;
    for field in [
        &mut config.cgaClusterSize,
        &mut config.minCTAs,
        &mut config.maxCTAs,
        &mut config.splitShare,
        &mut config.trafficClass,
        &mut config.collnetEnable,
        &mut config.CTAPolicy,
        &mut config.shrinkShare,
        &mut config.nvlsCTAs,
        &mut config.nChannelsPerNetPeer,
        &mut config.nvlinkCentricSched,
    ] {
        *field = UNDEFINED;
    }
    config
}

impl Communicator {
    /// Rank `rank` of `size`, on the card whose context is the calling thread's. It waits for all ranks to come, until
    /// `stop` says otherwise; `None` then.
    pub(super) fn new(
        id: [u8; ID_BYTES],
        rank: usize,
        size: usize,
        stop: Stop<'_>,
    ) -> Result<Option<Communicator>, Failure> {
        const CALL: &str = "ncclCommInitRankConfig";
        let library = library().map_err(missing)?;
        let id = ncclUniqueId {
            internal: id.map(|byte| byte as _),
        };
        let (mut handle, mut config) = (ptr::null_mut(), config());
        let (size, rank) = (number(CALL, size)?, number(CALL, rank)?);
        // SAFETY: the pointers are valid for what they point to; the library reads the config in the call.
        let result =
            unsafe { (library.ncclCommInitRankConfig)(&mut handle, size, id, rank, &mut config) };
        expect(library, CALL, result)?;
        Communicator::of(library, handle).settled(CALL, stop)
    }

    /// Splits it, as all of its ranks do, none of which has an operation under way: those of one `color` get a
    /// communicator, in the order of `key`, and those of none get nothing. It waits for all ranks, until `stop` says
    /// otherwise. (NCCL: `ncclCommSplit`.)
    pub(super) fn split(
        &self,
        color: Option<usize>,
        key: usize,
        stop: Stop<'_>,
    ) -> Result<Split, Failure> {
        const CALL: &str = "ncclCommSplit";
        /// NCCL's `NCCL_SPLIT_NOCOLOR`.
        const NO_COLOR: c_int = -1;
        let key = number(CALL, key)?;
        let has_color = color.is_some();
        let color = color.map_or(Ok(NO_COLOR), |color| number(CALL, color))?;
        let _turn = self.turn.lock();
        if self.has_ended.load(SeqCst) {
            return Ok(Split::Stopped);
        }
        // The library writes there when the ranks have met, in a thread of its own. So the place is given up where nobody
        // knows whether it still will.
        let place = Box::into_raw(Box::new(ptr::null_mut()));
        let mut config = config();
        // SAFETY: the communicator has not been ended, and this thread alone uses it; `place` is valid for good, and the
        // library reads the config in the call.
        let result =
            unsafe { (self.library.ncclCommSplit)(self.handle, color, key, place, &mut config) };
        expect(self.library, CALL, result)?;
        if !self.settle(CALL, stop)? {
            return Ok(Split::Stopped);
        }
        // SAFETY: it comes from a box; the library is through with it, since the old communicator has nothing in progress.
        let handle = *unsafe { Box::from_raw(place) };
        if !has_color {
            return Ok(Split::Done(None));
        }
        let made = Communicator::of(self.library, handle).settled(CALL, stop)?;
        Ok(made.map_or(Split::Stopped, |made| Split::Done(Some(made))))
    }

    fn of(library: &'static Library, handle: ncclComm_t) -> Communicator {
        Communicator {
            library,
            handle,
            turn: Mutex::default(),
            has_ended: AtomicBool::new(false),
        }
    }

    /// Fails unless this is rank `rank` of `size`.
    pub(super) fn expect_place(&self, rank: usize, size: usize) -> Result<(), Failure> {
        const CALL: &str = "ncclCommCount";
        let _turn = self.turn.lock();
        let place = [number(CALL, rank)?, number(CALL, size)?];
        let mut told = [0; 2];
        // SAFETY: the communicator was made just now; the pointers are valid for a number.
        let results = unsafe {
            [
                (self.library.ncclCommUserRank)(self.handle, &mut told[0]),
                (self.library.ncclCommCount)(self.handle, &mut told[1]),
            ]
        };
        for result in results {
            expect(self.library, CALL, result)?;
        }
        match told == place {
            true => Ok(()),
            false => Err(Failure {
                call: CALL,
                message: format!(
                    "it made rank {} of {} of rank {rank} of {size}",
                    told[0], told[1]
                ),
            }),
        }
    }

    /// Waits until it is there, or `stop` says otherwise: `None` then.
    fn settled(self, call: &'static str, stop: Stop<'_>) -> Result<Option<Communicator>, Failure> {
        match self.settle(call, stop) {
            Ok(true) => Ok(Some(self)),
            ended => {
                self.abort();
                ended.map(|_| None)
            }
        }
    }

    /// Waits until the library is through with what was called, or `stop` says otherwise: `false` then.
    fn settle(&self, call: &'static str, stop: Stop<'_>) -> Result<bool, Failure> {
        let start = Instant::now();
        loop {
            match self.state() {
                ncclResult_t::ncclSuccess => return Ok(true),
                ncclResult_t::ncclInProgress if stop() => return Ok(false),
                ncclResult_t::ncclInProgress => match start.elapsed() < Duration::from_millis(1) {
                    true => thread::yield_now(),
                    false => thread::sleep(Duration::from_micros(100)),
                },
                failed => return Err(self.failure(call, failed)),
            }
        }
    }

    fn state(&self) -> ncclResult_t {
        if self.has_ended.load(SeqCst) {
            return ncclResult_t::ncclInvalidUsage;
        }
        let mut state = ncclResult_t::ncclSuccess;
        // SAFETY: the communicator has not been ended; the pointer is valid for a result.
        let asked = unsafe { (self.library.ncclCommGetAsyncError)(self.handle, &mut state) };
        match asked {
            ncclResult_t::ncclSuccess => state,
            failed => failed,
        }
    }

    fn failure(&self, call: &'static str, result: ncclResult_t) -> Failure {
        let mut message = self.library.sentence(result);
        if !self.has_ended.load(SeqCst) {
            // SAFETY: the communicator has not been ended; it gives a string of the library, or null.
            let last = unsafe { (self.library.ncclGetLastError)(self.handle) };
            if !last.is_null() {
                // SAFETY: as above.
                let last = unsafe { CStr::from_ptr(last) }.to_string_lossy();
                if !last.trim().is_empty() {
                    message = format!("{message}: {}", last.trim());
                }
            }
        }
        Failure { call, message }
    }

    /// What has gone wrong since, while nobody was asking: a peer has died, a connection is lost.
    pub(super) fn look(&self) -> Result<(), Failure> {
        let _turn = self.turn.lock();
        if self.has_ended.load(SeqCst) {
            return Ok(());
        }
        match self.state() {
            ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress => Ok(()),
            failed => Err(self.failure("an operation under way", failed)),
        }
    }

    /// Issues calls as one group. `issue` names each one, and gives its result. It waits until the library has put all
    /// of them on the stream, or `stop` says otherwise: `false` then.
    ///
    /// # Safety
    /// The calls that `issue` makes get buffers that are valid until the stream is through with them.
    pub(super) unsafe fn group(
        &self,
        stop: Stop<'_>,
        issue: impl FnOnce(&Library, ncclComm_t) -> Result<(), (&'static str, ncclResult_t)>,
    ) -> Result<bool, Failure> {
        let _turn = self.turn.lock();
        if self.has_ended.load(SeqCst) {
            return Ok(false);
        }
        // SAFETY: no requirements.
        expect(self.library, "ncclGroupStart", unsafe {
            (self.library.ncclGroupStart)()
        })?;
        let issued = issue(self.library, self.handle);
        // SAFETY: no requirements.
        let ended = unsafe { (self.library.ncclGroupEnd)() };
        if let Err((call, failed)) = issued {
            return Err(self.failure(call, failed));
        }
        match ended {
            ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress => {}
            failed => return Err(self.failure("ncclGroupEnd", failed)),
        }
        self.settle("ncclGroupEnd", stop)
    }

    /// Ends everything that is under way; what it was to write is undefined. A thread that issues calls meanwhile comes
    /// back first, since its `stop` says so.
    pub(super) fn abort(&self) {
        let _turn = self.turn.lock();
        if !self.has_ended.swap(true, SeqCst) {
            // SAFETY: the communicator has not been ended before, and nobody else calls anything with it.
            let _ = unsafe { (self.library.ncclCommAbort)(self.handle) };
        }
    }
}

impl Drop for Communicator {
    /// Nothing is under way: who issues, and who watches over it, hold the communicator.
    fn drop(&mut self) {
        if self.has_ended.swap(true, SeqCst) {
            return;
        }
        // SAFETY: the communicator has not been ended before, and nobody else has it.
        let finalized = unsafe { (self.library.ncclCommFinalize)(self.handle) };
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut state = finalized;
        while state == ncclResult_t::ncclInProgress && Instant::now() < deadline {
            thread::sleep(Duration::from_micros(100));
            // SAFETY: as above; the pointer is valid for a result.
            unsafe { (self.library.ncclCommGetAsyncError)(self.handle, &mut state) };
        }
        // SAFETY: as above.
        let _ = unsafe {
            match state {
                ncclResult_t::ncclSuccess => (self.library.ncclCommDestroy)(self.handle),
                _ => (self.library.ncclCommAbort)(self.handle),
            }
        };
    }
}
