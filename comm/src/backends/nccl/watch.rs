//! The watch over what is under way on a card: a thread for each communicator. It follows the calls one after the other:
//! when the lane has come to one, it waits for what the other ranks say of it, compares, and then for the card to be done.
//! What goes wrong ends the communicator, so that the lane goes on; but before that, what was to be written is declared
//! lost, so that nobody reads it.

use super::UnderWays;
use super::communicator::Communicator;
use super::shadow::{Said, Shadow};
use crate::backends::watcher;
use crate::error::{Error, Result};
use crate::launch::message;
use crate::op::Signature;
use phalanx_tensor::WriteFault;
use phalanx_tensor::collective::Issued;
use smallvec::SmallVec;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Calls under way that were issued as one.
pub(super) struct UnderWay {
    /// Each with what was said of it; `None` where nothing is on the card, or it is compared already.
    pub(super) calls: SmallVec<[(Signature, Option<Said>); 1]>,
    /// Their number in the group.
    pub(super) number: u64,
    pub(super) issued: Issued,
    /// Set when the card is done with it: who polls a work asks this, and not the card.
    pub(super) is_done: Arc<AtomicBool>,
    /// Of what they write. Readers wait for it.
    pub(super) fault: WriteFault,
    /// Until it is done: before its readers go on, so that who has read a result finds it counted no more.
    pub(super) counted: Option<Counted>,
}

/// One of the calls that are not done, as long as it lives.
pub(super) struct Counted(UnderWays);

impl Counted {
    pub(super) fn new(under_way: &UnderWays) -> Counted {
        under_way.fetch_add(1, SeqCst);
        Counted(Arc::clone(under_way))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Drop for UnderWay {
    /// However the watch ends, no reader waits for ever.
    fn drop(&mut self) {
        self.fault.declare("nobody watches over the card any more");
    }
}

impl UnderWay {
    fn lose(&self, error: &Error) {
        let what = self.name();
        self.fault
            .declare(format!("{what} was ended before it was complete: {error}"));
    }

    /// What it is, in an error.
    fn name(&self) -> String {
        let mut calls = self.calls.iter().map(|(signature, _)| signature);
        let first = calls.next().map(Signature::to_string).unwrap_or_default();
        match calls.count() {
            0 => first,
            more => format!("{first} and {more} more"),
        }
    }
}

/// The longest pause between two looks at a card. Whoever reads a result on the host may wait for so much longer.
const LONGEST_PAUSE: Duration = Duration::from_micros(200);

/// Who watches.
struct Watch {
    communicator: Arc<Communicator>,
    shadow: Arc<Shadow>,
}

/// Starts a watch. It ends when the sender is dropped, and all calls have come to an end.
pub(super) fn start(
    communicator: &Arc<Communicator>,
    shadow: &Arc<Shadow>,
) -> std::io::Result<Sender<UnderWay>> {
    let (sender, calls) = channel();
    let watch = Watch {
        communicator: Arc::clone(communicator),
        shadow: Arc::clone(shadow),
    };
    let rank = shadow.engine().membership().world_rank();
    let thread = thread::Builder::new().name(format!("nccl-watch-{rank}"));
    thread.spawn(move || {
        watcher::watch();
        // A panic is a fault of this crate. Then nobody would end what is stuck.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| watch.run(&calls))) {
            let message = format!("the watch over its card: {}", message(&*panic));
            watch.end(Error::RankPanicked { rank, message }, &calls);
        }
    })?;
    Ok(sender)
}

impl Watch {
    fn run(&self, calls: &Receiver<UnderWay>) {
        while let Ok(mut call) = calls.recv() {
            match self.follow(&mut call) {
                Ok(()) => {
                    call.counted = None;
                    call.fault.settle();
                    call.is_done.store(true, SeqCst);
                }
                Err(error) => {
                    let error = self.told(error);
                    call.lose(&error);
                    self.end(error, calls);
                }
            }
        }
    }

    /// The world fails. What is under way, and what may still come, is lost.
    fn end(&self, error: Error, calls: &Receiver<UnderWay>) {
        let error = self.told(error);
        // What is issued from now on is refused.
        while let Ok(call) = calls.try_recv() {
            call.lose(&error);
        }
        self.communicator.abort();
        while let Ok(call) = calls.recv() {
            call.lose(&error);
        }
    }

    /// Ends the world with an error, and gives the one that it has failed with.
    fn told(&self, error: Error) -> Error {
        let host = self.shadow.engine();
        host.fail(error.clone());
        host.fault().unwrap_or(error)
    }

    fn follow(&self, call: &mut UnderWay) -> Result<()> {
        self.until(None, call, Issued::is_reached)?;
        for (signature, said) in &mut call.calls {
            if let Some(said) = said.take() {
                self.shadow.compare(said, call.number, signature)?;
            }
        }
        let deadline = self.shadow.engine().membership().deadline;
        self.until(Some(deadline), call, Issued::is_done)
    }

    /// Looks at the card until it has come so far.
    fn until(
        &self,
        deadline: Option<Duration>,
        call: &UnderWay,
        has_come: impl Fn(&Issued) -> phalanx_tensor::Result<bool>,
    ) -> Result<()> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(50);
        while !has_come(&call.issued)? {
            let host = self.shadow.engine();
            if let Some(fault) = host.fault() {
                return Err(fault);
            }
            let me = host.membership();
            if let Err(failure) = self.communicator.look() {
                return Err(Error::Transport {
                    rank: me.world_rank(),
                    call: failure.call.to_owned(),
                    message: failure.message,
                });
            }
            if let Some(deadline) = deadline.filter(|deadline| start.elapsed() > *deadline) {
                let others = me.world_ranks.iter().copied();
                return Err(Error::DeadlineExceeded {
                    group: Arc::clone(&me.name),
                    sequence: call.number,
                    rank: me.world_rank(),
                    call: call.name(),
                    missing: others.filter(|rank| *rank != me.world_rank()).collect(),
                    deadline,
                    note: "all ranks have issued it, but the cards do not end it".into(),
                    chain: Vec::new(),
                });
            }
            thread::sleep(pause);
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
        Ok(())
    }
}
