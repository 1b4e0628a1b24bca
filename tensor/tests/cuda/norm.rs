//! Layer normalisation against the CPU's.

use crate::support::*;
use phalanx_tensor::{DType, Device, Error, Tensor};

/// Both directions, with all combinations of weight and bias.
fn compare(name: &str, x: &Tensor, grad: &Tensor, params: [&Tensor; 2], device: Device) {
    let there = |t: &Tensor| t.to_device(device).unwrap();
    let [weight, bias] = params;
    let normalized = weight.shape();
    for (weight, bias) in [
        (None, None),
        (Some(weight), None),
        (None, Some(bias)),
        (Some(weight), Some(bias)),
    ] {
        let name = format!(
            "{name} {} {:?} weight {} bias {}",
            x.dtype(),
            x.layout(),
            weight.is_some(),
            bias.is_some()
        );
        let (far_weight, far_bias) = (weight.map(there), bias.map(there));
        let out = x
            .layer_norm(normalized.clone(), weight, bias, 1e-5)
            .unwrap();
        let got = there(x)
            .layer_norm(
                normalized.clone(),
                far_weight.as_ref(),
                far_bias.as_ref(),
                1e-5,
            )
            .unwrap();
        assert_near(&format!("{name}: out"), &got.out, &out.out, 1e-5);
        assert_near(&format!("{name}: mean"), &got.mean, &out.mean, 0.0);
        assert_near(&format!("{name}: rstd"), &got.rstd, &out.rstd, 0.0);
        let back = |grad: &Tensor, x: &Tensor, weight, mean, rstd| {
            Tensor::layer_norm_backward(grad, x, normalized.clone(), weight, mean, rstd).unwrap()
        };
        let expected = back(grad, x, weight, &out.mean, &out.rstd);
        let (mean, rstd) = (there(&out.mean), there(&out.rstd));
        let got = back(&there(grad), &there(x), far_weight.as_ref(), &mean, &rstd);
        assert_near(&format!("{name}: dx"), &got.input, &expected.input, 1e-4);
        for (got, expected) in [(got.weight, expected.weight), (got.bias, expected.bias)] {
            assert_eq!(got.is_some(), expected.is_some(), "{name}");
            if let (Some(got), Some(expected)) = (got, expected) {
                assert_near(&format!("{name}: parameters"), &got, &expected, 1e-3);
            }
        }
    }
}

#[test]
fn layers_of_every_width_are_the_cpus() {
    let (device, _turn) = card!();
    let cases: &[(&[usize], usize)] = &[
        (&[1], 1),
        (&[5, 1], 1),
        (&[300, 3], 1),
        (&[70, 16], 1),
        (&[3, 2, 64], 1),
        (&[2, 5, 6, 4], 2),
        (&[2, 768], 1),
        (&[3, 1000], 1),
        (&[2, 1023], 1),
        (&[2, 4100], 1),
        (&[1, 20_000], 1),
        (&[200, 40], 1),
    ];
    for dtype in FLOATS {
        for (seed, &(shape, axes)) in (1..).zip(cases) {
            let normalized = &shape[shape.len() - axes..];
            let [x, grad] = [seed, seed + 50].map(|seed| values(shape, dtype, seed));
            let params = [seed + 100, seed + 150].map(|seed| values(normalized, dtype, seed));
            compare(&format!("{shape:?}"), &x, &grad, params.each_ref(), device);
        }
    }
}

#[test]
fn views_of_layers_are_the_cpus() {
    let (device, _turn) = card!();
    for dtype in FLOATS {
        for seed in SEEDS {
            let [x, grad] = [seed, seed + 9].map(|seed| values(&[6, 5, 16], dtype, seed));
            let params = [seed + 20, seed + 30].map(|seed| values(&[16], dtype, seed));
            // Gaps between rows; an offset; neighbours that belong to different rows; gaps everywhere.
            let views: [fn(&Tensor) -> Tensor; 5] = [
                |t| t.narrow(1, 1, 3).unwrap(),
                |t| t.narrow(2, 8, 8).unwrap(),
                |t| t.narrow(2, 3, 9).unwrap(),
                |t| t.transpose(0, 2).unwrap(),
                |t| t.slice(2, 0..16, 3).unwrap(),
            ];
            for (i, view) in views.into_iter().enumerate() {
                let (x, grad) = (view(&x), view(&grad));
                let width = x.dims()[2];
                let params = params.each_ref().map(|t| {
                    let t = if width <= 8 {
                        t.slice(0, 0..16, 2).unwrap()
                    } else {
                        t.clone()
                    };
                    t.narrow(0, 0, width).unwrap()
                });
                compare(
                    &format!("view {i} seed {seed}"),
                    &x,
                    &grad,
                    params.each_ref(),
                    device,
                );
                // The last two axes together, which do not merge.
                let both = [1, 2].map(|k| values(&x.dims()[1..], dtype, seed + k));
                compare(
                    &format!("two axes of view {i}"),
                    &x,
                    &grad,
                    both.each_ref(),
                    device,
                );
            }
        }
    }
}

#[test]
fn layers_without_rows_have_gradients_of_zero() {
    let (device, _turn) = card!();
    for shape in [&[0, 4][..], &[3, 0, 4]] {
        let x = values(shape, DType::F32, 1);
        let params = [2, 3].map(|seed| values(&[4], DType::F32, seed));
        compare("no rows", &x, &x, params.each_ref(), device);
    }
    let x = values(&[3, 0], DType::F32, 1);
    let there = x.to_device(device).unwrap();
    let error = there.layer_norm([0], None, None, 1e-5).unwrap_err();
    assert_eq!(error, x.layer_norm([0], None, None, 1e-5).unwrap_err());
    assert!(matches!(error, Error::InvalidShape { .. }));
}

/// A mean far from zero costs no digits of the result.
#[test]
fn a_mean_far_from_zero_costs_no_digits() {
    let (device, _turn) = card!();
    for width in [96, 1000, 5000] {
        // Distances that the type holds exactly beside the mean.
        let small = values(&[4, width], DType::F32, 1).to_vec::<f32>().unwrap();
        let data: Vec<f64> = small
            .iter()
            .map(|v| 16384.0 + f64::from((v * 256.0).round()) / 256.0)
            .collect();
        let x = Tensor::from_vec(data, [4, width], Device::cpu(0)).unwrap();
        let exact = x.layer_norm([width], None, None, 1e-5).unwrap();
        let x = x.cast(DType::F32).unwrap().to_device(device).unwrap();
        let got = x.layer_norm([width], None, None, 1e-5).unwrap();
        let apart = distance(&read(&got.rstd), &read(&exact.rstd));
        assert!(apart < 1e-5, "{width}: {apart}");
        let apart = distance(&read(&got.out), &read(&exact.out));
        assert!(apart < 5e-3, "{width}: {apart}"); // the mean itself has f32's digits
    }
}

#[test]
fn what_is_no_number_stays_in_its_row() {
    let (device, _turn) = card!();
    let nan = f64::NAN;
    let data = vec![1.0, 2.0, 3.0, 4.0, 1.0, nan, 3.0, 4.0, 5.0, 5.0, 5.0, 5.0];
    let x = Tensor::from_vec(data, [3, 4], Device::cpu(0)).unwrap();
    for dtype in FLOATS {
        let x = x.cast(dtype).unwrap();
        let expected = x.layer_norm([4], None, None, 1e-5).unwrap();
        let got = x
            .to_device(device)
            .unwrap()
            .layer_norm([4], None, None, 1e-5)
            .unwrap();
        assert_near("NaN", &got.out, &expected.out, 1e-6);
        assert_near("NaN", &got.rstd, &expected.rstd, 0.0);
    }
}
