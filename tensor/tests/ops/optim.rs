//! Optimizer steps against plain loops over `f64` and PyTorch's values.

use crate::norm_and_scale::norm_of;
use crate::util::*;
use phalanx_tensor::ops::optim::{
    AdamConfig, AdamState, DecayMode, SgdConfig, adam_step, sgd_step,
};
use phalanx_tensor::{DType, Device, Error, Tensor, cpu};

fn sgd_configs() -> Vec<SgdConfig> {
    let base = SgdConfig {
        lr: 0.1,
        ..SgdConfig::default()
    };
    let momentum = SgdConfig {
        momentum: 0.9,
        ..base
    };
    vec![
        base,
        SgdConfig {
            weight_decay: 0.05,
            ..base
        },
        momentum,
        SgdConfig {
            dampening: 0.3,
            weight_decay: 0.05,
            ..momentum
        },
        SgdConfig {
            nesterov: true,
            weight_decay: 0.05,
            ..momentum
        },
    ]
}

fn adam_configs() -> Vec<AdamConfig> {
    vec![
        AdamConfig {
            lr: 0.1,
            weight_decay: 0.05,
            ..AdamConfig::adam()
        },
        AdamConfig {
            lr: 0.1,
            betas: [0.8, 0.95],
            weight_decay: 0.05,
            ..AdamConfig::adamw()
        },
    ]
}

/// With `p = Parameter([1, -2, 0.5])` and the gradient `[0.1 t, -0.3 + 0.05 t, 0.2 (-1)^t]` at step
/// `t`, four steps of `torch.optim.SGD(lr=0.1, ..)` for each of [`sgd_configs`], then of
/// `Adam(lr=0.1, weight_decay=0.05)` and `AdamW(lr=0.1, betas=(0.8, 0.95), weight_decay=0.05)`, by
/// PyTorch 2.15 in `float64`.
#[rustfmt::skip]
const GOLDEN: [[f64; 3]; 7] = [
    [0.8999999999999999, -1.9300000000000002, 0.5],
    [0.8806482518750001, -1.8909466293750001, 0.4898757478125],
    [0.8144099999999999, -1.821325, 0.53258],
    [0.823731313893125, -1.776919025375625, 0.5246395407496874],
    [0.6756831540726875, -1.6532888346279373, 0.4980272773735313],
    [0.6056855368417989, -1.6083634296456195, 0.5821646665194047],
    [0.5882625219397919, -1.580399580501963, 0.6007249417517573],
];

fn golden_gradient(t: i32, dtype: DType) -> Tensor {
    let t = f64::from(t);
    let sign = if t % 2.0 == 0.0 { 1.0 } else { -1.0 };
    tensor_of(&[0.1 * t, -0.3 + 0.05 * t, 0.2 * sign], &[3], dtype)
}

#[test]
fn steps_give_pytorchs_values() {
    for (dtype, tol) in [(DType::F64, 1e-14), (DType::F32, 1e-6), (DType::BF16, 0.02)] {
        let start = || [tensor_of(&[1.0, -2.0, 0.5], &[3], dtype)];
        for (config, golden) in sgd_configs().iter().zip(&GOLDEN) {
            let (mut p, mut m) = (start(), [None]);
            for t in 1..=4 {
                sgd_step(&mut p, &[golden_gradient(t, dtype)], &mut m, config).unwrap();
            }
            assert_close(&p[0], &[3], golden, tol, &format!("{dtype} {config:?}"));
        }
        for (config, golden) in adam_configs().iter().zip(&GOLDEN[5..]) {
            let (mut p, mut s) = (start(), [None]);
            for t in 1..=4 {
                adam_step(&mut p, &[golden_gradient(t, dtype)], &mut s, config).unwrap();
            }
            assert_close(&p[0], &[3], golden, tol, &format!("{dtype} {config:?}"));
        }
    }
}

/// The textbook, one element at a time.
fn plain_sgd(p: &mut [f64], g: &[f64], m: &mut Option<Vec<f64>>, c: &SgdConfig) {
    let g: Vec<f64> = g
        .iter()
        .zip(&*p)
        .map(|(g, p)| g + c.weight_decay * p)
        .collect();
    let d = if c.momentum == 0.0 {
        g
    } else {
        let new: Vec<f64> = match m {
            None => g.clone(),
            Some(m) => {
                let pairs = m.iter().zip(&g);
                pairs
                    .map(|(m, g)| c.momentum * m + (1.0 - c.dampening) * g)
                    .collect()
            }
        };
        let m = m.insert(new);
        if c.nesterov {
            g.iter().zip(&*m).map(|(g, m)| g + c.momentum * m).collect()
        } else {
            m.clone()
        }
    };
    p.iter_mut().zip(d).for_each(|(p, d)| *p -= c.lr * d);
}

#[derive(Default, Clone)]
struct PlainAdam {
    m: Vec<f64>,
    v: Vec<f64>,
    t: i32,
}

fn plain_adam(p: &mut [f64], g: &[f64], s: &mut PlainAdam, c: &AdamConfig) {
    s.t += 1;
    s.m.resize(p.len(), 0.0);
    s.v.resize(p.len(), 0.0);
    let [b1, b2] = c.betas;
    for i in 0..p.len() {
        let mut g = g[i];
        match c.decay {
            DecayMode::Coupled => g += c.weight_decay * p[i],
            DecayMode::Decoupled => p[i] *= 1.0 - c.lr * c.weight_decay,
        }
        s.m[i] = b1 * s.m[i] + (1.0 - b1) * g;
        s.v[i] = b2 * s.v[i] + (1.0 - b2) * g * g;
        let m = s.m[i] / (1.0 - b1.powi(s.t));
        let v = s.v[i] / (1.0 - b2.powi(s.t));
        p[i] -= c.lr * m / (v.sqrt() + c.eps);
    }
}

#[test]
fn lists_of_any_views_step_like_plain_loops() {
    let mut rng = TestRng::new(31);
    for case in 0..60 {
        let dtype = [DType::F64, DType::F32][case % 2];
        let tol = tolerance(dtype, 64.0);
        let shapes: Vec<Vec<usize>> = (0..4).map(|_| rng.shape(3, 7)).collect();
        let list = |rng: &mut TestRng| -> Vec<Tensor> {
            shapes
                .iter()
                .map(|s| rng.tensor(s, dtype, (-1.0, 1.0)))
                .collect()
        };
        let start = list(&mut rng);
        let grads: Vec<Vec<Tensor>> = (0..4).map(|_| list(&mut rng)).collect();

        let sgd = &sgd_configs()[rng.below(5)];
        let (mut p, mut m) = (start.clone(), vec![None; 4]);
        let mut plain: Vec<_> = start.iter().map(|p| (values(p), None)).collect();
        for grads in &grads {
            sgd_step(&mut p, grads, &mut m, sgd).unwrap();
            for (g, (p, m)) in grads.iter().zip(&mut plain) {
                plain_sgd(p, &values(g), m, sgd);
            }
        }
        for (i, (p, (expected, _))) in p.iter().zip(&plain).enumerate() {
            assert_close(p, &shapes[i], expected, tol, &format!("{sgd:?}"));
        }

        let adam = &adam_configs()[rng.below(2)];
        let (mut p, mut s) = (start.clone(), vec![None; 4]);
        let mut plain: Vec<_> = start
            .iter()
            .map(|p| (values(p), PlainAdam::default()))
            .collect();
        for grads in &grads {
            adam_step(&mut p, grads, &mut s, adam).unwrap();
            for (g, (p, s)) in grads.iter().zip(&mut plain) {
                plain_adam(p, &values(g), s, adam);
            }
        }
        for (i, (p, (expected, _))) in p.iter().zip(&plain).enumerate() {
            assert_close(p, &shapes[i], expected, tol, &format!("{adam:?}"));
            assert_eq!(s[i].as_ref().unwrap().step, 4);
        }
    }
}

#[test]
fn half_parameters_keep_their_state_in_f32() {
    for dtype in [DType::BF16, DType::F16] {
        let mut rng = TestRng::new(32);
        let mut p = [rng.tensor(&[37], dtype, (-1.0, 1.0))];
        let g = [rng.tensor(&[37], dtype, (-1.0, 1.0))];
        let before = values(&p[0]);
        let config = SgdConfig {
            lr: 0.1,
            momentum: 0.9,
            ..SgdConfig::default()
        };
        let mut m = [None];
        sgd_step(&mut p, &g, &mut m, &config).unwrap();
        assert_eq!(
            (p[0].dtype(), m[0].as_ref().unwrap().dtype()),
            (dtype, DType::F32)
        );
        let expected: Vec<f64> = before
            .iter()
            .zip(values(&g[0]))
            .map(|(p, g)| p - 0.1 * g)
            .collect();
        assert_close(&p[0], &[37], &expected, tolerance(dtype, 4.0), "sgd");
        let mut s = [None];
        adam_step(&mut p, &g, &mut s, &AdamConfig::adamw()).unwrap();
        let state: &AdamState = s[0].as_ref().unwrap();
        assert_eq!(
            (p[0].dtype(), state.exp_avg_sq.dtype()),
            (dtype, DType::F32)
        );
    }
}

/// Both steps compute in `f32` and round once, so a gradient in a half type and its exact `f32`
/// value give the same bits; one with more digits than a half type has counts with all of them.
#[test]
fn half_parameters_take_gradients_in_f32() {
    let mut rng = TestRng::new(35);
    for dtype in [DType::BF16, DType::F16] {
        for case in 0..40 {
            let shape = rng.shape(3, 40);
            let start = rng.tensor(&shape, dtype, (-1.0, 1.0));
            let short = rng.tensor(&shape, dtype, (-1.0, 1.0));
            let wide = short.cast(DType::F32).unwrap();
            let fine = rng.tensor(&shape, DType::F32, (-1.0, 1.0));

            let sgd = &sgd_configs()[case % 5];
            let run = |grads: [&Tensor; 2]| {
                let (mut p, mut m) = ([start.clone()], [None]);
                for g in grads {
                    sgd_step(&mut p, &[g], &mut m, sgd).unwrap();
                }
                assert_eq!(p[0].dtype(), dtype);
                assert!(m.iter().flatten().all(|m| m.dtype() == DType::F32));
                p
            };
            let what = format!("{dtype} {sgd:?}");
            assert_same(&run([&short, &short])[0], &run([&wide, &wide])[0], &what);
            let (mut plain, mut m) = (values(&start), None);
            plain_sgd(&mut plain, &values(&fine), &mut m, sgd);
            let first = {
                let (mut p, mut m) = ([start.clone()], [None]);
                sgd_step(&mut p, &[&fine], &mut m, sgd).unwrap();
                p
            };
            // One rounding of the parameter, beside which those of f32 do not show.
            assert_close(&first[0], &shape, &plain, tolerance(dtype, 64.0), &what);

            let adam = &adam_configs()[case % 2];
            let run = |g: &Tensor| {
                let (mut p, mut s) = ([start.clone()], [None]);
                adam_step(&mut p, &[g], &mut s, adam).unwrap();
                p
            };
            let what = format!("{dtype} {adam:?}");
            assert_same(&run(&short)[0], &run(&wide)[0], &what);
            let (mut plain, mut s) = (values(&start), PlainAdam::default());
            plain_adam(&mut plain, &values(&fine), &mut s, adam);
            assert_close(
                &run(&fine)[0],
                &shape,
                &plain,
                tolerance(dtype, 64.0),
                &what,
            );
        }
    }
    let t = |dtype| [Tensor::ones([2], dtype, device()).unwrap()];
    for (p, g) in [
        (DType::F32, DType::BF16),
        (DType::F64, DType::F32),
        (DType::BF16, DType::F16),
        (DType::BF16, DType::F64),
    ] {
        let e = sgd_step(&mut t(p), &t(g), &mut [], &SgdConfig::default()).unwrap_err();
        assert!(matches!(e, Error::DTypeMismatch { .. }), "{p} {g}: {e}");
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut rng = TestRng::new(33);
    let n = 200_003;
    let p = rng
        .tensor(&[n], DType::F32, (-1.0, 1.0))
        .contiguous()
        .unwrap();
    let g = rng
        .tensor(&[n], DType::F32, (-1.0, 1.0))
        .contiguous()
        .unwrap();
    let run = || {
        let (mut a, mut m) = ([p.clone()], [None]);
        let (mut b, mut s) = ([p.clone()], [None]);
        for _ in 0..2 {
            sgd_step(&mut a, std::slice::from_ref(&g), &mut m, &sgd_configs()[4]).unwrap();
            adam_step(&mut b, std::slice::from_ref(&g), &mut s, &adam_configs()[1]).unwrap();
        }
        (a, b, norm_of([&g]))
    };
    let alone = cpu::with_threads(1, run);
    for threads in [2, 3] {
        let many = cpu::with_threads(threads, run);
        assert_same(&alone.0[0], &many.0[0], "sgd");
        assert_same(&alone.1[0], &many.1[0], "adam");
        assert_eq!(alone.2.to_bits(), many.2.to_bits());
    }
}

#[test]
fn misuse_is_named_before_anything_is_written() {
    let t = |n: usize| Tensor::ones([n], DType::F32, device()).unwrap();
    let config = SgdConfig {
        lr: 0.1,
        momentum: 0.9,
        ..SgdConfig::default()
    };
    let mut p = [t(2), t(3)];
    let step = |p: &mut [Tensor], g: &[Tensor], config: &SgdConfig| {
        sgd_step(p, g, &mut vec![None; p.len()], config).unwrap_err()
    };
    let e = step(&mut p, &[t(2), t(4)], &config);
    assert!(
        matches!(e, Error::ShapeMismatch { op: "sgd_step", .. }),
        "{e}"
    );
    assert_eq!(
        values(&p[0]),
        [1.0, 1.0],
        "the first parameter was not stepped"
    );
    let far = t(3).to_device(Device::cpu(1)).unwrap();
    let e = step(&mut p, &[t(2), far], &config);
    assert!(
        matches!(e, Error::DeviceMismatch { op: "sgd_step", .. }),
        "{e}"
    );
    let e = step(&mut p, &[t(2)], &config);
    assert_eq!(e.to_string(), "sgd_step: 2 parameters and 1 gradients");
    let nesterov = SgdConfig {
        nesterov: true,
        dampening: 0.1,
        ..config
    };
    let e = step(&mut p, &[t(2), t(3)], &nesterov);
    assert!(e.to_string().contains("nesterov"), "{e}");
    let e = step(
        &mut p,
        &[t(2), t(3)],
        &SgdConfig {
            lr: f64::NAN,
            ..config
        },
    );
    assert!(e.to_string().contains("lr is NaN"), "{e}");
    let mut wrong = [None, Some(t(4))];
    let e = sgd_step(&mut p, &[t(2), t(3)], &mut wrong, &config).unwrap_err();
    assert!(matches!(e, Error::ShapeMismatch { .. }), "{e}");
    let betas = AdamConfig {
        betas: [1.0, 0.9],
        ..AdamConfig::adam()
    };
    let e = adam_step(&mut p, &[t(2), t(3)], &mut [None, None], &betas).unwrap_err();
    assert!(e.to_string().contains("betas"), "{e}");
}

#[test]
fn numbers_out_of_their_range_are_refused() {
    let sgd = |change: fn(&mut SgdConfig)| {
        let mut config = SgdConfig::default();
        change(&mut config);
        let mut p = [Tensor::ones([2], DType::F32, device()).unwrap()];
        let g = p.clone();
        let e = sgd_step(&mut p, &g, &mut [None], &config).unwrap_err();
        assert_eq!(config.check("sgd_step").unwrap_err(), e);
        assert_eq!(values(&p[0]), [1.0, 1.0]);
        e.to_string()
    };
    let finite = "must be finite and not negative";
    assert_eq!(
        sgd(|c| c.lr = -1.0),
        format!("sgd_step: lr is -1, {finite}")
    );
    assert_eq!(
        sgd(|c| c.lr = f64::INFINITY),
        format!("sgd_step: lr is inf, {finite}")
    );
    assert_eq!(
        sgd(|c| c.weight_decay = f64::INFINITY),
        format!("sgd_step: weight_decay is inf, {finite}")
    );
    for (change, value) in [
        ((|c| c.momentum = 5.0) as fn(&mut SgdConfig), "5"),
        (|c| c.momentum = 1.0, "1"),
        (|c| c.momentum = -0.5, "-0.5"),
        (|c| c.momentum = f64::NAN, "NaN"),
    ] {
        let want = format!("sgd_step: momentum is {value}, must lie in [0, 1)");
        assert_eq!(sgd(change), want);
    }
    let e = sgd(|c| (c.momentum, c.dampening) = (0.9, -1.0));
    assert_eq!(e, "sgd_step: dampening is -1, must lie in [0, 1]");

    let adam = |change: fn(&mut AdamConfig)| {
        let mut config = AdamConfig::adam();
        change(&mut config);
        config.check("adam_step").unwrap_err().to_string()
    };
    assert_eq!(
        adam(|c| c.eps = f64::NAN),
        format!("adam_step: eps is NaN, {finite}")
    );
    assert_eq!(
        adam(|c| c.betas[1] = 1.0),
        "adam_step: betas[1] is 1, must lie in [0, 1)"
    );
    assert!(AdamConfig::adamw().check("adam_step").is_ok());
}
