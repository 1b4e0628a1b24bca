//! Layers, initial values and losses against their formulas; training to the end.

use crate::{CPU, close, cnn, f, vals};
use phalanx_autograd::nn::{
    self, Activation, BatchNorm2d, Conv2d, Conv2dConfig, Dropout, Factory, Fan, Init, Linear,
    Module, Sequential,
};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Error, Result, Tape, Var};
use phalanx_tensor::{DType, Device, Rng, Tensor, unary_table};

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
        &vals(&norm.running_mean.value().unwrap()),
        &[6.0 * twice, 2.25 * twice],
        1e-12,
    );
    let var = [94.0 / 3.0, 14.75 / 3.0].map(|v| 0.81 + v * twice);
    close(&vals(&norm.running_var.value().unwrap()), &var, 1e-12);
    assert_eq!(
        norm.num_batches_tracked
            .value()
            .unwrap()
            .item::<f64>()
            .unwrap(),
        2.0
    );

    norm.set_training(false);
    let (mean, var) = (
        vals(&norm.running_mean.value().unwrap()),
        vals(&norm.running_var.value().unwrap()),
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
    assert_eq!(
        norm.num_batches_tracked
            .value()
            .unwrap()
            .item::<f64>()
            .unwrap(),
        2.0
    );
}

#[test]
fn batch_norm_in_evaluation_has_the_same_bits_recorded_or_not() {
    let mut rng = Rng::new(77);
    for (dtype, affine) in [
        (DType::F64, DType::F64),
        (DType::F32, DType::F32),
        (DType::BF16, DType::BF16),
        (DType::BF16, DType::F32),
        (DType::F16, DType::F32),
    ] {
        for (with_residual, relu) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut f = f();
            f.dtype = affine;
            let mut norm = BatchNorm2d::new(3, &mut f).unwrap();
            norm.relu = relu;
            for param in norm.parameters() {
                let value = Tensor::rand([3], DType::F64, CPU, &mut rng).unwrap();
                param.set(value.cast(affine).unwrap()).unwrap();
            }
            let mut draw = || {
                let t = Tensor::randn([4, 3, 5], DType::F32, CPU, &mut rng).unwrap();
                t.cast(dtype).unwrap()
            };
            let (x, residual) = (draw(), draw());
            let run = |tape: &Tape, x: &Var| {
                let residual = tape.constant(residual.clone());
                match with_residual {
                    true => norm.forward_residual(tape, x, &residual).unwrap(),
                    false => norm.forward(tape, x).unwrap(),
                }
            };
            // Training takes an affine of f32 at a half input, and moves the statistics.
            let tape = Tape::new();
            run(&tape, &tape.constant(x.clone()));
            norm.set_training(false);
            let alone = Tape::inference();
            let alone = run(&alone, &alone.constant(x.clone()));
            let tape = Tape::new();
            let input = tape.input(x.clone()).unwrap();
            let recorded = run(&tape, &input);
            let what = format!("{dtype} {affine} {with_residual} {relu}");
            assert_eq!(recorded.dtype(), dtype, "{what}");
            let bytes = |v: &Var| v.value().as_bytes().unwrap().to_vec();
            assert_eq!(bytes(&recorded), bytes(&alone), "{what}");
            let slopes = tape.backward(&recorded.sum_all().unwrap()).unwrap();
            assert_eq!(slopes.wrt(&input).unwrap().dtype(), dtype, "{what}");
            let wanted = norm.weight.grad_dtype();
            assert_eq!(slopes.get(&norm.weight).unwrap().dtype(), wanted, "{what}");
        }
    }
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
    close(&vals(&norm.running_mean.value().unwrap()), &[3.0], 1e-6);
    close(&vals(&norm.running_var.value().unwrap()), &[2.0], 1e-6);
}

#[test]
fn batch_norm_refuses_what_has_no_variance() {
    let norm = BatchNorm2d::new(2, &mut f()).unwrap();
    let tape = Tape::new();
    for shape in [&[1usize, 2, 1, 1][..], &[2]] {
        let x = tape.constant(Tensor::ones(shape, DType::F32, CPU).unwrap());
        let e = norm.forward(&tape, &x).unwrap_err();
        let refused = matches!(&e, Error::InvalidArgument { op, .. } if *op == "BatchNorm2d");
        assert!(refused, "{e}");
    }
    close(
        &vals(&norm.running_var.value().unwrap()),
        &[1.0, 1.0],
        1e-12,
    );
    assert_eq!(
        norm.num_batches_tracked
            .value()
            .unwrap()
            .item::<f64>()
            .unwrap(),
        0.0
    );
}

#[test]
fn dropout_repeats_by_seed_and_rests_in_evaluation() {
    let x = Tensor::ones([1000], DType::F32, CPU).unwrap();
    let run = |seed: u64, on: bool| {
        let mut f = Factory::new(CPU, seed);
        let model = Sequential::new()
            .with(Dropout::new(0.25, &mut f).unwrap())
            .with(Dropout::new(0.25, &mut f).unwrap());
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

#[test]
fn dropout_layers_of_one_factory_drop_different_elements() {
    let x = Tensor::ones([1000], DType::F32, CPU).unwrap();
    let masks = |seed: u64| {
        let mut f = Factory::new(CPU, seed);
        let layers = [0; 2].map(|_| Dropout::new(0.5, &mut f).unwrap());
        let tape = Tape::new();
        layers.map(|layer| {
            let out = layer.forward(&tape, &tape.constant(x.clone())).unwrap();
            vals(out.value())
        })
    };
    let [first, second] = masks(5);
    assert_ne!(first, second);
    let agree = first.iter().zip(&second).filter(|(a, b)| a == b).count();
    assert!((400..600).contains(&agree), "{agree} of 1000 agree");
    assert_eq!(masks(5), [first, second]);
}

#[test]
fn dropout_takes_probabilities_only() {
    for p in [-0.1, 1.5, f64::NAN, f64::INFINITY] {
        let e = Dropout::new(p, &mut f()).unwrap_err();
        assert!(matches!(e, Error::InvalidArgument { .. }), "{e}");
        assert_eq!(
            e.to_string(),
            format!("Dropout::new: {p} is no probability")
        );
    }
    assert!(Dropout::new(0.0, &mut f()).is_ok() && Dropout::new(1.0, &mut f()).is_ok());
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
                .value()
                .unwrap(),
        )
    };
    assert_eq!(weights(1), weights(1));
    assert_ne!(weights(1), weights(2));
}

#[test]
fn weights_that_cannot_be_counted_are_refused() {
    let huge = 1usize << 40;
    let conv = Conv2d::new(huge, 2, [huge, 3], Conv2dConfig::default(), &mut f());
    assert!(matches!(conv, Err(Error::Tensor(_))));
    for init in [
        Init::XavierUniform { gain: 1.0 },
        Init::XavierNormal { gain: 1.0 },
    ] {
        let weight = |shape: [usize; 3]| init.tensor(shape, DType::F32, CPU, &mut Rng::new(1));
        assert!(matches!(weight([2, huge, huge]), Err(Error::Tensor(_))));
        // An empty axis hides no overflow of the others.
        assert!(matches!(weight([0, huge, huge]), Err(Error::Tensor(_))));
        assert_eq!(weight([0, huge, 2]).unwrap().numel(), 0);
    }
}

#[test]
fn losses_have_their_values() {
    let tape = Tape::new();
    let x = Tensor::from_slice(&[1.0f64, -2.0, 0.5, 0.25], [2, 2], CPU).unwrap();
    let x = tape.input(x).unwrap();
    let t = Tensor::from_slice(&[1.0f64, 0.0, 0.0, 1.0], [2, 2], CPU).unwrap();
    let t = tape.constant(t);
    let labels = Tensor::from_slice(&[0i64, 1], [2], CPU).unwrap();
    let value = |loss: Result<Var>| loss.unwrap().item::<f64>().unwrap();
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
    let mut sgd = Sgd::new(model.parameters(), config).unwrap();
    let tape = Tape::new();
    let mut losses = Vec::new();
    let mut settled = None;
    for step in 0..steps {
        let out = model.forward(&tape, &tape.constant(x.clone())).unwrap();
        let loss = nn::cross_entropy(&out, &y).unwrap();
        drop(out);
        losses.push(loss.item::<f64>().unwrap());
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
    let x = Tensor::randn([5, 6], DType::F32, CPU, &mut Rng::new(2)).unwrap();
    let run = |fused: Activation, after: &dyn Fn(&Var) -> Result<Var>| {
        let layer = Linear::new(6, 8, &mut f()).unwrap().with_activation(fused);
        let tape = Tape::new();
        let y = layer.forward(&tape, &tape.constant(x.clone())).unwrap();
        let y = after(&y).unwrap();
        let nodes = tape.len();
        let g = tape.backward(&y.square().unwrap().sum_all().unwrap());
        let g = g.unwrap();
        let parameters = layer.parameters();
        let grads: Vec<_> = (parameters.iter().map(|p| vals(g.get(p).unwrap()))).collect();
        (nodes, vals(y.value()), grads)
    };
    type Apart = Box<dyn Fn(&Var) -> Result<Var>>;
    macro_rules! pairs {
        (|$vx:ident, $vout:ident, $vg:ident| $({
            $Name:ident $name:ident ($($arg:ident: $ty:ty)?) [$values:expr] $($rest:tt)*
        })*) => {{
            let mut all: Vec<(Activation, Apart)> = Vec::new();
            $(for ($($arg,)?) in $values {
                all.push((Activation::$Name $(($arg))?, Box::new(move |x| x.$name($($arg)?))));
            })*
            all
        }};
    }
    let pairs = unary_table!(pairs activations);
    for (activation, after) in pairs {
        let (nodes, value, grads) = run(activation, &|y| Ok(y.clone()));
        let apart = run(Activation::None, &after);
        assert_eq!((nodes + 1, value, grads), apart, "{activation:?}");
    }
}
