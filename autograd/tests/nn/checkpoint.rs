//! Recomputation: the same numbers, less memory.

use crate::{CPU, close, f, vals};
use phalanx_autograd::nn::{Activation, BatchNorm2d, Dropout, Linear, Module};
use phalanx_autograd::{Backward, Gradients, Param, Result, Tape, Var, checkpoint, checkpoint_all};
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

/// What the outputs of a segment with two of them are used for.
#[derive(Debug, Clone, Copy)]
struct Uses {
    first: bool,
    second: bool,
}

#[test]
fn a_segment_of_two_outputs_has_the_gradients_that_it_has_unchecked() {
    let data = Tensor::randn([4, 6], DType::F64, CPU, &mut Rng::new(1)).unwrap();
    let run = |uses: Uses, checkpointed: bool, split: bool| {
        let block = std::sync::Arc::new(Block::new());
        let tape = Tape::new();
        let x = tape.input(data.clone()).unwrap();
        let segment = {
            let block = block.clone();
            move |tape: &Tape, x: &[Var]| {
                let h = block.linear.forward(tape, &x[0])?;
                let dropped = block
                    .dropout
                    .forward(tape, &block.norm.forward(tape, &h)?)?;
                Ok(vec![dropped, h])
            }
        };
        let out = match checkpointed {
            true => checkpoint_all(&tape, &[&x], segment).unwrap(),
            false => segment(&tape, std::slice::from_ref(&x)).unwrap(),
        };
        if checkpointed {
            // The input, four parameters, the segment and its outputs.
            assert_eq!(tape.len(), 5 + 1 + 2);
            assert_eq!(tape.saved_bytes(), 8 * (4 * 6 + 6 * 6 + 3 * 6));
        }
        let mut roots = Vec::new();
        if uses.first {
            roots.push(out[0].square().unwrap().sum_all().unwrap());
        }
        if uses.second {
            roots.push(out[1].exp().unwrap().sum_all().unwrap());
        }
        let roots: Vec<(&Var, Option<Tensor>)> = roots.iter().map(|root| (root, None)).collect();
        let how = Backward {
            roots: &roots,
            ..Backward::default()
        };
        let (first, second) = match split {
            true => {
                let (first, later) = tape.sweep_inputs(how).unwrap();
                (first, later.run(Gradients::new(), None).unwrap())
            }
            false => (tape.sweep(how).unwrap(), Gradients::new()),
        };
        let of = |p: &Param| first.get(p).or(second.get(p)).map(vals);
        let params = [block.linear.parameters(), block.norm.parameters()].concat();
        let of_params: Vec<_> = params.iter().map(of).collect();
        (vals(first.wrt(&x).unwrap()), of_params)
    };
    for (first, second) in [(true, true), (true, false), (false, true)] {
        let uses = Uses { first, second };
        let (of_x, of_params) = run(uses, false, false);
        for split in [false, true] {
            let (x, params) = run(uses, true, split);
            assert_eq!(x, of_x, "{uses:?}, split: {split}");
            for (got, want) in params.iter().zip(&of_params) {
                // The tape has announced the parameters of what is not used: zeros.
                let zeros = || got.as_ref().map(|got| vec![0.0; got.len()]);
                let want = want.clone().or_else(zeros);
                assert_eq!(*got, want, "{uses:?}, split: {split}");
            }
        }
    }
}

#[test]
fn outputs_that_are_inputs_or_cut_off_or_the_same_go_through_a_checkpoint() {
    let scalar = |v: f64| Tensor::scalar(v, CPU).unwrap();
    let tape = Tape::new();
    let x = tape.input(scalar(3.0)).unwrap();
    let out = checkpoint_all(&tape, &[&x], |_, x| {
        let square = x[0].square()?;
        Ok(vec![x[0].clone(), square.detach(), square.clone(), square])
    });
    let out = out.unwrap();
    let sum = out[1..]
        .iter()
        .try_fold(out[0].clone(), |sum, out| sum.add(out));
    let gradients = tape.backward(&sum.unwrap()).unwrap();
    assert_eq!(vals(gradients.wrt(&x).unwrap()), [1.0 + 2.0 * 6.0]);
    // On a tape that records nothing, it is the segment.
    let tape = Tape::inference();
    let x = tape.constant(scalar(3.0));
    let out = checkpoint_all(&tape, &[&x], |_, x| Ok(vec![x[0].neg()?, x[0].clone()])).unwrap();
    assert_eq!((vals(out[0].value()), out.len()), (vec![-3.0], 2));
}

#[test]
fn a_segment_that_gives_another_number_when_run_again_is_named() {
    let (tape, calls) = (Tape::new(), std::cell::Cell::new(0));
    let x = tape.input(Tensor::scalar(3.0, CPU).unwrap()).unwrap();
    let out = checkpoint_all(&tape, &[&x], move |_, x| {
        calls.set(calls.get() + 1);
        Ok(vec![x[0].square()?; 3 - calls.get()])
    });
    let out = out.unwrap();
    let e = tape.backward(&out[0].add(&out[1]).unwrap()).unwrap_err();
    assert!(e.to_string().contains("gave 2 variables, and 1"), "{e}");
}
