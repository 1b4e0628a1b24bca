//! The operations that are refused memory, each with operands that make it ask for some.

use phalanx_tensor::ops::conv::Conv2dConfig;
use phalanx_tensor::ops::linear::Activation;
use phalanx_tensor::ops::norm::{BatchNormMask, BatchNormSaved};
use phalanx_tensor::ops::optim::{self, AdamConfig, SgdConfig};
use phalanx_tensor::ops::pool::Pool2dConfig;
use phalanx_tensor::ops::softmax::CrossEntropyConfig;
use phalanx_tensor::{DType, Device, GeluKind, Result, Rng, Tensor};

/// What a case calls with its operands.
pub type Op = fn(&[Tensor]) -> Result<Vec<Tensor>>;

/// An operation with the shapes of its operands, and how often it asks for memory at least.
pub struct Case {
    pub name: &'static str,
    /// The operations that it calls: the only names that an error may have.
    pub calls: &'static [&'static str],
    pub dtype: DType,
    pub shapes: &'static [&'static [usize]],
    pub asks: usize,
    pub op: Op,
}

const CONV: &[&[usize]] = &[
    &[9, 64, 9, 8],
    &[72, 64, 3, 3],
    &[9, 72, 9, 8],
    &[9, 72, 5, 4],
];

fn padded() -> Conv2dConfig {
    Conv2dConfig::default().with_padding(1)
}

fn targets(device: Device) -> Result<Tensor> {
    let mut rng = Rng::new(6);
    Tensor::randint(0, 2000, [3], device, &mut rng)
}

pub const CASES: &[Case] = &[
    Case {
        name: "conv2d",
        calls: &["conv2d"],
        dtype: DType::F32,
        shapes: CONV,
        asks: 4,
        op: |t| Ok(vec![t[0].conv2d(&t[1], None, &padded())?]),
    },
    Case {
        name: "conv2d of half precision",
        calls: &["conv2d"],
        dtype: DType::BF16,
        shapes: CONV,
        asks: 7,
        op: |t| Ok(vec![t[0].conv2d(&t[1], None, &padded())?]),
    },
    Case {
        name: "conv2d of double precision",
        calls: &["conv2d"],
        dtype: DType::F64,
        shapes: CONV,
        asks: 1,
        op: |t| Ok(vec![t[0].conv2d(&t[1], None, &padded())?]),
    },
    Case {
        name: "conv2d_input_grad",
        calls: &["conv2d_input_grad"],
        dtype: DType::F32,
        shapes: CONV,
        asks: 4,
        op: |t| {
            let shape = t[0].shape().clone();
            Ok(vec![Tensor::conv2d_input_grad(
                &t[2],
                &t[1],
                shape,
                &padded(),
            )?])
        },
    },
    Case {
        name: "conv2d_input_grad with strides",
        calls: &["conv2d_input_grad"],
        dtype: DType::F32,
        shapes: CONV,
        asks: 4,
        op: |t| {
            let (shape, config) = (t[0].shape().clone(), padded().with_stride(2));
            Ok(vec![Tensor::conv2d_input_grad(
                &t[3], &t[1], shape, &config,
            )?])
        },
    },
    Case {
        name: "conv2d_weight_grad",
        calls: &["conv2d_weight_grad"],
        dtype: DType::F32,
        shapes: CONV,
        asks: 4,
        op: |t| {
            let shape = t[1].shape().clone();
            Ok(vec![Tensor::conv2d_weight_grad(
                &t[0],
                &t[2],
                shape,
                &padded(),
            )?])
        },
    },
    Case {
        name: "matmul",
        calls: &["matmul"],
        dtype: DType::F32,
        shapes: &[&[130, 300], &[300, 90]],
        asks: 2,
        op: |t| Ok(vec![t[0].matmul(&t[1])?]),
    },
    Case {
        name: "matmul of half precision",
        calls: &["matmul"],
        dtype: DType::F16,
        shapes: &[&[130, 300], &[300, 90]],
        asks: 4,
        op: |t| Ok(vec![t[0].matmul(&t[1])?]),
    },
    Case {
        name: "matmul of stacks",
        calls: &["matmul"],
        dtype: DType::F64,
        shapes: &[&[4, 40, 60], &[4, 50, 60]],
        asks: 2,
        op: |t| Ok(vec![t[0].matmul(&t[1].t()?)?]),
    },
    Case {
        name: "linear and its gradients",
        calls: &[
            "linear",
            "linear_with_sums",
            "linear_input_grad",
            "linear_weight_grad",
        ],
        dtype: DType::F32,
        shapes: &[&[65, 200], &[120, 200], &[65, 120]],
        asks: 6,
        op: |t| {
            let activation = Activation::Gelu(GeluKind::Tanh);
            let (y, sums) = t[0].linear_with_sums(&t[1], None, activation)?;
            Ok(vec![
                t[0].linear(&t[1], None, activation)?,
                y,
                sums,
                t[2].linear_input_grad(&t[1])?,
                t[2].linear_weight_grad(&t[0])?,
            ])
        },
    },
    Case {
        name: "batch_norm and its gradients",
        calls: &["batch_norm", "batch_norm_backward"],
        dtype: DType::F32,
        shapes: &[&[2, 2000, 2], &[2, 2000, 2]],
        asks: 7,
        op: |t| {
            let out = t[0].batch_norm(None, None, 1e-5)?;
            let saved = BatchNormSaved {
                input: &t[0],
                mean: &out.mean,
                invstd: &out.invstd,
                weight: None,
                bias: None,
                activation: BatchNormMask::Linear,
            };
            let grads = Tensor::batch_norm_backward(&t[1], &saved)?;
            Ok(vec![
                out.out,
                out.var,
                grads.input,
                grads.weight,
                grads.bias,
            ])
        },
    },
    Case {
        name: "layer_norm and its gradients",
        calls: &["layer_norm", "layer_norm_backward"],
        dtype: DType::F32,
        shapes: &[&[40, 1200], &[1200]],
        asks: 5,
        op: |t| {
            let out = t[0].layer_norm([1200], Some(&t[1]), None, 1e-5)?;
            let stats = (&out.mean, &out.rstd);
            let grads = t[0].layer_norm_backward(&t[0], [1200], Some(&t[1]), stats.0, stats.1)?;
            Ok(vec![out.out, grads.input, grads.weight.unwrap()])
        },
    },
    Case {
        name: "softmax",
        calls: &["softmax"],
        dtype: DType::F32,
        shapes: &[&[40, 60]],
        asks: 2,
        op: |t| Ok(vec![t[0].softmax(0)?]),
    },
    Case {
        name: "cross_entropy with weights",
        calls: &["cross_entropy", "cross_entropy_backward"],
        dtype: DType::BF16,
        shapes: &[&[3, 2000], &[2000]],
        asks: 2,
        op: |t| {
            let config = CrossEntropyConfig {
                weight: Some(t[1].clone()),
                label_smoothing: 0.1,
                ..CrossEntropyConfig::default()
            };
            let targets = targets(t[0].device())?;
            let out = t[0].cross_entropy(&targets, &config)?;
            let grad = Tensor::ones((), DType::F32, t[0].device())?; // as the loss
            let back = grad.cross_entropy_backward(
                &t[0],
                &targets,
                &out.saved,
                &out.total_weight,
                &config,
            )?;
            Ok(vec![out.loss, back])
        },
    },
    Case {
        name: "reductions",
        calls: &["sum", "var", "argmax"],
        dtype: DType::BF16,
        shapes: &[&[60, 3000]],
        asks: 4,
        op: |t| {
            Ok(vec![
                t[0].sum(&[0], false)?,
                t[0].var(&[1], 1, false)?,
                t[0].argmax(0)?,
            ])
        },
    },
    Case {
        name: "poolings",
        calls: &["max_pool2d", "avg_pool2d"],
        dtype: DType::F32,
        shapes: &[&[2, 8, 20, 20]],
        asks: 3,
        op: |t| {
            let config = Pool2dConfig::new([2, 2]);
            let (max, at) = t[0].max_pool2d(&config)?;
            Ok(vec![max, at, t[0].avg_pool2d(&config)?])
        },
    },
    Case {
        name: "pieces and elements",
        calls: &["chunk", "split", "to_vec", "cat", "from_slice"],
        dtype: DType::F32,
        shapes: &[&[5000]],
        asks: 4,
        op: |t| {
            let pieces = t[0].chunk(2500, 0)?;
            let elements = t[0].to_vec::<f32>()?;
            let joined = Tensor::cat(&[&pieces[2], &t[0]], 0)?;
            Ok(vec![
                joined,
                Tensor::from_slice(&elements, [5000], t[0].device())?,
            ])
        },
    },
    Case {
        name: "operations on views",
        calls: &[
            "add",
            "exp",
            "gelu",
            "add_scalar",
            "lt",
            "where_cond",
            "cast",
            "add_widened",
        ],
        dtype: DType::F32,
        shapes: &[&[40, 60], &[40, 60]],
        asks: 9,
        op: |t| {
            let (a, b) = (t[0].t()?, t[1].t()?);
            let mask = a.lt(&b)?;
            let half = b.cast(DType::BF16)?;
            Ok(vec![
                a.add(&b)?,
                a.exp()?,
                a.gelu(GeluKind::Tanh)?,
                a.add_scalar(1.0)?,
                Tensor::where_cond(&mask.t()?, &t[0], &t[1])?,
                half.t()?.add_widened(&half.t()?)?,
                mask,
            ])
        },
    },
    Case {
        name: "add_into",
        calls: &["add_into"],
        dtype: DType::F32,
        shapes: &[&[40, 60], &[60, 40]],
        asks: 2,
        op: |t| {
            // Of a shared sum, and of a widened term that is a view.
            let sum = t[0].clone().add_into(&t[1].t()?)?;
            Ok(vec![sum])
        },
    },
    Case {
        name: "add_into of a half type",
        calls: &["add_into", "cast"],
        dtype: DType::BF16,
        shapes: &[&[40, 60]],
        asks: 2,
        op: |t| {
            let sum = t[0].cast(DType::F32)?;
            Ok(vec![sum.clone().add_into(&t[0])?, sum])
        },
    },
    Case {
        name: "reductions of views",
        calls: &[
            "sum",
            "mean",
            "max",
            "var",
            "argmin",
            "sum_to_shape",
            "mean_all",
        ],
        dtype: DType::F32,
        shapes: &[&[30, 50, 90]],
        asks: 2,
        op: |t| {
            let x = t[0].slice(2, 0..90, 2)?;
            Ok(vec![
                x.sum(&[1], false)?,
                x.mean(&[0], false)?,
                x.max(&[1], true)?,
                x.var(&[1], 1, false)?,
                x.argmin(1)?,
                x.sum_to_shape([50, 45])?,
                x.mean_all()?,
            ])
        },
    },
    Case {
        name: "linear of views",
        calls: &[
            "linear",
            "linear_input_grad",
            "linear_weight_grad",
            "linear_bias_grad",
        ],
        dtype: DType::F32,
        shapes: &[&[60, 8, 9], &[1100, 60], &[1100, 2], &[1100, 8, 9]],
        asks: 2,
        op: |t| {
            let (x, grad) = (t[0].permute(&[2, 1, 0])?, t[3].permute(&[2, 1, 0])?);
            let bias = t[2].select(1, 0)?;
            Ok(vec![
                x.linear(&t[1], Some(&bias), Activation::None)?,
                grad.linear_input_grad(&t[1])?,
                grad.linear_weight_grad(&x)?,
                grad.linear_bias_grad()?,
            ])
        },
    },
    Case {
        name: "norms of views",
        calls: &[
            "square",
            "stack",
            "batch_norm_inference",
            "layer_norm",
            "layer_norm_backward",
        ],
        dtype: DType::F32,
        shapes: &[&[2, 1200], &[1200, 2], &[1200]],
        asks: 2,
        op: |t| {
            let (x, mean) = (t[1].t()?, t[1].select(1, 0)?);
            let var = t[2].square()?;
            let y = x.batch_norm_inference(&mean, &var, None, None, 1e-5, None, true)?;
            let n = t[1].layer_norm([2], None, None, 1e-5)?;
            let (mean, rstd) = (&n.mean, &n.rstd);
            let twice = Tensor::stack(&[mean, rstd], 1)?;
            let (mean, rstd) = (twice.select(1, 0)?, twice.select(1, 1)?);
            let grads = t[1].layer_norm_backward(&t[1], [2], None, &mean, &rstd)?;
            Ok(vec![y, grads.input])
        },
    },
    Case {
        name: "indices of views",
        calls: &[
            "randint",
            "index_select",
            "index_add",
            "gather",
            "scatter_add",
            "embedding",
            "embedding_backward",
        ],
        dtype: DType::F32,
        shapes: &[&[60, 40]],
        asks: 2,
        op: |t| {
            let mut rng = Rng::new(7);
            let x = t[0].t()?;
            let at = Tensor::randint(0, 40, [60, 40], x.device(), &mut rng)?;
            let list = at.select(1, 0)?;
            let rows = x.embedding(&list)?;
            let back = rows.embedding_backward(&list, 40)?;
            Ok(vec![
                x.index_select(0, &list)?,
                t[0].index_add(0, &list, &Tensor::index_select(&t[0], 0, &list)?)?,
                x.gather(0, &at.t()?)?,
                t[0].scatter_add(1, &at, &t[0])?,
                back,
            ])
        },
    },
    Case {
        name: "optimizers of shared parameters",
        calls: &["sgd_step", "adam_step", "scale", "global_norm"],
        dtype: DType::F32,
        shapes: &[&[40, 60], &[60, 40]],
        asks: 2,
        op: |t| {
            let (mut params, grads) = (vec![t[0].clone()], [t[1].t()?]);
            let sgd = SgdConfig {
                momentum: 0.9,
                ..SgdConfig::default()
            };
            let (mut moments, mut states) = ([None], [None]);
            optim::sgd_step(&mut params, &grads, &mut moments, &sgd)?;
            let kept = (params[0].clone(), moments.clone());
            optim::sgd_step(&mut params, &grads, &mut moments, &sgd)?;
            optim::adam_step(&mut params, &grads, &mut states, &AdamConfig::adam())?;
            let shared = (params[0].clone(), states.clone());
            optim::adam_step(&mut params, &grads, &mut states, &AdamConfig::adam())?;
            let mut scaled = vec![params[0].clone()];
            optim::scale(&mut scaled, 0.5)?;
            let norm = optim::global_norm(&grads)?;
            drop((kept, shared));
            Ok(vec![params.remove(0), scaled.remove(0), norm])
        },
    },
];
