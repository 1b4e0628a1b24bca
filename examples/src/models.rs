//! The models that examples and benchmarks train.

use phalanx_autograd::nn::{
    Activation, BatchNorm2d, Conv2d, Conv2dConfig, Factory, Flatten, Linear, MaxPool2d, Module,
    Pool2dConfig, Relu, Sequential, Visitor,
};
use phalanx_autograd::{Result, Tape, Var};
use phalanx_parallel::pipeline::Layers;

use crate::data::{CLASSES, SIDE};

/// Linear layers with these numbers of inputs and outputs, ReLU between them.
///
/// # Errors
/// The device has no room for the parameters.
pub fn mlp(sizes: &[usize], f: &mut Factory) -> Result<Sequential> {
    let last = sizes.len().saturating_sub(2);
    let layers = sizes.windows(2).enumerate().map(|(index, pair)| {
        let relu = if index < last {
            Activation::Relu
        } else {
            Activation::None
        };
        Ok(Box::new(Linear::new(pair[0], pair[1], f)?.with_activation(relu)) as Box<dyn Module>)
    });
    layers.collect()
}

/// An MLP for 28×28 images, 784-1024-1024-10.
///
/// # Errors
/// As [`mlp`].
pub fn image_mlp(f: &mut Factory) -> Result<Sequential> {
    let layers = mlp(&[SIDE * SIDE, 1024, 1024, CLASSES], f)?;
    Ok(Sequential::new().with(Flatten).with(layers))
}

/// A small convolutional network for 28×28 images of one channel: two convolutions, two linear layers.
///
/// # Errors
/// The device has no room for the parameters.
pub fn small_cnn(f: &mut Factory) -> Result<Sequential> {
    const QUARTER: usize = SIDE / 4;
    let config = Conv2dConfig {
        padding: [1, 1],
        ..Conv2dConfig::default()
    };
    let half = || MaxPool2d(Pool2dConfig::new([2, 2]));
    let hidden = Linear::new(32 * QUARTER * QUARTER, 128, f)?.with_activation(Activation::Relu);
    Ok(Sequential::new()
        .with(Conv2d::new(1, 16, [3, 3], config, f)?)
        .with(Relu)
        .with(half())
        .with(Conv2d::new(16, 32, [3, 3], config, f)?)
        .with(Relu)
        .with(half())
        .with(Flatten)
        .with(hidden)
        .with(Linear::new(128, CLASSES, f)?))
}

/// The layers of a perceptron for 28×28 images with so many hidden layers of this width, to be cut into stages.
pub fn mlp_layers(hidden: usize, width: usize, seed: u64) -> Layers {
    let mut layers = Layers::new(seed).layer("flatten", |_| Ok(Box::new(Flatten)));
    for at in 0..hidden {
        let inputs = if at == 0 { SIDE * SIDE } else { width };
        layers = layers.layer(format!("hidden{at}"), move |f| {
            Ok(Box::new(
                Linear::new(inputs, width, f)?.with_activation(Activation::Relu),
            ))
        });
    }
    layers.layer("out", move |f| {
        Ok(Box::new(Linear::new(width, CLASSES, f)?))
    })
}

/// The layers of a convolutional network for 28×28 images of one channel, to be cut into stages: two times four
/// convolutions of 3×3 with batch norm, the image halved after each four.
pub fn cnn_layers(seed: u64) -> Layers {
    const QUARTER: usize = SIDE / 4;
    let mut layers = Layers::new(seed);
    for at in 0..8 {
        let channels = |at: usize| if at < 4 { 16 } else { 32 };
        let inputs = if at == 0 { 1 } else { channels(at - 1) };
        layers = layers.layer(format!("conv{at}"), move |f| {
            let config = Conv2dConfig {
                padding: [1, 1],
                ..Conv2dConfig::default()
            };
            let conv = Conv2d::new(inputs, channels(at), [3, 3], config, f)?;
            let norm = BatchNorm2d::new(channels(at), f)?.with_relu();
            let layer = Sequential::new().with(conv).with(norm);
            Ok(match at % 4 {
                3 => Box::new(layer.with(MaxPool2d(Pool2dConfig::new([2, 2])))),
                _ => Box::new(layer),
            })
        });
    }
    layers.layer("out", |f| {
        let linear = Linear::new(32 * QUARTER * QUARTER, CLASSES, f)?;
        Ok(Box::new(Sequential::new().with(Flatten).with(linear)))
    })
}

/// ResNet-14 for 28×28 images of one channel: the networks of He et al. 2015, section 4.2, with two blocks in each of
/// three stages of 16, 32 and 64 channels.
pub struct ResNet14 {
    stem: Conv2d,
    norm: BatchNorm2d,
    body: Sequential,
    head: Linear,
}

impl ResNet14 {
    /// One with fresh parameters.
    ///
    /// # Errors
    /// The device has no room for them.
    pub fn new(f: &mut Factory) -> Result<Self> {
        let stem = conv(1, 16, 3, 1, f)?;
        let stages = [
            (16, 16, 1),
            (16, 16, 1),
            (16, 32, 2),
            (32, 32, 1),
            (32, 64, 2),
            (64, 64, 1),
        ];
        let blocks = stages.map(|(inputs, outputs, stride)| {
            Ok(Box::new(Residual::new(inputs, outputs, stride, f)?) as Box<dyn Module>)
        });
        Ok(ResNet14 {
            stem,
            norm: BatchNorm2d::new(16, f)?.with_relu(),
            body: blocks.into_iter().collect::<Result<_>>()?,
            head: Linear::new(64, CLASSES, f)?,
        })
    }
}

impl Module for ResNet14 {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let x = within("stem", self.stem.forward(tape, x))?;
        let x = within("norm", self.norm.forward(tape, &x))?;
        let x = within("body", self.body.forward(tape, &x))?;
        within("head", self.head.forward(tape, &x.mean(&[2, 3], false)?))
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.child("stem", &self.stem);
        v.child("norm", &self.norm);
        v.child("body", &self.body);
        v.child("head", &self.head);
    }
}

/// Two 3×3 convolutions around a shortcut, which projects where the shape changes.
struct Residual {
    conv1: Conv2d,
    norm1: BatchNorm2d,
    conv2: Conv2d,
    norm2: BatchNorm2d,
    shortcut: Sequential,
}

impl Residual {
    fn new(inputs: usize, outputs: usize, stride: usize, f: &mut Factory) -> Result<Self> {
        let mut shortcut = Sequential::new();
        if stride != 1 || inputs != outputs {
            let project = conv(inputs, outputs, 1, stride, f)?;
            shortcut = shortcut.with(project).with(BatchNorm2d::new(outputs, f)?);
        }
        Ok(Residual {
            conv1: conv(inputs, outputs, 3, stride, f)?,
            norm1: BatchNorm2d::new(outputs, f)?.with_relu(),
            conv2: conv(outputs, outputs, 3, 1, f)?,
            norm2: BatchNorm2d::new(outputs, f)?.with_relu(),
            shortcut,
        })
    }
}

impl Module for Residual {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let y = within("conv1", self.conv1.forward(tape, x))?;
        let y = within("norm1", self.norm1.forward(tape, &y))?;
        let y = within("conv2", self.conv2.forward(tape, &y))?;
        let x = within("shortcut", self.shortcut.forward(tape, x))?;
        within("norm2", self.norm2.forward_residual(tape, &y, &x))
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.child("conv1", &self.conv1);
        v.child("norm1", &self.norm1);
        v.child("conv2", &self.conv2);
        v.child("norm2", &self.norm2);
        v.child("shortcut", &self.shortcut);
    }
}

/// The output of the module `name`, or its error with that name.
fn within(name: &str, output: Result<Var>) -> Result<Var> {
    output.map_err(|error| error.in_module(name))
}

/// A square convolution without bias that keeps the size, but for the stride.
fn conv(
    inputs: usize,
    outputs: usize,
    size: usize,
    stride: usize,
    f: &mut Factory,
) -> Result<Conv2d> {
    let config = Conv2dConfig {
        stride: [stride, stride],
        padding: [size / 2, size / 2],
        ..Conv2dConfig::default()
    };
    Conv2d::without_bias(inputs, outputs, [size, size], config, f)
}
