//! Every operation with every element type: what the CPU has, a card has, too.

use crate::support::*;
use phalanx_tensor::ops::conv::Conv2dConfig;
use phalanx_tensor::ops::linear::Activation;
use phalanx_tensor::ops::norm::{BatchNormMask, BatchNormMomentum, BatchNormSaved};
use phalanx_tensor::ops::optim::{
    AdamConfig, SgdConfig, adam_step, clip_by_norm, global_norm, scale, sgd_step, square_sum,
};
use phalanx_tensor::ops::pool::Pool2dConfig;
use phalanx_tensor::ops::softmax::CrossEntropyConfig;
use phalanx_tensor::{DType, Device, Result, Rng, Tensor, unary_table};

/// The operands of a row: small tensors of one element type, and indices.
struct Given {
    dtype: DType,
    device: Device,
    /// `[4, 6]`.
    a: Tensor,
    /// `[4, 6]`.
    b: Tensor,
    /// `[2, 6, 5, 4]`.
    images: Tensor,
    /// Six elements each.
    rows: [Tensor; 2],
    /// `[3]`, within 0 to 3.
    at: Tensor,
    /// `[4]`, within 0 to 5.
    classes: Tensor,
}

impl Given {
    fn new(dtype: DType, device: Device) -> Given {
        let there = |t: Tensor| t.to_device(device).unwrap();
        let some = |shape: &[usize], seed| {
            let t = values(shape, DType::F64, seed);
            // Whole numbers that every type holds; floats are between 0 and 4.
            let t = match dtype.is_float() {
                true => t.abs(),
                false => t.mul_scalar(3.0).and_then(|t| t.abs()),
            };
            there(t.unwrap().cast(dtype).unwrap())
        };
        let ints = |values: &[i64]| {
            there(Tensor::from_slice(values, [values.len()], Device::cpu(0)).unwrap())
        };
        Given {
            dtype,
            device,
            a: some(&[4, 6], 1),
            b: some(&[4, 6], 2),
            images: some(&[2, 6, 5, 4], 3),
            rows: [some(&[6], 4), some(&[6], 5)],
            at: ints(&[2, 0, 2]),
            classes: ints(&[5, 0, -100, 2]),
        }
    }

    /// `rows[0]` as a type that statistics have.
    fn statistics(&self, which: usize) -> Tensor {
        let wide = match self.dtype {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        self.rows[which].cast(wide).unwrap()
    }
}

/// What a row computes.
type Row = (&'static str, fn(&Given) -> Result<Vec<Tensor>>);

macro_rules! one {
    ($name:literal, |$g:ident| $result:expr) => {
        ($name, |$g: &Given| Ok(vec![$result?]))
    };
}

/// The rows of the table of unary functions, forward and backward.
macro_rules! unary_rows {
    (|$vx:ident, $vout:ident, $vg:ident| $({
        $Name:ident $name:ident ($($arg:ident: $ty:ty)?) [$values:expr] $range:tt
        $slope:tt $reference:tt $backward:tt $($rest:tt)*
    })*) => {
        const UNARY: &[Row] = &[$(
            (stringify!($name), |g: &Given| {
                let mut all = Vec::new();
                for ($($arg,)?) in $values {
                    all.push(g.a.$name($($arg)?)?);
                }
                Ok(all)
            }),
        )*];
    };
}
unary_table!(unary_rows);

const ROWS: &[Row] = &[
    one!("add", |g| g.a.add(&g.b)),
    one!("sub", |g| g.a.sub(&g.b)),
    one!("mul", |g| g.a.mul(&g.b)),
    one!("div", |g| g.a.div(&g.b)),
    one!("pow", |g| g.a.pow(&g.b)),
    one!("maximum", |g| g.a.maximum(&g.b)),
    one!("minimum", |g| g.a.minimum(&g.b)),
    one!("add_scalar", |g| g.a.add_scalar(2.0)),
    one!("sub_scalar", |g| g.a.sub_scalar(1.0)),
    one!("mul_scalar", |g| g.a.mul_scalar(3.0)),
    one!("div_scalar", |g| g.a.div_scalar(2.0)),
    one!("pow_scalar", |g| g.a.pow_scalar(2.0)),
    one!("maximum_scalar", |g| g.a.maximum_scalar(1.0)),
    one!("minimum_scalar", |g| g.a.minimum_scalar(1.0)),
    one!("clamp", |g| g.a.clamp(1.0, 2.0)),
    one!("add_into", |g| g.a.copy()?.add_into(&g.b)),
    one!("add_widened", |g| g.a.add_widened(&g.b)),
    one!("eq", |g| g.a.eq(&g.b)),
    one!("ne", |g| g.a.ne(&g.b)),
    one!("lt", |g| g.a.lt(&g.b)),
    one!("le", |g| g.a.le(&g.b)),
    one!("gt", |g| g.a.gt(&g.b)),
    one!("ge", |g| g.a.ge(&g.b)),
    one!("where_cond", |g| Tensor::where_cond(
        &g.a.lt(&g.b)?,
        &g.a,
        &g.b
    )),
    ("cast", |g| {
        DType::ALL.into_iter().map(|to| g.a.cast(to)).collect()
    }),
    one!("write_scaled_at", |g| {
        let mut y = g.a.copy()?;
        y.write_scaled_at(1, &g.b.narrow(0, 1, 1)?, 2.0)?;
        Ok(y)
    }),
    one!("zeros", |g| Tensor::zeros([3, 2], g.dtype, g.device)),
    one!("ones", |g| Tensor::ones([3, 2], g.dtype, g.device)),
    one!("full", |g| Tensor::full([3, 2], 3.0, g.dtype, g.device)),
    one!("arange", |g| Tensor::arange(7, g.dtype, g.device)),
    one!("contiguous", |g| g.a.t()?.contiguous()),
    one!("copy", |g| g.a.slice(1, 0..6, 2)?.copy()),
    one!("sum", |g| g.a.sum(&[0], false)),
    one!("mean", |g| g.a.mean(&[1], true)),
    one!("max", |g| g.a.max(&[1], false)),
    one!("min", |g| g.a.min(&[0], false)),
    one!("var", |g| g.a.var(&[1], 1, false)),
    one!("sum_all", |g| g.a.sum_all()),
    one!("mean_all", |g| g.a.mean_all()),
    one!("sum_to_shape", |g| g.a.sum_to_shape([6])),
    one!("argmax", |g| g.a.argmax(1)),
    one!("argmin", |g| g.a.argmin(0)),
    one!("index_select", |g| g.a.index_select(0, &g.at)),
    one!("index_add", |g| g.a.index_add(
        0,
        &g.at,
        &g.b.narrow(0, 0, 3)?
    )),
    one!("gather", |g| g
        .a
        .gather(0, &g.at.unsqueeze(1)?.broadcast_to([3, 6])?)),
    one!("scatter_add", |g| {
        let at = g.at.unsqueeze(1)?.broadcast_to([3, 6])?;
        g.a.scatter_add(0, &at, &g.b.narrow(0, 1, 3)?)
    }),
    one!("embedding", |g| g.a.embedding(&g.at)),
    one!("embedding_backward", |g| g
        .a
        .narrow(0, 0, 3)?
        .embedding_backward(&g.at, 5)),
    one!("embedding_backward_into", |g| {
        let mut sum = sum_of(g, &[5, 6])?;
        g.a.narrow(0, 0, 3)?
            .embedding_backward_into(&g.at, &mut sum)?;
        Ok(sum)
    }),
    one!("cat", |g| Tensor::cat(&[&g.a, &g.b], 1)),
    one!("stack", |g| Tensor::stack(&[&g.a, &g.b], 1)),
    one!("pad", |g| g.a.pad(&[(1, 0), (0, 2)], 1.0)),
    one!("unpad", |g| g.a.unpad(&[(1, 0), (0, 2)])),
    ("split", |g| g.a.split(&[1, 5], 1)),
    ("chunk", |g| g.a.chunk(3, 1)),
    one!("matmul", |g| g.a.matmul(&g.b.t()?)),
    one!("addmm", |g| {
        let mut sum = sum_of(g, &[4, 4])?;
        sum.addmm(&g.a, &g.b.t()?)?;
        Ok(sum)
    }),
    one!("linear", |g| g.a.linear(&g.b, None, Activation::Relu)),
    ("linear_with_sums", |g| {
        Ok(<[_; 2]>::from(g.a.linear_with_sums(&g.b, None, Activation::Silu)?).into())
    }),
    one!("linear_input_grad", |g| g
        .a
        .matmul(&g.b.t()?)?
        .linear_input_grad(&g.b)),
    one!("linear_weight_grad", |g| g.a.linear_weight_grad(&g.b)),
    one!("linear_bias_grad", |g| g.a.linear_bias_grad()),
    one!("conv2d", |g| g.images.conv2d(
        &weight(g)?,
        Some(&g.rows[0]),
        &padded()
    )),
    one!("conv2d_input_grad", |g| {
        let weight = weight(g)?;
        let y = g.images.conv2d(&weight, None, &padded())?;
        Tensor::conv2d_input_grad(&y, &weight, g.images.shape().clone(), &padded())
    }),
    one!("conv2d_weight_grad", |g| {
        let weight = weight(g)?;
        let y = g.images.conv2d(&weight, None, &padded())?;
        Tensor::conv2d_weight_grad(&g.images, &y, weight.shape().clone(), &padded())
    }),
    one!("conv2d_weight_grad_into", |g| {
        let weight = weight(g)?;
        let y = g.images.conv2d(&weight, None, &padded())?;
        let mut sum = sum_of(g, weight.dims())?;
        Tensor::conv2d_weight_grad_into(&g.images, &y, &mut sum, &padded())?;
        Ok(sum)
    }),
    ("max_pool2d", |g| {
        let (y, at) = g.images.max_pool2d(&Pool2dConfig::new([2, 2]))?;
        Ok(vec![y, at])
    }),
    one!("max_pool2d_backward", |g| {
        let (y, at) = g.images.max_pool2d(&Pool2dConfig::new([2, 2]))?;
        Tensor::max_pool2d_backward(&y, &at, g.images.shape().clone())
    }),
    one!("avg_pool2d", |g| g
        .images
        .avg_pool2d(&Pool2dConfig::new([2, 2]))),
    one!("avg_pool2d_backward", |g| {
        let config = Pool2dConfig::new([2, 2]);
        let y = g.images.avg_pool2d(&config)?;
        Tensor::avg_pool2d_backward(&y, g.images.shape().clone(), &config)
    }),
    one!("adaptive_avg_pool2d", |g| g
        .images
        .adaptive_avg_pool2d([2, 3])),
    one!("adaptive_avg_pool2d_backward", |g| {
        let y = g.images.adaptive_avg_pool2d([2, 3])?;
        Tensor::adaptive_avg_pool2d_backward(&y, g.images.shape().clone())
    }),
    one!("softmax", |g| g.a.softmax(1)),
    one!("softmax_backward", |g| g.a.softmax_backward(&g.b, 0)),
    one!("log_softmax", |g| g.a.log_softmax(1)),
    one!("log_softmax_backward", |g| g
        .a
        .log_softmax_backward(&g.b, 0)),
    ("cross_entropy", |g| {
        let out =
            g.a.cross_entropy(&g.classes, &CrossEntropyConfig::default())?;
        Ok(vec![out.loss, out.total_weight])
    }),
    one!("cross_entropy_backward", |g| {
        let config = CrossEntropyConfig::default();
        let out = g.a.cross_entropy(&g.classes, &config)?;
        let (loss, saved, weight) = (&out.loss, &out.saved, &out.total_weight);
        loss.cross_entropy_backward(&g.a, &g.classes, saved, weight, &config)
    }),
    ("layer_norm", |g| {
        let [weight, bias] = &g.rows;
        let y = g.a.layer_norm([6], Some(weight), Some(bias), 1e-5)?;
        Ok(vec![y.out, y.mean, y.rstd])
    }),
    ("layer_norm_backward", |g| {
        let [weight, bias] = &g.rows;
        let y = g.a.layer_norm([6], Some(weight), Some(bias), 1e-5)?;
        let grads =
            g.b.layer_norm_backward(&g.a, [6], Some(weight), &y.mean, &y.rstd)?;
        Ok([Some(grads.input), grads.weight, grads.bias]
            .into_iter()
            .flatten()
            .collect())
    }),
    ("batch_norm", |g| {
        let [weight, bias] = &g.rows;
        let y = g.images.batch_norm(Some(weight), Some(bias), 1e-5)?;
        Ok(vec![y.out, y.mean, y.var, y.invstd])
    }),
    ("batch_norm_act", |g| {
        let y = g
            .images
            .batch_norm_act(None, None, 1e-5, Some(&g.images), true)?;
        Ok(vec![y.out])
    }),
    one!("batch_norm_inference", |g| {
        let (mean, var) = (g.statistics(0), g.statistics(1));
        g.images
            .batch_norm_inference(&mean, &var, None, None, 1e-5, None, false)
    }),
    one!("batch_norm_invstd", |g| g
        .statistics(0)
        .batch_norm_invstd(1e-5)),
    ("batch_norm_backward", |g| {
        batch_norm_backward(g, Tensor::batch_norm_backward)
    }),
    ("batch_norm_inference_backward", |g| {
        batch_norm_backward(g, Tensor::batch_norm_inference_backward)
    }),
    ("batch_norm_track", |g| {
        let [a, b] = [0, 1].map(|i| g.statistics(i));
        let momentum = BatchNormMomentum::Share(0.1);
        Tensor::batch_norm_track([&a, &b], [&b, &a], 9, momentum).map(Vec::from)
    }),
    one!("rand", |g| Tensor::rand(
        [3, 50],
        g.dtype,
        g.device,
        &mut Rng::new(1)
    )),
    one!("randn", |g| Tensor::randn(
        [3, 50],
        g.dtype,
        g.device,
        &mut Rng::new(1)
    )),
    one!("randint", |g| Tensor::randint(
        -3,
        9,
        [3, 50],
        g.device,
        &mut Rng::new(1)
    )),
    one!("bernoulli", |g| Tensor::bernoulli(
        0.3,
        [3, 50],
        g.dtype,
        g.device,
        &mut Rng::new(1)
    )),
    one!("randperm", |g| Tensor::randperm(
        77,
        g.device,
        &mut Rng::new(1)
    )),
    ("dropout", |g| {
        let (y, mask) = g.a.dropout(0.4, &mut Rng::new(1))?;
        Ok(vec![y, mask])
    }),
    one!("dropout_backward", |g| {
        let (_, mask) = g.a.dropout(0.4, &mut Rng::new(1))?;
        g.b.dropout_backward(&mask, 0.4)
    }),
    ("sgd_step", |g| {
        let (mut params, mut states) = (vec![g.a.copy()?], vec![None]);
        let config = SgdConfig {
            momentum: 0.9,
            ..SgdConfig::default()
        };
        sgd_step(&mut params, &[&g.b], &mut states, &config)?;
        params.extend(states.into_iter().flatten());
        Ok(params)
    }),
    ("adam_step", |g| {
        let (mut params, mut states) = (vec![g.a.copy()?], vec![None]);
        adam_step(&mut params, &[&g.b], &mut states, &AdamConfig::adamw())?;
        Ok(params)
    }),
    one!("global_norm", |g| global_norm([&g.a, &g.b])),
    one!("square_sum", |g| square_sum([&g.a, &g.b])),
    ("clip_by_norm", |g| {
        let mut all = vec![g.a.copy()?, g.b.copy()?];
        let norm = global_norm(&all)?;
        clip_by_norm(&mut all, &norm, 0.5)?;
        Ok(all)
    }),
    ("scale", |g| {
        let mut all = vec![g.a.copy()?, g.b.copy()?];
        scale(&mut all, 0.5)?;
        Ok(all)
    }),
];

fn padded() -> Conv2dConfig {
    Conv2dConfig::default().with_padding(1)
}

/// `[6, 6, 2, 1]`.
fn weight(g: &Given) -> Result<Tensor> {
    let six = g.images.flatten(0, -1)?.narrow(0, 7, 72)?;
    six.reshape([6, 6, 2, 1])
}

/// Something to add to, in the type of computation.
fn sum_of(g: &Given, shape: &[usize]) -> Result<Tensor> {
    let ones = Tensor::ones(shape, g.dtype, g.device)?;
    match g.dtype {
        DType::BF16 | DType::F16 => ones.cast(DType::F32),
        _ => Ok(ones),
    }
}

fn batch_norm_backward(
    g: &Given,
    backward: fn(&Tensor, &BatchNormSaved<'_>) -> Result<phalanx_tensor::ops::norm::BatchNormGrads>,
) -> Result<Vec<Tensor>> {
    let [weight, bias] = &g.rows;
    let (mean, invstd) = (g.statistics(0), g.statistics(1));
    let grads = backward(
        &g.images.add_scalar(1.0)?,
        &BatchNormSaved {
            input: &g.images,
            mean: &mean,
            invstd: &invstd,
            weight: Some(weight),
            bias: Some(bias),
            activation: BatchNormMask::Linear,
        },
    )?;
    Ok(vec![grads.input, grads.weight, grads.bias])
}

#[test]
fn a_card_has_every_operation_and_element_type_that_the_cpu_has() {
    let (device, _turn) = card!();
    let mut missing = Vec::new();
    let mut ran = 0;
    for dtype in DType::ALL {
        let (here, there) = (Given::new(dtype, Device::cpu(0)), Given::new(dtype, device));
        for (name, row) in UNARY.iter().chain(ROWS) {
            let what = format!("{name} {dtype}");
            match (row(&here), row(&there)) {
                (Ok(expected), Ok(got)) => {
                    ran += 1;
                    assert_eq!(got.len(), expected.len(), "{what}");
                    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                        assert_near(&format!("{what}, result {i}"), got, expected, 1e-4);
                    }
                }
                (Err(expected), Err(got)) => {
                    let sentence = |e: &phalanx_tensor::Error| {
                        e.to_string().replace(&device.to_string(), "the device")
                    };
                    let expected = expected.to_string().replace("cpu:0", "the device");
                    assert_eq!(sentence(&got), expected, "{what}");
                }
                (Ok(_), Err(e)) => missing.push(format!("{what}: {e}")),
                (Err(e), Ok(_)) => panic!("{what}: the CPU refuses it: {e}"),
            }
        }
    }
    assert!(missing.is_empty(), "cards lack:\n{}", missing.join("\n"));
    assert!(ran > 400, "{ran} operations with an element type ran");
}

/// The rows name every operation: each public function of the families is in the table.
#[test]
fn the_table_has_every_operation() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let Ok(families) = std::fs::read_dir(&folder) else {
        eprintln!("SKIPPED: the_table_has_every_operation: the sources are not on this machine");
        return;
    };
    let known: Vec<&str> = UNARY.iter().chain(ROWS).map(|(name, _)| *name).collect();
    // What is no operation: methods of configurations and generators, parts of others.
    let others = [
        "adam",
        "adamw",
        "adam_steps",
        "apply",
        "backward",
        "below",
        "check",
        "empty",
        "expect_non_negative",
        "fold_in",
        "from_state",
        "new",
        "next_u64",
        "permutation",
        "saves_argument",
        "sgd_steps",
        "shuffle",
        "state",
        "uniform",
        "with_dilation",
        "with_groups",
        "with_padding",
        "with_stride",
    ];
    let mut unknown = Vec::new();
    for family in families {
        let Ok(files) = std::fs::read_dir(family.unwrap().path()) else {
            continue;
        };
        for file in files {
            let file = file.unwrap().path();
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            for line in text.lines() {
                let Some(rest) = line.trim_start().strip_prefix("pub fn ") else {
                    continue;
                };
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
                let name = &rest[..end.unwrap_or(rest.len())];
                if !name.is_empty() && !known.contains(&name) && !others.contains(&name) {
                    unknown.push(format!("{name} of {}", file.display()));
                }
            }
        }
    }
    assert!(unknown.is_empty(), "not in the table: {unknown:?}");
}
