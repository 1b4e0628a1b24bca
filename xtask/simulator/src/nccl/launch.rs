//! From calls to operations: calls that are made together get their places in a stream, and meet those of other ranks.

use std::sync::Arc;

use super::call::Kind;
use super::comm::{Comm, Life};
use super::gather::Clique;
use super::meeting::{Key, Place, Placed};
use super::order;
use super::post::{Batch, Finish, Item, Post, Request};
use super::reduce::Turn;
use super::{Result, Status, wrong};
use crate::device::machine::Machine;
use crate::device::operation::Work;

/// Puts calls of one communicator that belong together into a stream.
///
/// # Errors
/// The context of the stream has failed, or a buffer was freed.
pub fn launch(machine: &Machine, comm: &Comm, stream: usize, requests: &[Request]) -> Result<()> {
    let Some((rank, clique)) = comm.joined() else {
        return Err(Status::INVALID_ARGUMENT);
    };
    let mut state = machine.room(machine.lock(), stream);
    let gpu = state.streams[stream].gpu;
    state.context(gpu)?;
    let items = requests
        .iter()
        .map(|request| item(comm, *rank, clique, request));
    let batch = Batch {
        items: items.collect(),
        rank: *rank,
        ranks: clique.ranks(),
        aborted: comm.aborted.clone(),
    };
    let works = [
        Work::Custom(Box::new(Post(batch.clone()))),
        Work::Custom(Box::new(Finish(batch.clone()))),
    ];
    for work in &works {
        machine.refuse_stale(&mut state, gpu, work)?;
    }
    let [post, finish] = works;
    state.enqueue(stream, post, Vec::new(), None);
    let clock = state.streams[stream].clock.clone();
    let finish = state.enqueue(stream, finish, Vec::new(), None);
    comm.lock().last.insert(stream, finish);
    let mut sentences = Vec::new();
    for item in batch.items.iter() {
        let placed = Placed {
            rank: *rank,
            call: item.request.call,
            place: Place {
                stream,
                finish,
                clock: clock.clone(),
            },
        };
        let turn = Turn(state.random());
        sentences.extend(item.meeting.place(item.party, placed, turn));
        if let Some(calls) = item.meeting.called() {
            order::join(&mut state, &calls);
        }
    }
    for item in batch.items.iter() {
        sentences.extend(order::circle(&item.meeting));
    }
    drop(state);
    machine.notify();
    if !machine.settings.nccl_hangs {
        for sentence in sentences {
            wrong(&sentence, Status::INVALID_USAGE);
        }
    }
    Ok(())
}

/// Where a call meets the others'.
fn item(comm: &Comm, rank: usize, clique: &Arc<Clique>, request: &Request) -> Item {
    let mut inside = comm.lock();
    let mut pair = |sends, peer| {
        let count = inside.pairs.entry((sends, peer)).or_default();
        *count += 1;
        *count
    };
    let (key, party) = match request.call.kind {
        Kind::Send(to) => {
            let number = pair(true, to);
            (
                Key::Pair {
                    from: rank,
                    to,
                    number,
                },
                0,
            )
        }
        Kind::Recv(from) => {
            let number = pair(false, from);
            (
                Key::Pair {
                    from,
                    to: rank,
                    number,
                },
                1,
            )
        }
        _ => {
            inside.collectives += 1;
            (Key::Collective(inside.collectives), rank)
        }
    };
    Item {
        request: *request,
        meeting: clique.meeting(key),
        party,
    }
}

/// Gives the calls that were put off their places.
///
/// # Errors
/// As [`launch`]; the communicator keeps the error.
pub fn catch_up(machine: &Machine, comm: &Comm) -> Result<()> {
    let _alone = comm.catching_up.lock();
    let deferred = std::mem::take(&mut comm.lock().deferred);
    for (stream, requests) in deferred {
        if comm.lock().life == Life::Aborted {
            break;
        }
        if let Err(status) = launch(machine, comm, stream, &requests) {
            comm.lock().error = Some(status);
            return Err(status);
        }
    }
    Ok(())
}
