//! What a product is to the loops, those of the vector kernels and those of the matrix unit: operands
//! by their part, and the result as raw memory for the tasks.

use super::pack::Block;
use super::plan::Side;
use super::scalar::Scalar;
use super::{Bias, Epilogue, Map, MatMut, MatRef};
use crate::Element;
use crate::cpu::math::Real;
use std::mem::swap;
use std::ops::Range;

/// An operand as it stands in memory.
#[derive(Clone, Copy)]
pub(super) struct Operand<T> {
    pub p: *const T,
    pub side: Side,
}

impl<T> Operand<T> {
    /// By the rows of a matrix.
    pub fn rows(matrix: MatRef<'_, T>) -> Self {
        Operand {
            p: matrix.data.as_ptr(),
            side: Side {
                len: matrix.rows,
                along: matrix.row_stride,
                k_step: matrix.col_stride,
            },
        }
    }

    /// A part of it for the terms `ks`.
    pub fn block(self, part: &Range<usize>, ks: &Range<usize>) -> Block<T> {
        let Side { along, k_step, .. } = self.side;
        Block {
            p: self.p.wrapping_add(part.start * along + ks.start * k_step),
            len: part.len(),
            along,
            kc: ks.len(),
            k_step,
        }
    }
}

/// The operands, the result and the epilogue of a product that has a plan.
pub(super) struct Job<'a, T: Scalar> {
    /// The right operand is `s` and the left one `v`; tiles are written transposed.
    pub swapped: bool,
    /// The striped operand, or the rows of the matrix unit.
    pub s: Operand<T>,
    /// The vectorised operand, or the columns of the matrix unit.
    pub v: Operand<T>,
    pub k: usize,
    pub c: *mut T,
    pub ld: usize,
    pub alpha: T::Compute,
    pub beta: Option<T::Compute>,
    /// By their part, like the operands.
    pub bias_s: &'a [T],
    pub bias_v: &'a [T],
    pub floor: T::Compute,
    pub map: Option<&'a Map<'a, T::Compute>>,
}

// SAFETY: the operands are only read; a task writes only the elements of `c` in its ranges, and
// the tasks' ranges are disjoint.
unsafe impl<T: Scalar> Sync for Job<'_, T> {}

impl<'a, T: Scalar> Job<'a, T> {
    pub fn new(
        swapped: bool,
        c: &mut MatMut<'_, T>,
        a: MatRef<'_, T>,
        b: MatRef<'_, T>,
        epilogue: &Epilogue<'a, T>,
    ) -> Self {
        let (bias_s, bias_v): (&[T], &[T]) = match epilogue.bias {
            Bias::None => (&[], &[]),
            Bias::PerRow(bias) => (bias, &[]),
            Bias::PerCol(bias) => (&[], bias),
        };
        let mut job = Job {
            swapped,
            s: Operand::rows(a),
            v: Operand::rows(b.t()),
            k: a.cols,
            c: c.data.as_mut_ptr(),
            ld: c.row_stride,
            alpha: T::Compute::from_f64(epilogue.alpha),
            beta: (epilogue.beta != 0.0).then(|| T::Compute::from_f64(epilogue.beta)),
            bias_s,
            bias_v,
            floor: if epilogue.relu {
                T::Compute::ZERO
            } else {
                -T::Compute::INFINITY
            },
            map: epilogue.map,
        };
        if swapped {
            swap(&mut job.s, &mut job.v);
            swap(&mut job.bias_s, &mut job.bias_v);
        }
        job
    }

    /// What there is for both parts, as rows and columns of the result; and back.
    pub fn turned<R>(&self, s: R, v: R) -> (R, R) {
        if self.swapped { (v, s) } else { (s, v) }
    }

    /// The element of the result at the stripe `s` and the column `v`.
    pub fn at(&self, s: usize, v: usize) -> *mut T {
        let (row, column) = self.turned(s, v);
        self.c.wrapping_add(row * self.ld + column)
    }
}
