//! A rank that fails at a random action: every rank hears of it in time, with the stage, the action and the microbatch.

use crate::faulty::{Case, Fault, deadline};
use crate::models::{CLASSES, INPUTS, batch, loss};
use crate::ranks::device_for;
use crate::rng::Rng;
use phalanx_autograd::nn::Linear;
use phalanx_comm::{LaunchConfig, Name};
use phalanx_parallel::pipeline::{Layers, Named, Pipeline, PipelineConfig};
use phalanx_tensor::DType;
use std::slice::from_ref;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
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

/// What the program has said that it does stands again behind a step: who waits in vain for a rank that stalls there is told.
#[test]
fn a_step_leaves_what_the_program_says() {
    let config = LaunchConfig::new(2)
        .deadline(deadline())
        .device(device_for(2));
    let end = phalanx_comm::launch(config, |group| {
        let plan = Named::OneFOneB.schedule(2, 1, 2).unwrap();
        let layers = Layers::new(3)
            .layer("in", |f| Ok(Box::new(Linear::new(INPUTS, 6, f)?)))
            .layer("out", |f| Ok(Box::new(Linear::new(6, CLASSES, f)?)));
        let (model, config) = ((&layers, &[0, 1][..]), PipelineConfig::default());
        let whole = Arc::clone(&group);
        let mut pipeline = Pipeline::of_layers(group, &plan, model, DType::F32, loss, config)?;
        let (x, y) = batch(4, 0, DType::F32, whole.device()).unwrap();
        whole.set_activity(Name::new("epoch 3"));
        pipeline.step(from_ref(&x), from_ref(&y))?;
        if whole.rank() == 0 {
            std::thread::sleep(deadline() + deadline() / 3);
        }
        Ok::<_, phalanx_parallel::Error>(whole.barrier()?.wait()?)
    });
    let text = end.expect_err("rank 0 is late").to_string();
    assert!(
        text.contains("waits in no call, but is in epoch 3"),
        "{text}"
    );
}
