//! What a kernel does by the way while the unit multiplies: it asks for memory that will be needed
//! next, packs the next strip, and finishes the sums of the kernel before it. The unit needs few
//! instructions, so this costs next to nothing.

use super::super::pack::Block;
use super::extent::Extent;
use super::tile::{EDGE, TILE};

/// Steps of the source between the one that is packed and the one that is asked for.
const AHEAD: usize = 2;

/// The state of a kernel's work by the way; the layout is known to the assembly in `tile.rs`.
#[repr(C, align(64))]
pub(super) struct Aside {
    /// Asked for in the second-level cache.
    pub ahead: Ahead,
    pub packing: Packing,
    pub finishing: Finishing,
    /// As in `pack.rs`: magnitudes, least and greatest.
    pub range: [[u32; 16]; 2],
}

impl Aside {
    /// Nothing.
    pub const NONE: Aside = Aside {
        ahead: Ahead::NONE,
        packing: Packing::NONE,
        finishing: Finishing::NONE,
        range: [[u32::MAX; 16], [0; 16]],
    };

    /// The extent of what was packed.
    pub fn extent(&self) -> Extent {
        let [min, max] = self.range;
        Extent::of(
            min.into_iter().fold(u32::MAX, u32::min),
            max.into_iter().fold(0, u32::max),
        )
    }
}

/// Memory to ask for: pieces of 32 elements, some in each step.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Ahead {
    /// The first piece. An address that holds nothing does no harm.
    pub p: *const u8,
    /// Bytes from piece to piece.
    pub piece: usize,
    /// Pieces in a step.
    pub pieces: usize,
    /// Bytes from step to step.
    pub step: usize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Ahead = Ahead {
        p: std::ptr::null(),
        piece: 0,
        pieces: 0,
        step: 0,
    };
}

/// A share of the packing of a strip of `f32` that is not turned: in each step of the kernel some
/// lines of the tiles of one step of the strip. All distances in bytes.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Packing {
    from: *const u8,
    to: *mut u8,
    /// From line to line.
    line: usize,
    /// Between the vectors that a line's pairs come from.
    apart: usize,
    /// From the strip's first half to its second.
    half: usize,
    /// From step to step.
    step: usize,
    /// The kernel's slots that take a line, as bits.
    slots: usize,
    /// Steps that are left.
    steps: usize,
    /// From a line that is packed to the two places that are asked for: one for each pair of
    /// neighbouring cache lines, which the processor fetches together.
    ahead: [usize; 2],
}

impl Packing {
    /// Lines that a kernel can pack in one step.
    const SLOTS: usize = 8;
    /// Fewest shares of a strip.
    pub const FEWEST: usize = 16 / Self::SLOTS;

    /// Nothing.
    pub const NONE: Packing = Packing {
        from: std::ptr::null(),
        to: std::ptr::null_mut(),
        line: 0,
        apart: 0,
        half: 0,
        step: 0,
        slots: 0,
        steps: 0,
        ahead: [0; 2],
    };

    /// Share `i` of `count`, [`FEWEST`](Self::FEWEST) or more, of the whole steps of a whole strip
    /// that comes out of memory as its tiles want it. Together the shares pack all of them.
    pub fn share(from: Block<f32>, to: *mut u8, (i, count): (usize, usize)) -> Packing {
        debug_assert!(from.len == EDGE && count >= Self::FEWEST);
        let Block { along, k_step, .. } = from;
        let (line, apart, half, step) = if k_step == 1 {
            (along, 16, 16 * along, 32)
        } else {
            (k_step, 16 * k_step, 16, 32 * k_step)
        };
        let (first, end) = (16 * i / count, 16 * (i + 1) / count);
        let lines = end - first;
        let slots = (0..lines).fold(0, |slots, line| slots | 1 << (line * Self::SLOTS / lines));
        let ahead = AHEAD * step;
        Packing {
            from: from.p.wrapping_add(first * line).cast(),
            to: to.wrapping_add(first * TILE / 16),
            line: 4 * line,
            apart: 4 * apart,
            half: 4 * half,
            step: 4 * step,
            slots,
            steps: from.kc / 32,
            ahead: [4 * ahead, 4 * (ahead + apart.max(half))],
        }
    }
}

/// A tile of sums that the kernel before this one left: `to = alpha (from + kept)`, some rows in
/// each step. All distances in bytes.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Finishing {
    from: *const f32,
    /// `from` again if there are none.
    kept: *const f32,
    to: *mut f32,
    ld: usize,
    /// The kernel's slots that take a row, as bits.
    slots: usize,
    /// Steps that are left.
    steps: usize,
    alpha: f32,
    /// Which numbers of a vector are added to those kept: all or none.
    adds: u32,
}

impl Finishing {
    /// Rows that a kernel can finish in one step.
    const SLOTS: usize = 16;
    /// Fewest steps of a kernel that finishes a tile.
    pub const FEWEST_STEPS: usize = EDGE / Self::SLOTS;

    /// Nothing.
    pub const NONE: Finishing = Finishing {
        from: std::ptr::null(),
        kept: std::ptr::null(),
        to: std::ptr::null_mut(),
        ld: 0,
        slots: 0,
        steps: 0,
        alpha: 0.0,
        adds: 0,
    };

    /// For a kernel of `steps`, [`FEWEST_STEPS`](Self::FEWEST_STEPS) or more; rows of the target
    /// are `ld` apart.
    pub fn new(
        from: *const f32,
        kept: Option<*mut f32>,
        (to, ld): (*mut f32, usize),
        alpha: f32,
        steps: usize,
    ) -> Finishing {
        debug_assert!(steps >= Self::FEWEST_STEPS);
        // Every slot or every second one.
        let (slots, steps) = if steps < 2 * Self::FEWEST_STEPS {
            (0xffff, Self::FEWEST_STEPS)
        } else {
            (0x5555, 2 * Self::FEWEST_STEPS)
        };
        Finishing {
            from,
            kept: kept.map_or(from, <*mut f32>::cast_const),
            to,
            ld: ld * size_of::<f32>(),
            slots,
            steps,
            alpha,
            adds: if kept.is_some() { 0xffff } else { 0 },
        }
    }
}
