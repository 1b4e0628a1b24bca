//! Products on the processor's matrix unit (Intel AMX): `f32` to full precision, and `bf16`.
//!
//! The unit multiplies `bf16` and sums in `f32`. An `f32` is the sum of three `bf16`, high, middle
//! and low, of eight bits each; of the nine products of parts the six largest are summed (Henry,
//! Tang and Heinecke, *Leveraging the bfloat16 Artificial Intelligence Datatype For
//! Higher-Precision Computations*, 2019). The other three are together at most `2^-23` of
//! `|a| |b|`, and the unit sums 32 terms among themselves before it adds them to the sum, so the
//! whole stays within the bound that [`gemm`](super::gemm) states for every product: at most
//! `(20 + 6 b / 32 + k / b) u` times the sum of absolute values, with blocks of `b` terms, 512
//! or fewer, against `k u` for a chain. In the mean it is below a chain's error, from a few per
//! cent to five times, over several kinds of numbers (`tests/matrix_unit.rs`).
//!
//! **Which products come here**: `f32` and `bf16` (in one part: a single product), with at least
//! 32 terms and a contiguous axis in each operand, where [`plan`] expects a gain. **Within a
//! product, a tile of 32 x 32 elements goes to the vector kernels if a strip that it depends on
//! holds what the unit cannot take** (`extent.rs`): infinities, numbers that are none, and
//! magnitudes where a part or a term might be subnormal or a sum overflow. So these come out as
//! they do without the unit. A tile's strips are the same however threads share the result.
//!
//! Rust has no intrinsics for the unit; its instructions stand as assembly in `tile.rs`.

mod aside;
mod driver;
mod extent;
mod finish;
mod operand;
mod pack;
mod plan;
mod refused;
mod tile;

use super::family::{Family, Kernels};
use super::job::Operand;
use super::{Epilogue, MatMut, MatRef, Scalar};
use crate::cpu::SimdLevel;
use crate::cpu::scratch::NoMemory;
use extent::Limits;
use half::bf16;
use plan::Costs;

pub(super) use tile::available;

/// What the unit does with one element type.
pub struct Unit<T> {
    costs: Costs,
    limits: Limits,
    pack: pack::Pack<T>,
    kernel: tile::Kernel,
    /// Whether the kernel packs and finishes by the way.
    aside: bool,
}

pub(super) static F32: Unit<f32> = Unit {
    costs: Costs {
        parts: 3,
        products: 6,
        terms: 512,
    },
    limits: Limits {
        places: 23,
        scale: 60,
    },
    pack: pack::from_f32,
    kernel: tile::six,
    aside: true,
};

pub(super) static BF16: Unit<bf16> = Unit {
    costs: Costs {
        parts: 1,
        products: 1,
        terms: 512,
    },
    limits: Limits {
        places: 7,
        scale: 0,
    },
    pack: pack::from_bf16,
    kernel: tile::one,
    aside: false,
};

/// Runs the product on the unit, or returns `None` with nothing done. `forced`: even where the
/// vector kernels would be faster.
pub(super) fn product<T: Scalar<Compute = f32>>(
    unit: &'static Unit<T>,
    forced: bool,
    c: &mut MatMut<'_, T>,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    epilogue: &Epilogue<'_, T>,
) -> Option<Result<(), NoMemory>> {
    // The inverse of the scale is multiplied into it, and must not make it subnormal.
    let alpha = epilogue.alpha.abs();
    if !available() || alpha != 0.0 && !(1e-18..=1e18).contains(&alpha) {
        return None;
    }
    let (a_side, b_side) = (Operand::rows(a).side, Operand::rows(b.t()).side);
    let plan = plan::plan(unit.costs, a_side, b_side, a.cols, forced)?;
    let c = MatMut {
        data: &mut *c.data,
        ..*c
    };
    Some(driver::product(unit, plan, c, a, b, epilogue))
}

/// The vector kernels that write tiles and take what the unit cannot.
fn family() -> &'static Family<f32> {
    f32::family(SimdLevel::Avx512)
}
