//! A rank that fails at a random action: every rank hears of it in time, with the stage, the action and the microbatch.

use crate::faulty::{Case, Fault, deadline};
use crate::ranks::device_for;
use crate::rng::Rng;
use phalanx_comm::LaunchConfig;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The sentences that the ranks get, and how long it took.
fn strike(case: &Case) -> (Vec<String>, Duration) {
    let start = Instant::now();
    let ranks = case.ranks();
    let config = LaunchConfig::new(ranks)
        .deadline(deadline())
        .device(device_for(ranks));
    let heard = Mutex::new(Vec::new());
    let ends = phalanx_comm::launch(config, |group| {
        let end = case.play(group);
        heard.lock().unwrap().push(end.map_err(|e| e.to_string()));
        Ok::<_, phalanx_parallel::Error>(())
    });
    drop(ends); // a panic's launch has failed, the others' programs have ended well
    let heard = heard.into_inner().unwrap().into_iter();
    let heard = heard.map(|end| end.unwrap_or_else(|e| panic!("{e}")));
    (heard.collect(), start.elapsed())
}

#[test]
fn one_error_on_every_rank() {
    let mut rng = Rng(7);
    // On cards fewer, and one after the other: launches share the cards.
    let (count, at_once) = match device_for(1).is_cpu() {
        true => (200, 4),
        false => (15, 1),
    };
    let cases = (0..count).map(|_| {
        let ranks = 2 + rng.below(3);
        Case::random(&mut rng, ranks)
    });
    let cases: Vec<Case> = cases.collect();
    // Most of the time somebody sleeps: several at once.
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Relaxed)) {
                    check(case);
                }
            });
        }
    });
}

fn check(case: &Case) {
    let (heard, took) = strike(case);
    let name = &case.name;
    let ranks = case.ranks() - usize::from(case.fault == Fault::Panic);
    assert_eq!(heard.len(), ranks, "{name}");
    for sentence in &heard {
        assert!(case.is_told(sentence), "{name}: {sentence}");
    }
    assert!(
        took < 3 * deadline() + Duration::from_secs(2),
        "{name}: {took:?}"
    );
}
