//! Which pixels each output of a pooling looks at, and the shape of the output.

use super::Pool2dConfig;
use crate::ops::window::Axis;
use crate::{Error, Result, Shape};

/// Which pixels each output looks at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Windows {
    /// A kernel that walks over the padded plane.
    Fixed {
        axes: [Axis; 2],
        /// Whether an average counts padded pixels.
        count_pad: bool,
    },
    /// Equal parts of the plane.
    Parts { inp: [usize; 2], out: [usize; 2] },
}

pub(super) fn not_nchw(op: &'static str, shape: &Shape) -> Error {
    Error::InvalidShape {
        op,
        shape: shape.clone(),
        reason: "needs four axes, [n, c, h, w]".into(),
    }
}

/// The windows of a pooling of `shape`, and the shape of its output.
pub(super) fn windows(
    op: &'static str,
    shape: &Shape,
    cfg: &Pool2dConfig,
) -> Result<(Windows, Shape)> {
    let &[n, c, h, w] = &shape[..] else {
        return Err(not_nchw(op, shape));
    };
    let invalid = |reason: String| Error::InvalidArgument { op, reason };
    let zero = [cfg.kernel, cfg.stride, cfg.dilation]
        .iter()
        .any(|pair| pair.contains(&0));
    if zero {
        return Err(invalid(
            "kernel, stride and dilation must be at least 1".into(),
        ));
    }
    let axis = |d: usize, size: usize| {
        let (kernel, pad, stride) = (cfg.kernel[d], cfg.padding[d], cfg.stride[d]);
        if pad > kernel / 2 {
            return Err(invalid(format!(
                "padding {pad} is more than half the kernel {kernel}"
            )));
        }
        let axis = Axis::new(size, pad, kernel, cfg.dilation[d], stride);
        let mut axis = axis.map_err(|reason| Error::InvalidShape {
            op,
            shape: shape.clone(),
            reason,
        })?;
        // With `ceil_mode` a last, partial window counts if it starts on a pixel or left of them.
        let partial = axis.slack() % axis.stride != 0 && axis.out * axis.stride < size + pad;
        axis.out += usize::from(cfg.ceil_mode && partial);
        Ok(axis)
    };
    let axes = [axis(0, h)?, axis(1, w)?];
    let out = axes.map(|a| a.out);
    let windows = Windows::Fixed {
        axes,
        count_pad: cfg.count_include_pad,
    };
    Ok((windows, [n, c, out[0], out[1]].into()))
}

/// The same for an average, which takes no dilation.
pub(super) fn averaged(
    op: &'static str,
    shape: &Shape,
    cfg: &Pool2dConfig,
) -> Result<(Windows, Shape)> {
    if cfg.dilation != [1; 2] {
        return Err(Error::InvalidArgument {
            op,
            reason: format!("takes no dilation, got {:?}", cfg.dilation),
        });
    }
    windows(op, shape, cfg)
}

/// The parts of an adaptive pooling of `shape`, and the shape of its output.
pub(super) fn adaptive(
    op: &'static str,
    shape: &Shape,
    out: [usize; 2],
) -> Result<(Windows, Shape)> {
    let &[n, c, h, w] = &shape[..] else {
        return Err(not_nchw(op, shape));
    };
    if h == 0 || w == 0 {
        return Err(Error::InvalidShape {
            op,
            shape: shape.clone(),
            reason: "a plane without pixels has no mean".into(),
        });
    }
    let countable = |(size, parts): (usize, usize)| {
        let edges = parts.checked_add(1).and_then(|n| n.checked_mul(size));
        edges.is_some_and(|n| n <= isize::MAX as usize)
    };
    if ![(h, out[0]), (w, out[1])].into_iter().all(countable) {
        return Err(Error::InvalidArgument {
            op,
            reason: format!("planes of {h} x {w} pixels have no {out:?} parts that can be counted"),
        });
    }
    Ok((
        Windows::Parts { inp: [h, w], out },
        [n, c, out[0], out[1]].into(),
    ))
}
