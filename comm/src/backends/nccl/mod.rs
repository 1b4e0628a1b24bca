//! The engine for tensors on CUDA devices, by NCCL: a thread or a process for each card.
//!
//! A call goes onto the card's comm lane, and `issue` returns: nothing waits for other ranks, and `wait` hands its result
//! out at once. Whoever reads that is ordered behind the call on the card; `Ok` says issued, not done.
//!
//! NCCL compares nothing, and a rank that is missing makes it wait for ever. So each call is accompanied by a word to the
//! other ranks, by the engine that carries the tensors of the hosts ([`Shadow`]), and watched by a thread ([`watch`]): a
//! failure of the world ends what is under way on all cards, and each tensor that it was to write gives
//! [`phalanx_tensor::Error::LostWrite`] to its readers, never its bytes. Ranks that call different things may well get
//! numbers from NCCL; so a copy to the host waits, at its end, until the watch has compared what the ranks have called.
//!
//! Reductions are in no promised order: the bits of a sum may depend on the number of ranks, the size and the hardware.

mod buffers;
mod communicator;
mod library;
mod link;
mod plan;
mod shadow;
mod watch;

use self::buffers::Buffers;
use self::communicator::Failure;
use self::link::Link;
pub(crate) use self::link::hold;
use self::shadow::{Said, Shadow};
use self::watch::{Counted, UnderWay};
use crate::backends::local::Done;
use crate::backends::{Backend, Together};
use crate::check::Call;
use crate::env;
use crate::error::{Error, Result};
use crate::membership::Membership;
use crate::op::{Op, Promises};
use crate::sync::Mutex;
use crate::work::{Pending, Tensors};
use phalanx_tensor::collective::{Collective, Issued};
use phalanx_tensor::{DType, Device, Tensor, WriteFault};
use smallvec::SmallVec;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// Why this machine has no NCCL; `Ok` where it has one.
pub(crate) fn is_there() -> std::result::Result<(), &'static str> {
    library::library().map(drop)
}

/// How many calls of a rank are not done, in all its groups of cards.
pub(crate) type UnderWays = Arc<AtomicUsize>;

/// The engine of one card.
pub(crate) type Card = NcclGroup;

/// The engines for tensors on these cards of this rank, one for each, beside the one that carries the tensors of the host.
/// All ranks give as many.
///
/// # Errors
/// The world's failure.
pub(crate) fn beside(
    host: &Arc<dyn Backend>,
    cards: &[Device],
    under_way: &UnderWays,
) -> Result<Vec<Arc<Card>>> {
    let shadow = Arc::new(Shadow::new(host)?);
    let engine = |(slot, &device): (usize, &Device)| {
        Arc::new(NcclGroup {
            membership: Membership {
                device,
                ..host.membership().clone()
            },
            host: Arc::clone(host),
            shadow: Arc::clone(&shadow),
            slot,
            link: OnceLock::new(),
            compares: env::compares_calls(),
            turn: Mutex::default(),
            under_way: Arc::clone(under_way),
        })
    };
    Ok(cards.iter().enumerate().map(engine).collect())
}

/// One rank's side of a group of cards.
pub(crate) struct NcclGroup {
    membership: Membership,
    /// Carries the tensors of the hosts of the same ranks.
    host: Arc<dyn Backend>,
    /// That of all slots.
    shadow: Arc<Shadow>,
    /// Which of the rank's cards it is.
    slot: usize,
    /// Made by `connect`.
    link: OnceLock<Link>,
    /// Whether a collective or a receive that runs alone is compared before it is issued, for which the rank waits for the
    /// others; else behind it.
    compares: bool,
    /// Held while a call is issued: the calls of a rank come one after the other.
    turn: Mutex<()>,
    under_way: UnderWays,
}

/// A call that was issued.
struct NcclWork {
    /// Set by the watch.
    is_done: Arc<AtomicBool>,
    outputs: Tensors,
    host: Arc<dyn Backend>,
}

impl NcclGroup {
    fn failed(&self, failure: Failure) -> Error {
        let error = Error::Transport {
            rank: self.membership.world_rank(),
            call: failure.call.to_owned(),
            message: failure.message,
        };
        self.ended(error)
    }

    /// Ends the world with an error, and gives the one that it has failed with to the program.
    fn ended(&self, error: Error) -> Error {
        self.host.fail(error.clone());
        self.host.refuse().err().unwrap_or(error)
    }

    /// The communicator.
    fn link(&self) -> Result<&Link> {
        self.link.get().ok_or_else(|| {
            let fault = self.host.refuse().err();
            fault.unwrap_or_else(|| {
                self.failed(Failure {
                    call: "a call on cards",
                    message: "the group has not been connected".into(),
                })
            })
        })
    }

    /// The world has failed meanwhile; or the others have not come to NCCL in time.
    fn late(&self, call: &str) -> Error {
        let me = &self.membership;
        let others = me.world_ranks.iter().copied();
        let error = Error::DeadlineExceeded {
            group: Arc::clone(&me.name),
            sequence: self.host.issued(),
            rank: me.world_rank(),
            call: call.to_owned(),
            missing: others.filter(|rank| *rank != me.world_rank()).collect(),
            deadline: me.deadline,
            note: String::new(),
            chain: Vec::new(),
        };
        match self.host.refuse() {
            Err(fault) => fault,
            Ok(()) => self.ended(error),
        }
    }

    /// Puts calls that run together on the card's comm lane.
    fn put(&self, calls: Vec<Call>) -> Result<Box<dyn Pending>> {
        self.host.refuse()?;
        let me = &self.membership;
        if me.size() == 1 {
            return self.alone(calls);
        }
        let op = calls
            .first()
            .map_or("batch", |call| call.signature.op.name());
        let calls = calls.into_iter().map(|call| Buffers::new(call, me));
        let calls = calls.collect::<Result<Vec<Buffers>>>()?;
        let _turn = self.turn.lock();
        let link = self.link()?;
        let number = self.host.issued();
        let (said, issued, fault) = self.issue_on(link, op, number, &calls)?;
        let is_done = Arc::<AtomicBool>::default();
        let mut outputs = Tensors::new();
        let mut under_way = UnderWay {
            calls: SmallVec::new(),
            number,
            issued,
            is_done: Arc::clone(&is_done),
            fault,
            counted: Some(Counted::new(&self.under_way)),
        };
        for (call, said) in calls.into_iter().zip(said) {
            under_way.calls.push((call.signature, said));
            outputs.extend(call.outputs);
        }
        if link.watch.send(under_way).is_err() {
            // With the call, what it writes is declared lost.
            return Err(self.failed(Failure {
                call: op,
                message: "nobody watches over the card any more".into(),
            }));
        }
        Ok(Box::new(NcclWork {
            is_done,
            outputs,
            host: Arc::clone(&self.host),
        }))
    }

    /// A rank that meets nobody.
    fn alone(&self, calls: Vec<Call>) -> Result<Box<dyn Pending>> {
        let one = |call: Call| -> Result<Box<dyn Pending>> {
            let said = self.shadow.say(&call.signature, self.slot)?; // it counts the call
            self.shadow.compare(said, 0, &call.signature)?;
            Ok(Box::new(Done::of(call)?))
        };
        let done = calls.into_iter().map(one);
        Ok(Box::new(Together(done.collect::<Result<_>>()?)))
    }

    /// What each rank says of the calls, and what is on the card.
    fn issue_on(
        &self,
        link: &Link,
        op: &'static str,
        number: u64,
        calls: &[Buffers],
    ) -> Result<(Vec<Option<Said>>, Issued, WriteFault)> {
        let me = &self.membership;
        let reads: SmallVec<[&Tensor; 4]> = calls.iter().flat_map(Buffers::reads).collect();
        let writes: SmallVec<[&Tensor; 4]> = calls.iter().flat_map(Buffers::writes).collect();
        // Before a word is said: what is wrong with this rank's tensors, the others do not hear of. They are lost where the
        // world has failed meanwhile.
        let lane = Collective::begin(op, me.device, &reads, &writes);
        let lane = lane.map_err(|error| match self.host.refuse() {
            Err(fault) => fault,
            Ok(()) => error.into(),
        })?;
        // A call of which a word is said is issued, or the world has failed: else the others' words, and NCCL's calls,
        // would meet those of later ones.
        let said = self.say(calls, number).map_err(|error| self.ended(error))?;
        let start = Instant::now();
        let stop = || self.host.fault().is_some() || start.elapsed() > me.deadline;
        let fault = WriteFault::told();
        writes
            .iter()
            .for_each(|tensor| tensor.set_last_write(&fault));
        let through = link.issue(&lane, me, calls, &stop);
        // Also where the calls have failed: some of them may be on the stream.
        let issued = lane.end();
        let through = through.map_err(|failure| self.failed(failure));
        match (through, issued) {
            (Ok(true), Ok(issued)) => Ok((said, issued, fault)),
            (through, issued) => {
                let error = match (through, issued) {
                    (Err(error), _) => error,
                    (Ok(_), Err(error)) => error.into(),
                    (Ok(_), Ok(_)) => self.late(op),
                };
                fault.declare(error.to_string());
                link.communicator.abort();
                Err(error)
            }
        }
    }

    /// Says all calls; compares a collective or a receive that runs alone, too, where that is asked for. Messages that run
    /// together are compared behind the call: their other ends need not come together, and one of them may wait for another
    /// of these first. A send would wait until its receiver has come, which is who compares.
    fn say(&self, calls: &[Buffers], number: u64) -> Result<Vec<Option<Said>>> {
        let said = calls
            .iter()
            .map(|call| self.shadow.say(&call.signature, self.slot));
        let mut said: Vec<Option<Said>> = said.map(|said| said.map(Some)).collect::<Result<_>>()?;
        if self.compares
            && let [call] = calls
            && !matches!(call.signature.op, Op::Send { .. })
            && let Some(said) = said[0].take()
        {
            self.shadow.compare(said, number, &call.signature)?;
        }
        Ok(said)
    }

    /// What ranks say to each other without tensors goes by the hosts' engine.
    fn is_talk(call: &Call) -> bool {
        matches!(call.signature.op, Op::Barrier | Op::Split)
    }
}

impl Pending for NcclWork {
    fn poll(&mut self) -> Result<bool> {
        self.host.refuse()?;
        Ok(self.is_done.load(SeqCst))
    }

    fn wait(self: Box<Self>) -> Result<Tensors> {
        self.host.refuse()?;
        Ok(self.outputs)
    }
}

impl Backend for NcclGroup {
    fn name(&self) -> &'static str {
        "nccl"
    }

    fn membership(&self) -> &Membership {
        &self.membership
    }

    fn connect(&self) -> Result<()> {
        if self.membership.size() > 1 && self.link.get().is_none() {
            // Whatever it is: the others are waiting there.
            let link = self.meet().map_err(|error| self.ended(error))?;
            let _ = self.link.set(link); // a rank connects once
        }
        Ok(())
    }

    fn supports(&self, op: &Op, dtype: DType) -> bool {
        plan::supports(op, dtype)
    }

    fn promises(&self) -> Promises {
        Promises {
            rank_order: false,
            keeps_nan: false,
        }
    }

    fn admit(&self, call: &Call) -> Result<()> {
        if NcclGroup::is_talk(call) {
            return self.host.admit(call);
        }
        let op = &call.signature.op;
        let mut types = call.signature.tensors.iter().map(|(dtype, _)| *dtype);
        match types.find(|dtype| !plan::supports(op, *dtype)) {
            None => Ok(()),
            Some(dtype) => Err(Error::InvalidArgument {
                op: op.name(),
                rank: self.membership.world_rank(),
                reason: format!("NCCL has no {op} of {dtype}"),
            }),
        }
    }

    fn issue(&self, call: Call) -> Result<Box<dyn Pending>> {
        match NcclGroup::is_talk(&call) {
            true => self.host.issue(call),
            false => {
                self.host.refuse()?;
                self.admit(&call)?;
                self.put(vec![call])
            }
        }
    }

    fn issue_together(&self, calls: Vec<Call>) -> Result<Box<dyn Pending>> {
        self.put(calls)
    }

    fn issued(&self) -> u64 {
        self.host.issued() // each call has a word there
    }

    fn split_off(&self, new: Membership) -> Result<Arc<dyn Backend>> {
        self.host.split_off(new) // the group makes the engines of its cards beside it: `beside`
    }

    fn fault(&self) -> Option<Error> {
        self.host.fault()
    }

    fn refuse(&self) -> Result<()> {
        self.host.refuse()
    }

    /// The hosts' engine says it. Before, the card is through with what this rank has issued: the others need it for what
    /// they have issued, and a process may end when its rank has left.
    fn depart(&self) {
        let start = Instant::now();
        while self.under_way.load(SeqCst) > 0
            && self.host.fault().is_none()
            && start.elapsed() < 2 * self.membership.deadline
        {
            thread::sleep(Duration::from_micros(100));
        }
    }

    /// The hosts' engine says it; the watch over the card looks there.
    fn fail(&self, _: Error) {}
}
