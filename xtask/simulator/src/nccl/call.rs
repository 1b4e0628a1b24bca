//! One call of a rank: what it asks for, what it gives to the others, and what it gets.

use std::fmt;

use super::reduce::{Data, Reduction, Turn, reduce};

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `ncclAllReduce`.
    AllReduce(Reduction),
    /// `ncclReduce`, to a root.
    Reduce(Reduction, usize),
    /// `ncclReduceScatter`.
    ReduceScatter(Reduction),
    /// `ncclBroadcast`, from a root.
    Broadcast(usize),
    /// `ncclAllGather`.
    AllGather,
    /// `ncclAlltoAll`.
    AllToAll,
    /// `ncclGather`, to a root.
    Gather(usize),
    /// `ncclScatter`, from a root.
    Scatter(usize),
    /// `ncclSend`, to a peer.
    Send(usize),
    /// `ncclRecv`, from a peer.
    Recv(usize),
}

impl Kind {
    /// What NCCL calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::AllReduce(_) => "ncclAllReduce",
            Kind::Reduce(..) => "ncclReduce",
            Kind::ReduceScatter(_) => "ncclReduceScatter",
            Kind::Broadcast(_) => "ncclBroadcast",
            Kind::AllGather => "ncclAllGather",
            Kind::AllToAll => "ncclAlltoAll",
            Kind::Gather(_) => "ncclGather",
            Kind::Scatter(_) => "ncclScatter",
            Kind::Send(_) => "ncclSend",
            Kind::Recv(_) => "ncclRecv",
        }
    }

    /// The root or the peer.
    pub fn other(self) -> Option<usize> {
        match self {
            Kind::Reduce(_, root) | Kind::Broadcast(root) => Some(root),
            Kind::Gather(root) | Kind::Scatter(root) => Some(root),
            Kind::Send(peer) | Kind::Recv(peer) => Some(peer),
            _ => None,
        }
    }
}

/// What all ranks of a collective, or the two of a send and a receive, must agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// What it does.
    pub kind: Kind,
    /// Elements, as the call counts them.
    pub count: u64,
    /// Their type.
    pub data: Data,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Call { kind, count, data } = self;
        write!(f, "{} of {count} {}", kind.name(), data.name())?;
        match kind {
            Kind::AllReduce(reduction) | Kind::ReduceScatter(reduction) => {
                write!(f, " by {}", reduction.name())
            }
            Kind::Reduce(reduction, root) => write!(f, " by {} to root {root}", reduction.name()),
            Kind::Broadcast(root) | Kind::Scatter(root) => write!(f, " from root {root}"),
            Kind::Gather(root) => write!(f, " to root {root}"),
            Kind::Send(peer) => write!(f, " to rank {peer}"),
            Kind::Recv(peer) => write!(f, " from rank {peer}"),
            Kind::AllGather | Kind::AllToAll => Ok(()),
        }
    }
}

impl Call {
    /// What it must have in common with the calls that it meets.
    pub fn common(&self) -> String {
        match self.kind {
            Kind::Send(_) | Kind::Recv(_) => format!("{} {}", self.count, self.data.name()),
            _ => self.to_string(),
        }
    }

    /// Bytes that a rank of so many reads from its send buffer.
    pub fn reads(&self, rank: usize, ranks: usize) -> u64 {
        let one = self.count * self.data.size();
        match self.kind {
            Kind::ReduceScatter(_) | Kind::AllToAll => one * ranks as u64,
            Kind::Broadcast(root) if root != rank => 0,
            Kind::Scatter(root) if root != rank => 0,
            Kind::Scatter(_) => one * ranks as u64,
            Kind::Recv(_) => 0,
            _ => one,
        }
    }

    /// Bytes that a rank of so many writes to its receive buffer.
    pub fn writes(&self, rank: usize, ranks: usize) -> u64 {
        let one = self.count * self.data.size();
        match self.kind {
            Kind::AllGather | Kind::AllToAll => one * ranks as u64,
            Kind::Reduce(_, root) | Kind::Gather(root) if root != rank => 0,
            Kind::Gather(_) => one * ranks as u64,
            Kind::Send(_) => 0,
            _ => one,
        }
    }

    /// Where the send buffer lies in the receive buffer, or the other way round, if a rank calls it in place: how many
    /// bytes the send buffer begins after the receive buffer.
    pub fn in_place(&self, rank: usize) -> Option<i64> {
        let one = (self.count * self.data.size()) as i64;
        match self.kind {
            Kind::AllReduce(_) | Kind::Reduce(..) | Kind::Broadcast(_) => Some(0),
            Kind::AllGather | Kind::Gather(_) => Some(rank as i64 * one),
            Kind::ReduceScatter(_) | Kind::Scatter(_) => Some(-(rank as i64) * one),
            Kind::AllToAll | Kind::Send(_) | Kind::Recv(_) => None,
        }
    }

    /// What a rank gets when all have given.
    pub fn result(&self, rank: usize, turn: Turn, given: &[&[u8]]) -> Vec<u8> {
        let one = (self.count * self.data.size()) as usize;
        let mine = rank * one..(rank + 1) * one;
        match self.kind {
            Kind::AllReduce(reduction) => reduce(self.data, reduction, turn, given),
            Kind::Reduce(reduction, root) if root == rank => {
                reduce(self.data, reduction, turn, given)
            }
            Kind::ReduceScatter(reduction) => {
                let parts: Vec<_> = given.iter().map(|given| &given[mine.clone()]).collect();
                reduce(self.data, reduction, turn, &parts)
            }
            Kind::Broadcast(root) => given[root].to_vec(),
            Kind::AllGather => given.concat(),
            Kind::Gather(root) if root == rank => given.concat(),
            Kind::Scatter(root) => given[root][mine].to_vec(),
            Kind::AllToAll => {
                let parts = given.iter().map(|given| &given[mine.clone()]);
                parts.flatten().copied().collect()
            }
            Kind::Recv(_) => given[0].to_vec(),
            Kind::Reduce(..) | Kind::Gather(_) | Kind::Send(_) => Vec::new(),
        }
    }
}
