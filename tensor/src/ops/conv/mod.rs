//! Two-dimensional convolution and its gradients, NCHW × OIHW.
//!
//! As in deep-learning libraries, the kernel is not flipped (this is a cross-correlation), and the
//! operations carry PyTorch's names and shape rules.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod geometry;

use cpu::Pass;
pub use geometry::Conv2dConfig;
use geometry::Geometry;

use crate::storage::{On, inout, on, out};
use crate::{Error, Result, Shape, Tensor};

impl Tensor {
    /// The convolution of `self` `[n, c, h, w]` with `weight` `[out, c / groups, kh, kw]`, plus
    /// `bias` `[out]`: `[n, out, h', w']` with
    /// `h' = ⌊(h + 2·padding − dilation·(kh − 1) − 1) / stride⌋ + 1`.
    ///
    /// Half types compute in `f32` and round once.
    ///
    /// ```
    /// use phalanx_tensor::ops::conv::Conv2dConfig;
    /// use phalanx_tensor::{Device, Tensor};
    ///
    /// let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], [1, 1, 2, 2], Device::cpu(0))?;
    /// let w = Tensor::from_slice(&[1.0f32; 9], [1, 1, 3, 3], Device::cpu(0))?;
    /// let y = x.conv2d(&w, None, &Conv2dConfig::default().with_padding(1))?;
    /// assert_eq!(y.to_vec::<f32>()?, [10.0; 4]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// Operands of different types or devices, of shapes that do not fit, or no float type;
    /// [`Error::OutOfMemory`], for scratch memory too.
    pub fn conv2d(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        config: &Conv2dConfig,
    ) -> Result<Tensor> {
        const OP: &str = "conv2d";
        check_kind(OP, self, weight)?;
        let g = geometry(OP, self.shape(), weight.shape(), config)?;
        if let Some(b) = bias {
            check_kind(OP, self, b)?;
            if b.dims() != [g.co] {
                return Err(Error::ShapeMismatch {
                    op: OP,
                    lhs: weight.shape().clone(),
                    rhs: b.shape().clone(),
                    reason: "the bias must have one element per output channel",
                });
            }
        }
        let mut y = Tensor::allocate(OP, output_shape(&g), self.dtype(), self.device())?;
        match on(OP, (self, weight, bias, out(&mut y)))? {
            On::Cpu((x, w, bias, y)) => cpu::convolve(OP, Pass::Forward, &g, [x, w], bias, y)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (x, w, bias, y)) => cuda::forward(&mut lane, &g, x, w, bias, y)?,
        }
        Ok(y)
    }

    /// The gradient of [`conv2d`](Tensor::conv2d) with respect to its input of shape
    /// `input_shape`, given `grad` with respect to its output.
    ///
    /// # Errors
    /// As [`conv2d`](Tensor::conv2d); where `grad` does not have the output's shape.
    pub fn conv2d_input_grad(
        grad: &Tensor,
        weight: &Tensor,
        input_shape: impl Into<Shape>,
        config: &Conv2dConfig,
    ) -> Result<Tensor> {
        const OP: &str = "conv2d_input_grad";
        let input_shape = input_shape.into();
        check_kind(OP, grad, weight)?;
        let g = geometry(OP, &input_shape, weight.shape(), config)?;
        check_grad(OP, grad, &g)?;
        let mut dx = Tensor::allocate(OP, input_shape, grad.dtype(), grad.device())?;
        match on(OP, (grad, weight, out(&mut dx)))? {
            On::Cpu((dy, w, dx)) => cpu::convolve(OP, Pass::InputGrad, &g, [dy, w], None, dx)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (dy, w, dx)) => cuda::input_grad(&mut lane, &g, dy, w, dx)?,
        }
        Ok(dx)
    }

    /// The gradient of [`conv2d`](Tensor::conv2d) with respect to its weight of shape
    /// `weight_shape`, given `grad` with respect to its output. (The bias' gradient is the sum of
    /// `grad` over all axes but the channels'.)
    ///
    /// # Errors
    /// As [`conv2d`](Tensor::conv2d); where `grad` does not have the output's shape.
    pub fn conv2d_weight_grad(
        input: &Tensor,
        grad: &Tensor,
        weight_shape: impl Into<Shape>,
        config: &Conv2dConfig,
    ) -> Result<Tensor> {
        const OP: &str = "conv2d_weight_grad";
        let weight_shape = weight_shape.into();
        check_kind(OP, input, grad)?;
        let g = geometry(OP, input.shape(), &weight_shape, config)?;
        check_grad(OP, grad, &g)?;
        let mut dw = Tensor::allocate(OP, weight_shape, input.dtype(), input.device())?;
        match on(OP, (input, grad, out(&mut dw)))? {
            On::Cpu((x, dy, dw)) => cpu::convolve(OP, Pass::WeightGrad, &g, [x, dy], None, dw)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (x, dy, dw)) => cuda::weight_grad(&mut lane, &g, x, dy, dw, false)?,
        }
        Ok(dw)
    }

    /// Adds [`conv2d_weight_grad`](Tensor::conv2d_weight_grad) of `input` and `grad` to `sum`, whose
    /// shape is the weight's, in place where nobody shares it. For operands of a half type `sum` is
    /// `f32`, and nothing is rounded to the half type.
    ///
    /// # Errors
    /// As [`conv2d_weight_grad`](Tensor::conv2d_weight_grad); [`Error::WrongDType`] where `sum` has not
    /// the type of computation of the operands. Where there is no scratch memory, the elements of `sum`
    /// on a card are arbitrary.
    pub fn conv2d_weight_grad_into(
        input: &Tensor,
        grad: &Tensor,
        sum: &mut Tensor,
        config: &Conv2dConfig,
    ) -> Result<()> {
        const OP: &str = "conv2d_weight_grad_into";
        check_kind(OP, input, grad)?;
        input.expect_same_device(OP, sum)?;
        sum.expect_operand(OP, "the sum", input.dtype().compute())?;
        let g = geometry(OP, input.shape(), sum.shape(), config)?;
        check_grad(OP, grad, &g)?;
        match on(OP, (input, grad, inout(sum)))? {
            On::Cpu((x, dy, dw)) => cpu::convolve(OP, Pass::AddWeightGrad, &g, [x, dy], None, dw),
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (x, dy, dw)) => cuda::weight_grad(&mut lane, &g, x, dy, dw, true),
        }
    }
}

fn check_kind(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    a.expect_float(op)?;
    a.expect_same_kind(op, b)
}

fn geometry(op: &'static str, x: &Shape, w: &Shape, config: &Conv2dConfig) -> Result<Geometry> {
    Geometry::new(x, w, config).map_err(|reason| Error::InvalidArgument {
        op,
        reason: format!("input {x} and weight {w} do not fit: {reason}"),
    })
}

fn output_shape(g: &Geometry) -> Shape {
    [g.n, g.co, g.out[0], g.out[1]].into()
}

fn check_grad(op: &'static str, grad: &Tensor, g: &Geometry) -> Result<()> {
    let want = output_shape(g);
    if *grad.shape() == want {
        return Ok(());
    }
    Err(Error::ShapeMismatch {
        op,
        lhs: grad.shape().clone(),
        rhs: want,
        reason: "the gradient must have the shape of the convolution's output",
    })
}
