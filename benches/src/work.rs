//! The workloads: models, batches and optimizer, and what takes their steps. `benches/peers/work.py` defines the same
//! ones for PyTorch; keep the two in step.

use std::sync::Arc;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use phalanx_autograd::Tape;
use phalanx_autograd::nn::{Factory, Module, cross_entropy};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_comm::ProcessGroup;
use phalanx_examples::models;
use phalanx_examples::report::fingerprint;
use phalanx_examples::train;
use phalanx_parallel::{Ddp, DdpConfig};
use phalanx_tensor::{DType, Device, Rng, Tensor};
use serde::Serialize;

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// Linear 784-1024-1024-10 with ReLU; 128 images a step.
    Mlp,
    /// Linear 784-128-10 with ReLU; 64 images a step.
    Tiny,
    /// ResNet-14 for 28×28 images; 64 images a step.
    Cnn,
}

/// Batches made beforehand, so that no loader is in the timing.
const BATCHES: usize = 8;

impl Work {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Work::Mlp => "mlp",
            Work::Tiny => "tiny",
            Work::Cnn => "cnn",
        }
    }

    /// Images in a step.
    pub fn batch_size(self) -> usize {
        match self {
            Work::Mlp => 128,
            Work::Tiny | Work::Cnn => 64,
        }
    }

    /// A model with fresh parameters.
    ///
    /// # Errors
    /// The device has no room for them.
    pub fn model(self, f: &mut Factory) -> Result<Box<dyn Module>> {
        Ok(match self {
            Work::Mlp => Box::new(models::mlp(&[784, 1024, 1024, 10], f)?),
            Work::Tiny => Box::new(models::mlp(&[784, 128, 10], f)?),
            Work::Cnn => Box::new(models::ResNet14::new(f)?),
        })
    }

    /// Floating-point operations in the matrix products and convolutions of one step of `batch` images: forward,
    /// gradients of the weights, and gradients of the inputs but for the first layer's.
    pub fn flops(self, batch: usize) -> f64 {
        /// Multiply-adds per image of the layers, the first one apart.
        fn linear(sizes: &[usize]) -> (usize, usize) {
            let layers: Vec<_> = sizes.windows(2).map(|pair| pair[0] * pair[1]).collect();
            (layers[0], layers[1..].iter().sum())
        }
        let (first, others) = match self {
            Work::Mlp => linear(&[784, 1024, 1024, 10]),
            Work::Tiny => linear(&[784, 128, 10]),
            Work::Cnn => {
                let conv = |area: usize, inputs, outputs, kernel| area * inputs * outputs * kernel;
                let (large, middle, small) = (28 * 28, 14 * 14, 7 * 7);
                let stage = |area, inputs, channels: usize| {
                    conv(area, inputs, channels, 9) + 3 * conv(area, channels, channels, 9)
                };
                let stages =
                    4 * conv(large, 16, 16, 9) + stage(middle, 16, 32) + stage(small, 32, 64);
                let shortcuts = conv(middle, 16, 32, 1) + conv(small, 32, 64, 1);
                (conv(large, 1, 16, 9), stages + shortcuts + 64 * 10)
            }
        };
        (2 * batch * (2 * first + 3 * others)) as f64
    }

    fn batches(self, size: usize, device: Device, rng: &mut Rng) -> Result<Batches> {
        let batches = (0..BATCHES)
            .map(|_| {
                let images = match self {
                    Work::Mlp | Work::Tiny => Tensor::randn([size, 784], DType::F32, device, rng)?,
                    Work::Cnn => Tensor::randn([size, 1, 28, 28], DType::F32, device, rng)?,
                };
                Ok((images, Tensor::randint(0, 10, [size], device, rng)?))
            })
            .collect::<Result<_>>()?;
        Ok(Batches { batches, taken: 0 })
    }
}

/// Images and labels, over and over.
struct Batches {
    batches: Vec<(Tensor, Tensor)>,
    taken: usize,
}

impl Batches {
    fn next(&mut self) -> &(Tensor, Tensor) {
        self.taken += 1;
        &self.batches[(self.taken - 1) % BATCHES]
    }
}

/// SGD as all workloads have it.
fn sgd(model: &dyn Module) -> Result<Sgd> {
    let config = SgdConfig {
        lr: 0.01,
        momentum: 0.9,
        ..SgdConfig::default()
    };
    Ok(Sgd::new(model.parameters(), config)?)
}

/// Trains a model of its own, on one device.
pub struct Trainer {
    model: Box<dyn Module>,
    optimizer: Sgd,
    batches: Batches,
}

impl Trainer {
    /// A fresh model, and batches of `size` images.
    ///
    /// # Errors
    /// The device has no room for them.
    pub fn new(work: Work, size: usize, device: Device, seed: u64) -> Result<Self> {
        let model = work.model(&mut Factory::new(device, seed))?;
        let batches = work.batches(size, device, &mut Rng::new(seed).fold_in(1))?;
        Ok(Trainer {
            optimizer: sgd(&model)?,
            model,
            batches,
        })
    }

    /// Takes one step.
    ///
    /// # Errors
    /// Those of the model and the optimizer.
    pub fn step(&mut self) -> Result<()> {
        let (images, labels) = self.batches.next();
        let tape = Tape::new();
        let logits = self.model.forward(&tape, &tape.constant(images.clone()))?;
        let gradients = tape.backward(&cross_entropy(&logits, labels)?)?;
        Ok(self.optimizer.step(&gradients)?)
    }
}

/// Trains one replica of a model that several ranks share.
pub struct DdpTrainer {
    model: Ddp<Box<dyn Module>>,
    optimizer: Sgd,
    batches: Batches,
}

impl DdpTrainer {
    /// This rank's replica, and batches of `size` images of its own.
    ///
    /// # Errors
    /// The device has no room for them, or the group has failed.
    pub fn new(work: Work, size: usize, group: Arc<dyn ProcessGroup>) -> Result<Self> {
        let (device, rank) = (group.device(), group.rank() as u64);
        let model = work.model(&mut Factory::new(device, 0))?;
        let batches = work.batches(size, device, &mut Rng::new(0).fold_in(1 + rank))?;
        let model = Ddp::new(model, group, DdpConfig::default())?;
        Ok(DdpTrainer {
            optimizer: sgd(model.module())?,
            model,
            batches,
        })
    }

    /// Takes one step.
    ///
    /// # Errors
    /// Those of the model, the group and the optimizer.
    pub fn step(&mut self) -> Result<()> {
        let (images, labels) = self.batches.next();
        train::step(&self.model, &mut self.optimizer, images.clone(), labels).map(drop)
    }

    /// Compares the parameters, which should be the same on all ranks bit for bit.
    ///
    /// # Errors
    /// They differ, or the group has failed.
    pub fn check_replicas(&self) -> Result<()> {
        let group = self.model.group();
        let mine = fingerprint(&self.model.parameters())?;
        let hash = Tensor::from_slice(mine.as_bytes(), [mine.len()], group.device())?;
        let first = group.broadcast(hash, 0)?.wait()?.to_vec::<u8>()?;
        let steps = self.batches.taken;
        ensure!(
            first == mine.as_bytes(),
            "replicas differ after {steps} steps"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_the_peers_sizes() {
        for (work, parameters) in [
            (Work::Mlp, 1_863_690),
            (Work::Tiny, 101_770),
            (Work::Cnn, 174_970),
        ] {
            let model = work.model(&mut Factory::new(Device::cpu(0), 0)).unwrap();
            let count: usize = model.parameters().iter().map(|p| p.shape().numel()).sum();
            assert_eq!(count, parameters, "{}", work.name());
        }
    }

    #[test]
    fn arithmetic_is_counted() {
        for (work, giga) in [(Work::Mlp, 1.22), (Work::Tiny, 0.026), (Work::Cnn, 7.7)] {
            let counted = work.flops(work.batch_size()) * 1e-9;
            assert!(
                (counted / giga - 1.0).abs() < 0.03,
                "{}: {counted}",
                work.name()
            );
        }
    }
}
