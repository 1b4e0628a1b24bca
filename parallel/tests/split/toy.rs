//! The two-layer model of PyTorch's tutorial, its layers on two devices, equals the same model in one piece and what
//! PyTorch computes; so do replicas of it, each over two devices of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use phalanx_autograd::nn::{Factory, Linear, Module, Relu, Sequential, mse};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Gradients, Result, Tape, Var};
use phalanx_comm::{LaunchConfig, ProcessGroup, launch};
use phalanx_parallel::{Ddp, DdpConfig};
use phalanx_tensor::{DType, Device, Tensor};

use crate::devices;
use crate::support::{distance, read};

/// The recipe's numbers: `(((i + 1) * 7919 + s * 104729) % 97 - 48) / 64`.
fn fill(shape: &[usize], s: usize, device: Device) -> Result<Tensor> {
    let n: usize = shape.iter().product();
    let value = |i: usize| (((i + 1) * 7919 + s * 104_729) % 97) as f64;
    let values: Vec<f64> = (0..n).map(|i| (value(i) - 48.0) / 64.0).collect();
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// Linear, ReLU, linear: the first layer on one device, the second on another, maybe the same.
fn split([inputs, hidden, outputs]: [usize; 3], devices: [Device; 2]) -> Result<Sequential> {
    let mut f = Factory::new(devices[0], 0);
    f.dtype = DType::F64;
    let model = Sequential::new()
        .with(Linear::new(inputs, hidden, &mut f)?)
        .with(Relu)
        .with(Linear::new(hidden, outputs, &mut f)?)
        .over(&devices, &[2])?;
    for (k, param) in model.parameters().iter().enumerate() {
        assert_eq!(param.device(), devices[k / 2]);
        param.set(fill(param.shape(), k, param.device())?)?;
    }
    Ok(model)
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

/// What training leaves: losses, the gradients of every step, all parameters.
struct Outcome {
    losses: Vec<f64>,
    gradients: Vec<Vec<f64>>,
    parameters: Vec<Vec<f64>>,
}

fn train(golden: &Golden, devices: [Device; 2]) -> Result<Outcome> {
    let model = split(golden.dims, devices)?;
    train_with(golden, devices, &model, |tape, loss| tape.backward(loss))
}

/// A replica, which has the whole batch: the average of all gradients is its own.
fn train_replica(
    golden: &Golden,
    devices: [Device; 2],
    group: Arc<dyn ProcessGroup>,
) -> phalanx_parallel::Result<Outcome> {
    let model = split(golden.dims, devices)?;
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
    let outcome = train_with(golden, devices, &ddp, |tape, loss| {
        ddp.backward(tape, loss)
            .map_err(phalanx_autograd::Error::other)
    })?;
    ddp.check_replicas()?;
    Ok(outcome)
}

fn train_with(
    golden: &Golden,
    devices: [Device; 2],
    model: &dyn Module,
    backward: impl Fn(&Tape, &Var) -> Result<Gradients>,
) -> Result<Outcome> {
    let [inputs, _, outputs] = golden.dims;
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
        let loss = mse(&model.forward(&tape, &x)?, &y)?;
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
fn a_model_over_two_devices_is_the_model_in_one_piece_and_pytorchs() {
    let Some((d, _turn)) = devices("a_model_over_two_devices_is_the_model_in_one_piece", 10, 2)
    else {
        return;
    };
    let golden = golden();
    let whole = train(&golden, [Device::cpu(0); 2]).unwrap();
    assert_is_golden(&whole, &golden);
    // On one device, on both in both orders, and half of it on the host.
    let host = Device::cpu(0);
    for devices in [[d[0], d[0]], [d[0], d[1]], [d[1], d[0]], [host, d[0]]] {
        let found = train(&golden, devices).unwrap();
        assert_same(&found, &whole);
        assert_is_golden(&found, &golden);
    }
}

/// Each rank's replica is over two devices: the first layers meet in one engine, the second ones in another where the
/// devices are cards.
#[test]
fn replicas_over_two_devices_each_are_the_model_in_one_piece() {
    let Some((d, _turn)) = devices("replicas_over_two_devices_each", 20, 4) else {
        return;
    };
    let golden = golden();
    let whole = train(&golden, [Device::cpu(0); 2]).unwrap();
    let config = LaunchConfig::new(2).device(d[0]);
    let outcomes = launch(config, |group| {
        let devices = [d[group.rank()], d[2 + group.rank()]];
        train_replica(&golden, devices, group)
    });
    for outcome in outcomes.unwrap() {
        assert_same(&outcome, &whole);
    }
}
