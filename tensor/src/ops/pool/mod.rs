//! Two-dimensional pooling over the last two axes, and its gradients.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod windows;

use crate::storage::{On, on, out};
use crate::{DType, Error, Result, Shape, Tensor};
use windows::{Windows, adaptive, averaged, not_nchw, windows};

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
        let mut max = Tensor::allocate(OP, shape.clone(), self.dtype(), self.device())?;
        let mut at = Tensor::allocate(OP, shape, DType::I64, self.device())?;
        match on(OP, (self, out(&mut max), out(&mut at)))? {
            On::Cpu((x, max, at)) => cpu::max(OP, &w, x, max, at)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (x, max, at)) => cuda::max(&mut lane, &w, x, max, at)?,
        }
        Ok((max, at))
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
        let mut dx = Tensor::allocate(OP, shape, grad.dtype(), grad.device())?;
        match on(OP, (grad, indices, out(&mut dx)))? {
            On::Cpu((dy, at, dx)) => cpu::max_backward(OP, dy, at, dx)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (dy, at, dx)) => cuda::max_backward(&mut lane, dy, at, dx)?,
        }
        Ok(dx)
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
    let mut y = Tensor::allocate(op, shape, x.dtype(), x.device())?;
    match on(op, (x, out(&mut y)))? {
        On::Cpu((x, y)) => cpu::average(op, w, x, y)?,
        #[cfg(feature = "cuda")]
        On::Cuda(mut lane, (x, y)) => cuda::average(&mut lane, w, x, y)?,
    }
    Ok(y)
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
    let mut dx = Tensor::allocate(op, input_shape, grad.dtype(), grad.device())?;
    match on(op, (grad, out(&mut dx)))? {
        On::Cpu((dy, dx)) => cpu::average_backward(op, w, dy, dx)?,
        #[cfg(feature = "cuda")]
        On::Cuda(mut lane, (dy, dx)) => cuda::average_backward(&mut lane, w, dy, dx)?,
    }
    Ok(dx)
}
