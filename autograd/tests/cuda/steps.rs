//! A step of training waits for nothing: after the first ones, the host only hands work to the card.

use phalanx_autograd::nn::{
    BatchNorm2d, Conv2d, Conv2dConfig, Dropout, Factory, Flatten, LayerNorm, Linear, MaxPool2d,
    Module, Pool2dConfig, Relu, Sequential, cross_entropy,
};
use phalanx_autograd::optim::{Adam, AdamConfig, Optimizer, Sgd, SgdConfig, clip_grad_norm};
use phalanx_autograd::{Result, Tape};
use phalanx_tensor::{Device, Tensor};

use crate::counts::{Counts, launches};

const BATCH: usize = 6;
const CLASSES: usize = 5;

fn mlp(f: &mut Factory) -> Result<Sequential> {
    Ok(Sequential::new()
        .with(Flatten)
        .with(Linear::new(64, 33, f)?)
        .with(LayerNorm::new([33], f)?)
        .with(Relu)
        .with(Dropout::new(0.2, f)?)
        .with(Linear::new(33, CLASSES, f)?))
}

fn cnn(f: &mut Factory) -> Result<Sequential> {
    let same = Conv2dConfig::default().with_padding(1);
    Ok(Sequential::new()
        .with(Conv2d::without_bias(1, 4, [3, 3], same, f)?)
        .with(BatchNorm2d::new(4, f)?.with_relu())
        .with(MaxPool2d(Pool2dConfig::new([2, 2])))
        .with(Conv2d::new(4, 6, [3, 3], same, f)?)
        .with(Relu)
        .with(Flatten)
        .with(Dropout::new(0.3, f)?)
        .with(Linear::new(96, CLASSES, f)?))
}

/// One step on a batch that comes from the host, as in a training loop.
fn step(
    model: &Sequential,
    optimizer: &mut impl Optimizer,
    device: Device,
    k: usize,
) -> Result<Tensor> {
    let images: Vec<f32> = (0..BATCH * 64)
        .map(|i| ((i * 7 + k) % 13) as f32 / 6.5 - 1.0)
        .collect();
    let labels: Vec<i64> = (0..BATCH).map(|i| ((i + k) % CLASSES) as i64).collect();
    let images = Tensor::from_vec(images, [BATCH, 1, 8, 8], device)?;
    let labels = Tensor::from_vec(labels, [BATCH], device)?;
    let tape = Tape::new();
    let logits = model.forward(&tape, &tape.constant(images))?;
    let loss = cross_entropy(&logits, &labels)?;
    let mut gradients = tape.backward(&loss)?;
    clip_grad_norm(&mut gradients, 0.1)?;
    optimizer.step(&gradients)?;
    Ok(loss.value().clone())
}

/// Steps that warm up, then steps whose waits, launches and memory are counted. The kernel `update` is the optimizer's.
///
/// The card catches up between steps: a host that is many batches ahead of it waits until a pinned buffer is free, and
/// that is meant so.
fn waits_for_nothing(
    name: &str,
    model: &Sequential,
    mut optimizer: impl Optimizer,
    update: &str,
    device: Device,
) {
    const WARM_UP: usize = 3;
    let memory = || {
        let memory = device.memory().unwrap();
        (memory.reserved, memory.system_allocations)
    };
    let mut reserved = memory();
    for k in 0..WARM_UP + 5 {
        device.synchronize().unwrap();
        let before = Counts::now().zip(launches(update));
        let loss = step(model, &mut optimizer, device, k).unwrap();
        let after = Counts::now().zip(launches(update));
        match before.zip(after) {
            None => eprintln!("SKIPPED: {}: a real card does not count", module_path!()),
            Some(_) if k < WARM_UP => {}
            Some(((before, earlier), (after, updates))) => {
                let made = after.since(before);
                assert_eq!(
                    (made.waits, made.pageable),
                    (0, 0),
                    "{name}, step {k}: {made:?}"
                );
                assert_eq!(updates - earlier, 1, "{name}, step {k}: {update}");
            }
        }
        let loss: f32 = loss.item().unwrap();
        assert!(loss.is_finite(), "{name}, step {k}: {loss}");
        match k < WARM_UP {
            true => reserved = memory(),
            false => assert_eq!(
                memory(),
                reserved,
                "{name}, step {k}: the system is asked for memory"
            ),
        }
    }
}

#[test]
fn steps_wait_for_nothing() {
    let (device, _turn) = card!();
    type Make = fn(&mut Factory) -> Result<Sequential>;
    for (name, make) in [("mlp", mlp as Make), ("cnn", cnn)] {
        let model = make(&mut Factory::new(device, 5)).unwrap();
        let config = SgdConfig {
            lr: 0.05,
            momentum: 0.9,
            ..SgdConfig::default()
        };
        let sgd = Sgd::new(model.parameters(), config).unwrap();
        waits_for_nothing(&format!("{name}, SGD"), &model, sgd, "sgd", device);
        let model = make(&mut Factory::new(device, 5)).unwrap();
        let config = AdamConfig {
            lr: 0.01,
            ..AdamConfig::adamw()
        };
        let adam = Adam::new(model.parameters(), config).unwrap();
        waits_for_nothing(&format!("{name}, AdamW"), &model, adam, "adam", device);
    }
}
