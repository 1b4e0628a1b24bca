//! Modules: names, visits, states; layers against PyTorch's conventions; training to the end.

use phalanx_autograd::nn::{
    self, Activation, AdaptiveAvgPool2d, BatchNorm2d, Conv2d, Conv2dConfig, Dropout, Embedding,
    Factory, Fan, Flatten, Init, LayerNorm, Linear, Module, Relu, Sequential, Visitor,
};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Error, Param, Result, State, Tape, Var, checkpoint};
use phalanx_tensor::{DType, Device, Rng, Tensor};

const CPU: Device = Device::cpu(0);

fn f() -> Factory {
    Factory::new(CPU, 7)
}

fn vals(t: &Tensor) -> Vec<f64> {
    t.cast(DType::F64).unwrap().to_vec().unwrap()
}

fn close(a: &[f64], b: &[f64], tol: f64) {
    assert_eq!(a.len(), b.len());
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!(
            (x - y).abs() <= tol * y.abs().max(1.0),
            "element {i}: {x} and {y}"
        );
    }
}

fn names<M: Module>(m: &M) -> Vec<String> {
    m.named_parameters()
        .into_iter()
        .map(|(name, _)| name)
        .collect()
}

/// Two layers that share a weight, inside a container.
struct Tied {
    input: Embedding,
    body: Sequential,
    head: Linear,
}

impl Tied {
    fn new(f: &mut Factory) -> Tied {
        let input = Embedding::new(5, 3, f).unwrap();
        let mut head = Linear::without_bias(3, 5, f).unwrap();
        head.weight = input.weight.clone();
        let body = Sequential::new()
            .with(Linear::new(3, 3, f).unwrap())
            .with(LayerNorm::new(3, f).unwrap())
            .with(Dropout::new(0.5, 1));
        Tied { input, body, head }
    }
}

impl Module for Tied {
    fn forward(&self, tape: &Tape, ids: &Var) -> Result<Var> {
        let x = self.input.forward(tape, ids)?;
        self.head.forward(tape, &self.body.forward(tape, &x)?)
    }
    fn visit(&self, v: &mut Visitor<'_>) {
        v.child("input", &self.input);
        v.child("body", &self.body);
        v.child("head", &self.head);
    }
}

fn cnn(f: &mut Factory) -> Sequential {
    let same = Conv2dConfig::default().with_padding(1);
    Sequential::new()
        .with(Conv2d::without_bias(1, 4, [3, 3], same, f).unwrap())
        .with(BatchNorm2d::new(4, f).unwrap().with_relu())
        .with(AdaptiveAvgPool2d([2, 2]))
        .with(Flatten)
        .with(Linear::new(16, 3, f).unwrap())
}

#[test]
fn parts_have_pytorchs_names() {
    let model = cnn(&mut f());
    assert_eq!(
        names(&model),
        ["0.weight", "1.weight", "1.bias", "4.weight", "4.bias"]
    );
    let buffers: Vec<_> = model
        .named_buffers()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        buffers,
        ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    );
}

#[test]
fn a_shared_parameter_is_visited_once_and_gets_one_gradient() {
    let model = Tied::new(&mut f());
    assert_eq!(
        names(&model),
        [
            "input.weight",
            "body.0.weight",
            "body.0.bias",
            "body.1.weight",
            "body.1.bias"
        ]
    );
    let tape = Tape::new();
    let ids = tape.constant(Tensor::from_slice(&[1i64, 4], [2], CPU).unwrap());
    let y = model.forward(&tape, &ids).unwrap();
    let gradients = tape
        .backward(&y.square().unwrap().sum_all().unwrap())
        .unwrap();
    assert_eq!(gradients.len(), 5);
    // The head's part reaches every row, the table's only two.
    let rows = vals(gradients.get(&model.input.weight).unwrap());
    assert!(rows.chunks(3).all(|row| row.iter().any(|v| *v != 0.0)));
}

#[test]
fn states_round_trip_and_misfits_are_named() {
    let (a, b) = (cnn(&mut f()), cnn(&mut Factory::new(CPU, 8)));
    let tape = Tape::new();
    let x = tape.constant(Tensor::randn([2, 1, 4, 4], DType::F32, CPU, &mut Rng::new(3)).unwrap());
    a.forward(&tape, &x).unwrap(); // moves the running statistics
    let path =
        std::env::temp_dir().join(format!("phalanx-state-{}.safetensors", std::process::id()));
    State::of(&a).unwrap().save(&path).unwrap();
    State::load(&path, CPU).unwrap().load_into(&b).unwrap();
    std::fs::remove_file(&path).unwrap();
    for model in [&a, &b] {
        model.set_training(false);
    }
    let tape = Tape::inference();
    let x = tape.constant(x.into_value());
    assert_eq!(
        vals(a.forward(&tape, &x).unwrap().value()),
        vals(b.forward(&tape, &x).unwrap().value())
    );
    assert_eq!(b.named_buffers()[2].1.value().item().unwrap(), 1.0);

    let state = State::of(&a).unwrap();
    assert_eq!(
        state.to_bytes().unwrap(),
        State::of(&b).unwrap().to_bytes().unwrap()
    );
    let before = vals(&b.parameters()[0].value());
    let attempt = |change: &dyn Fn(&mut State)| {
        let mut state = state.clone();
        state.insert(
            "0.weight",
            Tensor::zeros([4, 1, 3, 3], DType::F32, CPU).unwrap(),
        );
        change(&mut state);
        state.load_into(&b).unwrap_err()
    };
    let e = attempt(&|s| _ = s.take("4.bias"));
    assert!(
        matches!(&e, Error::MissingTensor { name } if name == "4.bias"),
        "{e}"
    );
    let e = attempt(&|s| s.insert("4.more", Tensor::zeros([1], DType::F32, CPU).unwrap()));
    assert!(
        matches!(&e, Error::UnexpectedTensor { name } if name == "4.more"),
        "{e}"
    );
    let e = attempt(&|s| s.insert("4.bias", Tensor::zeros([4], DType::F32, CPU).unwrap()));
    assert!(
        matches!(&e, Error::SavedMismatch { shape, .. } if **shape == [4]),
        "{e}"
    );
    let e = attempt(&|s| s.insert("4.bias", Tensor::zeros([3], DType::F64, CPU).unwrap()));
    assert!(
        matches!(
            &e,
            Error::SavedMismatch {
                dtype: DType::F64,
                ..
            }
        ),
        "{e}"
    );
    assert_eq!(
        vals(&b.parameters()[0].value()),
        before,
        "nothing was changed"
    );
    assert!(matches!(
        State::from_bytes(b"nonsense", CPU),
        Err(Error::Format { .. })
    ));
    assert!(matches!(
        State::load("/nowhere/at/all", CPU),
        Err(Error::File { .. })
    ));
}

#[test]
fn a_tied_state_may_use_either_name() {
    let (a, b) = (Tied::new(&mut f()), Tied::new(&mut Factory::new(CPU, 9)));
    let mut state = State::of(&a).unwrap();
    assert!(state.get("head.weight").is_none());
    let weight = state.take("input.weight").unwrap();
    state.insert("head.weight", weight.clone());
    state.load_into(&b).unwrap();
    assert_eq!(vals(&b.input.weight.value()), vals(&weight));
    state.insert("input.weight", weight);
    state.load_into(&b).unwrap();
}

#[test]
fn batch_norm_tracks_as_pytorch_does() {
    let mut f = f();
    f.dtype = DType::F64;
    let norm = BatchNorm2d::new(2, &mut f).unwrap();
    let x = Tensor::from_slice(
        &[1.0f64, 2.0, 3.0, 5.0, 8.0, 13.0, 0.0, 1.0],
        [2, 2, 1, 2],
        CPU,
    )
    .unwrap();
    let tape = Tape::new();
    for _ in 0..2 {
        norm.forward(&tape, &tape.constant(x.clone())).unwrap();
    }
    // Channel 0: 1 2 8 13, mean 6, unbiased variance 94/3; channel 1: 3 5 0 1, 2.25, 14.75/3.
    let twice = 1.0 - 0.9f64 * 0.9;
    close(
        &vals(&norm.running_mean.value()),
        &[6.0 * twice, 2.25 * twice],
        1e-12,
    );
    let var = [94.0 / 3.0, 14.75 / 3.0].map(|v| 0.81 + v * twice);
    close(&vals(&norm.running_var.value()), &var, 1e-12);
    assert_eq!(norm.num_batches_tracked.value().item().unwrap(), 2.0);

    norm.set_training(false);
    let (mean, var) = (
        vals(&norm.running_mean.value()),
        vals(&norm.running_var.value()),
    );
    let want: Vec<f64> = vals(&x)
        .iter()
        .enumerate()
        .map(|(i, v)| {
            let c = i / 2 % 2;
            (v - mean[c]) / (var[c] + 1e-5).sqrt()
        })
        .collect();
    // With and without a gradient, the same; and nothing is tracked.
    for tape in [Tape::new(), Tape::inference()] {
        close(
            &vals(
                norm.forward(&tape, &tape.constant(x.clone()))
                    .unwrap()
                    .value(),
            ),
            &want,
            1e-12,
        );
        let residual = tape.constant(x.clone());
        let y = norm
            .forward_residual(&tape, &tape.constant(x.clone()), &residual)
            .unwrap();
        let sum: Vec<f64> = want.iter().zip(vals(&x)).map(|(a, b)| a + b).collect();
        close(&vals(y.value()), &sum, 1e-12);
    }
    assert_eq!(norm.num_batches_tracked.value().item().unwrap(), 2.0);
}

#[test]
fn batch_norm_without_momentum_keeps_the_mean_of_all_batches() {
    let mut norm = BatchNorm2d::new(1, &mut f()).unwrap();
    norm.momentum = None;
    let tape = Tape::inference();
    for mean in [1.0f32, 2.0, 6.0] {
        let x = Tensor::from_slice(&[mean - 1.0, mean + 1.0], [2, 1, 1, 1], CPU).unwrap();
        norm.forward(&tape, &tape.constant(x)).unwrap();
    }
    close(&vals(&norm.running_mean.value()), &[3.0], 1e-6);
    close(&vals(&norm.running_var.value()), &[2.0], 1e-6);
}

#[test]
fn dropout_repeats_by_seed_and_rests_in_evaluation() {
    let x = Tensor::ones([1000], DType::F32, CPU).unwrap();
    let run = |seed: u64, on: bool| {
        let model = Sequential::new()
            .with(Dropout::new(0.25, seed))
            .with(Dropout::new(0.25, seed + 1));
        model.set_training(on);
        let tape = Tape::new();
        let x = tape.constant(x.clone());
        [0; 2].map(|_| vals(model.forward(&tape, &x).unwrap().value()))
    };
    assert_eq!(run(5, true), run(5, true));
    let [first, second] = run(5, true);
    assert_ne!(first, second, "each use drops others");
    assert_ne!(run(5, true), run(6, true));
    let kept = first.iter().filter(|v| **v != 0.0).count() as f64 / 1000.0;
    assert!((kept - 0.5625).abs() < 0.06, "{kept}");
    assert!(run(5, false).iter().flatten().all(|v| *v == 1.0));
}

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
            dropout: Dropout::new(0.5, 3),
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
            .map(|(_, b)| vals(&b.value()))
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
fn initial_values_follow_their_formulas() {
    let mut rng = Rng::new(11);
    let mut stats = |init: Init, shape: &[usize]| {
        let v = vals(&init.tensor(shape, DType::F32, CPU, &mut rng).unwrap());
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        let std = (v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / v.len() as f64).sqrt();
        let largest = v.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        (mean, std, largest)
    };
    let shape = [60, 20, 3, 3]; // fan in 180, fan out 540
    let gain = 2f64.sqrt();
    let uniform = |bound: f64| (bound / 3f64.sqrt(), bound);
    let normal = |std: f64| (std, f64::INFINITY);
    let rows = [
        (
            Init::Uniform {
                low: -0.5,
                high: 0.5,
            },
            uniform(0.5),
        ),
        (
            Init::Normal {
                mean: 0.0,
                std: 0.3,
            },
            normal(0.3),
        ),
        (
            Init::KaimingUniform { gain, fan: Fan::In },
            uniform((6.0 / 180.0f64).sqrt()),
        ),
        (
            Init::KaimingUniform {
                gain,
                fan: Fan::Out,
            },
            uniform((6.0 / 540.0f64).sqrt()),
        ),
        (
            Init::KaimingNormal {
                gain,
                fan: Fan::Out,
            },
            normal((2.0 / 540.0f64).sqrt()),
        ),
        (
            Init::XavierUniform { gain: 1.0 },
            uniform((6.0 / 720.0f64).sqrt()),
        ),
        (
            Init::XavierNormal { gain: 1.0 },
            normal((2.0 / 720.0f64).sqrt()),
        ),
        (Init::fan_in_uniform(180), uniform((1.0 / 180.0f64).sqrt())),
        // A normal cut at two standard deviations has 0.8796 of its deviation.
        (Init::TruncatedNormal { std: 0.1 }, (0.08796, 0.2)),
    ];
    for (init, (std, bound)) in rows {
        let (mean, got, largest) = stats(init, &shape);
        assert!(mean.abs() < 4.0 * std / 100.0, "{init:?}: mean {mean}");
        assert!(
            (got / std - 1.0).abs() < 0.03,
            "{init:?}: deviation {got}, not {std}"
        );
        assert!(
            largest <= bound * 1.000001,
            "{init:?}: {largest} beyond {bound}"
        );
        assert!(
            bound.is_infinite() || largest > 0.99 * bound,
            "{init:?}: {largest}"
        );
    }
    let e = Init::XavierNormal { gain: 1.0 }.tensor([3], DType::F32, CPU, &mut Rng::new(0));
    assert!(matches!(e, Err(Error::InvalidArgument { .. })));
    let weights = |seed| {
        vals(
            &Linear::new(9, 4, &mut Factory::new(CPU, seed))
                .unwrap()
                .weight
                .value(),
        )
    };
    assert_eq!(weights(1), weights(1));
    assert_ne!(weights(1), weights(2));
}

#[test]
fn losses_have_their_values() {
    let tape = Tape::new();
    let x = Tensor::from_slice(&[1.0f64, -2.0, 0.5, 0.25], [2, 2], CPU).unwrap();
    let x = tape.input(x).unwrap();
    let t = Tensor::from_slice(&[1.0f64, 0.0, 0.0, 1.0], [2, 2], CPU).unwrap();
    let t = tape.constant(t);
    let labels = Tensor::from_slice(&[0i64, 1], [2], CPU).unwrap();
    let value = |loss: Result<Var>| loss.unwrap().item().unwrap();
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
    near(value(nn::mse(&x, &t)), (4.0 + 0.25 + 0.5625) / 4.0);
    near(value(nn::l1(&x, &t)), (2.0 + 0.5 + 0.75) / 4.0);
    let ce = (1.0 + (-3f64).exp()).ln() / 2.0 + (1.0 + 0.25f64.exp()).ln() / 2.0;
    near(value(nn::cross_entropy(&x, &labels)), ce);
    near(value(nn::nll(&x.log_softmax(1).unwrap(), &labels)), ce);
    let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
    let terms = [
        sigmoid(1.0),
        1.0 - sigmoid(-2.0),
        1.0 - sigmoid(0.5),
        sigmoid(0.25),
    ];
    let bce = -terms.iter().map(|p| p.ln()).sum::<f64>() / 4.0;
    near(value(nn::binary_cross_entropy(&x, &t)), bce);
}

#[test]
fn modules_move_between_devices() {
    let model = cnn(&mut f());
    let other = Device::cpu(313);
    model.to_device(other).unwrap();
    let tape = Tape::inference();
    let x = Tensor::ones([2, 1, 4, 4], DType::F32, other).unwrap();
    assert_eq!(
        model.forward(&tape, &tape.constant(x)).unwrap().device(),
        other
    );
}

/// A training loop on a fixed task; returns the losses.
fn train(model: &dyn Module, input: &[usize], steps: usize, lr: f64, device: Device) -> Vec<f64> {
    let mut rng = Rng::new(21);
    let mut shape = vec![32];
    shape.extend(input);
    let x = Tensor::randn(shape, DType::F32, device, &mut rng).unwrap();
    let y = Tensor::randint(0, 3, [32], device, &mut rng).unwrap();
    let config = SgdConfig {
        lr,
        momentum: 0.9,
        ..SgdConfig::default()
    };
    let mut sgd = Sgd::new(model.parameters(), config);
    let tape = Tape::new();
    let mut losses = Vec::new();
    let mut settled = None;
    for step in 0..steps {
        let out = model.forward(&tape, &tape.constant(x.clone())).unwrap();
        let loss = nn::cross_entropy(&out, &y).unwrap();
        drop(out);
        losses.push(loss.item().unwrap());
        let gradients = tape.backward(&loss).unwrap();
        sgd.step(&gradients).unwrap();
        drop((gradients, loss));
        let now = device.memory().unwrap();
        if step >= 3 {
            let now = (now.live, now.system_allocations);
            assert_eq!(
                *settled.get_or_insert(now),
                now,
                "step {step} leaves memory as it found it"
            );
        }
    }
    losses
}

#[test]
fn a_network_learns_its_data_and_takes_no_memory_from_the_system() {
    let device = Device::cpu(314);
    let mut f = Factory::new(device, 5);
    let mlp = Sequential::new()
        .with(
            Linear::new(20, 64, &mut f)
                .unwrap()
                .with_activation(Activation::Relu),
        )
        .with(Linear::new(64, 3, &mut f).unwrap());
    let losses = train(&mlp, &[20], 120, 0.1, device);
    assert!(losses[0] > 0.9 && losses[119] < 0.02, "{losses:?}");

    let device = Device::cpu(315);
    let cnn = cnn(&mut Factory::new(device, 5));
    let losses = train(&cnn, &[1, 4, 4], 300, 0.05, device);
    assert!(losses[0] > 0.9 && losses[299] < 0.3, "{losses:?}");
}

#[test]
fn fused_layers_compute_what_separate_ones_do() {
    let fused = Sequential::new().with(
        Linear::new(6, 8, &mut f())
            .unwrap()
            .with_activation(Activation::Relu),
    );
    let apart = Sequential::new()
        .with(Linear::new(6, 8, &mut f()).unwrap())
        .with(Relu);
    let x = Tensor::randn([5, 6], DType::F32, CPU, &mut Rng::new(2)).unwrap();
    let run = |m: &Sequential| {
        let tape = Tape::new();
        let y = m.forward(&tape, &tape.constant(x.clone())).unwrap();
        let g = tape
            .backward(&y.square().unwrap().sum_all().unwrap())
            .unwrap();
        let grads: Vec<_> = m
            .parameters()
            .iter()
            .map(|p| vals(g.get(p).unwrap()))
            .collect();
        (vals(y.value()), grads)
    };
    assert_eq!(run(&fused), run(&apart));
}
