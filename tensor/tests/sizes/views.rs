//! Chains of views against lists of indices.

use crate::Case;
use crate::draw::{Draw, Want, bytes, countable};
use phalanx_tensor::{DType, Tensor};

/// A view by hand: for each axis the offsets of its indices.
struct View {
    dims: Vec<usize>,
    axes: Vec<Vec<usize>>,
}

impl View {
    fn values(&self, of: &[f64]) -> Vec<f64> {
        let mut at = vec![0];
        for axis in &self.axes {
            at = (at.iter())
                .flat_map(|&a| axis.iter().map(move |&b| a + b))
                .collect();
        }
        at.into_iter().map(|at| of[at]).collect()
    }
}

/// Indices that a list can hold; a longer axis ends the chain.
const LIST: usize = 1 << 10;

pub fn view(d: &mut Draw) -> Option<Case> {
    let dtype = DType::I64;
    let rank = d.below(5);
    let shape = d.shape(rank, 0, 4);
    let (mut t, values) = d.tensor(&shape, dtype)?;
    if shape.iter().any(|&n| n > LIST) {
        return empty_view(d, &t, &shape);
    }
    let mut call = format!("views of {shape:?}");
    let weight = |i: usize| shape[i + 1..].iter().product::<usize>();
    let offsets = |i: usize| (0..shape[i]).map(|k| k * weight(i)).collect();
    let mut view = View {
        dims: shape.clone(),
        axes: (0..rank).map(offsets).collect(),
    };
    for _ in 0..d.below(5) {
        if view.dims.is_empty() {
            break;
        }
        let i = d.below(view.dims.len());
        let axis = i as isize;
        let extent = view.dims[i];
        // What is done, whether it is allowed, and the axis afterwards.
        let (name, got, kept): (_, _, Option<Vec<usize>>) = match d.below(6) {
            0 => {
                let (start, len) = (d.number(0, extent), d.number(0, extent));
                let fits = start as u128 + len as u128 <= extent as u128;
                let kept = fits.then(|| view.axes[i][start..start + len].to_vec());
                (
                    format!("narrow({i}, {start}, {len})"),
                    t.narrow(axis, start, len),
                    kept,
                )
            }
            1 => {
                let (start, end, step) = (d.number(0, extent), d.number(0, extent), d.number(1, 3));
                let fits = start <= end && end <= extent && step > 0;
                let kept = fits.then(|| {
                    view.axes[i][start..end]
                        .iter()
                        .copied()
                        .step_by(step)
                        .collect()
                });
                let name = format!("slice({i}, {start}..{end}, {step})");
                (name, t.slice(axis, start..end, step), kept)
            }
            2 => {
                let index = d.number(0, extent);
                let kept = view.axes[i].get(index).map(|&at| vec![at]);
                let got = t.select(axis, index).and_then(|t| t.unsqueeze(axis));
                (format!("select({i}, {index})"), got, kept)
            }
            3 => {
                let mut wanted = view.dims.clone();
                wanted[i] = d.number(0, 4);
                let fits = (extent == 1 || wanted[i] == extent) && countable(&wanted, dtype);
                let name = format!("broadcast_to({wanted:?})");
                let got = t.broadcast_to(wanted.clone());
                if fits && wanted[i] > LIST {
                    // Elements without memory: all of them the same.
                    let dims = got.as_ref().map(|t| t.dims().to_vec());
                    assert_eq!(dims.as_ref().ok(), Some(&wanted), "{call}, {name}: {got:?}");
                    let got = got.and_then(|t| t.narrow(axis, wanted[i] - 1, 1));
                    (name, got, Some(view.axes[i].clone()))
                } else {
                    let kept = fits.then(|| match extent {
                        1 => vec![view.axes[i][0]; wanted[i]],
                        _ => view.axes[i].clone(),
                    });
                    (name, got, kept)
                }
            }
            4 => {
                let j = d.below(view.dims.len());
                let got = t.transpose(axis, j as isize);
                view.dims.swap(i, j);
                view.axes.swap(i, j);
                (
                    format!("transpose({i}, {j})"),
                    got,
                    Some(view.axes[i].clone()),
                )
            }
            _ => {
                let got = t.unsqueeze(axis).and_then(|t| t.unsqueeze(-1));
                let got = got
                    .and_then(|t| t.squeeze(axis))
                    .and_then(|t| t.squeeze(-1));
                (
                    format!("there and back({i})"),
                    got,
                    Some(view.axes[i].clone()),
                )
            }
        };
        call = format!("{call}, {name}");
        let Some(kept) = kept else {
            let want = Want::Error;
            return Some(Case { call, want, got });
        };
        view.dims[i] = kept.len();
        view.axes[i] = kept;
        match got {
            Ok(next) => t = next,
            Err(e) => {
                let (want, got) = (Want::Values(view.dims, Vec::new()), Err(e));
                return Some(Case { call, want, got });
            }
        }
        assert_eq!(t.dims(), view.dims, "{call}");
    }
    if view.dims.iter().product::<usize>() > LIST {
        return None;
    }
    let all = view.values(&values);
    let new_rank = d.below(4);
    let mut shape = d.shape(new_rank, 0, 4);
    if d.coin() {
        shape = vec![all.len()];
    } else if let [first, ..] = &mut shape[..]
        && d.coin()
        && all.is_empty()
    {
        *first = 0;
    }
    call = format!("{call}, reshape({shape:?})");
    d.bytes += 8 * all.len();
    let same = bytes(&shape, dtype) == 8 * all.len() as u128 && countable(&shape, dtype);
    let want = if same {
        Want::Values(shape.clone(), all)
    } else {
        Want::Error
    };
    let got = t.reshape(shape);
    Some(Case { call, want, got })
}

/// An empty tensor with long axes: nothing to compare but shapes.
fn empty_view(d: &mut Draw, t: &Tensor, shape: &[usize]) -> Option<Case> {
    let dtype = DType::I64;
    let (i, start, len) = (d.below(shape.len()), d.any(), d.any());
    let axis = i as isize;
    let mut dims = shape.to_vec();
    let (name, got, fits) = match d.below(4) {
        0 => {
            dims[i] = len;
            let fits = start as u128 + len as u128 <= shape[i] as u128;
            (
                format!("narrow({i}, {start}, {len})"),
                t.narrow(axis, start, len),
                fits,
            )
        }
        1 => {
            dims[i] = shape[i].div_ceil(start.max(1));
            let (all, name) = (0..shape[i], format!("slice({i}, .., {start})"));
            (name, t.slice(axis, all, start), start > 0)
        }
        2 => {
            dims = vec![start, len, d.below(2)];
            let fits = bytes(&dims, dtype) == 0 && countable(&dims, dtype);
            (format!("reshape({dims:?})"), t.reshape(dims.clone()), fits)
        }
        _ => {
            dims.insert(0, start);
            let fits = countable(&dims, dtype);
            (
                format!("broadcast_to({dims:?})"),
                t.broadcast_to(dims.clone()),
                fits,
            )
        }
    };
    // What is left may have elements only if there were some.
    let want = match fits {
        false => Want::Error,
        true if bytes(&dims, dtype) == 0 => Want::Values(dims, Vec::new()),
        true => Want::Anything,
    };
    let call = format!("{name} of an empty {shape:?}");
    Some(Case { call, want, got })
}
