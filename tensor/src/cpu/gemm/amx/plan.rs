//! Which products the matrix unit computes, and in which pieces. Pure.

use super::super::plan::{Cuts, Side, TileShape};
use super::tile::EDGE;

/// Fewest terms: below, the rounding inside the unit's steps may exceed the bound of
/// [`gemm`](super::super::gemm), and most of a step is padding.
const FEWEST_TERMS: usize = 32;
/// Numbers of a block of sums, which stays in the second-level cache while terms are added.
const SUMS: usize = 1 << 17;
/// The shorter side of such a block, which is packed first and stays there too.
const SHORT: usize = 256;
/// The same where there is only one block of terms, and no sums to keep.
const SHORT_ALONE: usize = 1024;

/// The micro-tile, for sharing the result among threads.
pub(super) const SHAPE: TileShape = TileShape {
    rows: EDGE,
    lanes: EDGE,
};

/// What a type's kernel does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Costs {
    /// Parts of each number.
    pub parts: usize,
    /// Products of parts.
    pub products: usize,
    /// Terms in a block, so that a packed strip fits the first-level cache twice over with the
    /// other strip passing through it.
    pub terms: usize,
}

/// How one product runs on the unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// The right operand is the unit's left one; tiles are written transposed.
    pub swapped: bool,
    pub k: Cuts,
}

/// The plan, or `None` where the vector kernels take about as long or less, or where an operand
/// has no step of one.
///
/// **Depends on shapes and strides alone, never on the number of threads.**
pub(super) fn plan(costs: Costs, a: Side, b: Side, k: usize, forced: bool) -> Option<Plan> {
    let readable = |side: Side| side.along == 1 || side.k_step == 1;
    if !readable(a) || !readable(b) || k < FEWEST_TERMS {
        return None;
    }
    let (m, n) = (a.len, b.len);
    // Rows come as they are if their terms follow each other, columns if they follow themselves.
    let turn = |rows: Side, columns: Side| {
        let rows = if rows.k_step == 1 { 0 } else { rows.len * k };
        let columns = if columns.k_step == 1 {
            columns.len * k
        } else {
            0
        };
        rows + columns
    };
    let (along, across) = (turn(a, b), turn(b, a) + m * n / 2);
    let swapped = across < along;
    let padded = |x: usize| x.next_multiple_of(EDGE);
    // Cycles, as measured: of the unit, of packing, of turning, of writing; and of the vector
    // kernels at 0.7 of their peak (2026-11-23).
    let unit = padded(m) * padded(n) * padded(k) / 32_768 * 80 * costs.products
        + (m + n) * k / 4 * (1 + costs.parts) / 2
        + along.min(across) / 2
        + m * n / 4
        + 2000;
    let vector =
        m * n.next_multiple_of(16).min(n + m.next_multiple_of(16)) * k / 22 + (m + n) * k / 4;
    if !forced && unit > vector * 4 / 5 {
        return None;
    }
    Some(Plan {
        swapped,
        k: Cuts::even(k, costs.terms, 32),
    })
}

/// The most rows and columns of a block of the result, for a piece of `rows` by `columns`.
pub(super) fn block(rows: usize, columns: usize, k: Cuts) -> (usize, usize) {
    let short = rows.min(columns);
    let (short, long) = if k.count > 1 {
        let short = short.min(SHORT).next_multiple_of(EDGE);
        (short, SUMS / short / EDGE * EDGE)
    } else {
        (short.min(SHORT_ALONE).next_multiple_of(EDGE), usize::MAX)
    };
    if rows <= columns {
        (short, long)
    } else {
        (long, short)
    }
}
