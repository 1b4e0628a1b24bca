//! One rank does something wrong, in programs made from seeds: every other one hears the same of it, soon, and nobody
//! reads a number that is none. The programs of `divergence.rs`, on cards.

use super::alone;
use super::processes::{Sharing, two_ranks_of};
use super::scenes::{Crime, Scene, is_right};
use super::support::cards;
use phalanx_comm::{
    DType, Device, Error, Label, LaunchConfig, LaunchError, Message, ProcessGroup, Ranks, ReduceOp,
    RunConfig, Tensor, launch, run,
};
use phalanx_tensor::Error as TensorError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
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

/// Whether a culprit that receives what nobody has sent tells so itself. Its neighbour may wait for its card alone, behind a
/// collective that all ranks have issued: it is in no call then, and no circle goes through it.
fn tells_of_itself(error: &Error, scene: &Scene) -> bool {
    let Error::DeadlineExceeded {
        rank, call, note, ..
    } = error
    else {
        return false;
    };
    let receives = call.starts_with("recv") && note.contains("has issued no send for it");
    scene.crime == Crime::Recv && *rank == scene.culprit && receives
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
    let is_right = is_right(&all[0], &scene) || tells_of_itself(&all[0], &scene);
    assert!(is_right, "{}: {}", say(), all[0]);
    // What ranks say to each other beside each call, which no program has made.
    let text = all[0].to_string();
    assert!(!text.contains("all_gather of i64 [8]"), "{}: {text}", say());
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

/// Two ranks that differ in this program, in nothing that NCCL looks at: their cards end the call. Nobody reads what they
/// made of it before it is known that they differ.
fn never_read(
    disagreement: &str,
    program: impl Fn(&Arc<dyn ProcessGroup>) -> Result<Vec<Tensor>, Error> + Sync,
) {
    for _ in 0..20 {
        let config = LaunchConfig::new(2).device(Device::cuda(0));
        let end = launch(config.deadline(SOON), |g| {
            for result in program(&g)? {
                if let Ok(numbers) = result.to_vec::<f32>() {
                    panic!("read {} where ranks differ", numbers[0]);
                }
            }
            heard(&g, Ok(()))
        });
        let said = end.expect_err("they differ").to_string();
        assert!(said.contains(disagreement), "{said}");
    }
}

#[test]
fn what_ranks_differ_in_is_never_read() {
    let Some(_turn) = cards("what_ranks_differ_in_is_never_read", 2) else {
        return;
    };
    let ones = |g: &Arc<dyn ProcessGroup>| Tensor::ones([10], DType::F32, g.device());
    never_read("disagree on the label", |g| {
        let label = Label::new(1, g.rank() as u64, 0);
        let work = g.labelled(label).all_reduce(ones(g)?, ReduceOp::Sum)?;
        Ok(vec![work.wait()?])
    });
    // Of messages that run together, the last pair differs.
    never_read("disagree on the shape", |g| {
        let message = |shape: &[usize]| match g.rank() {
            0 => Ok(Message::Send {
                tensor: ones(g)?,
                destination: 1,
                tag: 0,
            }),
            _ => Ok::<_, Error>(Message::Recv {
                shape: shape.into(),
                dtype: DType::F32,
                source: 0,
                tag: 0,
            }),
        };
        g.batch(vec![message(&[10])?, message(&[2, 5])?])?.wait()
    });
}

/// A rank that returns while a call is under way in which it differs: that is what the other one hears, and not that it has
/// returned.
#[test]
fn who_differs_and_returns_has_differed() {
    let Some(_turn) = cards("who_differs_and_returns_has_differed", 2) else {
        return;
    };
    for _ in 0..5 {
        let config = LaunchConfig::new(2).device(Device::cuda(0));
        let end = launch(config.deadline(SOON), |g| {
            let mine = Tensor::ones([10], DType::F32, g.device())?;
            let label = Label::new(1, g.rank() as u64, 0);
            if g.rank() == 1 {
                std::thread::sleep(Duration::from_millis(50));
            }
            drop(g.labelled(label).all_reduce(mine, ReduceOp::Sum)?);
            match g.rank() {
                0 => Ok(()),
                _ => heard(&g, Ok(())),
            }
        });
        let said = end.expect_err("their labels differ").to_string();
        assert!(said.contains("disagree on the label"), "{said}");
    }
}

/// Nobody waits for what rank 0 has dropped; rank 1, which comes later, gets all that it would have got.
#[test]
fn a_dropped_work_takes_nothing_from_the_others() {
    let Some(_turn) = cards("a_dropped_work_takes_nothing_from_the_others", 2) else {
        return;
    };
    for returns in [false, true] {
        let has_dropped = AtomicBool::new(false);
        let config = LaunchConfig::new(2).device(Device::cuda(0));
        let end = launch(config.deadline(SOON), |g| {
            let mine = Tensor::ones([1000], DType::F32, g.device())?;
            if g.rank() == 0 {
                drop(g.all_reduce(mine, ReduceOp::Sum)?);
                has_dropped.store(true, SeqCst);
            } else {
                let start = Instant::now();
                while !has_dropped.load(SeqCst) {
                    assert!(start.elapsed() < SOON, "the drop waits");
                    std::thread::yield_now();
                }
                // By now rank 0 is about to return.
                std::thread::sleep(Duration::from_millis(50));
                let sum = g.all_reduce(mine, ReduceOp::Sum)?.wait()?;
                assert_eq!(sum.to_vec::<f32>()?, [2.0; 1000]);
            }
            match returns {
                true => Ok::<_, Error>(()),
                false => g.barrier()?.wait(),
            }
        });
        end.unwrap_or_else(|e| panic!("{e}"));
    }
    for card in (0..2).map(Device::cuda) {
        card.synchronize().unwrap();
        assert_eq!(card.memory().unwrap().live, 0, "{card}");
    }
}

/// A process that has dropped a work and returns stays until its card is through with it: the other rank, which comes late,
/// gets its numbers.
#[test]
fn a_process_that_returns_ends_when_its_card_is_through() {
    const TEST: &str = "failures::a_process_that_returns_ends_when_its_card_is_through";
    let Some(_turn) = cards(TEST, 2) else {
        return;
    };
    if std::env::var("PHALANX_TEST_ALONE").is_err() {
        for said in two_ranks_of(TEST, Sharing::Nothing) {
            assert!(said.contains("it returns"), "{said}");
        }
        return;
    }
    let config = LaunchConfig::new(1).device(Device::cuda(0));
    let config = RunConfig::new(Ranks::OrAlone(1)).launch(config.deadline(SOON));
    let end = run(config, |g| {
        let mine = Tensor::ones([1000], DType::F32, g.device())?;
        if g.rank() == 1 {
            std::thread::sleep(Duration::from_millis(500));
        }
        let work = g.all_reduce(mine, ReduceOp::Sum)?;
        if g.rank() == 1 {
            assert_eq!(work.wait()?.to_vec::<f32>()?, [2.0; 1000]);
        }
        Ok::<_, Error>(())
    });
    end.unwrap_or_else(|e| panic!("{e}"));
    println!("it returns");
}

/// A part of the world fails while the other one works on by itself: that one is told in its next call, whatever it calls,
/// and what it had before is good.
#[test]
fn parts_of_a_world_fail_together() {
    let Some(_turn) = cards("parts_of_a_world_fail_together", 4) else {
        return;
    };
    let rounds = AtomicUsize::new(0);
    let config = LaunchConfig::new(4).device(Device::cuda(0));
    let end = launch(config.deadline(Duration::from_secs(1)), |g| {
        let half = g.split(Some(g.rank() as u32 / 2), 0)?.expect("a color");
        let sum = |g: &dyn ProcessGroup| -> Result<(), Error> {
            let mine = Tensor::ones([100], DType::F32, g.device())?;
            let sum = g.all_reduce(mine, ReduceOp::Sum)?.wait()?;
            assert_eq!(sum.to_vec::<f32>()?, [g.size() as f32; 100]);
            Ok(())
        };
        if g.rank() == 3 {
            let start = Instant::now();
            while g.health().is_none() {
                assert!(start.elapsed() < SOON, "nobody waits for rank 3");
                std::thread::sleep(Duration::from_millis(1));
            }
            return heard(&g, Ok(()));
        }
        loop {
            if let Err(error) = sum(&*half) {
                return heard(&g, Err(error));
            }
            rounds.fetch_add(1, SeqCst);
        }
    });
    let Err(LaunchError::Ranks { first, others }) = end else {
        panic!("{end:?}")
    };
    for failed in others.iter().chain([&first]) {
        let said = failed.to_string();
        assert!(
            said.contains("rank 2 waited 1s in all_reduce(sum)"),
            "{said}"
        );
        assert!(said.contains("for rank 3"), "{said}");
    }
    assert_eq!(others.len(), 3);
    let rounds = rounds.into_inner();
    assert!(
        rounds > 10,
        "the other half has made {rounds} rounds meanwhile"
    );
}

/// Where the group has no engine for a tensor's card, its shape is not sent either: the other rank meets the next message.
#[test]
fn no_shape_goes_without_its_tensor() {
    let Some(_turn) = cards("no_shape_goes_without_its_tensor", 3) else {
        return;
    };
    let config = LaunchConfig::new(2).device(Device::cuda(0));
    let end = launch(config.deadline(SOON), |g| {
        if g.rank() == 1 {
            let got = g.recv([2].into(), DType::F32, 0, 0)?.wait()?;
            assert_eq!(got.to_vec::<f32>()?, [1.0; 2]);
            return Ok(());
        }
        let ones = |card| Tensor::ones([2], DType::F32, Device::cuda(card));
        let error = g.send_any(ones(2)?, 1, 0).unwrap_err();
        assert!(error.to_string().contains("with_cards"), "{error}");
        g.send(ones(0)?, 1, 0)?.wait()
    });
    end.unwrap_or_else(|e| panic!("{e}"));
}
