//! From the sums that a kernel leaves to the result: added to those of earlier terms, scaled, given
//! what the epilogue asks for. Where that is one multiplication, the next kernel does it by the way.

use super::super::kernel::{Out, Tile};
use super::super::scalar::Scalar;
use super::aside::Finishing;
use super::driver::Product;
use super::tile::{EDGE, Tiles};
use crate::cpu::convert;
use std::ops::Range;

/// Two tiles' room for sums: while a kernel writes one, the other is finished.
pub(super) struct Fresh {
    rooms: *mut f32,
    turn: bool,
}

impl Fresh {
    /// In the first two tiles of `rooms`.
    pub fn new(rooms: *mut f32) -> Fresh {
        Fresh { rooms, turn: false }
    }

    /// What follows both.
    pub fn behind(&self) -> *mut f32 {
        self.rooms.wrapping_add(2 * EDGE * EDGE)
    }

    /// The one that was not given out last.
    pub fn next(&mut self) -> *mut f32 {
        self.turn = !self.turn;
        self.rooms
            .wrapping_add(usize::from(self.turn) * EDGE * EDGE)
    }
}

/// Sums of a tile that a kernel has just left.
pub(super) struct Sums {
    pub fresh: *mut f32,
    /// Those of earlier terms.
    pub kept: Option<*mut f32>,
    /// Rows and columns, if these were the last terms.
    pub tile: Option<(Range<usize>, Range<usize>)>,
}

impl<T: Scalar<Compute = f32>> Product<'_, T> {
    /// What the next kernel, one of `steps`, does about the sums. What it cannot do is done now.
    pub fn finishing(&self, sums: Sums, steps: usize, tiles: &Tiles) -> Finishing {
        let plain = T::DIRECT
            && !self.job.swapped
            && self.job.beta.is_none()
            && self.job.bias_s.is_empty()
            && self.job.bias_v.is_empty()
            && self.job.floor == f32::NEG_INFINITY
            && self.job.map.is_none();
        let target = match &sums.tile {
            None => sums.kept.map(|kept| (kept, EDGE, 1.0)),
            Some((rows, columns)) if plain && rows.len() == EDGE && columns.len() == EDGE => {
                let c = self.job.at(rows.start, columns.start);
                Some((c.cast(), self.job.ld, self.job.alpha))
            }
            Some(_) => None,
        };
        match target {
            Some((to, ld, alpha)) if self.unit.aside && steps >= Finishing::FEWEST_STEPS => {
                Finishing::new(sums.fresh, sums.kept, (to, ld), alpha, steps)
            }
            _ => {
                self.complete(sums, tiles);
                Finishing::NONE
            }
        }
    }

    /// Does all that is to be done about the sums.
    pub fn complete(&self, sums: Sums, tiles: &Tiles) {
        let Sums { fresh, kept, tile } = sums;
        // SAFETY: a kernel has left `fresh`, and earlier ones `kept`; the tile belongs to the task
        // whose sums these are.
        unsafe {
            if let Some(kept) = kept {
                self.add(fresh, kept);
            }
            if let Some((rows, columns)) = tile {
                self.finish(rows, columns, kept.unwrap_or(fresh), tiles);
            }
        }
    }

    /// Adds a block's sums to those of the blocks before it. Each block is summed on its own, from
    /// zero: its many additions are rounded at the size of the block's sum, not of the whole.
    ///
    /// # Safety
    /// Both hold `EDGE * EDGE` sums, which only this task knows.
    unsafe fn add(&self, partial: *const f32, sums: *mut f32) {
        let along = self.family.along;
        let out = Out {
            c: sums,
            ld: EDGE,
            alpha: 1.0,
            beta: Some(1.0),
            bias_s: std::ptr::null(),
            bias_v: std::ptr::null(),
            floor: f32::NEG_INFINITY,
            finish: along,
        };
        // SAFETY: forwarded; the processor has the family's instructions.
        unsafe { along(&Tile::summed(EDGE, out), partial, EDGE, EDGE) };
    }

    /// Takes the sums of a tile to the result.
    ///
    /// # Safety
    /// `sums` holds `EDGE * EDGE` of them, and the tile of the result belongs to this task.
    unsafe fn finish(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        sums: *const f32,
        tiles: &Tiles,
    ) {
        let (height, width) = (rows.len(), columns.len());
        let (c_rows, c_cols) = self.job.turned(rows.clone(), columns.clone());
        let mut wide = [0.0f32; EDGE * EDGE];
        let mut wide_bias = [0.0f32; EDGE];
        let c = self.job.at(rows.start, columns.start);
        // SAFETY: these elements belong to this task, which has no other reference to them while
        // one of these pieces lives.
        let piece = |i: usize| unsafe {
            std::slice::from_raw_parts_mut(c.wrapping_add(i * self.job.ld), c_cols.len())
        };
        let wide_row = |i: usize| i * EDGE..i * EDGE + c_cols.len();
        let (to, ld) = if T::DIRECT {
            (c.cast::<f32>(), self.job.ld)
        } else {
            if self.job.beta.is_some() {
                (0..c_rows.len()).for_each(|i| convert::widen(piece(i), &mut wide[wide_row(i)]));
            }
            (wide.as_mut_ptr(), EDGE)
        };
        // At most one of the two is there.
        let mut bias = |bias: &[T], part: Range<usize>| -> *const f32 {
            if bias.is_empty() {
                return std::ptr::null();
            }
            let part = &bias[part];
            if T::DIRECT {
                return part.as_ptr().cast();
            }
            convert::widen(part, &mut wide_bias[..part.len()]);
            wide_bias.as_ptr()
        };
        let finish = match self.job.swapped {
            true => self.family.scatter,
            false => self.family.along,
        };
        let out = Out {
            c: to,
            ld,
            alpha: self.job.alpha,
            beta: self.job.beta,
            bias_s: bias(self.job.bias_s, rows),
            bias_v: bias(self.job.bias_v, columns),
            floor: self.job.floor,
            finish,
        };
        // SAFETY: the sums are those of the tile, its target has room for it, and the processor
        // has the family's instructions.
        unsafe { finish(&Tile::summed(width, out), sums, height, EDGE) };
        for i in 0..c_rows.len() {
            if !T::DIRECT {
                let row = &mut wide[wide_row(i)];
                self.job.map.iter().for_each(|map| map(row));
                convert::narrow(row, piece(i));
            } else if let Some(map) = self.job.map {
                let row = c.wrapping_add(i * self.job.ld).cast::<f32>();
                // SAFETY: as for `piece`; `T` is `f32`.
                map(unsafe { std::slice::from_raw_parts_mut(row, c_cols.len()) });
            }
        }
        if self.job.map.is_some() {
            // It may have multiplied matrices of its own.
            tiles.restore();
        }
    }
}
