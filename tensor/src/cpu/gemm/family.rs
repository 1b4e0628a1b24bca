//! The kernels of each SIMD level, compiled for its instruction set and picked at run time.

use super::ahead::Ahead;
use super::kernel::{self, Finish, Tile, TileFn};
use super::pack;
use crate::cpu::math::Real;
use crate::cpu::vector::{Portable, Simd};
use crate::cpu::{SimdLevel, simd_level};

/// The kernels for one accumulator type at one level.
pub(super) struct Family<T: 'static> {
    /// Rows of a full tile.
    pub rows: usize,
    /// Elements of a vector.
    pub lanes: usize,
    /// Vectors of a full tile.
    pub vectors: usize,
    /// `tiles[vectors - 1][rows - 1]`.
    pub tiles: &'static [&'static [TileFn<T>]],
    pub along: Finish<T>,
    pub scatter: Finish<T>,
    pub pack_vectors: pack::PackVectors<T>,
    pub pack_stripes: pack::PackStripes<T>,
}

impl<T> Family<T> {
    /// Elements in a row of a full tile.
    pub fn width(&self) -> usize {
        self.lanes * self.vectors
    }
}

/// An accumulator type that has a family at every level.
pub(super) trait Kernels: Real {
    /// The family of `level`, or of the best lower one that the target has.
    fn family(level: SimdLevel) -> &'static Family<Self>;
}

/// A module with the kernels of one vector type behind one set of target features.
macro_rules! family {
    ($module:ident, $simd:ty, $t:ty, $(#[$feature:meta])?, $scatter:path,
     rows $max:literal: [$($r:literal)+], vectors: [$($nv:tt)+]) => {
        mod $module {
            use super::*;

            /// # Safety
            /// As [`kernel::run`].
            $(#[$feature])?
            unsafe fn tile<const R: usize, const NV: usize>(
                tile: &Tile<$t>,
                straight: bool,
                result: &Ahead,
                next: &Ahead,
            ) {
                // SAFETY: forwarded; the family is only handed out where its features are there.
                unsafe { kernel::run::<$simd, R, NV>(tile, straight, result, next) }
            }
            /// # Safety
            /// As [`kernel::along`].
            $(#[$feature])?
            unsafe fn along(tile: &Tile<$t>, sums: *const $t, rows: usize, stride: usize) {
                // SAFETY: as above.
                unsafe { kernel::along::<$simd>(tile, sums, rows, stride) }
            }
            /// # Safety
            /// As [`kernel::scatter`].
            $(#[$feature])?
            unsafe fn scatter(tile: &Tile<$t>, sums: *const $t, rows: usize, stride: usize) {
                // SAFETY: as above.
                unsafe { $scatter(tile, sums, rows, stride) }
            }
            /// # Safety
            /// As [`pack::vectors`].
            $(#[$feature])?
            unsafe fn pack_vectors(from: pack::Block<$t>, width: usize, to: *mut $t) {
                // SAFETY: as above.
                unsafe { pack::vectors::<$simd>(from, width, to) }
            }
            /// # Safety
            /// As [`pack::stripes`].
            $(#[$feature])?
            unsafe fn pack_stripes(from: pack::Block<$t>, rows: usize, to: *mut $t) {
                // SAFETY: as above.
                unsafe { pack::stripes::<$simd>(from, rows, to) }
            }
            pub(super) static FAMILY: Family<$t> = Family {
                rows: $max,
                lanes: <$simd as Simd>::LANES,
                vectors: [$($nv),+].len(),
                tiles: family!(@rows [$($r)+] $($nv)+),
                along,
                scatter,
                pack_vectors,
                pack_stripes,
            };
        }
    };
    (@rows $r:tt $($nv:literal)+) => { &[$(family!(@row $r $nv)),+] };
    (@row [$($r:literal)+] $nv:literal) => { &[$(tile::<$r, $nv>),+] };
}

family!(portable_f32, Portable<f32>, f32, , kernel::scatter::<Portable<f32>>,
    rows 4: [1 2 3 4], vectors: [1 2]);
family!(portable_f64, Portable<f64>, f64, , kernel::scatter::<Portable<f64>>,
    rows 4: [1 2 3 4], vectors: [1 2]);

#[cfg(target_arch = "x86_64")]
use crate::cpu::vector::{Avx2F32, Avx2F64, Avx512F32, Avx512F64};
#[cfg(target_arch = "x86_64")]
family!(avx2_f32, Avx2F32, f32, #[target_feature(enable = "avx2,fma")], kernel::scatter_8x8,
    rows 6: [1 2 3 4 5 6], vectors: [1 2]);
#[cfg(target_arch = "x86_64")]
family!(avx2_f64, Avx2F64, f64, #[target_feature(enable = "avx2,fma")], kernel::scatter::<Avx2F64>,
    rows 6: [1 2 3 4 5 6], vectors: [1 2]);
#[cfg(target_arch = "x86_64")]
family!(avx512_f32, Avx512F32, f32, #[target_feature(enable = "avx512f,avx512vl,avx2,fma")],
    kernel::scatter_8x8, rows 14: [1 2 3 4 5 6 7 8 9 10 11 12 13 14], vectors: [1 2]);
#[cfg(target_arch = "x86_64")]
family!(avx512_f64, Avx512F64, f64, #[target_feature(enable = "avx512f,avx512vl,avx2,fma")],
    kernel::scatter::<Avx512F64>, rows 14: [1 2 3 4 5 6 7 8 9 10 11 12 13 14], vectors: [1 2]);

macro_rules! kernels {
    ($t:ty, $portable:ident, $avx2:ident, $avx512:ident) => {
        impl Kernels for $t {
            fn family(level: SimdLevel) -> &'static Family<$t> {
                #[cfg(target_arch = "x86_64")]
                match level.min(simd_level()) {
                    SimdLevel::Avx512 => return &$avx512::FAMILY,
                    SimdLevel::Avx2 => return &$avx2::FAMILY,
                    SimdLevel::Baseline => {}
                }
                let _ = level;
                &$portable::FAMILY
            }
        }
    };
}
kernels!(f32, portable_f32, avx2_f32, avx512_f32);
kernels!(f64, portable_f64, avx2_f64, avx512_f64);
