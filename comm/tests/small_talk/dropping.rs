//! Works that are dropped: that they are ended all the same, that no drop waits for the store, and that what goes wrong
//! while an earlier call is ended harms no other one.

use super::{PATIENCE, in_memory, met, number};
use phalanx_comm::backends::store::world;
use phalanx_comm::{Device, Error, MemoryStore, ProcessGroup, Reply, Request, Result, Store};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

/// A store that may refuse what it is asked, or take its time.
struct Moody {
    store: MemoryStore,
    /// Called before a request is done; it is not where this says so.
    refuses: Box<dyn Fn(&Request) -> bool + Send + Sync>,
    asked: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Moody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.store)
    }
}

impl Store for Moody {
    fn name(&self) -> &str {
        self.store.name()
    }

    fn rank(&self) -> Option<usize> {
        self.store.rank()
    }

    fn deadline(&self) -> Duration {
        self.store.deadline()
    }

    fn ask(&self, requests: &[Request]) -> Result<Vec<Reply>> {
        self.asked.fetch_add(1, SeqCst);
        let mut replies = Vec::new();
        for request in requests {
            if (self.refuses)(request) {
                return Err(Error::StoreRefused {
                    store: self.name().to_owned(),
                    rank: self.rank(),
                    call: request.to_string(),
                    reason: "it is in a mood".into(),
                });
            }
            replies.extend(self.store.ask(std::slice::from_ref(request))?);
        }
        Ok(replies)
    }
}

/// Two ranks over one store, which refuses rank 1 the first `times` requests of a kind.
fn refused(
    times: usize,
    kind: fn(&Request) -> bool,
    program: impl Fn(&dyn ProcessGroup) -> Result<()> + Sync,
) -> (usize, usize) {
    let store = MemoryStore::new(PATIENCE);
    let left = Arc::new(AtomicUsize::new(0));
    thread::scope(|scope| {
        let (program, left) = (&program, &left);
        let rank = |rank: usize| {
            let (store, mood) = (store.clone().for_rank(rank), Arc::clone(left));
            let refuses = move |request: &Request| {
                let take = |left: usize| left.checked_sub(1);
                rank == 1 && kind(request) && mood.fetch_update(SeqCst, SeqCst, take).is_ok()
            };
            let store = Arc::new(Moody {
                store,
                refuses: Box::new(refuses),
                asked: Arc::default(),
            });
            scope.spawn(move || {
                let group = world(store, rank, 2, Device::cpu(rank), PATIENCE)?;
                met(&*group)?;
                if rank == 1 {
                    left.store(times, SeqCst);
                }
                program(&*group)
            })
        };
        let threads = [rank(0), rank(1)];
        for thread in threads {
            thread.join().unwrap().unwrap();
        }
    });
    (store.len(), left.load(SeqCst))
}

/// An earlier call that cannot be ended now is ended later, and is nothing to the one that is issued.
#[test]
fn a_dropped_call_that_cannot_be_ended_is_kept() {
    type Kind = fn(&Request) -> bool;
    // Whether all have come; and what they have left.
    let asks: Kind = |request| matches!(request, Request::WaitAll { .. });
    let reads: Kind =
        |request| matches!(request, Request::Add { key, .. } if key.ends_with("/read"));
    for kind in [asks, reads] {
        let both = Barrier::new(2);
        let (keys, left) = refused(1, kind, |group| {
            let (first, second) = (group.barrier()?, group.barrier()?);
            both.wait(); // both have come to both
            if group.rank() == 1 {
                drop((first, second));
            } else {
                first.wait()?;
                second.wait()?;
            }
            let issued = group.all_gather(number(group, 1)?)?;
            issued.wait().map(drop)
        });
        assert_eq!(left, 0, "nothing was refused");
        assert_eq!(keys, 2 * 2 + 2);
    }
}

/// What was left of a call stays at the store, and no more.
#[test]
fn results_are_handed_out_where_only_the_clean_up_fails() {
    let both = Barrier::new(2);
    let (_, left) = refused(
        1,
        |request| matches!(request, Request::Delete { .. }),
        |group| {
            let work = group.all_gather(number(group, group.rank() as i64)?)?;
            if group.rank() == 1 {
                both.wait(); // it is the last to read, and so removes
            }
            let all = work.wait()?;
            if group.rank() == 0 {
                both.wait();
            }
            assert_eq!(all.to_vec::<i64>()?, [0, 1]);
            met(group)
        },
    );
    assert_eq!(left, 0, "nothing was refused");
}

/// Neither of a work, while another thread of the rank is at the store, nor of a group.
#[test]
fn no_drop_asks_the_store() {
    let store = MemoryStore::new(PATIENCE);
    let asked = Arc::new(AtomicUsize::new(0));
    let (slow, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(2)));
    thread::scope(|scope| {
        let other = store.clone().for_rank(1);
        let rank_1 = scope.spawn(move || {
            let group = world(Arc::new(other), 1, 2, Device::cpu(1), PATIENCE)?;
            let half = group.split(Some(0), 0)?;
            half.iter().try_for_each(|half| met(&**half))?;
            met(&*group).and_then(|()| met(&*group))
        });
        let (is_slow, door) = (Arc::clone(&slow), Arc::clone(&gate));
        let moody = Moody {
            store: store.clone().for_rank(0),
            refuses: Box::new(move |request| {
                let adds = matches!(request, Request::Add { key, .. } if key.ends_with("/come"));
                if adds && is_slow.swap(0, SeqCst) == 1 {
                    door.wait(); // it has begun
                    door.wait(); // it may go on
                }
                false
            }),
            asked: Arc::clone(&asked),
        };
        let group = world(Arc::new(moody), 0, 2, Device::cpu(0), PATIENCE).unwrap();
        let half = group.split(Some(0), 0).unwrap().unwrap();
        let of_half = half.barrier().unwrap();
        let work = group.barrier().unwrap();
        slow.store(1, SeqCst);
        let same = Arc::clone(&group);
        let issues = scope.spawn(move || same.barrier());
        gate.wait();
        let (start, before) = (Instant::now(), asked.load(SeqCst));
        let drops = scope.spawn(move || drop((work, half, of_half)));
        while !drops.is_finished() && start.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(1));
        }
        let is_finished = drops.is_finished();
        let after = asked.load(SeqCst);
        gate.wait();
        assert!(is_finished, "a drop waits for the store");
        assert_eq!(after, before);
        drops.join().unwrap();
        issues.join().unwrap().unwrap().wait().unwrap();
        rank_1.join().unwrap().unwrap();
    });
    // All that was dropped is ended when the rank has left.
    assert_eq!(store.len(), 2 * 2 + 2);
}

/// A call that a rank drops right before it leaves is finished by the others.
#[test]
fn a_call_that_its_rank_drops_is_never_abandoned() {
    let ends = in_memory(3, PATIENCE, |group| {
        if group.rank() == 1 {
            group.all_gather(number(group, 7)?).map(drop)?;
            return Ok(Vec::new());
        }
        thread::sleep(Duration::from_millis(100)); // rank 1 has left
        let all = group.all_gather(number(group, 7)?)?.wait()?;
        all.to_vec::<i64>().map_err(Error::from)
    });
    let ends: Vec<Vec<i64>> = ends.into_iter().map(|end| end.unwrap()).collect();
    assert_eq!(ends, [vec![7; 3], vec![], vec![7; 3]]);
}
