//! CPU kernel: one product for each matrix of the stack, over [`cpu::gemm`](crate::cpu::gemm).

use crate::cpu::elementwise::raw;
use crate::cpu::gemm::{Epilogue, Kernels, MatMut, MatRef, Scalar, product};
use crate::cpu::pieces::parallel_pieces;
use crate::cpu::scratch::{NoMemory, Outcome};
use crate::cpu::threads;
use crate::cpu::working::{on_real, working};
use crate::layout::Layout;
use crate::{Result, Shape, Tensor, dispatch_float};

/// Multiply-adds in one product from which on the threads share each product, rather than the
/// products.
const LARGE: usize = 1 << 24;

/// `out[i] = a[i] b[i]` for the matrices of two stacks of one leading shape.
pub(super) fn matmul(op: &'static str, a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<()> {
    let device = out.device();
    dispatch_float!(op, out.dtype(), T => {
        stacks::<T>(a, b, out.make_mut()?).map_err(|e| e.on(op, device))
    })
}

/// `sum += a b` for matrices. Half types are widened first, so that no product is rounded.
pub(super) fn addmm(op: &'static str, a: &Tensor, b: &Tensor, sum: &mut Tensor) -> Result<()> {
    if a.dtype() != sum.dtype() {
        return addmm(op, &working(op, a)?, &working(op, b)?, sum);
    }
    let (m, n, device) = (a.dims()[0], b.dims()[1], sum.device());
    on_real!(sum, T => {
        let epilogue = Epilogue { beta: 1.0, ..Epilogue::default() };
        let sum = MatMut::row_major(sum.make_mut::<T>()?, m, n);
        let matrix = |t| Stack::new(Tensor::layout(t)).matrix(raw::<T>(t), 0);
        product(Kernels::Best, sum, matrix(a), matrix(b), &epilogue).map_err(|e| e.on(op, device))
    })
}

fn stacks<T: Scalar>(a: &Tensor, b: &Tensor, out: &mut [T]) -> Result<(), NoMemory> {
    if out.is_empty() {
        return Ok(());
    }
    let (a_stack, b_stack) = (Stack::new(a.layout()), Stack::new(b.layout()));
    let (a, a_layout, b) = (raw::<T>(a), a.layout(), raw::<T>(b));
    let (m, n, k) = (a_stack.rows, b_stack.cols, a_stack.cols);
    if b_stack.is_one_matrix()
        && let Some(rows) = a_layout.reshape(&Shape::from([out.len() / n, k]))
    {
        // One tall matrix by one: a single product.
        let a = Stack::new(&rows).matrix(a, 0);
        let m = out.len() / n;
        let c = MatMut::row_major(out, m, n);
        let b = b_stack.matrix(b, 0);
        return product(Kernels::Best, c, a, b, &Epilogue::default());
    }
    let outcome = Outcome::default();
    let one = |i: usize, c: &mut [T]| {
        let (a, b) = (a_stack.matrix(a, i), b_stack.matrix(b, i));
        let c = MatMut::row_major(c, m, n);
        outcome.of(|| product(Kernels::Best, c, a, b, &Epilogue::default()));
    };
    let count = out.len() / (m * n);
    if count >= threads() && (m * n).saturating_mul(k) < LARGE || count.is_multiple_of(threads()) {
        parallel_pieces(out, m * n, |start, piece| {
            for (i, c) in piece.chunks_exact_mut(m * n).enumerate() {
                one(start / (m * n) + i, c);
            }
        });
    } else {
        out.chunks_exact_mut(m * n)
            .enumerate()
            .for_each(|(i, c)| one(i, c));
    }
    outcome.result()
}

/// The last two axes of a layout, and the way from matrix to matrix along the others.
pub(in crate::ops) struct Stack<'a> {
    layout: &'a Layout,
    rows: usize,
    cols: usize,
}

impl<'a> Stack<'a> {
    pub(in crate::ops) fn new(layout: &'a Layout) -> Self {
        let [.., rows, cols] = layout.shape()[..] else {
            unreachable!("the caller gives matrices at least two axes")
        };
        Stack { layout, rows, cols }
    }

    /// Whether all leading axes repeat one matrix.
    fn is_one_matrix(&self) -> bool {
        let lead = self.layout.shape().len() - 2;
        let (shape, strides) = (self.layout.shape(), self.layout.strides());
        (0..lead).all(|i| shape[i] == 1 || strides[i] == 0)
    }

    /// The `index`-th matrix in row-major order of the leading axes.
    pub(in crate::ops) fn matrix<'d, T>(&self, data: &'d [T], mut index: usize) -> MatRef<'d, T> {
        let (shape, strides) = (self.layout.shape(), self.layout.strides());
        let lead = shape.len() - 2;
        let mut offset = self.layout.offset();
        for i in (0..lead).rev() {
            offset += index % shape[i] * strides[i];
            index /= shape[i];
        }
        let data = if self.rows * self.cols == 0 {
            &[]
        } else {
            &data[offset..]
        };
        MatRef::new(
            data,
            (self.rows, self.cols),
            (strides[lead], strides[lead + 1]),
        )
    }
}
