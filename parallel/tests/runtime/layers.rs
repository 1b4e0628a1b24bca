//! Models that are given as lists of layers: cut anywhere, saved and loaded in the form of the uncut model.

use crate::models::{CLASSES, INPUTS, batch, loss};
use crate::ranks::{device_for, has_ranks, on_ranks};
use crate::reference::values;
use phalanx_autograd::nn::{self, Factory, Linear, Module, Visitor};
use phalanx_autograd::optim::{Adam, AdamConfig, Optimizer};
use phalanx_autograd::{State, Tape, Var};
use phalanx_comm::ProcessGroup;
use phalanx_parallel::pipeline::{Layers, Named, Pipeline, PipelineConfig, Schedule};
use phalanx_parallel::{Error, Result};
use phalanx_tensor::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub struct Tanh;

impl Module for Tanh {
    fn forward(&self, _: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        x.tanh()
    }
    fn visit(&self, _: &mut Visitor<'_>) {}
}

/// Adds what came over a skip edge.
struct Join(Linear);

impl Module for Join {
    fn forward(&self, tape: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        nn::one_output("Join", self.forward_all(tape, std::slice::from_ref(x))?)
    }
    fn forward_all(&self, tape: &Tape, inputs: &[Var]) -> phalanx_autograd::Result<Vec<Var>> {
        let [x, skip] = nn::inputs("Join", inputs)?;
        Ok(vec![self.0.forward(tape, x)?.add(skip)?])
    }
    fn visit(&self, v: &mut Visitor<'_>) {
        v.child("linear", &self.0);
    }
}

fn model() -> Layers {
    Layers::new(3)
        .layer("first", |f| Ok(Box::new(Linear::new(INPUTS, 6, f)?)))
        .layer("a", |_| Ok(Box::new(Tanh)))
        .layer("second", |f| Ok(Box::new(Linear::new(6, 6, f)?)))
        .layer("b", |_| Ok(Box::new(Tanh)))
        .layer("third", |f| Ok(Box::new(Linear::new(6, 6, f)?)))
        .layer_with("join", &["a"], |f| {
            Ok(Box::new(Join(Linear::new(6, 6, f)?)))
        })
        .layer("c", |_| Ok(Box::new(Tanh)))
        .layer("last", |f| Ok(Box::new(Linear::new(6, CLASSES, f)?)))
}

fn plan(layers: &Layers, ranks: usize, microbatches: usize) -> (Schedule, Vec<usize>) {
    let cuts = layers.even_cuts(ranks);
    let plan = Named::OneFOneB.schedule(ranks, 1, microbatches).unwrap();
    (plan.over(layers.graph(&cuts).unwrap()).unwrap(), cuts)
}

/// The whole model and its optimizer, and the losses on the way.
type Saved = (Vec<f64>, BTreeMap<String, Vec<f64>>, Option<[State; 2]>);

fn numbers(state: &State) -> BTreeMap<String, Vec<f64>> {
    state
        .iter()
        .map(|(name, t)| (name.to_owned(), values(t)))
        .collect()
}

/// Trains the steps `from..to` on so many ranks; begins with what was saved, and saves.
fn train(ranks: usize, from: Option<&Saved>, steps: std::ops::Range<usize>) -> Saved {
    let layers = model();
    let (plan, cuts) = plan(&layers, ranks, 4);
    let saved = Mutex::new(None);
    on_ranks(ranks, |group: Arc<dyn ProcessGroup>| {
        let device = group.device();
        let config = PipelineConfig::default();
        let mut pipeline =
            Pipeline::of_layers(group, &plan, (&layers, &cuts), DType::F64, loss, config)?;
        let mut optimizer = Adam::new(pipeline.parameters(), AdamConfig::adam())?;
        if let Some((_, _, Some([model, momenta]))) = from {
            pipeline.load_state(model)?;
            pipeline.load_optimizer_state(&mut optimizer, momenta)?;
        }
        let mut losses = Vec::new();
        for step in steps.clone() {
            let (x, y) = batch(11, step, DType::F64, device)?;
            let done = pipeline.step(&[x], &[y])?;
            optimizer.step(&done.gradients)?;
            losses.extend(done.loss);
        }
        let model = pipeline.state()?;
        let momenta = pipeline.optimizer_state(&optimizer)?;
        if let (Some(model), Some(momenta)) = (model, momenta) {
            let values = numbers(&model);
            *saved.lock().unwrap() = Some((losses, values, Some([model, momenta])));
        }
        Ok(())
    });
    // Under mpirun, only the first rank has it.
    saved.into_inner().unwrap().unwrap_or_default()
}

fn apart(a: &Saved, b: &Saved) -> f64 {
    let numbers = |s: &Saved| -> Vec<f64> {
        s.0.iter()
            .copied()
            .chain(s.1.values().flatten().copied())
            .collect()
    };
    assert!(a.1.keys().eq(b.1.keys()));
    let (a, b) = (numbers(a), numbers(b));
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(&b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}

/// How far apart numbers may be: on cards other orders of sums are as good.
fn tolerance() -> f64 {
    if device_for(1).is_cpu() { 0.0 } else { 1e-12 }
}

#[test]
fn every_cut_trains_alike() {
    let one = train(1, None, 0..3);
    assert_eq!(one.1.len(), 10);
    let as_one = |&n: &usize| has_ranks(n) && device_for(n).is_cpu() == device_for(1).is_cpu();
    for ranks in (2..=8).filter(as_one) {
        let distance = apart(&train(ranks, None, 0..3), &one);
        assert!(distance <= tolerance(), "{ranks} ranks: {distance:e}");
    }
}

#[test]
fn a_run_goes_on_at_another_cut() {
    let whole = train(4, None, 0..6);
    let half = train(4, None, 0..3);
    for ranks in [4, 2, 1] {
        let rest = train(ranks, Some(&half), 3..6);
        let all = (
            half.0.iter().chain(&rest.0).copied().collect(),
            rest.1,
            None,
        );
        let distance = apart(&all, &whole);
        assert!(distance <= tolerance() || ranks != 4, "{distance:e}");
        assert!(distance < 1e-12, "{ranks} ranks: {distance:e}");
    }
}

#[test]
fn the_uncut_model_has_the_same_values_and_names() {
    let layers = model();
    let whole = layers.whole(DType::F64, Device::cpu(61)).unwrap();
    let state = State::of(&*whole).unwrap();
    let saved = train(3, None, 0..0);
    assert_eq!(saved.1, numbers(&state));
    // What it gives, a pipeline gives.
    let (x, _) = batch(8, 0, DType::F64, Device::cpu(61)).unwrap();
    let tape = Tape::inference();
    let want = whole.forward(&tape, &tape.constant(x.clone())).unwrap();
    let want = values(want.value());
    let (plan, cuts) = plan(&layers, 2, 4);
    on_ranks(2, |group| {
        let (rank, device) = (group.rank(), group.device());
        let config = PipelineConfig::default();
        let mut pipeline =
            Pipeline::of_layers(group, &plan, (&layers, &cuts), DType::F64, loss, config)?;
        let outputs = pipeline.infer(&[x.to_device(device)?])?;
        assert_eq!(outputs.len(), rank);
        for output in outputs {
            let output = values(&output);
            let apart = output.iter().zip(&want).map(|(a, b)| (a - b).abs());
            assert!(apart.fold(0.0, f64::max) <= tolerance());
        }
        Ok(())
    });
}

/// What edges carry follows from the layers: another word on it would be lost.
#[test]
fn layers_say_what_edges_carry() {
    let layers = model();
    let (plan, cuts) = plan(&layers, 2, 4);
    on_ranks(2, |group| {
        let config = PipelineConfig {
            edges: vec![((0, 1), vec![0])],
            ..PipelineConfig::default()
        };
        let made = Pipeline::of_layers(group, &plan, (&layers, &cuts), DType::F64, loss, config);
        let error = made.map(drop).unwrap_err();
        let is_told =
            matches!(&error, Error::InvalidUse { reason, .. } if reason.contains("edges"));
        assert!(is_told, "{error}");
        Ok(())
    });
}

/// A stage may have its parameters on other devices than the one that its rank computes on.
#[test]
fn the_state_comes_from_all_devices() {
    let beside = |device: Device| match device {
        Device::Cuda(at) => Device::cuda(at + 2),
        _ => Device::cpu(62),
    };
    if device_for(1).is_cpu() != device_for(4).is_cpu() {
        eprintln!("SKIPPED: the_state_comes_from_all_devices: it wants 4 cards");
        return;
    }
    let plan = Named::Gpipe.schedule(2, 1, 2).unwrap();
    let found = on_ranks(2, |group| {
        let (number, device) = (group.rank(), beside(group.device()));
        let mut f = Factory::new(device, number as u64);
        let stage: Box<dyn Module> = Box::new(Linear::new(40, 30, &mut f)?);
        let config = PipelineConfig::default();
        let pipeline = Pipeline::new(group, &plan, vec![(number, stage)], loss, config)?;
        Ok(pipeline.state()?.map(|state| numbers(&state)))
    });
    for whole in found.into_iter().flatten() {
        assert_eq!(whole.len(), 4);
        for number in 0..2 {
            let mut f = Factory::new(Device::cpu(61), number as u64);
            let stage = Linear::new(40, 30, &mut f).unwrap();
            let weight = &whole[&format!("{number}.weight")];
            assert_eq!(*weight, stage.weight.read(values), "stage {number}");
        }
    }
}

#[test]
fn a_state_of_something_else_is_refused() {
    let layers = model();
    let (plan, cuts) = plan(&layers, 2, 4);
    on_ranks(2, |group| {
        let device = group.device();
        let config = PipelineConfig::default();
        let pipeline =
            Pipeline::of_layers(group, &plan, (&layers, &cuts), DType::F64, loss, config)?;
        let mut state = State::of(&*layers.whole(DType::F64, device)?)?;
        pipeline.load_state(&state)?;
        state.insert("other.weight", Tensor::scalar(1.0, device)?);
        let error = pipeline.load_state(&state).unwrap_err().to_string();
        assert!(
            error.contains("`other.weight`, which is a part of no stage"),
            "{error}"
        );
        Ok(())
    });
}

/// What two ranks are told that differ in what they were given.
fn differ(second: impl Fn() -> (Layers, usize, usize) + Sync) -> Vec<String> {
    let heard = Mutex::new(Vec::new());
    on_ranks(2, |group| -> Result<()> {
        let (layers, microbatches, cut) = match group.rank() {
            0 => (model(), 4, 4),
            _ => second(),
        };
        let cuts = vec![0, cut];
        let plan = Named::Gpipe
            .schedule(2, 1, microbatches)?
            .over(layers.graph(&cuts)?)?;
        let config = PipelineConfig::default();
        let made = Pipeline::of_layers(group, &plan, (&layers, &cuts), DType::F64, loss, config);
        match made.err().expect("the ranks differ") {
            error @ Error::RanksDiffer { rank: 1, .. } => {
                heard.lock().unwrap().push(error.to_string())
            }
            other => panic!("{other}"),
        }
        Ok(())
    });
    heard.into_inner().unwrap()
}

#[test]
fn a_rank_that_differs_is_named_before_the_first_transfer() {
    type Given = Box<dyn Fn() -> (Layers, usize, usize) + Sync>;
    let cases: [(&str, Given); 4] = [
        ("microbatches: 8", Box::new(|| (model(), 8, 4))),
        ("in stage 1", Box::new(|| (model(), 4, 3))),
        (
            "`more`",
            Box::new(|| (model().layer("more", |_| Ok(Box::new(Tanh))), 4, 4)),
        ),
        (
            "`first`",
            Box::new(|| {
                let other = Layers::new(3).layer("zero", |_| Ok(Box::new(Tanh)));
                (
                    other
                        .layer("a", |_| Ok(Box::new(Tanh)))
                        .layer("b", |_| Ok(Box::new(Tanh)))
                        .layer("c", |_| Ok(Box::new(Tanh)))
                        .layer("d", |_| Ok(Box::new(Tanh))),
                    4,
                    4,
                )
            }),
        ),
    ];
    for (word, second) in cases {
        let heard = differ(second);
        assert!(
            heard.iter().all(|sentence| sentence.contains(word)),
            "{word}: {heard:?}"
        );
    }
}
