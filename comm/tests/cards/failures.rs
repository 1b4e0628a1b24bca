//! One rank does something wrong, in programs made from seeds: every other one hears the same of it, soon, and nobody
//! reads a number that is none. The programs of `divergence.rs`, on cards.

use super::alone;
use super::scenes::{Crime, Scene, is_right};
use super::support::cards;
use phalanx_comm::{Device, Error, LaunchConfig, LaunchError, ProcessGroup, launch};
use phalanx_tensor::Error as TensorError;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SEEDS: u64 = 100;
/// Whoever has heard of nothing by then never will.
const SOON: Duration = Duration::from_secs(30);

/// What a rank has heard when its program ends: the failure of the world, wherever it showed.
fn heard(g: &Arc<dyn ProcessGroup>, end: Result<(), Error>) -> Result<(), Error> {
    match end {
        Err(Error::Tensor(lost @ TensorError::LostWrite { .. })) => {
            let failure = g.health();
            Err(failure
                .unwrap_or_else(|| panic!("a write is lost in a world that is well: {lost}")))
        }
        // A result that nobody has read yet does not say how it ended.
        Ok(()) => {
            let start = Instant::now();
            while g.health().is_none() {
                assert!(start.elapsed() < SOON, "the world does not fail");
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(g.health().expect("the world has failed"))
        }
        end => end,
    }
}

/// Plays one scene.
fn one(seed: u64, n: usize) {
    let mut scene = Scene::random(seed, n);
    // Cards are slower, and ranks that wait for each other in a circle wait for the deadline, as processes do.
    scene.is_on_processes = true;
    let say = || format!("seed {seed}: {scene:?}");
    let all: Mutex<Vec<Error>> = Mutex::default();
    let config = LaunchConfig::new(n).device(Device::cuda(0));
    let start = Instant::now();
    let end = launch(config.deadline(scene.deadline()), |g| {
        let end = scene.play(&g);
        let gone = g.rank() == scene.culprit
            && end.is_ok()
            && matches!(scene.crime, Crime::Return | Crime::Missing);
        if gone {
            return end;
        }
        let end = heard(&g, end);
        if let Err(e) = &end
            && e.is_fatal()
        {
            let again = g.barrier().map(drop);
            assert_eq!(again.as_ref(), Err(e), "{}", say());
            all.lock().unwrap().push(e.clone());
        }
        end
    });
    assert!(start.elapsed() < SOON, "{}: {:?}", say(), start.elapsed());
    assert!(
        matches!(end, Err(LaunchError::Ranks { .. })),
        "{}: {end:?}",
        say()
    );
    let all = all.into_inner().unwrap();
    assert!(all.len() >= n - scene.silent(), "{}: {all:?}", say());
    assert!(all.iter().all(|e| *e == all[0]), "{}: {all:?}", say());
    assert!(is_right(&all[0], &scene), "{}: {}", say(), all[0]);
    // What ranks say to each other beside each call, which no program has made.
    let text = all[0].to_string();
    assert!(!text.contains("of i64 [7]"), "{}: {text}", say());
}

fn scenes(test: &str, environment: &[(&str, &str)]) {
    let Some(_turn) = cards(test, 4) else {
        return;
    };
    let test = format!("failures::{test}");
    if !alone(&test, environment) {
        return;
    }
    // The panics are on purpose, and their messages are asserted.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<&str>() != Some(&"on purpose") {
            hook(info);
        }
    }));
    for seed in 0..SEEDS {
        let start = Instant::now();
        one(seed, 2 + (seed % 3) as usize);
        println!("seed {seed}: {:?}", start.elapsed());
    }
    for card in (0..4).map(Device::cuda) {
        card.synchronize().unwrap();
        let live = card.memory().unwrap().live;
        assert_eq!(live, 0, "{card}");
    }
}

/// On a card, calls that differ hang, or end with any numbers; a simulated one would report them.
#[test]
fn every_rank_hears_of_every_crime() {
    scenes(
        "every_rank_hears_of_every_crime",
        &[("PHALANX_SIMULATOR_NCCL_MISMATCH", "hang")],
    );
}

/// Where calls are compared before they are issued, NCCL sees none that differ.
#[test]
fn every_rank_hears_before_a_call_is_issued() {
    scenes(
        "every_rank_hears_before_a_call_is_issued",
        &[("PHALANX_COMM_DEBUG", "1")],
    );
}
