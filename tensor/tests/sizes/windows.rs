//! Convolutions and poolings against plain loops over `i128` positions.

use crate::Case;
use crate::draw::{Draw, NONE_HAS, WORK, Want, bytes, countable, room, want};
use phalanx_tensor::ops::conv::Conv2dConfig;
use phalanx_tensor::ops::pool::Pool2dConfig;
use phalanx_tensor::{DType, Tensor};

/// The longest padded axis, and the most padded pixels of a convolution, that are not refused.
const LONGEST: u128 = isize::MAX as u128 / 8;

/// How many windows fit; `None` where none does or the axis is too long.
fn outputs(size: usize, pad: usize, kernel: usize, dil: usize, stride: usize) -> Option<u128> {
    let [size, pad, kernel, dil, stride] = [size, pad, kernel, dil, stride].map(|n| n as u128);
    if kernel == 0 || dil == 0 || stride == 0 {
        return None;
    }
    let (padded, reach) = (size + 2 * pad, dil.checked_mul(kernel - 1)? + 1);
    (padded <= LONGEST && reach <= padded).then(|| (padded - reach) / stride + 1)
}

fn product(of: &[usize]) -> u128 {
    of.iter().fold(1, |n, &d| n.saturating_mul(d as u128))
}

/// The elements that output `o` reads along an axis, as `(tap, position)`.
fn reads(
    o: usize,
    (size, kernel): (usize, usize),
    (stride, pad, dil): (usize, usize, usize),
) -> Vec<(usize, usize)> {
    let at = |k: usize| (o as i128 * stride as i128 + k as i128 * dil as i128) - pad as i128;
    (0..kernel)
        .map(|k| (k, at(k)))
        .filter(|(_, at)| (0..size as i128).contains(at))
        .map(|(k, at)| (k, at as usize))
        .collect()
}

/// `conv2d` and its two gradients.
pub fn conv(d: &mut Draw) -> Option<Case> {
    let dtype = d.pick(&[DType::F32, DType::F32, DType::F64]);
    let groups = d.number(1, 2);
    let (ci, co) = (d.pick(&[0, 2, 8, 8, 10]), d.pick(&[0, 2, 8, 8, 34]));
    let x = [d.number(0, 3), ci, d.number(0, 7), d.number(0, 7)];
    let w = [co, ci / groups.max(1), d.number(1, 3), d.number(1, 3)];
    let cfg = Conv2dConfig {
        stride: [d.number(1, 3), d.number(1, 3)],
        padding: [d.number(0, 2), d.number(0, 2)],
        dilation: [d.number(1, 2), d.number(1, 2)],
        groups,
    };
    let kind = d.below(3);
    let call = format!("convolution {kind} of {x:?} with {w:?}, {dtype}, {cfg:?}");
    let axis = |a: usize| {
        let (size, pad) = (x[2 + a], cfg.padding[a]);
        outputs(size, pad, w[2 + a], cfg.dilation[a], cfg.stride[a])
    };
    let plane = (x[2] as u128 + 2 * cfg.padding[0] as u128)
        .saturating_mul(x[3] as u128 + 2 * cfg.padding[1] as u128);
    let fits = groups > 0 && ci % groups == 0 && co % groups == 0 && plane <= LONGEST;
    let out = (axis(0).zip(axis(1)))
        .filter(|_| fits)
        .map(|(h, w)| vec![x[0], co, h as usize, w as usize]);
    let Some(out) = out else {
        // No output: whatever is given for its gradient, an error is due.
        let (a, b) = (d.tensor(&x, dtype), d.tensor(&w, dtype));
        let (dy, _) = d.tensor(&[1, 1, 1, 1], dtype)?;
        let got = match kind {
            0 => a?.0.conv2d(&b?.0, None, &cfg),
            1 => Tensor::conv2d_input_grad(&dy, &b?.0, x, &cfg),
            _ => Tensor::conv2d_weight_grad(&a?.0, &dy, w, &cfg),
        };
        let want = Want::Error;
        return Some(Case { call, want, got });
    };
    let work = product(&out).saturating_mul(product(&w[1..]));
    let steps = |d: usize| (cfg.stride[d], cfg.padding[d], cfg.dilation[d]);
    // All products as indices into input, weight and output.
    let products = |f: &mut dyn FnMut(usize, usize, usize)| {
        for o in 0..out.iter().product() {
            let (col, row) = (o % out[3], o / out[3] % out[2]);
            let (c, n) = (o / out[3] / out[2] % co, o / out[3] / out[2] / co);
            let rows = reads(row, (x[2], w[2]), steps(0));
            let cols = reads(col, (x[3], w[3]), steps(1));
            for k in 0..w[1] {
                let channel = n * ci + c / (co / groups) * w[1] + k;
                for &(u, i) in &rows {
                    for &(v, j) in &cols {
                        let tap = ((c * w[1] + k) * w[2] + u) * w[3] + v;
                        f((channel * x[2] + i) * x[3] + j, tap, o);
                    }
                }
            }
        }
    };
    room([&out[..], &x, &w][kind], dtype)?;
    // Too much for the loop: where there is no memory for it, an error is due all the same.
    if work > WORK && (bytes(&out, dtype) < NONE_HAS || kind != 0) {
        return None;
    }
    let (want, got) = match kind {
        0 => {
            let ((a, av), (b, bv)) = (d.tensor(&x, dtype)?, d.tensor(&w, dtype)?);
            let bias = d.coin().then(|| d.tensor(&[co], dtype)).flatten();
            let values = || {
                let start = |o: usize| match &bias {
                    Some((_, bias)) => bias[o / out[3] / out[2] % co],
                    None => 0.0,
                };
                let mut y: Vec<f64> = (0..out.iter().product()).map(start).collect();
                products(&mut |x, w, o| y[o] += av[x] * bv[w]);
                y
            };
            let want = want(&out, dtype, work, values);
            (want, a.conv2d(&b, bias.as_ref().map(|b| &b.0), &cfg))
        }
        1 => {
            let ((dy, dyv), (b, bv)) = (d.tensor(&out, dtype)?, d.tensor(&w, dtype)?);
            let values = || {
                let mut dx = vec![0.0; x.iter().product()];
                products(&mut |x, w, o| dx[x] += dyv[o] * bv[w]);
                dx
            };
            let want = want(&x, dtype, work, values);
            (want, Tensor::conv2d_input_grad(&dy, &b, x, &cfg))
        }
        _ => {
            let ((a, av), (dy, dyv)) = (d.tensor(&x, dtype)?, d.tensor(&out, dtype)?);
            let values = || {
                let mut dw = vec![0.0; w.iter().product()];
                products(&mut |x, w, o| dw[w] += dyv[o] * av[x]);
                dw
            };
            let want = want(&w, dtype, work, values);
            (want, Tensor::conv2d_weight_grad(&a, &dy, w, &cfg))
        }
    };
    Some(Case { call, want, got })
}

fn pool(d: &mut Draw) -> ([usize; 4], Pool2dConfig) {
    let x = [
        d.number(0, 2),
        d.number(0, 3),
        d.number(0, 7),
        d.number(0, 7),
    ];
    let mut cfg = Pool2dConfig::new([d.number(1, 3), d.number(1, 3)]);
    cfg.stride = [d.number(1, 3), d.number(1, 3)];
    cfg.padding = cfg.kernel.map(|k| d.number(0, 1).min(k / 2));
    cfg.dilation = [d.number(1, 1), d.number(1, 1)];
    cfg.ceil_mode = d.coin();
    cfg.count_include_pad = d.coin();
    (x, cfg)
}

/// Rows and columns of a pooling's output.
fn pooled(x: [usize; 4], cfg: &Pool2dConfig) -> Option<[usize; 2]> {
    let mut out = [0; 2];
    for d in 0..2 {
        let (size, pad) = (x[2 + d], cfg.padding[d]);
        let (kernel, dil, stride) = (cfg.kernel[d], cfg.dilation[d], cfg.stride[d]);
        if pad > kernel / 2 {
            return None;
        }
        let n = outputs(size, pad, kernel, dil, stride)?;
        let slack = size as u128 + 2 * pad as u128 - (dil as u128 * (kernel as u128 - 1) + 1);
        let starts = n * (stride as u128) < size as u128 + pad as u128;
        let partial = cfg.ceil_mode && !slack.is_multiple_of(stride as u128) && starts;
        out[d] = n as usize + usize::from(partial);
    }
    Some(out)
}

/// The pixels of window `o` along an axis.
fn window(o: usize, a: usize, x: [usize; 4], cfg: &Pool2dConfig) -> Vec<usize> {
    let start = o as i128 * cfg.stride[a] as i128 - cfg.padding[a] as i128;
    let inside = |&i: &usize| {
        let by = i as i128 - start;
        let dil = cfg.dilation[a] as i128;
        by >= 0 && by % dil == 0 && by / dil < cfg.kernel[a] as i128
    };
    (0..x[2 + a]).filter(inside).collect()
}

pub fn max_pool(d: &mut Draw) -> Option<Case> {
    let (x, cfg) = pool(d);
    let back = d.coin();
    let call = format!("max_pool2d of {x:?}, backward: {back}, {cfg:?}");
    let (t, values) = d.tensor(&x, DType::F32)?;
    let Some([oh, ow]) = pooled(x, &cfg) else {
        let (want, got) = (Want::Error, t.max_pool2d(&cfg).map(|(y, _)| y));
        return Some(Case { call, want, got });
    };
    let out = vec![x[0], x[1], oh, ow];
    let work = product(&out).saturating_mul(x[2].saturating_mul(x[3]).max(1) as u128);
    // The indices are 8 bytes each.
    room(&out, DType::I64)?;
    if work > WORK && bytes(&out, DType::I64) < NONE_HAS {
        return None;
    }
    let got = t.max_pool2d(&cfg);
    // For each output, where its maximum is.
    let at = || -> Vec<i64> {
        let place = |o: usize| {
            let (p, row, col) = (o / ow / oh, o / ow % oh, o % ow);
            let mut best = -1i64;
            if x[2] * x[3] == 0 {
                return best;
            }
            let plane = &values[p * x[2] * x[3]..][..x[2] * x[3]];
            for i in window(row, 0, x, &cfg) {
                for j in window(col, 1, x, &cfg) {
                    let here = i * x[3] + j;
                    if best < 0 || plane[here] > plane[best as usize] {
                        best = here as i64;
                    }
                }
            }
            best
        };
        (0..out.iter().product()).map(place).collect()
    };
    let shape_is = want(&out, DType::I64, work, Vec::new);
    if !matches!(shape_is, Want::Values(..)) {
        let got = got.map(|(y, _)| y);
        let want = shape_is;
        return Some(Case { call, want, got });
    }
    let at = if bytes(&out, DType::I64) == 0 {
        Vec::new()
    } else {
        at()
    };
    let (y, indices) = match got {
        Ok(both) => both,
        Err(e) => {
            let (want, got) = (Want::Values(out, Vec::new()), Err(e));
            return Some(Case { call, want, got });
        }
    };
    assert_eq!(indices.to_vec::<i64>().unwrap(), at, "{call}");
    let plane = x[2].saturating_mul(x[3]);
    let flat = |o: usize, at: i64| o / (oh * ow) * plane + at as usize;
    if !back {
        let value = |(o, &at): (usize, &i64)| match at {
            -1 => f64::NEG_INFINITY,
            _ => values[flat(o, at)],
        };
        let want = Want::Values(out, at.iter().enumerate().map(value).collect());
        d.bytes += 12 * at.len();
        let got = Ok(y);
        return Some(Case { call, want, got });
    }
    let (dy, dyv) = d.tensor(&out, DType::F32)?;
    let mut dx = vec![0.0; values.len()];
    for (o, &at) in at.iter().enumerate().filter(|(_, at)| **at >= 0) {
        dx[flat(o, at)] += dyv[o];
    }
    d.bytes += 12 * at.len();
    let got = Tensor::max_pool2d_backward(&dy, &indices, x);
    let want = Want::Values(x.to_vec(), dx);
    Some(Case { call, want, got })
}

pub fn average_pool(d: &mut Draw) -> Option<Case> {
    let (x, cfg) = pool(d);
    let back = d.coin();
    let call = format!("avg_pool2d of {x:?}, backward: {back}, {cfg:?}");
    let out = pooled(x, &cfg).filter(|_| cfg.dilation == [1, 1]);
    let Some([oh, ow]) = out else {
        let (t, _) = d.tensor(&x, DType::F32)?;
        let (want, got) = (Want::Error, t.avg_pool2d(&cfg));
        return Some(Case { call, want, got });
    };
    let run = |o: usize, a: usize| {
        let end = x[2 + a] + 2 * cfg.padding[a];
        let padded = cfg.kernel[a].min((end as u128 - o as u128 * cfg.stride[a] as u128) as usize);
        let pixels = window(o, a, x, &cfg);
        let divisor = if cfg.count_include_pad {
            padded
        } else {
            pixels.len()
        };
        (pixels, divisor)
    };
    averages(d, (x, [oh, ow]), back, call, run, |t, dy| match dy {
        None => t.avg_pool2d(&cfg),
        Some(dy) => Tensor::avg_pool2d_backward(dy, x, &cfg),
    })
}

pub fn adaptive_pool(d: &mut Draw) -> Option<Case> {
    let (x, _) = pool(d);
    let out = [d.number(0, 5), d.number(0, 5)];
    let back = d.coin();
    let call = format!("adaptive_avg_pool2d of {x:?} to {out:?}, backward: {back}");
    let edges = |a: usize| (out[a] as u128 + 1) * x[2 + a] as u128 <= isize::MAX as u128;
    if x[2] == 0 || x[3] == 0 || !edges(0) || !edges(1) {
        let (t, _) = d.tensor(&x, DType::F32)?;
        let (want, got) = (Want::Error, t.adaptive_avg_pool2d(out));
        return Some(Case { call, want, got });
    }
    let run = |o: usize, a: usize| {
        let (n, parts) = (x[2 + a], out[a]);
        let pixels: Vec<usize> = (o * n / parts..((o + 1) * n).div_ceil(parts)).collect();
        let divisor = pixels.len();
        (pixels, divisor)
    };
    averages(d, (x, out), back, call, run, |t, dy| match dy {
        None => t.adaptive_avg_pool2d(out),
        Some(dy) => Tensor::adaptive_avg_pool2d_backward(dy, x),
    })
}

/// An averaging pooling or its gradient, where `run` says what a window is along an axis.
fn averages(
    d: &mut Draw,
    (x, [oh, ow]): ([usize; 4], [usize; 2]),
    back: bool,
    call: String,
    run: impl Fn(usize, usize) -> (Vec<usize>, usize),
    op: impl Fn(&Tensor, Option<&Tensor>) -> phalanx_tensor::Result<Tensor>,
) -> Option<Case> {
    let (t, values) = d.tensor(&x, DType::F32)?;
    let out = vec![x[0], x[1], oh, ow];
    let work = product(&out).saturating_mul(x[2].saturating_mul(x[3]).max(1) as u128);
    // For each output and each of its pixels, their indices and the factor.
    let products = |f: &mut dyn FnMut(usize, usize, f64)| {
        if x[2] == 0 || x[3] == 0 {
            return;
        }
        for o in 0..out.iter().product() {
            let ((rows, down), (cols, across)) = (run(o / ow % oh, 0), run(o % ow, 1));
            for &i in &rows {
                for &j in &cols {
                    let from = (o / ow / oh * x[2] + i) * x[3] + j;
                    f(from, o, 1.0 / (down * across) as f64);
                }
            }
        }
    };
    let (want, got) = if back {
        room(&x, DType::F32)?;
        let made = countable(&out, DType::F32) && work <= WORK;
        let (dy, dyv) = d.tensor(&out, DType::F32).filter(|_| made)?;
        let values = || {
            let mut dx = vec![0.0; values.len()];
            products(&mut |x, o, factor| dx[x] += dyv[o] * factor);
            dx
        };
        (want(&x, DType::F32, work, values), op(&t, Some(&dy)))
    } else {
        room(&out, DType::F32)?;
        if work > WORK && bytes(&out, DType::F32) < NONE_HAS {
            return None;
        }
        let values = || {
            let mut y = vec![0.0; out.iter().product()];
            products(&mut |x, o, factor| y[o] += values[x] * factor);
            y
        };
        (want(&out, DType::F32, work, values), op(&t, None))
    };
    Some(Case { call, want, got })
}
