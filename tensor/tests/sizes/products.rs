//! Matrix products and reductions.

use crate::Case;
use crate::draw::{Draw, Want, room, want};
use crate::joining::{index, place};
use phalanx_tensor::DType;
use phalanx_tensor::ops::linear::Activation;

/// `matmul` of stacks, `linear` and its gradient.
pub fn matmul(d: &mut Draw) -> Option<Case> {
    let dtype = d.pick(&[DType::F32, DType::BF16, DType::F64]);
    let (b, m, n) = (d.number(0, 3), d.number(0, 9), d.number(0, 9));
    let (k, k2) = (d.number(0, 9), d.number(0, 9));
    let inner = if d.below(4) > 0 { k } else { k2 };
    let kind = d.below(3);
    let (left, right) = match kind {
        0 => (vec![b, m, k], vec![inner, n]),
        1 => (vec![b, m, k], vec![n, inner]),
        _ => (vec![b, m, n], vec![b, m, k]),
    };
    let ((x, xv), (y, yv)) = (d.tensor(&left, dtype)?, d.tensor(&right, dtype)?);
    let (out, terms) = match kind {
        2 => (vec![n, k], b.saturating_mul(m)),
        _ => (vec![b, m, n], k),
    };
    room(&out, dtype)?;
    let call = format!("product {kind} of {left:?} and {right:?}, {dtype}");
    let got = match kind {
        0 => x.matmul(&y),
        1 => x.linear(&y, None, Activation::None),
        _ => x.linear_weight_grad(&y),
    };
    if kind < 2 && inner != k {
        let want = Want::Error;
        return Some(Case { call, want, got });
    }
    let value = |i: usize| {
        let (row, col) = match kind {
            2 => (i / k, i % k),
            _ => (i / n, i % n),
        };
        let term = |t: usize| match kind {
            0 => xv[row * k + t] * yv[t * n + col],
            1 => xv[row * k + t] * yv[col * k + t],
            _ => xv[t * n + row] * yv[t * k + col],
        };
        (0..terms).map(term).sum::<f64>()
    };
    let count = |n: u128, &d: &usize| n.saturating_mul(d as u128);
    let work = out.iter().fold(terms as u128, count);
    let values = || (0..out.iter().product()).map(value).collect();
    let want = want(&out, dtype, work, values);
    Some(Case { call, want, got })
}

/// `sum`, `max` and `sum_to_shape`.
pub fn reduced(d: &mut Draw) -> Option<Case> {
    let dtype = d.pick(&[DType::F32, DType::I64]);
    let rank = 1 + d.below(3);
    let shape = d.shape(rank, 0, 5);
    let at = d.below(rank);
    let (t, values) = d.tensor(&shape, dtype)?;
    let mut kept = shape.clone();
    kept[at] = 1;
    room(&kept, dtype)?;
    let kind = d.below(3);
    let call = format!("reduction {kind} of {shape:?} along {at}");
    let axis = at as isize;
    let empty = shape[at] == 0;
    let got = match kind {
        0 => t.sum(&[axis], true),
        1 => t.max(&[axis], true),
        _ => {
            let wild = d.number(1, 1);
            kept[at] = wild;
            room(&kept, dtype)?;
            if wild != 1 && wild != shape[at] {
                let (want, got) = (Want::Error, t.sum_to_shape(kept));
                return Some(Case { call, want, got });
            }
            t.sum_to_shape(kept.clone())
        }
    };
    let fold = || {
        let start = if kind == 1 { f64::NEG_INFINITY } else { 0.0 };
        let mut out = vec![start; kept.iter().product()];
        for (i, v) in values.iter().enumerate() {
            let mut place = place(i, &shape);
            place[at] = place[at].min(kept[at] - 1);
            let to = &mut out[index(&place, &kept)];
            *to = if kind == 1 { to.max(*v) } else { *to + v };
        }
        out
    };
    let nothing = kind == 1 && empty && kept.iter().all(|&d| d > 0);
    let want = match nothing {
        true => Want::Error,
        false => want(&kept, dtype, 0, fold),
    };
    Some(Case { call, want, got })
}
