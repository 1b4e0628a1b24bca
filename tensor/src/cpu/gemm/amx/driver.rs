//! The loops around the unit's kernels: blocks, packing, tiles, and what the unit refuses.

use super::super::family::Family;
use super::super::job::{Job, Operand};
use super::super::pack::Block;
use super::super::parts::blocks;
use super::super::plan as shared;
use super::super::scalar::Scalar;
use super::super::{Bias, Epilogue, MatMut, MatRef, driver};
use super::aside::{Aside, Finishing, Packing};
use super::extent::Extent;
use super::finish::{Fresh, Sums};
use super::pack::Part;
use super::plan::{self, Plan};
use super::refused::{Area, gather};
use super::tile::{EDGE, Strips, TILE, Tiles};
use super::{Unit, family};
use crate::cpu::lock::Lock;
use crate::cpu::pieces::parallel_pieces;
use crate::cpu::scratch::{Buffer, NoMemory, Outcome, reserve};
use crate::cpu::{SimdLevel, threads};
use std::cell::Cell;
use std::ops::Range;

/// One product after planning.
pub(super) struct Product<'a, T: Scalar> {
    pub(super) unit: &'static Unit<T>,
    pub(super) family: &'static Family<f32>,
    pub(super) plan: Plan,
    pub(super) job: Job<'a, T>,
    refused: Lock<Vec<Area>>,
}

/// What a thread keeps between products.
#[derive(Default)]
struct Room {
    resident: Buffer,
    passing: Buffer,
    sums: Buffer,
    extents: Vec<Extent>,
    refused: Vec<bool>,
}

thread_local! {
    static SPARE: Cell<Option<Box<Room>>> = const { Cell::new(None) };
}

/// Runs a product that has a plan. Where there is no scratch memory, `c` is left with arbitrary
/// elements.
pub(super) fn product<T: Scalar<Compute = f32>>(
    unit: &'static Unit<T>,
    plan: Plan,
    mut c: MatMut<'_, T>,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    epilogue: &Epilogue<'_, T>,
) -> Result<(), NoMemory> {
    let mut job = Job::new(plan.swapped, &mut c, a, b, epilogue);
    job.alpha *= power(-unit.limits.scale);
    let product = Product {
        unit,
        family: family(),
        plan,
        job,
        refused: Lock::default(),
    };
    let (rows, columns) = (product.job.s.side.len, product.job.v.side.len);
    let split = shared::split(plan::SHAPE, rows, columns, a.cols, threads());
    let outcome = Outcome::default();
    parallel_pieces(0..split.s.count * split.v.count, 1, |_, tasks| {
        for task in tasks {
            let rows = split.s.range(task % split.s.count, rows);
            let columns = split.v.range(task / split.s.count, columns);
            let mut room = SPARE.take().unwrap_or_default();
            outcome.of(|| product.task(rows, columns, &mut room));
            SPARE.set(Some(room));
        }
    });
    outcome.result()?;
    for area in gather(product.refused.into_inner()) {
        let Area { rows, cols } = area;
        let bias = match epilogue.bias {
            Bias::None => Bias::None,
            Bias::PerRow(bias) => Bias::PerRow(&bias[rows.clone()]),
            Bias::PerCol(bias) => Bias::PerCol(&bias[cols.clone()]),
        };
        driver::product(
            SimdLevel::Avx512,
            MatMut::new(
                &mut c.data[rows.start * c.row_stride + cols.start..],
                rows.len(),
                cols.len(),
                c.row_stride,
            ),
            part(a, rows.start * a.row_stride, rows.len(), a.cols),
            part(b, cols.start * b.col_stride, b.rows, cols.len()),
            &Epilogue { bias, ..*epilogue },
        )?;
    }
    Ok(())
}

/// The matrix of the given shape that begins at element `from` of `m`'s slice.
fn part<T>(m: MatRef<'_, T>, from: usize, rows: usize, cols: usize) -> MatRef<'_, T> {
    MatRef::new(&m.data[from..], (rows, cols), (m.row_stride, m.col_stride))
}

/// Strip `j` of a range; empty beyond its end.
fn strip_range(range: &Range<usize>, j: usize) -> Range<usize> {
    let start = range.end.min(range.start + j * EDGE);
    start..range.end.min(start + EDGE)
}

/// A power of two.
fn power(exponent: i32) -> f32 {
    2f32.powi(exponent)
}

impl<T: Scalar<Compute = f32>> Product<'_, T> {
    /// Computes a piece of the result whose bounds lie on the grid of tiles.
    fn task(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        room: &mut Room,
    ) -> Result<(), NoMemory> {
        let (height, width) = (self.plan).block(self.unit.costs, rows.len(), columns.len());
        for rows in blocks(rows, height) {
            for columns in blocks(columns.clone(), width) {
                self.block(rows.clone(), columns, room)?;
            }
        }
        Ok(())
    }

    /// Computes a block: one side is packed and stays, the other one passes in strips, each of
    /// which is packed while the one before it is multiplied, if it is whole and need not be turned.
    fn block(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        room: &mut Room,
    ) -> Result<(), NoMemory> {
        let rows_stay = self.plan.rows_stay;
        let (staying, passing) = if rows_stay {
            (&rows, &columns)
        } else {
            (&columns, &rows)
        };
        let strips = |range: &Range<usize>| blocks(range.clone(), EDGE).enumerate();
        let (stay_count, pass_count) = (staying.len().div_ceil(EDGE), passing.len().div_ceil(EDGE));
        let k = self.plan.k;
        let one_block = k.count == 1;
        let step_bytes = 2 * self.unit.costs.parts * TILE;
        let strip_bytes = k.size.div_ceil(32) * step_bytes;
        let resident = room.resident.room::<u8>(stay_count * strip_bytes)?;
        let passing_room = room.passing.room::<u8>(2 * strip_bytes)?;
        let kept = if one_block {
            0
        } else {
            stay_count * pass_count
        };
        let mut fresh = Fresh::new(room.sums.room::<f32>((2 + kept) * EDGE * EDGE)?);
        let kept = fresh.behind();
        let mut waiting: Option<Sums> = None;
        room.refused.clear();
        reserve(&mut room.refused, stay_count * pass_count)?;
        room.refused.resize(stay_count * pass_count, false);
        room.extents.clear();
        reserve(&mut room.extents, stay_count)?;
        let limits = self.unit.limits;
        let tiles = Tiles::configure();
        for part in 0..k.count {
            let ks = k.range(part, self.job.k);
            let steps = ks.len().div_ceil(32);
            room.extents.clear();
            for (i, strip) in strips(staying) {
                let to = resident.wrapping_add(i * strip_bytes);
                let scale = (limits.scale != 0).then(|| power(limits.scale));
                let extent = self.pack(rows_stay, strip, &ks, scale, to);
                room.extents.push(extent);
            }
            // The extent of a strip that the kernels of the one before it packed.
            let mut prepared = None;
            for (j, strip) in strips(passing) {
                let passed = passing_room.wrapping_add(j % 2 * strip_bytes);
                let coming = passing_room.wrapping_add((j + 1) % 2 * strip_bytes);
                let extent = prepared
                    .take()
                    .unwrap_or_else(|| self.pack(!rows_stay, strip.clone(), &ks, None, passed));
                let next = strip_range(passing, j + 1);
                let block = self.packable(!rows_stay, &next, &ks, stay_count);
                let mut aside = Aside::NONE;
                let mut shares = 0;
                for (i, other) in strips(staying) {
                    let at = j * stay_count + i;
                    let kept = kept.wrapping_add(at * EDGE * EDGE);
                    let refused = &mut room.refused[at];
                    *refused |= !limits.allow(extent, room.extents[i], self.job.k);
                    let (rows, columns) = if rows_stay {
                        (other, strip.clone())
                    } else {
                        (strip.clone(), other)
                    };
                    if !*refused {
                        let stayed = resident.wrapping_add(i * strip_bytes).cast_const();
                        let (r, c) = if rows_stay {
                            (stayed, passed.cast_const())
                        } else {
                            (passed.cast_const(), stayed)
                        };
                        aside.packing = block.map_or(Packing::NONE, |block| {
                            Packing::share(block, coming, (i, stay_count))
                        });
                        if block.is_none() {
                            let share = (i, stay_count);
                            aside.ahead = self.operand(!rows_stay).ahead(&next, &ks, share);
                        }
                        shares += 1;
                        aside.finishing = waiting
                            .take()
                            .map_or(Finishing::NONE, |sums| self.finishing(sums, steps, &tiles));
                        let begins = part == 0 && !one_block;
                        let sums = if begins { kept } else { fresh.next() };
                        let strips = Strips {
                            steps,
                            rows: r,
                            columns: c,
                            sums,
                        };
                        // SAFETY: both strips were packed above for these terms; the sums have their
                        // room; what is packed and finished by the way belongs to this task.
                        unsafe { (self.unit.kernel)(&tiles, strips, &mut aside) };
                        if !begins {
                            waiting = Some(Sums {
                                fresh: sums,
                                kept: (part > 0).then_some(kept),
                                tile: (part + 1 == k.count).then_some((rows, columns)),
                            });
                        }
                    } else if part + 1 == k.count {
                        self.refuse(rows, columns)?;
                    }
                }
                if block.is_some() && shares == stay_count {
                    let rest = ks.start + ks.len() / 32 * 32..ks.end;
                    let extent = aside.extent();
                    prepared = Some(if rest.is_empty() {
                        extent
                    } else {
                        let to = coming.wrapping_add(ks.len() / 32 * step_bytes);
                        extent.and(self.pack(!rows_stay, next, &rest, None, to))
                    });
                }
            }
        }
        if let Some(sums) = waiting {
            self.complete(sums, &tiles);
        }
        Ok(())
    }

    fn operand(&self, is_rows: bool) -> Operand<T> {
        if is_rows { self.job.s } else { self.job.v }
    }

    /// A strip for the terms `ks`, if the kernel can pack it by the way, in `shares`.
    fn packable(
        &self,
        is_rows: bool,
        strip: &Range<usize>,
        ks: &Range<usize>,
        shares: usize,
    ) -> Option<Block<f32>> {
        let block = self.operand(is_rows).block(strip, ks);
        let straight = is_rows == (block.k_step == 1);
        let whole = strip.len() == EDGE && shares >= Packing::FEWEST;
        (self.unit.aside && straight && whole).then_some(block.cast())
    }

    /// Packs a strip of the rows or the columns for the terms `ks`.
    fn pack(
        &self,
        is_rows: bool,
        strip: Range<usize>,
        ks: &Range<usize>,
        scale: Option<f32>,
        to: *mut u8,
    ) -> Extent {
        let part = if is_rows { Part::Rows } else { Part::Columns };
        let block = self.operand(is_rows).block(&strip, ks);
        // SAFETY: the operand holds this part, and one of its steps is one, or there would be no
        // plan; `to` has room for a strip of the plan's terms; the unit is available.
        unsafe { (self.unit.pack)(block, part, scale, to) }
    }

    /// Notes a tile for the vector kernels.
    fn refuse(&self, rows: Range<usize>, columns: Range<usize>) -> Result<(), NoMemory> {
        let (rows, cols) = self.job.turned(rows, columns);
        self.refused.with(|refused| {
            reserve(refused, 1)?;
            refused.push(Area { rows, cols });
            Ok(())
        })
    }
}
