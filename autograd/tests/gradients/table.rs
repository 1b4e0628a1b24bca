//! The operations, with random arguments for each.

use crate::arguments::{any, axes, axis, distinct, extents, indices, some_axes};
use crate::row::{Row, case, loss, row};
use crate::util::{device, tensor_of};
use phalanx_autograd::Var;
use phalanx_autograd::nn::{Activation, Conv2dConfig, CrossEntropyConfig, Pool2dConfig, Reduction};
use phalanx_tensor::{DType, Device, Rng, Tensor, unary_table};

macro_rules! unary {
    ($name:ident($($arg:expr),*) in $range:expr) => {
        row(&[stringify!($name)], |rng| {
            case(vec![any(rng, $range)], |_, x| x[0].$name($($arg),*))
        })
    };
}

macro_rules! binary {
    ($name:ident, $range:expr) => {
        row(&[stringify!($name)], |rng| {
            let shape = rng.shape(4, 4);
            let (a, b) = (rng.shape_below(&shape), rng.shape_below(&shape));
            let a = rng.tensor(&a, DType::F64, $range);
            let b = rng.tensor(&b, DType::F64, $range);
            case(vec![a, b], |_, x| x[0].$name(&x[1]))
        })
    };
}

macro_rules! reduction {
    ($name:ident($($arg:expr),*)) => {
        row(&[stringify!($name)], |rng| {
            let x = axes(rng, 1, 4);
            let (over, keep) = (some_axes(rng, x.rank()), rng.below(2) == 0);
            case(vec![x], move |_, x| x[0].$name(&over, $($arg,)* keep))
        })
    };
}

/// The rows of the tensor's table, with any of the values of the argument.
macro_rules! table {
    (|$vx:ident, $vout:ident, $vg:ident| $({
        $Name:ident $name:ident ($($arg:ident: $ty:ty)?) [$values:expr] [$range:expr] $($rest:tt)*
    })*) => {
        const UNARY: &[Row] = &[$(
            row(&[stringify!($name)], |rng| {
                let values = $values;
                let ($($arg,)?) = values[rng.below(values.len())];
                case(vec![any(rng, $range)], move |_, x| x[0].$name($($arg)?))
            }),
        )*];
    };
}

unary_table!(table);

macro_rules! activations {
    (|$vx:ident, $vout:ident, $vg:ident| $({
        $Name:ident $name:ident ($($arg:ident: $ty:ty)?) [$values:expr] $($rest:tt)*
    })*) => {{
        let mut all = vec![Activation::None];
        $(all.extend($values.map(|($($arg,)?)| Activation::$Name $(($arg))?));)*
        all
    }};
}

/// Every row.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    UNARY.iter().chain(ROWS)
}

const ROWS: &[Row] = &[
    // ---- numbers as further arguments
    unary!(add_scalar(0.75) in (-2.0, 2.0)),
    unary!(sub_scalar(0.75) in (-2.0, 2.0)),
    unary!(mul_scalar(-1.5) in (-2.0, 2.0)),
    unary!(div_scalar(-1.5) in (-2.0, 2.0)),
    unary!(pow_scalar(2.5) in (0.5, 2.0)),
    unary!(pow_scalar(3.0) in (-2.0, 2.0)),
    unary!(pow_scalar(0.0) in (-2.0, 2.0)),
    unary!(maximum_scalar(0.25) in (-2.0, 2.0)),
    unary!(minimum_scalar(0.25) in (-2.0, 2.0)),
    unary!(clamp(-0.5, 0.75) in (-2.0, 2.0)),
    // ---- binary
    binary!(add, (-2.0, 2.0)),
    binary!(sub, (-2.0, 2.0)),
    binary!(mul, (-2.0, 2.0)),
    binary!(div, (0.5, 2.0)),
    binary!(maximum, (-2.0, 2.0)),
    binary!(minimum, (-2.0, 2.0)),
    binary!(pow, (0.5, 2.0)),
    row(&["where_cond"], |rng| {
        let shape = rng.shape(4, 4);
        let [a, b, c] = [0; 3].map(|_| rng.shape_below(&shape));
        let mask: Vec<f64> = (0..c.iter().product())
            .map(|_| rng.below(2) as f64)
            .collect();
        let cond = tensor_of(&mask, &c, DType::U8);
        let a = rng.tensor(&a, DType::F64, (-2.0, 2.0));
        let b = rng.tensor(&b, DType::F64, (-2.0, 2.0));
        case(vec![a, b], move |_, x| Var::where_cond(&cond, &x[0], &x[1]))
    }),
    // ---- reductions
    reduction!(sum()),
    reduction!(mean()),
    row(&["sum_all"], |rng| {
        case(vec![any(rng, (-2.0, 2.0))], |_, x| x[0].sum_all())
    }),
    row(&["mean_all"], |rng| {
        case(vec![axes(rng, 0, 4)], |_, x| x[0].mean_all())
    }),
    row(&["max"], |rng| {
        let shape = extents(rng, 1, 4);
        let (over, keep) = (some_axes(rng, shape.len()), rng.below(2) == 0);
        case(vec![distinct(rng, &shape)], move |_, x| {
            x[0].max(&over, keep)
        })
    }),
    row(&["min"], |rng| {
        let shape = extents(rng, 1, 4);
        let (over, keep) = (some_axes(rng, shape.len()), rng.below(2) == 0);
        case(vec![distinct(rng, &shape)], move |_, x| {
            x[0].min(&over, keep)
        })
    }),
    row(&["var"], |rng| {
        let shape: Vec<usize> = (0..1 + rng.below(3)).map(|_| 2 + rng.below(3)).collect();
        let x = rng.tensor(&shape, DType::F64, (-2.0, 2.0));
        let (over, keep) = (vec![axis(rng, shape.len())], rng.below(2) == 0);
        let correction = rng.below(2);
        case(vec![x], move |_, x| x[0].var(&over, correction, keep))
    }),
    // ---- shapes
    row(&["reshape"], |rng| {
        let x = any(rng, (-2.0, 2.0));
        let n = x.numel();
        case(vec![x], move |_, x| x[0].reshape([1, n, 1]))
    }),
    row(&["flatten"], |rng| {
        let x = axes(rng, 1, 4);
        let first = rng.below(x.rank());
        case(vec![x], move |_, x| x[0].flatten(first as isize, -1))
    }),
    row(&["squeeze", "unsqueeze"], |rng| {
        let x = any(rng, (-2.0, 2.0));
        let at = axis(rng, x.rank() + 1);
        case(vec![x], move |_, x| {
            x[0].unsqueeze(at)?.square()?.squeeze(at)
        })
    }),
    row(&["transpose"], |rng| {
        let x = axes(rng, 1, 4);
        let (a, b) = (axis(rng, x.rank()), axis(rng, x.rank()));
        case(vec![x], move |_, x| x[0].transpose(a, b))
    }),
    row(&["t"], |rng| case(vec![axes(rng, 2, 4)], |_, x| x[0].t())),
    row(&["permute"], |rng| {
        let x = axes(rng, 1, 4);
        let rank = x.rank() as isize;
        let shift = rng.below(x.rank()) as isize;
        let order: Vec<isize> = (0..rank)
            .map(|i| (i + shift) % rank - rank * (i % 2))
            .collect();
        case(vec![x], move |_, x| x[0].permute(&order))
    }),
    row(&["narrow"], |rng| {
        let x = axes(rng, 1, 4);
        let at = axis(rng, x.rank());
        let extent = x.dims()[at.rem_euclid(x.rank() as isize) as usize];
        let start = rng.below(extent + 1);
        let len = rng.below(extent - start + 1);
        case(vec![x], move |_, x| x[0].narrow(at, start, len))
    }),
    row(&["select"], |rng| {
        let x = axes(rng, 1, 4);
        let at = axis(rng, x.rank());
        let index = rng.below(x.dims()[at.rem_euclid(x.rank() as isize) as usize]);
        case(vec![x], move |_, x| x[0].select(at, index))
    }),
    row(&["split"], |rng| {
        let x = axes(rng, 1, 4);
        let at = axis(rng, x.rank());
        let extent = x.dims()[at.rem_euclid(x.rank() as isize) as usize];
        let first = rng.below(extent + 1);
        case(vec![x], move |tape, x| {
            // The first piece is used twice, the second once.
            let pieces = x[0].split(&[first, extent - first], at)?;
            Var::cat(tape, &[&pieces[1], &pieces[0], &pieces[0]], at)
        })
    }),
    row(&["chunk"], |rng| {
        let x = axes(rng, 1, 4);
        let (at, count) = (axis(rng, x.rank()), 1 + rng.below(3));
        case(vec![x], move |tape, x| {
            let pieces = x[0].chunk(count, at)?;
            Var::cat(tape, &pieces.iter().rev().collect::<Vec<_>>(), at)
        })
    }),
    row(&["cat"], |rng| {
        let shape = extents(rng, 1, 4);
        let at = axis(rng, shape.len());
        let parts = (0..1 + rng.below(3)).map(|_| {
            let mut shape = shape.clone();
            let rank = shape.len() as isize;
            shape[at.rem_euclid(rank) as usize] = rng.below(4);
            rng.tensor(&shape, DType::F64, (-2.0, 2.0))
        });
        let parts = parts.collect();
        case(parts, move |tape, x| {
            Var::cat(tape, &x.iter().collect::<Vec<_>>(), at)
        })
    }),
    row(&["stack"], |rng| {
        let shape = extents(rng, 0, 3);
        let at = axis(rng, shape.len() + 1);
        let parts = (0..1 + rng.below(3)).map(|_| rng.tensor(&shape, DType::F64, (-2.0, 2.0)));
        let parts = parts.collect();
        case(parts, move |tape, x| {
            Var::stack(tape, &x.iter().collect::<Vec<_>>(), at)
        })
    }),
    row(&["pad"], |rng| {
        let x = any(rng, (-2.0, 2.0));
        let widths: Vec<_> = (0..x.rank())
            .map(|_| (rng.below(3), rng.below(3)))
            .collect();
        case(vec![x], move |_, x| x[0].pad(&widths, 0.5))
    }),
    row(&["broadcast_to"], |rng| {
        let shape = rng.shape(4, 4);
        let from = rng.shape_below(&shape);
        let x = rng.tensor(&from, DType::F64, (-2.0, 2.0));
        case(vec![x], move |_, x| x[0].broadcast_to(shape.clone()))
    }),
    row(&["contiguous"], |rng| {
        case(vec![any(rng, (-2.0, 2.0))], |_, x| x[0].contiguous())
    }),
    row(&["to_device"], |rng| {
        let x = any(rng, (-2.0, 2.0));
        case(vec![x], |_, x| {
            x[0].to_device(Device::cpu(9))?
                .square()?
                .to_device(device())
        })
    }),
    Row {
        f64_only: true,
        ..row(&["cast"], |rng| {
            // The rounding of a narrower type has no slope: `main.rs` tests that it is passed over.
            case(vec![any(rng, (-2.0, 2.0))], |_, x| x[0].cast(DType::F64))
        })
    },
    // ---- products
    row(&["matmul"], |rng| {
        let [m, k, n] = [0; 3].map(|_| 1 + rng.below(4));
        let lead = rng.shape(2, 3);
        let (mut a, mut b) = (rng.shape_below(&lead), rng.shape_below(&lead));
        a.extend([m, k]);
        b.extend([k, n]);
        match rng.below(6) {
            0 => a = vec![k],
            1 => b = vec![k],
            2 => (a, b) = (vec![k], vec![k]),
            _ => {}
        }
        let a = rng.tensor(&a, DType::F64, (-2.0, 2.0));
        let b = rng.tensor(&b, DType::F64, (-2.0, 2.0));
        case(vec![a, b], |_, x| x[0].matmul(&x[1]))
    }),
    row(&["linear"], |rng| {
        let mut shape = rng.shape(2, 4);
        let (inputs, outputs) = (1 + rng.below(5), 1 + rng.below(5));
        shape.push(inputs);
        let x = rng.tensor(&shape, DType::F64, (-1.0, 1.0));
        let w = rng.tensor(&[outputs, inputs], DType::F64, (-1.0, 1.0));
        let mut all = vec![x, w];
        if rng.below(3) > 0 {
            all.push(rng.tensor(&[outputs], DType::F64, (-1.0, 1.0)));
        }
        let activations = unary_table!(activations activations);
        let activation = activations[rng.below(activations.len())];
        case(all, move |_, x| x[0].linear(&x[1], x.get(2), activation))
    }),
    row(&["conv2d"], |rng| {
        let config = Conv2dConfig {
            stride: [1 + rng.below(2), 1 + rng.below(2)],
            padding: [rng.below(3), rng.below(2)],
            dilation: [1 + rng.below(2), 1],
            groups: 1 + rng.below(2),
        };
        let [ci, co] = [0; 2].map(|_| config.groups * (1 + rng.below(2)));
        let [kh, kw] = [0; 2].map(|_| 1 + rng.below(3));
        let spatial = [5 + rng.below(2), 4 + rng.below(3)];
        let x = [1 + rng.below(2), ci, spatial[0], spatial[1]];
        let x = rng.tensor(&x, DType::F64, (-1.0, 1.0));
        let w = rng.tensor(&[co, ci / config.groups, kh, kw], DType::F64, (-1.0, 1.0));
        let mut all = vec![x, w];
        if rng.below(2) == 0 {
            all.push(rng.tensor(&[co], DType::F64, (-1.0, 1.0)));
        }
        case(all, move |_, x| x[0].conv2d(&x[1], x.get(2), &config))
    }),
    // ---- pooling
    row(&["max_pool2d"], |rng| {
        let config = Pool2dConfig {
            stride: [1 + rng.below(2), 1 + rng.below(2)],
            padding: [rng.below(2), 0],
            ..Pool2dConfig::new([2, 1 + rng.below(3)])
        };
        let shape = [1 + rng.below(2), 1 + rng.below(2), 4, 4];
        case(vec![distinct(rng, &shape)], move |_, x| {
            x[0].max_pool2d(&config)
        })
    }),
    row(&["avg_pool2d"], |rng| {
        let config = Pool2dConfig {
            stride: [1 + rng.below(2), 1 + rng.below(2)],
            padding: [rng.below(2), 0],
            count_include_pad: rng.below(2) == 0,
            ..Pool2dConfig::new([2, 1 + rng.below(3)])
        };
        let shape = [1 + rng.below(2), 1 + rng.below(2), 4, 5];
        let x = rng.tensor(&shape, DType::F64, (-2.0, 2.0));
        case(vec![x], move |_, x| x[0].avg_pool2d(&config))
    }),
    row(&["adaptive_avg_pool2d"], |rng| {
        let shape = [1 + rng.below(2), 1 + rng.below(2), 5, 4];
        let x = rng.tensor(&shape, DType::F64, (-2.0, 2.0));
        let out = [1 + rng.below(5), 1 + rng.below(4)];
        case(vec![x], move |_, x| x[0].adaptive_avg_pool2d(out))
    }),
    // ---- normalisation
    Row {
        roundings: 64.0,
        ..row(&["batch_norm"], |rng| {
            let c = 1 + rng.below(3);
            let mut shape = vec![3 + rng.below(2), c];
            shape.extend((0..rng.below(3)).map(|_| 2 + rng.below(2)));
            // Not stretched: a channel of equal elements has no slope.
            let mut inputs = vec![distinct(rng, &shape)];
            let (weight, bias, residual) = (rng.below(3) > 0, rng.below(3) > 0, rng.below(2) == 0);
            let relu = rng.below(2) == 0;
            for present in [weight, bias] {
                if present {
                    inputs.push(rng.tensor(&[c], DType::F64, (0.5, 1.5)));
                }
            }
            if residual {
                inputs.push(rng.tensor(&shape, DType::F64, (-1.0, 1.0)));
            }
            case(inputs, move |_, x| {
                let mut rest = x[1..].iter();
                let mut next = |present: bool| if present { rest.next() } else { None };
                let (w, b, r) = (next(weight), next(bias), next(residual));
                Ok(x[0].batch_norm(w, b, 1e-3, r, relu)?.out)
            })
        })
    },
    row(&["batch_norm_inference"], |rng| {
        let c = 1 + rng.below(3);
        let mut shape = vec![1 + rng.below(3), c];
        shape.extend((0..rng.below(3)).map(|_| 1 + rng.below(3)));
        let mut inputs = vec![distinct(rng, &shape)];
        let present = [0; 3].map(|_| rng.below(3) > 0);
        let like = [&[c][..], &[c], &shape];
        for (shape, _) in like.into_iter().zip(present).filter(|(_, p)| *p) {
            inputs.push(rng.tensor(shape, DType::F64, (0.5, 1.5)));
        }
        let relu = rng.below(2) == 0;
        let mean = rng.tensor(&[c], DType::F64, (-1.0, 1.0));
        let var = rng.tensor(&[c], DType::F64, (0.5, 2.0));
        case(inputs, move |_, x| {
            let wide = match x[0].dtype() {
                DType::F64 => DType::F64,
                _ => DType::F32,
            };
            let (mean, var) = (mean.cast(wide)?, var.cast(wide)?);
            let mut rest = x[1..].iter();
            let [w, b, r] = present.map(|present| if present { rest.next() } else { None });
            x[0].batch_norm_inference(&mean, &var, w, b, 1e-3, r, relu)
        })
    }),
    Row {
        roundings: 64.0,
        ..row(&["layer_norm"], |rng| {
            let shape: Vec<usize> = (0..1 + rng.below(3)).map(|_| 2 + rng.below(3)).collect();
            let normalized = shape[shape.len() - 1 - rng.below(shape.len().min(2))..].to_vec();
            let mut inputs = vec![distinct(rng, &shape)];
            let affine = rng.below(3);
            for _ in 0..affine {
                inputs.push(rng.tensor(&normalized, DType::F64, (0.5, 1.5)));
            }
            case(inputs, move |_, x| {
                x[0].layer_norm(normalized.clone(), x.get(1), x.get(2), 1e-3)
            })
        })
    },
    // ---- softmax
    row(&["softmax"], |rng| {
        let x = axes(rng, 1, 3);
        let at = axis(rng, x.rank());
        case(vec![x], move |_, x| x[0].softmax(at))
    }),
    row(&["log_softmax"], |rng| {
        let x = axes(rng, 1, 3);
        let at = axis(rng, x.rank());
        case(vec![x], move |_, x| x[0].log_softmax(at))
    }),
    loss(&["cross_entropy"], |rng| {
        let (batch, classes) = (2 + rng.below(4), 2 + rng.below(4));
        let x = rng.tensor(&[batch, classes], DType::F64, (-2.0, 2.0));
        let targets = indices(rng, &[batch - 1], classes);
        let none = indices(rng, &[1], 1).add_scalar(-100.0).unwrap(); // does not count
        let targets = Tensor::cat(&[&none, &targets], 0).unwrap();
        let config = CrossEntropyConfig {
            reduction: [Reduction::Mean, Reduction::Sum, Reduction::None][rng.below(3)],
            label_smoothing: [0.0, 0.25][rng.below(2)],
            ..CrossEntropyConfig::default()
        };
        case(vec![x], move |_, x| x[0].cross_entropy(&targets, &config))
    }),
    // ---- lookups
    row(&["embedding"], |rng| {
        let (entries, width) = (1 + rng.below(5), 1 + rng.below(4));
        let table = rng.tensor(&[entries, width], DType::F64, (-2.0, 2.0));
        let shape = rng.shape(2, 4);
        let ids = indices(rng, &shape, entries);
        case(vec![table], move |_, x| x[0].embedding(&ids))
    }),
    row(&["gather"], |rng| {
        let x = axes(rng, 1, 3);
        let at = axis(rng, x.rank());
        let i = at.rem_euclid(x.rank() as isize) as usize;
        let mut shape = x.dims().to_vec();
        shape[i] = 1 + rng.below(5);
        let ids = indices(rng, &shape, x.dims()[i]);
        case(vec![x], move |_, x| x[0].gather(at, &ids))
    }),
    row(&["scatter_add"], |rng| {
        let x = axes(rng, 1, 3);
        let at = axis(rng, x.rank());
        let i = at.rem_euclid(x.rank() as isize) as usize;
        let mut shape = x.dims().to_vec();
        shape[i] = 1 + rng.below(5);
        let ids = indices(rng, &shape, x.dims()[i]);
        let source = rng.tensor(&shape, DType::F64, (-2.0, 2.0));
        case(vec![x, source], move |_, x| {
            x[0].scatter_add(at, &ids, &x[1])
        })
    }),
    row(&["index_select"], |rng| {
        let x = axes(rng, 1, 3);
        let at = axis(rng, x.rank());
        let extent = x.dims()[at.rem_euclid(x.rank() as isize) as usize];
        let n = 1 + rng.below(5);
        let ids = indices(rng, &[n], extent);
        case(vec![x], move |_, x| x[0].index_select(at, &ids))
    }),
    // ---- random
    row(&["dropout"], |rng| {
        let seed = rng.next_u64();
        case(vec![any(rng, (-2.0, 2.0))], move |_, x| {
            x[0].dropout(0.25, &mut Rng::new(seed))
        })
    }),
];
