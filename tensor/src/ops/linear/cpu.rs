//! CPU kernels: [`cpu::gemm`](crate::cpu::gemm) with an epilogue.

use super::Activation;
use crate::cpu::elementwise::{RealKernel, raw};
use crate::cpu::gemm::{self, Bias, Epilogue, MatMut, MatRef, Scalar};
use crate::cpu::math::Real;
use crate::cpu::scratch::NoMemory;
use crate::ops::unary::Unary;
use crate::{Element, Tensor};

/// Elements of a piece of a row that pass through an activation together.
const PIECE: usize = 256;

/// `out = act(x weightᵀ + bias)` for matrices.
pub(super) fn forward<T>(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&[T]>,
    activation: Activation,
    out: &mut [T],
) -> Result<(), NoMemory>
where
    T: Element + Scalar,
    T::Acc: Real,
{
    let function = activation.function();
    let map = |piece: &mut [T::Acc]| {
        if let Some(function) = function {
            apply(function, piece);
        }
    };
    let epilogue = Epilogue {
        bias: bias.map_or(Bias::None, Bias::PerCol),
        relu: activation == Activation::Relu,
        map: function.is_some().then_some(&map),
        ..Epilogue::default()
    };
    let (m, n) = (x.dims()[0], weight.dims()[0]);
    gemm::product(
        MatMut::row_major(out, m, n),
        matrix(x),
        matrix(weight).t(),
        &epilogue,
    )
}

/// `out = a b` for matrices.
pub(super) fn product<T: Element + Scalar>(
    a: &Tensor,
    b: &Tensor,
    out: &mut [T],
) -> Result<(), NoMemory> {
    let (m, n) = (a.dims()[0], b.dims()[1]);
    gemm::product(
        MatMut::row_major(out, m, n),
        matrix(a),
        matrix(b),
        &Epilogue::default(),
    )
}

fn matrix<T: Element>(t: &Tensor) -> MatRef<'_, T> {
    let (dims, strides) = (t.dims(), t.layout().strides());
    let data = if t.numel() == 0 {
        &[]
    } else {
        &raw::<T>(t)[t.layout().offset()..]
    };
    MatRef::new(data, (dims[0], dims[1]), (strides[0], strides[1]))
}

fn apply<R: Real>(function: Unary, x: &mut [R]) {
    let mut old = [R::ZERO; PIECE];
    for piece in x.chunks_mut(PIECE) {
        let old = &mut old[..piece.len()];
        old.copy_from_slice(piece);
        function.run([old], piece);
    }
}
