//! Reading and adding by index, and the indices of extrema, against the CPU's. Sums at one index are
//! made in the order of the indices on both, so that they have the same bits.

use crate::support::*;
use phalanx_tensor::{DType, Device, Error, Result, Tensor};

/// Indices below `extent` that a seed decides, many of them equal.
fn indices(shape: &[usize], extent: usize, dtype: DType, seed: u64) -> Tensor {
    let t = values(shape, DType::F64, seed);
    let t = t.add_scalar(2.0).unwrap();
    let t = t.mul_scalar(extent as f64 / 4.0).unwrap();
    t.cast(DType::I64).unwrap().cast(dtype).unwrap()
}

/// Whether two tensors, on any devices, have the same bits.
fn same_bits(name: &str, got: &Tensor, expected: &Tensor) {
    assert_eq!(got.dims(), expected.dims(), "{name}");
    assert_eq!(got.dtype(), expected.dtype(), "{name}");
    let bytes = |t: &Tensor| {
        let t = t.to_device(Device::cpu(0)).unwrap().contiguous().unwrap();
        t.as_bytes().unwrap().to_vec()
    };
    assert!(
        bytes(got) == bytes(expected),
        "{name}: {:?} and {:?}",
        read(got),
        read(expected)
    );
}

/// Runs a case on the CPU and on the card.
fn compare(
    name: &str,
    device: Device,
    operands: &[&Tensor],
    run: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let here: Vec<Tensor> = operands.iter().map(|&t| t.clone()).collect();
    let there: Vec<Tensor> = here.iter().map(|t| t.to_device(device).unwrap()).collect();
    let (expected, got) = (run(&here).unwrap(), run(&there).unwrap());
    assert_eq!(got.device(), device, "{name}");
    same_bits(name, &got, &expected);
    same_bits(name, &run(&there).unwrap(), &got);
}

const INDEX_TYPES: [DType; 2] = [DType::I64, DType::I32];

#[test]
fn gather_is_the_cpus() {
    let (device, _turn) = card!();
    for dtype in DType::ALL {
        for index_type in INDEX_TYPES {
            for (shape, axis, at) in [
                (&[5usize, 7, 3][..], 0isize, &[4usize, 6, 2][..]),
                (&[5, 7, 3], 1, &[5, 20, 3]),
                (&[5, 7, 3], -1, &[2, 7, 1]),
                (&[9], 0, &[30]),
                (&[4, 6], 1, &[0, 6]),
            ] {
                let axis_at = if axis < 0 { 2 } else { axis as usize };
                let name = format!("gather {dtype} {index_type} {shape:?} {axis}");
                let x = values(shape, DType::F64, 1).abs().unwrap();
                let x = x.mul_scalar(50.0).unwrap().cast(dtype).unwrap();
                let i = indices(at, shape[axis_at], index_type, 2);
                compare(&name, device, &[&x, &i], |o| o[0].gather(axis, &o[1]));
            }
        }
        let x = values(&[12, 9], DType::F64, 3).cast(dtype).unwrap();
        let i = indices(&[8, 5], 6, DType::I64, 4);
        compare("gather views", device, &[&x, &i], |o| {
            let x = o[0].t()?.slice(1, 0..12, 2)?;
            x.gather(1, &o[1].t()?)
        });
    }
}

/// Short lines, long ones that are sorted, and keys of one to three digits.
#[test]
fn scatter_add_is_the_cpus_bit_for_bit() {
    let (device, _turn) = card!();
    for dtype in FLOATS {
        for seed in SEEDS {
            let index_type = INDEX_TYPES[seed as usize % 2];
            for (shape, axis, at) in [
                (&[5usize, 7, 3][..], 0isize, &[4usize, 6, 2][..]),
                (&[5, 7, 3], 1, &[5, 16, 3]),
                (&[5, 7, 3], 1, &[4, 17, 2]),
                (&[3, 4, 5], 2, &[2, 4, 100]),
                (&[9], 0, &[5000]),
                (&[300, 3], 0, &[700, 2]),
                (&[70_000], 0, &[4097]),
                (&[4, 6], 1, &[3, 1]),
                (&[4, 6], 1, &[0, 6]),
            ] {
                let name = format!("scatter_add {dtype} {shape:?} {axis} {at:?} seed {seed}");
                let x = values(shape, dtype, seed);
                let i = indices(at, shape[axis as usize], index_type, seed + 1);
                let s = values(at, dtype, seed + 2);
                compare(&name, device, &[&x, &i, &s], |o| {
                    o[0].scatter_add(axis, &o[1], &o[2])
                });
            }
        }
        for count in [8, 40] {
            let x = values(&[6, 12], dtype, 1);
            let i = indices(&[count, 10], 6, DType::I64, 2);
            let s = values(&[count, 5], dtype, 3);
            compare("scatter_add views", device, &[&x, &i, &s], |o| {
                let (i, x) = (o[1].slice(1, 0..10, 2)?, o[0].t()?);
                x.slice(0, 0..12, 2)?.scatter_add(1, &i.t()?, &o[2].t()?)
            });
        }
    }
}

#[test]
fn index_add_and_the_gradient_of_embedding_are_the_cpus_bit_for_bit() {
    let (device, _turn) = card!();
    for dtype in FLOATS {
        for seed in SEEDS {
            let index_type = INDEX_TYPES[seed as usize % 2];
            for (shape, axis, count) in [
                (&[5usize, 7, 3][..], 0isize, 4usize),
                (&[5, 7, 3], 1, 16),
                (&[5, 7, 3], 1, 50),
                (&[3, 2, 40], 2, 33),
                (&[300, 5], 0, 3000),
                (&[1], 0, 2049),
                (&[4, 6], 1, 0),
                (&[4, 6, 0], 1, 20),
                (&[0, 6], 1, 3),
            ] {
                let name = format!("index_add {dtype} {shape:?} {axis} {count} seed {seed}");
                let mut of_source = shape.to_vec();
                of_source[axis as usize] = count;
                let x = values(shape, dtype, seed);
                let i = indices(&[count], shape[axis as usize], index_type, seed + 1);
                let s = values(&of_source, dtype, seed + 2);
                compare(&name, device, &[&x, &i, &s], |o| {
                    o[0].index_add(axis, &o[1], &o[2])
                });
            }
            for (ids, width, entries) in [
                (&[3usize, 4][..], 5usize, 7usize),
                (&[3, 40], 5, 7),
                (&[40, 30, 2], 3, 70_000),
                (&[], 4, 3),
                (&[2, 0], 4, 3),
            ] {
                let name = format!("embedding_backward {dtype} {ids:?} seed {seed}");
                let i = indices(ids, entries, index_type, seed);
                let mut shape = ids.to_vec();
                shape.push(width);
                let g = values(&shape, dtype, seed + 1);
                compare(&name, device, &[&g, &i], |o| {
                    o[0].embedding_backward(&o[1], entries)
                });
            }
        }
        // Views: lists with gaps, ids whose axes do not merge, transposed gradients.
        for count in [6, 40] {
            let i = indices(&[2 * count], 5, DType::I64, 4);
            let (x, s) = (values(&[3, 5], dtype, 5), values(&[count, 3], dtype, 6));
            compare("index_add views", device, &[&x, &i, &s], |o| {
                o[0].index_add(1, &o[1].slice(0, 0..2 * count, 2)?, &o[2].t()?)
            });
            let (i, g) = (
                indices(&[4, count], 9, DType::I32, 7),
                values(&[3, 4, count], dtype, 8),
            );
            compare("embedding_backward views", device, &[&g, &i], |o| {
                o[0].permute(&[2, 1, 0])?.embedding_backward(&o[1].t()?, 9)
            });
        }
    }
}

/// So many keys that blocks sort several tiles in turn, and sum more tiles than they have threads. The last
/// keys are those of the last warp of a block.
#[test]
fn sums_of_many_elements_are_the_cpus_bit_for_bit() {
    let (device, _turn) = card!();
    let n = 257 * 2048 - 6;
    let x = values(&[200], DType::F32, 1);
    let i = indices(&[n], 200, DType::I64, 2);
    let s = values(&[n], DType::F32, 3);
    compare("index_add", device, &[&x, &i, &s], |o| {
        o[0].index_add(0, &o[1], &o[2])
    });
}

/// Each operation refuses an index at once on the CPU, and on the card at the next copy to the host.
#[test]
fn an_index_out_of_range_is_the_cpus_error_later() {
    let (device, _turn) = card!();
    type Case = (&'static str, usize, fn(&Tensor, &Tensor) -> Result<Tensor>);
    let cases: [Case; 6] = [
        ("gather", 3, |x, i| x.gather(1, &i.unsqueeze(0)?)),
        ("scatter_add", 3, |x, i| {
            let i = i.unsqueeze(0)?;
            x.scatter_add(
                1,
                &i,
                &Tensor::zeros(i.shape().clone(), x.dtype(), x.device())?,
            )
        }),
        ("index_add", 3, |x, i| {
            let source = Tensor::zeros([4, i.numel()], x.dtype(), x.device())?;
            x.index_add(1, i, &source)
        }),
        ("index_add", 3, |x, i| {
            let nothing = x.narrow(0, 0, 0)?;
            nothing.index_add(1, i, &Tensor::zeros([0, i.numel()], x.dtype(), x.device())?)
        }),
        ("index_select", 3, |x, i| {
            x.narrow(0, 0, 0)?.index_select(1, i)
        }),
        ("embedding_backward", 3, |x, i| {
            let grad = Tensor::zeros([i.numel(), 2], x.dtype(), x.device())?;
            grad.embedding_backward(i, 3)
        }),
    ];
    for (name, extent, run) in cases {
        for count in [5, 100] {
            for (wrong, index_type) in [
                (3, DType::I64),
                (-1, DType::I64),
                (i64::MIN, DType::I64),
                (i64::MAX, DType::I64),
                (-7, DType::I32),
            ] {
                let mut list = vec![1i64; count];
                list[count - 2] = wrong;
                let i = Tensor::from_slice(&list, [count], Device::cpu(0)).unwrap();
                let i = i.cast(index_type).unwrap();
                let x = values(&[4, 3], DType::F32, 1);
                let here = run(&x, &i).unwrap_err();
                let there = run(&x.to_device(device).unwrap(), &i.to_device(device).unwrap());
                there.unwrap();
                let e = device.synchronize().unwrap_err();
                device.clear_index_error().unwrap();
                for (e, deferred) in [(here, false), (e, true)] {
                    let Error::IndexOutOfRange {
                        op,
                        index,
                        extent: of,
                        late,
                    } = e
                    else {
                        panic!("{name}: {e}");
                    };
                    assert_eq!((op, index, of, late), (name, wrong, extent, deferred));
                }
            }
        }
    }
}

/// What meets an index out of range is left out, and all else is there.
#[test]
fn an_index_out_of_range_leaves_the_rest_as_it_is() {
    let (device, _turn) = card!();
    for count in [5usize, 100] {
        let mut list = vec![1i64; count];
        (list[0], list[1]) = (9, -1);
        let i = Tensor::from_slice(&list, [count], device).unwrap();
        let ones = Tensor::full([count], 1, DType::F32, device).unwrap();
        let zeros = Tensor::zeros([3], DType::F32, device).unwrap();
        let sums = [
            zeros.scatter_add(0, &i, &ones).unwrap(),
            zeros.index_add(0, &i, &ones).unwrap(),
        ];
        device.clear_index_error().unwrap();
        for sum in sums {
            assert_eq!(sum.to_vec::<f32>().unwrap(), [0.0, count as f32 - 2.0, 0.0]);
        }
    }
}

#[test]
fn argmax_and_argmin_are_the_cpus() {
    let (device, _turn) = card!();
    for dtype in DType::ALL {
        for seed in SEEDS {
            for shape in [
                &[5usize, 9][..],
                &[3, 700],
                &[700, 3],
                &[1, 1],
                &[0, 4],
                &[2, 65, 3],
            ] {
                // Few different values: the first of equals counts.
                let x = values(shape, DType::F64, seed).mul_scalar(3.0).unwrap();
                let x = x.cast(DType::I64).unwrap().cast(dtype).unwrap();
                for axis in 0..shape.len() as isize {
                    if x.dims()[axis as usize] == 0 {
                        continue;
                    }
                    let name = format!("{dtype} {shape:?} {axis} seed {seed}");
                    compare(&name, device, &[&x], |o| o[0].argmax(axis));
                    compare(&name, device, &[&x], |o| o[0].argmin(axis));
                    compare(&name, device, &[&x], |o| {
                        let t = o[0].transpose(0, -1)?;
                        match t.dims()[axis as usize] {
                            0 => o[0].argmax(axis),
                            _ => t.argmax(axis),
                        }
                    });
                }
            }
        }
    }
}

#[test]
fn extrema_of_numbers_that_are_none_are_the_cpus() {
    let (device, _turn) = card!();
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    for len in [4usize, 100] {
        for special in [
            vec![nan, 1.0, nan],
            vec![1.0, nan, 2.0, nan],
            vec![-inf, -inf],
            vec![inf, 1.0, inf],
            vec![-0.0, 0.0],
            vec![0.0, -0.0],
        ] {
            for at in [0, len - special.len()] {
                let mut line = vec![0.0; len];
                line[at..at + special.len()].copy_from_slice(&special);
                let x = Tensor::from_vec(line, [1, len], Device::cpu(0)).unwrap();
                for dtype in FLOATS {
                    let x = x.cast(dtype).unwrap();
                    compare(&format!("{special:?}"), device, &[&x], |o| o[0].argmax(1));
                    compare(&format!("{special:?}"), device, &[&x], |o| o[0].argmin(1));
                }
            }
        }
    }
    let empty = Tensor::zeros([3, 0], DType::F32, Device::cpu(0)).unwrap();
    let there = empty.to_device(device).unwrap();
    assert_eq!(empty.argmax(1).unwrap_err(), there.argmax(1).unwrap_err());
}
