//! [`Rows`]: how kernels walk over the rows of a tensor, and how many threads share a row.

use super::issue::{BLOCK, Grid, MOST_BLOCKS};
use super::view::View;
use crate::{Layout, Result, Tensor};

/// The text that stands before the source of kernels over rows, as a literal.
macro_rules! rows_cu {
    () => {
        concat!(
            "#line 1 \"tensor/src/cuda/rows.cu\"\n",
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/cuda/rows.cu"))
        )
    };
}
pub(crate) use rows_cu;

/// Bytes that a thread reads at once, where rows allow it.
const WIDE: usize = 16;

/// Threads that share a long row: `MOST_THREADS` of `rows.cu`.
const MOST_THREADS: usize = 512;

/// Rows that keep a card busy with a few threads for each.
const MANY_ROWS: usize = 16 * 1024;

/// Where the rows of a tensor start, and where the elements of a row are: `Rows` of `rows.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Rows {
    lead: View,
    inner: View,
}

impl Rows {
    /// The rows of `t` are its last `axes` axes.
    ///
    /// # Errors
    /// [`Error::InvalidShape`](crate::Error::InvalidShape) for more axes than a kernel walks over.
    pub(crate) fn new(op: &'static str, t: &Tensor, axes: usize) -> Result<Rows> {
        let first = t.rank() - axes;
        let at_start = |mut layout: Layout, range: std::ops::Range<usize>| {
            for axis in range {
                let extent = layout.shape()[axis].min(1);
                layout = layout.narrow(axis as isize, 0, extent)?;
            }
            Ok(layout)
        };
        if t.numel() == 0 {
            let nothing = View::new(op, &Layout::contiguous(op, [1].into())?)?;
            return Ok(Rows {
                lead: nothing,
                inner: nothing,
            });
        }
        let layout = t.layout().at_origin();
        Ok(Rows {
            lead: View::new(op, &at_start(layout.clone(), first..t.rank())?)?,
            inner: View::new(op, &at_start(layout, 0..first)?)?,
        })
    }
}

/// The last `axes` axes of `t` can be read 16 bytes at a time: they are contiguous, and every row starts
/// at a multiple of 16 bytes.
pub(crate) fn is_wide(t: &Tensor, axes: usize) -> bool {
    let (layout, size) = (t.layout(), t.dtype().size());
    let first = t.rank() - axes;
    let mut next = 1;
    let pairs = || t.dims().iter().zip(layout.strides().iter());
    let contiguous = pairs().skip(first).rev().all(|(&extent, &stride)| {
        let fits = extent == 1 || stride == next;
        next *= extent;
        fits
    });
    let whole = |elements: usize| (elements * size).is_multiple_of(WIDE);
    let mut starts = pairs().take(first);
    let starts = starts.all(|(&extent, &stride)| extent == 1 || whole(stride));
    contiguous && starts && whole(next) && whole(layout.offset())
}

/// The last axis of each tensor can be read 16 bytes at a time, but for the ends of the rows: all are
/// contiguous, so that their rows lie alike, and a row has some chunks that are whole.
fn can_be_cut(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| {
        let (layout, size) = (t.layout(), t.dtype().size());
        let width = t.dims().last().map_or(0, |width| width * size);
        layout.is_contiguous() && (layout.offset() * size).is_multiple_of(WIDE) && width >= 4 * WIDE
    })
}

/// How the kernels walk over rows, and how many threads share one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Walk {
    /// Whether a chunk is 16 bytes, or one element.
    pub(crate) wide: bool,
    pub(crate) grid: Grid,
}

impl Walk {
    /// For the last `axes` axes of `tensors`, which have one shape, and all axes of `params`, of one
    /// type, where a lane holds the chunks of `held` rows.
    pub(crate) fn new(
        axes: usize,
        tensors: &[&Tensor],
        params: &[Option<&Tensor>],
        held: usize,
    ) -> Walk {
        let mut params = params.iter().flatten();
        let wide = tensors.iter().all(|t| is_wide(t, axes)) && params.all(|t| is_wide(t, t.rank()));
        Walk::over(tensors[0], axes, wide, held, None)
    }

    /// The same for the last axis, by kernels that take rows whose ends are no whole chunks too. With
    /// `most`, the shape alone decides how many blocks there are, at most so many.
    pub(crate) fn cut(tensors: &[&Tensor], held: usize, most: Option<usize>) -> Walk {
        let wide = tensors.iter().all(|t| is_wide(t, 1)) || can_be_cut(tensors);
        Walk::over(tensors[0], 1, wide, held, most)
    }

    fn over(t: &Tensor, axes: usize, wide: bool, held: usize, most: Option<usize>) -> Walk {
        let (lead, inner) = t.dims().split_at(t.rank() - axes);
        let rows = lead.iter().product::<usize>();
        let width = inner.iter().product::<usize>();
        let per_chunk = if wide { WIDE / t.dtype().size() } else { 1 };
        let chunks = width.div_ceil(per_chunk);
        // As `Chunks` of `rows.cu` has it.
        let kept = if wide { 4 } else { 8 } / held;
        let apart = t.layout().strides().last().is_some_and(|&s| s != 1);
        let lanes = match chunks.div_ceil(kept) {
            // Where the elements of a row lie apart, those of neighbouring rows lie side by side: a
            // warp reads eight rows, if there are enough of them to keep the card busy.
            _ if apart && rows >= MANY_ROWS => chunks.next_power_of_two().min(4),
            0..=32 => chunks.div_ceil(2).next_power_of_two().min(32),
            33..=256 => 256,
            _ => MOST_THREADS,
        };
        let threads = lanes.max(BLOCK as usize);
        let groups = threads / lanes;
        let blocks = rows.div_ceil(groups).clamp(1, most.unwrap_or(MOST_BLOCKS));
        Walk {
            wide,
            grid: Grid {
                blocks: [blocks as u32, 1, 1],
                threads: [lanes as u32, groups as u32, 1],
                strides: most.is_none(),
            },
        }
    }
}
