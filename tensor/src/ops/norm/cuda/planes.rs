//! How the kernels of batch normalisation see `[n, c, …]`, and how the sums of a channel are split.

use crate::cuda::{Arg, Grid, Issue, View, is_wide};
use crate::ops::norm::batch_norm::Dims;
use crate::{Layout, Result, Tensor};

/// The text that stands before the kernels of batch normalisation, as a literal.
macro_rules! planes_cu {
    () => {
        concat!(
            crate::cuda::rows_cu!(),
            "#line 1 \"tensor/src/ops/norm/cuda/planes.cu\"\n",
            include_str!("planes.cu")
        )
    };
}
pub(super) use planes_cu;

/// Threads of a block of the first stage, and channels of a block of the second one.
const THREADS: usize = 256;
const CHANNELS: usize = 8;
/// Places of the planes that a block sums, and threads that share one.
const PLACES: usize = 32;
const DEALT: usize = 8;
/// Elements of a plane below which threads sum places, and not planes.
const SMALL: usize = 32;
/// Blocks that keep a card busy.
const BUSY: usize = 2048;
/// Parts of a channel, at most.
const MOST_PARTS: usize = 256;
/// Turns that a thread takes in a part, at least.
const LEAST_TURNS: usize = 8;

/// `Planes` of the kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Planes {
    images: i64,
    channels: i64,
    chunks: i64,
}

/// `Image` of the kernels: where the planes of a tensor are.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Image {
    image: i64,
    channel: i64,
    plane: View,
}

/// `Channels` of the kernels: a number for each channel, or none.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Channels {
    numbers: u64,
    step: i64,
    computed: i64,
}

/// `Affine` of the kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Affine {
    pub(super) mean: Channels,
    pub(super) invstd: Channels,
    pub(super) weight: Channels,
    pub(super) bias: Channels,
}

/// `Split` of the kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Split {
    parts: i64,
    per_part: i64,
    by_place: i64,
}

/// How the kernels walk over the planes of some tensors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walk {
    pub(super) wide: bool,
    pub(super) planes: Planes,
    pub(super) split: Split,
    /// The grid of the first stage of sums.
    pub(super) grid: Grid,
    /// Sums of each channel after the first stage.
    pub(super) entries: usize,
}

impl Walk {
    /// Over `tensors`, all of the dimensions `d`.
    pub(super) fn new(d: &Dims, tensors: &[Option<&Tensor>]) -> Walk {
        let mut tensors = tensors.iter().flatten();
        let first = tensors.clone().next();
        let per_chunk = first.map_or(1, |t| 16 / t.dtype().size());
        let wide = tensors.all(|t| is_wide(t, t.rank() - 2)) && d.plane > 0;
        let chunks = if wide { d.plane / per_chunk } else { d.plane };
        let places = d.c * chunks;
        let by_place = d.plane < SMALL;
        // What is cut into parts; blocks of one part; elements of a thread's turns.
        let (whole, blocks, turn) = match by_place {
            true => (d.n, places.div_ceil(PLACES), DEALT),
            false => (d.n * chunks, d.c, THREADS),
        };
        let parts = whole.div_ceil(turn * LEAST_TURNS).clamp(1, MOST_PARTS);
        let parts = (BUSY / blocks.max(1)).clamp(1, parts);
        let entries = match (d.n * d.plane, by_place) {
            (0, _) => 0,
            (_, true) => chunks * parts,
            (_, false) => parts,
        };
        Walk {
            wide,
            planes: Planes {
                images: d.n as i64,
                channels: d.c as i64,
                chunks: chunks as i64,
            },
            split: Split {
                parts: parts as i64,
                per_part: whole.div_ceil(parts) as i64,
                by_place: i64::from(by_place),
            },
            grid: blocks_of(blocks * parts, THREADS),
            entries,
        }
    }

    /// The grid of the second stage of sums.
    pub(super) fn by_channel(&self) -> Grid {
        blocks_of((self.planes.channels as usize).div_ceil(CHANNELS), THREADS)
    }

    /// A grid over all chunks.
    pub(super) fn over(&self) -> Grid {
        let p = &self.planes;
        Grid::over((p.images * p.channels * p.chunks) as usize)
    }

    pub(super) fn name(&self, wide: &'static str, single: &'static str) -> &'static str {
        if self.wide { wide } else { single }
    }
}

fn blocks_of(blocks: usize, threads: usize) -> Grid {
    Grid {
        blocks: [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1],
        threads: [threads as u32, 1, 1],
        strides: false,
    }
}

impl Image {
    /// # Errors
    /// [`Error::InvalidShape`](crate::Error::InvalidShape) for more axes than a kernel walks over.
    pub(super) fn new(lane: &Issue, t: Option<&Tensor>) -> Result<Image> {
        let op = lane.op();
        let Some(t) = t.filter(|t| t.numel() > 0) else {
            return Ok(Image {
                image: 0,
                channel: 0,
                plane: View::new(op, &Layout::contiguous(op, [1].into())?)?,
            });
        };
        let strides = t.layout().strides();
        let plane = t.layout().at_origin().narrow(0, 0, 1)?.narrow(1, 0, 1)?;
        Ok(Image {
            image: strides[0] as i64,
            channel: strides[1] as i64,
            plane: View::new(op, &plane)?,
        })
    }
}

impl Channels {
    /// The numbers of `t`, beside elements of the type of `x`.
    pub(super) fn new(lane: &Issue, t: Option<&Tensor>, x: &Tensor) -> Channels {
        match t {
            Some(t) => Channels {
                numbers: lane.address(t).bits(),
                step: t.layout().strides()[0] as i64,
                computed: i64::from(t.dtype() != x.dtype()),
            },
            None => Channels::none(),
        }
    }

    pub(super) fn none() -> Channels {
        Channels {
            numbers: 0,
            step: 0,
            computed: 0,
        }
    }

    /// Contiguous numbers of the type of computation.
    pub(super) fn computed(address: Arg<'_>) -> Channels {
        Channels {
            numbers: address.bits(),
            step: 1,
            computed: 1,
        }
    }
}
