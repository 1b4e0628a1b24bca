//! [`Shape`] and [`Strides`]: short vectors of extents that print well.

use crate::{DType, Error, Result};
use smallvec::SmallVec;
use std::fmt;
use std::ops::{Deref, DerefMut};

macro_rules! dims {
    ($name:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(PartialEq, Eq, Hash, Default)]
        pub struct $name(SmallVec<[usize; 4]>);

        /// As one copy of bytes: the derived one would go extent by extent.
        impl Clone for $name {
            fn clone(&self) -> Self {
                Self(SmallVec::from_slice(&self.0))
            }
        }

        impl $name {
            /// Appends an axis at the end.
            pub fn push(&mut self, extent: usize) {
                self.0.push(extent);
            }

            /// Inserts an axis before `axis`.
            ///
            /// # Panics
            /// If `axis` is larger than the number of axes.
            pub fn insert(&mut self, axis: usize, extent: usize) {
                self.0.insert(axis, extent);
            }

            /// Removes `axis` and returns its extent.
            ///
            /// # Panics
            /// If there is no such axis.
            pub fn remove(&mut self, axis: usize) -> usize {
                self.0.remove(axis)
            }
        }

        impl Deref for $name {
            type Target = [usize];
            fn deref(&self) -> &[usize] {
                &self.0
            }
        }

        impl DerefMut for $name {
            fn deref_mut(&mut self) -> &mut [usize] {
                &mut self.0
            }
        }

        impl FromIterator<usize> for $name {
            fn from_iter<I: IntoIterator<Item = usize>>(iter: I) -> Self {
                Self(iter.into_iter().collect())
            }
        }

        impl From<&[usize]> for $name {
            fn from(d: &[usize]) -> Self {
                Self(SmallVec::from_slice(d))
            }
        }

        impl<const N: usize> From<[usize; N]> for $name {
            fn from(d: [usize; N]) -> Self {
                Self(SmallVec::from_slice(&d))
            }
        }

        impl<const N: usize> From<&[usize; N]> for $name {
            fn from(d: &[usize; N]) -> Self {
                Self(SmallVec::from_slice(d))
            }
        }

        impl From<Vec<usize>> for $name {
            fn from(d: Vec<usize>) -> Self {
                Self(SmallVec::from_vec(d))
            }
        }

        impl From<&$name> for $name {
            fn from(d: &$name) -> Self {
                d.clone()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

dims!(
    Shape,
    "The extents of a tensor, outermost first; empty for a scalar. Prints as `[2, 3]`."
);
dims!(
    Strides,
    "Steps between neighbours along each axis, in elements; 0 where an axis is broadcast."
);

impl From<()> for Shape {
    fn from((): ()) -> Self {
        Shape::default()
    }
}

impl From<usize> for Shape {
    fn from(n: usize) -> Self {
        Shape::from([n])
    }
}

/// **The rule for shapes**: an empty axis counts as one of a single element, and the product of all
/// extents is at most `isize::MAX`, as is that product times the bytes of an element in every
/// tensor (NumPy's rule). So no product of extents, strides or offsets of a tensor overflows,
/// whichever of its axes are multiplied, and whichever are empty.
const MOST: usize = isize::MAX as usize;

impl Shape {
    /// Whether a tensor of elements of type `dtype` may have this shape: the product of all
    /// extents, where an extent of 0 counts as 1, times the bytes of an element is at most
    /// `isize::MAX`. As in NumPy, an empty axis does not make up for others that are too long.
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Shape};
    /// assert!(Shape::from([0, 1 << 40]).is_addressable(DType::F32));
    /// assert!(!Shape::from([0, 1 << 40, 1 << 40]).is_addressable(DType::F32));
    /// ```
    pub fn is_addressable(&self, dtype: DType) -> bool {
        self.fits(dtype.size())
    }

    fn fits(&self, element: usize) -> bool {
        let product = (self.iter()).try_fold(element, |n, &d| n.checked_mul(d.max(1)));
        product.is_some_and(|product| product <= MOST)
    }

    /// The rule for shapes, for elements of type `dtype`.
    pub(crate) fn expect_addressable(&self, op: &'static str, dtype: DType) -> Result<()> {
        if self.is_addressable(dtype) {
            return Ok(());
        }
        Err(Error::InvalidShape {
            op,
            shape: self.clone(),
            reason: format!(
                "its extents (empty ones taken as 1), times {} bytes of {dtype}, exceed {MOST}",
                dtype.size()
            ),
        })
    }

    /// The rule for shapes, for elements of any size.
    pub(crate) fn expect_countable(&self, op: &'static str) -> Result<()> {
        if self.fits(1) {
            return Ok(());
        }
        Err(Error::InvalidShape {
            op,
            shape: self.clone(),
            reason: format!(
                "its elements cannot be counted: the product of its extents (empty ones taken as \
                 1) exceeds {MOST}"
            ),
        })
    }

    /// The number of elements: the product of the extents, 1 for a scalar.
    ///
    /// Saturates at `usize::MAX`; no tensor of that size can be allocated, and no tensor has a
    /// shape in which an empty axis hides such a product.
    pub fn numel(&self) -> usize {
        if self.contains(&0) {
            0
        } else {
            self.iter().fold(1, |n, &d| n.saturating_mul(d))
        }
    }

    /// The strides of a row-major tensor of this shape.
    pub fn contiguous_strides(&self) -> Strides {
        let mut strides: Strides = self.iter().map(|_| 1).collect();
        for i in (1..self.len()).rev() {
            strides[i - 1] = strides[i].saturating_mul(self[i].max(1));
        }
        strides
    }

    /// The shape that both broadcast to (NumPy's rules: aligned at the last axis, an extent of 1
    /// or a missing axis stretches), or `None` where they do not fit.
    pub fn broadcast(&self, other: &Shape) -> Option<Shape> {
        let rank = self.len().max(other.len());
        let extent = |s: &Shape, i: usize| (i + s.len()).checked_sub(rank).map_or(1, |k| s[k]);
        (0..rank)
            .map(|i| match (extent(self, i), extent(other, i)) {
                (a, b) if a == b => Some(a),
                (1, b) => Some(b),
                (a, 1) => Some(a),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()
            .map(Shape::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_numpy() {
        let s = |d: &[usize]| Shape::from(d);
        assert_eq!(s(&[2, 1, 4]).broadcast(&s(&[3, 1])), Some(s(&[2, 3, 4])));
        assert_eq!(s(&[]).broadcast(&s(&[0, 2])), Some(s(&[0, 2])));
        assert_eq!(s(&[1]).broadcast(&s(&[0])), Some(s(&[0])));
        assert_eq!(s(&[2]).broadcast(&s(&[3])), None);
    }

    #[test]
    fn strides_numel_and_display() {
        let s = Shape::from([2, 3, 4]);
        assert_eq!(&*s.contiguous_strides(), &[12, 4, 1]);
        assert_eq!((s.numel(), s.to_string()), (24, "[2, 3, 4]".into()));
        assert_eq!(Shape::from(()).numel(), 1);
        assert_eq!(Shape::from([usize::MAX, 2, 0]).numel(), 0);
        assert_eq!(Shape::from([usize::MAX, 2]).numel(), usize::MAX);
    }

    #[test]
    fn an_empty_axis_hides_no_overflow() {
        let most = isize::MAX as usize;
        for (shape, dtype, fits) in [
            (vec![], DType::F64, true),
            (vec![most], DType::U8, true),
            (vec![most, 0, 1, 0], DType::U8, true),
            (vec![most], DType::F16, false),
            (vec![0, most], DType::F16, false),
            (vec![most / 4], DType::F32, true),
            (vec![most / 4 + 1], DType::F32, false),
            (vec![1 << 32, 0, 1 << 31], DType::U8, false),
            (vec![usize::MAX, usize::MAX, 0], DType::U8, false),
        ] {
            let shape = Shape::from(shape);
            assert_eq!(shape.is_addressable(dtype), fits, "{shape} {dtype}");
            assert_eq!(shape.expect_addressable("op", dtype).is_ok(), fits);
        }
        assert!(Shape::from([most, 0]).expect_countable("op").is_ok());
        let e = Shape::from([most, 0, 2])
            .expect_countable("op")
            .unwrap_err();
        assert!(e.to_string().contains("cannot be counted"), "{e}");
    }
}
