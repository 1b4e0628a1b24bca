//! Optimizers against their formulas, states, clipping and schedules; half types; failures.

mod addresses;
mod failures;
mod half;
mod into;
mod schedules;

use phalanx_autograd::nn::{Activation, Factory, Linear, Module, Sequential, cross_entropy};
use phalanx_autograd::optim::{
    Adam, AdamConfig, DecayMode, Group, Optimizer, Schedule, Sgd, SgdConfig, clip_grad_norm,
    grad_norm,
};
use phalanx_autograd::{Error, Gradients, Param, State, Tape};
use phalanx_tensor::{DType, Device, Rng, Tensor};

const CPU: Device = Device::cpu(0);

/// Where a test of addresses runs: on a virtual device of its own.
fn place(index: usize) -> Option<(Device, ())> {
    Some((Device::cpu(index), ()))
}

fn tensor(values: &[f64]) -> Tensor {
    Tensor::from_slice(values, [values.len()], CPU).unwrap()
}

fn vals(p: &Param) -> Vec<f64> {
    p.value().unwrap().to_vec().unwrap()
}

fn gradients(of: &[(&Param, &[f64])]) -> Gradients {
    let mut gradients = Gradients::new();
    for (p, g) in of {
        gradients.insert(p, tensor(g));
    }
    gradients
}

#[track_caller]
fn close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (a, b) in got.iter().zip(want) {
        assert!(
            (a - b).abs() <= 1e-13 * b.abs().max(1.0),
            "{got:?} is not {want:?}"
        );
    }
}

/// The gradient at step `t`: known, changing, of both signs.
fn slope(t: usize) -> [f64; 3] {
    [0.5 - 0.3 * t as f64, 1.0, -0.25 * (t * t) as f64]
}

const START: [f64; 3] = [1.0, -2.0, 0.5];

#[test]
fn sgd_follows_its_formula() {
    let base = SgdConfig {
        lr: 0.1,
        ..SgdConfig::default()
    };
    let configs = [
        base,
        SgdConfig {
            weight_decay: 0.01,
            ..base
        },
        SgdConfig {
            momentum: 0.9,
            ..base
        },
        SgdConfig {
            momentum: 0.9,
            dampening: 0.5,
            weight_decay: 0.01,
            ..base
        },
        SgdConfig {
            momentum: 0.9,
            nesterov: true,
            weight_decay: 0.01,
            ..base
        },
    ];
    for c in configs {
        let w = Param::new(tensor(&START));
        let mut sgd = Sgd::new(vec![w.clone()], c).unwrap();
        let (mut p, mut m) = (START, [0.0; 3]);
        for t in 0..6 {
            sgd.step(&gradients(&[(&w, &slope(t))])).unwrap();
            for i in 0..3 {
                let g = slope(t)[i] + c.weight_decay * p[i];
                m[i] = if t == 0 {
                    g
                } else {
                    c.momentum * m[i] + (1.0 - c.dampening) * g
                };
                let step = match (c.momentum == 0.0, c.nesterov) {
                    (true, _) => g,
                    (_, true) => g + c.momentum * m[i],
                    _ => m[i],
                };
                p[i] -= c.lr * step;
            }
            close(&vals(&w), &p);
        }
    }
}

#[test]
fn adam_follows_its_formula() {
    let configs = [
        AdamConfig {
            lr: 0.1,
            ..AdamConfig::adam()
        },
        AdamConfig {
            lr: 0.1,
            weight_decay: 0.1,
            ..AdamConfig::adam()
        },
        AdamConfig {
            lr: 0.1,
            weight_decay: 0.1,
            betas: [0.8, 0.95],
            eps: 1e-3,
            ..AdamConfig::adamw()
        },
    ];
    for c in configs {
        let w = Param::new(tensor(&START));
        let mut adam = Adam::new(vec![w.clone()], c).unwrap();
        let (mut p, mut m, mut v) = (START, [0.0; 3], [0.0; 3]);
        let [b1, b2] = c.betas;
        for t in 0..6 {
            adam.step(&gradients(&[(&w, &slope(t))])).unwrap();
            for i in 0..3 {
                let mut g = slope(t)[i];
                match c.decay {
                    DecayMode::Coupled => g += c.weight_decay * p[i],
                    DecayMode::Decoupled => p[i] *= 1.0 - c.lr * c.weight_decay,
                }
                m[i] = b1 * m[i] + (1.0 - b1) * g;
                v[i] = b2 * v[i] + (1.0 - b2) * g * g;
                let n = t as i32 + 1;
                let (mean, square) = (m[i] / (1.0 - b1.powi(n)), v[i] / (1.0 - b2.powi(n)));
                p[i] -= c.lr * mean / (square.sqrt() + c.eps);
            }
            close(&vals(&w), &p);
        }
    }
}

#[test]
fn what_has_no_gradient_stays() {
    let (a, b) = (Param::new(tensor(&[1.0])), Param::new(tensor(&[1.0])));
    let c = SgdConfig {
        lr: 0.1,
        momentum: 0.5,
        weight_decay: 0.5,
        ..SgdConfig::default()
    };
    let mut sgd = Sgd::new(vec![a.clone(), b.clone(), a.clone()], c).unwrap();
    sgd.step(&gradients(&[(&a, &[1.0]), (&b, &[1.0])])).unwrap();
    close(&vals(&a), &[0.85]); // once, though it was given twice
    sgd.step(&gradients(&[(&b, &[1.0])])).unwrap();
    close(&vals(&a), &[0.85]); // not even decay or momentum
    sgd.step(&gradients(&[(&a, &[0.0])])).unwrap();
    close(&vals(&a), &[0.85 - 0.1 * (0.5 * 1.5 + 0.5 * 0.85)]); // the momentum was kept
}

#[test]
fn groups_have_their_own_rates_and_decays() {
    let [a, b, c] = [0; 3].map(|_| Param::new(tensor(&[1.0])));
    let config = SgdConfig {
        lr: 0.1,
        weight_decay: 0.5,
        ..SgdConfig::default()
    };
    let mut sgd = Sgd::new(vec![a.clone(), b.clone(), c.clone()], config)
        .and_then(|sgd| {
            sgd.with_group(Group {
                weight_decay: Some(0.0),
                ..Group::new(vec![b.clone()])
            })
        })
        .and_then(|sgd| {
            sgd.with_group(Group {
                lr_scale: 10.0,
                ..Group::new(vec![c.clone()])
            })
        })
        .unwrap();
    sgd.step(&gradients(&[(&a, &[1.0]), (&b, &[1.0]), (&c, &[1.0])]))
        .unwrap();
    close(&[vals(&a)[0], vals(&b)[0], vals(&c)[0]], &[0.85, 0.9, -0.5]);
    sgd.set_lr(0.2).unwrap();
    sgd.step(&gradients(&[(&b, &[1.0]), (&c, &[1.0])])).unwrap();
    close(
        &[vals(&a)[0], vals(&b)[0], vals(&c)[0]],
        &[0.85, 0.7, -0.5 - 2.0 * 0.75],
    );
}

#[test]
fn a_group_that_comes_after_a_step_leaves_the_others_their_momenta() {
    let [a, b, c] = [0; 3].map(|_| Param::new(tensor(&[1.0])));
    let config = SgdConfig {
        lr: 0.1,
        momentum: 0.5,
        ..SgdConfig::default()
    };
    let mut sgd = Sgd::new(vec![a.clone(), b.clone(), c.clone()], config).unwrap();
    sgd.step(&gradients(&[(&a, &[1.0]), (&b, &[2.0]), (&c, &[4.0])]))
        .unwrap();
    let mut sgd = sgd.with_group(Group::new(vec![b.clone()])).unwrap();
    sgd.step(&gradients(&[(&a, &[0.0]), (&b, &[0.0]), (&c, &[0.0])]))
        .unwrap();
    // Where it moved, b starts afresh.
    close(
        &[vals(&a)[0], vals(&b)[0], vals(&c)[0]],
        &[0.9 - 0.05, 0.8, 0.6 - 0.2],
    );
    let state = sgd.state().unwrap();
    let momentum = |i: usize| {
        state
            .get(&format!("{i}.momentum_buffer"))
            .unwrap()
            .item::<f64>()
    };
    close(&[0, 1, 2].map(|i| momentum(i).unwrap()), &[0.5, 2.0, 0.0]);
}

#[test]
fn a_step_writes_in_place_and_old_values_keep() {
    let w = Param::new(tensor(&START));
    let address = || w.read(Tensor::address);
    let before = address();
    let mut sgd = Sgd::new(
        vec![w.clone()],
        SgdConfig {
            lr: 0.1,
            ..SgdConfig::default()
        },
    )
    .unwrap();
    let tape = Tape::new();
    for _ in 0..3 {
        let x = tape.leaf(&w);
        let loss = x.mul(&x).unwrap().sum_all().unwrap();
        drop(x);
        sgd.step(&tape.backward(&loss).unwrap()).unwrap();
        assert_eq!(address(), before, "no copy");
    }
    let old = w.value().unwrap();
    let kept = old.to_vec::<f64>().unwrap();
    sgd.step(&gradients(&[(&w, &slope(1))])).unwrap();
    assert_eq!(old.to_vec::<f64>().unwrap(), kept);
    assert_ne!(vals(&w), kept);
    assert_eq!(
        address(),
        before,
        "nor is it moved by who looks at its value"
    );
}

#[test]
fn a_misfit_changes_nothing() {
    let (a, b) = (Param::new(tensor(&START)), Param::new(tensor(&START)));
    let mut sgd = Sgd::new(vec![a.clone(), b.clone()], SgdConfig::default()).unwrap();
    let e = sgd
        .step(&gradients(&[(&a, &slope(1)), (&b, &[1.0])]))
        .unwrap_err();
    assert!(e.to_string().contains("sgd_step"), "{e}");
    assert_eq!((vals(&a), vals(&b)), (START.to_vec(), START.to_vec()));
}

fn model(seed: u64) -> Sequential {
    let mut f = Factory::new(CPU, seed);
    Sequential::new()
        .with(
            Linear::new(8, 16, &mut f)
                .unwrap()
                .with_activation(Activation::Relu),
        )
        .with(Linear::new(16, 4, &mut f).unwrap())
}

/// Trains from step `from` to step `to`.
fn train(model: &Sequential, optimizer: &mut dyn Optimizer, from: u64, to: u64) {
    let schedule = Schedule::Cosine {
        steps: 20,
        end: 0.0,
    }
    .after_warmup(3);
    let tape = Tape::new();
    for step in from..to {
        let mut rng = Rng::new(100 + step);
        let x = Tensor::randn([10, 8], DType::F32, CPU, &mut rng).unwrap();
        let y = Tensor::randint(0, 4, [10], CPU, &mut rng).unwrap();
        let out = model.forward(&tape, &tape.constant(x)).unwrap();
        let mut gradients = tape.backward(&cross_entropy(&out, &y).unwrap()).unwrap();
        clip_grad_norm(&mut gradients, 0.5).unwrap();
        let lr = 0.05 * schedule.factor(step).unwrap();
        optimizer.set_lr(lr).unwrap();
        optimizer.step(&gradients).unwrap();
    }
}

#[test]
fn training_continues_from_a_file_bit_for_bit() {
    let momentum = SgdConfig {
        momentum: 0.9,
        nesterov: true,
        ..SgdConfig::default()
    };
    type New = fn(&Sequential, SgdConfig) -> Box<dyn Optimizer>;
    let kinds: [New; 2] = [
        |m, c| Box::new(Sgd::new(m.parameters(), c).unwrap()),
        |m, _| Box::new(Adam::new(m.parameters(), AdamConfig::adamw()).unwrap()),
    ];
    for new in kinds {
        let whole = model(1);
        train(&whole, &mut *new(&whole, momentum), 0, 12);

        let first = model(1);
        let mut optimizer = new(&first, momentum);
        train(&first, &mut *optimizer, 0, 5);
        let mut file = State::new();
        file.nest("model", State::of(&first).unwrap());
        file.nest("optimizer", optimizer.state().unwrap());
        let bytes = file.to_bytes().unwrap();

        let second = model(2);
        let mut optimizer = new(&second, momentum);
        let mut file = State::from_bytes(&bytes, CPU).unwrap();
        file.unnest("model").load_into(&second).unwrap();
        optimizer.load_state(file.unnest("optimizer")).unwrap();
        assert!(file.is_empty());
        train(&second, &mut *optimizer, 5, 12);
        let end = |m: &Sequential| State::of(m).unwrap().to_bytes().unwrap();
        assert!(end(&whole) == end(&second));
        assert!(end(&whole) != end(&first));
    }
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let m = model(1);
    let mut sgd = Sgd::new(
        m.parameters(),
        SgdConfig {
            momentum: 0.9,
            ..SgdConfig::default()
        },
    )
    .unwrap();
    train(&m, &mut sgd, 0, 2);
    let good = sgd.state().unwrap();
    let mut attempt = |change: &dyn Fn(&mut State)| {
        let mut state = good.clone();
        change(&mut state);
        sgd.load_state(state).unwrap_err()
    };
    let e = attempt(&|s| _ = s.take("lr"));
    assert!(
        matches!(&e, Error::MissingTensor { name } if name == "lr"),
        "{e}"
    );
    let e = attempt(&|s| s.insert("7.momentum_buffer", tensor(&[1.0])));
    assert!(matches!(&e, Error::UnexpectedTensor { .. }), "{e}");
    let e = attempt(&|s| s.insert("1.momentum_buffer", tensor(&[1.0])));
    assert!(matches!(&e, Error::SavedMismatch { .. }), "{e}");
    assert_eq!(
        sgd.state().unwrap().to_bytes().unwrap(),
        good.to_bytes().unwrap()
    );
}

#[test]
fn clipping_is_by_the_global_norm() {
    let (a, b) = (Param::new(tensor(&[0.0; 2])), Param::new(tensor(&[0.0])));
    let fresh = || gradients(&[(&a, &[3.0, 0.0]), (&b, &[4.0])]);
    let number = |norm: Result<Tensor, Error>| norm.unwrap().item::<f64>().unwrap();
    let mut g = fresh();
    assert_eq!(number(grad_norm(&g)), 5.0);
    assert_eq!(number(clip_grad_norm(&mut g, 10.0)), 5.0);
    assert_eq!(
        g.get(&a).unwrap().to_vec::<f64>().unwrap(),
        [3.0, 0.0],
        "left alone"
    );
    assert_eq!(number(clip_grad_norm(&mut g, 1.0)), 5.0);
    let factor = 1.0 / (5.0 + 1e-6);
    close(
        &g.get(&a).unwrap().to_vec::<f64>().unwrap(),
        &[3.0 * factor, 0.0],
    );
    close(
        &g.get(&b).unwrap().to_vec::<f64>().unwrap(),
        &[4.0 * factor],
    );
    let mut g = gradients(&[(&a, &[f64::NAN, 0.0]), (&b, &[4.0])]);
    assert!(number(clip_grad_norm(&mut g, 1.0)).is_nan());
    let mut g = fresh();
    for no_norm in [-1.0, f64::NEG_INFINITY, f64::NAN] {
        let e = clip_grad_norm(&mut g, no_norm).unwrap_err();
        assert!(matches!(e, Error::InvalidArgument { .. }), "{e}");
        let left = g.get(&b).unwrap().to_vec::<f64>().unwrap();
        assert_eq!(left, [4.0], "left alone");
    }
    assert_eq!(number(clip_grad_norm(&mut g, f64::INFINITY)), 5.0);
    assert_eq!(number(clip_grad_norm(&mut g, 0.0)), 5.0);
    assert_eq!(number(grad_norm(&g)), 0.0);
    let mut g = fresh();
    g.scale(0.5).unwrap();
    close(&g.get(&b).unwrap().to_vec::<f64>().unwrap(), &[2.0]);
}
