//! The same bits at every level of instructions that this machine has, for every operation whose result does not
//! depend on how many elements a vector holds: all but products and convolutions.
//!
//! This program has one test, since a level can only be changed while nothing else computes.
#![allow(unsafe_code)]

mod level;
#[path = "ops/util.rs"]
mod util;

use phalanx_tensor::cpu::internals::limit;
use phalanx_tensor::cpu::{SimdLevel, simd_level};
use phalanx_tensor::ops::norm::{BatchNormMask, BatchNormSaved};
use phalanx_tensor::ops::optim::{AdamConfig, SgdConfig, adam_step, global_norm, scale, sgd_step};
use phalanx_tensor::ops::pool::Pool2dConfig;
use phalanx_tensor::ops::softmax::CrossEntropyConfig;
use phalanx_tensor::{DType, Device, Result, Rng, Tensor, unary_table};
use util::{FLOATS, TestRng};

/// The bytes of results, by name.
type Results = Vec<(&'static str, Vec<u8>)>;

fn bits(t: &Tensor) -> Vec<u8> {
    t.contiguous().unwrap().as_bytes().unwrap().to_vec()
}

macro_rules! table {
    (|$vx:ident, $vout:ident, $vg:ident| $({
        $Name:ident $name:ident ($($arg:ident: $ty:ty)?) [$values:expr] [$range:expr] [$saved:tt $gradient:expr]
        $($rest:tt)*
    })*) => {
        /// Each function of the tensor's table, and its gradient given that of the result, of `all`
        /// or, where it needs positive arguments, of these.
        fn unary(
            all: &Tensor,
            positive: &Tensor,
            $vg: &Tensor,
        ) -> Result<Vec<(&'static str, Tensor)>> {
            let mut results = Vec::new();
            $(for ($($arg,)?) in $values {
                let $vx = if $range.0 > 0.0 { positive } else { all };
                let $vout = &$vx.$name($($arg)?)?;
                results.push((stringify!($name), $vout.clone()));
                results.push((concat!("gradient of ", stringify!($name)), $gradient?));
            })*
            Ok(results)
        }
    };
}

unary_table!(table);

/// An operation of each family, over views of several layouts and lengths that fill no vector.
fn run(dtype: DType) -> Result<Results> {
    let cpu = Device::cpu(0);
    let mut out: Results = Vec::new();
    let mut keep = |name: &'static str, t: &Tensor| out.push((name, bits(t)));
    let mut rng = Rng::new(5);
    keep("randn", &Tensor::randn([10_007], dtype, cpu, &mut rng)?);
    keep("rand", &Tensor::rand([10_007], dtype, cpu, &mut rng)?);
    keep(
        "randint",
        &Tensor::randint(-7, 90, [10_007], cpu, &mut rng)?,
    );
    keep(
        "bernoulli",
        &Tensor::bernoulli(0.3, [10_007], dtype, cpu, &mut rng)?,
    );
    let mut t = TestRng::new(17);
    for shape in [&[1003][..], &[37, 65], &[9, 13, 14, 14]] {
        let x = t.tensor(shape, dtype, (-4.0, 4.0));
        let y = t.tensor(shape, dtype, (-4.0, 4.0));
        let p = t.tensor(shape, dtype, (0.01, 9.0));
        for (name, result) in unary(&x, &p, &y)? {
            keep(name, &result);
        }
        keep("add", &x.add(&y)?);
        keep("sub", &x.sub(&y)?);
        keep("mul", &x.mul(&y)?);
        keep("div", &x.div(&p)?);
        keep("maximum", &x.maximum(&y)?);
        keep("pow", &p.pow(&y)?);
        keep("lt", &x.lt(&y)?);
        keep("cast", &x.cast(DType::F32)?.cast(DType::BF16)?);
        keep("cast f16", &x.cast(DType::F16)?.cast(DType::F64)?);
        keep("sum_all", &x.sum_all()?);
        keep("mean_all", &x.mean_all()?);
        for axis in 0..shape.len() as isize {
            keep("sum", &x.sum(&[axis], false)?);
            keep("max", &x.max(&[axis], false)?);
            keep("var", &x.var(&[axis], 1, false)?);
            keep("argmax", &x.argmax(axis)?);
            keep("softmax", &x.softmax(axis)?);
            keep("log_softmax", &x.log_softmax(axis)?);
            let s = x.softmax(axis)?;
            keep("softmax_backward", &y.softmax_backward(&s, axis)?);
            keep("log_softmax_backward", &y.log_softmax_backward(&s, axis)?);
        }
        let (dropped, mask) = x.dropout(0.3, &mut rng)?;
        keep("dropout", &dropped);
        keep("dropout_backward", &y.dropout_backward(&mask, 0.3)?);
        let last = shape[shape.len() - 1];
        let w = t.tensor(&[last], dtype, (0.5, 1.5));
        let n = x.layer_norm([last], Some(&w), None, 1e-5)?;
        let g = y.layer_norm_backward(&x, [last], Some(&w), &n.mean, &n.rstd)?;
        keep("layer_norm", &n.out);
        keep("layer_norm mean", &n.mean);
        keep("layer_norm rstd", &n.rstd);
        keep("layer_norm dx", &g.input);
        keep("layer_norm dw", &g.weight.unwrap());
        keep("layer_norm db", &g.bias.unwrap());
        if shape.len() > 1 {
            let w = t.tensor(&shape[1..2], dtype, (0.5, 1.5));
            let n = x.batch_norm(Some(&w), None, 1e-5)?;
            keep("batch_norm", &n.out);
            let saved = BatchNormSaved {
                input: &x,
                mean: &n.mean,
                invstd: &n.invstd,
                weight: Some(&w),
                bias: None,
                activation: BatchNormMask::Linear,
            };
            let g = Tensor::batch_norm_backward(&y, &saved)?;
            keep("batch_norm dx", &g.input);
            keep("batch_norm dw", &g.weight);
        }
        if let [rows, classes] = *shape {
            let targets: Vec<i64> = (0..rows).map(|_| t.below(classes) as i64).collect();
            let targets = Tensor::from_slice(&targets, [rows], cpu)?;
            let config = CrossEntropyConfig {
                label_smoothing: 0.1,
                ..Default::default()
            };
            let o = x.cross_entropy(&targets, &config)?;
            keep("cross_entropy", &o.loss);
            keep(
                "cross_entropy dx",
                &o.loss
                    .cross_entropy_backward(&x, &targets, &o.saved, &o.total_weight, &config)?,
            );
            keep(
                "embedding_backward",
                &x.embedding_backward(&targets, classes)?,
            );
            keep(
                "index_add",
                &x.index_add(0, &Tensor::from_slice(&vec![3i64; rows], [rows], cpu)?, &y)?,
            );
        }
        if shape.len() == 4 {
            let config = Pool2dConfig::new([3, 3]);
            let (m, places) = x.max_pool2d(&config)?;
            keep("max_pool2d", &m);
            keep(
                "max_pool2d_backward",
                &Tensor::max_pool2d_backward(&m, &places, x.shape())?,
            );
            keep("avg_pool2d", &x.avg_pool2d(&config)?);
        }
        let (mut a, mut m) = ([p.contiguous()?], [None]);
        let (mut b, mut s) = ([p.contiguous()?], [None]);
        let grad = [y.contiguous()?];
        let sgd = SgdConfig {
            momentum: 0.9,
            ..SgdConfig::default()
        };
        for _ in 0..3 {
            sgd_step(&mut a, &grad, &mut m, &sgd)?;
            adam_step(&mut b, &grad, &mut s, &AdamConfig::adamw())?;
        }
        keep("sgd_step", &a[0]);
        keep("adam_step", &b[0]);
        scale(&mut a, 0.37)?;
        keep("scale", &a[0]);
        keep("global_norm", &global_norm(&grad)?);
    }
    Ok(out)
}

#[test]
fn levels_change_no_bit() {
    // SAFETY: the only test of this program is the only one that computes.
    let at = |level, dtype| unsafe {
        limit(level, false);
        (simd_level() == level).then(|| run(dtype).unwrap())
    };
    for dtype in FLOATS {
        let plain = at(SimdLevel::Baseline, dtype).unwrap();
        for level in [SimdLevel::Avx2, SimdLevel::Avx512] {
            let Some(here) = at(level, dtype) else {
                println!("SKIPPED {level:?}: this processor does not have it");
                continue;
            };
            let pairs = plain.iter().zip(&here);
            let differ: Vec<_> = pairs.filter(|(a, b)| a != b).map(|(a, _)| a.0).collect();
            assert!(differ.is_empty(), "{dtype}, {level:?}: {differ:?}");
        }
    }
}
