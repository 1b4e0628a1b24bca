//! Models that are cut into stages.

use phalanx_autograd::nn::{self, BatchNorm2d, Factory, Linear, Module, Visitor};
use phalanx_autograd::{Result, Tape, Var};
use phalanx_parallel::pipeline::StageGraph;
use phalanx_tensor::ops::softmax::{CrossEntropyConfig, Reduction};
use phalanx_tensor::{DType, Device, Tensor};

pub const INPUTS: usize = 3;
pub const CLASSES: usize = 4;

/// A stage: takes everything that comes to it, adds it up after a layer for each, and gives a tensor of its own width.
pub struct Part {
    layers: Vec<Linear>,
}

/// The width of a stage's output: all are different.
pub fn width(stage: usize) -> usize {
    5 + (stage * 3) % 7
}

impl Part {
    pub fn new(graph: &StageGraph, stage: usize, dtype: DType, device: Device) -> Result<Part> {
        let mut f = Factory::new(device, 100 + stage as u64);
        f.dtype = dtype;
        let before = graph.predecessors(stage);
        let inputs: Vec<usize> = match before.is_empty() {
            true => vec![INPUTS],
            false => before.iter().map(|&s| width(usize::from(s))).collect(),
        };
        let outputs = match graph.successors(stage).is_empty() {
            true => CLASSES,
            false => width(stage),
        };
        let layers = inputs.into_iter().map(|n| Linear::new(n, outputs, &mut f));
        Ok(Part {
            layers: layers.collect::<Result<_>>()?,
        })
    }
}

impl Module for Part {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        nn::one_output("Part", self.forward_all(tape, std::slice::from_ref(x))?)
    }

    fn forward_all(&self, tape: &Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        let mut sum: Option<Var> = None;
        for (layer, x) in self.layers.iter().zip(inputs) {
            let y = layer.forward(tape, x)?;
            sum = Some(match sum {
                Some(sum) => sum.add(&y)?,
                None => y,
            });
        }
        Ok(vec![sum.unwrap().tanh()?])
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        for (i, layer) in self.layers.iter().enumerate() {
            v.child(&i.to_string(), layer);
        }
    }
}

/// A stage of layers.
pub fn parts(graph: &StageGraph, stage: usize, dtype: DType, device: Device) -> Box<dyn Module> {
    Box::new(Part::new(graph, stage, dtype, device).unwrap())
}

/// Batch norm of rows.
struct Normed {
    part: Part,
    norm: BatchNorm2d,
}

impl Module for Normed {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        nn::one_output("Normed", self.forward_all(tape, std::slice::from_ref(x))?)
    }

    fn forward_all(&self, tape: &Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        let y = self.part.forward_all(tape, inputs)?.remove(0);
        let dims = y.dims().to_vec();
        let image = y.reshape([dims[0], dims[1], 1, 1])?;
        Ok(vec![
            self.norm
                .forward(tape, &image)?
                .reshape([dims[0], dims[1]])?,
        ])
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.child("part", &self.part);
        v.child("norm", &self.norm);
    }
}

/// A stage of layers and a batch norm.
pub fn batch_norm_parts(
    graph: &StageGraph,
    stage: usize,
    dtype: DType,
    device: Device,
) -> Box<dyn Module> {
    let part = Part::new(graph, stage, dtype, device).unwrap();
    let mut f = Factory::new(device, 0);
    f.dtype = dtype;
    let outputs = match graph.successors(stage).is_empty() {
        true => CLASSES,
        false => width(stage),
    };
    let norm = BatchNorm2d::new(outputs, &mut f).unwrap();
    Box::new(Normed { part, norm })
}

/// A batch of rows and their classes.
pub fn batch(rows: usize, step: usize, dtype: DType, device: Device) -> Result<(Tensor, Tensor)> {
    let x: Vec<f64> = (0..rows * INPUTS)
        .map(|i| ((i * 37 + step * 11) % 23) as f64 / 11.0 - 1.0)
        .collect();
    let y: Vec<i64> = (0..rows)
        .map(|i| ((i * 7 + step) % CLASSES) as i64)
        .collect();
    let x = Tensor::from_vec(x, [rows, INPUTS], device)?.cast(dtype)?;
    Ok((x, Tensor::from_vec(y, rows, device)?))
}

/// The sum of the cross entropy over the rows, and how many there are.
pub fn loss(_: &Tape, outputs: &[Var], targets: &[Tensor]) -> Result<(Var, f64)> {
    let rows = targets[0].dims()[0] as f64;
    let config = CrossEntropyConfig {
        reduction: Reduction::Sum,
        ..CrossEntropyConfig::default()
    };
    Ok((outputs[0].cross_entropy(&targets[0], &config)?, rows))
}
