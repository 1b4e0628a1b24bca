//! [`Layout`]: how a tensor's indices map onto its storage. Pure arithmetic, no data.

use crate::error::{Error, Result};
use crate::shape::{Shape, Strides};

/// Shape, strides and offset of a view, in elements.
///
/// Invariants: the product of the extents, empty ones taken as 1, is at most `isize::MAX`; and along
/// each axis the extent (at least 1) times the stride is at most `usize::MAX`. Every constructor
/// sees to that, so nothing that is computed from a layout overflows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    shape: Shape,
    strides: Strides,
    offset: usize,
}

/// Turns an axis that may count from the end into an index.
pub(crate) fn resolve_axis(op: &'static str, axis: isize, rank: usize) -> Result<usize> {
    let resolved = if axis < 0 { axis + rank as isize } else { axis };
    if (0..rank as isize).contains(&resolved) {
        Ok(resolved as usize)
    } else {
        Err(Error::AxisOutOfRange { op, axis, rank })
    }
}

impl Layout {
    /// The row-major layout of `shape` at the start of a storage, for the operation `op`.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] where the elements cannot be counted: the product of the extents,
    /// empty ones taken as 1, exceeds `isize::MAX`.
    pub fn contiguous(op: &'static str, shape: Shape) -> Result<Layout> {
        shape.expect_countable(op)?;
        Ok(Layout {
            strides: shape.contiguous_strides(),
            shape,
            offset: 0,
        })
    }

    /// The extents.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Steps between neighbours along each axis.
    pub fn strides(&self) -> &Strides {
        &self.strides
    }

    /// Index of the first element in the storage.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        if self.shape.contains(&0) {
            return true;
        }
        let mut expected = 1;
        for (&extent, &stride) in self.shape.iter().zip(self.strides.iter()).rev() {
            if extent != 1 && stride != expected {
                return false;
            }
            expected = if extent == 1 {
                expected
            } else {
                expected * extent
            };
        }
        true
    }

    /// The same layout at the start of a storage.
    pub(crate) fn at_origin(&self) -> Layout {
        Layout {
            offset: 0,
            ..self.clone()
        }
    }

    /// Exchanges two axes.
    pub fn transpose(&self, a: isize, b: isize) -> Result<Layout> {
        let a = resolve_axis("transpose", a, self.shape.len())?;
        let b = resolve_axis("transpose", b, self.shape.len())?;
        let mut out = self.clone();
        out.shape.swap(a, b);
        out.strides.swap(a, b);
        Ok(out)
    }

    /// Reorders the axes: axis `i` of the result is axis `axes[i]` of `self`.
    pub fn permute(&self, axes: &[isize]) -> Result<Layout> {
        let rank = self.shape.len();
        let axes = axes
            .iter()
            .map(|&a| resolve_axis("permute", a, rank))
            .collect::<Result<Vec<_>>>()?;
        let mut seen = vec![false; rank];
        for &a in &axes {
            seen[a] = true;
        }
        if axes.len() != rank || seen.contains(&false) {
            return Err(Error::InvalidArgument {
                op: "permute",
                reason: format!(
                    "axes {axes:?} are no permutation of the {rank} axes of {}",
                    self.shape
                ),
            });
        }
        Ok(Layout {
            shape: axes.iter().map(|&a| self.shape[a]).collect(),
            strides: axes.iter().map(|&a| self.strides[a]).collect(),
            offset: self.offset,
        })
    }

    /// Keeps `len` indices of `axis`, from `start` on.
    pub fn narrow(&self, axis: isize, start: usize, len: usize) -> Result<Layout> {
        let axis = resolve_axis("narrow", axis, self.shape.len())?;
        let extent = self.shape[axis];
        if start.checked_add(len).is_none_or(|end| end > extent) {
            return Err(Error::InvalidArgument {
                op: "narrow",
                reason: format!(
                    "{len} from {start} on do not fit axis {axis} of shape {}",
                    self.shape
                ),
            });
        }
        let mut out = self.clone();
        out.shape[axis] = len;
        if !out.shape.contains(&0) {
            // An empty view keeps an offset inside the storage.
            out.offset += start * self.strides[axis];
        }
        Ok(out)
    }

    /// Keeps every `step`-th index of `axis`, from the first on.
    pub fn step(&self, axis: isize, step: usize) -> Result<Layout> {
        let axis = resolve_axis("step", axis, self.shape.len())?;
        if step == 0 {
            return Err(Error::InvalidArgument {
                op: "step",
                reason: "a step of 0".into(),
            });
        }
        let mut out = self.clone();
        out.shape[axis] = self.shape[axis].div_ceil(step);
        if out.shape[axis] > 1 {
            // The step is shorter than the axis: the last index is no further than it was.
            out.strides[axis] *= step;
        }
        Ok(out)
    }

    /// Stretches to `shape` by NumPy's rules; stretched axes get stride 0.
    ///
    /// So a layout can have more elements than memory, but never more than can be counted.
    pub fn broadcast_to(&self, op: &'static str, shape: &Shape) -> Result<Layout> {
        let mismatch = || Error::ShapeMismatch {
            op,
            lhs: self.shape.clone(),
            rhs: shape.clone(),
            reason: "the first does not broadcast to the second",
        };
        let lead = shape
            .len()
            .checked_sub(self.shape.len())
            .ok_or_else(mismatch)?;
        shape.expect_countable(op)?;
        let mut strides: Strides = shape.iter().map(|_| 0).collect();
        for (i, (&extent, &stride)) in self.shape.iter().zip(self.strides.iter()).enumerate() {
            match shape[lead + i] {
                wanted if wanted == extent => strides[lead + i] = stride,
                _ if extent == 1 => {}
                _ => return Err(mismatch()),
            }
        }
        Ok(Layout {
            shape: shape.clone(),
            strides,
            offset: self.offset,
        })
    }

    /// The same elements under another shape, or `None` where that needs a copy, or where the shape
    /// has another number of elements or cannot be counted.
    pub fn reshape(&self, shape: &Shape) -> Option<Layout> {
        if self.shape.numel() != shape.numel() || shape.expect_countable("reshape").is_err() {
            return None;
        }
        if self.is_contiguous() {
            return Some(Layout {
                strides: shape.contiguous_strides(),
                shape: shape.clone(),
                offset: self.offset,
            });
        }
        // Groups of old axes that are contiguous among themselves may be regrouped freely.
        let old: Vec<(usize, usize)> = self
            .shape
            .iter()
            .zip(self.strides.iter())
            .filter(|(d, _)| **d != 1)
            .map(|(&d, &s)| (d, s))
            .collect();
        let mut strides: Strides = shape.iter().map(|_| 1).collect();
        let (mut o, mut n) = (0, 0);
        while o < old.len() {
            let (o0, n0) = (o, n);
            let mut have = old[o].0;
            o += 1;
            let mut want = 1;
            while n < shape.len() && (want < have || shape[n] == 1) {
                want *= shape[n];
                n += 1;
                while have < want && o < old.len() {
                    have *= old[o].0;
                    o += 1;
                }
            }
            if have != want || (o0..o - 1).any(|i| old[i].1 != old[i + 1].1 * old[i + 1].0) {
                return None;
            }
            let mut stride = old[o - 1].1;
            for i in (n0..n).rev() {
                strides[i] = stride;
                stride *= shape[i];
            }
        }
        Some(Layout {
            shape: shape.clone(),
            strides,
            offset: self.offset,
        })
    }

    /// Drops `axis`, which must have the extent 1.
    pub fn squeeze(&self, axis: isize) -> Result<Layout> {
        let axis = resolve_axis("squeeze", axis, self.shape.len())?;
        if self.shape[axis] != 1 {
            return Err(Error::InvalidShape {
                op: "squeeze",
                shape: self.shape.clone(),
                reason: format!("axis {axis} has the extent {}, not 1", self.shape[axis]),
            });
        }
        let mut out = self.clone();
        out.shape.remove(axis);
        out.strides.remove(axis);
        Ok(out)
    }

    /// Inserts an axis of extent 1 before `axis` (`-1`: at the end).
    pub fn unsqueeze(&self, axis: isize) -> Result<Layout> {
        let axis = resolve_axis("unsqueeze", axis, self.shape.len() + 1)?;
        let mut out = self.clone();
        let stride = if axis < self.shape.len() {
            self.strides[axis] * self.shape[axis].max(1)
        } else {
            1
        };
        out.shape.insert(axis, 1);
        out.strides.insert(axis, stride);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(shape: &[usize]) -> Layout {
        Layout::contiguous("test", Shape::from(shape)).unwrap()
    }

    /// Extents and steps that wrapped around once, or left a stride that no product may use.
    #[test]
    fn no_view_has_numbers_that_overflow() {
        let most = isize::MAX as usize;
        assert!(Layout::contiguous("test", Shape::from([most, 0, 2])).is_err());
        assert!(Layout::contiguous("test", Shape::from([usize::MAX, 0])).is_err());
        let l = layout(&[most / 3, 3]);
        for step in [1, 2, most / 3 - 1, most / 3, most, usize::MAX] {
            let mut l = l.step(0, step).unwrap().step(1, step).unwrap();
            for axis in 0..4 {
                l = l.unsqueeze(axis).unwrap().unsqueeze(-1).unwrap();
            }
            assert!(l.narrow(4, 0, 1).unwrap().offset() == 0);
        }
        let empty = layout(&[0, 4]);
        assert!(empty.reshape(&Shape::from([0, usize::MAX])).is_none());
        assert!(empty.reshape(&Shape::from([usize::MAX, 2])).is_none());
        assert!(empty.reshape(&Shape::from([most, 0])).is_some());
        let one = layout(&[1, 0]);
        assert!(
            one.broadcast_to("t", &Shape::from([usize::MAX, 0]))
                .is_err()
        );
        assert!(one.broadcast_to("t", &Shape::from([most, 0])).is_ok());
    }

    #[test]
    fn contiguity_ignores_axes_of_extent_one() {
        let l = layout(&[2, 1, 3]);
        assert!(l.is_contiguous() && l.transpose(0, 1).unwrap().is_contiguous());
        assert!(!l.transpose(0, 2).unwrap().is_contiguous());
        assert!(layout(&[4, 0]).transpose(0, 1).unwrap().is_contiguous());
    }

    #[test]
    fn reshape_regroups_what_is_contiguous() {
        let l = layout(&[4, 6, 5]).permute(&[2, 0, 1]).unwrap(); // strides 1, 30, 5
        let r = l.reshape(&Shape::from([5, 2, 2, 3, 2])).unwrap();
        assert_eq!(&**r.strides(), &[1, 60, 30, 10, 5]);
        assert!(l.reshape(&Shape::from([20, 6])).is_none());
        let b = layout(&[1, 3])
            .broadcast_to("t", &Shape::from([2, 3]))
            .unwrap();
        assert!(b.reshape(&Shape::from([6])).is_none());
        assert_eq!(
            &**b.reshape(&Shape::from([2, 3, 1])).unwrap().strides(),
            &[0, 1, 1]
        );
    }

    #[test]
    fn bad_axes_are_named() {
        let e = layout(&[2, 3]).transpose(0, 2).unwrap_err();
        assert_eq!(
            e,
            Error::AxisOutOfRange {
                op: "transpose",
                axis: 2,
                rank: 2
            }
        );
        assert!(layout(&[2, 3]).permute(&[0, 0]).is_err());
        assert!(layout(&[2, 3]).narrow(1, 2, usize::MAX).is_err());
    }
}
