//! No silent hang: whatever one rank does wrong, every live rank gets the same typed error, soon,
//! which names that rank. A watchdog makes a hang a failure.

mod scenes;

use phalanx_comm::{Device, Error, FailureKind, LaunchConfig, LaunchError, launch};
use scenes::{Crime, DEADLINE, Scene, is_right, own_error};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

const SEEDS: u64 = if cfg!(phalanx_tsan) { 300 } else { 2000 };

/// What each rank heard last: the fatal error of the group, if any; and when.
type Heard = Mutex<Vec<Option<(Error, Duration)>>>;

/// Kills the process when the scene that it watches does not change for long.
fn watch(scene: &'static AtomicU64) {
    std::thread::spawn(move || {
        let mut last = (u64::MAX, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let now = scene.load(SeqCst);
            if now == u64::MAX {
                return;
            }
            if now != last.0 {
                last = (now, Instant::now());
            } else if last.1.elapsed() > Duration::from_secs(30) {
                eprintln!("seed {now} hangs");
                std::process::abort();
            }
        }
    });
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// So many scenes are played at once: most of the time of each is waiting.
const LANES: usize = 3;

/// The scene of each lane.
static SCENES: [AtomicU64; LANES] = [const { AtomicU64::new(0) }; LANES];

/// A lane that is over, however it ends, is watched no more.
struct Lane(&'static AtomicU64);

impl Drop for Lane {
    fn drop(&mut self) {
        self.0.store(u64::MAX, SeqCst);
    }
}

#[test]
fn every_rank_hears_of_every_crime() {
    SCENES.iter().for_each(watch);
    // The panics are on purpose, and their messages are asserted.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<&str>() != Some(&"on purpose") {
            hook(info);
        }
    }));
    let before = threads();
    let play = |at: usize| {
        let lane = Lane(&SCENES[at]);
        let seeds = (0..SEEDS).skip(at).step_by(LANES);
        let took = seeds.map(|seed| {
            lane.0.store(seed, SeqCst);
            one(seed, 2 + (seed / 50 % 4) as usize)
        });
        took.max().unwrap_or_default()
    };
    let slowest = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|at| scope.spawn(move || play(at))).collect();
        let ends = lanes.into_iter().map(|lane| lane.join().expect("a lane"));
        ends.max()
    });
    println!("the slowest took {slowest:?}");
    for rank in 0..8 {
        assert_eq!(Device::cpu(rank).memory().unwrap().live, 0, "cpu:{rank}");
    }
    // The watches end a moment after the lanes.
    assert!(
        threads() <= before,
        "{} threads, {before} before",
        threads()
    );
}

/// Plays one scene, and returns how long the ranks took to hear of it.
fn one(seed: u64, n: usize) -> Duration {
    let scene = Scene::random(seed, n);
    let say = || format!("seed {seed}: {scene:?}");
    let heard: Heard = Mutex::new(vec![None; n]);
    let start = Instant::now();
    let deadline = scene.deadline();
    let end = launch(LaunchConfig::new(n).deadline(deadline), |g| {
        let end = scene.play(&g);
        let took = start.elapsed();
        // Whatever it was, the group refuses all further work with the same error.
        if let Err(e) = &end
            && e.is_fatal()
        {
            let again = g.barrier().map(drop);
            assert_eq!(again.as_ref(), Err(e), "{}", say());
            heard.lock().unwrap()[g.rank()] = Some((e.clone(), took));
        }
        end
    });
    let took = start.elapsed();
    let Err(LaunchError::Ranks { first, others }) = end else {
        panic!("{}: {end:?}", say());
    };
    // Who returned well, failed by itself or panicked has not heard of anything.
    let silent = scene.silent();
    let heard = heard.into_inner().unwrap();
    let errors: Vec<&Error> = heard.iter().flatten().map(|(e, _)| e).collect();
    assert!(errors.len() >= n - silent, "{}: {heard:?}", say());
    assert!(
        errors.iter().all(|e| *e == errors[0]),
        "{}: {heard:?}",
        say()
    );
    assert!(is_right(errors[0], &scene), "{}: {}", say(), errors[0]);
    let text = errors[0].to_string();
    assert!(text.contains(&format!("rank {}", scene.culprit)), "{text}");
    // The launch names the same, first of all; a culprit that returned well is not among them.
    let well = n - 1 - others.len();
    let may_be_well = matches!(scene.crime, Crime::Return | Crime::Missing);
    assert!(well == 0 || well == 1 && may_be_well, "{}", say());
    match (&scene.crime, &first.kind) {
        (Crime::Panic, FailureKind::Panic(m)) => {
            assert_eq!((first.rank, m.as_str()), (scene.culprit, "on purpose"))
        }
        (Crime::Error, FailureKind::Error(e)) => {
            assert_eq!((first.rank, e), (scene.culprit, &own_error(scene.culprit)))
        }
        (Crime::Panic | Crime::Error, _) => panic!("{}: {first}", say()),
        (_, FailureKind::Error(e)) => assert_eq!(e, errors[0]),
        (_, kind) => panic!("{}: {kind:?}", say()),
    }
    // Nobody who lives hears later than a second after the deadline; who sleeps on purpose lives no more.
    let sleeps = |rank: usize| scene.crime == Crime::Late && rank == scene.culprit;
    for (rank, heard) in heard.iter().enumerate().filter(|(rank, _)| !sleeps(*rank)) {
        if let Some((_, after)) = heard {
            let limit = deadline + Duration::from_secs(1);
            assert!(*after < limit, "{}: rank {rank} after {after:?}", say());
        }
    }
    let limit = match scene.crime {
        Crime::Late => DEADLINE * 3,
        _ => Duration::ZERO,
    };
    assert!(took < limit + Duration::from_secs(5), "{}: {took:?}", say());
    took
}
