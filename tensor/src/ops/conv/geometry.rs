//! The numbers of one convolution: configuration, checked sizes, and which outputs a tap reaches.

use super::super::window::Axis;
use std::ops::Range;

/// How a 2-d convolution walks over its input. Pairs are (height, width).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv2dConfig {
    /// Step between neighbouring outputs, in input pixels. At least 1.
    pub stride: [usize; 2],
    /// Zeros added on both sides of the input, in pixels.
    pub padding: [usize; 2],
    /// Distance between neighbouring kernel taps, in input pixels. At least 1.
    pub dilation: [usize; 2],
    /// Number of independent groups that the channels are split into. At least 1;
    /// equal to the number of input channels for a depthwise convolution.
    pub groups: usize,
}

impl Default for Conv2dConfig {
    /// Stride 1, no padding, dilation 1, one group.
    fn default() -> Self {
        Self {
            stride: [1, 1],
            padding: [0, 0],
            dilation: [1, 1],
            groups: 1,
        }
    }
}

impl Conv2dConfig {
    /// The configuration with both strides set to `stride`.
    pub fn with_stride(self, stride: usize) -> Self {
        Self {
            stride: [stride; 2],
            ..self
        }
    }

    /// The configuration with both paddings set to `padding`.
    pub fn with_padding(self, padding: usize) -> Self {
        Self {
            padding: [padding; 2],
            ..self
        }
    }

    /// The configuration with both dilations set to `dilation`.
    pub fn with_dilation(self, dilation: usize) -> Self {
        Self {
            dilation: [dilation; 2],
            ..self
        }
    }

    /// The configuration with `groups` channel groups.
    pub fn with_groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }
}

/// Checked sizes of one convolution: every kernel may rely on them.
///
/// Invariants: `groups` divides `ci` and `co`; along each dimension those of [`Axis`]; and the bytes
/// of a padded plane are at most `isize::MAX`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub n: usize,
    pub ci: usize,
    pub co: usize,
    pub groups: usize,
    pub inp: [usize; 2],
    pub out: [usize; 2],
    pub ker: [usize; 2],
    pub stride: [usize; 2],
    pub pad: [usize; 2],
    pub dil: [usize; 2],
}

impl Geometry {
    /// Sizes for `x` `[n, ci, h, w]` and `w` `[co, ci / groups, kh, kw]`, or what is wrong with them.
    pub(crate) fn new(x: &[usize], w: &[usize], cfg: &Conv2dConfig) -> Result<Self, String> {
        let (&[n, ci, h, wd], &[co, wci, kh, kw]) = (x, w) else {
            return Err(format!(
                "wants a 4-d input [n, c, h, w] and a 4-d weight [out, in / groups, kh, kw], got rank {} and {}",
                x.len(),
                w.len()
            ));
        };
        if cfg.groups == 0 || cfg.stride.contains(&0) || cfg.dilation.contains(&0) {
            return Err("groups, stride and dilation must be at least 1".into());
        }
        if kh == 0 || kw == 0 {
            return Err("the kernel must have at least one tap".into());
        }
        if ci % cfg.groups != 0 || co % cfg.groups != 0 {
            return Err(format!(
                "{} groups must divide both {ci} input channels and {co} output channels",
                cfg.groups
            ));
        }
        if ci / cfg.groups != wci {
            return Err(format!(
                "the weight reads {wci} channels in each of {} groups, the input has {ci} in all",
                cfg.groups
            ));
        }
        let axis = |d: usize, size: usize, taps: usize| {
            let (stride, dilation) = (cfg.stride[d], cfg.dilation[d]);
            Axis::new(size, cfg.padding[d], taps, dilation, stride)
        };
        let axes = [axis(0, h, kh)?, axis(1, wd, kw)?];
        // Kernels compute with the pixels of a padded plane.
        let [rows, columns] = axes.map(|a| a.inp + 2 * a.pad);
        let plane = rows.checked_mul(columns);
        if plane.is_none_or(|pixels| pixels > isize::MAX as usize / size_of::<f64>()) {
            return Err(format!(
                "planes of {h} x {wd} pixels padded by {:?} are beyond all memory",
                cfg.padding
            ));
        }
        Ok(Self {
            n,
            ci,
            co,
            groups: cfg.groups,
            inp: [h, wd],
            out: axes.map(|a| a.out),
            ker: [kh, kw],
            stride: axes.map(|a| a.stride),
            pad: cfg.padding,
            dil: axes.map(|a| a.dilation),
        })
    }

    /// Input channels of one group.
    pub(crate) fn cig(&self) -> usize {
        self.ci / self.groups
    }

    /// Output channels of one group.
    pub(crate) fn cog(&self) -> usize {
        self.co / self.groups
    }

    /// Pixels of one input plane.
    pub(crate) fn in_plane(&self) -> usize {
        self.inp[0] * self.inp[1]
    }

    /// Pixels of one output plane.
    pub(crate) fn out_plane(&self) -> usize {
        self.out[0] * self.out[1]
    }

    /// Taps of one kernel plane.
    pub(crate) fn taps(&self) -> usize {
        self.ker[0] * self.ker[1]
    }

    /// The outputs along dimension `d` for which tap `k` falls inside the input, and the input
    /// position that the first of them reads; the next ones follow at the stride.
    pub(crate) fn reach(&self, d: usize, k: usize) -> (Range<usize>, usize) {
        let (shift, s) = (k * self.dil[d], self.stride[d]);
        // position = o·s + shift − pad must lie in 0..inp
        let lo = self.pad[d].saturating_sub(shift).div_ceil(s);
        let hi = (self.inp[d] + self.pad[d])
            .saturating_sub(shift)
            .div_ceil(s)
            .min(self.out[d]);
        if lo >= hi {
            (0..0, 0)
        } else {
            (lo..hi, lo * s + shift - self.pad[d])
        }
    }
}
