//! Batch normalisation and its running statistics against the CPU's.

use crate::support::*;
use phalanx_tensor::ops::norm::{BatchNormMask, BatchNormMomentum, BatchNormSaved};
use phalanx_tensor::{DType, Device, Error, Tensor};

const EPS: f64 = 1e-5;

/// What the passes read: the input, the gradient of the output, the residual, scale and shift.
struct Case {
    x: Tensor,
    grad: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
}

impl Case {
    fn new(shape: &[usize], dtype: DType, params: DType, seed: u64) -> Case {
        let like = |seed| values(shape, dtype, seed);
        let channels = |seed| values(&shape[1..2], params, seed);
        Case {
            x: like(seed),
            grad: like(seed + 10),
            residual: like(seed + 20),
            weight: channels(seed + 30),
            bias: channels(seed + 40),
        }
    }

    fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Case {
        Case {
            x: f(&self.x),
            grad: f(&self.grad),
            residual: f(&self.residual),
            weight: self.weight.clone(),
            bias: self.bias.clone(),
        }
    }

    fn to(&self, device: Device) -> Case {
        let there = |t: &Tensor| t.to_device(device).unwrap();
        let params = (there(&self.weight), there(&self.bias));
        Case {
            weight: params.0,
            bias: params.1,
            ..self.map(there)
        }
    }
}

/// All passes in all their forms, on both devices from the same saved tensors.
fn compare(name: &str, case: &Case, device: Device) {
    let far = case.to(device);
    let there = |t: &Tensor| t.to_device(device).unwrap();
    let name = format!("{name} {} {:?}", case.x.dtype(), case.x.layout());
    for (affine, residual, relu) in [
        (false, false, false),
        (true, false, false),
        (true, false, true),
        (true, true, true),
        (false, true, false),
    ] {
        let name = format!("{name} affine {affine} residual {residual} relu {relu}");
        let forward = |case: &Case| {
            let params = affine.then_some((&case.weight, &case.bias));
            let (w, b) = params.unzip();
            let residual = residual.then_some(&case.residual);
            let given = (case.x.batch_norm_act(w, b, EPS, residual, relu)).unwrap();
            (given, w.cloned(), b.cloned())
        };
        let ((out, w, b), (got, far_w, far_b)) = (forward(case), forward(&far));
        assert_near(&format!("{name}: mean"), &got.mean, &out.mean, 0.0);
        assert_near(&format!("{name}: var"), &got.var, &out.var, 0.0);
        assert_near(&format!("{name}: invstd"), &got.invstd, &out.invstd, 0.0);
        assert_near(&format!("{name}: out"), &got.out, &out.out, 1e-5);

        // With the CPU's statistics the results are bits of the same operations.
        let inference = |case: &Case, mean: &Tensor, var: &Tensor, w, b| {
            let residual = residual.then_some(&case.residual);
            (case
                .x
                .batch_norm_inference(mean, var, w, b, EPS, residual, relu))
            .unwrap()
        };
        let stats = [&out.mean, &out.var, &out.invstd].map(there);
        let expected = inference(case, &out.mean, &out.var, w.as_ref(), b.as_ref());
        let from = inference(&far, &stats[0], &stats[1], far_w.as_ref(), far_b.as_ref());
        assert_eq!(bits(&from), bits(&expected), "{name}: inference");
        let invstd = stats[1].batch_norm_invstd(EPS).unwrap();
        assert_eq!(
            bits(&invstd),
            bits(&out.var.batch_norm_invstd(EPS).unwrap()),
            "{name}"
        );

        let far_out = there(&out.out);
        let saved = |case, mean, invstd, params: [_; 2], out| {
            backward_of(case, mean, invstd, params, out, residual, relu)
        };
        let here = saved(
            case,
            &out.mean,
            &out.invstd,
            [w.as_ref(), b.as_ref()],
            &out.out,
        );
        let away = saved(
            &far,
            &stats[0],
            &stats[2],
            [far_w.as_ref(), far_b.as_ref()],
            &far_out,
        );
        for (origin, back) in [
            (
                "batch",
                Tensor::batch_norm_backward as fn(&Tensor, &BatchNormSaved<'_>) -> _,
            ),
            ("given", Tensor::batch_norm_inference_backward),
        ] {
            let name = format!("{name} {origin}");
            let expected = back(&case.grad, &here).unwrap();
            let got = back(&far.grad, &away).unwrap();
            assert_near(
                &format!("{name}: weight"),
                &got.weight,
                &expected.weight,
                1e-3,
            );
            assert_near(&format!("{name}: bias"), &got.bias, &expected.bias, 1e-3);
            assert_near(&format!("{name}: input"), &got.input, &expected.input, 1e-3);
            assert_eq!(
                got.residual.is_some(),
                expected.residual.is_some(),
                "{name}"
            );
            if let (Some(got), Some(expected)) = (&got.residual, &expected.residual) {
                assert_eq!(bits(got), bits(expected), "{name}: residual");
            }
        }
    }
}

fn backward_of<'a>(
    case: &'a Case,
    mean: &'a Tensor,
    invstd: &'a Tensor,
    [weight, bias]: [Option<&'a Tensor>; 2],
    out: &'a Tensor,
    residual: bool,
    relu: bool,
) -> BatchNormSaved<'a> {
    BatchNormSaved {
        input: &case.x,
        mean,
        invstd,
        weight,
        bias,
        activation: match (relu, residual) {
            (false, _) => BatchNormMask::Linear,
            (true, false) => BatchNormMask::Relu,
            (true, true) => BatchNormMask::ResidualRelu(out),
        },
    }
}

fn bits(t: &Tensor) -> Vec<u64> {
    read(t).iter().map(|v| v.to_bits()).collect()
}

#[test]
fn planes_of_every_size_are_the_cpus() {
    let (device, _turn) = card!();
    let shapes: &[&[usize]] = &[
        &[1, 1],
        &[7, 3],
        &[130, 40],
        &[3, 5, 2],
        &[70, 3, 31],
        &[2, 3, 4, 8],
        &[5, 6, 7, 7],
        &[2, 2, 33, 31],
        &[1, 2, 5000],
        &[40, 1, 16, 16],
    ];
    for dtype in FLOATS {
        for (seed, shape) in (1..).zip(shapes) {
            compare(
                &format!("{shape:?}"),
                &Case::new(shape, dtype, dtype, seed),
                device,
            );
        }
    }
    // Parameters of the type of computation.
    for dtype in [DType::BF16, DType::F16] {
        for seed in SEEDS {
            compare(
                "wide parameters",
                &Case::new(&[3, 4, 6, 8], dtype, DType::F32, seed),
                device,
            );
        }
    }
}

#[test]
fn views_of_planes_are_the_cpus() {
    let (device, _turn) = card!();
    for dtype in FLOATS {
        for seed in SEEDS {
            let case = Case::new(&[4, 5, 6, 16], dtype, dtype, seed);
            // Gaps between images; gaps in planes; the channels last in memory.
            let views: [fn(&Tensor) -> Tensor; 3] = [
                |t| t.slice(0, 0..4, 2).unwrap(),
                |t| t.narrow(3, 3, 11).unwrap(),
                |t| t.narrow(3, 8, 8).unwrap(),
            ];
            for (i, view) in views.into_iter().enumerate() {
                compare(&format!("view {i} seed {seed}"), &case.map(view), device);
            }
            let case = Case::new(&[4, 16, 6, 5], dtype, dtype, seed);
            let last = |t: &Tensor| {
                let t = t.permute(&[0, 2, 3, 1]).unwrap().contiguous().unwrap();
                t.permute(&[0, 3, 1, 2]).unwrap()
            };
            compare(
                &format!("channels last seed {seed}"),
                &case.map(last),
                device,
            );
        }
    }
}

#[test]
fn batches_without_elements_are_the_cpus() {
    let (device, _turn) = card!();
    for shape in [&[0, 3, 4][..], &[2, 3, 0], &[2, 0, 4], &[0, 0]] {
        compare(
            "nothing",
            &Case::new(shape, DType::F32, DType::F32, 1),
            device,
        );
    }
}

/// A mean far from zero costs no digits, also where the first elements are unlike the others.
#[test]
fn a_mean_far_from_zero_costs_no_digits() {
    let (device, _turn) = card!();
    for plane in [1usize, 500] {
        let n = 2000 / plane * 2;
        let small = values(&[n, 2, plane], DType::F32, 1)
            .to_vec::<f32>()
            .unwrap();
        for outlier in [false, true] {
            let value = |(i, v): (usize, &f32)| match outlier && i < 3 {
                true => 0.0,
                false => 4096.0 + f64::from((v * 1024.0).round()) / 1024.0,
            };
            let data: Vec<f64> = small.iter().enumerate().map(value).collect();
            let x = Tensor::from_vec(data, [n, 2, plane], Device::cpu(0)).unwrap();
            let exact = x.batch_norm(None, None, EPS).unwrap();
            let x = x.cast(DType::F32).unwrap().to_device(device).unwrap();
            let got = x.batch_norm(None, None, EPS).unwrap();
            for (got, exact) in [(&got.mean, &exact.mean), (&got.var, &exact.var)] {
                let apart = distance(&read(got), &read(exact));
                assert!(apart < 2e-6, "plane {plane} outlier {outlier}: {apart}");
            }
        }
    }
}

#[test]
fn what_is_no_number_stays_in_its_channel() {
    let (device, _turn) = card!();
    for dtype in FLOATS {
        for special in [f64::NAN, f64::INFINITY] {
            let mut data = read(&values(&[4, 3, 50], dtype, 2));
            data[70] = special;
            let x = Tensor::from_vec(data, [4, 3, 50], Device::cpu(0))
                .unwrap()
                .cast(dtype)
                .unwrap();
            let expected = x.batch_norm_act(None, None, EPS, None, true).unwrap();
            let got = x
                .to_device(device)
                .unwrap()
                .batch_norm_act(None, None, EPS, None, true)
                .unwrap();
            assert_near("special", &got.out, &expected.out, 1e-5);
            assert_near("special", &got.var, &expected.var, 0.0);
        }
    }
}

#[test]
fn running_statistics_are_the_cpus_to_the_bit() {
    let (device, _turn) = card!();
    let there = |t: &Tensor| t.to_device(device).unwrap();
    for running in FLOATS {
        for batch in FLOATS {
            for seed in SEEDS {
                let stats = [1, 2].map(|k| values(&[37], running, seed + k).abs().unwrap());
                let fresh = [3, 4].map(|k| values(&[74], batch, seed + k).abs().unwrap());
                let fresh = fresh.map(|t| t.slice(0, 0..74, 2).unwrap());
                let count = Tensor::from_slice(&[seed as i64 * 3], [1], Device::cpu(0)).unwrap();
                let track = |stats: &[Tensor; 2], fresh: &[Tensor; 2], momentum| {
                    let (stats, fresh) = (stats.each_ref(), fresh.each_ref());
                    Tensor::batch_norm_track(stats, fresh, 30, momentum).unwrap()
                };
                let (far, far_fresh) = (stats.each_ref().map(there), fresh.each_ref().map(there));
                let far_count = there(&count);
                for (here, away) in [
                    (BatchNormMomentum::Share(0.1), BatchNormMomentum::Share(0.1)),
                    (
                        BatchNormMomentum::Cumulative(&count),
                        BatchNormMomentum::Cumulative(&far_count),
                    ),
                ] {
                    let expected = track(&stats, &fresh, here);
                    let got = track(&far, &far_fresh, away);
                    for (got, expected) in got.iter().zip(&expected) {
                        assert_eq!(bits(got), bits(expected), "{running} {batch} {here:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn results_repeat_and_misuse_is_the_cpus_error() {
    let (device, _turn) = card!();
    let x = values(&[64, 3, 40], DType::F32, 1)
        .to_device(device)
        .unwrap();
    let run = || {
        let out = x.batch_norm(None, None, EPS).unwrap();
        [bits(&out.mean), bits(&out.var), bits(&out.out)]
    };
    assert_eq!(run(), run());
    let flat = values(&[3], DType::F32, 1);
    let error = flat
        .to_device(device)
        .unwrap()
        .batch_norm(None, None, EPS)
        .unwrap_err();
    assert_eq!(error, flat.batch_norm(None, None, EPS).unwrap_err());
    let weight = values(&[3], DType::F32, 1);
    assert!(matches!(
        x.batch_norm(Some(&weight), None, EPS),
        Err(Error::DeviceMismatch { .. })
    ));
}
