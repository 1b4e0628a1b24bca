//! Weights that two stages share, against a model in which they are one parameter.

use crate::child;
use crate::layers::Tanh;
use crate::models::{CLASSES, INPUTS, batch, loss};
use crate::ranks::{device_for, has_ranks, on_ranks};
use crate::reference::{adam, values};
use phalanx_autograd::Tape;
use phalanx_autograd::nn::{Factory, Linear, Module, Sequential};
use phalanx_autograd::optim::{Optimizer, clip_grad_norm};
use phalanx_comm::env::Start;
use phalanx_parallel::Mesh;
use phalanx_parallel::pipeline::{Layers, Named, Pipeline, PipelineConfig, Schedule};
use phalanx_tensor::{DType, Device};
use std::slice::from_ref;

const STEPS: usize = 4;
const ROWS: usize = 12;
const MAX_NORM: f64 = 0.2;

fn untied() -> Layers {
    Layers::new(5)
        .layer("in", |f| Ok(Box::new(Linear::new(INPUTS, 6, f)?)))
        .layer("a", |_| Ok(Box::new(Tanh)))
        .layer("second", |f| Ok(Box::new(Linear::new(6, 6, f)?)))
        .layer("b", |_| Ok(Box::new(Tanh)))
        .layer("third", |f| Ok(Box::new(Linear::new(6, 6, f)?)))
        .layer("out", |f| Ok(Box::new(Linear::new(6, CLASSES, f)?)))
}

fn model() -> Layers {
    untied().tie("second.weight", "third.weight")
}

/// Losses, norms and the shared weight of one process, in which the weight is one parameter.
fn alone() -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let f = Factory {
        dtype: DType::F64,
        ..Factory::new(Device::cpu(62), 5)
    };
    let linear =
        |name: &str, inputs, outputs| Linear::new(inputs, outputs, &mut f.at(name)).unwrap();
    let second = linear("second", 6, 6);
    let mut third = linear("third", 6, 6);
    let shared = second.weight.clone();
    third.weight = shared.clone();
    let model = Sequential::new()
        .with(linear("in", INPUTS, 6))
        .with(Tanh)
        .with(second)
        .with(Tanh)
        .with(third)
        .with(linear("out", 6, CLASSES));
    let mut optimizer = adam(model.parameters());
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 0..STEPS {
        let (x, y) = batch(ROWS, step, DType::F64, f.device).unwrap();
        let tape = Tape::new();
        let output = model.forward(&tape, &tape.constant(x)).unwrap();
        let (sum, weight) = loss(&tape, &[output], &[y]).unwrap();
        losses.push(values(sum.value())[0] / weight);
        let mut gradients = tape.backward(&sum).unwrap();
        gradients.scale(1.0 / weight).unwrap();
        norms.push(values(&clip_grad_norm(&mut gradients, MAX_NORM).unwrap())[0]);
        optimizer.step(&gradients).unwrap();
    }
    (losses, norms, shared.read(values))
}

fn close(a: &[f64], b: &[f64], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let apart = a
        .iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    assert!(apart < 1e-12, "{what}: {apart:e}");
}

fn train(plan: &Schedule, cuts: &[usize], replicas: usize) {
    let layers = model();
    let (losses, norms, shared) = alone();
    on_ranks(replicas * plan.rank_count(), |group| {
        let device = group.device();
        let mesh = Mesh::new(group, [("data", replicas), ("pipe", plan.rank_count())])?;
        let config = PipelineConfig {
            data: Some(mesh.group("data")?),
            max_norm: Some(MAX_NORM),
            ..PipelineConfig::default()
        };
        let pipe = mesh.group("pipe")?;
        let mut pipeline =
            Pipeline::of_layers(pipe, plan, (&layers, cuts), DType::F64, loss, config)?;
        let mut optimizer = adam(pipeline.parameters());
        let (mut seen, mut lengths) = (Vec::new(), Vec::new());
        let share = ROWS / replicas;
        for step in 0..STEPS {
            let (x, y) = batch(ROWS, step, DType::F64, device)?;
            let start = share * mesh.coordinate("data")?;
            let (x, y) = (x.narrow(0, start, share)?, y.narrow(0, start, share)?);
            let done = pipeline.step(from_ref(&x), from_ref(&y))?;
            optimizer.step(&done.gradients)?;
            seen.extend(done.loss);
            lengths.extend(done.norm);
        }
        close(&seen, &losses, "losses");
        close(&lengths, &norms, "norms");
        for (_, stage) in pipeline.stages() {
            for (name, param) in stage.named_parameters() {
                if ["second.weight", "third.weight"].contains(&name.as_str()) {
                    close(&param.read(values), &shared, &name);
                }
            }
        }
        Ok(())
    });
}

#[test]
fn tied_weights_are_one_parameter() {
    let plan = |named: Named, ranks| {
        named
            .schedule(ranks, named.default_stages_per_rank(), 4)
            .unwrap()
    };
    // On one rank in one stage, on one in two, on two, with a stage between them, over replicas.
    train(&plan(Named::Gpipe, 1), &[0], 1);
    train(&plan(Named::Interleaved, 1), &[0, 4], 1);
    for (named, ranks, cuts, replicas) in [
        (Named::OneFOneB, 2, &[0, 4][..], 1),
        (Named::ZbH1, 3, &[0, 3, 4], 1),
        (Named::Zbv, 2, &[0, 2, 3, 4], 1),
        (Named::OneFOneB, 2, &[0, 4], 2),
    ] {
        if has_ranks(ranks * replicas) {
            train(&plan(named, ranks), cuts, replicas);
        }
    }
}

/// A pipeline ends where calls on cards are compared before they are issued.
#[test]
fn tied_weights_where_calls_are_compared() {
    let name = "tied::tied_weights_where_calls_are_compared";
    if device_for(2).is_cpu() {
        eprintln!("SKIPPED: {name}: ranks on CPUs always compare their calls");
        return;
    }
    if !matches!(Start::detect(), Ok(Start::Alone)) {
        eprintln!("SKIPPED: {name}: it starts a process of its own, and ranks are processes here");
        return;
    }
    let Some(mut child) = child::again(name) else {
        let plan = Named::OneFOneB.schedule(2, 1, 4).unwrap();
        return train(&plan, &[0, 4], 1);
    };
    let output = child.env("PHALANX_COMM_DEBUG", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("test result: ok. 1 passed"), "{said}");
}

#[test]
fn a_tie_to_nothing_is_refused() {
    on_ranks(1, |group| {
        let plan = Named::Gpipe.schedule(1, 1, 2)?;
        let twice = |layers: Layers| layers.tie("in.bias", "second.weight");
        for (layers, word) in [
            (
                untied().tie("second.weight", "none.weight"),
                "`none.weight` is a parameter of no layer",
            ),
            (
                untied().tie("second.weight", "third.other"),
                "`third.other` is tied, and no trainable parameter of stage 0",
            ),
            (twice(model()), "`second.weight` of stage 0 is tied twice"),
        ] {
            let config = PipelineConfig::default();
            let made = Pipeline::of_layers(
                group.clone(),
                &plan,
                (&layers, &[0]),
                DType::F64,
                loss,
                config,
            );
            let error = made.err().expect("a tie to nothing").to_string();
            assert!(error.contains(word), "{error}");
        }
        Ok(())
    });
}

/// A stage that was made by hand has two names for each of its parameters.
#[test]
fn a_parameter_is_tied_once_by_whatever_name() {
    if !has_ranks(3) {
        eprintln!("SKIPPED: a_parameter_is_tied_once_by_whatever_name: it wants 3 ranks");
        return;
    }
    on_ranks(3, |group| {
        let plan = Named::Gpipe.schedule(3, 1, 2)?;
        let (number, device) = (group.rank(), group.device());
        let mut f = Factory::new(device, number as u64);
        let stage: Box<dyn Module> = Box::new(Linear::new(4, 4, &mut f)?);
        let tie = |name: &str, to: usize| [(0, name.to_owned()), (to, "weight".to_owned())];
        let config = PipelineConfig {
            tied: vec![tie("weight", 1), tie("0.weight", 2)],
            ..PipelineConfig::default()
        };
        let made = Pipeline::new(group, &plan, vec![(number, stage)], loss, config);
        let error = made.map(drop).unwrap_err().to_string();
        assert!(
            error.contains("`0.weight` of stage 0 is tied twice"),
            "{error}"
        );
        Ok(())
    });
}

/// The sum of stages 2 and 3 comes while 0 and 1 have their backward before them.
const EARLY: &str = "\
    0F0, 0SEND_F0, 3RECV_F0, 3F0, 3B0, 3SEND_B0, 0F1, 0SEND_F1, 3RECV_F1, 3F1, 3B1, 3SEND_B1, 3REDUCE_GRAD, 3REDUCE_TIED>2, \
    0RECV_B0, 0B0, 0RECV_B1, 0B1, 0REDUCE_GRAD\n\
    1RECV_F0, 1F0, 2F0, 2SEND_F0, 2RECV_B0, 2B0, 1RECV_F1, 1F1, 2F1, 2SEND_F1, 2RECV_B1, 2B1, 2REDUCE_GRAD, 2REDUCE_TIED>3, \
    1B0, 1SEND_B0, 1B1, 1SEND_B1, 1REDUCE_GRAD\n";

/// A plan may have its sums early, and no others than those of the ties.
#[test]
fn a_plan_says_when_ties_are_summed() {
    if !has_ranks(2) {
        return;
    }
    let cuts = [0, 1, 2, 4];
    let good: Schedule = EARLY.parse().unwrap();
    for replicas in [1, 2] {
        if has_ranks(2 * replicas) {
            train(&good, &cuts, replicas);
        }
    }
    let refused = |plan: &Schedule, layers: &Layers, word: &str| {
        on_ranks(2, |group| {
            let config = PipelineConfig::default();
            let model = (layers, &cuts[..]);
            let made = Pipeline::of_layers(group, plan, model, DType::F64, loss, config);
            let said = made.map(drop).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
            Ok(())
        });
    };
    refused(&good, &untied(), "stages 2 and 3 share no weights");
    // The sum of another pair than the tied one.
    let other = EARLY.replace("3REDUCE_TIED>2", "3REDUCE_TIED>0");
    let other = other
        .replace("2REDUCE_TIED>3, ", "")
        .replace("0B1, 0REDUCE_GRAD", "0B1, 0REDUCE_GRAD, 0REDUCE_TIED>3");
    refused(
        &other.parse().unwrap(),
        &model(),
        "it has no 2REDUCE_TIED>3",
    );
}
