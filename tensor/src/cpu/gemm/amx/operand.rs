//! The pieces of an operand that the unit's tasks ask for before they pack them.

use super::super::job::Operand;
use super::super::pack::Block;
use super::aside::Ahead;
use std::ops::Range;

impl<T> Operand<T> {
    /// Share `i` of `count` of a strip that will be packed for the terms `ks`: of each step, 32
    /// pieces.
    pub(super) fn ahead(
        self,
        strip: &Range<usize>,
        ks: &Range<usize>,
        (i, count): (usize, usize),
    ) -> Ahead {
        if strip.is_empty() {
            return Ahead::NONE;
        }
        let Block {
            p, along, k_step, ..
        } = self.block(strip, ks);
        let (piece, step) = if k_step == 1 {
            (along, 32)
        } else {
            (k_step, 32 * k_step)
        };
        let (first, end) = (32 * i / count, 32 * (i + 1) / count);
        Ahead {
            p: p.wrapping_add(first * piece).cast(),
            piece: piece * size_of::<T>(),
            pieces: end - first,
            step: step * size_of::<T>(),
        }
    }
}
