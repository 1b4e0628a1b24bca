//! [`Link`]: a communicator with a watch over it; how the ranks of a group make it, anew or from that of an older group.

use super::buffers::Buffers;
use super::communicator::{self, Communicator, Failure, Split};
use super::plan::{Channel, Ends};
use super::watch::{self, UnderWay};
use super::{Card, NcclGroup, UnderWays};
use crate::error::Result;
use crate::membership::Membership;
use crate::sync::Guard;
use phalanx_tensor::collective::Collective;
use phalanx_tensor::{DType, Tensor};
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

/// A communicator, and the watch over it.
pub(super) struct Link {
    pub(super) communicator: Arc<Communicator>,
    pub(super) watch: Sender<UnderWay>,
}

/// How long a rank that splits its group waits for its cards to be done with what it has issued: not for other ranks, which
/// may come to their part after the split.
const SETTLES: Duration = Duration::from_millis(50);

/// The cards of a group, held while it is split: no call of the group is issued on them meanwhile.
pub(crate) struct Held<'a> {
    cards: &'a [Arc<Card>],
    _turns: Vec<Guard<'a, ()>>,
}

/// Holds the cards of a group, if they are done with what the rank has issued in all its groups, and no other thread is
/// about to issue more.
pub(crate) fn hold<'a>(cards: &'a [Arc<Card>], under_way: &UnderWays) -> Option<Held<'a>> {
    let turns = cards.iter().map(|card| card.turn.try_lock());
    let turns = turns.collect::<Option<Vec<_>>>()?;
    let start = Instant::now();
    while under_way.load(SeqCst) > 0 && start.elapsed() < SETTLES {
        thread::sleep(Duration::from_micros(100));
    }
    (under_way.load(SeqCst) == 0).then_some(Held {
        cards,
        _turns: turns,
    })
}

impl Held<'_> {
    /// Splits the communicators, as all ranks of the group do, which have told each other in one split that they hold
    /// theirs: for the engines `new` of a group that is split off, on the same cards, whose first member is rank `first`
    /// of the old group; for none where this rank is in no new group. It saves the new ranks from finding each other
    /// anew.
    ///
    /// # Errors
    /// The world's failure.
    pub(crate) fn split(self, new: &[Arc<Card>], first: usize) -> Result<()> {
        let mut new = new.iter();
        (self.cards.iter())
            .try_for_each(|card| card.split_link(new.next().map(|new| &**new), first))
    }
}

impl NcclGroup {
    /// Makes a communicator, together with all other ranks.
    pub(super) fn meet(&self) -> Result<Link> {
        let me = &self.membership;
        let mine = match me.rank {
            0 => communicator::unique_id().map_err(|failure| self.failed(failure))?,
            _ => [0; communicator::ID_BYTES],
        };
        let id = self.shadow.share(mine)?;
        // The card is ready, and its context the thread's.
        Tensor::empty([1], DType::U8, me.device)?;
        let start = Instant::now();
        let stop = || self.host.fault().is_some() || start.elapsed() > me.deadline;
        let made = Communicator::new(id, me.rank, me.size(), &stop);
        let Some(communicator) = made.map_err(|failure| self.failed(failure))? else {
            return Err(self.late("making a communicator"));
        };
        self.watched(communicator)
    }

    /// This rank's part in splitting the communicator, for the engine `new`. The card is held.
    fn split_link(&self, new: Option<&NcclGroup>, first: usize) -> Result<()> {
        const CALL: &str = "splitting a communicator";
        let me = &self.membership;
        if me.size() == 1 {
            return Ok(());
        }
        let link = self.link()?;
        // The context of the card is the thread's: else the library would make one on another card.
        Tensor::empty([1], DType::U8, me.device)?;
        let start = Instant::now();
        let stop = || self.host.fault().is_some() || start.elapsed() > me.deadline;
        // A rank alone meets nobody.
        let new = new.filter(|new| new.membership.size() > 1);
        let rank = new.map_or(0, |new| new.membership.rank);
        let made = link.communicator.split(new.map(|_| first), rank, &stop);
        let made = match made {
            Ok(Split::Done(made)) => made,
            // Nobody can use it any more.
            ended => {
                let error = match ended {
                    Err(failure) => self.failed(failure),
                    Ok(_) => self.late(CALL),
                };
                link.communicator.abort();
                return Err(error);
            }
        };
        if let (Some(communicator), Some(new)) = (made, new) {
            let _ = new.link.set(new.watched(communicator)?); // it has none yet
        }
        Ok(())
    }

    /// A communicator with a watch over it.
    fn watched(&self, communicator: Communicator) -> Result<Link> {
        let me = &self.membership;
        // What is issued on it writes as much as a group of this size gives.
        let place = communicator.expect_place(me.rank, me.size());
        place.map_err(|failure| self.failed(failure))?;
        let communicator = Arc::new(communicator);
        let watch = watch::start(&communicator, &self.shadow).map_err(|error| {
            self.failed(Failure {
                call: "starting a thread",
                message: error.to_string(),
            })
        })?;
        Ok(Link {
            communicator,
            watch,
        })
    }
}

impl Link {
    /// `false` where the world has failed meanwhile, or others are late.
    #[allow(unsafe_code)]
    pub(super) fn issue(
        &self,
        lane: &Collective,
        me: &Membership,
        calls: &[Buffers],
        stop: &dyn Fn() -> bool,
    ) -> std::result::Result<bool, Failure> {
        // SAFETY: `lane` keeps the tensors until the card is through with them, and orders everything else behind what is
        // issued here; `check.rs` and `Buffers` have made them as large as the operation takes in a group of this size, which
        // is the communicator's (`watched`).
        unsafe {
            self.communicator.group(stop, |library, comm| {
                let channel = Channel {
                    library,
                    comm,
                    stream: lane.stream().cast(),
                    me: me.rank,
                    size: me.size(),
                };
                calls.iter().try_for_each(|call| {
                    let address = |tensor: Option<&Tensor>| tensor.map_or(0, |t| lane.address(t));
                    let ends: SmallVec<[Ends; 2]> = (0..call.signature.tensors.len())
                        .map(|at| Ends {
                            src: address(call.source(at)),
                            dst: address(call.outputs.get(at)),
                        })
                        .collect();
                    channel.issue(&call.signature, &ends)
                })
            })
        }
    }
}
