//! The element types that can be multiplied, and the type that each accumulates in.

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::family::Kernels;
use super::{Epilogue, MatMut, MatRef};
use crate::cpu::convert;
use crate::cpu::scratch::NoMemory;
use half::{bf16, f16};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
}

/// An element type of matrix products: `f32`, `f64`, `bf16` or `f16`.
#[allow(private_bounds)]
pub trait Scalar: sealed::Sealed + Copy + Default + Send + Sync + 'static {
    /// Products are summed in this type: `f32` for the half types, else the type itself.
    type Acc: Kernels + Copy + Default + std::ops::Mul<Output = Self::Acc>;
    /// Whether `Acc` is the type itself.
    #[doc(hidden)]
    const DIRECT: bool;
    /// `Acc` from a coefficient.
    #[doc(hidden)]
    fn coefficient(x: f64) -> Self::Acc;
    /// Converts without loss.
    #[doc(hidden)]
    fn widen(from: &[Self], to: &mut [Self::Acc]);
    /// Rounds to nearest, ties to even.
    #[doc(hidden)]
    fn narrow(from: &[Self::Acc], to: &mut [Self]);
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

/// `on_unit` for a type that the matrix unit takes.
macro_rules! on_unit {
    ($unit:path) => {
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
    };
}

macro_rules! direct {
    ($t:ty $(, $unit:path)?) => {
        impl Scalar for $t {
            $(on_unit!($unit);)?
            type Acc = $t;
            const DIRECT: bool = true;
            fn coefficient(x: f64) -> $t {
                x as $t
            }
            fn widen(from: &[$t], to: &mut [$t]) {
                to.copy_from_slice(from);
            }
            fn narrow(from: &[$t], to: &mut [$t]) {
                to.copy_from_slice(from);
            }
        }
    };
}
direct!(f32, amx::F32);
direct!(f64);

macro_rules! half {
    ($t:ty $(, $unit:path)?) => {
        impl Scalar for $t {
            $(on_unit!($unit);)?
            type Acc = f32;
            const DIRECT: bool = false;
            fn coefficient(x: f64) -> f32 {
                x as f32
            }
            fn widen(from: &[$t], to: &mut [f32]) {
                convert::widen(from, to);
            }
            fn narrow(from: &[f32], to: &mut [$t]) {
                convert::narrow(from, to);
            }
        }
    };
}
half!(bf16, amx::BF16);
half!(f16);
