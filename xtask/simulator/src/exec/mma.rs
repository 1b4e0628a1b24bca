//! `mma.sync`: the products of small matrices whose elements lie spread over the lanes of a warp, as PTX's tables say.
//!
//! Sums are taken in f64 and rounded once. A card rounds differently in the last bits, and no document says how.

use super::warp::Mma;

/// How the elements of A and B lie in registers: the depth of the product, and the bits of an element.
const SHAPES: [(usize, u32); 6] = [(16, 16), (16, 16), (8, 32), (8, 16), (8, 16), (4, 32)];

fn half(bits: u32) -> f64 {
    let (sign, exponent, fraction) = (bits >> 15 & 1, bits >> 10 & 31, bits & 1023);
    let size = match exponent {
        0 => f64::from(fraction) * 2f64.powi(-24),
        31 if fraction == 0 => f64::INFINITY,
        31 => f64::NAN,
        _ => f64::from(fraction + 1024) * 2f64.powi(exponent as i32 - 25),
    };
    if sign == 1 { -size } else { size }
}

/// An element of a register: half of it for 16 bits.
fn element(register: u32, at: usize, kind: u32) -> f64 {
    let bits = register >> (16 * at) & 0xffff;
    match kind {
        0 | 3 => f64::from(f32::from_bits(bits << 16)),
        1 | 4 => half(bits),
        // The lower 13 bits of a tf32 take no part.
        _ => f64::from(f32::from_bits(register & !0x1fff)),
    }
}

/// D = A B + C for the lanes of a whole warp.
pub fn multiply(lanes: &mut [Option<&mut Mma>]) {
    let Some(kind) = lanes[0].as_ref().map(|part| part.kind) else {
        return;
    };
    let (depth, bits) = SHAPES[kind as usize];
    let (mut a, mut b) = ([[0.0; 16]; 16], [[0.0; 8]; 16]);
    for (lane, part) in lanes.iter().enumerate() {
        let Some(part) = part else { continue };
        let (group, pair) = (lane / 4, lane % 4);
        // Registers of A go down the rows first (group, group + 8), then along the columns; those of B along k.
        let columns = if bits == 16 { depth / 8 } else { depth / 4 };
        for register in 0..2 * columns {
            let row = group + register % 2 * 8;
            for at in 0..if bits == 16 { 2 } else { 1 } {
                let k = if bits == 16 {
                    pair * 2 + at + register / 2 * 8
                } else {
                    pair + register / 2 * 4
                };
                a[row][k] = element(part.a[register], at, kind);
            }
        }
        for register in 0..columns {
            for at in 0..if bits == 16 { 2 } else { 1 } {
                let k = if bits == 16 {
                    pair * 2 + at + register * 8
                } else {
                    pair + register * 4
                };
                b[k][group] = element(part.b[register], at, kind);
            }
        }
    }
    for (lane, part) in lanes.iter_mut().enumerate() {
        let Some(part) = part else { continue };
        for index in 0..4 {
            let (row, column) = (lane / 4 + index / 2 * 8, lane % 4 * 2 + index % 2);
            let product: f64 = (0..depth).map(|k| a[row][k] * b[k][column]).sum();
            part.d[index] = ((f64::from(f32::from_bits(part.c[index])) + product) as f32).to_bits();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::half;

    #[test]
    fn halves_have_their_values() {
        assert_eq!(half(0x3c00), 1.0);
        assert_eq!(half(0xc000), -2.0);
        assert_eq!(half(0x7bff), 65504.0);
        assert_eq!(half(1), 2f64.powi(-24));
        assert!(half(0x7e00).is_nan());
    }
}
