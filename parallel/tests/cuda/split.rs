//! A model split over two cards equals the same model in one piece, and what PyTorch computes; so do replicas of it, each
//! over two cards of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use phalanx_autograd::nn::{Factory, Linear, Module, Visitor, mse};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Gradients, Result, Tape, Var};
use phalanx_comm::{LaunchConfig, ProcessGroup, launch};
use phalanx_parallel::{Ddp, DdpConfig};
use phalanx_tensor::{DType, Device, Tensor};

use crate::support::{cards, distance, read};

/// Linear, ReLU, linear: the first layer on one device, the second on another, maybe the same.
struct Split {
    first: Linear,
    second: Linear,
    devices: [Device; 2],
}

/// The recipe's numbers: `(((i + 1) * 7919 + s * 104729) % 97 - 48) / 64`.
fn fill(shape: &[usize], s: usize, device: Device) -> Result<Tensor> {
    let n: usize = shape.iter().product();
    let value = |i: usize| (((i + 1) * 7919 + s * 104_729) % 97) as f64;
    let values: Vec<f64> = (0..n).map(|i| (value(i) - 48.0) / 64.0).collect();
    Ok(Tensor::from_vec(values, shape, device)?)
}

impl Split {
    fn new([inputs, hidden, outputs]: [usize; 3], devices: [Device; 2]) -> Result<Split> {
        let layer = |inputs, outputs, device| {
            let mut f = Factory::new(device, 0);
            f.dtype = DType::F64;
            Linear::new(inputs, outputs, &mut f)
        };
        let split = Split {
            first: layer(inputs, hidden, devices[0])?,
            second: layer(hidden, outputs, devices[1])?,
            devices,
        };
        for (k, param) in split.parameters().iter().enumerate() {
            param.set(fill(param.shape(), k, param.device())?)?;
        }
        Ok(split)
    }
}

impl Module for Split {
    fn visit(&self, v: &mut Visitor<'_>) {
        v.child("first", &self.first);
        v.child("second", &self.second);
    }

    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let h = self.first.forward(tape, x)?.relu()?;
        self.second.forward(tape, &h.to_device(self.devices[1])?)
    }
}

#[derive(serde::Deserialize)]
struct Golden {
    dims: [usize; 3],
    batch: usize,
    lr: f64,
    momentum: f64,
    losses: Vec<f64>,
    #[serde(rename = "final")]
    parameters: Vec<Summary>,
}

/// What is known of a tensor: its sum, the sum of its squares, and some elements.
#[derive(serde::Deserialize)]
struct Summary {
    sum: f64,
    sumsq: f64,
    at: BTreeMap<usize, f64>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../golden/toy.json")).unwrap()
}

/// A model, or a wrapper of it.
trait Forward {
    fn run(&self, tape: &Tape, x: &Var) -> Result<Var>;
}

impl Forward for Split {
    fn run(&self, tape: &Tape, x: &Var) -> Result<Var> {
        self.forward(tape, x)
    }
}

impl Forward for Ddp<Split> {
    fn run(&self, tape: &Tape, x: &Var) -> Result<Var> {
        self.forward(tape, x)
            .map_err(phalanx_autograd::Error::other)
    }
}

/// What training leaves: losses, the gradients of every step, all parameters.
struct Outcome {
    losses: Vec<f64>,
    gradients: Vec<Vec<f64>>,
    parameters: Vec<Vec<f64>>,
}

fn train(golden: &Golden, devices: [Device; 2]) -> Result<Outcome> {
    let model = Split::new(golden.dims, devices)?;
    train_with(golden, &model, &model, |tape, loss| tape.backward(loss))
}

/// A replica, which has the whole batch: the average of all gradients is its own.
fn train_replica(
    golden: &Golden,
    devices: [Device; 2],
    group: Arc<dyn ProcessGroup>,
) -> phalanx_parallel::Result<Outcome> {
    let model = Split::new(golden.dims, devices)?;
    if group.rank() > 0 {
        // Whose values are taken.
        let zero = |p: &phalanx_autograd::Param| p.set(p.value()?.mul_scalar(0.0)?);
        model.parameters().iter().try_for_each(zero)?;
    }
    let config = DdpConfig {
        first_bucket_bytes: Some(1),
        bucket_cap_bytes: Some(1),
        ..DdpConfig::default()
    };
    let ddp = Ddp::new(model, group, config)?;
    let outcome = train_with(golden, ddp.module(), &ddp, |tape, loss| {
        ddp.backward(tape, loss)
            .map_err(phalanx_autograd::Error::other)
    })?;
    ddp.check_replicas()?;
    Ok(outcome)
}

fn train_with(
    golden: &Golden,
    model: &Split,
    forward: &dyn Forward,
    backward: impl Fn(&Tape, &Var) -> Result<Gradients>,
) -> Result<Outcome> {
    let ([inputs, _, outputs], devices) = (golden.dims, model.devices);
    let config = SgdConfig {
        lr: golden.lr,
        momentum: golden.momentum,
        ..SgdConfig::default()
    };
    let mut sgd = Sgd::new(model.parameters(), config)?;
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for step in 0..golden.losses.len() {
        let tape = Tape::new();
        let x = tape.constant(fill(&[golden.batch, inputs], 100 + step, devices[0])?);
        let y = tape.constant(fill(&[golden.batch, outputs], 500 + step, devices[1])?);
        let loss = mse(&forward.run(&tape, &x)?, &y)?;
        assert_eq!(loss.device(), devices[1]);
        losses.push(loss.value().clone());
        let found = backward(&tape, &loss)?;
        for param in model.parameters() {
            let gradient = found.get(&param).expect("the loss reaches it");
            assert_eq!(gradient.device(), param.device());
            gradients.push(read(gradient));
        }
        sgd.step(&found)?;
    }
    let parameters = model.parameters();
    let parameters = parameters.iter().map(|p| Ok(read(&p.value()?)));
    Ok(Outcome {
        losses: losses.iter().flat_map(read).collect(),
        gradients,
        parameters: parameters.collect::<Result<_>>()?,
    })
}

fn assert_is_golden(found: &Outcome, golden: &Golden) {
    let near = |got: f64, expected: f64| (got - expected).abs() <= 1e-12 * expected.abs().max(1.0);
    assert!(distance(&found.losses, &golden.losses) <= 1e-12);
    assert_eq!(found.parameters.len(), golden.parameters.len());
    for (got, expected) in found.parameters.iter().zip(&golden.parameters) {
        let sums: (f64, f64) = (got.iter().sum(), got.iter().map(|v| v * v).sum());
        assert!(near(sums.0, expected.sum), "{sums:?}");
        assert!(near(sums.1, expected.sumsq), "{sums:?}");
        for (&place, &value) in &expected.at {
            assert!(
                near(got[place], value),
                "{place}: {} and {value}",
                got[place]
            );
        }
    }
}

fn assert_same(found: &Outcome, expected: &Outcome) {
    assert!(distance(&found.losses, &expected.losses) <= 1e-12);
    let tensors = |o: &Outcome| [o.gradients.clone(), o.parameters.clone()].concat();
    for (i, (got, expected)) in tensors(found).iter().zip(&tensors(expected)).enumerate() {
        let apart = distance(got, expected);
        assert!(apart <= 1e-12, "tensor {i}: {apart}");
    }
}

#[test]
fn a_model_over_two_devices_of_the_cpu_is_pytorchs() {
    let golden = golden();
    let whole = train(&golden, [Device::cpu(0); 2]).unwrap();
    assert_is_golden(&whole, &golden);
    let split = train(&golden, [Device::cpu(0), Device::cpu(1)]).unwrap();
    assert_same(&split, &whole);
}

#[test]
fn a_model_over_two_cards_is_the_model_in_one_piece() {
    let (device, _turn) = card!();
    let golden = golden();
    let whole = train(&golden, [Device::cpu(0); 2]).unwrap();
    let on_one = train(&golden, [device; 2]).unwrap();
    assert_same(&on_one, &whole);
    assert_is_golden(&on_one, &golden);
    // Half on the host, half on the card.
    let offloaded = train(&golden, [Device::cpu(0), device]).unwrap();
    assert_same(&offloaded, &whole);
    let other = other!();
    for devices in [[device, other], [other, device]] {
        let split = train(&golden, devices).unwrap();
        assert_same(&split, &whole);
        assert_is_golden(&split, &golden);
    }
}

/// Each rank's replica is over two cards: the first layers meet on one communicator, the second ones on another.
#[test]
fn replicas_over_two_cards_each_are_the_model_in_one_piece() {
    let Some(_turn) = cards("replicas_over_two_cards_each", 4) else {
        return;
    };
    let golden = golden();
    let whole = train(&golden, [Device::cpu(0); 2]).unwrap();
    let config = LaunchConfig::new(2).device(Device::cuda(0));
    let outcomes = launch(config, |group| {
        let rank = group.rank();
        let devices = [Device::cuda(rank), Device::cuda(2 + rank)];
        train_replica(&golden, devices, group)
    });
    for outcome in outcomes.unwrap() {
        assert_same(&outcome, &whole);
    }
}
