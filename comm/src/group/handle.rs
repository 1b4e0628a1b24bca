//! [`Group`]: the process group that all engines share. It checks arguments, sends each call to the engine for its
//! device, and keeps a record.

use super::ProcessGroup;
use super::batch::{self, Message};
use super::engines::Engines;
use super::record::{Flight, GroupRecord, Record, Ticket};
use crate::backends::nccl::{self, UnderWays};
use crate::backends::{Backend, watcher};
use crate::check::{self, Call, Room};
use crate::error::{Error, Result};
use crate::meeting::naming;
use crate::membership::Membership;
use crate::op::{Label, Name, Op, Promises, ReduceOp};
use crate::sync::Mutex;
use crate::work::{Outcome, Tickets, Work};
use phalanx_tensor::{DType, Device, Shape, Tensor};
use smallvec::smallvec;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// One rank's handle on a group, over the engines that carry its calls out.
#[derive(Clone)]
pub(crate) struct Group {
    inner: Arc<Inner>,
    label: Option<Arc<Label>>,
}

struct Inner {
    engines: Engines,
    /// Held while a split takes its number and is issued: two of one rank never have the same.
    splits: Mutex<()>,
    record: Arc<GroupRecord>,
    flight: Arc<Flight>,
}

impl Group {
    /// The group that these engines, which agree on who is in it, carry. Its calls are kept in `flight`, beside those
    /// of the rank's other groups.
    pub(crate) fn new(engines: Engines, flight: Arc<Flight>) -> Group {
        let record = flight.group(Arc::clone(&engines.host.membership().name));
        Group {
            inner: Arc::new(Inner {
                engines,
                splits: Mutex::default(),
                record,
                flight,
            }),
            label: None,
        }
    }

    /// A world that one engine carries.
    pub(crate) fn world(host: impl Backend + 'static) -> Group {
        let engines = Engines {
            host: Arc::new(host),
            cards: Vec::new(),
            under_way: UnderWays::default(),
        };
        Group::new(engines, Arc::default())
    }

    /// A world whose results live on a card, if one is given: then NCCL carries the tensors of cards.
    ///
    /// # Errors
    /// The world's failure; there is no NCCL.
    pub(crate) fn world_on(host: impl Backend + 'static, card: Option<Device>) -> Result<Group> {
        let host: Arc<dyn Backend> = Arc::new(host);
        let under_way = UnderWays::default();
        let cards = match card {
            None => Vec::new(),
            Some(card) => nccl::beside(&host, &[card], &under_way)?,
        };
        let engines = Engines {
            host,
            cards,
            under_way,
        };
        Ok(Group::new(engines, Arc::default()))
    }

    pub(crate) fn flight(&self) -> &Arc<Flight> {
        &self.inner.flight
    }

    fn membership(&self) -> &Membership {
        self.inner.engines.host.membership()
    }

    /// Makes what the ranks of a world make together; each one calls it on its own thread, before its program. Where
    /// that fails, the world has failed, and the program hears of it at its first call.
    pub(crate) fn connect(&self) {
        let _ = watcher::unheard(|| self.inner.engines.all().try_for_each(Backend::connect));
    }

    /// Declares that this rank will issue nothing more. Who waits for it is told at once.
    pub(crate) fn depart(&self) {
        // What is under way on the card needs the host's engine still.
        let Engines { host, cards, .. } = &self.inner.engines;
        cards.iter().for_each(|engine| engine.depart());
        host.depart();
    }

    /// Ends the world with this error, unless it has failed already.
    pub(crate) fn fail(&self, error: Error) {
        for engine in self.inner.engines.all() {
            engine.fail(error.clone());
        }
    }

    /// The engine for the tensors of a checked call.
    fn engine(&self, call: &Call) -> Result<&dyn Backend> {
        let engines = &self.inner.engines;
        let wrong = |reason: String| Error::InvalidArgument {
            op: call.signature.op.name(),
            rank: self.membership().world_rank(),
            reason,
        };
        // What only comes lives where this rank's results do; what has no tensor is small talk, too.
        let device = match (call.inputs.first(), call.outputs.first()) {
            (Some(tensor), _) => tensor.device(),
            (None, Some(Room::Given(tensor))) => tensor.device(),
            (None, Some(Room::New(_))) => self.device(),
            (None, None) => {
                return Ok(match call.signature.op {
                    Op::Barrier | Op::Split => &*engines.host,
                    _ => engines.main(), // of no tensors
                });
            }
        };
        if let Some(other) = call.inputs.iter().find(|t| t.device() != device) {
            let other = other.device();
            let reason = format!("its tensors are on two devices, {device} and {other}");
            return Err(wrong(reason));
        }
        engines.of(device).ok_or_else(|| {
            let name = engines.main().name();
            let cards: Vec<String> = engines.devices().iter().map(Device::to_string).collect();
            let carries = match &*cards {
                [] => "tensors of the host alone".to_owned(),
                cards => format!(
                    "those of {} on this rank (with_cards makes a group over more)",
                    cards.join(", ")
                ),
            };
            wrong(format!(
                "its tensor is on {device}, and {name} carries {carries}"
            ))
        })
    }

    /// Asks, for calls of which none goes without the others, whether each of them can be issued. They have their memory;
    /// then only the world's failure is left to keep one back.
    fn admit(&self, calls: &[Call]) -> Result<()> {
        let admit = |call: &Call| -> Result<()> {
            let engine = self.engine(call)?;
            engine.admit(call)?;
            let op = call.signature.op.name();
            let lost = call.inputs.iter().map(|t| t.check_last_write(op));
            lost.collect::<Result<(), _>>().or_else(|lost| {
                engine.refuse()?; // with the world, what is under way on its cards is lost
                Err(lost.into())
            })
        };
        let record = &self.inner.record;
        calls.iter().try_for_each(admit).inspect_err(|_| {
            let calls = calls.iter().map(|call| record.issue(&call.signature));
            calls.for_each(|ticket| ticket.refused());
        })
    }

    /// Hands a checked call to its engine, with the label that this handle's calls carry.
    fn issue<T: Outcome>(&self, mut call: Call) -> Result<Work<T>> {
        call.signature.label = self.label.clone();
        let engine = self.engine(&call)?;
        let ticket = self.inner.record.issue(&call.signature);
        let pending = engine.issue(call).inspect_err(|_| ticket.refused())?;
        Ok(Work::new(pending, smallvec![ticket]))
    }

    /// Hands checked calls that run together to their engine: messages, all of one device. All of them have their memory
    /// and are admitted before the first one is issued, so none of them goes without the next.
    fn issue_together<T: Outcome>(&self, calls: Vec<Call>) -> Result<Work<T>> {
        let device = self.device();
        let calls = calls.into_iter().map(|call| call.with_memory(device));
        let mut calls = calls.collect::<Result<Vec<_>>>()?;
        let mut engine = &*self.inner.engines.host;
        for (at, call) in calls.iter_mut().enumerate() {
            call.signature.label = self.label.clone();
            let own = self.engine(call)?;
            if at > 0 && !std::ptr::addr_eq(own, engine) {
                return Err(Error::InvalidArgument {
                    op: call.signature.op.name(),
                    rank: self.membership().world_rank(),
                    reason: "what runs together is all in the host's memory, or all on one card"
                        .into(),
                });
            }
            engine = own;
        }
        self.admit(&calls)?;
        let tickets = calls
            .iter()
            .map(|call| self.inner.record.issue(&call.signature));
        let tickets: Tickets = tickets.collect();
        let refused = |_: &Error| tickets.iter().for_each(Ticket::refused);
        let pending = engine.issue_together(calls).inspect_err(refused)?;
        Ok(Work::new(pending, tickets))
    }

    /// Splits the group; the new one is over these cards of this rank.
    fn split_over(
        &self,
        color: Option<u32>,
        key: i32,
        cards: &[Device],
    ) -> Result<Option<Arc<dyn ProcessGroup>>> {
        let old = self.membership();
        let mine = &self.inner.engines;
        let held = match !cards.is_empty() && cards == mine.devices() {
            true => nccl::hold(&mine.cards, &mine.under_way),
            false => None,
        };
        let call = check::split(old, color, key, held.is_some())?;
        let (number, work) = {
            let _turn = self.inner.splits.lock();
            (
                self.inner.engines.host.issued(),
                self.issue::<Tensor>(call)?,
            )
        };
        let all = work.wait()?;
        let all = all.to_vec::<i64>()?;
        let (choices, _) = all.as_chunks();
        let members = naming::members(choices, old.rank);
        let held = held.filter(|_| naming::all_ready(choices));
        let (Some(color), Some(members)) = (color, members) else {
            held.map_or(Ok(()), |held| held.split(&[], 0))?;
            return Ok(None);
        };
        let Some(new) = naming::split_off(old, number, color, &members) else {
            return Ok(None); // no rank of a color is missing from its members
        };
        let engines = mine.split_off(&new, cards)?;
        held.map_or(Ok(()), |held| held.split(&engines.cards, members[0]))?;
        engines.all().try_for_each(Backend::connect)?;
        let group = Group::new(engines, Arc::clone(&self.inner.flight));
        Ok(Some(Arc::new(group)))
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let me = self.membership();
        write!(
            f,
            "Group(rank {} of {} in {}, {})",
            me.rank,
            me.size(),
            me.name,
            self.inner.engines.host.name()
        )
    }
}

impl ProcessGroup for Group {
    fn rank(&self) -> usize {
        self.membership().rank
    }

    fn size(&self) -> usize {
        self.membership().size()
    }

    fn backend(&self) -> &'static str {
        self.inner.engines.main().name()
    }

    fn name(&self) -> &str {
        &self.membership().name
    }

    fn world_ranks(&self) -> &[usize] {
        &self.membership().world_ranks
    }

    fn device(&self) -> Device {
        self.inner.engines.main().membership().device
    }

    fn deadline(&self) -> Duration {
        self.membership().deadline
    }

    fn all_reduce(&self, tensor: Tensor, op: ReduceOp) -> Result<Work<Tensor>> {
        let call = check::all_reduce(self.membership(), tensor, op)?;
        self.issue(call)
    }

    fn all_reduce_many(&self, tensors: Vec<Tensor>, op: ReduceOp) -> Result<Work<Vec<Tensor>>> {
        let call = check::all_reduce_many(self.membership(), tensors, op)?;
        self.issue(call)
    }

    fn broadcast_many(&self, tensors: Vec<Tensor>, root: usize) -> Result<Work<Vec<Tensor>>> {
        let call = check::broadcast_many(self.membership(), tensors, root)?;
        self.issue(call)
    }

    fn all_gather_into(&self, into: Tensor, tensor: Tensor) -> Result<Work<Tensor>> {
        let call = check::all_gather_into(self.membership(), into, tensor)?;
        self.issue(call)
    }

    fn reduce_scatter_many(&self, tensors: Vec<Tensor>, op: ReduceOp) -> Result<Work<Vec<Tensor>>> {
        let call = check::reduce_scatter_many(self.membership(), tensors, op)?;
        self.issue(call)
    }

    fn broadcast(&self, tensor: Tensor, root: usize) -> Result<Work<Tensor>> {
        let call = check::broadcast(self.membership(), tensor, root)?;
        self.issue(call)
    }

    fn reduce(&self, tensor: Tensor, op: ReduceOp, root: usize) -> Result<Work<Option<Tensor>>> {
        let call = check::reduce(self.membership(), tensor, op, root)?;
        self.issue(call)
    }

    fn all_gather(&self, tensor: Tensor) -> Result<Work<Tensor>> {
        let call = check::all_gather(self.membership(), tensor)?;
        self.issue(call)
    }

    fn gather(&self, tensor: Tensor, root: usize) -> Result<Work<Option<Tensor>>> {
        let call = check::gather(self.membership(), tensor, root)?;
        self.issue(call)
    }

    fn scatter(
        &self,
        parts: Option<Tensor>,
        shape: Shape,
        dtype: DType,
        root: usize,
    ) -> Result<Work<Tensor>> {
        let call = check::scatter(self.membership(), parts, shape, dtype, root)?;
        self.issue(call)
    }

    fn reduce_scatter(&self, tensor: Tensor, op: ReduceOp) -> Result<Work<Tensor>> {
        let call = check::reduce_scatter(self.membership(), tensor, op)?;
        self.issue(call)
    }

    fn all_to_all(&self, tensor: Tensor) -> Result<Work<Tensor>> {
        let call = check::all_to_all(self.membership(), tensor)?;
        self.issue(call)
    }

    fn all_to_all_v(&self, tensor: Tensor, send: &[usize], recv: &[usize]) -> Result<Work<Tensor>> {
        let call = check::all_to_all_v(self.membership(), tensor, send, recv)?;
        self.issue(call)
    }

    fn send(&self, tensor: Tensor, destination: usize, tag: u32) -> Result<Work<()>> {
        let call = check::send(self.membership(), tensor, destination, tag)?;
        self.issue(call)
    }

    fn recv(&self, shape: Shape, dtype: DType, source: usize, tag: u32) -> Result<Work<Tensor>> {
        let call = check::recv(self.membership(), shape, dtype, source, tag)?;
        self.issue(call)
    }

    fn barrier(&self) -> Result<Work<()>> {
        self.issue(check::barrier())
    }

    fn batch(&self, messages: Vec<Message>) -> Result<Work<Vec<Tensor>>> {
        let me = self.membership();
        let calls = messages.into_iter().map(|message| message.check(me));
        self.issue_together(calls.collect::<Result<_>>()?)
    }

    fn send_any(&self, tensor: Tensor, destination: usize, tag: u32) -> Result<Work<()>> {
        let me = self.membership();
        let head = batch::head(me, &self.inner.engines.devices(), &tensor)?;
        let head = check::send(me, head, destination, tag)?;
        let tensor = check::send(me, tensor, destination, tag)?.with_memory(me.device)?;
        // Before the head is issued: the one never goes without the other.
        let calls = [head, tensor];
        self.admit(&calls)?;
        let [head, tensor] = calls;
        let works: [Work<()>; 2] = [self.issue(head)?, self.issue(tensor)?];
        Ok(Work::all(works))
    }

    fn recv_any(&self, source: usize, tag: u32) -> Result<Work<Tensor>> {
        let me = self.membership();
        let head = check::recv(me, batch::HEAD.into(), DType::I64, source, tag)?;
        let head = head.with_memory(batch::host(me))?;
        let head = self.issue::<Tensor>(head)?.wait()?;
        let head = batch::read_head(me, &head)?;
        let cards = self.inner.engines.devices();
        let tensor = batch::behind(me, head, &cards, source, tag);
        tensor.and_then(|call| self.issue(call)).map_err(|error| {
            // The tensor has been sent, and would be taken for the next message.
            self.abort(&format!("recv_any from {source}: {error}"));
            self.inner.engines.host.refuse().err().unwrap_or(error)
        })
    }

    fn split(&self, color: Option<u32>, key: i32) -> Result<Option<Arc<dyn ProcessGroup>>> {
        self.split_over(color, key, &self.inner.engines.devices())
    }

    fn with_cards(&self, cards: &[Device]) -> Result<Arc<dyn ProcessGroup>> {
        let me = self.membership();
        let wrong = |rank: usize, reason: String| Error::InvalidArgument {
            op: "with_cards",
            rank: me.world_ranks[rank],
            reason,
        };
        let twice = |at: usize| cards[..at].contains(&cards[at]);
        let is_there = |at: usize| !cards[at].is_cpu() && cards[at].memory().is_ok();
        let odd = (0..cards.len()).find(|&at| !is_there(at) || twice(at));
        // That of a rank whose argument is wrong is no number that others have.
        let mine = odd.map_or(cards.len() as i64, |at| -1 - at as i64);
        let mine = Tensor::from_slice(&[mine], [1], batch::host(me))?;
        let all = self.all_gather(mine)?.wait()?.to_vec::<i64>()?;
        if let Some(rank) = all.iter().position(|n| *n < 0) {
            let reason =
                "each of a rank's devices is a card that is there, and none is named twice";
            return Err(wrong(rank, reason.into()));
        }
        if let Some(rank) = all.iter().position(|n| *n != all[0]) {
            return Err(wrong(
                rank,
                format!(
                    "it has {} cards, and rank {} has {}",
                    all[rank], me.world_ranks[0], all[0]
                ),
            ));
        }
        let group = self.split_over(Some(0), 0, cards)?;
        group.ok_or_else(|| wrong(me.rank, "it is in no group".into()))
    }

    fn labelled(&self, label: Label) -> Arc<dyn ProcessGroup> {
        Arc::new(Group {
            inner: Arc::clone(&self.inner),
            label: Some(Arc::new(label)),
        })
    }

    fn set_activity(&self, activity: Name) -> Name {
        self.inner.engines.host.set_activity(activity)
    }

    fn abort(&self, reason: &str) {
        self.fail(Error::Aborted {
            rank: self.membership().world_rank(),
            reason: reason.into(),
        });
    }

    fn supports(&self, op: &Op, dtype: DType) -> bool {
        self.inner.engines.main().supports(op, dtype)
    }

    fn promises(&self, device: Device) -> Option<Promises> {
        let engine = self.inner.engines.of(device)?;
        Some(engine.promises())
    }

    fn issued(&self) -> u64 {
        self.inner.engines.host.issued() // calls on cards have a word there
    }

    fn health(&self) -> Option<Error> {
        self.inner.engines.host.fault()
    }

    fn recent(&self) -> Vec<Record> {
        self.inner.record.recent()
    }
}
