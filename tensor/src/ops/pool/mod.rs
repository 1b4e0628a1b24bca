//! Two-dimensional pooling over the last two axes, and its gradients.

mod cpu;

use super::index::first_outside;
use super::window::Axis;
use super::working::{on_real, rounded, working};
use crate::storage::Memory;
use crate::{DType, Error, Result, Shape, Tensor};
use cpu::Windows;

/// The windows of a 2-d pooling. Pairs are (height, width).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pool2dConfig {
    /// Size of the window, in pixels. At least 1.
    pub kernel: [usize; 2],
    /// Step between neighbouring windows. At least 1.
    pub stride: [usize; 2],
    /// Pixels added on both sides, at most half the kernel: −∞ for the maximum, 0 for the average.
    pub padding: [usize; 2],
    /// Distance between the pixels of a window. At least 1; the average takes only 1.
    pub dilation: [usize; 2],
    /// Whether a window that only partly fits at the end counts.
    pub ceil_mode: bool,
    /// Whether the average divides by the padded pixels too.
    pub count_include_pad: bool,
}

impl Pool2dConfig {
    /// Windows of `kernel` that touch without overlap (the stride is the kernel), no padding.
    pub fn new(kernel: [usize; 2]) -> Self {
        Self {
            kernel,
            stride: kernel,
            padding: [0; 2],
            dilation: [1; 2],
            ceil_mode: false,
            count_include_pad: true,
        }
    }

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
}

impl Tensor {
    /// The maximum of each window of `[n, c, h, w]`, and where in its `h·w` plane it stands
    /// (as `i64`; the first of equals). NaN is larger than every number. A window that dilation
    /// carries past every pixel gives −∞ and the index −1.
    ///
    /// ```
    /// use phalanx_tensor::ops::pool::Pool2dConfig;
    /// use phalanx_tensor::{Device, Tensor};
    ///
    /// let x = Tensor::from_slice(&[1.0f32, 5.0, 3.0, 4.0], [1, 1, 2, 2], Device::cpu(0))?;
    /// let (max, at) = x.max_pool2d(&Pool2dConfig::new([2, 2]))?;
    /// assert_eq!((max.item::<f64>()?, at.item::<f64>()?), (5.0, 1.0));
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// Not rank 4, no float type, or windows that do not fit.
    pub fn max_pool2d(&self, config: &Pool2dConfig) -> Result<(Tensor, Tensor)> {
        const OP: &str = "max_pool2d";
        let (w, shape) = windows(OP, self.shape(), config)?;
        self.expect_float(OP)?;
        let x = working(OP, self)?;
        let mut out = Tensor::allocate(OP, shape.clone(), x.dtype(), x.device())?;
        let mut at = Tensor::allocate(OP, shape, DType::I64, x.device())?;
        match self.storage().memory() {
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => return Err(s.unsupported(OP)),
            Memory::Cpu(_) => on_real!(x, T => {
                cpu::max(&w, x.as_slice::<T>()?, out.make_mut()?, at.make_mut()?);
            }),
        }
        Ok((rounded(OP, out, self.dtype())?, at))
    }

    /// The gradient of [`max_pool2d`](Tensor::max_pool2d) with respect to its input of shape
    /// `input_shape`: each element of `grad` goes to the pixel that `indices` names.
    ///
    /// # Errors
    /// `grad` and `indices` of different shapes or wrong types; an index outside its plane.
    pub fn max_pool2d_backward(
        grad: &Tensor,
        indices: &Tensor,
        input_shape: impl Into<Shape>,
    ) -> Result<Tensor> {
        const OP: &str = "max_pool2d_backward";
        let shape = input_shape.into();
        grad.expect_float(OP)?;
        grad.expect_same_device(OP, indices)?;
        indices.expect_operand(OP, "indices", DType::I64)?;
        let same_planes = grad.rank() == 4 && shape.len() == 4 && grad.dims()[..2] == shape[..2];
        if grad.shape() != indices.shape() || !same_planes {
            return Err(Error::ShapeMismatch {
                op: OP,
                lhs: grad.shape().clone(),
                rhs: if same_planes {
                    indices.shape().clone()
                } else {
                    shape
                },
                reason: "gradient and indices must have one shape, and its planes must be the input's",
            });
        }
        let plane = shape[2].saturating_mul(shape[3]);
        let at = indices.contiguous_for(OP)?;
        if let Some(index) = first_outside(&at, -1..plane as i64, None)? {
            return Err(Error::IndexOutOfRange {
                op: OP,
                index,
                extent: plane,
                late: false,
            });
        }
        let dy = working(OP, grad)?;
        let outs = grad.dims()[2] * grad.dims()[3];
        let mut dx = Tensor::allocate(OP, shape, dy.dtype(), dy.device())?;
        match grad.storage().memory() {
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => return Err(s.unsupported(OP)),
            Memory::Cpu(_) => on_real!(dy, T => {
                cpu::max_backward(plane, outs, dy.as_slice::<T>()?, at.as_slice()?, dx.make_mut()?);
            }),
        }
        rounded(OP, dx, grad.dtype())
    }

    /// The mean of each window of `[n, c, h, w]`.
    ///
    /// # Errors
    /// Not rank 4, no float type, a dilation, or windows that do not fit.
    pub fn avg_pool2d(&self, config: &Pool2dConfig) -> Result<Tensor> {
        const OP: &str = "avg_pool2d";
        let (w, shape) = averaged(OP, self.shape(), config)?;
        average(OP, self, &w, shape)
    }

    /// The gradient of [`avg_pool2d`](Tensor::avg_pool2d) with respect to its input of shape
    /// `input_shape`.
    ///
    /// # Errors
    /// As [`avg_pool2d`](Tensor::avg_pool2d); where `grad` does not have the output's shape.
    pub fn avg_pool2d_backward(
        grad: &Tensor,
        input_shape: impl Into<Shape>,
        config: &Pool2dConfig,
    ) -> Result<Tensor> {
        const OP: &str = "avg_pool2d_backward";
        let input_shape = input_shape.into();
        let (w, shape) = averaged(OP, &input_shape, config)?;
        average_backward(OP, grad, &w, shape, input_shape)
    }

    /// The means over `out` equal parts of each plane (`[1, 1]`: the global average). Part `i` of
    /// `o` along an axis of `n` pixels is `⌊i·n/o⌋ .. ⌈(i+1)·n/o⌉`, as in PyTorch.
    ///
    /// # Errors
    /// Not rank 4, no float type, or a part without pixels.
    pub fn adaptive_avg_pool2d(&self, out: [usize; 2]) -> Result<Tensor> {
        const OP: &str = "adaptive_avg_pool2d";
        let (w, shape) = adaptive(OP, self.shape(), out)?;
        average(OP, self, &w, shape)
    }

    /// The gradient of [`adaptive_avg_pool2d`](Tensor::adaptive_avg_pool2d) with respect to its
    /// input of shape `input_shape`.
    ///
    /// # Errors
    /// As [`adaptive_avg_pool2d`](Tensor::adaptive_avg_pool2d); where `grad` is not rank 4 or has
    /// other planes.
    pub fn adaptive_avg_pool2d_backward(
        grad: &Tensor,
        input_shape: impl Into<Shape>,
    ) -> Result<Tensor> {
        const OP: &str = "adaptive_avg_pool2d_backward";
        let input_shape = input_shape.into();
        let &[_, _, oh, ow] = grad.dims() else {
            return Err(not_nchw(OP, grad.shape()));
        };
        let (w, shape) = adaptive(OP, &input_shape, [oh, ow])?;
        average_backward(OP, grad, &w, shape, input_shape)
    }
}

fn average(op: &'static str, x: &Tensor, w: &Windows, shape: Shape) -> Result<Tensor> {
    x.expect_float(op)?;
    let wx = working(op, x)?;
    let mut out = Tensor::allocate(op, shape, wx.dtype(), wx.device())?;
    match x.storage().memory() {
        #[cfg(feature = "cuda")]
        Memory::Cuda(s) => return Err(s.unsupported(op)),
        Memory::Cpu(_) => on_real!(wx, T => {
            cpu::average(w, wx.as_slice::<T>()?, out.make_mut()?);
        }),
    }
    rounded(op, out, x.dtype())
}

fn average_backward(
    op: &'static str,
    grad: &Tensor,
    w: &Windows,
    shape: Shape,
    input_shape: Shape,
) -> Result<Tensor> {
    grad.expect_float(op)?;
    if *grad.shape() != shape {
        return Err(Error::ShapeMismatch {
            op,
            lhs: grad.shape().clone(),
            rhs: shape,
            reason: "the gradient must have the shape of the pooling's output",
        });
    }
    let dy = working(op, grad)?;
    let mut dx = Tensor::allocate(op, input_shape, dy.dtype(), dy.device())?;
    match grad.storage().memory() {
        #[cfg(feature = "cuda")]
        Memory::Cuda(s) => return Err(s.unsupported(op)),
        Memory::Cpu(_) => on_real!(dy, T => {
            cpu::average_backward(w, dy.as_slice::<T>()?, dx.make_mut()?);
        }),
    }
    rounded(op, dx, grad.dtype())
}

fn not_nchw(op: &'static str, shape: &Shape) -> Error {
    Error::InvalidShape {
        op,
        shape: shape.clone(),
        reason: "needs four axes, [n, c, h, w]".into(),
    }
}

/// The windows of a pooling of `shape`, and the shape of its output.
fn windows(op: &'static str, shape: &Shape, cfg: &Pool2dConfig) -> Result<(Windows, Shape)> {
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

fn averaged(op: &'static str, shape: &Shape, cfg: &Pool2dConfig) -> Result<(Windows, Shape)> {
    if cfg.dilation != [1; 2] {
        return Err(Error::InvalidArgument {
            op,
            reason: format!("takes no dilation, got {:?}", cfg.dilation),
        });
    }
    windows(op, shape, cfg)
}

fn adaptive(op: &'static str, shape: &Shape, out: [usize; 2]) -> Result<(Windows, Shape)> {
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
