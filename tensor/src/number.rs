//! [`Number`]: a number that a program gives for a tensor of any element type, and when a type holds
//! it.

use crate::{DType, Element, Error, Result, dispatch_any};
use std::fmt;

/// A number that comes in beside an element type: the value of [`Tensor::full`](crate::Tensor::full).
///
/// Integers stay integers, so that an `i64` beyond 2⁵³, which `f64` does not hold, keeps its value.
/// There is no conversion from `u64` or `usize`, which hold numbers that neither variant holds: write
/// `i64::try_from(n)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// Any number that `f64` holds.
    Float(f64),
    /// Any number that `i64` holds.
    Int(i64),
}

macro_rules! number {
    ($($from:ty => $kind:ident),*) => {
        $(
            impl From<$from> for Number {
                fn from(value: $from) -> Number {
                    Number::$kind(value.into())
                }
            }
        )*
    };
}
// Not u64 and usize: what lies above `i64::MAX` would have no exact place.
number!(f64 => Float, f32 => Float, i64 => Int, i32 => Int, u32 => Int, u8 => Int, bool => Int);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Number::Float(value) => value.fmt(f),
            Number::Int(value) => value.fmt(f),
        }
    }
}

impl Number {
    /// The nearest `f64`.
    pub fn to_f64(self) -> f64 {
        match self {
            Number::Float(value) => value,
            Number::Int(value) => value as f64,
        }
    }

    /// The same number as `i64`, where it is one.
    pub fn to_i64(self) -> Option<i64> {
        const END: f64 = 9_223_372_036_854_775_808.0; // 2⁶³
        match self {
            Number::Int(value) => Some(value),
            Number::Float(value) => {
                let whole = value.fract() == 0.0 && (-END..END).contains(&value);
                whole.then_some(value as i64)
            }
        }
    }

    /// As an element: a float type rounds to the nearest, an integer type has to hold the number.
    pub(crate) fn element<T: Element>(self, op: &'static str) -> Result<T> {
        let element = match T::DTYPE.is_float() {
            true => Some(self.nearest()),
            false => T::exact(self),
        };
        element.ok_or_else(|| self.is_no::<T>(op))
    }

    /// The bytes of the number as an [`element`](Number::element) of type `dtype`, at the start.
    pub(crate) fn bytes(self, op: &'static str, dtype: DType) -> Result<[u8; 8]> {
        let mut bytes = [0; 8];
        dispatch_any!(dtype, T => {
            let element = self.element::<T>(op)?;
            bytes[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&element));
        });
        Ok(bytes)
    }

    /// The nearest element, rounded once.
    fn nearest<T: Element>(self) -> T {
        match self {
            Number::Float(value) => T::from_f64(value),
            Number::Int(value) => T::from_i64(value),
        }
    }

    /// The error of a number that an element type does not hold.
    pub(crate) fn is_no<T: Element>(self, op: &'static str) -> Error {
        Error::InvalidArgument {
            op,
            reason: format!("{self} is no {}", T::DTYPE),
        }
    }
}

/// [`Element::exact`] of the float types.
pub(crate) fn exact_float<T: Element>(number: Number) -> Option<T> {
    let nearest: T = number.nearest();
    let same = match number {
        Number::Float(value) => nearest.to_f64() == value || value.is_nan(),
        // 2⁶³ is the nearest `f64` of some `i64`, and none itself.
        Number::Int(value) => Number::Float(nearest.to_f64()).to_i64() == Some(value),
    };
    same.then_some(nearest)
}
