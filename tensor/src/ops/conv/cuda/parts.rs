//! The numbers of a convolution as its kernels want them: how windows walk, where tensors and weights
//! lie, and into which pieces the work is cut so that scratch memory stays small. No kernel is called
//! here.

use super::super::geometry::Geometry;
use crate::cuda::{Arg, Issue};
use crate::{DType, Tensor};

/// Bytes of scratch memory for the columns of one piece, at most; more only where 64 pixels or one
/// channel of one image alone need more. Columns are read right after they were written, and so many
/// are still in the cache of a large card then (50 MB of an H100; not timed yet). The limit never
/// depends on how much memory is free: the pieces decide on the last bits of a weight's gradient.
pub(super) const LIMIT: usize = 32 << 20;

/// How windows walk along one axis: `Side` of the kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Side {
    pub(super) inp: i64,
    pub(super) out: i64,
    pub(super) taps: i64,
    pub(super) stride: i64,
    pub(super) start: i64,
    pub(super) step: i64,
    pub(super) divisor: i64,
}

/// The windows down and across.
pub(super) type Sides = [Side; 2];

/// From each output to the inputs that it reads.
pub(super) fn to_inputs(g: &Geometry) -> Sides {
    [0, 1].map(|d| Side {
        inp: g.inp[d] as i64,
        out: g.out[d] as i64,
        taps: g.ker[d] as i64,
        stride: g.stride[d] as i64,
        start: -(g.pad[d] as i64),
        step: g.dil[d] as i64,
        divisor: 1,
    })
}

/// From each input to the outputs that read it.
pub(super) fn to_outputs(g: &Geometry) -> Sides {
    [0, 1].map(|d| Side {
        inp: g.out[d] as i64,
        out: g.inp[d] as i64,
        taps: g.ker[d] as i64,
        stride: 1,
        start: g.pad[d] as i64,
        step: -(g.dil[d] as i64),
        divisor: g.stride[d] as i64,
    })
}

/// From each output to itself: planes that are copied.
pub(super) fn identity(plane: [usize; 2]) -> Sides {
    plane.map(|size| Side {
        inp: size as i64,
        out: size as i64,
        taps: 1,
        stride: 1,
        start: 0,
        step: 1,
        divisor: 1,
    })
}

/// Whether windows are single pixels, each in its place.
pub(super) fn is_identity(sides: &Sides) -> bool {
    sides
        .iter()
        .all(|s| (s.taps, s.stride, s.start, s.divisor, s.inp) == (1, 1, 0, 1, s.out))
}

/// A tensor `[n, c, h, w]` under any strides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Images {
    pub(super) at: u64,
    pub(super) strides: [usize; 4],
    dims: [usize; 4],
    dtype: DType,
}

impl Images {
    pub(super) fn new(lane: &Issue, t: &Tensor) -> Images {
        let (s, d) = (t.layout().strides(), t.dims());
        Images {
            at: lane.address(t).bits(),
            strides: [s[0], s[1], s[2], s[3]],
            dims: [d[0], d[1], d[2], d[3]],
            dtype: t.dtype(),
        }
    }

    /// The images from the `first` on.
    pub(super) fn from(&self, first: usize) -> Arg<'static> {
        Arg::Address(self.at + (first * self.strides[0] * self.dtype.size()) as u64)
    }

    /// `Strides` of the kernels.
    pub(super) fn places(&self) -> [i64; 4] {
        self.strides.map(|s| s as i64)
    }

    /// Whether each image is a matrix, its planes the rows, that a product reads at full speed: rows
    /// are dense and start at multiples of 16 bytes.
    pub(super) fn is_matrix(&self) -> bool {
        let ([_, c, h, w], [_, channels, height, width]) = (self.strides, self.dims);
        let dense = (w == 1 || width == 1) && (h == width || height == 1);
        let aligned = |elements: usize| (elements * self.dtype.size()).is_multiple_of(16);
        let rows = channels == 1 || (c >= height * width && aligned(c));
        let images = self.dims[0] == 1 || aligned(self.strides[0]);
        dense && rows && images && self.at.is_multiple_of(16)
    }
}

/// `Weights` of the kernels: elements from group to group, from row to row of a group's matrix, from
/// channel to channel of its depth, from tap to tap down and across.
pub(super) type Weights = [i64; 5];

/// Rows are output channels, the depth is the input channels of a group.
pub(super) fn by_output(g: &Geometry, w: &Tensor) -> Weights {
    let s = w.layout().strides();
    [s[0] * g.cog(), s[0], s[1], s[2], s[3]].map(|s| s as i64)
}

/// Rows are the input channels of a group, the depth is its output channels.
pub(super) fn by_input(g: &Geometry, w: &Tensor) -> Weights {
    let s = w.layout().strides();
    [s[0] * g.cog(), s[1], s[0], s[2], s[3]].map(|s| s as i64)
}

/// A part of the output pixels of a convolution: all of some images, or some of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) image: usize,
    pub(super) images: usize,
    pub(super) pixel: usize,
    pub(super) pixels: usize,
    /// The pixels, and as many more as make rows of columns start at multiples of 16 bytes.
    pub(super) padded: usize,
}

/// Pixels of a piece of an image are a multiple of it.
const TILE: usize = 64;

/// Cuts `images` of `pixels` outputs each into pieces for which `rows` columns of elements of `size`
/// bytes take up to [`LIMIT`] bytes.
pub(super) fn pieces(
    images: usize,
    pixels: usize,
    rows: usize,
    size: usize,
    limit: usize,
) -> Vec<Piece> {
    let pad = |pixels: usize| pixels.next_multiple_of(16 / size);
    let most = (limit / rows.saturating_mul(size).max(1)).max(1);
    if pad(pixels) <= most {
        let fit = most / pad(pixels).max(1);
        let count = images.div_ceil(fit.max(1)).max(1);
        let each = images.div_ceil(count).max(1);
        let piece = |image: usize| Piece {
            image,
            images: each.min(images - image),
            pixel: 0,
            pixels,
            padded: pad(pixels),
        };
        return (0..images).step_by(each).map(piece).collect();
    }
    let each = (most / TILE * TILE).max(TILE);
    let cut = |image: usize| {
        (0..pixels).step_by(each).map(move |pixel| {
            let pixels = each.min(pixels - pixel);
            Piece {
                image,
                images: 1,
                pixel,
                pixels,
                padded: pad(pixels),
            }
        })
    };
    (0..images).flat_map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_all_outputs_once_within_the_limit() {
        for images in [0, 1, 2, 7, 64] {
            for pixels in [1, 49, 64, 1000, 5000] {
                for rows in [1, 27, 576] {
                    for limit in [1, 1 << 12, 1 << 20, 1 << 30] {
                        let pieces = pieces(images, pixels, rows, 2, limit);
                        let mut covered = vec![0; images * pixels];
                        for p in &pieces {
                            assert!(p.padded >= p.pixels && p.padded % 8 == 0);
                            assert!(p.pixels == pixels || p.images == 1);
                            let bytes = rows * p.images * p.padded * 2;
                            assert!(bytes <= limit || (p.images == 1 && p.pixels <= TILE));
                            for image in p.image..p.image + p.images {
                                let start = image * pixels + p.pixel;
                                covered[start..start + p.pixels]
                                    .iter_mut()
                                    .for_each(|c| *c += 1);
                            }
                        }
                        assert!(covered.iter().all(|&c| c == 1));
                    }
                }
            }
        }
    }
}
