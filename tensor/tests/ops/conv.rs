//! Convolution against a seven-fold loop in `f64`, over random shapes, strides, paddings,
//! dilations, groups and views.

use crate::util::*;
use phalanx_tensor::ops::conv::Conv2dConfig;
use phalanx_tensor::{DType, Device, Error, Tensor, cpu};

/// One random problem: shapes of input and weight, and the configuration.
struct Problem {
    x: [usize; 4],
    w: [usize; 4],
    out: [usize; 4],
    cfg: Conv2dConfig,
}

impl Problem {
    fn new(x: [usize; 4], w: [usize; 4], cfg: Conv2dConfig) -> Problem {
        let size = |d: usize| {
            (x[2 + d] + 2 * cfg.padding[d] - cfg.dilation[d] * (w[2 + d] - 1) - 1) / cfg.stride[d]
                + 1
        };
        Problem {
            x,
            w,
            out: [x[0], w[0], size(0), size(1)],
            cfg,
        }
    }

    fn random(rng: &mut TestRng, channels: usize, extent: usize) -> Problem {
        let groups = [1, 1, 1, 2, 3][rng.below(5)];
        let depthwise = rng.below(6) == 0;
        let (ci, co) = (1 + rng.below(channels), 1 + rng.below(channels));
        let (groups, ci, co) = if depthwise {
            (ci, ci, ci * (1 + rng.below(2)))
        } else {
            (groups, ci * groups, co * groups)
        };
        let mut cfg = Conv2dConfig {
            groups,
            ..Conv2dConfig::default()
        };
        let (mut hw, mut k) = ([0; 2], [0; 2]);
        for d in 0..2 {
            k[d] = [1, 2, 3, 3, 3, 4, 5][rng.below(7)];
            cfg.stride[d] = [1, 1, 2, 3][rng.below(4)];
            cfg.padding[d] = rng.below(4);
            cfg.dilation[d] = [1, 1, 1, 2, 3][rng.below(5)];
            let reach = cfg.dilation[d] * (k[d] - 1) + 1;
            hw[d] = reach.saturating_sub(2 * cfg.padding[d]).max(1) + rng.below(extent);
        }
        let n = [1, 2, 3, 5, 0][rng.below(5)];
        Problem::new([n, ci, hw[0], hw[1]], [co, ci / groups, k[0], k[1]], cfg)
    }

    /// Calls `f(output, input, weight)` with the flat indices of every product.
    fn products(&self, mut f: impl FnMut(usize, usize, usize)) {
        let ([_, ci, h, w], [co, cig, kh, kw], [n, _, oh, ow]) = (self.x, self.w, self.out);
        let (s, p, d) = (self.cfg.stride, self.cfg.padding, self.cfg.dilation);
        for b in 0..n {
            for c in 0..co {
                let group = c / (co / self.cfg.groups);
                for (i, j) in (0..oh).flat_map(|i| (0..ow).map(move |j| (i, j))) {
                    for k in 0..cig {
                        for (u, v) in (0..kh).flat_map(|u| (0..kw).map(move |v| (u, v))) {
                            let (y, x) = (i * s[0] + u * d[0], j * s[1] + v * d[1]);
                            if y < p[0] || x < p[1] || y - p[0] >= h || x - p[1] >= w {
                                continue;
                            }
                            let input = ((b * ci + group * cig + k) * h + y - p[0]) * w + x - p[1];
                            f(
                                ((b * co + c) * oh + i) * ow + j,
                                input,
                                ((c * cig + k) * kh + u) * kw + v,
                            );
                        }
                    }
                }
            }
        }
    }

    fn describe(&self, dtype: DType) -> String {
        format!("{dtype} x {:?} w {:?} {:?}", self.x, self.w, self.cfg)
    }

    /// Compares all three operations with the loop, in `dtype`.
    fn check(&self, rng: &mut TestRng, dtype: DType) {
        let x = rng.tensor(&self.x, dtype, (-1.0, 1.0));
        let w = rng.tensor(&self.w, dtype, (-1.0, 1.0));
        let bias = (rng.below(2) == 0).then(|| rng.tensor(&self.w[..1], dtype, (-1.0, 1.0)));
        let dy = rng.tensor(&self.out, dtype, (-1.0, 1.0));
        let (xv, wv, dyv) = (values(&x), values(&w), values(&dy));
        let plane = self.out[2] * self.out[3];
        let mut y = vec![Sum::default(); dyv.len()];
        if let Some(b) = &bias {
            let b = values(b);
            (0..y.len()).for_each(|i| y[i].add(b[i / plane % self.w[0]]));
        }
        let mut dx = vec![Sum::default(); xv.len()];
        let mut dw = vec![Sum::default(); wv.len()];
        self.products(|o, i, k| {
            y[o].add(xv[i] * wv[k]);
            dx[i].add(dyv[o] * wv[k]);
            dw[k].add(dyv[o] * xv[i]);
        });
        let what = self.describe(dtype);
        let actual = x.conv2d(&w, bias.as_ref(), &self.cfg).unwrap();
        bounded(&actual, &self.out, &y, &format!("conv2d {what}"));
        let actual = Tensor::conv2d_input_grad(&dy, &w, self.x, &self.cfg).unwrap();
        bounded(&actual, &self.x, &dx, &format!("input grad {what}"));
        let actual = Tensor::conv2d_weight_grad(&x, &dy, self.w, &self.cfg).unwrap();
        bounded(&actual, &self.w, &dw, &format!("weight grad {what}"));
        // Onto what is there, which stays where it is.
        let mut sum = rng.tensor(&self.w, dtype, (-1.0, 1.0));
        sum = sum.cast(computed(dtype)).unwrap().copy().unwrap();
        let (old, at) = (values(&sum), sum.address());
        dw.iter_mut().zip(old).for_each(|(sum, old)| sum.add(old));
        Tensor::conv2d_weight_grad_into(&x, &dy, &mut sum, &self.cfg).unwrap();
        assert_eq!((sum.dtype(), sum.address()), (computed(dtype), at));
        bounded(&sum, &self.w, &dw, &format!("added weight grad {what}"));
    }
}

/// An exact sum and what its rounding error is measured by.
#[derive(Clone, Copy, Default)]
struct Sum {
    value: f64,
    magnitude: f64,
    terms: f64,
}

impl Sum {
    fn add(&mut self, term: f64) {
        self.value += term;
        self.magnitude += term.abs();
        self.terms += 1.0;
    }
}

/// Each element within one rounding of its type, and `8 + terms / 4` roundings of the working type
/// relative to the sum of the magnitudes of its terms. (The worst case of a sum is `terms`; the
/// views include stretched ones, whose equal terms come near it.)
#[track_caller]
fn bounded(actual: &Tensor, shape: &[usize], expected: &[Sum], what: &str) {
    assert_eq!(actual.dims(), shape, "{what}: shape");
    let dtype = actual.dtype();
    let working = if dtype == DType::F64 {
        dtype
    } else {
        DType::F32
    };
    for (i, (a, e)) in values(actual).into_iter().zip(expected).enumerate() {
        let sum = (8.0 + e.terms / 4.0) * rounding(working) * e.magnitude;
        let tol = 1.01 * rounding(dtype) * (e.value.abs() + sum) + sum + 1e-7 * rounding(dtype);
        let e = e.value;
        assert!(
            (a - e).abs() <= tol,
            "{what}: element {i} is {a:e}, expected {e:e} within {tol:e}"
        );
    }
}

#[test]
fn agrees_with_the_loop_on_random_problems() {
    let mut rng = TestRng::new(71);
    for i in 0..400 {
        let dtype = FLOATS[i % 4];
        Problem::random(&mut rng, 5, 9).check(&mut rng, dtype);
    }
}

/// Enough channels for whole vectors of them, and rows around the sizes of the register tiles.
#[test]
fn agrees_with_the_loop_on_many_channels() {
    let mut rng = TestRng::new(72);
    for i in 0..40 {
        let dtype = [DType::F32, DType::F32, DType::F32, DType::F64][i % 4];
        Problem::random(&mut rng, 40, 8).check(&mut rng, dtype);
    }
    for width in (1..34).step_by(3) {
        for (ci, co) in [(3, 16), (16, 17), (8, 32), (33, 48), (5, 64)] {
            let cfg = Conv2dConfig::default()
                .with_padding(1)
                .with_stride(1 + width % 2);
            Problem::new([2, ci, 1 + width % 5, width], [co, ci, 3, 3], cfg)
                .check(&mut rng, DType::F32);
        }
    }
}

/// The layers of the workload that the kernels are tuned for.
#[test]
fn agrees_with_the_loop_on_the_layers_of_a_residual_network() {
    let mut rng = TestRng::new(73);
    for (ci, co, size, k, stride) in [
        (1, 16, 28, 3, 1),
        (16, 16, 28, 3, 1),
        (16, 32, 28, 3, 2),
        (16, 32, 28, 1, 2),
        (32, 32, 14, 3, 1),
        (32, 64, 14, 3, 2),
        (64, 64, 7, 3, 1),
    ] {
        let cfg = Conv2dConfig::default()
            .with_padding(k / 2)
            .with_stride(stride);
        Problem::new([3, ci, size, size], [co, ci, k, k], cfg).check(&mut rng, DType::F32);
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    let mut rng = TestRng::new(74);
    for _ in 0..30 {
        let p = Problem::random(&mut rng, 2, 4);
        let inputs = [
            rng.tensor(&p.x, DType::F64, (-1.0, 1.0)),
            rng.tensor(&p.w, DType::F64, (-1.0, 1.0)),
        ];
        let dy = rng.tensor(&p.out, DType::F64, (-1.0, 1.0));
        let f = |t: &[Tensor]| t[0].conv2d(&t[1], None, &p.cfg).unwrap();
        let dx = Tensor::conv2d_input_grad(&dy, &inputs[1], p.x, &p.cfg).unwrap();
        let dw = Tensor::conv2d_weight_grad(&inputs[0], &dy, p.w, &p.cfg).unwrap();
        let what = p.describe(DType::F64);
        assert_gradient(f, &inputs, 0, &dy, &dx, &what);
        assert_gradient(f, &inputs, 1, &dy, &dw, &what);
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mut rng = TestRng::new(75);
    let mut problems: Vec<Problem> = (0..20).map(|_| Problem::random(&mut rng, 20, 12)).collect();
    let cfg = Conv2dConfig::default().with_padding(1);
    problems.push(Problem::new([19, 16, 28, 28], [16, 16, 3, 3], cfg));
    problems.push(Problem::new(
        [19, 32, 14, 14],
        [64, 32, 3, 3],
        cfg.with_stride(2),
    ));
    for p in problems {
        let x = rng.tensor(&p.x, DType::F32, (-1.0, 1.0));
        let w = rng.tensor(&p.w, DType::F32, (-1.0, 1.0));
        let dy = rng.tensor(&p.out, DType::F32, (-1.0, 1.0));
        let run = |threads| {
            cpu::with_threads(threads, || {
                [
                    x.conv2d(&w, None, &p.cfg).unwrap(),
                    Tensor::conv2d_input_grad(&dy, &w, p.x, &p.cfg).unwrap(),
                    Tensor::conv2d_weight_grad(&x, &dy, p.w, &p.cfg).unwrap(),
                ]
            })
        };
        let one = run(1);
        for threads in [2, 3, 7] {
            for (a, b) in one.iter().zip(&run(threads)) {
                assert_same(a, b, &p.describe(DType::F32));
            }
        }
    }
}

#[test]
fn says_what_does_not_fit() {
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, device()).unwrap();
    let (x, w) = (
        zeros(&[2, 4, 5, 6], DType::F32),
        zeros(&[6, 4, 3, 3], DType::F32),
    );
    let cfg = Conv2dConfig::default();
    let message = |x: &Tensor, w: &Tensor, b: Option<&Tensor>, cfg: &Conv2dConfig| {
        x.conv2d(w, b, cfg).unwrap_err().to_string()
    };
    let rank = message(&zeros(&[4, 5, 6], DType::F32), &w, None, &cfg);
    assert!(
        rank.starts_with("conv2d: input [4, 5, 6] and weight [6, 4, 3, 3]"),
        "{rank}"
    );
    let channels = message(&zeros(&[2, 3, 5, 6], DType::F32), &w, None, &cfg);
    assert!(
        channels.contains("the weight reads 4 channels"),
        "{channels}"
    );
    let groups = message(&x, &w, None, &cfg.with_groups(4));
    assert!(groups.contains("4 groups"), "{groups}");
    let small = message(&x, &w, None, &cfg.with_dilation(3));
    assert!(
        small.contains("reaches over 7 pixels, the padded input has 5"),
        "{small}"
    );
    // The reach of these taps is one pixel, if 2^64 is nothing.
    let around = message(
        &zeros(&[1, 1, 10, 3], DType::F32),
        &zeros(&[4, 1, 4, 1], DType::F32),
        None,
        &Conv2dConfig {
            dilation: [usize::MAX / 3, 1],
            ..cfg
        },
    );
    assert!(around.contains("beyond all memory"), "{around}");
    let plane = message(&x, &w, None, &cfg.with_padding(1 << 40));
    assert!(plane.contains("beyond all memory"), "{plane}");
    let zero = message(&x, &w, None, &cfg.with_stride(0));
    assert!(zero.contains("at least 1"), "{zero}");
    let bias = x
        .conv2d(&w, Some(&zeros(&[4], DType::F32)), &cfg)
        .unwrap_err();
    assert!(
        matches!(bias, Error::ShapeMismatch { op: "conv2d", .. }),
        "{bias}"
    );
    let dtype = x
        .conv2d(&zeros(&[6, 4, 3, 3], DType::F64), None, &cfg)
        .unwrap_err();
    assert!(
        matches!(dtype, Error::DTypeMismatch { op: "conv2d", .. }),
        "{dtype}"
    );
    let ints = zeros(&[1, 1, 3, 3], DType::I64);
    let ints = ints.conv2d(&ints, None, &cfg).unwrap_err();
    assert!(
        matches!(
            ints,
            Error::UnsupportedDType {
                dtype: DType::I64,
                ..
            }
        ),
        "{ints}"
    );
    let far = Tensor::zeros([6, 4, 3, 3], DType::F32, Device::cpu(1)).unwrap();
    let device = x.conv2d(&far, None, &cfg).unwrap_err();
    assert!(
        matches!(device, Error::DeviceMismatch { op: "conv2d", .. }),
        "{device}"
    );
    let dy = zeros(&[2, 6, 3, 3], DType::F32);
    for e in [
        Tensor::conv2d_input_grad(&dy, &w, [2, 4, 5, 6], &cfg).unwrap_err(),
        Tensor::conv2d_weight_grad(&x, &dy, [6, 4, 3, 3], &cfg).unwrap_err(),
    ] {
        assert!(matches!(e, Error::ShapeMismatch { .. }), "{e}");
    }
}
