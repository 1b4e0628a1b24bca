//! Convolutions and their gradients against the CPU's. Half types are held to the exact sums: they are
//! rounded once.

use crate::support::*;
use phalanx_tensor::ops::conv::Conv2dConfig;
use phalanx_tensor::{DType, Device, Result, Tensor};

/// Input `[n, c, h, w]`, output channels, kernel, configuration.
#[derive(Debug, Clone, Copy)]
struct Case {
    x: [usize; 4],
    out: usize,
    kernel: [usize; 2],
    config: Conv2dConfig,
}

impl Case {
    fn weight(&self) -> [usize; 4] {
        let depth = self.x[1] / self.config.groups;
        [self.out, depth, self.kernel[0], self.kernel[1]]
    }
}

fn case(x: [usize; 4], out: usize, kernel: [usize; 2], config: Conv2dConfig) -> Case {
    Case {
        x,
        out,
        kernel,
        config,
    }
}

fn cases() -> Vec<Case> {
    let plain = Conv2dConfig::default();
    let uneven = Conv2dConfig {
        stride: [2, 3],
        padding: [2, 0],
        dilation: [2, 1],
        groups: 1,
    };
    vec![
        case([2, 3, 7, 9], 4, [3, 3], plain.with_padding(1)),
        case([1, 1, 5, 5], 1, [1, 1], plain),
        // Planes that are columns as they lie, and others whose rows are not aligned.
        case([3, 8, 4, 8], 5, [1, 1], plain),
        case([2, 8, 3, 7], 5, [1, 1], plain),
        case([2, 4, 7, 7], 6, [1, 1], plain.with_stride(2)),
        case(
            [2, 4, 8, 8],
            6,
            [1, 1],
            plain.with_stride(3).with_padding(1),
        ),
        case([2, 3, 11, 10], 4, [3, 2], uneven),
        case(
            [2, 3, 9, 8],
            5,
            [3, 3],
            plain.with_stride(2).with_padding(1),
        ),
        case(
            [1, 3, 9, 8],
            5,
            [3, 2],
            plain.with_dilation(2).with_padding(3),
        ),
        case([1, 2, 3, 4], 3, [2, 2], plain.with_padding(5)),
        case([1, 3, 8, 8], 4, [4, 4], plain.with_stride(4)),
        case([1, 3, 6, 5], 70, [6, 5], plain),
        // Groups that are products of matrices, with more images than groups and with fewer.
        case(
            [3, 32, 5, 5],
            32,
            [3, 3],
            plain.with_padding(1).with_groups(2),
        ),
        case([1, 48, 4, 4], 48, [1, 1], plain.with_groups(3)),
        case(
            [1, 48, 5, 6],
            48,
            [2, 2],
            plain.with_stride(2).with_groups(3),
        ),
        case([4, 32, 4, 4], 32, [1, 1], plain.with_groups(2)),
        // Groups of few channels, and depthwise convolutions.
        case(
            [2, 6, 7, 9],
            6,
            [3, 3],
            plain.with_padding(1).with_groups(6),
        ),
        case(
            [2, 6, 7, 9],
            12,
            [3, 3],
            plain.with_padding(1).with_groups(6),
        ),
        case([2, 6, 7, 9], 4, [2, 3], plain.with_groups(2)),
        case([2, 4, 9, 11], 4, [5, 4], uneven.with_groups(4)),
        case([1, 3, 8, 9], 3, [3, 3], plain.with_stride(2).with_groups(3)),
        case(
            [1, 3, 9, 9],
            3,
            [3, 3],
            plain.with_dilation(2).with_padding(2).with_groups(3),
        ),
        case(
            [2, 2, 80, 70],
            2,
            [3, 3],
            plain.with_padding(1).with_groups(2),
        ),
        // Nothing to sum, or nothing to make.
        case([0, 3, 5, 5], 4, [3, 3], plain),
        case([2, 0, 5, 5], 4, [3, 3], plain),
        case([2, 3, 5, 5], 0, [3, 3], plain),
        case([0, 4, 5, 5], 4, [3, 3], plain.with_groups(4)),
    ]
}

/// Judges a result: `run` gives it from two operands, `terms` numbers make up each sum.
fn judge(
    name: &str,
    device: Device,
    operands: [&Tensor; 2],
    extra: Option<&Tensor>,
    terms: usize,
    run: impl Fn(&Tensor, &Tensor, Option<&Tensor>) -> Result<Tensor>,
) {
    let there = |t: &Tensor| t.to_device(device).unwrap();
    let [a, b] = operands;
    let card = || run(&there(a), &there(b), extra.map(there).as_ref()).unwrap();
    compare(name, [a, b], extra, terms, &run, &card);
}

fn compare(
    name: &str,
    [a, b]: [&Tensor; 2],
    extra: Option<&Tensor>,
    terms: usize,
    run: &impl Fn(&Tensor, &Tensor, Option<&Tensor>) -> Result<Tensor>,
    card: &impl Fn() -> Tensor,
) {
    let expected = run(a, b, extra).unwrap();
    let result = card();
    assert!(matches!(result.device(), Device::Cuda(_)), "{name}");
    assert_eq!(
        (result.dims(), result.dtype()),
        (expected.dims(), expected.dtype()),
        "{name}"
    );
    let (got, dtype) = (read(&result), result.dtype());
    assert!(
        read(&card()) == got,
        "{name}: the second time it is another"
    );
    if dtype.size() > 2 {
        let apart = distance(&got, &read(&expected));
        assert!(apart <= tolerance(dtype), "{name}: {apart}");
        return;
    }
    let wide = |t: &Tensor| t.cast(DType::F64).unwrap();
    let size = |t: &Tensor| wide(t).abs().unwrap();
    let exact = run(&wide(a), &wide(b), extra.map(wide).as_ref()).unwrap();
    let sizes = run(&size(a), &size(b), extra.map(size).as_ref()).unwrap();
    let (exact, sizes) = (read(&exact), read(&sizes));
    for (i, ((got, exact), size)) in got.iter().zip(exact).zip(sizes).enumerate() {
        let allowed = 2.0 * ulp(dtype, exact) + terms as f64 * 2f64.powi(-24) * size;
        let apart = (got - exact).abs();
        assert!(
            apart <= allowed,
            "{name}: element {i} is {got}, not {exact}: {apart} > {allowed}"
        );
    }
}

#[test]
fn convolutions_are_the_cpus() {
    let (device, _turn) = card!();
    for dtype in FLOATS {
        for (seed, case) in (1..).zip(cases()) {
            let x = values(&case.x, dtype, seed);
            let w = values(&case.weight(), dtype, seed + 1);
            let b = values(&[case.out], dtype, seed + 2);
            let terms = case.weight()[1..].iter().product::<usize>() + 1;
            for bias in [None, Some(&b)] {
                let name = format!("{dtype} {case:?} bias {}", bias.is_some());
                judge(&name, device, [&x, &w], bias, terms, |x, w, b| {
                    x.conv2d(w, b, &case.config)
                });
            }
        }
    }
}

#[test]
fn gradients_are_the_cpus() {
    let (device, _turn) = card!();
    for dtype in FLOATS {
        for (seed, case) in (1..).zip(cases()) {
            let x = values(&case.x, dtype, seed);
            let w = values(&case.weight(), dtype, seed + 1);
            let y = x.conv2d(&w, None, &case.config).unwrap();
            let g = values(y.dims(), dtype, seed + 2);
            let name = format!("{dtype} {case:?}");
            let terms = case.out * case.kernel[0] * case.kernel[1];
            judge(
                &format!("input {name}"),
                device,
                [&g, &w],
                None,
                terms,
                |g, w, _| Tensor::conv2d_input_grad(g, w, case.x, &case.config),
            );
            let terms = g.numel() / case.out.max(1);
            judge(
                &format!("weight {name}"),
                device,
                [&x, &g],
                None,
                terms,
                |x, g, _| Tensor::conv2d_weight_grad(x, g, case.weight(), &case.config),
            );
            let wide = match dtype {
                DType::F64 => DType::F64,
                _ => DType::F32,
            };
            let old = values(&case.weight(), wide, seed + 3);
            judge(
                &format!("weight onto what is there {name}"),
                device,
                [&x, &g],
                Some(&old),
                terms + 1,
                |x, g, old| {
                    let mut sum = old.unwrap().copy()?;
                    Tensor::conv2d_weight_grad_into(x, g, &mut sum, &case.config)?;
                    Ok(sum)
                },
            );
        }
    }
}

/// How to look at a tensor.
type View = fn(&Tensor) -> Tensor;

/// A tensor of `shape` that lies otherwise, and how to look at it.
fn views(shape: [usize; 4], dtype: DType, seed: u64) -> Vec<(Tensor, View)> {
    let [n, c, h, w] = shape;
    vec![
        // Channels last.
        (values(&[n, h, w, c], dtype, seed), |t| {
            t.permute(&[0, 3, 1, 2]).unwrap()
        }),
        (values(&[c, n, h, 2 * w], dtype, seed), |t| {
            let w = t.dims()[3];
            let t = t.transpose(0, 1).unwrap();
            t.slice(3, 0..w, 2).unwrap()
        }),
        // Images and channels with gaps, rows that are dense.
        (values(&[n + 1, 2 * c, h, w], dtype, seed), |t| {
            let (n, c) = (t.dims()[0] - 1, t.dims()[1]);
            t.narrow(0, 1, n).unwrap().slice(1, 0..c, 2).unwrap()
        }),
        // One image, and one channel, that repeat.
        (values(&[1, c, h, w], dtype, seed), |t| t.clone()),
        (values(&[n, 1, h, w], dtype, seed), |t| t.clone()),
    ]
}

#[test]
fn views_convolve_as_copies_do() {
    let (device, _turn) = card!();
    let plain = Conv2dConfig::default();
    for dtype in [DType::F32, DType::BF16] {
        for case in [
            case([3, 4, 4, 8], 5, [1, 1], plain),
            case([2, 4, 6, 7], 3, [3, 2], plain.with_padding(1)),
            case([2, 4, 6, 7], 6, [3, 2], plain.with_stride(2).with_groups(2)),
            case(
                [2, 32, 4, 4],
                32,
                [2, 1],
                plain.with_stride(2).with_groups(2),
            ),
            case([2, 4, 8, 8], 3, [2, 2], plain.with_stride(2)),
        ] {
            let wide = Tensor::zeros(case.x, DType::F32, Device::cpu(0)).unwrap();
            let weight = Tensor::zeros(case.weight(), DType::F32, Device::cpu(0)).unwrap();
            let y = wide.conv2d(&weight, None, &case.config).unwrap();
            let Ok(output) = <[usize; 4]>::try_from(y.dims()) else {
                panic!("rank 4");
            };
            for i in 0..5 {
                let pick = |shape: [usize; 4], seed| {
                    let (t, view) = views(shape, dtype, seed).swap_remove(i);
                    let here = view(&t).broadcast_to(shape).unwrap();
                    let there = view(&t.to_device(device).unwrap());
                    (here, there.broadcast_to(shape).unwrap())
                };
                let (x, w, g) = (pick(case.x, 1), pick(case.weight(), 2), pick(output, 3));
                let b = values(&[2 * case.out], dtype, 4);
                let half = |b: &Tensor| b.slice(0, 0..2 * case.out, 2).unwrap();
                let b = (half(&b), half(&b.to_device(device).unwrap()));
                let name = format!("{dtype} view {i} of {case:?}");
                let terms = y.numel().max(case.weight().iter().product());
                let forward =
                    |x: &Tensor, w: &Tensor, b: Option<&Tensor>| x.conv2d(w, b, &case.config);
                compare(&name, [&x.0, &w.0], Some(&b.0), terms, &forward, &|| {
                    forward(&x.1, &w.1, Some(&b.1)).unwrap()
                });
                let input = |g: &Tensor, w: &Tensor, _: Option<&Tensor>| {
                    Tensor::conv2d_input_grad(g, w, case.x, &case.config)
                };
                compare(&name, [&g.0, &w.0], None, terms, &input, &|| {
                    input(&g.1, &w.1, None).unwrap()
                });
                let weight = |x: &Tensor, g: &Tensor, _: Option<&Tensor>| {
                    Tensor::conv2d_weight_grad(x, g, case.weight(), &case.config)
                };
                compare(&name, [&x.0, &g.0], None, terms, &weight, &|| {
                    weight(&x.1, &g.1, None).unwrap()
                });
            }
        }
    }
}

#[test]
fn mistakes_are_the_cpus_errors() {
    let (device, _turn) = card!();
    let plain = Conv2dConfig::default();
    let x = values(&[1, 4, 5, 5], DType::F32, 1);
    let w = values(&[2, 4, 3, 3], DType::F32, 2);
    let there = |t: &Tensor| t.to_device(device).unwrap();
    for config in [
        plain.with_groups(2),
        plain.with_dilation(3),
        plain.with_stride(0),
    ] {
        let here = x.conv2d(&w, None, &config).unwrap_err();
        let card = there(&x).conv2d(&there(&w), None, &config).unwrap_err();
        assert_eq!(here, card);
    }
    let whole = x.cast(DType::I64).unwrap();
    assert_eq!(
        there(&whole).conv2d(&there(&w), None, &plain).unwrap_err(),
        whole.conv2d(&w, None, &plain).unwrap_err()
    );
    device.synchronize().unwrap();
}

/// Columns of more bytes than scratch memory takes at a time: pieces of images, and of channels.
#[test]
fn what_is_cut_into_pieces_is_the_cpus() {
    let (device, _turn) = card!();
    let plain = Conv2dConfig::default();
    let dtype = DType::BF16;
    let apart = Conv2dConfig {
        stride: [1, 2],
        ..plain
    };
    for config in [plain, apart] {
        let case = case([1, 2, 1, 150_000], 2, [1, 64], config);
        let x = values(&case.x, dtype, 1);
        let w = values(&case.weight(), dtype, 2);
        let y = x.conv2d(&w, None, &case.config).unwrap();
        let g = values(y.dims(), dtype, 3);
        let name = format!("{case:?}");
        judge(&name, device, [&g, &w], None, 128, |g, w, _| {
            Tensor::conv2d_input_grad(g, w, case.x, &case.config)
        });
        if config == plain {
            judge(&name, device, [&x, &w], None, 128, |x, w, _| {
                x.conv2d(w, None, &case.config)
            });
            judge(&name, device, [&x, &g], None, 512, |x, g, _| {
                Tensor::conv2d_weight_grad(x, g, case.weight(), &case.config)
            });
        }
    }
}

/// An infinite pixel reaches the taps that read it, and no others.
#[test]
fn an_infinite_pixel_stays_where_it_is() {
    let (device, _turn) = card!();
    let config = Conv2dConfig::default();
    for dtype in FLOATS {
        let mut pixels = vec![1.0; 16];
        pixels[12] = f64::INFINITY;
        let x = Tensor::from_vec(pixels, [1, 1, 4, 4], Device::cpu(0)).unwrap();
        let x = x.cast(dtype).unwrap().to_device(device).unwrap();
        let ones = |shape: [usize; 4]| Tensor::full(shape, 1, dtype, device).unwrap();
        let grad = ones([1, 1, 3, 3]);
        let dw = Tensor::conv2d_weight_grad(&x, &grad, [1, 1, 2, 2], &config).unwrap();
        assert_eq!(read(&dw), [9.0, 9.0, f64::INFINITY, 9.0], "{dtype}");
        let y = x.conv2d(&ones([1, 1, 2, 2]), None, &config).unwrap();
        let infinite: Vec<bool> = read(&y).iter().map(|v| v.is_infinite()).collect();
        assert_eq!(
            infinite,
            [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|i| i == 6),
            "{dtype}"
        );
    }
}
