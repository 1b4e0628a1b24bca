//! Element types: the [`DType`] tag, the [`Element`] trait that ties a Rust type to it, and the
//! macros that turn a tag into a type.

use crate::error::Error;
use crate::number::{Number, exact_float};
pub use half::{bf16, f16};
use std::fmt;
use std::ops::{Add, Div, Mul, Neg, Sub};
use std::str::FromStr;

/// The type of a tensor's elements.
///
/// The half types [`BF16`](DType::BF16) and [`F16`](DType::F16) are storage formats: sums and
/// products of them accumulate in `f32` and are rounded once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
    /// bfloat16: the upper half of an `f32`.
    BF16,
    /// IEEE 754 half precision.
    F16,
    /// Signed 64-bit integers: class labels, token ids, indices.
    I64,
    /// Signed 32-bit integers: indices in half the memory.
    I32,
    /// Unsigned bytes: raw images, masks.
    U8,
    /// Truth values, a byte each: what comparisons give, masks. There is no arithmetic of them.
    Bool,
}

impl DType {
    /// Every element type, in the order of declaration.
    pub const ALL: [DType; 8] = [
        DType::F32,
        DType::F64,
        DType::BF16,
        DType::F16,
        DType::I64,
        DType::I32,
        DType::U8,
        DType::Bool,
    ];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::U8 | DType::Bool => 1,
            DType::BF16 | DType::F16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::F64 | DType::I64 => 8,
        }
    }

    /// Whether the type is a floating-point type (and can carry a gradient).
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64 | DType::BF16 | DType::F16)
    }

    /// The type in which sums and products of such elements are computed: `f32` for the half
    /// types, for every other type the type itself. That of [`Float::Compute`].
    pub const fn compute(self) -> DType {
        match self {
            DType::BF16 | DType::F16 => DType::F32,
            DType::F32 | DType::F64 => self,
            DType::I64 | DType::I32 | DType::U8 | DType::Bool => self,
        }
    }

    /// The printed name, as in `"f32"`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::U8 => "u8",
            DType::Bool => "bool",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        DType::ALL
            .into_iter()
            .find(|d| d.name() == s)
            .ok_or_else(|| Error::InvalidArgument {
                op: "DType::from_str",
                reason: format!("`{s}` is none of f32, f64, bf16, f16, i64, i32, u8, bool"),
            })
    }
}

pub(crate) mod sealed {
    pub trait Sealed {
        /// The unsigned integer of this size: for what only moves values, and is compiled once for each size.
        type Bits: bytemuck::Pod + Sync;
    }
}

/// A Rust type that can be a tensor's element, and lies in its memory.
pub trait Element:
    bytemuck::Pod + Send + Sync + PartialOrd + fmt::Debug + fmt::Display + sealed::Sealed + 'static
{
    /// The tag of this type.
    const DTYPE: DType;
    /// The nearest value of this type: floats round to nearest, integers truncate and saturate.
    /// What is not 0, NaN too, is true.
    fn from_f64(value: f64) -> Self;
    /// The nearest value of this type, rounded once: floats to nearest, ties to even; integers
    /// saturate; what is not 0 is true.
    fn from_i64(value: i64) -> Self;
    /// The value as `f64` (exact but for `i64` beyond 2⁵³).
    fn to_f64(self) -> f64;
    /// The value of this type that is this number exactly, if there is one. NaN is a number of every
    /// float type.
    fn exact(number: Number) -> Option<Self>;
    /// The value as a number, exactly.
    fn number(self) -> Number;
}

/// A floating-point element and the type in which its sums and products are computed.
pub trait Float: Element {
    /// `f32` for `f32`, `bf16` and `f16`; `f64` for `f64`.
    type Compute: Float<Compute = Self::Compute>
        + Default
        + Neg<Output = Self::Compute>
        + Add<Output = Self::Compute>
        + Sub<Output = Self::Compute>
        + Mul<Output = Self::Compute>
        + Div<Output = Self::Compute>;
    /// Widens to the type of computation: exact.
    fn widen(self) -> Self::Compute;
    /// Rounds to nearest even from the type of computation.
    fn narrow(value: Self::Compute) -> Self;
}

macro_rules! element {
    ($t:ty, $bits:ty, $tag:ident, $kind:ident, |$v:ident| $from:expr, |$i:ident| $from_i64:expr,
        |$s:ident| $to:expr) => {
        impl sealed::Sealed for $t {
            type Bits = $bits;
        }
        impl Element for $t {
            const DTYPE: DType = DType::$tag;
            #[inline(always)]
            fn from_f64($v: f64) -> Self {
                $from
            }
            #[inline(always)]
            fn from_i64($i: i64) -> Self {
                $from_i64
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                let $s = self;
                $to
            }
            element!(@$kind);
        }
    };
    (@float) => {
        fn exact(number: Number) -> Option<Self> {
            exact_float(number)
        }
        fn number(self) -> Number {
            Number::Float(Element::to_f64(self))
        }
    };
    (@integer) => {
        fn exact(number: Number) -> Option<Self> {
            number.to_i64()?.try_into().ok()
        }
        fn number(self) -> Number {
            Number::Int(self.into())
        }
    };
}
element!(f32, u32, F32, float, |v| v as f32, |i| i as f32, |s| {
    f64::from(s)
});
element!(f64, u64, F64, float, |v| v, |i| i as f64, |s| s);
element!(
    bf16,
    u16,
    BF16,
    float,
    |v| Float::narrow(round_to_odd(v)),
    |i| Float::narrow(integer_to_odd(i)),
    |s| s.to_f64()
);
element!(
    f16,
    u16,
    F16,
    float,
    |v| Float::narrow(round_to_odd(v)),
    |i| Float::narrow(integer_to_odd(i)),
    |s| s.to_f64()
);
element!(i64, u64, I64, integer, |v| v as i64, |i| i, |s| s as f64);
element!(
    i32,
    u32,
    I32,
    integer,
    |v| v as i32,
    |i| i.clamp(i32::MIN.into(), i32::MAX.into()) as i32,
    |s| f64::from(s)
);
element!(
    u8,
    u8,
    U8,
    integer,
    |v| v as u8,
    |i| i.clamp(0, 255) as u8,
    |s| f64::from(s)
);

/// The neighbour in `f32` with an odd last bit, where `v` is not exact: rounding that to a shorter
/// type is as good as rounding `v` itself. (`half`'s own conversion drops the low 32 bits first,
/// and so takes what is just above a tie for a tie: seen in version 2.7.1.)
fn round_to_odd(v: f64) -> f32 {
    let nearest = v as f32;
    let (bits, back) = (nearest.to_bits(), f64::from(nearest));
    if back == v || v.is_nan() || bits & 1 == 1 {
        nearest
    } else if v.abs() > back.abs() {
        f32::from_bits(bits + 1)
    } else {
        f32::from_bits(bits - 1)
    }
}

/// The same for an integer, which `f64` may not hold: its first 24 bits, the last of them set where
/// any bit was cut off.
#[inline(always)]
fn integer_to_odd(v: i64) -> f32 {
    let size = v.unsigned_abs();
    let cut = 40u32.saturating_sub(size.leading_zeros());
    let kept = size >> cut << cut;
    let odd = kept | u64::from(kept != size) << cut;
    // Exact: 24 bits are what `f32` has.
    let odd = odd as f32;
    if v < 0 { -odd } else { odd }
}

macro_rules! float {
    ($t:ty, $compute:ty, |$s:ident| $widen:expr, |$v:ident| $narrow:expr) => {
        impl Float for $t {
            type Compute = $compute;
            #[inline(always)]
            fn widen(self) -> $compute {
                let $s = self;
                $widen
            }
            #[inline(always)]
            fn narrow($v: $compute) -> Self {
                $narrow
            }
        }
    };
}
float!(f32, f32, |s| s, |v| v);
float!(f64, f64, |s| s, |v| v);
float!(
    bf16,
    f32,
    |s| f32::from_bits(u32::from(s.to_bits()) << 16),
    |v| {
        // Branch-free but for the select on NaN, so that loops over it vectorise.
        let bits = v.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 {
            quiet
        } else {
            rounded
        } as u16)
    }
);
float!(f16, f32, |s| s.to_f32(), |v| f16::from_f32(v));

/// One arm of a match for each pair of tag and type, with `$t` bound to the type; then the arms
/// that follow the semicolon.
#[macro_export]
#[doc(hidden)]
macro_rules! dispatch_types {
    ($dtype:expr, $t:ident => $body:expr, [$($tag:ident: $rust:ty),*]; $($rest:tt)*) => {
        match $dtype {
            $(
                $crate::DType::$tag => {
                    type $t = $rust;
                    $body
                }
            )*
            $($rest)*
        }
    };
}

/// Runs `$body` with `$t` bound to the Rust type of a float dtype, or returns
/// [`Error::UnsupportedDType`] for an integer one. The body's value is the macro's value.
#[macro_export]
#[doc(hidden)]
macro_rules! dispatch_float {
    ($op:expr, $dtype:expr, $t:ident => $body:expr) => {
        $crate::dispatch_types!(
            $dtype, $t => $body,
            [F32: f32, F64: f64, BF16: $crate::bf16, F16: $crate::f16];
            dtype => return Err($crate::Error::UnsupportedDType { op: $op, dtype }),
        )
    };
}

/// Runs `$body` with `$t` bound to the Rust type of any dtype.
#[macro_export]
#[doc(hidden)]
macro_rules! dispatch_any {
    ($dtype:expr, $t:ident => $body:expr) => {
        $crate::dispatch_types!(
            $dtype, $t => $body,
            [F32: f32, F64: f64, BF16: $crate::bf16, F16: $crate::f16, I64: i64, I32: i32, U8: u8,
                Bool: $crate::Bool];
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for d in DType::ALL {
            assert_eq!(d.name().parse::<DType>().unwrap(), d);
        }
        assert!("f8".parse::<DType>().is_err());
    }

    #[test]
    fn halves_of_f64_are_the_nearest() {
        fn check<T: Element>(next: impl Fn(T, i32) -> T, epsilon: f64) {
            for i in 0..2000 {
                let base = T::from_f64(1.0 + f64::from(i) * 0.37).to_f64();
                // Ties, and just beside them by less than f32 resolves.
                for step in [0.5, 0.49, 0.51, 0.1, 1.5] {
                    for nudge in [0.0, 1e-13, -1e-13] {
                        let v = (base * (1.0 + step * epsilon)) * (1.0 + nudge);
                        let rounded = T::from_f64(v);
                        let error = (rounded.to_f64() - v).abs();
                        for side in [-1, 1] {
                            let other = (next(rounded, side).to_f64() - v).abs();
                            assert!(error <= other, "{v}: {rounded} is not the nearest");
                        }
                    }
                }
            }
            for (v, expected) in [
                (1e300, f64::INFINITY),
                (-1e300, f64::NEG_INFINITY),
                (1e-300, 0.0),
            ] {
                assert_eq!(T::from_f64(v).to_f64(), expected);
            }
            assert!(T::from_f64(f64::NAN).to_f64().is_nan());
        }
        let step = |bits: u16, by: i32| (i32::from(bits) + by) as u16;
        check(
            |v: bf16, by| bf16::from_bits(step(v.to_bits(), by)),
            2f64.powi(-7),
        );
        check(
            |v: f16, by| f16::from_bits(step(v.to_bits(), by)),
            2f64.powi(-10),
        );
    }

    #[test]
    fn bf16_narrowing_is_the_reference_rounding() {
        for bits in (0..=u32::MAX)
            .step_by(65_537)
            .chain([0x7f7f_ffff, 0x7f80_0001, 0xff80_0000])
        {
            let v = f32::from_bits(bits);
            let (ours, reference) = (<bf16 as Float>::narrow(v), bf16::from_f32(v));
            assert!(ours.to_bits() == reference.to_bits() || (ours.is_nan() && reference.is_nan()));
        }
    }
}
