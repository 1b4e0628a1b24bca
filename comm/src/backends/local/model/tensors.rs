//! What all models need: tensors whose chunks loom can see, and loom itself.

use super::{CHUNKS, acquire, touch};
use crate::membership::Membership;
use crate::work::Tensors;
use phalanx_tensor::{DType, Device, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// So long that nothing is late while a model runs.
pub(super) const HOURS: Duration = Duration::from_secs(100 * 3600);
/// Enough for what a rank calls here.
const STACK: usize = 256 << 10;

pub(super) fn memberships(ranks: usize) -> Vec<Membership> {
    let world_ranks: Arc<[usize]> = (0..ranks).collect();
    let member = |rank| Membership {
        rank,
        world_ranks: Arc::clone(&world_ranks),
        name: "world".into(),
        device: Device::cpu(rank),
        deadline: HOURS,
    };
    (0..ranks).map(member).collect()
}

/// Runs `rank`, on a thread for each of `ranks`, in every order with so many preemptions: turns that a thread loses at
/// other times than when it waits. Says how many orders there were. `make` makes what they share, and is undone by
/// the thread that made it, after all of them.
pub(super) fn explore<S: Clone + Send + 'static>(
    name: &str,
    ranks: usize,
    preemptions: usize,
    make: impl Fn() -> S + Send + Sync + 'static,
    rank: impl Fn(&S, usize) + Send + Sync + Copy + 'static,
) {
    let (start, orders) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let counter = Arc::clone(&orders);
    let mut builder = loom::model::Builder::new();
    builder.max_threads = ranks + 1;
    builder.max_branches = 10_000;
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(move || {
        counter.fetch_add(1, Relaxed);
        CHUNKS.with_borrow_mut(|chunks| chunks.clear());
        let shared = make();
        let spawn = |me| {
            let (thread, shared) = (loom::thread::Builder::new(), shared.clone());
            thread
                .stack_size(STACK)
                .spawn(move || rank(&shared, me))
                .unwrap()
        };
        let threads: Vec<_> = (0..ranks).map(spawn).collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
    });
    let orders = orders.load(Relaxed);
    println!("{name}: {orders} orders in {:.1?}", start.elapsed());
}

/// Elements of a chunk between so many ranks.
fn step(ranks: usize) -> usize {
    ((32 << 10) / (8 * ranks)).next_multiple_of(64)
}

/// A tensor of so many chunks; of 0, of one number. Each chunk begins with a one.
pub(super) fn ones(me: &Membership, chunks: usize) -> Tensor {
    filled(me, chunks, 1.0)
}

/// The same, with this number in place of the one.
pub(super) fn filled(me: &Membership, chunks: usize, number: f32) -> Tensor {
    let step = step(me.size());
    let len = (chunks * step).max(1);
    let mut t = Tensor::empty([len], DType::F32, me.device).unwrap();
    for chunk in t.bytes_mut().unwrap().chunks_mut(4 * step) {
        chunk[..4].copy_from_slice(&number.to_ne_bytes());
        acquire(chunk.as_ptr());
    }
    t
}

/// Checks the sum of all ranks' ones, which is now this rank's alone.
pub(super) fn check_sum(me: &Membership, result: &Tensors) {
    check_all(me, result, me.size() as f32);
}

/// Checks that each chunk of the one result begins with this number.
pub(super) fn check_all(me: &Membership, result: &Tensors, number: f32) {
    let [t] = &result[..] else {
        panic!("{} results", result.len());
    };
    for chunk in t.as_bytes().unwrap().chunks(4 * step(me.size())) {
        touch(chunk.as_ptr(), true);
        assert_eq!(chunk[..4], number.to_ne_bytes());
    }
}
