//! Which operand is broadcast and which is vectorised, how the sums and the result are cut into
//! blocks, and how threads share the work. Pure: shapes and strides in, numbers out.

/// Terms summed in registers before a partial sum goes to memory.
const K_BLOCK: usize = 512;
/// Stripes or columns, or a few more, whose packed form stays near while the other operand passes:
/// a megabyte in `f32`, for a second-level cache of two. A smaller cache does too, since a tile
/// asks for them in time, and they are the smaller part of what it reads.
const RESIDENT: usize = 512;
/// With so few stripes the vectorised operand is read where it stands.
const DIRECT_STRIPES: usize = 16;
/// Cycles of a tile below which asking for memory costs more than waiting for it.
const WORTH_ASKING: usize = 1024;
/// Terms of a panel that are packed at a time, at least.
const SHARE: usize = 64;
/// Multiply-adds that are worth a thread: some 40 microseconds of one, about what it takes to wake
/// another.
const GRAIN: usize = 1 << 22;

/// The tile of a family.
#[derive(Clone, Copy, Debug)]
pub(super) struct TileShape {
    pub rows: usize,
    pub lanes: usize,
}

/// An operand as the kernels see it: `len` stripes or columns, `along` apart, by `k`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side {
    pub len: usize,
    pub along: usize,
    pub k_step: usize,
}

/// Equal cuts of a length, all but the last of `size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cuts {
    pub size: usize,
    pub count: usize,
}

impl Cuts {
    /// At most `limit` each, of about the same size, in multiples of `unit`.
    pub fn even(len: usize, limit: usize, unit: usize) -> Cuts {
        let count = len.div_ceil(limit.max(unit)).max(1);
        let size = len.div_ceil(count).next_multiple_of(unit).max(unit);
        Cuts {
            size,
            count: len.div_ceil(size).max(1),
        }
    }

    /// Piece `i` of `0..len`.
    pub fn range(&self, i: usize, len: usize) -> std::ops::Range<usize> {
        (i * self.size).min(len)..((i + 1) * self.size).min(len)
    }
}

/// How one product runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// The left operand is vectorised and the right one striped; tiles are written transposed.
    pub swapped: bool,
    /// The vectorised operand is not packed.
    pub direct_vectors: bool,
    pub k: Cuts,
    /// The columns pass by resident stripes, rather than stripes by columns: the longer operand
    /// passes, so that it is packed once, just before it is used.
    pub columns_pass: bool,
    /// Stripes that are resident while columns pass, at most.
    pub resident_stripes: usize,
    /// Columns that are resident while stripes pass, and those of a block of a half-type result,
    /// at most.
    pub resident_columns: usize,
}

/// **Depends on shapes and strides alone, never on the number of threads**: this is what keeps
/// results equal bit for bit.
pub(super) fn plan(tile: TileShape, a: Side, b: Side, k: usize) -> Plan {
    let direct = |s: Side, v: Side| v.along == 1 && s.len <= DIRECT_STRIPES;
    // Writing across costs more than writing along, so it has to be worth it.
    let swapped = 1.1 * cycles(tile, b, a, direct(b, a)) < cycles(tile, a, b, direct(a, b));
    let (s, v) = if swapped { (b, a) } else { (a, b) };
    Plan {
        swapped,
        direct_vectors: direct(s, v),
        k: Cuts::even(k, K_BLOCK, 16),
        columns_pass: v.len >= s.len,
        resident_stripes: Cuts::even(s.len, RESIDENT, tile.rows).size,
        resident_columns: Cuts::even(v.len, RESIDENT, 2 * tile.lanes).size,
    }
}

/// Rough cycles for each `k`: two multiply-adds a cycle, and what packing costs an element.
fn cycles(tile: TileShape, s: Side, v: Side, direct_vectors: bool) -> f64 {
    let multiply = s.len * v.len.next_multiple_of(tile.lanes);
    let pack_vectors = match v {
        _ if direct_vectors => 0.0,
        Side { along: 1, .. } => 0.15,
        Side { k_step: 1, .. } => 0.25,
        _ => 1.5,
    };
    let pack_stripes = match s {
        Side { k_step: 1, .. } => 0.25,
        Side { along: 1, .. } => 0.15,
        _ => 1.5,
    };
    multiply as f64 / (2 * tile.lanes) as f64
        + pack_vectors * v.len as f64
        + pack_stripes * s.len as f64
}

/// Terms of a panel that are packed after each of `tiles` tiles, until all are: whole vectors of
/// any family, and enough to be worth the call.
pub(super) fn share(terms: usize, tiles: usize) -> usize {
    terms.div_ceil(tiles).next_multiple_of(16).max(SHARE)
}

/// Whether a tile asks for the memory that is needed next. A row of it takes a cycle for each term,
/// since it has two vectors and a core does two multiply-adds.
pub(super) fn asks(rows: usize, terms: usize) -> bool {
    rows * terms >= WORTH_ASKING
}

/// Cuts of the stripes and of the columns, one piece of each for a task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Split {
    pub s: Cuts,
    pub v: Cuts,
}

/// Splits the result over at most `threads` tasks. Packed columns are cut first, since each task
/// packs its own; stripes, which are read in place, may be shared.
pub(super) fn split(tile: TileShape, s: usize, v: usize, k: usize, threads: usize) -> Split {
    let threads = threads.min(((s * v).saturating_mul(k.max(1)) / GRAIN).max(1));
    let candidate = |across: usize| {
        let down = threads / across;
        Split {
            s: Cuts::even(s, s.div_ceil(down).max(1), tile.rows),
            v: Cuts::even(v, v.div_ceil(across).max(1), tile.lanes),
        }
    };
    let slowest = |split: &Split| {
        let (s, v) = (split.s.size.min(s), split.v.size.min(v));
        s * v + 8 * (s + v)
    };
    (1..=threads)
        .map(candidate)
        .rev()
        .min_by_key(slowest)
        .unwrap_or_else(|| candidate(1))
}
