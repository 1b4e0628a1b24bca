//! The collectives, sends and receives of the interface, and groups.

use super::call::{Call, Kind};
use super::comm::{self, Comm};
use super::post::Request;
use super::reduce::{Data, Reduction};
use super::{Result, Status, api, group, wrong};
use crate::device::machine::Machine;
use crate::driver::handles::{self, Handle};

/// What a call of the interface gets besides its kind.
struct Arguments {
    buffers: [u64; 2],
    count: usize,
    data: u32,
    comm: Handle,
    stream: Handle,
}

/// A root or a peer.
fn number(name: &str, rank: i32) -> Result<usize> {
    rank.try_into().map_err(|_| {
        let sentence = format!("{name} is called with rank {rank}.");
        wrong(&sentence, Status::INVALID_ARGUMENT)
    })
}

fn reduction(name: &str, number: u32) -> Result<Reduction> {
    Reduction::of(number).ok_or_else(|| {
        let sentence = format!("{name} is called with reduction {number}, which is not simulated.");
        wrong(&sentence, Status::INVALID_ARGUMENT)
    })
}

/// Makes a call, if it is right so far.
fn make(kind: Result<Kind>, arguments: Arguments) -> Result<()> {
    let made = kind.and_then(|kind| checked(kind, arguments));
    if let Err(status) = made
        && status != Status::IN_PROGRESS
    {
        group::spoil(status);
    }
    made
}

fn checked(kind: Kind, arguments: Arguments) -> Result<()> {
    let Arguments {
        buffers: [send, receive],
        count,
        data,
        comm,
        stream,
    } = arguments;
    let name = kind.name();
    let machine = Machine::get()?;
    let using = comm::alone(comm, name)?;
    let comm = &using.0;
    let (rank, clique) = comm.usable(name)?;
    let invalid = |what: String| {
        let sentence = format!("{name} of {} is called with {what}.", comm.name());
        Err(wrong(&sentence, Status::INVALID_ARGUMENT))
    };
    let Some(data) = Data::of(data) else {
        return invalid(format!("elements of type {data}, which is not simulated"));
    };
    if let Some(other) = kind.other().filter(|other| *other >= clique.ranks()) {
        return invalid(format!("rank {other}"));
    }
    let count = count as u64;
    if count.checked_mul(8 * clique.ranks() as u64).is_none() {
        return invalid(format!("{count} elements"));
    }
    let call = Call { kind, count, data };
    let ranges = [
        ("send", send, call.reads(rank, clique.ranks())),
        ("receive", receive, call.writes(rank, clique.ranks())),
    ];
    for (which, at, len) in ranges {
        if len == 0 {
            continue;
        }
        if at == 0 {
            return invalid(format!("a {which} buffer that is null"));
        }
        if at % data.size() != 0 {
            return invalid(format!(
                "a {which} buffer at {at:#x}, which does not fit its type"
            ));
        }
        if let Some(gpu) = machine.space.gpu_of(at).filter(|gpu| *gpu != comm.gpu) {
            return invalid(format!(
                "a {which} buffer of GPU {gpu}, and uses GPU {}",
                comm.gpu
            ));
        }
    }
    let [(_, send, reads), (_, receive, writes)] = ranges;
    let overlaps = send < receive.saturating_add(writes) && receive < send.saturating_add(reads);
    let in_place = call.in_place(rank);
    if reads > 0 && writes > 0 && overlaps && in_place != Some(send.wrapping_sub(receive) as i64) {
        return invalid("buffers that overlap, and not as a call in place has them".into());
    }
    let stream = stream_of(machine, comm, name, stream)?;
    let request = Request {
        call,
        send,
        receive,
    };
    group::make(comm.clone(), stream, request)
}

/// The number of a stream of the communicator's GPU.
fn stream_of(machine: &Machine, comm: &Comm, name: &str, stream: Handle) -> Result<usize> {
    let mut state = machine.lock();
    let stream = match stream {
        0 | 1 => {
            state.context(comm.gpu)?;
            state.contexts[comm.gpu].default_stream
        }
        _ => handles::stream(machine, &mut state, stream)?,
    };
    if state.streams[stream].gpu != comm.gpu {
        let sentence = format!(
            "{name} of {} on GPU {} is called with {}.",
            comm.name(),
            comm.gpu,
            state.name(stream)
        );
        return Err(wrong(&sentence, Status::INVALID_USAGE));
    }
    Ok(stream)
}

api! {
    ncclAllReduce(
        send: u64, receive: u64, count: usize, data: u32, op: u32, comm: Handle, stream: Handle,
    ) {
        let kind = reduction("ncclAllReduce", op).map(Kind::AllReduce);
        make(kind, Arguments { buffers: [send, receive], count, data, comm, stream })
    }

    ncclReduce(
        send: u64, receive: u64, count: usize, data: u32, op: u32, root: i32, comm: Handle, stream: Handle,
    ) {
        let name = "ncclReduce";
        let kind = reduction(name, op).and_then(|op| Ok(Kind::Reduce(op, number(name, root)?)));
        make(kind, Arguments { buffers: [send, receive], count, data, comm, stream })
    }

    ncclReduceScatter(
        send: u64, receive: u64, count: usize, data: u32, op: u32, comm: Handle, stream: Handle,
    ) {
        let kind = reduction("ncclReduceScatter", op).map(Kind::ReduceScatter);
        make(kind, Arguments { buffers: [send, receive], count, data, comm, stream })
    }

    ncclBroadcast(
        send: u64, receive: u64, count: usize, data: u32, root: i32, comm: Handle, stream: Handle,
    ) {
        let kind = number("ncclBroadcast", root).map(Kind::Broadcast);
        make(kind, Arguments { buffers: [send, receive], count, data, comm, stream })
    }

    ncclBcast(buffer: u64, count: usize, data: u32, root: i32, comm: Handle, stream: Handle) {
        let kind = number("ncclBcast", root).map(Kind::Broadcast);
        make(kind, Arguments { buffers: [buffer, buffer], count, data, comm, stream })
    }

    ncclAllGather(send: u64, receive: u64, count: usize, data: u32, comm: Handle, stream: Handle) {
        let kind = Ok(Kind::AllGather);
        make(kind, Arguments { buffers: [send, receive], count, data, comm, stream })
    }

    ncclAlltoAll(send: u64, receive: u64, count: usize, data: u32, comm: Handle, stream: Handle) {
        let kind = Ok(Kind::AllToAll);
        make(kind, Arguments { buffers: [send, receive], count, data, comm, stream })
    }

    ncclGather(
        send: u64, receive: u64, count: usize, data: u32, root: i32, comm: Handle, stream: Handle,
    ) {
        let kind = number("ncclGather", root).map(Kind::Gather);
        make(kind, Arguments { buffers: [send, receive], count, data, comm, stream })
    }

    ncclScatter(
        send: u64, receive: u64, count: usize, data: u32, root: i32, comm: Handle, stream: Handle,
    ) {
        let kind = number("ncclScatter", root).map(Kind::Scatter);
        make(kind, Arguments { buffers: [send, receive], count, data, comm, stream })
    }

    ncclSend(send: u64, count: usize, data: u32, peer: i32, comm: Handle, stream: Handle) {
        let kind = number("ncclSend", peer).map(Kind::Send);
        make(kind, Arguments { buffers: [send, 0], count, data, comm, stream })
    }

    ncclRecv(receive: u64, count: usize, data: u32, peer: i32, comm: Handle, stream: Handle) {
        let kind = number("ncclRecv", peer).map(Kind::Recv);
        make(kind, Arguments { buffers: [0, receive], count, data, comm, stream })
    }

    ncclGroupStart() {
        group::start()
    }

    ncclGroupEnd() {
        group::end()
    }
}
