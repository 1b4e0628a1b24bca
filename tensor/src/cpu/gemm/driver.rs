//! The loops around the micro-kernel: blocks, packing, tiles, threads.

use super::ahead::Ahead;
use super::family::{Family, Kernels};
use super::job::{Job, Operand};
use super::kernel::{Out, Tile};
use super::parts::{Panel, Target, at, blocks};
use super::plan::{self, Plan, TileShape};
use super::scalar::Scalar;
use super::scratch::{self, Scratch};
use super::{Epilogue, MatMut, MatRef};
use crate::cpu::convert;
use crate::cpu::math::Real;
use crate::cpu::pieces::parallel_pieces;
use crate::cpu::scratch::{NoMemory, Outcome};
use crate::cpu::{SimdLevel, threads};
use std::ops::Range;

/// Rows of a half-type result whose `f32` sums are held at a time.
const HALF_STRIPES: usize = 192;

/// One product after planning.
pub(super) struct Product<'a, T: Scalar> {
    pub family: &'static Family<T::Compute>,
    pub plan: Plan,
    pub job: Job<'a, T>,
}

/// Some terms of the sums of a block.
struct Piece<A> {
    s: Range<usize>,
    v: Range<usize>,
    ks: Range<usize>,
    /// Stripes in a tile, but for the last one.
    rows: usize,
    target: Target<A>,
    /// Whether these are the first terms, or the last ones.
    first: bool,
    last: bool,
    /// Whether the tiles ask for memory by the way.
    asks: bool,
}

/// Runs a product whose shapes have been checked, with at least one element in `c`. Where there is
/// no scratch memory, `c` is left with arbitrary elements.
pub(super) fn product<T: Scalar>(
    level: SimdLevel,
    mut c: MatMut<'_, T>,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    epilogue: &Epilogue<'_, T>,
) -> Result<(), NoMemory> {
    let family = T::Compute::family(level);
    let tile = TileShape {
        rows: family.rows,
        lanes: family.lanes,
    };
    let sides = (Operand::rows(a).side, Operand::rows(b.t()).side);
    let mut plan = plan::plan(tile, sides.0, sides.1, a.cols);
    // Widening leaves the operand's layout as it is, but moves it.
    plan.direct_vectors &= T::DIRECT;
    let product = Product {
        family,
        plan,
        job: Job::new(plan.swapped, &mut c, a, b, epilogue),
    };
    let (s_len, v_len) = (product.job.s.side.len, product.job.v.side.len);
    let split = plan::split(tile, s_len, v_len, a.cols, threads());
    let outcome = Outcome::default();
    parallel_pieces(0..split.s.count * split.v.count, 1, |_, tasks| {
        for task in tasks {
            let s = split.s.range(task % split.s.count, s_len);
            let v = split.v.range(task / split.s.count, v_len);
            outcome.of(|| scratch::with(|scratch| product.task(s, v, scratch)));
        }
    });
    outcome.result()
}

impl<T: Scalar> Product<'_, T> {
    /// Computes the stripes `s` of the columns `v`.
    fn task(
        &self,
        s: Range<usize>,
        v: Range<usize>,
        scratch: &mut Scratch,
    ) -> Result<(), NoMemory> {
        let (plan, passing) = (&self.plan, usize::MAX);
        let (s_block, v_block) = match plan.columns_pass {
            _ if !T::DIRECT => (HALF_STRIPES, plan.resident_columns),
            true => (plan.resident_stripes, passing),
            false => (passing, plan.resident_columns),
        };
        for s in blocks(s, s_block) {
            for v in blocks(v.clone(), v_block) {
                if T::DIRECT {
                    self.direct_block(s.clone(), v, scratch)?;
                } else {
                    self.half_block(s.clone(), v, scratch)?;
                }
            }
        }
        Ok(())
    }

    /// A block whose sums are completed in the result.
    fn direct_block(
        &self,
        s: Range<usize>,
        v: Range<usize>,
        scratch: &mut Scratch,
    ) -> Result<(), NoMemory> {
        let target = Target {
            c: self.job.at(s.start, v.start).cast(),
            ld: self.job.ld,
            bias_s: at(self.job.bias_s, s.start).cast(),
            bias_v: at(self.job.bias_v, v.start).cast(),
        };
        self.block(s.clone(), v.clone(), target, scratch)?;
        let Some(map) = self.job.map else {
            return Ok(());
        };
        let (rows, along) = self.job.turned(s, v);
        for row in rows {
            let p = self.job.c.wrapping_add(row * self.job.ld + along.start);
            // SAFETY: this piece of the row belongs to this task, which has no other reference to
            // it, and `T` is `Compute`.
            map(unsafe { std::slice::from_raw_parts_mut(p.cast(), along.len()) });
        }
        Ok(())
    }

    /// A block of a half-type result: its sums are completed in `f32`, then rounded.
    fn half_block(
        &self,
        s: Range<usize>,
        v: Range<usize>,
        scratch: &mut Scratch,
    ) -> Result<(), NoMemory> {
        let (rows, along) = self.job.turned(s.clone(), v.clone());
        let (len, ld) = (rows.len() * along.len(), along.len());
        let bias_len =
            |bias: &[T], part: &Range<usize>| if bias.is_empty() { 0 } else { part.len() };
        let (bias_s, bias_v) = (bias_len(self.job.bias_s, &s), bias_len(self.job.bias_v, &v));
        let mut buffer = std::mem::take(&mut scratch.sums);
        let sums = buffer.slice::<T::Compute>(len + bias_s + bias_v)?;
        let (sums, biases) = sums.split_at_mut(len);
        let (wide_s, wide_v) = biases.split_at_mut(bias_s);
        if bias_s > 0 {
            convert::widen(&self.job.bias_s[s.clone()], wide_s);
        }
        if bias_v > 0 {
            convert::widen(&self.job.bias_v[v.clone()], wide_v);
        }
        // SAFETY: these elements of `c` belong to this task, which has no other reference to them.
        let row_of_c = |row: usize| unsafe {
            std::slice::from_raw_parts_mut(self.job.c.add(row * self.job.ld + along.start), ld)
        };
        if self.job.beta.is_some() {
            for (sums, row) in sums.chunks_exact_mut(ld).zip(rows.clone()) {
                convert::widen(row_of_c(row), sums);
            }
        }
        let (bias_s, bias_v) = (at(wide_s, 0), at(wide_v, 0));
        self.block(
            s,
            v,
            Target {
                c: sums.as_mut_ptr(),
                ld,
                bias_s,
                bias_v,
            },
            scratch,
        )?;
        for (sums, row) in sums.chunks_exact_mut(ld).zip(rows) {
            if let Some(map) = self.job.map {
                map(sums);
            }
            convert::narrow(sums, row_of_c(row));
        }
        scratch.sums = buffer;
        Ok(())
    }

    /// Completes the sums of a block of stripes by columns.
    fn block(
        &self,
        s: Range<usize>,
        v: Range<usize>,
        target: Target<T::Compute>,
        scratch: &mut Scratch,
    ) -> Result<(), NoMemory> {
        // Tiles of equal height, rather than full ones and a rest.
        let tiles = s.len().div_ceil(self.family.rows);
        let rows = s.len().div_ceil(tiles);
        for part in 0..self.plan.k.count {
            let ks = self.plan.k.range(part, self.job.k);
            let piece = Piece {
                s: s.clone(),
                v: v.clone(),
                asks: plan::asks(rows, ks.len()),
                ks,
                rows,
                target,
                first: part == 0,
                last: part + 1 == self.plan.k.count,
            };
            if self.plan.columns_pass {
                self.columns_pass(&piece, scratch)?;
            } else {
                self.stripes_pass(&piece, scratch)?;
            }
        }
        Ok(())
    }

    /// All stripes are packed, and the columns pass by them: one panel is multiplied while the
    /// next one is packed, a share after each tile.
    fn columns_pass(
        &self,
        piece: &Piece<T::Compute>,
        scratch: &mut Scratch,
    ) -> Result<(), NoMemory> {
        let Piece { s, v, ks, rows, .. } = piece;
        let stripes = self.stripes(s, ks, *rows, scratch)?;
        let share = plan::share(ks.len(), s.len().div_ceil(*rows));
        let mut slots = [0, self.family.width()];
        let mut panels = self.panels(v).peekable();
        // Terms of the panel that are packed.
        let mut ready = 0;
        while let Some(columns) = panels.next() {
            self.pack_panel(&columns, ks, ready..ks.len(), slots[0], scratch)?;
            let panel = self.panel(&columns, ks, slots[0], scratch);
            let next = panels.peek().filter(|_| piece.asks);
            ready = 0;
            for first in s.clone().step_by(*rows) {
                let terms = ready..ks.len().min(ready + share);
                let ahead = match next {
                    Some(next) if !terms.is_empty() => self.ahead(next, ks, &terms),
                    _ => Ahead::NONE,
                };
                let stripes = stripes.wrapping_add((first - s.start) * ks.len());
                self.tile(piece, first, stripes, columns.start, &panel, &ahead);
                if let Some(next) = next {
                    ready = terms.end;
                    self.pack_panel(next, ks, terms, slots[1], scratch)?;
                }
            }
            slots.reverse();
        }
        Ok(())
    }

    /// All columns are packed, and the stripes pass by them, packed tile by tile.
    fn stripes_pass(
        &self,
        piece: &Piece<T::Compute>,
        scratch: &mut Scratch,
    ) -> Result<(), NoMemory> {
        let Piece { s, v, ks, rows, .. } = piece;
        for columns in self.panels(v) {
            self.pack_panel(&columns, ks, 0..ks.len(), columns.start - v.start, scratch)?;
        }
        for first in s.clone().step_by(*rows) {
            let end = s.end.min(first + rows);
            let stripes = self.stripes(&(first..end), ks, *rows, scratch)?;
            for columns in self.panels(v) {
                let panel = self.panel(&columns, ks, columns.start - v.start, scratch);
                self.tile(piece, first, stripes, columns.start, &panel, &Ahead::NONE);
            }
        }
        Ok(())
    }

    /// Runs the kernel of the tile at the stripe `s` and the column `v`.
    ///
    /// What is the same for many tiles comes by reference: a copy of words, read at once by a wider
    /// load, waits for all stores before it, and so for the result of the last tile to leave the
    /// core. It cost the product of 1,024 x 1,024 by 64 terms a sixth of its time.
    fn tile(
        &self,
        piece: &Piece<T::Compute>,
        s: usize,
        stripes: *const T::Compute,
        v: usize,
        panel: &Panel<T::Compute>,
        next: &Ahead,
    ) {
        let (family, swapped) = (self.family, self.job.swapped);
        let rows = piece.rows.min(piece.s.end - s);
        let target = piece
            .target
            .at(s - piece.s.start, v - piece.v.start, swapped);
        let bias = |p: *const T::Compute| if piece.last { p } else { std::ptr::null() };
        let tile = Tile {
            kc: piece.ks.len(),
            s: stripes,
            v: panel.p,
            v_k: panel.k_step,
            width: panel.width,
            out: Out {
                c: target.c,
                ld: target.ld,
                alpha: self.job.alpha,
                beta: if piece.first {
                    self.job.beta
                } else {
                    Some(T::Compute::ONE)
                },
                bias_s: bias(target.bias_s),
                bias_v: bias(target.bias_v),
                floor: if piece.last {
                    self.job.floor
                } else {
                    -T::Compute::INFINITY
                },
                finish: if swapped {
                    family.scatter
                } else {
                    family.along
                },
            },
        };
        let result = match (piece.asks, swapped) {
            (false, _) => Ahead::NONE,
            (true, false) => Ahead::new(target.c, rows, target.ld, panel.width),
            (true, true) => Ahead::new(target.c, panel.width, target.ld, rows),
        };
        // With no bias, the finish is the same for every row and every vector.
        let straight = !swapped
            && panel.width == panel.vectors * family.lanes
            && tile.out.bias_s.is_null()
            && tile.out.bias_v.is_null();
        // SAFETY: the packed operands hold the tile, the target is that of the tile, and the
        // family is one that the processor runs.
        unsafe {
            let kernel = family.tiles[panel.vectors - 1][rows - 1];
            kernel(&tile, straight, &result, next);
        }
    }
}
