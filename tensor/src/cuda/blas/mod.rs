//! [`Gemm`]: matrix products on a card, by cuBLASLt.
//!
//! cuBLASLt stores matrices column by column. A row-major `c = a b` is its `cᵀ = bᵀ aᵀ`: the operands
//! change places, and nothing is moved.

mod plan;

use super::issue::{Arg, Grid, Issue};
use super::modules::COPY;
use super::transfer::word;
use super::view::View;
use crate::{DType, Error, Layout, Result, Tensor};
pub(super) use plan::Blas;
use plan::{Key, Plan, Stored};
use std::sync::Arc;

/// Matrices of one shape in a card's memory, one after another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix {
    /// The address of the first element.
    at: u64,
    /// Elements from row to row, and from column to column.
    strides: [usize; 2],
    /// Elements from matrix to matrix; 0 where they are one.
    apart: usize,
}

impl Matrix {
    pub(crate) fn new(at: Arg<'_>, strides: [usize; 2], apart: usize) -> Matrix {
        Matrix {
            at: at.bits(),
            strides,
            apart,
        }
    }

    /// In row-major order, each `rows` by `cols` elements behind the last.
    pub(crate) fn dense(at: Arg<'_>, rows: usize, cols: usize) -> Matrix {
        Matrix::new(at, [cols, 1], rows * cols)
    }

    /// The same matrix, or the same matrices, `elements` of `dtype` further on.
    pub(crate) fn further(self, elements: usize, dtype: DType) -> Matrix {
        let at = self.at + (elements * dtype.size()) as u64;
        Matrix { at, ..self }
    }

    /// With so many elements from matrix to matrix.
    pub(crate) fn apart(self, apart: usize) -> Matrix {
        Matrix { apart, ..self }
    }

    /// Whether the library can read it, as `rows` by `cols` elements: one axis is dense.
    pub(crate) fn is_readable(self, rows: usize, cols: usize) -> bool {
        self.stored(rows, cols).is_some()
    }

    /// The transposed matrices.
    pub(crate) fn t(self) -> Matrix {
        let [row, col] = self.strides;
        let strides = [col, row];
        Matrix { strides, ..self }
    }

    /// How cuBLASLt is told of it.
    fn stored(self, rows: usize, cols: usize) -> Option<Stored> {
        let [down, along] = self.strides;
        if (along == 1 || cols == 1) && (down >= cols || rows == 1) {
            let ld = if rows == 1 { cols } else { down };
            Some(Stored::new(false, cols, rows, ld))
        } else if (down == 1 || rows == 1) && (along >= rows || cols == 1) {
            let ld = if cols == 1 { rows } else { along };
            Some(Stored::new(true, rows, cols, ld))
        } else {
            None
        }
    }
}

/// A function that cuBLASLt can apply to sums. It says nowhere whether its ReLU lets NaN pass, nor how
/// far its GELU is from the formula: programs choose them ([`Device::allow_library_activations`]).
///
/// [`Device::allow_library_activations`]: crate::Device::allow_library_activations
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum Function {
    /// None.
    #[default]
    Identity,
    Relu,
    /// By its formula with tanh.
    Gelu,
}

/// What a product does with its sums while they are at hand. The addresses are multiples of
/// [`EPILOGUE_ALIGNMENT`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Epilogue {
    /// The address of `n` elements of the result's type, which are added to each row.
    pub(crate) bias: Option<u64>,
    /// Applied behind the bias.
    pub(crate) function: Function,
    /// Where the arguments of [`Function::Gelu`] are stored too: `m` by `n` elements of the result's
    /// type in row-major order, where 8 divides `n`.
    pub(crate) arguments: Option<u64>,
}

/// Bytes at a multiple of which lie a bias and the arguments of a function: algorithms access several
/// elements at once.
pub(crate) const EPILOGUE_ALIGNMENT: u64 = 16;

/// `c = f(a b + bias)`, where `a` is `m` by `k`, `b` is `k` by `n`, and `c` is `m` by `n` with its
/// rows' elements side by side; `batch` times. With `add`, what is in `c` is a term of the sum.
///
/// Half types accumulate in `f32`. The result is the same bit for bit every time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gemm {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) batch: usize,
    pub(crate) a: Matrix,
    pub(crate) b: Matrix,
    pub(crate) c: Matrix,
    /// The elements of `a` and `b`.
    pub(crate) dtype: DType,
    /// Those of `c`: the same, or `F32` where the others are of a half type.
    pub(crate) result: DType,
    pub(crate) add: bool,
    pub(crate) epilogue: Epilogue,
}

impl Gemm {
    /// `c = a b`, once.
    pub(crate) fn new([m, n, k]: [usize; 3], dtype: DType, [a, b, c]: [Matrix; 3]) -> Gemm {
        Gemm {
            m,
            n,
            k,
            batch: 1,
            a,
            b,
            c,
            dtype,
            result: dtype,
            add: false,
            epilogue: Epilogue::default(),
        }
    }

    fn key(&self, tf32: bool) -> Option<Key> {
        // Of more elements than memory has, none is asked for: every extent fits.
        let (left, right) = (
            self.b.stored(self.k, self.n)?,
            self.a.stored(self.m, self.k)?,
        );
        let [down, along] = self.c.strides;
        debug_assert!(along == 1 || self.n == 1, "the rows of a result are dense");
        let ld = if self.m == 1 { self.n } else { down };
        Some(Key {
            dtype: self.dtype,
            result: self.result,
            tf32: tf32 && self.dtype == DType::F32,
            operands: [left, right, Stored::new(false, self.n, self.m, ld)],
            apart: [self.b.apart, self.a.apart, self.c.apart],
            batch: self.batch,
            aligned: [self.b.at, self.a.at, self.c.at].map(alignment),
            bias: self.epilogue.bias.is_some(),
            function: self.epilogue.function,
            arguments: self.epilogue.arguments.is_some(),
            add: self.add,
        })
    }
}

/// The largest power of two that divides an address, up to what cuBLASLt asks about.
fn alignment(at: u64) -> u32 {
    1 << at.trailing_zeros().min(8)
}

impl Issue {
    /// The matrix that a tensor is, or a matrix like it in scratch memory.
    ///
    /// # Errors
    /// As [`matrices`](Issue::matrices).
    pub(crate) fn matrix(&mut self, t: &Tensor) -> Result<Matrix> {
        let (at, layout) = self.matrices(t)?;
        let [down, along] = layout.strides()[..] else {
            unreachable!("{}: a matrix has two axes", self.op());
        };
        Ok(Matrix::new(at, [down, along], 0))
    }

    /// Where a tensor lies, as matrices along its last two axes. Views of which the library could not
    /// read a matrix are copied to scratch memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; as [`View::new`].
    pub(crate) fn matrices(&mut self, t: &Tensor) -> Result<(Arg<'static>, Layout)> {
        let (at, layout) = (self.address(t), t.layout().at_origin());
        let (&[.., rows, cols], &[.., down, along]) = (t.dims(), &layout.strides()[..]) else {
            unreachable!("{}: a matrix has two axes", self.op());
        };
        let matrix = Matrix::new(at, [down, along], 0);
        if t.numel() == 0 || matrix.is_readable(rows, cols) {
            return Ok((at, layout));
        }
        // What repeats is copied once.
        let mut once = layout.clone();
        for (axis, stride) in layout.strides().iter().enumerate() {
            if *stride == 0 && axis + 2 < layout.shape().len() {
                once = once.narrow(axis as isize, 0, 1)?;
            }
        }
        let n = once.shape().numel();
        let copy = self.scratch(n * t.dtype().size())?;
        let view = View::new(self.op(), &once)?;
        let view = Arg::Struct(bytemuck::bytes_of(&view));
        let args = [at, copy, Arg::Int(n as i64), view];
        self.launch(&COPY, &[word(t.dtype())], "gather", Grid::over(n), &args)?;
        let dense = Layout::contiguous(self.op(), once.shape().clone())?;
        Ok((copy, dense.broadcast_to(self.op(), t.shape())?))
    }

    /// Issues a product.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`] where cuBLASLt is not installed; [`Error::OutOfMemory`];
    /// [`Error::DeviceFailed`].
    pub(crate) fn gemm(&mut self, gemm: &Gemm) -> Result<()> {
        let (op, gpu) = (self.op(), self.gpu());
        if gemm.m == 0 || gemm.n == 0 || gemm.batch == 0 {
            return Ok(());
        }
        if gemm.k == 0 {
            return self.nothing(gemm);
        }
        let what = "multiplying matrices";
        let Some(plan) = self.plan(gemm)? else {
            return Err(plan::failed(op, gpu, what, plan::NOT_SUPPORTED));
        };
        let workspace = self.workspace(plan.workspace())?;
        let places = [gemm.b.at, gemm.a.at, gemm.c.at];
        let stream = self.stream();
        plan.run(places, gemm.epilogue, workspace, stream)
            .map_err(|status| plan::failed(op, gpu, what, status))
    }

    /// Whether the library has an algorithm for a product, its epilogue included.
    ///
    /// # Errors
    /// As [`gemm`](Issue::gemm).
    pub(crate) fn has_product(&mut self, gemm: &Gemm) -> Result<bool> {
        Ok(self.plan(gemm)?.is_some())
    }

    /// Whether the program lets cuBLASLt apply its own functions.
    pub(crate) fn has_library_activations(&self) -> bool {
        self.gpu().library_activations()
    }

    fn plan(&mut self, gemm: &Gemm) -> Result<Option<Arc<Plan>>> {
        let (op, gpu) = (self.op(), self.gpu());
        gpu.enter(op)?;
        let Some(key) = gemm.key(gpu.tf32()) else {
            unreachable!("{op}: the operands of a product come from `matrix`");
        };
        gpu.blas.plan(op, self.issuing(), key)
    }

    /// A sum without terms.
    fn nothing(&mut self, gemm: &Gemm) -> Result<()> {
        let Epilogue { bias, function, .. } = gemm.epilogue;
        debug_assert!(
            bias.is_none() && function == Function::Identity,
            "an empty sum has no epilogue"
        );
        let elements = gemm.m * gemm.n;
        debug_assert!(gemm.c.strides[0] == gemm.n || gemm.m == 1);
        debug_assert!(gemm.c.apart == elements || gemm.batch == 1);
        match gemm.add {
            true => Ok(()),
            false => self.zero(gemm.c.at, elements * gemm.batch * gemm.result.size()),
        }
    }
}

/// What a program without cuBLASLt is told.
fn missing(op: &'static str, gpu: &super::gpu::Gpu, reason: &str) -> Error {
    Error::DeviceUnavailable {
        op,
        device: gpu.device(),
        reason: reason.into(),
    }
}
