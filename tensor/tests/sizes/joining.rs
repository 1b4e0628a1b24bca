//! `pad`, `unpad`, `cat`, `stack`, `split` and `chunk`.

use crate::Case;
use crate::draw::{Draw, Want, room, want};
use phalanx_tensor::{DType, Tensor};

/// The place of element `i` of `shape`, axis by axis.
pub fn place(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut place = vec![0; shape.len()];
    for (p, &extent) in place.iter_mut().zip(shape).rev() {
        (*p, i) = (i % extent, i / extent);
    }
    place
}

/// The other way round.
pub fn index(place: &[usize], shape: &[usize]) -> usize {
    place.iter().zip(shape).fold(0, |i, (p, d)| i * d + p)
}

pub fn pad(d: &mut Draw) -> Option<Case> {
    let dtype = d.pick(&[DType::F32, DType::U8, DType::F64]);
    let rank = d.below(4);
    let shape = d.shape(rank, 0, 4);
    let widths: Vec<_> = (0..rank)
        .map(|_| (d.number(0, 2), d.number(0, 2)))
        .collect();
    let values = vec![
        2.0;
        shape
            .iter()
            .fold(1usize, |n, &d| n.saturating_mul(d))
            .min(1 << 20)
    ];
    let _ = d.tensor(&shape, dtype)?;
    let t = Tensor::full(shape.clone(), 2.0, dtype, d.device).unwrap();
    d.bytes += values.len() * 8;
    let all = shape.iter().zip(&widths);
    if d.coin() {
        let cut = |(&n, &(lo, hi)): (&usize, &(usize, usize))| n.checked_sub(lo)?.checked_sub(hi);
        let rest: Option<Vec<usize>> = all.map(cut).collect();
        let want = match rest {
            Some(rest) => want(&rest, dtype, 0, || vec![2.0; rest.iter().product()]),
            None => Want::Error,
        };
        let (call, got) = (
            format!("unpad of {shape:?} by {widths:?}"),
            t.unpad(&widths),
        );
        return Some(Case { call, want, got });
    }
    let grow = |(&n, &(lo, hi)): (&usize, &(usize, usize))| n.checked_add(lo)?.checked_add(hi);
    let grown: Option<Vec<usize>> = all.map(grow).collect();
    room(grown.as_deref().unwrap_or(&[]), dtype)?;
    let inside = |i: usize, grown: &[usize]| {
        let place = place(i, grown);
        let mut axes = place.iter().zip(&widths).zip(&shape);
        axes.all(|((&p, &(lo, _)), &n)| p >= lo && p - lo < n)
    };
    let want = match grown {
        Some(grown) => want(&grown, dtype, 0, || {
            let value = |i| if inside(i, &grown) { 2.0 } else { 1.0 };
            (0..grown.iter().product()).map(value).collect()
        }),
        None => Want::Error,
    };
    let (call, got) = (
        format!("pad of {shape:?} by {widths:?}"),
        t.pad(&widths, 1.0),
    );
    Some(Case { call, want, got })
}

/// `cat` and `stack`.
pub fn join(d: &mut Draw) -> Option<Case> {
    let dtype = DType::I64;
    let rank = 1 + d.below(3);
    let shape = d.shape(rank, 0, 3);
    let count = 1 + d.below(3);
    let at = d.below(rank);
    let stacks = d.coin();
    let mut tensors = Vec::new();
    for _ in 0..count {
        let mut shape = shape.clone();
        if !stacks {
            shape[at] = d.number(0, 3);
        }
        tensors.push((d.tensor(&shape, dtype)?, shape));
    }
    let list: Vec<&Tensor> = tensors.iter().map(|((t, _), _)| t).collect();
    let shapes: Vec<_> = tensors.iter().map(|(_, shape)| shape).collect();
    let (call, got, joined) = if stacks {
        let mut joined = shape.clone();
        joined.insert(at, count);
        (
            format!("stack of {shapes:?} along {at}"),
            Tensor::stack(&list, at as isize),
            joined,
        )
    } else {
        let extent = (shapes.iter()).try_fold(0usize, |n, shape| n.checked_add(shape[at]));
        let call = format!("cat of {shapes:?} along {at}");
        let got = Tensor::cat(&list, at as isize);
        let Some(extent) = extent else {
            let want = Want::Error;
            return Some(Case { call, want, got });
        };
        let mut joined = shape.clone();
        joined[at] = extent;
        (call, got, joined)
    };
    let values = || {
        let value = |i| {
            let mut place = place(i, &joined);
            if stacks {
                let t = place.remove(at);
                let ((_, values), shape) = &tensors[t];
                return values[index(&place, shape)];
            }
            let mut all = tensors.iter();
            loop {
                let ((_, values), shape) = all.next().expect("an index within the sum");
                if place[at] < shape[at] {
                    return values[index(&place, shape)];
                }
                place[at] -= shape[at];
            }
        };
        (0..joined.iter().product()).map(value).collect()
    };
    let want = want(&joined, dtype, 0, values);
    Some(Case { call, want, got })
}

/// `split` and `chunk`: the last piece.
pub fn cut(d: &mut Draw) -> Option<Case> {
    let dtype = DType::I64;
    let extent = d.number(0, 7);
    let (t, values) = d.tensor(&[extent], dtype)?;
    if d.coin() {
        let sizes: Vec<usize> = (0..3).map(|_| d.number(0, 3)).collect();
        let sum = sizes.iter().map(|&n| n as u128).sum::<u128>();
        let got = t.split(&sizes, 0).map(|pieces| pieces[2].clone());
        let call = format!("split of {extent} into {sizes:?}");
        let want = match sum == extent as u128 {
            true => want(&[sizes[2]], dtype, 0, || {
                values[extent - sizes[2]..].to_vec()
            }),
            false => Want::Error,
        };
        return Some(Case { call, want, got });
    }
    let count = d.number(0, 9);
    let call = format!("chunk of {extent} into {count}");
    let got = t
        .chunk(count, 0)
        .map(|pieces| pieces[pieces.len() - 1].clone());
    let want = if count == 0 || extent == 0 && count > 1 << 16 {
        Want::Error
    } else if extent == 0 {
        Want::Values(vec![0], Vec::new())
    } else {
        let size = extent.div_ceil(count);
        let start = (extent - 1) / size * size;
        Want::Values(vec![extent - start], values[start..].to_vec())
    };
    Some(Case { call, want, got })
}
