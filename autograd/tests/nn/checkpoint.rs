//! Recomputation: the same numbers, less memory.

use crate::{CPU, close, f, vals};
use phalanx_autograd::nn::{Activation, BatchNorm2d, Dropout, Linear, Module};
use phalanx_autograd::{Param, Result, Tape, Var, checkpoint};
use phalanx_tensor::{DType, Device, Rng, Tensor};

/// A block with dropout, batch norm and a parameter that is used twice.
struct Block {
    linear: Linear,
    norm: BatchNorm2d,
    dropout: Dropout,
}

impl Block {
    fn new() -> Block {
        let mut f = f();
        f.dtype = DType::F64;
        Block {
            linear: Linear::new(6, 6, &mut f)
                .unwrap()
                .with_activation(Activation::Tanh),
            norm: BatchNorm2d::new(6, &mut f).unwrap(),
            dropout: Dropout::new(0.5, &mut f).unwrap(),
        }
    }
    fn run(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let h = self.dropout.forward(tape, &self.linear.forward(tape, x)?)?;
        let h = self.norm.forward(tape, &h)?;
        self.dropout.forward(tape, &self.linear.forward(tape, &h)?)
    }
}

#[test]
fn a_checkpoint_changes_memory_and_nothing_else() {
    let data = Tensor::randn([4, 6], DType::F64, CPU, &mut Rng::new(1)).unwrap();
    let plain = {
        let block = Block::new();
        let tape = Tape::new();
        let x = tape.input(data.clone()).unwrap();
        let y = block
            .run(&tape, &block.run(&tape, &x).unwrap())
            .unwrap()
            .square()
            .unwrap();
        let plan = tape.plan(&[&y.sum_all().unwrap()]).unwrap().params().len();
        assert_eq!(plan, 4);
        let g = tape.backward(&y.sum_all().unwrap()).unwrap();
        (
            vals(y.value()),
            vals(g.wrt(&x).unwrap()),
            grads(&block, &g),
            stats(&block),
        )
    };
    fn grads(block: &Block, g: &phalanx_autograd::Gradients) -> Vec<Vec<f64>> {
        let of = |p: &Param| vals(g.get(p).unwrap());
        block
            .linear
            .parameters()
            .iter()
            .chain(&block.norm.parameters())
            .map(of)
            .collect()
    }
    fn stats(block: &Block) -> Vec<Vec<f64>> {
        block
            .norm
            .named_buffers()
            .iter()
            .map(|(_, b)| vals(&b.value().unwrap()))
            .collect()
    }
    // Two segments, and the two nested in a third.
    for nested in [false, true] {
        let block = std::sync::Arc::new(Block::new());
        let tape = Tape::new();
        let x = tape.input(data.clone()).unwrap();
        let segment = {
            let block = block.clone();
            move |tape: &Tape, x: &[Var]| block.run(tape, &x[0])
        };
        let both = {
            let segment = segment.clone();
            move |tape: &Tape, x: &[Var]| {
                let h = checkpoint(tape, &[&x[0]], segment.clone())?;
                checkpoint(tape, &[&h], segment.clone())
            }
        };
        let y = if nested {
            checkpoint(&tape, &[&x], both).unwrap()
        } else {
            both(&tape, std::slice::from_ref(&x)).unwrap()
        };
        // The input, four parameters, and the segments.
        assert_eq!(tape.len(), 5 + if nested { 1 } else { 2 });
        let y = y.square().unwrap();
        let loss = y.sum_all().unwrap();
        // Values set now are for the next step.
        for p in block.linear.parameters() {
            p.set(Tensor::zeros(p.shape(), DType::F64, CPU).unwrap())
                .unwrap();
        }
        let plan: Vec<_> = tape
            .plan(&[&loss])
            .unwrap()
            .params()
            .iter()
            .map(Param::id)
            .collect();
        let mut ready = Vec::new();
        let g = tape
            .sweep(phalanx_autograd::Backward {
                roots: &[(&loss, None)],
                on_ready: Some(&mut |p, g| {
                    ready.push(p.id());
                    Ok(Some(g))
                }),
                ..Default::default()
            })
            .unwrap();
        assert_eq!(ready, plan);
        assert_eq!(vals(y.value()), plain.0, "forward");
        close(&vals(g.wrt(&x).unwrap()), &plain.1, 1e-13);
        for (got, want) in grads(&block, &g).iter().zip(&plain.2) {
            close(got, want, 1e-13);
        }
        assert_eq!(stats(&block), plain.3, "statistics move once");
    }
}

#[test]
fn a_checkpointed_chain_peaks_at_one_segment() {
    const N: usize = 4096;
    let peak = |device: usize, checkpointed: bool| {
        let device = Device::cpu(device);
        let w = Param::new(Tensor::full([N], 1.01, DType::F32, device).unwrap());
        let tape = Tape::new();
        let mut h = tape.constant(Tensor::ones([N], DType::F32, device).unwrap());
        device.reset_peak().unwrap();
        let start = device.memory().unwrap().live;
        for _ in 0..8 {
            let w = w.clone();
            let segment = move |tape: &Tape, x: &[Var]| {
                (0..8).try_fold(x[0].clone(), |h, _| h.mul(&tape.leaf(&w)))
            };
            h = if checkpointed {
                checkpoint(&tape, &[&h], segment).unwrap()
            } else {
                segment(&tape, &[h]).unwrap()
            };
        }
        let loss = h.sum_all().unwrap();
        drop(h);
        let gradients = tape.backward(&loss).unwrap();
        let value = gradients.get(&w).unwrap().as_slice::<f32>().unwrap()[0];
        ((device.memory().unwrap().peak - start) / (4 * N), value)
    };
    let ((plain, a), (saved, b)) = (peak(311, false), peak(312, true));
    assert!((a - b).abs() < 1e-3 * a, "{a} {b}");
    // 64 products against 8 segment results and 8 products of the segment at work, with two or
    // three gradients on the way.
    assert!((63..=67).contains(&plain), "{plain}");
    assert!((16..=20).contains(&saved), "{saved}");
}

#[test]
fn what_is_frozen_or_thawed_before_backward_counts_as_in_the_forward_pass() {
    let scalar = |v: f64| Tensor::scalar(v, CPU).unwrap();
    // `trained · frozen · x`, in one segment or with a second one inside.
    for nested in [false, true] {
        let (trained, frozen) = (Param::new(scalar(3.0)), Param::new(scalar(5.0)));
        frozen.set_requires_grad(false);
        let product = {
            let (trained, frozen) = (trained.clone(), frozen.clone());
            move |tape: &Tape, x: &[Var]| x[0].mul(&tape.leaf(&trained))?.mul(&tape.leaf(&frozen))
        };
        let tape = Tape::new();
        let x = tape.input(scalar(7.0)).unwrap();
        let y = match nested {
            false => checkpoint(&tape, &[&x], product),
            true => checkpoint(&tape, &[&x], move |tape, x| {
                checkpoint(tape, &[&x[0]], product.clone())
            }),
        };
        let y = y.unwrap();
        assert_eq!(tape.len(), 3, "the input, one parameter, the segment");
        // What happens now is for the next step.
        frozen.set(scalar(100.0)).unwrap();
        frozen.set_requires_grad(true);
        trained.set(scalar(1000.0)).unwrap();
        trained.set_requires_grad(false);
        let gradients = tape.backward(&y).unwrap();
        assert_eq!(vals(gradients.wrt(&x).unwrap()), [15.0]);
        assert_eq!(vals(gradients.get(&trained).unwrap()), [35.0]);
        assert!(gradients.get(&frozen).is_none());
        // And in the next step it counts.
        let again = tape.leaf(&frozen).mul(&tape.leaf(&trained)).unwrap();
        let gradients = tape.backward(&again).unwrap();
        assert_eq!(vals(gradients.get(&frozen).unwrap()), [1000.0]);
        assert!(gradients.get(&trained).is_none());
    }
}

#[test]
fn a_segment_that_switches_a_parameter_itself_is_replayed_as_it_was() {
    let w = Param::new(Tensor::scalar(3.0f64, CPU).unwrap());
    let run = |checkpointed: bool| {
        let switched = w.clone();
        let segment = move |tape: &Tape, x: &[Var]| {
            let first = x[0].mul(&tape.leaf(&switched))?;
            switched.set_requires_grad(false);
            let second = first.mul(&tape.leaf(&switched));
            switched.set_requires_grad(true);
            second
        };
        let tape = Tape::new();
        let x = tape.input(Tensor::scalar(2.0f64, CPU).unwrap()).unwrap();
        let y = match checkpointed {
            true => checkpoint(&tape, &[&x], segment).unwrap(),
            false => segment(&tape, std::slice::from_ref(&x)).unwrap(),
        };
        let gradients = tape.backward(&y).unwrap();
        (
            vals(gradients.wrt(&x).unwrap()),
            vals(gradients.get(&w).unwrap()),
        )
    };
    assert_eq!(run(false), (vec![9.0], vec![6.0]));
    assert_eq!(run(true), run(false));
}

#[test]
fn a_segment_that_cuts_itself_off_gives_zeros() {
    let w = Param::new(Tensor::scalar(3.0f64, CPU).unwrap());
    let other = Param::new(Tensor::scalar(4.0f64, CPU).unwrap());
    let tape = Tape::new();
    let x = tape.input(Tensor::scalar(2.0f64, CPU).unwrap()).unwrap();
    let inner = w.clone();
    let cut = checkpoint(&tape, &[&x], move |tape, x| {
        Ok(x[0].mul(&tape.leaf(&inner))?.detach())
    })
    .unwrap();
    let loss = cut.mul(&tape.leaf(&other)).unwrap().add(&x).unwrap();
    let gradients = tape.backward(&loss).unwrap();
    assert_eq!(vals(gradients.wrt(&x).unwrap()), [1.0]);
    assert_eq!(vals(gradients.get(&other).unwrap()), [6.0]);
    assert_eq!(vals(gradients.get(&w).unwrap()), [0.0]);
}
