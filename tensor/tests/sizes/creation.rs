//! Tensors that are made from a shape or from a number, and operations by index.

use crate::Case;
use crate::draw::{Draw, Want, bytes, countable, numbers, room, want};
use crate::joining::{index, place};
use phalanx_tensor::{DType, Rng, Tensor, bf16, f16};

const TYPES: [DType; 6] = [
    DType::F32,
    DType::F64,
    DType::BF16,
    DType::F16,
    DType::I64,
    DType::U8,
];

/// By shape: `zeros`, `full`, `ones`, `rand`, `randint`, `bernoulli`, `from_slice`.
pub fn filled(d: &mut Draw) -> Option<Case> {
    let (dtype, rank) = (d.pick(&TYPES), d.below(5));
    let (shape, device) = (d.shape(rank, 0, 4), d.device);
    let mut rng = Rng::new(1);
    let to = shape.clone();
    // The widest type in which it may be made.
    room(&shape, DType::I64)?;
    let (name, got, made, value) = match d.below(7) {
        0 => ("zeros", Tensor::zeros(to, dtype, device), dtype, Some(0.0)),
        1 => ("ones", Tensor::ones(to, dtype, device), dtype, Some(1.0)),
        2 => (
            "full",
            Tensor::full(to, 3.0, dtype, device),
            dtype,
            Some(3.0),
        ),
        3 if dtype.is_float() => (
            "rand",
            Tensor::rand(to, dtype, device, &mut rng),
            dtype,
            None,
        ),
        4 => {
            let got = Tensor::randint(7, 8, to, device, &mut rng);
            ("randint", got, DType::I64, Some(7.0))
        }
        5 => {
            let got = Tensor::bernoulli(1.0, to, dtype, device, &mut rng);
            ("bernoulli", got, dtype, Some(1.0))
        }
        _ => {
            let data = vec![4u8; d.below(9)];
            let got = Tensor::from_slice(&data, to, device);
            let fits = bytes(&shape, DType::U8) == data.len() as u128;
            let want = match fits && countable(&shape, DType::U8) {
                true => Want::Values(shape.clone(), vec![4.0; data.len()]),
                false => Want::Error,
            };
            let call = format!("from_slice of {} to {shape:?}", data.len());
            return Some(Case { call, want, got });
        }
    };
    let call = format!("{name} of {shape:?}, {dtype}");
    let values = || match value {
        Some(value) => vec![value; shape.iter().product()],
        None => numbers(got.as_ref().unwrap()).unwrap(),
    };
    let want = want(&shape, made, 0, values);
    Some(Case { call, want, got })
}

/// By a number: `arange`, `randperm`, the table of `embedding_backward`.
pub fn counted(d: &mut Draw) -> Option<Case> {
    let (dtype, len) = (d.pick(&TYPES), d.number(0, 100));
    let kind = d.below(3);
    let width = d.number(0, 3);
    match kind {
        2 => room(&[len, width], DType::F32)?,
        1 => room(&[len], DType::I64)?,
        _ => room(&[len], dtype)?,
    }
    let (call, want, got) = match kind {
        0 => {
            let got = Tensor::arange(len, dtype, d.device);
            // As a float type rounds it; an integer type must hold it.
            let value = |i: usize| match dtype {
                DType::BF16 => bf16::from_f64(i as f64).to_f64(),
                DType::F16 => f16::from_f64(i as f64).to_f64(),
                _ => i as f64,
            };
            let want = match dtype == DType::U8 && len > 256 {
                true => Want::Error,
                false => want(&[len], dtype, 0, || (0..len).map(value).collect()),
            };
            (format!("arange({len}), {dtype}"), want, got)
        }
        1 => {
            let got = Tensor::randperm(len, d.device, &mut Rng::new(3));
            let values = || {
                let numbers = numbers(got.as_ref().unwrap()).unwrap();
                let mut sorted = numbers.clone();
                sorted.sort_by(f64::total_cmp);
                assert!(
                    (sorted.iter().enumerate()).all(|(i, &v)| v == i as f64),
                    "{len}"
                );
                numbers
            };
            let want = want(&[len], DType::I64, 0, values);
            (format!("randperm({len})"), want, got)
        }
        _ => {
            let ids = vec![d.number(0, 4) as i64, 1];
            let (grad, values) = d.tensor(&[2, width], DType::F32)?;
            let at = Tensor::from_slice(&ids, [2], d.device).unwrap();
            let got = grad.embedding_backward(&at, len);
            let inside = ids.iter().all(|&i| (0..len as i128).contains(&(i as i128)));
            let sums = || {
                let mut sums = vec![0.0; len * width];
                for (k, v) in values.iter().enumerate() {
                    sums[ids[k / width] as usize * width + k % width] += v;
                }
                sums
            };
            let want = match inside {
                true => want(&[len, width], DType::F32, 0, sums),
                false => Want::Error,
            };
            let call = format!("embedding_backward to {len} x {width} at {ids:?}");
            (call, want, got)
        }
    };
    Some(Case { call, want, got })
}

/// `index_select`, `gather`, `scatter_add`.
pub fn indexed(d: &mut Draw) -> Option<Case> {
    let dtype = DType::F32;
    let rank = 1 + d.below(3);
    let shape = d.shape(rank, 0, 4);
    let at = d.below(rank);
    let (t, values) = d.tensor(&shape, dtype)?;
    let mut of = shape.clone();
    let kind = d.below(3);
    of[at] = d.below(5);
    let index_shape = if kind == 0 { vec![of[at]] } else { of.clone() };
    let places = index_shape.iter().fold(1usize, |n, &d| n.saturating_mul(d));
    if places > 1 << 10 {
        return None;
    }
    // Now and then one that is outside.
    let top = shape[at].clamp(1, 5);
    let ids: Vec<i64> = (0..places).map(|_| d.number(0, top - 1) as i64).collect();
    let inside = ids.iter().all(|&i| i >= 0 && (i as usize) < shape[at]);
    let indices = Tensor::from_slice(&ids, index_shape.clone(), d.device);
    let addable = countable(&index_shape, DType::I64) && countable(&of, dtype);
    room(&of, dtype)?;
    let call = format!("index operation {kind} of {shape:?} along {at} at {ids:?}");
    let (Ok(indices), true) = (indices, addable) else {
        return None;
    };
    d.bytes += 8 * places;
    let id = |place: &[usize]| match kind {
        0 => ids[place[at]] as usize,
        _ => ids[index(place, &of)] as usize,
    };
    let from = |i: usize| {
        let mut place = place(i, &of);
        place[at] = id(&place);
        index(&place, &shape)
    };
    let axis = at as isize;
    let (got, want) = match kind {
        0 | 1 => {
            let got = match kind {
                0 => t.index_select(axis, &indices),
                _ => t.gather(axis, &indices),
            };
            let values = || (0..of.iter().product()).map(|i| values[from(i)]).collect();
            let want = match inside {
                true => want(&of, dtype, 0, values),
                false => Want::Error,
            };
            (got, want)
        }
        _ => {
            let (source, added) = d.tensor(&of, dtype)?;
            let got = t.scatter_add(axis, &indices, &source);
            let sums = || {
                let mut sums = values.clone();
                (0..added.len()).for_each(|i| sums[from(i)] += added[i]);
                sums
            };
            let want = match inside {
                true => want(&shape, dtype, 0, sums),
                false => Want::Error,
            };
            (got, want)
        }
    };
    Some(Case { call, want, got })
}
