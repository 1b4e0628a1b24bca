//! An operand of the unit as it stands in memory, and the pieces of it that tasks ask for.

use super::super::pack::Block;
use super::super::plan::Side;
use super::aside::Ahead;
use std::ops::Range;

/// The rows or the columns.
#[derive(Clone, Copy)]
pub(super) struct Operand<T> {
    pub p: *const T,
    pub side: Side,
}

impl<T> Operand<T> {
    /// A strip for the terms `ks`.
    pub fn block(self, strip: &Range<usize>, ks: &Range<usize>) -> Block<T> {
        let Side { along, k_step, .. } = self.side;
        Block {
            p: self.p.wrapping_add(strip.start * along + ks.start * k_step),
            len: strip.len(),
            along,
            kc: ks.len(),
            k_step,
        }
    }

    /// Share `i` of `count` of a strip that will be packed for the terms `ks`: of each step, 32
    /// pieces.
    pub fn ahead(
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
