//! CPU kernels: [`cpu::gemm`](crate::cpu::gemm) with an epilogue.

use super::Activation;
use crate::cpu::elementwise::{RealKernel, raw};
use crate::cpu::gemm::{self, Bias, Epilogue, Kernels, MatMut, MatRef, Scalar};
use crate::cpu::math::Real;
use crate::cpu::scratch::NoMemory;
use crate::ops::matmul::cpu::Stack;
use crate::ops::unary::Unary;
use crate::{Element, Result, Tensor, dispatch_float};

/// Elements of a piece of a row that pass through an activation together.
const PIECE: usize = 256;

/// `y = act(x weightᵀ + bias)` for matrices; `y` may have more axes.
pub(super) fn forward(
    op: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
    y: &mut Tensor,
) -> Result<()> {
    let bias = bias.map(|bias| bias.contiguous_for(op)).transpose()?;
    let device = y.device();
    dispatch_float!(op, y.dtype(), T => {
        let bias = bias.as_ref().map(Tensor::as_slice).transpose()?;
        run::<T>(x, weight, bias, activation, y.make_mut()?).map_err(|e| e.on(op, device))
    })
}

fn run<T: Scalar>(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&[T]>,
    activation: Activation,
    y: &mut [T],
) -> Result<(), NoMemory> {
    // A part of the product itself, as the bias is.
    let relu = activation == Activation::Relu;
    let function = activation.function().filter(|_| !relu);
    let map = |piece: &mut [T::Compute]| {
        if let Some(function) = function {
            apply(function, piece);
        }
    };
    let epilogue = Epilogue {
        bias: bias.map_or(Bias::None, Bias::PerCol),
        relu,
        map: function.is_some().then_some(&map),
        ..Epilogue::default()
    };
    let (m, n) = (x.dims()[0], weight.dims()[0]);
    let y = MatMut::row_major(y, m, n);
    gemm::product(Kernels::Best, y, matrix(x), matrix(weight).t(), &epilogue)
}

/// `c = a b` for matrices; `c` may have more axes.
pub(super) fn product(op: &'static str, a: &Tensor, b: &Tensor, c: &mut Tensor) -> Result<()> {
    let (m, n, device) = (a.dims()[0], b.dims()[1], c.device());
    dispatch_float!(op, c.dtype(), T => {
        let c = MatMut::row_major(c.make_mut::<T>()?, m, n);
        let (a, b) = (matrix(a), matrix(b));
        gemm::product(Kernels::Best, c, a, b, &Epilogue::default()).map_err(|e| e.on(op, device))
    })
}

fn matrix<T: Element>(t: &Tensor) -> MatRef<'_, T> {
    Stack::new(t.layout()).matrix(raw(t), 0)
}

fn apply<R: Real>(function: Unary, x: &mut [R]) {
    let mut old = [R::ZERO; PIECE];
    for piece in x.chunks_mut(PIECE) {
        let old = &mut old[..piece.len()];
        old.copy_from_slice(piece);
        function.run([old], piece);
    }
}
