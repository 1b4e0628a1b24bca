//! Tensors without elements whose other extents are huge: every operation ends at once, with a
//! result or an error, because no loop counts what holds nothing.

use phalanx_tensor::ops::conv::Conv2dConfig;
use phalanx_tensor::ops::linear::Activation;
use phalanx_tensor::ops::norm::{BatchNormMask, BatchNormSaved};
use phalanx_tensor::ops::optim::{self, AdamConfig, SgdConfig};
use phalanx_tensor::ops::pool::Pool2dConfig;
use phalanx_tensor::ops::softmax::{CrossEntropyConfig, Reduction};
use phalanx_tensor::{DType, Device, GeluKind, Result, Rng, Tensor};
use std::sync::mpsc;
use std::time::Duration;

const DEVICE: Device = Device::Cpu(902);
const HUGE: usize = 1 << 60;
/// The same with room for some elements beside it.
const TALL: usize = 1 << 55;

/// The shapes without elements that the operations on one tensor get.
const SHAPES: &[&[usize]] = &[
    &[HUGE, 0],
    &[0, HUGE],
    &[HUGE, 1, 0],
    &[HUGE, 0, 1],
    &[0, 1, HUGE],
    &[1, HUGE, 0],
    &[HUGE, 1, 0, 1],
    &[HUGE, 1, 0, 0],
    &[0, 1, HUGE, 1],
    &[0, 1, 1, HUGE],
];

fn nothing(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape.to_vec(), DType::F32, DEVICE).unwrap()
}

fn numbers(shape: &[usize]) -> Tensor {
    Tensor::ones(shape.to_vec(), DType::F32, DEVICE).unwrap()
}

/// Runs `f` for each shape, and fails where it panics or does not end.
fn ends(name: &str, f: impl Fn(&Tensor) -> Result<()> + Clone + Send + 'static) {
    for shape in SHAPES {
        ends_once(&format!("{name} of {shape:?}"), {
            let f = f.clone();
            move || f(&nothing(shape))
        });
    }
}

/// Runs `f`, and fails where it panics or does not end. An error is an end.
fn ends_once(name: &str, f: impl FnOnce() -> Result<()> + Send + 'static) {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = f();
        done.send(())
    });
    match ended.recv_timeout(Duration::from_secs(60)) {
        Ok(()) => {}
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{name} does not end"),
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("{name} panicked"),
    }
}

#[test]
fn batch_norms_of_nothing_end() {
    const MASKS: [u8; 3] = [0, 1, 2];
    for shape in [[HUGE, 1, 0], [0, 1, HUGE], [HUGE, 0, 1]] {
        let c = shape[1];
        ends_once(&format!("batch_norm of {shape:?}"), move || {
            let x = nothing(&shape);
            let y = x.batch_norm(None, None, 1e-5).unwrap();
            assert_eq!(y.out.dims(), shape);
            assert!(y.mean.to_vec::<f32>()?.iter().all(|m| m.is_nan()));
            x.batch_norm_act(None, None, 1e-5, Some(&x), true).unwrap();
            let one = numbers(&[c]);
            let out = x.batch_norm_inference(&one, &one, None, None, 1e-5, Some(&x), true);
            assert_eq!(out.unwrap().dims(), shape);
            for mask in MASKS {
                let saved = BatchNormSaved {
                    input: &x,
                    mean: &y.mean,
                    invstd: &y.invstd,
                    weight: None,
                    bias: None,
                    activation: match mask {
                        0 => BatchNormMask::Linear,
                        1 => BatchNormMask::Relu,
                        _ => BatchNormMask::ResidualRelu(&y.out),
                    },
                };
                for grads in [
                    Tensor::batch_norm_backward(&x, &saved).unwrap(),
                    Tensor::batch_norm_inference_backward(&x, &saved).unwrap(),
                ] {
                    assert_eq!(grads.input.dims(), shape);
                    assert_eq!(grads.weight.to_vec::<f32>()?, vec![0.0; c]);
                    assert_eq!(grads.bias.to_vec::<f32>()?, vec![0.0; c]);
                }
            }
            Ok(())
        });
    }
}

#[test]
fn layer_norms_of_nothing_end() {
    for (shape, normalized) in [
        (vec![HUGE, 0, 1], vec![1]),
        (vec![TALL, 0, 4], vec![4]),
        (vec![0, HUGE], vec![HUGE]),
        (vec![HUGE, 0], vec![0]),
    ] {
        ends_once(&format!("layer_norm of {shape:?}"), move || {
            let x = nothing(&shape);
            let y = x.layer_norm(normalized.clone(), None, None, 1e-5)?;
            let grads = x.layer_norm_backward(&x, normalized.clone(), None, &y.mean, &y.rstd);
            assert_eq!(grads.unwrap().input.dims(), shape);
            if normalized[0] < HUGE {
                let w = numbers(&normalized);
                let y = x.layer_norm(normalized.clone(), Some(&w), Some(&w), 1e-5)?;
                let (mean, rstd) = (&y.mean, &y.rstd);
                let grads = x.layer_norm_backward(&x, normalized.clone(), Some(&w), mean, rstd);
                let dw = grads.unwrap().weight.unwrap();
                assert_eq!(dw.to_vec::<f32>()?, vec![0.0; normalized[0]]);
            }
            Ok(())
        });
    }
}

#[test]
fn operations_on_rows_of_nothing_end() {
    for axis in [0, 1, -1] {
        ends("softmax", move |x| {
            let y = x.softmax(axis).unwrap();
            x.softmax_backward(&y, axis).unwrap();
            let y = x.log_softmax(axis).unwrap();
            x.log_softmax_backward(&y, axis).map(drop)
        });
        ends("sum", move |x| x.sum(&[axis], false).map(drop));
        ends("mean", move |x| x.mean(&[axis], true).map(drop));
        ends("var", move |x| x.var(&[axis], 1, false).map(drop));
        ends("max", move |x| x.max(&[axis], false).map(drop));
        ends("argmax", move |x| x.argmax(axis).map(drop));
        ends("half sum", move |x| {
            x.cast(DType::BF16)?.sum(&[axis], false).map(drop)
        });
    }
    ends("sum_all", |x| {
        assert_eq!(x.sum_all()?.item::<f64>()?, 0.0);
        assert!(x.mean_all()?.item::<f64>()?.is_nan());
        x.sum(&[0, 1], false).map(drop)
    });
    ends("sum_to_shape", |x| x.sum_to_shape([1]).map(drop));
    for reduction in [Reduction::None, Reduction::Mean] {
        ends("cross_entropy", move |x| {
            let config = CrossEntropyConfig {
                reduction,
                label_smoothing: 0.1,
                ..CrossEntropyConfig::default()
            };
            let mut shape = x.dims().to_vec();
            shape.remove(1);
            let ignored = Tensor::full((), config.ignore_index, DType::I64, DEVICE)?;
            let targets = ignored.broadcast_to(shape)?;
            let y = x.cross_entropy(&targets, &config)?;
            let grad =
                y.loss
                    .cross_entropy_backward(x, &targets, &y.saved, &y.total_weight, &config);
            assert_eq!(grad.unwrap().dims(), x.dims());
            Ok(())
        });
    }
}

#[test]
fn reading_and_writing_nothing_ends() {
    for axis in [0, 1, -1] {
        ends("index_select", move |x| {
            let none = Tensor::zeros([0], DType::I64, DEVICE)?;
            let taken = x.index_select(axis, &none).unwrap();
            x.index_add(axis, &none, &taken).map(drop)
        });
        ends("gather", move |x| {
            let at = Tensor::zeros(x.shape().clone(), DType::I64, DEVICE)?;
            assert_eq!(x.gather(axis, &at).unwrap().dims(), x.dims());
            x.scatter_add(axis, &at, x).map(drop)
        });
        ends("cat", move |x| {
            drop(Tensor::cat(&[x, x], axis));
            drop(Tensor::stack(&[x, x], axis));
            x.chunk(3, axis).map(drop)
        });
    }
    ends("embedding", |x| {
        let ids = Tensor::zeros([2], DType::I64, DEVICE)?;
        let rows = x.embedding(&ids)?;
        rows.embedding_backward(&ids, HUGE).map(drop)
    });
    ends("embedding_backward", |x| {
        let ids = Tensor::zeros(x.dims()[..x.rank() - 1].to_vec(), DType::I64, DEVICE)?;
        x.embedding_backward(&ids, 3).map(drop)
    });
    ends("pad", |x| {
        let mut widths = vec![(0, 0); x.rank()];
        widths[0] = (1, 2);
        let padded = x.pad(&widths, 1.0)?;
        assert_eq!(padded.unpad(&widths)?.dims(), x.dims());
        Ok(())
    });
    ends("views", |x| {
        let axes: Vec<isize> = (0..x.rank() as isize).rev().collect();
        let turned = x.permute(&axes).unwrap();
        for t in [&turned, x] {
            assert_eq!(t.contiguous().unwrap().dims(), t.dims());
            assert_eq!(t.to_vec::<f32>().unwrap(), []);
            assert_eq!(t.cast(DType::BF16).unwrap().dims(), t.dims());
            assert_eq!(t.to_device(Device::Cpu(903)).unwrap().dims(), t.dims());
            assert!(format!("{t:?}").contains("[]"));
        }
        Ok(())
    });
}

#[test]
fn element_by_element_nothing_ends() {
    ends("unary", |x| {
        x.relu().unwrap();
        let y = x.exp().unwrap();
        y.gelu(GeluKind::Tanh).map(drop)
    });
    ends("binary", |x| {
        let row = numbers(&[1]);
        x.add(&row).unwrap();
        x.clone().add_into(&row).unwrap();
        x.mul_scalar(2.0).unwrap();
        x.clamp(0.0, 1.0).unwrap();
        let mask = x.lt(&row).unwrap();
        Tensor::where_cond(&mask, x, &row).map(drop)
    });
    ends("random", |x| {
        let mut rng = Rng::new(1);
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            let shape = x.shape().clone();
            if shape.is_addressable(dtype) {
                Tensor::rand(shape.clone(), dtype, DEVICE, &mut rng).unwrap();
                Tensor::randn(shape, dtype, DEVICE, &mut rng).unwrap();
            }
        }
        Tensor::bernoulli(0.5, x.shape().clone(), DType::U8, DEVICE, &mut rng).unwrap();
        let (_, mask) = x.dropout(0.5, &mut rng).unwrap();
        x.dropout_backward(&mask, 0.5).map(drop)
    });
    ends("optimizers", |x| {
        let (mut params, grads) = ([x.clone()], [x.clone()]);
        let sgd = SgdConfig {
            momentum: 0.9,
            ..SgdConfig::default()
        };
        optim::sgd_step(&mut params, &grads, &mut [None], &sgd).unwrap();
        optim::adam_step(&mut params, &grads, &mut [None], &AdamConfig::adam()).unwrap();
        optim::scale(&mut params, 2.0).unwrap();
        assert_eq!(
            optim::global_norm(&params).unwrap().item::<f64>().unwrap(),
            0.0
        );
        Ok(())
    });
}

#[test]
fn products_of_nothing_end() {
    for (a, b) in [
        (vec![HUGE, 0], vec![0, 0]),
        (vec![HUGE, 0], vec![0, HUGE]),
        (vec![0, HUGE], vec![HUGE, 0]),
        (vec![0, HUGE], vec![HUGE, 1]),
        (vec![0, 2], vec![2, TALL]),
        (vec![TALL, 0, 2], vec![2, 3]),
        (vec![HUGE, 1, 0], vec![0, 0]),
        (vec![2, 0], vec![0, 3]),
    ] {
        ends_once(&format!("matmul of {a:?} and {b:?}"), move || {
            let stretched = |shape: &[usize]| numbers(&[1]).broadcast_to(shape.to_vec());
            let (a, b) = (stretched(&a)?, stretched(&b)?);
            let y = a.matmul(&b)?;
            assert!(y.to_vec::<f32>()?.iter().all(|v| *v == 0.0));
            let w = b.t()?;
            drop(a.linear(&w, None, Activation::Relu));
            drop(y.linear_input_grad(&w));
            drop(y.linear_weight_grad(&a));
            y.linear_bias_grad().map(drop)
        });
    }
    // The sum over no column of a huge number of rows.
    ends_once("linear_weight_grad", || {
        let tall = numbers(&[1]).broadcast_to([TALL, 3])?;
        let dw = tall.linear_weight_grad(&nothing(&[TALL, 0])).unwrap();
        assert_eq!(dw.dims(), [3, 0]);
        Ok(())
    });
}

#[test]
fn windows_over_planes_of_nothing_end() {
    let shapes = [
        ([HUGE, 1, 0, 0], [0, 1, 1, 1]),
        ([HUGE, 0, 1, 1], [0, 0, 1, 1]),
        ([HUGE, 0, 1, 1], [1, 0, 1, 1]),
        ([0, 1, HUGE, 1], [1, 1, 1, 1]),
        ([0, 8, 1, 1], [8, 8, 1, 1]),
        ([1, 1 << 40, 0, 0], [0, 1 << 40, 1, 1]),
    ];
    for (x, w) in shapes {
        for padding in [0, 1, 20] {
            ends_once(&format!("conv2d of {x:?} and {w:?}"), move || {
                let cfg = Conv2dConfig::default().with_padding(padding);
                let (input, weight) = (nothing(&x), Tensor::zeros(w, DType::F32, DEVICE)?);
                let y = input.conv2d(&weight, None, &cfg)?;
                drop(Tensor::conv2d_input_grad(&y, &weight, x, &cfg));
                drop(Tensor::conv2d_weight_grad(&input, &y, w, &cfg));
                Ok(())
            });
        }
    }
    for x in [[TALL, 0, 4, 4], [0, HUGE, 1, 1], [0, 1, HUGE, 1]] {
        ends_once(&format!("poolings of {x:?}"), move || {
            let cfg = Pool2dConfig::new([1, 1]);
            let x = nothing(&x);
            let (_, at) = x.max_pool2d(&cfg)?;
            Tensor::max_pool2d_backward(&x, &at, x.shape().clone())?;
            let y = x.avg_pool2d(&cfg)?;
            Tensor::avg_pool2d_backward(&y, x.shape().clone(), &cfg)?;
            for parts in [[1, 1], [1 << 58, 1]] {
                if let Ok(y) = x.adaptive_avg_pool2d(parts) {
                    Tensor::adaptive_avg_pool2d_backward(&y, x.shape().clone())?;
                }
            }
            Ok(())
        });
    }
    ends_once("adaptive_avg_pool2d", || {
        let y = nothing(&[0, 1, 1, 1]).adaptive_avg_pool2d([1 << 58, 1]);
        assert_eq!(y.unwrap().dims(), [0, 1, 1 << 58, 1]);
        Ok(())
    });
}
