//! Operands in the order of the kernels: packed, or where they stand.

use super::ahead::Ahead;
use super::driver::Product;
use super::job::Operand;
use super::pack::{Block, OVERRUN, packed_len};
use super::parts::{Panel, blocks};
use super::scalar::Scalar;
use super::scratch::Scratch;
use crate::cpu::convert;
use crate::cpu::scratch::NoMemory;
use std::ops::Range;

impl<T: Scalar> Product<'_, T> {
    /// The columns `v` in panels. Where they are read in place, a remainder that is not a whole
    /// vector is a panel of its own.
    pub(super) fn panels(&self, v: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<T> {
        let family = self.family;
        let whole = if self.plan.direct_vectors {
            v.start + v.len() / family.lanes * family.lanes
        } else {
            v.end
        };
        blocks(v.start..whole, family.width()).chain(blocks(whole..v.end, family.width()))
    }

    /// Packs a share of the panel of the columns `v`, some of the terms `ks`, where the panel stands
    /// at column `at` of the packed ones; nothing, if it is read in place.
    pub(super) fn pack_panel(
        &self,
        v: &Range<usize>,
        ks: &Range<usize>,
        share: Range<usize>,
        at: usize,
        scratch: &mut Scratch,
    ) -> Result<(), NoMemory> {
        if self.in_place(v) || share.is_empty() {
            return Ok(());
        }
        let terms = ks.start + share.start..ks.start + share.end;
        let staged = self.stage(self.job.v, v, &terms, scratch)?;
        let family = self.family;
        // Room for all that will be packed at once: a buffer that grows forgets.
        let columns = if self.plan.columns_pass {
            2 * family.width()
        } else {
            self.plan.resident_columns
        };
        let room = packed_len(columns.max(at + v.len()), self.plan.k.size, family.lanes);
        let packed = scratch.vectors.room::<T::Compute>(room)?;
        let to = at * ks.len() + share.start * v.len().next_multiple_of(family.lanes);
        // SAFETY: the operand holds these columns and terms, the buffer has the room.
        unsafe { (family.pack_vectors)(staged, family.width(), packed.add(to)) };
        Ok(())
    }

    /// What [`pack_panel`](Self::pack_panel) will read, if there are any terms in the share.
    pub(super) fn ahead(&self, v: &Range<usize>, ks: &Range<usize>, share: &Range<usize>) -> Ahead {
        let terms = ks.start + share.start..ks.start + share.end;
        let Block {
            p, along, k_step, ..
        } = self.job.v.block(v, &terms);
        if k_step == 1 {
            Ahead::new(p, v.len(), along, share.len())
        } else {
            Ahead::new(p, share.len(), k_step, (v.len() - 1) * along + 1)
        }
    }

    /// The panel of the columns `v` for the terms `ks`: where [`pack_panel`](Self::pack_panel) left
    /// it, or in place.
    pub(super) fn panel(
        &self,
        v: &Range<usize>,
        ks: &Range<usize>,
        at: usize,
        scratch: &Scratch,
    ) -> Panel<T::Compute> {
        let (width, lanes) = (v.len(), self.family.lanes);
        let vectors = width.div_ceil(lanes);
        let (p, k_step) = if self.in_place(v) {
            // Columns in place are one apart, and `T` is `Compute`.
            let Block { p, k_step, .. } = self.job.v.block(v, ks);
            (p.cast(), k_step)
        } else {
            let packed = scratch.vectors.kept::<T::Compute>();
            (packed.wrapping_add(at * ks.len()), vectors * lanes)
        };
        Panel {
            p,
            k_step,
            width,
            vectors,
        }
    }

    /// Whether the kernel reads these columns where they stand: only whole vectors.
    pub(super) fn in_place(&self, v: &Range<usize>) -> bool {
        self.plan.direct_vectors && v.len().is_multiple_of(self.family.lanes)
    }

    /// The stripes `s` for the terms `ks`, packed in tiles of `rows`.
    pub(super) fn stripes(
        &self,
        s: &Range<usize>,
        ks: &Range<usize>,
        rows: usize,
        scratch: &mut Scratch,
    ) -> Result<*const T::Compute, NoMemory> {
        let staged = self.stage(self.job.s, s, ks, scratch)?;
        let packed = scratch.stripes.room(s.len() * ks.len() + OVERRUN)?;
        // SAFETY: the operand holds these stripes and terms, the buffer has the room.
        unsafe { (self.family.pack_stripes)(staged, rows, packed) };
        Ok(packed)
    }

    /// A piece of an operand as `Compute`: where it stands, or widened into scratch memory that the
    /// next call reuses.
    fn stage(
        &self,
        operand: Operand<T>,
        part: &Range<usize>,
        ks: &Range<usize>,
        scratch: &mut Scratch,
    ) -> Result<Block<T::Compute>, NoMemory> {
        let from = operand.block(part, ks);
        if T::DIRECT {
            return Ok(from.cast());
        }
        let Block {
            p,
            len,
            along,
            kc,
            k_step,
        } = from;
        let wide = scratch.wide.room::<T::Compute>(len * kc)?;
        // SAFETY: `wide` has `len * kc` elements, and the operand holds the part; runs of step one
        // are contiguous in it.
        unsafe {
            let wide_row =
                |row: usize, n: usize| std::slice::from_raw_parts_mut(wide.add(row * n), n);
            let source = |i: usize, n: usize| std::slice::from_raw_parts(p.add(i), n);
            if along == 1 {
                (0..kc).for_each(|k| convert::widen(source(k * k_step, len), wide_row(k, len)));
                return Ok(Block {
                    p: wide,
                    len,
                    along: 1,
                    kc,
                    k_step: len,
                });
            }
            for i in 0..len {
                if k_step == 1 {
                    convert::widen(source(i * along, kc), wide_row(i, kc));
                } else {
                    for (k, w) in wide_row(i, kc).iter_mut().enumerate() {
                        convert::widen(source(i * along + k * k_step, 1), std::slice::from_mut(w));
                    }
                }
            }
        }
        Ok(Block {
            p: wide,
            len,
            along: kc,
            kc,
            k_step: 1,
        })
    }
}
