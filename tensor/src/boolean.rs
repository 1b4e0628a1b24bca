//! [`Bool`], as which a tensor holds truth values, and [`Value`], which lets a program give and take
//! them as `bool`.

use crate::dtype::{DType, Element, sealed};
use crate::number::Number;
use std::cmp::Ordering;
use std::fmt;

/// An element of type [`DType::Bool`]: one byte, which is false where it is 0, and else true.
///
/// Rust's `bool` may be no byte but 0 and 1, and a tensor's bytes can be others: they are writable
/// ([`bytes_mut`](crate::Tensor::bytes_mut)), and they are arbitrary after
/// [`empty`](crate::Tensor::empty). So what lies in a tensor is this type. `bool` goes in and comes
/// out by a copy, as a [`Value`]. What this library computes is 0 or 1.
///
/// ```
/// # use phalanx_tensor::{Bool, Device, Tensor};
/// let mut t = Tensor::from_slice(&[true, false], [2], Device::cpu(0))?;
/// t.make_mut::<Bool>()?[1] = true.into();
/// assert!(t.as_slice::<Bool>()?[1].get());
/// assert_eq!(t.to_vec::<bool>()?, [true, true]);
/// # Ok::<(), phalanx_tensor::Error>(())
/// ```
///
/// ```compile_fail,E0277
/// # use phalanx_tensor::{Device, Tensor};
/// let t = Tensor::from_slice(&[true, false], [2], Device::cpu(0)).unwrap();
/// let bools: &[bool] = t.as_slice().unwrap(); // memory that may hold other bytes
/// ```
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Bool(u8);

impl Bool {
    /// The truth value.
    #[inline(always)]
    pub const fn get(self) -> bool {
        self.0 != 0
    }
}

impl From<bool> for Bool {
    #[inline(always)]
    fn from(value: bool) -> Bool {
        Bool(u8::from(value))
    }
}

impl From<Bool> for bool {
    #[inline(always)]
    fn from(value: Bool) -> bool {
        value.get()
    }
}

// By the truth value, whatever the byte.
impl PartialEq for Bool {
    #[inline(always)]
    fn eq(&self, other: &Bool) -> bool {
        self.get() == other.get()
    }
}
impl Eq for Bool {}
impl PartialOrd for Bool {
    #[inline(always)]
    fn partial_cmp(&self, other: &Bool) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Bool {
    #[inline(always)]
    fn cmp(&self, other: &Bool) -> Ordering {
        self.get().cmp(&other.get())
    }
}
impl fmt::Debug for Bool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.get(), f)
    }
}
impl fmt::Display for Bool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.get(), f)
    }
}

impl sealed::Sealed for Bool {
    type Bits = u8;
}
impl Element for Bool {
    const DTYPE: DType = DType::Bool;
    #[inline(always)]
    fn from_f64(value: f64) -> Bool {
        Bool::from(value != 0.0)
    }
    #[inline(always)]
    fn from_i64(value: i64) -> Bool {
        Bool::from(value != 0)
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(u8::from(self.get()))
    }
    fn exact(number: Number) -> Option<Bool> {
        match number.to_i64()? {
            0 => Some(Bool(0)),
            1 => Some(Bool(1)),
            _ => None,
        }
    }
    fn number(self) -> Number {
        self.get().into()
    }
}

/// A Rust type whose values a tensor takes and gives by a copy: every [`Element`], and `bool`, which
/// lies in a tensor as [`Bool`].
pub trait Value: bytemuck::NoUninit + sealed::Sealed {
    /// What lies in the tensor. A value's bytes are those of an element.
    type Element: Element;
    /// The value of an element.
    fn of(element: Self::Element) -> Self;
    /// The values of elements, in their buffer where both are one type.
    #[doc(hidden)]
    fn of_vec(elements: Vec<Self::Element>) -> Vec<Self> {
        elements.into_iter().map(Self::of).collect()
    }
}

impl<T: Element> Value for T {
    type Element = T;
    #[inline(always)]
    fn of(element: T) -> T {
        element
    }
    fn of_vec(elements: Vec<T>) -> Vec<T> {
        elements
    }
}

impl sealed::Sealed for bool {
    type Bits = u8;
}
impl Value for bool {
    type Element = Bool;
    #[inline(always)]
    fn of(element: Bool) -> bool {
        element.get()
    }
}
