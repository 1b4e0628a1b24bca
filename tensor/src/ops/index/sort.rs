//! A stable sort of indices on a card: what meets at one index comes to stand side by side, in order.

use crate::cuda::{Arg, Grid, Issue, Source, View};
use crate::{DType, Layout, Result, Tensor};

/// The type of the keys and places, which are unsigned, and that of the indices.
pub(crate) static KERNELS: Source = Source {
    family: "index-sort",
    path: "tensor/src/ops/index/sort.cu",
    before: "",
    text: include_str!("sort.cu"),
    after: "",
    types: &[
        &[DType::I32, DType::I64],
        &[DType::I64, DType::I64],
        &[DType::I32, DType::I32],
        &[DType::I64, DType::I32],
    ],
};

/// Keys that a block moves: `TILE` of the kernels.
const TILE: usize = 8 * 256;
/// Values of a digit.
const DIGITS: usize = 256;
/// Bits of a digit.
const BITS: u32 = 8;

/// Which keys are made of indices: `start of the line of i + index of i · along`.
#[derive(Debug)]
pub(crate) struct Keys<'a> {
    /// The indices, in row-major order.
    pub(crate) indices: &'a Tensor,
    /// Their layout, which may stretch them.
    pub(crate) layout: &'a Layout,
    /// Where the line of each index starts: of the same shape.
    pub(crate) lines: &'a Layout,
    pub(crate) along: usize,
    /// All indices are below it.
    pub(crate) extent: usize,
    /// Whether the index -1 stands for none.
    pub(crate) or_none: bool,
    /// All keys are below it; it is the key of what has none.
    pub(crate) none: usize,
}

/// Memory for a sort, and the type of its keys.
#[derive(Debug)]
pub(crate) struct Sort {
    n: usize,
    /// The number type of keys and places, as the kernels are compiled for it.
    pub(crate) key: DType,
    keys: [Arg<'static>; 2],
    places: [Arg<'static>; 2],
    counts: Arg<'static>,
    totals: Arg<'static>,
    fault: [Arg<'static>; 2],
}

/// Sorted keys and the places at which they stood: arrays of [`Sort::key`], unsigned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sorted {
    pub(crate) keys: Arg<'static>,
    pub(crate) places: Arg<'static>,
}

impl Sort {
    /// Memory to sort `n` keys, of which `none` is the largest: 16 bytes for each and a little more;
    /// 32 where keys or places need 64 bits.
    pub(crate) fn new(lane: &mut Issue, n: usize, none: usize) -> Result<Sort> {
        let narrow = n.max(none) <= u32::MAX as usize;
        let key = if narrow { DType::I32 } else { DType::I64 };
        let tiles = n.div_ceil(TILE);
        // Each part starts at a multiple of 256 bytes.
        let part = |len: usize| len.saturating_mul(key.size()).next_multiple_of(256);
        let parts = [n, n, n, n, tiles * DIGITS, DIGITS].map(part);
        let bytes = parts.iter().fold(0, |sum: usize, p| sum.saturating_add(*p));
        let fault = lane.index_flag()?;
        let Arg::Address(mut at) = lane.scratch(bytes)? else {
            unreachable!("scratch memory has an address");
        };
        let [k0, k1, p0, p1, counts, totals] = parts.map(|bytes| {
            let address = Arg::Address(at);
            at += bytes as u64;
            address
        });
        Ok(Sort {
            n,
            key,
            keys: [k0, k1],
            places: [p0, p1],
            counts,
            totals,
            fault,
        })
    }

    /// Makes the keys and sorts them.
    pub(crate) fn run(&self, lane: &mut Issue, keys: &Keys<'_>) -> Result<Sorted> {
        let types = [self.key, keys.indices.dtype()];
        let op = lane.op();
        let (view, lines) = (View::new(op, keys.layout)?, View::new(op, keys.lines)?);
        let (n, tiles) = (Arg::Int(self.n as i64), self.n.div_ceil(TILE));
        let [fault, place] = self.fault;
        let make = [
            lane.address(keys.indices),
            Arg::Struct(bytemuck::bytes_of(&view)),
            Arg::Struct(bytemuck::bytes_of(&lines)),
            Arg::Int(keys.along as i64),
            self.keys[0],
            n,
            Arg::Int(keys.extent as i64),
            Arg::Small(keys.or_none.into()),
            Arg::Int(keys.none as i64),
            fault,
            place,
        ];
        let grid = Grid::over(self.n);
        lane.launch(&KERNELS, &types, "make_keys", grid, &make)?;
        let by_tile = Grid::over(tiles.saturating_mul(256));
        let by_digit = Grid {
            strides: false,
            ..Grid::over(DIGITS * 256)
        };
        let bits = usize::BITS - keys.none.leading_zeros();
        let passes = bits.div_ceil(BITS).max(1);
        let tiles = Arg::Int(tiles as i64);
        for pass in 0..passes {
            let (from, to) = (pass as usize % 2, (pass as usize + 1) % 2);
            let shift = Arg::Small((pass * BITS) as i32);
            let count = [self.keys[from], n, shift, self.counts, tiles];
            lane.launch(&KERNELS, &types, "count_digits", by_tile, &count)?;
            let sum = [self.counts, tiles, self.totals];
            lane.launch(&KERNELS, &types, "sum_tiles", by_digit, &sum)?;
            let places = match pass {
                0 => Arg::Address(0),
                _ => self.places[from],
            };
            let moved = [
                self.keys[from],
                places,
                self.keys[to],
                self.places[to],
                n,
                shift,
                self.counts,
                self.totals,
                tiles,
            ];
            lane.launch(&KERNELS, &types, "move_keys", by_tile, &moved)?;
        }
        let last = passes as usize % 2;
        Ok(Sorted {
            keys: self.keys[last],
            places: self.places[last],
        })
    }
}
