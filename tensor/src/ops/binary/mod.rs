//! Arithmetic of two tensors that broadcast against each other, and of a tensor and a number.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;

use crate::storage::{On, inout, on, out};
use crate::{Error, Number, Result, Shape, Tensor};

/// The functions of this family, of two tensors or of a tensor and a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Maximum,
    Minimum,
    Pow,
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident = $kind:expr;)*) => {
        impl Tensor {
            $(
                $(#[$doc])*
                ///
                /// Shapes broadcast by NumPy's rules; element types must be equal.
                ///
                /// # Errors
                /// [`Error::ShapeMismatch`], [`Error::DTypeMismatch`], [`Error::DeviceMismatch`];
                /// [`Error::UnsupportedDType`] where the element type has no such function;
                /// [`Error::OutOfMemory`].
                pub fn $name(&self, rhs: &Tensor) -> Result<Tensor> {
                    self.binary(stringify!($name), rhs, $kind)
                }
            )*
        }
    };
}

binary! {
    /// `self + rhs`. Integers wrap.
    ///
    /// ```
    /// # use phalanx_tensor::{Device, Tensor};
    /// let rows = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2], Device::cpu(0))?;
    /// let bias = Tensor::from_vec(vec![10.0f32, 20.0], [2], Device::cpu(0))?;
    /// assert_eq!(rows.add(&bias)?.to_vec::<f32>()?, [11.0, 22.0, 13.0, 24.0]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    add = Binary::Add;
    /// `self - rhs`. Integers wrap.
    sub = Binary::Sub;
    /// `self · rhs`. Integers wrap.
    mul = Binary::Mul;
    /// `self / rhs`. Floats only: cast integers first.
    div = Binary::Div;
    /// The larger of the two; NaN where either is NaN.
    maximum = Binary::Maximum;
    /// The smaller of the two; NaN where either is NaN.
    minimum = Binary::Minimum;
    /// `self` to the power `rhs`. Floats only.
    pow = Binary::Pow;
}

macro_rules! with_scalar {
    ($($(#[$doc:meta])* $name:ident = $kind:expr;)*) => {
        impl Tensor {
            $(
                $(#[$doc])*
                ///
                /// `rhs` is an `f64`: an `i64` beyond 2⁵³ that no `f64` holds cannot be given here,
                /// but as a tensor of [`full`](Tensor::full).
                ///
                /// # Errors
                /// [`Error::InvalidArgument`] for integers and a number that their type does not
                /// hold; [`Error::UnsupportedDType`] where the element type has no such function;
                /// [`Error::OutOfMemory`].
                pub fn $name(&self, rhs: f64) -> Result<Tensor> {
                    self.with_scalar(stringify!($name), rhs, $kind)
                }
            )*
        }
    };
}

with_scalar! {
    /// `self + rhs`.
    add_scalar = Binary::Add;
    /// `self - rhs`.
    sub_scalar = Binary::Sub;
    /// `self · rhs`.
    mul_scalar = Binary::Mul;
    /// `self / rhs`. Floats only.
    div_scalar = Binary::Div;
    /// The larger of each element and `rhs` (PyTorch: `clamp_min`); NaN stays NaN.
    maximum_scalar = Binary::Maximum;
    /// The smaller of each element and `rhs` (PyTorch: `clamp_max`); NaN stays NaN.
    minimum_scalar = Binary::Minimum;
    /// `self` to the power `rhs`. Floats only.
    pow_scalar = Binary::Pow;
}

impl Tensor {
    /// Each element limited to `low ..= high`; NaN stays NaN.
    ///
    /// Both are `f64`: an `i64` beyond 2⁵³ that no `f64` holds cannot be given here, but as a tensor
    /// of [`full`](Tensor::full) to [`maximum`](Tensor::maximum) and [`minimum`](Tensor::minimum).
    ///
    /// # Errors
    /// As [`maximum_scalar`](Tensor::maximum_scalar).
    pub fn clamp(&self, low: f64, high: f64) -> Result<Tensor> {
        let clamp = self
            .maximum_scalar(low)
            .and_then(|x| x.minimum_scalar(high));
        clamp.map_err(|error| error.of("clamp"))
    }

    /// `self + rhs`, in the buffer of `self` where nobody else holds it: how gradients accumulate
    /// (PyTorch: `add_`). `rhs` broadcasts to the shape of `self`. The bits are those of
    /// [`add`](Tensor::add).
    ///
    /// To an `f32` sum, a `rhs` of a half type is added as its exact `f32` value, in one pass.
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Device, Tensor};
    /// let mut sum = Tensor::zeros([2], DType::F32, Device::cpu(0))?;
    /// for step in 1..=3 {
    ///     let grad = Tensor::full([2], f64::from(step), DType::F32, Device::cpu(0))?;
    ///     sum = sum.add_into(&grad)?; // no allocation
    /// }
    /// assert_eq!(sum.to_vec::<f32>()?, [6.0, 6.0]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`], [`Error::DTypeMismatch`], [`Error::DeviceMismatch`],
    /// [`Error::OutOfMemory`].
    pub fn add_into(mut self, rhs: &Tensor) -> Result<Tensor> {
        let widened = self.dtype() != rhs.dtype() && self.dtype() == rhs.dtype().compute();
        match widened {
            true => self.expect_same_device("add_into", rhs)?,
            false => self.expect_same_kind("add_into", rhs)?,
        }
        self.expect_arithmetic("add_into")?;
        let stretched = || rhs.layout().broadcast_to("add_into", self.shape());
        if stretched().is_err() {
            return Err(Error::ShapeMismatch {
                op: "add_into",
                lhs: self.shape().clone(),
                rhs: rhs.shape().clone(),
                reason: "the second does not broadcast to the first",
            });
        }
        if !widened && (!self.is_unique() || !self.is_contiguous()) {
            return self.binary("add_into", rhs, Binary::Add);
        }
        match on("add_into", (inout(&mut self), rhs))? {
            On::Cpu((sum, rhs)) => cpu::add_into("add_into", sum, rhs)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (sum, rhs)) => cuda::add_into(&mut lane, sum, rhs)?,
        }
        Ok(self)
    }

    /// `self + rhs` in the type of computation: of two tensors of a half type the sum in `f32`,
    /// with the bits of `self.cast(F32)?.add(&rhs.cast(F32)?)`, in one pass. The first sum of
    /// gradients of a half type, to which [`add_into`](Tensor::add_into) adds the others. For
    /// other types this is [`add`](Tensor::add).
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Device, Tensor};
    /// let x = Tensor::full([2], 256.0, DType::BF16, Device::cpu(0))?;
    /// let one = Tensor::ones([2], DType::BF16, Device::cpu(0))?;
    /// assert_eq!(x.add(&one)?.cast(DType::F32)?.to_vec::<f32>()?, [256.0, 256.0]);
    /// assert_eq!(x.add_widened(&one)?.to_vec::<f32>()?, [257.0, 257.0]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`add`](Tensor::add).
    pub fn add_widened(&self, rhs: &Tensor) -> Result<Tensor> {
        const OP: &str = "add_widened";
        let dtype = self.dtype().compute();
        if dtype == self.dtype() {
            return self.binary(OP, rhs, Binary::Add);
        }
        self.expect_same_kind(OP, rhs)?;
        let shape = common_shape(OP, self, rhs)?;
        let mut y = Tensor::allocate(OP, shape, dtype, self.device())?;
        match on(OP, (self, rhs, out(&mut y)))? {
            On::Cpu((a, b, y)) => cpu::add_widened(OP, a, b, y)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (a, b, y)) => cuda::add_widened(&mut lane, a, b, y)?,
        }
        Ok(y)
    }

    fn binary(&self, op: &'static str, rhs: &Tensor, kind: Binary) -> Result<Tensor> {
        self.expect_same_kind(op, rhs)?;
        self.expect_arithmetic(op)?;
        let shape = common_shape(op, self, rhs)?;
        if matches!(kind, Binary::Div | Binary::Pow) {
            self.expect_float(op)?;
        }
        let mut y = Tensor::allocate(op, shape, self.dtype(), self.device())?;
        match on(op, (self, rhs, out(&mut y)))? {
            On::Cpu((a, b, y)) => cpu::binary(op, kind, a, b, y)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (a, b, y)) => cuda::binary(&mut lane, kind, a, b, y)?,
        }
        Ok(y)
    }

    fn with_scalar(&self, op: &'static str, scalar: f64, kind: Binary) -> Result<Tensor> {
        self.expect_arithmetic(op)?;
        if !self.dtype().is_float() {
            // A tensor of rank 0 in the integer type: no kernels of their own for this rare case.
            let scalar = Number::Float(scalar);
            let rhs = Tensor::full_for(op, ().into(), scalar, self.dtype(), self.device())?;
            return self.binary(op, &rhs, kind);
        }
        let mut y = Tensor::allocate(op, self.shape().clone(), self.dtype(), self.device())?;
        match on(op, (self, out(&mut y)))? {
            On::Cpu((x, y)) => cpu::with_scalar(op, kind, x, scalar, y)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (x, y)) => cuda::with_scalar(&mut lane, kind, x, scalar, y)?,
        }
        Ok(y)
    }
}

/// The shape to which both tensors broadcast.
pub(super) fn common_shape(op: &'static str, a: &Tensor, b: &Tensor) -> Result<Shape> {
    if a.shape() == b.shape() {
        return Ok(a.shape().clone());
    }
    let shape = a.shape().broadcast(b.shape());
    shape.ok_or_else(|| Error::ShapeMismatch {
        op,
        lhs: a.shape().clone(),
        rhs: b.shape().clone(),
        reason: "they do not broadcast",
    })
}
