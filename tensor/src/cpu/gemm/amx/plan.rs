//! Which products the matrix unit computes, and in which pieces. Pure.

use super::super::plan::{Cuts, Side, TileShape};
use super::tile::EDGE;

/// Fewest terms: below, the rounding inside the unit's steps may exceed the bound of
/// [`gemm`](super::super::gemm), and most of a step is padding.
const FEWEST_TERMS: usize = 32;
/// Bytes of the side of a block of the result that is packed first and stays in the second-level
/// cache while the other one passes.
const STAY: usize = 1 << 20;
/// Numbers of a block of sums, which stays there too where there is more than one block of terms.
const SUMS: usize = 1 << 17;
/// The staying side of such a block.
const SHORT: usize = 256;

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
    /// Most terms in a block: what is summed without going to memory.
    pub terms: usize,
}

impl Costs {
    /// Bytes of a packed term.
    fn bytes(self) -> usize {
        2 * self.parts
    }
}

/// How one product runs on the unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// The right operand is the unit's left one; tiles are written transposed.
    pub swapped: bool,
    /// A block's rows stay while its columns pass, rather than the other way. The staying side is
    /// the one that is scaled, and so decides which tiles the unit takes.
    pub rows_stay: bool,
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
    let short = padded(m.min(n)).min(SHORT);
    let terms = (STAY / (short * costs.bytes())).min(costs.terms);
    // The shorter side stays, but for sides of similar length the one along which the result is
    // contiguous: then tiles that follow each other are neighbours in memory, where the processor's
    // own prefetcher helps (a result of 1,024 x 1,024 with 128 terms: 1.30 against 1.02 ms,
    // 2026-11-23).
    let rows_stay = if swapped { n <= 2 * m } else { 2 * m <= n };
    Some(Plan {
        swapped,
        rows_stay,
        k: Cuts::even(k, terms, 32),
    })
}

impl Plan {
    /// The most rows and columns of a block of the result, for a piece of `rows` by `columns`.
    pub fn block(&self, costs: Costs, rows: usize, columns: usize) -> (usize, usize) {
        let stay = if self.rows_stay { rows } else { columns }.next_multiple_of(EDGE);
        let (stay, pass) = if self.k.count > 1 {
            let stay = stay.min(SHORT);
            (stay, SUMS / stay / EDGE * EDGE)
        } else {
            let fits = STAY / (self.k.size * costs.bytes()) / EDGE * EDGE;
            (stay.min(fits), usize::MAX)
        };
        if self.rows_stay {
            (stay, pass)
        } else {
            (pass, stay)
        }
    }
}
