//! Elements and sums.

use half::{bf16, f16};

use super::objects::Data;

/// A type in which sums are made.
pub trait Sum: Copy {
    /// Rounds.
    fn of(v: f64) -> Self;
    /// The same number.
    fn wide(self) -> f64;
    /// `self * factor + sum`, rounded twice.
    fn times_plus(self, factor: Self, sum: Self) -> Self;
}

macro_rules! sum {
    ($($float:ident)*) => {$(
        impl Sum for $float {
            fn of(v: f64) -> $float {
                v as $float
            }
            fn wide(self) -> f64 {
                self.into()
            }
            fn times_plus(self, factor: $float, sum: $float) -> $float {
                self * factor + sum
            }
        }
    )*};
}
sum! { f32 f64 }

/// The value of an element's bytes.
pub fn load(data: Data, bytes: &[u8]) -> f64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    let word = u64::from_le_bytes(word);
    match data {
        Data::F64 => f64::from_bits(word),
        Data::F32 => f32::from_bits(word as u32).into(),
        Data::BF16 => bf16::from_bits(word as u16).into(),
        Data::F16 => f16::from_bits(word as u16).into(),
    }
}

/// Rounds a value once to an element.
pub fn store(data: Data, v: f64, bytes: &mut [u8]) {
    match data {
        Data::F64 => bytes.copy_from_slice(&v.to_le_bytes()),
        Data::F32 => bytes.copy_from_slice(&(v as f32).to_le_bytes()),
        Data::F16 => bytes.copy_from_slice(&f16::from_f32(v as f32).to_le_bytes()),
        Data::BF16 => bytes.copy_from_slice(&bf16::from_f32(v as f32).to_le_bytes()),
    }
}

/// `v` with the 10 bits of mantissa that a card's unit for TF32 has.
pub fn tf32(v: f64) -> f64 {
    match v.is_finite() {
        true => f32::from_bits((v as f32).to_bits().wrapping_add(0x1000) & 0xffff_e000).into(),
        false => v,
    }
}

/// GELU by its formula with tanh. As nothing says how exact the library's is, tanh has the error of a card's fast
/// instruction: it keeps 11 bits.
pub fn gelu(v: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v);
    let rough = f32::from_bits((inner.tanh() as f32).to_bits() & 0xffff_f000);
    0.5 * v * (1.0 + f64::from(rough))
}
