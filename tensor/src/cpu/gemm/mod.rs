//! Matrix products over slices: `C = act(alpha * A B + beta * C + bias)`.
//!
//! The structure is that of Goto and van de Geijn (*Anatomy of High-Performance Matrix
//! Multiplication*, 2008) with one change: the two operands are not told apart by left and right
//! but by their part in the micro-kernel. One is *striped*, its elements broadcast; the other is
//! *vectorised*. An operand whose `k` axis is contiguous can be striped where it stands, so the
//! weights of `x Wᵀ` are never packed; the tile is then written transposed. `plan.rs` chooses.
//!
//! | file | |
//! | --- | --- |
//! | `plan.rs` | which operand plays which part, blocks, threads; pure |
//! | `driver.rs` | the loops over blocks, packing, tiles |
//! | `job.rs` | a product as the loops see it |
//! | `feed.rs` | operands in the order of the kernels |
//! | `parts.rs` | small parts of the driver |
//! | `kernel.rs` | the micro-kernel and its ways out |
//! | `ahead.rs` | memory that the micro-kernel asks for by the way |
//! | `pack.rs` | copies into kernel order |
//! | `family.rs`, `../vector.rs` | the above for AVX-512, AVX2 and plain Rust |
//! | `scalar.rs` | element types |
//! | `amx/` | the same products on the processor's matrix unit, where it has one and it is faster |
//!
//! **A result has the same bits whatever the number of threads**: threads share out elements of
//! the result, never terms of a sum. They may depend on the shape, which decides between the
//! matrix unit and the vector kernels.

#![allow(unsafe_code)]

mod ahead;
#[cfg(target_arch = "x86_64")]
mod amx;
mod driver;
mod family;
mod feed;
mod job;
mod kernel;
mod pack;
mod parts;
mod plan;
mod scalar;
mod scratch;

use crate::cpu::scratch::NoMemory;
use crate::cpu::{SimdLevel, simd_level};

pub use scalar::Scalar;

/// A matrix in a slice: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> MatRef<'a, T> {
    /// A matrix of any strides, zero included.
    ///
    /// # Panics
    /// If an element lies outside `data`.
    pub fn new(
        data: &'a [T],
        (rows, cols): (usize, usize),
        (row_stride, col_stride): (usize, usize),
    ) -> Self {
        if rows > 0 && cols > 0 {
            let last = (rows - 1)
                .checked_mul(row_stride)
                .zip((cols - 1).checked_mul(col_stride))
                .and_then(|(r, c)| r.checked_add(c));
            assert!(
                last.is_some_and(|last| last < data.len()),
                "a {rows} x {cols} matrix of strides ({row_stride}, {col_stride}) ends beyond its {} elements",
                data.len()
            );
        }
        // One row or column has no neighbour, however far away.
        let near = |count: usize, stride: usize| match count {
            0 | 1 => stride.min(data.len().max(2)),
            _ => stride,
        };
        MatRef {
            data,
            rows,
            cols,
            row_stride: near(rows, row_stride),
            col_stride: near(cols, col_stride),
        }
    }

    /// A matrix whose rows follow each other.
    ///
    /// # Panics
    /// If `data` is too short.
    pub fn row_major(data: &'a [T], rows: usize, cols: usize) -> Self {
        MatRef::new(data, (rows, cols), (cols, 1))
    }

    /// The transpose, in place.
    pub fn t(self) -> Self {
        MatRef {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// A row-major matrix to write: row `i` starts at `data[i * row_stride]`.
#[derive(Debug)]
pub struct MatMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a, T> MatMut<'a, T> {
    /// A matrix whose rows start `row_stride` apart.
    ///
    /// # Panics
    /// If rows overlap or `data` is too short.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(
            rows == 0
                || cols == 0
                || (row_stride >= cols || rows == 1)
                    && (rows - 1)
                        .checked_mul(row_stride)
                        .and_then(|start| start.checked_add(cols))
                        .is_some_and(|end| end <= data.len()),
            "a {rows} x {cols} result with rows {row_stride} apart does not fit its {} elements",
            data.len()
        );
        MatMut {
            rows,
            cols,
            row_stride: if rows > 1 { row_stride } else { cols },
            data,
        }
    }

    /// A matrix whose rows follow each other.
    ///
    /// # Panics
    /// If `data` is too short.
    pub fn row_major(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        MatMut::new(data, rows, cols, cols)
    }
}

/// A vector added to the product.
#[derive(Clone, Copy, Debug, Default)]
pub enum Bias<'a, T> {
    /// Nothing is added.
    #[default]
    None,
    /// Element `i` is added to all of row `i`.
    PerRow(&'a [T]),
    /// Element `j` is added to all of column `j`.
    PerCol(&'a [T]),
}

/// A function of single elements, over a piece of a row of the result.
pub type Map<'a, A> = dyn Fn(&mut [A]) + Sync + 'a;

/// What happens to the product on its way into `C`: scaled by `alpha`, `beta * C` added, then the
/// bias, then rectified, then mapped; rounded to the element type once, at the end.
#[derive(Clone, Copy)]
pub struct Epilogue<'a, T: Scalar> {
    /// Factor of the product.
    pub alpha: f64,
    /// Factor of the old `C`, which is not read if this is zero.
    pub beta: f64,
    /// Vector to add.
    pub bias: Bias<'a, T>,
    /// Whether negative results become zero. NaN stays.
    pub relu: bool,
    /// A function of single elements; it is given pieces of rows.
    pub map: Option<&'a Map<'a, T::Compute>>,
}

impl<T: Scalar> Default for Epilogue<'_, T> {
    fn default() -> Self {
        Epilogue {
            alpha: 1.0,
            beta: 0.0,
            bias: Bias::None,
            relu: false,
            map: None,
        }
    }
}

/// Which kernels compute a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// The fastest that there are.
    Best,
    /// The vector kernels of this level, or of the best that the processor has below it.
    Vector(SimdLevel),
    /// The matrix unit wherever it can compute the product, even where that is slower. What it cannot
    /// compute, or all if there is none (see [`has_matrix_unit`]), the vector kernels do.
    Unit,
}

/// `C = act(alpha * A B + beta * C + bias)`.
///
/// The operations on tensors take [`OutOfMemory`](crate::Error::OutOfMemory) from the same kernels
/// where the system has no scratch memory; here there is no device to name.
///
/// The error of an element, against exact arithmetic, is at most `(k + 4) u` times the same sum
/// of absolute values, with `u` the unit roundoff of `T::Compute`, and half a unit in the last place
/// of `T` if that is narrower.
///
/// # Panics
/// If the shapes disagree, or there is no scratch memory.
pub fn gemm<T: Scalar>(
    kernels: Kernels,
    c: MatMut<'_, T>,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    epilogue: &Epilogue<'_, T>,
) {
    if let Err(NoMemory { bytes }) = product(kernels, c, a, b, epilogue) {
        panic!("a matrix product found no {bytes} bytes of scratch memory")
    }
}

/// Whether the processor has a matrix unit (Intel AMX with `bf16`) that this process may use.
pub fn has_matrix_unit() -> bool {
    #[cfg(target_arch = "x86_64")]
    return amx::available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// As [`gemm`], for the operations: where there is no scratch memory, `c` is left with arbitrary
/// elements.
pub(crate) fn product<T: Scalar>(
    kernels: Kernels,
    mut c: MatMut<'_, T>,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    epilogue: &Epilogue<'_, T>,
) -> Result<(), NoMemory> {
    assert!(
        a.cols == b.rows && c.rows == a.rows && c.cols == b.cols,
        "a {}x{} by a {}x{} matrix into a {}x{} one",
        a.rows,
        a.cols,
        b.rows,
        b.cols,
        c.rows,
        c.cols
    );
    match epilogue.bias {
        Bias::None => {}
        Bias::PerRow(bias) => assert_eq!(bias.len(), c.rows, "one bias for each row"),
        Bias::PerCol(bias) => assert_eq!(bias.len(), c.cols, "one bias for each column"),
    }
    if c.rows == 0 || c.cols == 0 {
        return Ok(());
    }
    let level = match kernels {
        Kernels::Vector(level) => level,
        Kernels::Best | Kernels::Unit => {
            let forced = matches!(kernels, Kernels::Unit);
            if let Some(result) = T::on_unit(forced, &mut c, a, b, epilogue) {
                return result;
            }
            simd_level()
        }
    };
    driver::product(level, c, a, b, epilogue)
}
