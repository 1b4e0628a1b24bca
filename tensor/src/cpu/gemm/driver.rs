//! The loops around the micro-kernel: blocks, packing, tiles, threads.

use super::family::{Family, Kernels};
use super::kernel::{Out, Tile};
use super::pack::{Block, OVERRUN, packed_len};
use super::parts::{Panel, Target, at, blocks};
use super::plan::{self, Plan, Side, TileShape};
use super::scalar::Scalar;
use super::scratch::{self, Scratch};
use super::simd::Real;
use super::{Bias, Epilogue, Map, MatMut, MatRef};
use crate::cpu::{SimdLevel, parallel_for, threads};
use std::ops::Range;

/// Rows of a half-type result whose `f32` sums are held at a time.
const HALF_STRIPES: usize = 192;

/// One product after planning: operands by their part, result as raw memory for the tasks.
struct Product<'a, T: Scalar> {
    family: &'static Family<T::Acc>,
    plan: Plan,
    s: *const T,
    s_side: Side,
    v: *const T,
    v_side: Side,
    k: usize,
    c: *mut T,
    ld: usize,
    alpha: T::Acc,
    beta: Option<T::Acc>,
    bias_s: &'a [T],
    bias_v: &'a [T],
    floor: T::Acc,
    map: Option<&'a Map<'a, T::Acc>>,
}

// SAFETY: the operands are only read; a task writes only the elements of `c` in its ranges, and
// the tasks' ranges are disjoint.
unsafe impl<T: Scalar> Sync for Product<'_, T> {}

/// Runs a product whose shapes have been checked, with at least one element in `c`.
pub(super) fn product<T: Scalar>(
    level: SimdLevel,
    c: MatMut<'_, T>,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    epilogue: &Epilogue<'_, T>,
) {
    let family = T::Acc::family(level);
    let tile = TileShape {
        rows: family.rows,
        lanes: family.lanes,
    };
    let (m, n, k) = (a.rows, b.cols, a.cols);
    let a_side = Side {
        len: m,
        along: a.row_stride,
        k_step: a.col_stride,
    };
    let b_side = Side {
        len: n,
        along: b.col_stride,
        k_step: b.row_stride,
    };
    let mut plan = plan::plan(tile, a_side, b_side, k);
    // Widening leaves the operand's layout as it is, but moves it.
    plan.direct_vectors &= T::DIRECT;
    let (bias_row, bias_col): (&[T], &[T]) = match epilogue.bias {
        Bias::None => (&[], &[]),
        Bias::PerRow(bias) => (bias, &[]),
        Bias::PerCol(bias) => (&[], bias),
    };
    let mut product = Product {
        family,
        plan,
        s: a.data.as_ptr(),
        s_side: a_side,
        v: b.data.as_ptr(),
        v_side: b_side,
        k,
        c: c.data.as_mut_ptr(),
        ld: c.row_stride,
        alpha: T::coefficient(epilogue.alpha),
        beta: (epilogue.beta != 0.0).then(|| T::coefficient(epilogue.beta)),
        bias_s: bias_row,
        bias_v: bias_col,
        floor: if epilogue.relu {
            T::Acc::ZERO
        } else {
            T::Acc::NEG_INFINITY
        },
        map: epilogue.map,
    };
    if plan.swapped {
        std::mem::swap(&mut product.s, &mut product.v);
        std::mem::swap(&mut product.s_side, &mut product.v_side);
        std::mem::swap(&mut product.bias_s, &mut product.bias_v);
    }
    let (s_len, v_len) = (product.s_side.len, product.v_side.len);
    let split = plan::split(tile, s_len, v_len, k, threads());
    parallel_for(split.s.count * split.v.count, 1, |tasks| {
        for task in tasks {
            let s = split.s.range(task % split.s.count, s_len);
            let v = split.v.range(task / split.s.count, v_len);
            scratch::with(|scratch| product.task(s, v, scratch));
        }
    });
}

impl<T: Scalar> Product<'_, T> {
    /// Computes the stripes `s` of the columns `v`.
    fn task(&self, s: Range<usize>, v: Range<usize>, scratch: &mut Scratch) {
        let (resident, passing) = (self.plan.resident, usize::MAX);
        let (s_block, v_block) = match self.plan.columns_pass {
            _ if !T::DIRECT => (HALF_STRIPES, resident),
            true => (resident, passing),
            false => (passing, resident),
        };
        for s in blocks(s, s_block) {
            for v in blocks(v.clone(), v_block) {
                if T::DIRECT {
                    self.direct_block(s.clone(), v, scratch);
                } else {
                    self.half_block(s.clone(), v, scratch);
                }
            }
        }
    }

    /// A block whose sums are completed in the result.
    fn direct_block(&self, s: Range<usize>, v: Range<usize>, scratch: &mut Scratch) {
        let target = Target {
            c: self.c.wrapping_add(self.offset(s.start, v.start)).cast(),
            ld: self.ld,
            bias_s: at(self.bias_s, s.start).cast(),
            bias_v: at(self.bias_v, v.start).cast(),
        };
        self.block(s.clone(), v.clone(), target, scratch);
        let Some(map) = self.map else { return };
        let (rows, along) = self.rows(&s, &v);
        for row in rows {
            let p = self
                .c
                .wrapping_add(row * self.ld + along.start)
                .cast::<T::Acc>();
            // SAFETY: this piece of the row belongs to this task, which has no other reference to
            // it, and `T` is `Acc`.
            map(unsafe { std::slice::from_raw_parts_mut(p, along.len()) });
        }
    }

    /// Offset in `c` of an element by stripe and column.
    fn offset(&self, s: usize, v: usize) -> usize {
        if self.plan.swapped {
            v * self.ld + s
        } else {
            s * self.ld + v
        }
    }

    /// The ranges of rows of `c` and of elements in them.
    fn rows(&self, s: &Range<usize>, v: &Range<usize>) -> (Range<usize>, Range<usize>) {
        if self.plan.swapped {
            (v.clone(), s.clone())
        } else {
            (s.clone(), v.clone())
        }
    }

    /// A block of a half-type result: its sums are completed in `f32`, then rounded.
    fn half_block(&self, s: Range<usize>, v: Range<usize>, scratch: &mut Scratch) {
        let (rows, along) = self.rows(&s, &v);
        let (len, ld) = (rows.len() * along.len(), along.len());
        let bias_len =
            |bias: &[T], part: &Range<usize>| if bias.is_empty() { 0 } else { part.len() };
        let (bias_s, bias_v) = (bias_len(self.bias_s, &s), bias_len(self.bias_v, &v));
        let mut buffer = std::mem::take(&mut scratch.sums);
        let room = buffer.room::<T::Acc>(len + bias_s + bias_v);
        // SAFETY: `room` has that many elements, and zero bits are a valid `Acc`.
        let sums = unsafe {
            room.write_bytes(0, len + bias_s + bias_v);
            std::slice::from_raw_parts_mut(room, len + bias_s + bias_v)
        };
        let (sums, biases) = sums.split_at_mut(len);
        let (wide_s, wide_v) = biases.split_at_mut(bias_s);
        if bias_s > 0 {
            T::widen(&self.bias_s[s.clone()], wide_s);
        }
        if bias_v > 0 {
            T::widen(&self.bias_v[v.clone()], wide_v);
        }
        // SAFETY: these elements of `c` belong to this task, which has no other reference to them.
        let row_of_c = |row: usize| unsafe {
            std::slice::from_raw_parts_mut(self.c.add(row * self.ld + along.start), ld)
        };
        if self.beta.is_some() {
            for (sums, row) in sums.chunks_exact_mut(ld).zip(rows.clone()) {
                T::widen(row_of_c(row), sums);
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
        );
        for (sums, row) in sums.chunks_exact_mut(ld).zip(rows) {
            if let Some(map) = self.map {
                map(sums);
            }
            T::narrow(sums, row_of_c(row));
        }
        scratch.sums = buffer;
    }

    /// Completes the sums of a block of stripes by columns.
    fn block(
        &self,
        s: Range<usize>,
        v: Range<usize>,
        target: Target<T::Acc>,
        scratch: &mut Scratch,
    ) {
        let family = self.family;
        let k = self.plan.k;
        // Tiles of equal height, rather than full ones and a rest.
        let rows = s.len().div_ceil(s.len().div_ceil(family.rows));
        for part in 0..k.count {
            let ks = k.range(part, self.k);
            let kc = ks.len();
            let tile =
                |stripes: *const T::Acc, first_s: usize, panel: Panel<T::Acc>, first_v: usize| {
                    let (ds, dv) = (first_s - s.start, first_v - v.start);
                    self.tile(
                        stripes,
                        rows.min(s.end - first_s),
                        panel,
                        kc,
                        target.at(ds, dv, self.plan.swapped),
                        part,
                    )
                };
            if self.plan.columns_pass {
                let stripes = self.stripes(&s, &ks, rows, scratch);
                for columns in self.panels(&v) {
                    let panel = self.panel(&columns, &ks, 0, scratch);
                    for first in s.clone().step_by(rows) {
                        tile(
                            stripes.wrapping_add((first - s.start) * kc),
                            first,
                            panel,
                            columns.start,
                        );
                    }
                }
            } else {
                for columns in self.panels(&v) {
                    self.panel(&columns, &ks, columns.start - v.start, scratch);
                }
                for first in s.clone().step_by(rows) {
                    let end = s.end.min(first + rows);
                    let stripes = self.stripes(&(first..end), &ks, rows, scratch);
                    for columns in self.panels(&v) {
                        let panel = self.packed(&columns, &ks, columns.start - v.start, scratch);
                        tile(stripes, first, panel, columns.start);
                    }
                }
            }
        }
    }

    /// Runs the kernel of one tile.
    fn tile(
        &self,
        s: *const T::Acc,
        rows: usize,
        panel: Panel<T::Acc>,
        kc: usize,
        target: Target<T::Acc>,
        part: usize,
    ) {
        let family = self.family;
        let last = part + 1 == self.plan.k.count;
        let bias = |p: *const T::Acc| if last { p } else { std::ptr::null() };
        let tile = Tile {
            kc,
            s,
            v: panel.p,
            v_k: panel.k_step,
            width: panel.width,
            out: Out {
                c: target.c,
                ld: target.ld,
                alpha: self.alpha,
                beta: if part == 0 {
                    self.beta
                } else {
                    Some(T::Acc::ONE)
                },
                bias_s: bias(target.bias_s),
                bias_v: bias(target.bias_v),
                floor: if last {
                    self.floor
                } else {
                    T::Acc::NEG_INFINITY
                },
                finish: if self.plan.swapped {
                    family.scatter
                } else {
                    family.along
                },
            },
        };
        let vectors = panel.width.div_ceil(family.lanes);
        // SAFETY: the packed operands hold the tile, the target is that of the tile, and the
        // family is one that the processor runs.
        unsafe { family.tiles[vectors - 1][rows - 1](&tile) }
    }

    /// The columns `v` in panels. Where they are read in place, a remainder that is not a whole
    /// vector is a panel of its own.
    fn panels(&self, v: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<T> {
        let family = self.family;
        let whole = if self.plan.direct_vectors {
            v.start + v.len() / family.lanes * family.lanes
        } else {
            v.end
        };
        blocks(v.start..whole, family.width()).chain(blocks(whole..v.end, family.width()))
    }

    /// The panel of the columns `v` for the terms `ks`: packed for the resident block's column
    /// `at`, or in place.
    fn panel(
        &self,
        v: &Range<usize>,
        ks: &Range<usize>,
        at: usize,
        scratch: &mut Scratch,
    ) -> Panel<T::Acc> {
        if !self.in_place(v) {
            let staged = self.stage(self.v, self.v_side, v, ks, scratch);
            // Room for the whole block at once: a buffer that grows forgets.
            let columns = if self.plan.columns_pass {
                self.family.width()
            } else {
                self.plan.resident
            };
            let room = packed_len(
                columns.max(at + v.len()),
                self.plan.k.size,
                self.family.lanes,
            );
            let packed = scratch.vectors.room::<T::Acc>(room);
            // SAFETY: the operand holds these columns and terms, the buffer has the room.
            unsafe {
                let to = packed.add(at * ks.len());
                (self.family.pack_vectors)(staged, self.family.width(), to);
            }
        }
        self.packed(v, ks, at, scratch)
    }

    /// Where [`panel`](Self::panel) left the columns.
    fn packed(
        &self,
        v: &Range<usize>,
        ks: &Range<usize>,
        at: usize,
        scratch: &mut Scratch,
    ) -> Panel<T::Acc> {
        if self.in_place(v) {
            let Side { k_step, .. } = self.v_side;
            // Columns in place are one apart, and `T` is `Acc`.
            let p = self.v.wrapping_add(v.start + ks.start * k_step).cast();
            return Panel {
                p,
                k_step,
                width: v.len(),
            };
        }
        let p = scratch
            .vectors
            .room::<T::Acc>(0)
            .wrapping_add(at * ks.len());
        Panel {
            p,
            k_step: v.len().next_multiple_of(self.family.lanes),
            width: v.len(),
        }
    }

    /// Whether the kernel reads these columns where they stand: only whole vectors.
    fn in_place(&self, v: &Range<usize>) -> bool {
        self.plan.direct_vectors && v.len().is_multiple_of(self.family.lanes)
    }

    /// The stripes `s` for the terms `ks`, packed in tiles of `rows`.
    fn stripes(
        &self,
        s: &Range<usize>,
        ks: &Range<usize>,
        rows: usize,
        scratch: &mut Scratch,
    ) -> *const T::Acc {
        let staged = self.stage(self.s, self.s_side, s, ks, scratch);
        let packed = scratch.stripes.room(s.len() * ks.len() + OVERRUN);
        // SAFETY: the operand holds these stripes and terms, the buffer has the room.
        unsafe { (self.family.pack_stripes)(staged, rows, packed) };
        packed
    }

    /// A piece of an operand as `Acc`: where it stands, or widened into scratch memory that the
    /// next call reuses.
    fn stage(
        &self,
        p: *const T,
        side: Side,
        part: &Range<usize>,
        ks: &Range<usize>,
        scratch: &mut Scratch,
    ) -> Block<T::Acc> {
        let Side { along, k_step, .. } = side;
        let first = part.start * along + ks.start * k_step;
        let (len, kc) = (part.len(), ks.len());
        if T::DIRECT {
            return Block {
                p: p.wrapping_add(first).cast(),
                len,
                along,
                kc,
                k_step,
            };
        }
        let wide = scratch.wide.room::<T::Acc>(len * kc);
        // SAFETY: `wide` has `len * kc` elements, zero bits are a valid `Acc`, and the operand
        // holds the part; runs of step one are contiguous in it.
        unsafe {
            wide.write_bytes(0, len * kc);
            let wide_row =
                |row: usize, n: usize| std::slice::from_raw_parts_mut(wide.add(row * n), n);
            let source = |i: usize, n: usize| std::slice::from_raw_parts(p.add(first + i), n);
            if along == 1 {
                (0..kc).for_each(|k| T::widen(source(k * k_step, len), wide_row(k, len)));
                return Block {
                    p: wide,
                    len,
                    along: 1,
                    kc,
                    k_step: len,
                };
            }
            for i in 0..len {
                if k_step == 1 {
                    T::widen(source(i * along, kc), wide_row(i, kc));
                } else {
                    for (k, w) in wide_row(i, kc).iter_mut().enumerate() {
                        T::widen(source(i * along + k * k_step, 1), std::slice::from_mut(w));
                    }
                }
            }
        }
        Block {
            p: wide,
            len,
            along: kc,
            kc,
            k_step: 1,
        }
    }
}
