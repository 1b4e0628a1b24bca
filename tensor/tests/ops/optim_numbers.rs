//! Numbers of an optimizer's step that are on a device: a learning rate, the number of the step, a norm
//! to clip at. They give the bits of the same numbers from the program, but for one: where a card corrects
//! Adam's bias by the number of the step, its powers are not the host's.

use crate::util::*;
use phalanx_tensor::ops::Scalar;
use phalanx_tensor::ops::optim::*;
use phalanx_tensor::*;

/// Parameters on two devices, the first of which is that of the tests.
fn params(dtype: DType) -> Vec<Tensor> {
    let mut rng = TestRng::new(7);
    let mut on = |device, n: usize| {
        let t = rng.tensor(&[n], dtype, (-1.0, 1.0));
        t.to_device(device).unwrap()
    };
    let (first, second) = (device(), Device::cpu(2));
    vec![on(first, 5), on(second, 70), on(first, 1), on(second, 0)]
}

fn all(tensors: &[Tensor]) -> Vec<f64> {
    tensors.iter().flat_map(values).collect()
}

const RATES: [f64; 3] = [0.25, 0.5, 0.0625];

#[test]
fn a_rate_on_a_device_gives_the_same_bits() {
    for dtype in FLOATS {
        let sgd = |on_device: bool| {
            let (mut p, mut momenta) = (params(dtype), vec![None::<Tensor>; 4]);
            for rate in RATES {
                let grads = params(dtype);
                let config = SgdConfig {
                    lr: if on_device { 0.5 } else { 0.5 * rate },
                    momentum: 0.5,
                    weight_decay: 0.125,
                    ..SgdConfig::default()
                };
                // The second element of a view, on a third device.
                let rates = tensor_of(&[9.0, rate], &[2], dtype);
                let rate = rates.narrow(0, 1, 1).unwrap();
                let rate = rate.to_device(Device::cpu(5)).unwrap();
                let mut part = Part::new(&mut p, &grads, &mut momenta, config);
                if on_device {
                    part.lr_scale = (&rate).into();
                }
                sgd_steps(&mut [part]).unwrap();
            }
            all(&p)
        };
        assert_eq!(sgd(true), sgd(false), "{dtype}");
        let adam = |rate_on_device: bool, step_on_device: bool| {
            let (mut p, mut states) = (params(dtype), vec![None::<AdamState>; 4]);
            for (step, rate) in RATES.into_iter().enumerate() {
                let grads = params(dtype);
                let config = AdamConfig {
                    lr: if rate_on_device { 0.5 } else { 0.5 * rate },
                    ..AdamConfig::adamw()
                };
                let rate = tensor_of(&[rate], &[], dtype);
                let step = tensor_of(&[step as f64 + 1.0], &[1], dtype);
                let mut part = Part::new(&mut p, &grads, &mut states, config);
                if rate_on_device {
                    part.lr_scale = (&rate).into();
                }
                if step_on_device {
                    part.step = Some((&step).into());
                }
                adam_steps(&mut [part]).unwrap();
            }
            assert!(states.iter().flatten().all(|state| state.step == 3));
            all(&p)
        };
        let from_the_program = adam(false, false);
        assert_eq!(adam(true, false), from_the_program, "{dtype}");
        let (got, tol) = (adam(false, true), tolerance(dtype, 8.0));
        match device() {
            Device::Cpu(_) => assert_eq!(got, from_the_program, "{dtype}"),
            _ => assert!(
                got.iter()
                    .zip(&from_the_program)
                    .all(|(a, b)| (a - b).abs() <= tol * b.abs().max(1.0)),
                "{dtype}: {got:?}, not {from_the_program:?}"
            ),
        }
    }
}

/// A step whose number the program gives is that step, whatever the states count.
#[test]
fn the_number_of_the_step_decides() {
    let run = |step: Option<Scalar<'_>>, count: u64| {
        let mut p = params(DType::F64);
        let state = |p: &Tensor| AdamState {
            exp_avg: p.clone(),
            exp_avg_sq: p.square().unwrap(),
            step: count,
        };
        let mut states: Vec<_> = p.iter().map(|p| Some(state(p))).collect();
        let grads = params(DType::F64);
        let mut part = Part::new(&mut p, &grads, &mut states, AdamConfig::adam());
        part.step = step;
        adam_steps(&mut [part]).unwrap();
        assert!(states.iter().flatten().all(|s| s.step == count + 1));
        all(&p)
    };
    assert_eq!(run(Some(Scalar::Host(8.0)), 0), run(None, 7));
    assert_ne!(run(Some(Scalar::Host(8.0)), 0), run(None, 0));
}

#[test]
fn numbers_that_make_no_sense_change_nothing() {
    let grads = params(DType::F32);
    let two = tensor_of(&[1.0, 2.0], &[2], DType::F32);
    let whole = tensor_of(&[1.0], &[], DType::I64);
    let rates: [Scalar<'_>; 5] = [
        (-1.0).into(),
        f64::NAN.into(),
        f64::INFINITY.into(),
        (&two).into(),
        (&whole).into(),
    ];
    let steps: [Scalar<'_>; 4] = [0.0.into(), f64::NAN.into(), (&two).into(), (&whole).into()];
    for rate in rates {
        let (mut p, mut momenta) = (params(DType::F32), vec![None::<Tensor>; 4]);
        let mut part = Part::new(&mut p, &grads, &mut momenta, SgdConfig::default());
        part.lr_scale = rate;
        let e = sgd_steps(&mut [part]).unwrap_err();
        assert!(e.to_string().starts_with("sgd_step:"), "{e}");
        assert_eq!(all(&p), all(&params(DType::F32)));
    }
    for step in steps {
        let (mut p, mut states) = (params(DType::F32), vec![None::<AdamState>; 4]);
        let mut part = Part::new(&mut p, &grads, &mut states, AdamConfig::adam());
        part.step = Some(step);
        let e = adam_steps(&mut [part]).unwrap_err();
        assert!(e.to_string().starts_with("adam_step:"), "{e}");
        assert_eq!(all(&p), all(&params(DType::F32)));
        assert!(states.iter().all(Option::is_none));
    }
}

#[test]
fn clipping_brings_a_norm_down_and_none_up() {
    for dtype in FLOATS {
        for (norm, max_norm) in [(8.0, 2.0), (0.5, 2.0), (0.0, 2.0), (8.0, f64::INFINITY)] {
            let factor = f64::min(1.0, max_norm / (norm + 1e-6));
            let expected = {
                let mut list = params(dtype);
                scale(&mut list, factor).unwrap();
                all(&list)
            };
            let tensor = tensor_of(&[norm], &[], dtype);
            for of in [Scalar::Host(norm), (&tensor).into()] {
                let mut list = params(dtype);
                clip_by_norm(&mut list, of, max_norm).unwrap();
                assert_eq!(all(&list), expected, "{dtype} {norm} {max_norm}");
            }
        }
        let mut list = params(dtype);
        clip_by_norm(&mut list, f64::NAN, 1.0).unwrap();
        assert!(all(&list).iter().all(|v| v.is_nan()));
    }
    let mut list = params(DType::F32);
    for max_norm in [-1.0, f64::NAN] {
        clip_by_norm(&mut list, 1.0, max_norm).unwrap_err();
    }
    assert_eq!(all(&list), all(&params(DType::F32)), "left alone");
}
