//! Calls between `ncclGroupStart` and `ncclGroupEnd`: they are collected for each thread, and made together at the
//! outermost end. A call outside is a group of its own.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use super::comm::{Comm, Life};
use super::gather::Record;
use super::launch::launch;
use super::post::Request;
use super::{Result, Status, wrong};
use crate::device::machine::Machine;

/// A rank that joins a communicator.
pub struct Joining {
    /// Its communicator.
    pub comm: Arc<Comm>,
    /// What it says of itself.
    pub record: Record,
    /// Whether there is a communicator to wait for: in a split a rank may take part and get none.
    pub gets_one: bool,
}

/// A call of a communicator on a stream.
struct Made {
    comm: Arc<Comm>,
    stream: usize,
    request: Request,
}

#[derive(Default)]
struct Group {
    depth: u32,
    joining: Vec<Joining>,
    made: Vec<Made>,
    error: Option<Status>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

fn group<T>(read: impl FnOnce(&mut Group) -> T) -> Result<T> {
    let read = GROUP.try_with(|group| read(&mut group.borrow_mut()));
    read.map_err(|_| Status::INVALID_USAGE)
}

/// Begins a group.
///
/// # Errors
/// The thread ends.
pub fn start() -> Result<()> {
    group(|group| group.depth += 1)
}

/// Ends a group.
///
/// # Errors
/// There is none; or what the calls of the group return.
pub fn end() -> Result<()> {
    let closed = group(|group| match group.depth {
        0 => None,
        1 => Some(Some(std::mem::take(group))),
        _ => {
            group.depth -= 1;
            Some(None)
        }
    })?;
    let Some(closed) = closed else {
        let sentence = "ncclGroupEnd is called without ncclGroupStart.";
        return Err(wrong(sentence, Status::INVALID_USAGE));
    };
    closed.map_or(Ok(()), run)
}

/// Makes a rank join, now or at the end of the group.
///
/// # Errors
/// What the end of a group returns.
pub fn join(joining: Joining) -> Result<()> {
    add(|group| group.joining.push(joining))
}

/// Makes a call, now or at the end of the group.
///
/// # Errors
/// What the end of a group returns.
pub fn make(comm: Arc<Comm>, stream: usize, request: Request) -> Result<()> {
    add(|group| {
        group.made.push(Made {
            comm,
            stream,
            request,
        })
    })
}

fn add(add: impl FnOnce(&mut Group)) -> Result<()> {
    start()?;
    group(add)?;
    end()
}

/// A call within the group has failed: nothing of the group is made.
pub fn spoil(status: Status) {
    let _ = group(|group| {
        if group.depth > 0 {
            group.error.get_or_insert(status);
        }
    });
}

fn run(closed: Group) -> Result<()> {
    let Group {
        joining,
        made,
        error,
        ..
    } = closed;
    if let Some(error) = error {
        return Err(error);
    }
    let machine = Machine::get()?;
    let comms = joining.iter().map(|joining| &joining.comm);
    let mut comms = comms.chain(made.iter().map(|made| &made.comm));
    if let Some(first) = comms.next()
        && comms.any(|other| other.blocking != first.blocking)
    {
        let sentence = "A group has calls of communicators that block and of such that do not.";
        return Err(wrong(sentence, Status::INVALID_ARGUMENT));
    }
    let mut in_progress = false;
    for Joining {
        comm,
        record,
        gets_one,
    } in &joining
    {
        if let Err(sentence) = comm.gathering.put(comm.old, record.clone()) {
            comm.lock().error = Some(Status::INVALID_USAGE);
            return Err(wrong(&sentence, Status::INVALID_USAGE));
        }
        in_progress |= *gets_one && !comm.blocking;
        if !gets_one {
            comm.gathering.leave(comm.old);
        }
    }
    machine.notify();
    for Joining { comm, gets_one, .. } in &joining {
        if *gets_one && comm.blocking {
            wait(machine, comm)?;
        }
    }
    // Calls of one communicator on one stream are made together, each communicator's in the order of its first call.
    let mut batches: Vec<(Arc<Comm>, usize, Vec<Request>)> = Vec::new();
    for Made {
        comm,
        stream,
        request,
    } in made
    {
        let mut known = batches.iter_mut();
        match known.find(|(other, on, _)| Arc::ptr_eq(other, &comm) && *on == stream) {
            Some((_, _, requests)) => requests.push(request),
            None => batches.push((comm, stream, vec![request])),
        }
    }
    let is_put_off = machine.lock().random().is_multiple_of(2);
    for (comm, stream, requests) in batches {
        if !comm.blocking && is_put_off {
            let mut inside = comm.lock();
            inside.deferred.push((stream, requests));
            inside.polls = 1;
            in_progress = true;
            continue;
        }
        if let Err(status) = launch(machine, &comm, stream, &requests) {
            comm.lock().error = Some(status);
            return Err(status);
        }
    }
    match in_progress {
        true => Err(Status::IN_PROGRESS),
        false => Ok(()),
    }
}

/// Waits until all ranks have joined.
fn wait(machine: &Machine, comm: &Comm) -> Result<()> {
    let start = std::time::Instant::now();
    while comm.joined().is_none() {
        if comm.lock().life == Life::Aborted {
            return Err(Status::INVALID_USAGE);
        }
        if let Err(sentence) = comm.gathering.look() {
            comm.lock().error = Some(Status::INVALID_USAGE);
            return Err(wrong(&sentence, Status::INVALID_USAGE));
        }
        if start.elapsed() > 10 * machine.settings.patience {
            let sentence = format!(
                "Rank {} waits to join a communicator, and these ranks have not come: {:?}.",
                comm.old,
                comm.gathering.missing()
            );
            return Err(wrong(&sentence, Status::SYSTEM_ERROR));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
