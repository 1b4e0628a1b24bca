//! Communicators of the interface, from their start to their end, and what a program asks of them.

use std::ffi::{CString, c_char, c_int};
use std::ptr::null;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::comm::{self, Comm, Life, Splitting};
use super::gather::{Gathering, Record};
use super::group::{self, Joining};
use super::launch::catch_up;
use super::shared::{self, PREFIX};
use super::{Result, Status, api, wrong};
use crate::device::machine::Machine;
use crate::device::report::Count;
use crate::driver::context;
use crate::driver::handles::Handle;
use crate::driver::pointers::{Array, Out};

/// What a communicator is known by before it is: `ncclUniqueId`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UniqueId([u8; 128]);

/// The beginning of `ncclConfig_t`, which all versions have.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Config {
    /// Bytes of the structure.
    pub size: usize,
    /// A number by which one knows that it was initialised.
    pub magic: u32,
    /// The version of the library for which it was made.
    pub version: u32,
    /// Whether calls block; `i32::MIN` leaves it to the library.
    pub blocking: c_int,
}

/// `magic` of a configuration.
const MAGIC: u32 = 0xcafe_beef;

/// The version: 2.28.3.
const VERSION: i32 = 22803;

/// The last sentence of [`set_last`].
static LAST: AtomicPtr<c_char> = AtomicPtr::new(c"".as_ptr().cast_mut());

/// Keeps what `ncclGetLastError` says. A program may hold it for ever, so that it is never freed.
pub fn set_last(sentence: &str) {
    if let Ok(text) = CString::new(sentence) {
        LAST.store(text.into_raw(), Ordering::Release);
    }
}

impl UniqueId {
    fn new() -> UniqueId {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let time = time.map_or(0, |time| time.as_nanos() as u64);
        let text = format!("{PREFIX}{}-{number}-{time:x}", std::process::id());
        let mut id = [0; 128];
        id[..text.len()].copy_from_slice(text.as_bytes());
        UniqueId(id)
    }

    /// Its text.
    ///
    /// # Errors
    /// No call of `ncclGetUniqueId` has made it.
    fn name(&self) -> Result<String> {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(128);
        let text = std::str::from_utf8(&self.0[..end]).unwrap_or_default();
        let known = text.strip_prefix(PREFIX).filter(|rest| {
            let mut bytes = rest.bytes();
            bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        });
        known.map(|_| text.to_owned()).ok_or_else(|| {
            let sentence = "A rank joins with an id that ncclGetUniqueId has not made.";
            wrong(sentence, Status::INVALID_ARGUMENT)
        })
    }
}

/// Whether the calls of a communicator with this configuration block.
fn blocks(config: Array<Config>, default: bool) -> Result<bool> {
    if config.is_null() {
        return Ok(default);
    }
    let config = config.item(0)?;
    if config.magic != MAGIC {
        let sentence = "A communicator is configured by an ncclConfig_t that was not initialised.";
        return Err(wrong(sentence, Status::INVALID_ARGUMENT));
    }
    match config.blocking {
        0 => Ok(false),
        1 => Ok(true),
        i32::MIN => Ok(default),
        other => {
            let sentence = format!("A communicator is configured with blocking = {other}.");
            Err(wrong(&sentence, Status::INVALID_ARGUMENT))
        }
    }
}

/// The GPU on which the calling thread joins.
fn current() -> Result<usize> {
    context::current(Machine::get()?).map_err(|_| {
        let sentence = "A rank joins a communicator in a thread in which no context is current.";
        wrong(sentence, Status::UNHANDLED_CUDA_ERROR)
    })
}

/// What a rank of this process says of itself.
fn record(ranks: usize, gpu: usize, color: i32, key: i32) -> Result<Record> {
    Ok(Record {
        process: std::process::id(),
        ranks,
        gpu,
        color,
        key,
        card: Machine::get()?.settings.card(gpu),
    })
}

/// A rank joins a communicator on the GPU.
fn join(
    out: Out<Handle>,
    id: &UniqueId,
    ranks: i32,
    rank: i32,
    gpu: usize,
    blocking: bool,
) -> Result<()> {
    let name = id.name()?;
    let in_range = ranks >= 1 && (0..ranks).contains(&rank);
    if out.is_null() || !in_range {
        let sentence = format!("Rank {rank} of {ranks} joins a communicator.");
        return Err(wrong(&sentence, Status::INVALID_ARGUMENT));
    }
    let (ranks, rank) = (ranks as usize, rank as usize);
    let gathering = Gathering::of(&name, ranks, true);
    let (handle, comm) = Comm::new(gathering, rank, gpu, blocking);
    out.put(handle)?;
    let record = record(ranks, gpu, 0, 0)?;
    let gets_one = true;
    group::join(Joining {
        comm,
        record,
        gets_one,
    })
}

/// Waits until what was called on a communicator has ended.
fn drain(machine: &Machine, comm: &Comm) -> Result<()> {
    let last: Vec<_> = comm.lock().last.drain().collect();
    let state = machine.lock();
    drop(machine.until(state, comm.gpu, |state| {
        let mut last = last.iter();
        last.all(|(stream, finish)| state.streams[*stream].done >= *finish)
    }));
    Ok(())
}

/// Whether something that was called on a communicator has not ended.
fn has_work(machine: &Machine, comm: &Comm) -> bool {
    let last: Vec<_> = comm.lock().last.clone().into_iter().collect();
    let state = machine.lock();
    let mut last = last.iter();
    last.any(|(stream, finish)| state.streams[*stream].done < *finish)
}

/// What the communicator is doing in the background.
fn progress(machine: &Machine, comm: &Comm) -> Result<()> {
    let waits = {
        let mut inside = comm.lock();
        if let Some(error) = inside.error {
            return Err(error);
        }
        // By the first question it is never done.
        let split = inside.split.as_ref().map(|split| &split.comm.gathering);
        let own = Some(&comm.gathering).filter(|_| comm.joined().is_none());
        let mut has_come = true;
        for gathering in own.into_iter().chain(split) {
            match gathering.look() {
                Ok(all) => has_come &= all,
                Err(sentence) => {
                    inside.error = Some(Status::INVALID_USAGE);
                    return Err(wrong(&sentence, Status::INVALID_USAGE));
                }
            }
        }
        let waits = !has_come || inside.polls > 0 && !comm.blocking;
        inside.polls = inside.polls.saturating_sub(1);
        if !waits && let Some(split) = inside.split.take() {
            split.out.put(split.handle)?;
            if split.handle == 0 {
                split.comm.gathering.leave(split.comm.old);
            }
        }
        waits
    };
    if comm.joined().is_none() || waits {
        return Err(Status::IN_PROGRESS);
    }
    catch_up(machine, comm)?;
    if comm.lock().life == Life::Finalized {
        drop(machine.step(machine.lock()));
        if has_work(machine, comm) {
            return Err(Status::IN_PROGRESS);
        }
    }
    Ok(())
}

fn split(
    handle: Handle,
    color: i32,
    key: i32,
    out: Out<Handle>,
    config: Array<Config>,
) -> Result<()> {
    let name = "ncclCommSplit";
    let using = comm::alone(handle, name)?;
    let parent = &using.0;
    let (rank, clique) = parent.usable(name)?;
    if out.is_null() || color < -1 {
        let sentence = format!("{name} of {} is called with color {color}.", parent.name());
        return Err(wrong(&sentence, Status::INVALID_ARGUMENT));
    }
    let blocking = blocks(config, parent.blocking)?;
    let machine = Machine::get()?;
    if has_work(machine, parent) {
        let sentence = format!(
            "{name} splits {} while an operation of it is under way: ranks may wait for each other for ever.",
            parent.name()
        );
        return Err(wrong(&sentence, Status::INVALID_USAGE));
    }
    machine.report.count(Count::Splits);
    let number = {
        let mut inside = parent.lock();
        inside.splits += 1;
        inside.splits
    };
    let gathering = Gathering::of(
        &format!("{}/{number}", clique.name),
        clique.ranks(),
        clique.is_shared(),
    );
    let (new, comm) = Comm::new(gathering, rank, parent.gpu, blocking);
    // -1 is `NCCL_SPLIT_NOCOLOR`: the rank takes part, and gets no communicator.
    let gets_one = color != -1;
    let handle = if gets_one { new } else { 0 };
    let record = record(clique.ranks(), parent.gpu, color, key)?;
    if parent.blocking {
        out.put(handle)?;
    } else {
        // As the library does: the old communicator is in progress until the ranks have come.
        let mut inside = parent.lock();
        inside.polls = 1;
        inside.split = Some(Splitting {
            comm: comm.clone(),
            out,
            handle,
        });
    }
    let joined = group::join(Joining {
        comm,
        record,
        gets_one: gets_one || !parent.blocking,
    });
    match joined {
        Ok(()) | Err(Status::IN_PROGRESS) if !parent.blocking => Err(Status::IN_PROGRESS),
        joined => {
            if let Some(split) = parent.lock().split.take() {
                split.give_up();
            }
            joined
        }
    }
}

api! {
    ncclGetVersion(version: Out<i32>) {
        Ok(version.put(VERSION)?)
    }

    ncclGetUniqueId(id: Out<UniqueId>) {
        shared::sweep();
        Ok(id.put(UniqueId::new())?)
    }

    ncclCommInitRank(comm: Out<Handle>, ranks: i32, id: UniqueId, rank: i32) {
        let gpu = current()?;
        join(comm, &id, ranks, rank, gpu, true)
    }

    ncclCommInitRankConfig(comm: Out<Handle>, ranks: i32, id: UniqueId, rank: i32, config: Array<Config>) {
        let gpu = current()?;
        join(comm, &id, ranks, rank, gpu, blocks(config, true)?)
    }

    ncclCommInitAll(comms: Out<Handle>, count: i32, devices: Array<i32>) {
        let id = UniqueId::new();
        group::start()?;
        for rank in 0..count {
            let device = match devices.is_null() {
                true => rank,
                false => devices.item(rank as usize)?,
            };
            let gpu = crate::driver::init::gpu(Machine::get()?, device);
            let joined = gpu.map_err(Status::from).and_then(|gpu| {
                join(comms.at(rank as usize), &id, count, rank, gpu, true)
            });
            if let Err(status) = joined {
                group::spoil(status);
            }
        }
        group::end()
    }

    ncclCommSplit(comm: Handle, color: i32, key: i32, new: Out<Handle>, config: Array<Config>) {
        split(comm, color, key, new, config)
    }

    ncclCommFinalize(comm: Handle) {
        let machine = Machine::get()?;
        let using = comm::alone(comm, "ncclCommFinalize")?;
        let comm = &using.0;
        comm.usable("ncclCommFinalize")?;
        comm.lock().life = Life::Finalized;
        if comm.blocking {
            return drain(machine, comm);
        }
        comm.lock().polls = 1;
        Err(Status::IN_PROGRESS)
    }

    ncclCommDestroy(comm: Handle) {
        if comm == 0 {
            return Ok(());
        }
        let machine = Machine::get()?;
        let using = comm::alone(comm, "ncclCommDestroy")?;
        let comm = &using.0;
        if comm.in_progress() {
            let sentence = format!("ncclCommDestroy ends {} while a call is in progress.", comm.name());
            return Err(wrong(&sentence, Status::INVALID_ARGUMENT));
        }
        drain(machine, comm)?;
        comm.lock().life = Life::Destroyed;
        comm.gathering.leave(comm.old);
        Ok(())
    }

    ncclCommAbort(comm: Handle) {
        if comm == 0 {
            return Ok(());
        }
        let machine = Machine::get()?;
        let comm = comm::alive(comm, "ncclCommAbort")?;
        {
            let mut inside = comm.lock();
            inside.life = Life::Aborted;
            inside.deferred.clear();
            if let Some(split) = inside.split.take() {
                split.give_up();
            }
        }
        comm.aborted.store(true, Ordering::Release);
        comm.gathering.leave(comm.old);
        machine.notify();
        Ok(())
    }

    ncclCommGetAsyncError(comm: Handle, status: Out<u32>) {
        let machine = Machine::get()?;
        let comm = comm::alive(comm, "ncclCommGetAsyncError")?;
        let now = progress(machine, &comm);
        Ok(status.put(now.map_or_else(|status| status.0, |()| 0))?)
    }

    ncclCommCount(comm: Handle, count: Out<i32>) {
        let comm = comm::alive(comm, "ncclCommCount")?;
        let (_, clique) = comm.usable("ncclCommCount")?;
        Ok(count.put(clique.ranks() as i32)?)
    }

    ncclCommCuDevice(comm: Handle, device: Out<i32>) {
        let comm = comm::alive(comm, "ncclCommCuDevice")?;
        comm.usable("ncclCommCuDevice")?;
        Ok(device.put(comm.gpu as i32)?)
    }

    ncclCommUserRank(comm: Handle, rank: Out<i32>) {
        let comm = comm::alive(comm, "ncclCommUserRank")?;
        let (own, _) = comm.usable("ncclCommUserRank")?;
        Ok(rank.put(own as i32)?)
    }
}

/// `ncclGetErrorString` of NCCL.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(status: u32) -> *const c_char {
    let text = match status {
        0 => c"no error",
        1 => c"unhandled cuda error",
        2 => c"unhandled system error",
        3 => c"internal error",
        4 => c"invalid argument",
        5 => c"invalid usage",
        6 => c"remote process exited or there was a network error",
        7 => c"operation in progress",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

/// `ncclGetLastError` of NCCL: the last thing that went wrong in this process.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(_comm: Handle) -> *const c_char {
    let last = LAST.load(Ordering::Acquire).cast_const();
    if last.is_null() { null() } else { last }
}
