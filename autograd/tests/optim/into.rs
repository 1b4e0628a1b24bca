//! Gradients that are added to given ones, micro-batch after micro-batch, on any device: the same bits
//! whether a backward pass is whole or split, at addresses that stay.

use crate::place;
use phalanx_autograd::nn::{
    Activation, BatchNorm2d, Conv2d, Conv2dConfig, Embedding, Factory, Flatten, Init, Linear,
    Module, Sequential, Visitor,
};
use phalanx_autograd::{Backward, Error, Gradients, Param, Result, Tape, Var};
use phalanx_tensor::{DType, Device, Rng, Tensor};

const MICRO_BATCHES: u64 = 3;

/// Linear layers, one of them used twice, and the operands of a product as parameters; a table whose rows
/// are looked up twice.
struct Mlp {
    first: Linear,
    middle: Linear,
    table: Embedding,
    left: Param,
    right: Param,
    ids: Tensor,
}

impl Mlp {
    fn new(f: &mut Factory) -> Result<Mlp> {
        let uniform = Init::fan_in_uniform(4);
        Ok(Mlp {
            first: Linear::new(12, 20, f)?.with_activation(Activation::Tanh),
            middle: Linear::new(20, 20, f)?.with_activation(Activation::Silu),
            table: Embedding::new(7, 20, f)?,
            left: Param::new(f.tensor([6, 6], uniform)?),
            right: Param::new(f.tensor([20], uniform)?),
            ids: Tensor::from_slice(&[3i64, 0, 3, 6, 1, 3], [6], f.device)?,
        })
    }
}

impl Module for Mlp {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let h = self.first.forward(tape, x)?;
        let h = self.middle.forward(tape, &self.middle.forward(tape, &h)?)?;
        let rows = tape.leaf(&self.table.weight).embedding(&self.ids)?;
        let h = tape.leaf(&self.left).matmul(&h.add(&rows)?)?;
        h.matmul(&tape.leaf(&self.right))
    }
    fn visit(&self, v: &mut Visitor<'_>) {
        v.child("first", &self.first);
        v.child("middle", &self.middle);
        v.child("table", &self.table);
        v.param("left", &self.left);
        v.param("right", &self.right);
    }
}

fn cnn(f: &mut Factory) -> Result<Sequential> {
    let same = Conv2dConfig::default().with_padding(1);
    Ok(Sequential::new()
        .with(Conv2d::new(3, 8, [3, 3], same, f)?)
        .with(BatchNorm2d::new(8, f)?.with_relu())
        .with(Conv2d::new(8, 8, [3, 3], same.with_groups(8), f)?)
        .with(Conv2d::new(8, 4, [3, 3], same.with_stride(2), f)?)
        .with(Flatten)
        .with(Linear::new(4 * 3 * 3, 5, f)?))
}

/// A model, and the shape of what it takes.
type Model = (Box<dyn Module>, &'static [usize]);

fn models(device: Device, dtype: DType) -> Vec<Model> {
    let mut f = Factory {
        dtype,
        ..Factory::new(device, 5)
    };
    vec![
        (Box::new(Mlp::new(&mut f).unwrap()), &[6, 12]),
        (Box::new(cnn(&mut f).unwrap()), &[4, 3, 6, 6]),
    ]
}

/// The input of a micro-batch, and its loss.
fn forward(tape: &Tape, (model, shape): &Model, i: u64, like: &Param) -> (Var, Var) {
    let drawn = Tensor::randn(*shape, DType::F64, Device::cpu(0), &mut Rng::new(i)).unwrap();
    let x = drawn.cast(like.dtype()).unwrap();
    let x = tape.input(x.to_device(like.device()).unwrap()).unwrap();
    let y = model.forward(tape, &x).unwrap();
    (x, y.square().unwrap().sum_all().unwrap())
}

/// How the backward passes run.
#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    Whole,
    /// The second half right behind the first.
    Split,
    /// The second halves when all first ones have run.
    Late,
}

fn run(model: &Model, how: How) -> Gradients {
    let like = &model.0.parameters()[0];
    let mut sums = Gradients::new();
    let mut late = Vec::new();
    for i in 0..MICRO_BATCHES {
        let tape = Tape::new();
        let (x, loss) = forward(&tape, model, i, like);
        let roots = [(&loss, None)];
        let mut backward = Backward {
            roots: &roots,
            ..Backward::default()
        };
        if how == How::Whole {
            backward.into = sums;
            sums = tape.sweep(backward).unwrap();
            assert!(sums.take_wrt(&x).is_some());
            continue;
        }
        let (first, later) = tape.sweep_inputs(backward).unwrap();
        assert!(first.is_empty() && first.wrt(&x).is_some());
        match how {
            How::Late => late.push(later),
            _ => sums = later.run(sums, None).unwrap(),
        }
    }
    for later in late {
        sums = later.run(sums, None).unwrap();
    }
    sums
}

fn read(t: &Tensor) -> Vec<f64> {
    let here = t.to_device(Device::cpu(0)).unwrap();
    here.cast(DType::F64).unwrap().to_vec().unwrap()
}

fn bits(gradients: &Gradients, params: &[Param]) -> Vec<Vec<u64>> {
    let of = |p: &Param| read(gradients.get(p).unwrap());
    let bits = |values: Vec<f64>| values.into_iter().map(f64::to_bits).collect();
    params.iter().map(of).map(bits).collect()
}

#[test]
fn whole_and_split_passes_sum_to_the_same_bits() {
    let Some((device, _turn)) = place(421) else {
        return;
    };
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        for (model, which) in models(device, dtype).iter().zip(["MLP", "CNN"]) {
            let params = model.0.parameters();
            let whole = run(model, How::Whole);
            assert_eq!(whole.len(), params.len());
            for how in [How::Split, How::Late] {
                let split = run(model, how);
                let same = bits(&split, &params) == bits(&whole, &params);
                assert!(same, "{which} {dtype} {how:?}");
            }
            // Against gradients that are made one by one.
            let mut apart = Gradients::new();
            for i in 0..MICRO_BATCHES {
                let tape = Tape::new();
                let (_, loss) = forward(&tape, model, i, &params[0]);
                apart.accumulate(tape.backward(&loss).unwrap()).unwrap();
            }
            let tolerance = match dtype {
                DType::F64 => 1e-12,
                DType::F32 => 1e-4,
                _ => 3e-2,
            };
            for p in &params {
                let (sum, apart) = (whole.get(p).unwrap(), apart.get(p).unwrap());
                assert_eq!(sum.dtype(), p.grad_dtype());
                let apart = read(apart);
                let size = apart.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
                for (a, b) in read(sum).iter().zip(&apart) {
                    let what = format!("{which} {dtype} {p:?}: {a} and {b}");
                    assert!((a - b).abs() <= tolerance * size, "{what}");
                }
            }
        }
    }
}

#[test]
fn what_is_added_to_stays_where_it_is() {
    let Some((device, _turn)) = place(422) else {
        return;
    };
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        for split in [false, true] {
            for model in models(device, dtype) {
                let params = model.0.parameters();
                let idle = Param::new(Tensor::full([5], 3.0, dtype, device).unwrap());
                let mut sums = Gradients::new();
                let kept = Tensor::full([5], 0.1, idle.grad_dtype(), device).unwrap();
                sums.insert(&idle, kept);
                let at = |sums: &Gradients| -> Vec<u64> {
                    let all = params.iter().chain([&idle]);
                    all.filter_map(|p| Some(sums.get(p)?.address())).collect()
                };
                let mut places = at(&sums);
                let mut told = Vec::new();
                let tape = Tape::new();
                for i in 0..4 {
                    let (_, loss) = forward(&tape, &model, i, &params[0]);
                    told.clear();
                    let mut hook = |p: &Param, sum: Tensor| {
                        told.push((p.id(), sum.address()));
                        Ok(Some(sum))
                    };
                    let roots = [(&loss, None)];
                    let mut backward = Backward {
                        roots: &roots,
                        ..Backward::default()
                    };
                    sums = match split {
                        true => {
                            let later = tape.sweep_inputs(backward).unwrap().1;
                            later.run(sums, Some(&mut hook)).unwrap()
                        }
                        false => {
                            backward.into = sums;
                            backward.on_ready = Some(&mut hook);
                            tape.sweep(backward).unwrap()
                        }
                    };
                    assert_eq!(told.len(), params.len());
                    for (id, address) in &told {
                        assert_eq!(sums.by_id(*id).unwrap().address(), *address);
                    }
                    match i {
                        0 => assert_eq!(at(&sums).last(), places.last()),
                        _ => assert_eq!(at(&sums), places, "{dtype}, micro-batch {i}"),
                    }
                    places = at(&sums);
                }
                // No root reaches it.
                let untouched = Tensor::full([5], 0.1, idle.grad_dtype(), Device::cpu(0)).unwrap();
                assert_eq!(read(sums.get(&idle).unwrap()), read(&untouched));
                assert_eq!(sums.len(), params.len() + 1);
            }
        }
    }
}

/// A weight's gradient is added where it is kept: nothing of its size is asked for.
#[test]
fn a_linear_layer_asks_for_no_second_gradient() {
    const N: usize = 256;
    for (index, dtype, size) in [(423, DType::F32, 4), (424, DType::F64, 8)] {
        let device = Device::cpu(index);
        let mut f = Factory {
            dtype,
            ..Factory::new(device, 5)
        };
        let layer = Linear::new(N, N, &mut f).unwrap();
        let x = Tensor::ones([2, N], dtype, device).unwrap();
        let tape = Tape::new();
        let mut sums = Gradients::new();
        let mut warm = None;
        for i in 0..6 {
            let y = layer.forward(&tape, &tape.constant(x.clone())).unwrap();
            let loss = y.sum_all().unwrap();
            device.reset_peak().unwrap();
            let before = device.memory().unwrap();
            sums = tape
                .sweep(Backward {
                    roots: &[(&loss, None)],
                    into: sums,
                    ..Backward::default()
                })
                .unwrap();
            let after = device.memory().unwrap();
            if i > 0 {
                let more = after.peak - before.live;
                assert!(more < N * N * size / 8, "{dtype}: {more} bytes");
            }
            drop((y, loss));
            let now = device.memory().unwrap();
            if i > 1 {
                assert_eq!(Some(now), warm, "{dtype}, round {i}");
            }
            warm = Some(now);
        }
        assert_eq!(device.memory().unwrap().copies, 0);
    }
}

#[test]
fn a_root_that_is_a_parameter_is_added_too_and_what_is_shared_is_copied() {
    let Some((device, _turn)) = place(425) else {
        return;
    };
    let of = |values: &[f64]| Tensor::from_slice(values, [2], device).unwrap();
    let w = Param::new(of(&[1.0, 2.0]));
    for split in [false, true] {
        let mut sums = Gradients::new();
        let shared = of(&[100.0, 200.0]);
        sums.insert(&w, shared.clone());
        let tape = Tape::new();
        let leaf = tape.leaf(&w);
        let square = leaf.square().unwrap();
        let roots = [
            (&leaf, Some(of(&[10.0, 20.0]))),
            (&square, Some(of(&[1.0, 1.0]))),
        ];
        let mut backward = Backward {
            roots: &roots,
            ..Backward::default()
        };
        sums = match split {
            true => tape
                .sweep_inputs(backward)
                .unwrap()
                .1
                .run(sums, None)
                .unwrap(),
            false => {
                backward.into = sums;
                tape.sweep(backward).unwrap()
            }
        };
        assert_eq!(read(sums.get(&w).unwrap()), [112.0, 224.0]);
        assert_eq!(read(&shared), [100.0, 200.0]);
    }
}

#[test]
fn a_buffer_unlike_its_parameter_is_named_and_the_recording_stays() {
    let cpu = Device::cpu(0);
    let w = Param::new(Tensor::ones([2], DType::F32, cpu).unwrap());
    let tape = Tape::new();
    let loss = tape.leaf(&w).square().unwrap().sum_all().unwrap();
    let with = |shape: [usize; 1], dtype| {
        let mut into = Gradients::new();
        into.insert(&w, Tensor::zeros(shape, dtype, cpu).unwrap());
        into
    };
    let roots = [(&loss, None)];
    for wrong in [with([3], DType::F32), with([2], DType::F64)] {
        let e = tape.sweep(Backward {
            roots: &roots,
            into: wrong,
            ..Backward::default()
        });
        let e = e.unwrap_err();
        assert!(
            matches!(&e, Error::InvalidArgument { op: "backward", .. }),
            "{e}"
        );
    }
    let later = tape.sweep_inputs(Backward {
        roots: &roots,
        ..Backward::default()
    });
    let e = later
        .unwrap()
        .1
        .run(with([3], DType::F32), None)
        .unwrap_err();
    assert!(
        matches!(&e, Error::InvalidArgument { op: "run", .. }),
        "{e}"
    );
}
