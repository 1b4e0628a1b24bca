//! Pooling against plain loops in `f64`, over random windows and views.

use crate::util::*;
use phalanx_tensor::ops::pool::Pool2dConfig;
use phalanx_tensor::{DType, Error, Tensor, cpu};

/// A random configuration and an input shape that it fits.
fn random(rng: &mut TestRng, dilated: bool) -> (Pool2dConfig, [usize; 4]) {
    let mut cfg = Pool2dConfig::new([1 + rng.below(4), 1 + rng.below(4)]);
    let mut hw = [0; 2];
    for (d, size) in hw.iter_mut().enumerate() {
        cfg.stride[d] = 1 + rng.below(4);
        cfg.padding[d] = rng.below(cfg.kernel[d] / 2 + 1);
        cfg.dilation[d] = if dilated { 1 + rng.below(3) } else { 1 };
        let reach = cfg.dilation[d] * (cfg.kernel[d] - 1) + 1;
        *size = reach.saturating_sub(2 * cfg.padding[d]).max(1) + rng.below(8);
    }
    cfg.ceil_mode = rng.below(2) == 0;
    cfg.count_include_pad = rng.below(2) == 0;
    (
        cfg,
        [[0, 1, 2, 3][rng.below(4)], 1 + rng.below(3), hw[0], hw[1]],
    )
}

/// The output extent along one axis, by PyTorch's formula.
fn extent(cfg: &Pool2dConfig, d: usize, size: usize) -> usize {
    let (size, pad, stride) = (
        size as isize,
        cfg.padding[d] as isize,
        cfg.stride[d] as isize,
    );
    let slack = size + 2 * pad - (cfg.dilation[d] * (cfg.kernel[d] - 1)) as isize - 1;
    let up = if cfg.ceil_mode { stride - 1 } else { 0 };
    let mut out = (slack + up).div_euclid(stride) + 1;
    if cfg.ceil_mode && (out - 1) * stride >= size + pad {
        out -= 1;
    }
    out as usize
}

/// For each output of a plane: the pixels it looks at, and how many padded ones it counts too.
fn windows(cfg: &Pool2dConfig, [h, w]: [usize; 2]) -> Vec<(Vec<usize>, usize)> {
    let mut all = Vec::new();
    for i in 0..extent(cfg, 0, h) {
        for j in 0..extent(cfg, 1, w) {
            let (mut pixels, mut padded) = (Vec::new(), 0);
            for u in 0..cfg.kernel[0] {
                for v in 0..cfg.kernel[1] {
                    let y = (i * cfg.stride[0] + u * cfg.dilation[0]) as isize
                        - cfg.padding[0] as isize;
                    let x = (j * cfg.stride[1] + v * cfg.dilation[1]) as isize
                        - cfg.padding[1] as isize;
                    let (h, w) = (h as isize, w as isize);
                    // `ceil_mode` windows may hang over the padding too; that part counts never.
                    padded += usize::from(
                        y < h + cfg.padding[0] as isize && x < w + cfg.padding[1] as isize,
                    );
                    if y >= 0 && x >= 0 && y < h && x < w {
                        pixels.push((y * w + x) as usize);
                    }
                }
            }
            all.push((pixels, padded));
        }
    }
    all
}

#[test]
fn maxima_and_their_places_are_the_loop_s() {
    let mut rng = TestRng::new(81);
    for i in 0..200 {
        let dtype = FLOATS[i % 4];
        let (cfg, shape) = random(&mut rng, true);
        let x = rng.tensor(&shape, dtype, (-1.0, 1.0));
        let (out, at) = x.max_pool2d(&cfg).unwrap();
        let dy = rng.tensor(out.dims(), dtype, (-1.0, 1.0));
        let dx = Tensor::max_pool2d_backward(&dy, &at, shape).unwrap();
        let (xv, dyv) = (values(&x), values(&dy));
        let (mut max, mut place, mut grad) = (vec![], vec![], vec![0.0; xv.len()]);
        let plane = shape[2] * shape[3];
        for p in 0..shape[0] * shape[1] {
            for (pixels, _) in windows(&cfg, [shape[2], shape[3]]) {
                let mut best = None;
                for &i in &pixels {
                    if best.is_none_or(|b: usize| xv[p * plane + i] > xv[p * plane + b]) {
                        best = Some(i);
                    }
                }
                if let Some(b) = best {
                    grad[p * plane + b] += dyv[max.len()];
                }
                max.push(best.map_or(f64::NEG_INFINITY, |b| xv[p * plane + b]));
                place.push(best.map_or(-1.0, |b| b as f64));
            }
        }
        let shape_out = [
            shape[0],
            shape[1],
            extent(&cfg, 0, shape[2]),
            extent(&cfg, 1, shape[3]),
        ];
        let what = format!("{dtype} {shape:?} {cfg:?}");
        assert_close(&out, &shape_out, &max, 0.0, &what);
        assert_close(&at, &shape_out, &place, 0.0, &what);
        assert_close(&dx, &shape, &grad, tolerance(dtype, 16.0), &what);
    }
}

#[test]
fn a_nan_is_the_maximum() {
    let x = [1.0, f64::NAN, 7.0, f64::NAN];
    let (out, at) = tensor_of(&x, &[1, 1, 2, 2], DType::F32)
        .max_pool2d(&Pool2dConfig::new([2, 2]))
        .unwrap();
    assert!(out.item::<f64>().unwrap().is_nan() && at.item::<f64>().unwrap() == 1.0);
}

#[test]
fn averages_are_the_loop_s() {
    let mut rng = TestRng::new(82);
    for i in 0..200 {
        let dtype = FLOATS[i % 4];
        let (cfg, shape) = random(&mut rng, false);
        let x = rng.tensor(&shape, dtype, (-1.0, 1.0));
        let out = x.avg_pool2d(&cfg).unwrap();
        let dy = rng.tensor(out.dims(), dtype, (-1.0, 1.0));
        let dx = Tensor::avg_pool2d_backward(&dy, shape, &cfg).unwrap();
        let (xv, dyv) = (values(&x), values(&dy));
        let (mut mean, mut grad) = (vec![], vec![0.0; xv.len()]);
        let plane = shape[2] * shape[3];
        for p in 0..shape[0] * shape[1] {
            for (pixels, padded) in windows(&cfg, [shape[2], shape[3]]) {
                let count = if cfg.count_include_pad {
                    padded
                } else {
                    pixels.len()
                } as f64;
                pixels
                    .iter()
                    .for_each(|i| grad[p * plane + i] += dyv[mean.len()] / count);
                mean.push(pixels.iter().map(|i| xv[p * plane + i]).sum::<f64>() / count);
            }
        }
        let shape_out = [
            shape[0],
            shape[1],
            extent(&cfg, 0, shape[2]),
            extent(&cfg, 1, shape[3]),
        ];
        let what = format!("{dtype} {shape:?} {cfg:?}");
        assert_close(&out, &shape_out, &mean, tolerance(dtype, 16.0), &what);
        assert_close(&dx, &shape, &grad, tolerance(dtype, 32.0), &what);
    }
}

#[test]
fn parts_of_a_plane_are_averaged() {
    let mut rng = TestRng::new(83);
    for i in 0..80 {
        let dtype = FLOATS[i % 4];
        let shape = [
            rng.below(3),
            1 + rng.below(3),
            1 + rng.below(9),
            1 + rng.below(40),
        ];
        let out = if i % 3 == 0 {
            [1, 1]
        } else {
            [1 + rng.below(6), 1 + rng.below(6)]
        };
        let x = rng.tensor(&shape, dtype, (-1.0, 1.0));
        let y = x.adaptive_avg_pool2d(out).unwrap();
        let dy = rng.tensor(y.dims(), dtype, (-1.0, 1.0));
        let dx = Tensor::adaptive_avg_pool2d_backward(&dy, shape).unwrap();
        let (xv, dyv) = (values(&x), values(&dy));
        let (mut mean, mut grad) = (vec![], vec![0.0; xv.len()]);
        let part = |o: usize, d: usize| {
            let (n, parts) = (shape[2 + d] as f64, out[d] as f64);
            (o as f64 * n / parts).floor() as usize..((o + 1) as f64 * n / parts).ceil() as usize
        };
        for p in 0..shape[0] * shape[1] {
            for (a, b) in (0..out[0]).flat_map(|a| (0..out[1]).map(move |b| (a, b))) {
                let pixels: Vec<usize> = part(a, 0)
                    .flat_map(|r| part(b, 1).map(move |c| (p * shape[2] + r) * shape[3] + c))
                    .collect();
                pixels
                    .iter()
                    .for_each(|&i| grad[i] += dyv[mean.len()] / pixels.len() as f64);
                mean.push(pixels.iter().map(|&i| xv[i]).sum::<f64>() / pixels.len() as f64);
            }
        }
        let what = format!("{dtype} {shape:?} to {out:?}");
        assert_close(
            &y,
            &[shape[0], shape[1], out[0], out[1]],
            &mean,
            tolerance(dtype, 32.0),
            &what,
        );
        assert_close(&dx, &shape, &grad, tolerance(dtype, 32.0), &what);
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    let mut rng = TestRng::new(84);
    for _ in 0..20 {
        let (cfg, shape) = random(&mut rng, false);
        let x = [rng.tensor(&shape, DType::F64, (-1.0, 1.0))];
        let (out, at) = x[0].max_pool2d(&cfg).unwrap();
        let dy = rng.tensor(out.dims(), DType::F64, (-1.0, 1.0));
        let dx = Tensor::avg_pool2d_backward(&dy, shape, &cfg).unwrap();
        assert_gradient(
            |x| x[0].avg_pool2d(&cfg).unwrap(),
            &x,
            0,
            &dy,
            &dx,
            "average",
        );
        // Distinct values: no step of the differences changes which pixel is the largest.
        let distinct: Vec<f64> = (0..out_numel(&shape))
            .map(|i| ((i * 7919) % 10007) as f64)
            .collect();
        let x = [tensor_of(&distinct, &shape, DType::F64)];
        let (_, at_distinct) = x[0].max_pool2d(&cfg).unwrap();
        let dx = Tensor::max_pool2d_backward(&dy, &at_distinct, shape).unwrap();
        assert_gradient(
            |x| x[0].max_pool2d(&cfg).unwrap().0,
            &x,
            0,
            &dy,
            &dx,
            "maximum",
        );
        assert_eq!(at.dims(), out.dims());
    }
}

fn out_numel(shape: &[usize]) -> usize {
    shape.iter().product()
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mut rng = TestRng::new(85);
    let x = rng.tensor(&[5, 7, 33, 29], DType::F32, (-1.0, 1.0));
    let cfg = Pool2dConfig::new([3, 3]).with_stride(2).with_padding(1);
    let run = |threads| {
        cpu::with_threads(threads, || {
            let (out, at) = x.max_pool2d(&cfg).unwrap();
            let avg = x.avg_pool2d(&cfg).unwrap();
            [
                Tensor::max_pool2d_backward(&out, &at, [5, 7, 33, 29]).unwrap(),
                Tensor::avg_pool2d_backward(&avg, [5, 7, 33, 29], &cfg).unwrap(),
                x.adaptive_avg_pool2d([1, 1]).unwrap(),
                out,
                at,
                avg,
            ]
        })
    };
    let one = run(1);
    for threads in [2, 5] {
        one.iter()
            .zip(&run(threads))
            .for_each(|(a, b)| assert_same(a, b, "pooling"));
    }
}

#[test]
fn says_what_does_not_fit() {
    let x = Tensor::zeros([1, 2, 4, 4], DType::F32, device()).unwrap();
    let cfg = Pool2dConfig::new([2, 2]);
    let rank = x.squeeze(0).unwrap().max_pool2d(&cfg).unwrap_err();
    assert!(rank.to_string().contains("needs four axes"), "{rank}");
    let padding = x.max_pool2d(&cfg.with_padding(2)).unwrap_err();
    assert!(
        padding
            .to_string()
            .contains("padding 2 is more than half the kernel 2"),
        "{padding}"
    );
    let large = x.avg_pool2d(&Pool2dConfig::new([5, 2])).unwrap_err();
    assert!(
        large.to_string().contains("reaches over 5 pixels"),
        "{large}"
    );
    let dilated = x
        .avg_pool2d(&Pool2dConfig {
            dilation: [2, 1],
            ..cfg
        })
        .unwrap_err();
    assert!(
        dilated
            .to_string()
            .starts_with("avg_pool2d: takes no dilation"),
        "{dilated}"
    );
    let (out, at) = x.max_pool2d(&cfg).unwrap();
    let wrong = Tensor::max_pool2d_backward(&out, &at, [1, 3, 4, 4]).unwrap_err();
    assert!(matches!(wrong, Error::ShapeMismatch { .. }), "{wrong}");
    let outside = out_of_range(Tensor::max_pool2d_backward(&out, &at, [1, 2, 1, 1]));
    assert!(
        matches!(
            outside,
            Error::IndexOutOfRange {
                index: 2..,
                extent: 1,
                ..
            }
        ),
        "{outside}"
    );
}
