//! Pooling and its gradients against the CPU's.

use crate::support::*;
use phalanx_tensor::ops::pool::Pool2dConfig;
use phalanx_tensor::{DType, Device, Error, Result, Tensor};

/// The configurations that the CPU takes with planes of `h` by `w` pixels, of a few that differ.
fn configs() -> Vec<Pool2dConfig> {
    let plain = Pool2dConfig::new([2, 2]);
    vec![
        plain,
        Pool2dConfig::new([3, 3]).with_stride(2).with_padding(1),
        Pool2dConfig::new([1, 1]).with_stride(3),
        Pool2dConfig {
            kernel: [3, 2],
            stride: [1, 2],
            padding: [1, 0],
            ceil_mode: true,
            ..plain
        },
        Pool2dConfig {
            kernel: [2, 3],
            stride: [3, 2],
            padding: [0, 1],
            ceil_mode: true,
            count_include_pad: false,
            ..plain
        },
        Pool2dConfig {
            kernel: [3, 4],
            stride: [2, 1],
            padding: [1, 2],
            dilation: [2, 3],
            ..plain
        },
        Pool2dConfig::new([9, 8]).with_stride(5).with_padding(4),
    ]
}

const SHAPES: [[usize; 4]; 5] = [
    [2, 3, 7, 11],
    [1, 1, 20, 9],
    [0, 3, 8, 8],
    [2, 0, 8, 8],
    [3, 2, 17, 13],
];

/// The results on the CPU and on the card, or their errors.
fn both<R>(name: &str, here: Result<R>, there: Result<R>, check: impl FnOnce(R, R)) {
    match (here, there) {
        (Ok(here), Ok(there)) => check(here, there),
        (Err(here), Err(there)) => assert_eq!(here, there, "{name}"),
        (here, there) => panic!("{name}: {:?} and {:?}", here.map(|_| ()), there.map(|_| ())),
    }
}

/// As the sums of few terms of up to 2 must be, and their means.
fn close(name: &str, got: &Tensor, expected: &Tensor) {
    assert_near(name, got, expected, 1e-5);
}

/// Equal elements, of which two may be NaN.
fn same(name: &str, got: &Tensor, expected: &Tensor) {
    assert_eq!(
        (got.dims(), got.dtype()),
        (expected.dims(), expected.dtype()),
        "{name}"
    );
    for (i, (g, e)) in read(got).iter().zip(read(expected)).enumerate() {
        let equal = *g == e || (g.is_nan() && e.is_nan());
        assert!(equal, "{name}: element {i} is {g}, not {e}");
    }
}

/// How to look at a tensor.
type View = fn(&Tensor) -> Tensor;

/// Views of one shape: contiguous, permuted, with gaps.
fn views(shape: [usize; 4], dtype: DType, seed: u64) -> Vec<(Tensor, View)> {
    let [n, c, h, w] = shape;
    vec![
        (values(&shape, dtype, seed), |t| t.clone()),
        (values(&[h, n, w, c], dtype, seed), |t| {
            t.permute(&[1, 3, 0, 2]).unwrap()
        }),
        (values(&[n, c + 1, h, 2 * w], dtype, seed), |t| {
            let c = t.dims()[1] - 1;
            let t = t.narrow(1, 1, c).unwrap();
            let w = t.dims()[3];
            t.slice(3, 0..w, 2).unwrap()
        }),
    ]
}

#[test]
fn maxima_and_their_places_are_the_cpus() {
    let (device, _turn) = card!();
    for dtype in FLOATS {
        for shape in SHAPES {
            for config in configs() {
                for (x, view) in views(shape, dtype, 1) {
                    let name = format!("{dtype} {shape:?} {config:?}");
                    // Rounded, so that there are equal ones.
                    let x = x.mul_scalar(2.0).unwrap().cast(DType::I64).unwrap();
                    let x = x.cast(dtype).unwrap();
                    let there = view(&x.to_device(device).unwrap());
                    let x = view(&x);
                    both(
                        &name,
                        x.max_pool2d(&config),
                        there.max_pool2d(&config),
                        |(y, at), (got, got_at)| {
                            same(&name, &got, &y);
                            same(&name, &got_at, &at);
                        },
                    );
                }
            }
        }
    }
}

#[test]
fn nan_and_infinities_are_the_cpus() {
    let (device, _turn) = card!();
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let pixels = [
        1.0, nan, 2.0, nan, -inf, -inf, 0.0, inf, -inf, -inf, inf, inf, 3.0, nan, -0.0, 0.0,
    ];
    let x = Tensor::from_slice(&pixels, [1, 1, 4, 4], Device::cpu(0)).unwrap();
    for dtype in FLOATS {
        let x = x.cast(dtype).unwrap();
        let there = x.to_device(device).unwrap();
        for config in [
            Pool2dConfig::new([2, 2]),
            Pool2dConfig::new([3, 3]).with_stride(1).with_padding(1),
            Pool2dConfig::new([1, 2]),
        ] {
            let (y, at) = x.max_pool2d(&config).unwrap();
            let (got, got_at) = there.max_pool2d(&config).unwrap();
            same("max", &got, &y);
            same("max", &got_at, &at);
            same(
                "average",
                &there.avg_pool2d(&config).unwrap(),
                &x.avg_pool2d(&config).unwrap(),
            );
        }
    }
    // Dilation carries some windows past every pixel.
    let config = Pool2dConfig {
        dilation: [7, 7],
        stride: [1, 1],
        padding: [1, 1],
        ..Pool2dConfig::new([2, 2])
    };
    let x = values(&[1, 2, 6, 6], DType::F32, 1);
    let (y, at) = x.max_pool2d(&config).unwrap();
    let (got, got_at) = x.to_device(device).unwrap().max_pool2d(&config).unwrap();
    same("past", &got, &y);
    same("past", &got_at, &at);
    assert!(read(&at).contains(&-1.0), "the case is not the one meant");
}

#[test]
fn averages_and_their_gradients_are_the_cpus() {
    let (device, _turn) = card!();
    for dtype in FLOATS {
        for shape in SHAPES {
            for config in configs() {
                for (x, view) in views(shape, dtype, 2) {
                    let name = format!("{dtype} {shape:?} {config:?}");
                    let there = view(&x.to_device(device).unwrap());
                    let x = view(&x);
                    both(
                        &name,
                        x.avg_pool2d(&config),
                        there.avg_pool2d(&config),
                        |y, got| close(&name, &got, &y),
                    );
                }
                let Ok(y) = values(&shape, dtype, 1).avg_pool2d(&config) else {
                    continue;
                };
                let Ok(of_output) = <[usize; 4]>::try_from(y.dims()) else {
                    panic!("rank 4");
                };
                for (g, view) in views(of_output, dtype, 3) {
                    let name = format!("backward {dtype} {shape:?} {config:?}");
                    let there = view(&g.to_device(device).unwrap());
                    let back = |g: &Tensor| Tensor::avg_pool2d_backward(g, shape, &config).unwrap();
                    close(&name, &back(&there), &back(&view(&g)));
                    same(&name, &back(&there), &back(&there));
                }
            }
        }
    }
}

#[test]
fn averages_of_parts_and_their_gradients_are_the_cpus() {
    let (device, _turn) = card!();
    for dtype in FLOATS {
        for (shape, parts) in [
            ([2, 3, 7, 7], [1, 1]),
            ([2, 3, 7, 11], [3, 2]),
            ([1, 2, 5, 4], [7, 9]),
            ([1, 2, 60, 50], [1, 1]),
            // More windows than a small card has blocks, or warps of blocks.
            ([17, 1, 46, 46], [1, 1]),
            ([10, 13, 9, 9], [1, 1]),
            ([3, 1, 30, 32], [2, 3]),
            ([2, 1, 5, 5], [5, 5]),
            ([2, 1, 5, 5], [0, 2]),
            ([0, 1, 5, 5], [1, 2]),
        ] {
            for (x, view) in views(shape, dtype, 4) {
                let name = format!("{dtype} {shape:?} {parts:?}");
                let there = view(&x.to_device(device).unwrap());
                let y = view(&x).adaptive_avg_pool2d(parts).unwrap();
                close(&name, &there.adaptive_avg_pool2d(parts).unwrap(), &y);
            }
            let of_output = [shape[0], shape[1], parts[0], parts[1]];
            for (g, view) in views(of_output, dtype, 5) {
                let name = format!("backward {dtype} {shape:?} {parts:?}");
                let there = view(&g.to_device(device).unwrap());
                let back = |g: &Tensor| Tensor::adaptive_avg_pool2d_backward(g, shape);
                close(&name, &back(&there).unwrap(), &back(&view(&g)).unwrap());
            }
        }
    }
}

/// Each pixel sums what goes to it in the order of the outputs, as on the CPU, with few planes of many
/// outputs, which are sorted, and with others.
#[test]
fn gradients_of_maxima_are_the_cpus_bit_for_bit() {
    let (device, _turn) = card!();
    for dtype in FLOATS {
        for seed in SEEDS {
            for (shape, config) in [
                (
                    [2, 3, 7, 11],
                    Pool2dConfig::new([3, 3]).with_stride(1).with_padding(1),
                ),
                (
                    [1, 1, 9, 9],
                    Pool2dConfig::new([7, 7]).with_stride(1).with_padding(3),
                ),
                ([5, 4, 8, 8], Pool2dConfig::new([2, 2])),
                // More planes than a small card has warps of blocks.
                ([13, 10, 12, 12], Pool2dConfig::new([2, 2])),
                (
                    [1, 2, 70, 66],
                    Pool2dConfig::new([3, 3]).with_stride(1).with_padding(1),
                ),
                ([0, 2, 8, 8], Pool2dConfig::new([2, 2])),
            ] {
                let x = values(&shape, DType::F32, seed).cast(dtype).unwrap();
                let (y, at) = x.max_pool2d(&config).unwrap();
                let Ok(of_output) = <[usize; 4]>::try_from(y.dims()) else {
                    panic!("rank 4");
                };
                let at_there = at.to_device(device).unwrap();
                for (g, view) in views(of_output, dtype, seed + 1) {
                    let name = format!("{dtype} {shape:?} {config:?} seed {seed}");
                    let there = view(&g.to_device(device).unwrap());
                    let dx = Tensor::max_pool2d_backward(&view(&g), &at, shape).unwrap();
                    let got = Tensor::max_pool2d_backward(&there, &at_there, shape).unwrap();
                    same(&name, &got, &dx);
                }
            }
        }
    }
}

/// Indices as nobody's pooling gives them: all at one pixel, none, in any order, in views.
#[test]
fn gradients_go_to_whatever_pixels_are_named() {
    let (device, _turn) = card!();
    for out in [[3usize, 5], [70, 66]] {
        let shape = [2, 2, out[0], out[1]];
        let g = values(&shape, DType::F32, 1);
        let places = values(&shape, DType::F64, 2).add_scalar(2.0).unwrap();
        let scattered = places.mul_scalar(3.0).unwrap().sub_scalar(1.0).unwrap();
        let scattered = scattered.cast(DType::I64).unwrap();
        let one = Tensor::full(shape, 4, DType::I64, Device::cpu(0)).unwrap();
        let none = Tensor::full(shape, -1, DType::I64, Device::cpu(0)).unwrap();
        for at in [scattered, one, none] {
            for turned in [false, true] {
                let turn = |t: &Tensor| match turned {
                    true => t.transpose(2, 3).unwrap(),
                    false => t.clone(),
                };
                let back = |g: &Tensor, at: &Tensor| {
                    Tensor::max_pool2d_backward(&turn(g), &turn(at), [2, 2, 3, 4]).unwrap()
                };
                let there = |t: &Tensor| t.to_device(device).unwrap();
                let got = back(&there(&g), &there(&at));
                same(&format!("{out:?} {turned}"), &got, &back(&g, &at));
            }
        }
        let none = Tensor::full(shape, -1, DType::I64, device).unwrap();
        let empty = Tensor::max_pool2d_backward(&g.to_device(device).unwrap(), &none, [2, 2, 0, 4]);
        assert_eq!(empty.unwrap().numel(), 0);
        device.synchronize().unwrap();
    }
}

#[test]
fn a_pixel_outside_its_plane_is_the_cpus_error_later() {
    let (device, _turn) = card!();
    for out in [[3usize, 5], [70, 66]] {
        for wrong in [12, -2, i64::MIN] {
            let shape = [1, 2, out[0], out[1]];
            let g = values(&shape, DType::F32, 1);
            let mut list = vec![11i64; g.numel()];
            list[7] = wrong;
            let at = Tensor::from_slice(&list, shape, Device::cpu(0)).unwrap();
            let input = [1, 2, 3, 4];
            let here = Tensor::max_pool2d_backward(&g, &at, input).unwrap_err();
            let there = |t: &Tensor| t.to_device(device).unwrap();
            Tensor::max_pool2d_backward(&there(&g), &there(&at), input).unwrap();
            let e = device.synchronize().unwrap_err();
            device.clear_index_error().unwrap();
            for (e, deferred) in [(here, false), (e, true)] {
                let Error::IndexOutOfRange {
                    op,
                    index,
                    extent,
                    late,
                } = e
                else {
                    panic!("{e}");
                };
                assert_eq!(
                    (op, index, extent, late),
                    ("max_pool2d_backward", wrong, 12, deferred)
                );
            }
        }
    }
}
