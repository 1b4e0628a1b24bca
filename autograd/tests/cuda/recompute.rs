//! The backward pass in two halves, and recomputation, on a card: the CPU's gradients, and as little memory.

use std::sync::Arc;

use phalanx_autograd::nn::{Activation, BatchNorm2d, Dropout, Factory, Linear, Module};
use phalanx_autograd::{Backward, Gradients, Param, Result, Tape, Var, checkpoint};
use phalanx_tensor::{DType, Device, Rng, Tensor};

use crate::support::{assert_near, read};

/// A block with dropout, batch norm and parameters that are used twice.
struct Block {
    linear: Linear,
    norm: BatchNorm2d,
    dropout: Dropout,
}

impl Block {
    fn new(device: Device) -> Result<Block> {
        let mut f = Factory::new(device, 7);
        f.dtype = DType::F64;
        Ok(Block {
            linear: Linear::new(6, 6, &mut f)?.with_activation(Activation::Tanh),
            norm: BatchNorm2d::new(6, &mut f)?,
            dropout: Dropout::new(0.5, &mut f)?,
        })
    }

    fn run(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let h = self.dropout.forward(tape, &self.linear.forward(tape, x)?)?;
        let h = self.norm.forward(tape, &h)?;
        self.dropout.forward(tape, &self.linear.forward(tape, &h)?)
    }
}

/// How the gradients are computed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    Whole,
    InHalves,
    Recomputed,
}

/// Two steps of two blocks in a row: outputs, gradients of the input and of the parameters, statistics.
fn run(device: Device, how: How) -> Result<Vec<(String, Tensor)>> {
    let data = Tensor::randn([5, 6], DType::F64, Device::cpu(0), &mut Rng::new(1))?;
    let data = data.to_device(device)?;
    let block = Arc::new(Block::new(device)?);
    let params = [block.linear.parameters(), block.norm.parameters()].concat();
    let mut found = Vec::new();
    for step in 0..2 {
        let tape = Tape::new();
        let x = tape.input(data.clone())?;
        let segment = {
            let block = Arc::clone(&block);
            move |tape: &Tape, x: &[Var]| block.run(tape, &x[0])
        };
        let y = match how {
            How::Recomputed => {
                let h = checkpoint(&tape, &[&x], segment.clone())?;
                checkpoint(&tape, &[&h], segment)?
            }
            _ => block.run(&tape, &block.run(&tape, &x)?)?,
        };
        let loss = y.square()?.sum_all()?;
        let roots = [(&loss, None)];
        let backward = Backward {
            roots: &roots,
            ..Backward::default()
        };
        let (of_x, of_params) = match how {
            How::InHalves => {
                let (mut inputs, later) = tape.sweep_inputs(backward)?;
                assert!(params.iter().all(|p| inputs.get(p).is_none()));
                let of_x = inputs.take_wrt(&x);
                drop(inputs);
                (of_x, later.run(Gradients::new(), None)?)
            }
            _ => {
                let mut all = tape.sweep(backward)?;
                (all.take_wrt(&x), all)
            }
        };
        found.push((format!("output {step}"), y.value().clone()));
        found.push((format!("input {step}"), of_x.expect("the loss reaches it")));
        for (i, param) in params.iter().enumerate() {
            let grad = of_params.get(param).expect("the loss reaches it");
            found.push((format!("parameter {i}, {step}"), grad.clone()));
        }
    }
    for (name, buffer) in block.norm.named_buffers() {
        found.push((name, buffer.value()?));
    }
    Ok(found)
}

#[test]
fn gradients_are_the_cpus_however_they_are_computed() {
    let (device, _turn) = card!();
    let whole = run(device, How::Whole).unwrap();
    for how in [How::Whole, How::InHalves, How::Recomputed] {
        let (here, there) = (run(Device::cpu(0), how).unwrap(), run(device, how).unwrap());
        assert_eq!(here.len(), there.len());
        for ((name, got), (_, expected)) in there.iter().zip(&here) {
            assert_near(&format!("{how:?}: {name}"), got, expected, 0.0);
        }
        // What is computed the same way gives the same bits; a recomputed parameter is summed in another order.
        for ((name, got), (_, expected)) in there.iter().zip(&whole) {
            if how == How::InHalves {
                assert_eq!(read(got), read(expected), "{how:?}: {name}");
            } else {
                assert_near(&format!("{how:?}, whole: {name}"), got, expected, 0.0);
            }
        }
    }
}

/// The most that a chain of 64 products holds, in tensors, and the gradient of its factor.
fn peak(device: Device, checkpointed: bool) -> Result<(usize, f64)> {
    const N: usize = 4096;
    let w = Param::new(Tensor::full([N], 1.01, DType::F32, device)?);
    let tape = Tape::new();
    let mut h = tape.constant(Tensor::ones([N], DType::F32, device)?);
    device.reset_peak()?;
    let start = device.memory()?.live;
    for _ in 0..8 {
        let w = w.clone();
        let segment = move |tape: &Tape, x: &[Var]| {
            (0..8).try_fold(x[0].clone(), |h, _| h.mul(&tape.leaf(&w)))
        };
        h = match checkpointed {
            true => checkpoint(&tape, &[&h], segment)?,
            false => segment(&tape, &[h])?,
        };
    }
    let loss = h.sum_all()?;
    drop(h);
    let gradients = tape.backward(&loss)?;
    let value = read(gradients.get(&w).expect("the loss reaches it"))[0];
    Ok(((device.memory()?.peak - start) / (4 * N), value))
}

/// 64 products against 8 results of segments and 8 products of the segment at work, and a few gradients.
#[test]
fn recomputation_saves_a_cards_memory_as_it_saves_the_cpus() {
    let (device, _turn) = card!();
    let (plain, expected) = peak(device, false).unwrap();
    let (saved, found) = peak(device, true).unwrap();
    assert!(
        (found - expected).abs() < 1e-3 * expected,
        "{found} {expected}"
    );
    let here = Device::cpu(317);
    let (plain_here, saved_here) = (peak(here, false).unwrap().0, peak(here, true).unwrap().0);
    eprintln!(
        "tensors at most: {plain} and {saved} on the card, {plain_here} and {saved_here} on the CPU"
    );
    assert!(plain.abs_diff(plain_here) <= 2, "{plain} {plain_here}");
    assert!(saved.abs_diff(saved_here) <= 2, "{saved} {saved_here}");
    assert!(3 * saved < plain, "{saved} {plain}");
}
