//! The element types that can be multiplied.

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::family::Kernels;
use super::{Epilogue, MatMut, MatRef};
use crate::cpu::math::Computed;
use crate::cpu::rows::is_exact;
use crate::cpu::scratch::NoMemory;
use half::{bf16, f16};

/// An element type of matrix products: `f32`, `f64`, `bf16` or `f16`. Products are summed in
/// [`Compute`](crate::Float::Compute): `f32` for the half types, else the type itself.
#[allow(private_bounds)]
pub trait Scalar: Computed<Compute: Kernels> {
    /// Whether products are summed in the type itself.
    #[doc(hidden)]
    const DIRECT: bool = is_exact::<Self>();
    /// Runs the product on the matrix unit, or returns `None` with nothing done; `forced`, even
    /// where the vector kernels would be faster.
    #[doc(hidden)]
    fn on_unit(
        forced: bool,
        c: &mut MatMut<'_, Self>,
        a: MatRef<'_, Self>,
        b: MatRef<'_, Self>,
        epilogue: &Epilogue<'_, Self>,
    ) -> Option<Result<(), NoMemory>> {
        let _ = (forced, c, a, b, epilogue);
        None
    }
}

impl Scalar for f64 {}
impl Scalar for f16 {}

/// A type that the matrix unit takes.
macro_rules! on_unit {
    ($t:ty, $unit:path) => {
        impl Scalar for $t {
            #[cfg(target_arch = "x86_64")]
            fn on_unit(
                forced: bool,
                c: &mut MatMut<'_, Self>,
                a: MatRef<'_, Self>,
                b: MatRef<'_, Self>,
                epilogue: &Epilogue<'_, Self>,
            ) -> Option<Result<(), NoMemory>> {
                amx::product(&$unit, forced, c, a, b, epilogue)
            }
        }
    };
}
on_unit!(f32, amx::F32);
on_unit!(bf16, amx::BF16);
