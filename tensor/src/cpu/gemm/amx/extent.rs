//! How large and how small the numbers of a packed strip are, and what the unit can take. Pure.
//!
//! The unit takes subnormal operands for zero and flushes subnormal results, so a product runs on
//! it only where neither can occur: where every part of every operand is normal, and where the
//! lowest bit that a term can have is normal. Then every sum, a multiple of that bit, is zero or
//! normal too.

/// The range of the magnitudes in a strip, as bits of `f32` without the sign.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// The smallest that is not zero; [`u32::MAX`] if there is none.
    pub min: u32,
    pub max: u32,
}

impl Extent {
    /// From twice the magnitudes: the greatest, and the least less one, so that zero is the
    /// largest there.
    pub fn of(least: u32, greatest: u32) -> Extent {
        Extent {
            min: if greatest == 0 {
                u32::MAX
            } else {
                least.wrapping_add(1) >> 1
            },
            max: greatest >> 1,
        }
    }

    /// The extent of both.
    pub fn and(self, other: Extent) -> Extent {
        Extent {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }

    /// Exponents of the lowest bit's number (that of its leading bit, or of the smallest normal
    /// number) and of the largest number; the latter is 128 if not all numbers are finite.
    fn exponents(self) -> (i32, i32) {
        let exponent = |bits: u32| (bits >> 23).max(1) as i32 - 127;
        (exponent(self.min), exponent(self.max))
    }
}

/// What a type's kernel can take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Places from a number's leading bit to its lowest: 23 for `f32`, 7 for `bf16`.
    pub places: i32,
    /// The resident operand is packed as its `2^scale`-fold, which moves the range of products
    /// that do not underflow to where those of training are.
    pub scale: i32,
}

impl Limits {
    /// Whether products of `terms` numbers of the two strips can be left to the unit.
    pub fn allow(self, passing: Extent, resident: Extent, terms: usize) -> bool {
        let Limits { places, scale } = self;
        let (p_min, p_max) = passing.exponents();
        let (r_min, r_max) = resident.exponents();
        let (r_min, r_max) = (r_min + scale, r_max + scale);
        let terms = (terms.max(1) as u64).next_power_of_two().trailing_zeros() as i32;
        // A part is rounded, perhaps up to the next power of two: hence 126 and the two places.
        let finite = p_max <= 126 && r_max <= 126;
        let zero = passing.max == 0 || resident.max == 0;
        let normal =
            p_min - places >= -126 && r_min - places >= -126 && p_min + r_min - 2 * places >= -126;
        finite && (zero || normal && p_max + r_max + 2 + terms <= 126)
    }
}
