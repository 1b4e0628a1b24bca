//! Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, *Parallel Random
//! Numbers: As Easy as 1, 2, 3* (SC 2011): block `i` of a stream is a function of the key and `i`
//! alone, so any thread can compute any part.

use crate::cpu::vectorize;

const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
const ROUNDS: usize = 10;

/// `N` counters at once, word by word, so that the loops vectorise.
#[inline(always)]
fn philox<const N: usize>(mut c: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let [c0, c1, c2, c3] = &mut c;
        for ((c0, c1), (c2, c3)) in c0.iter_mut().zip(c1).zip(c2.iter_mut().zip(c3)) {
            let a = u64::from(MULTIPLIERS[0]) * u64::from(*c0);
            let b = u64::from(MULTIPLIERS[1]) * u64::from(*c2);
            *c0 = (b >> 32) as u32 ^ *c1 ^ key[0];
            *c1 = b as u32;
            *c2 = (a >> 32) as u32 ^ *c3 ^ key[1];
            *c3 = a as u32;
        }
    }
    c
}

/// Maps 64 random bits to `0 .. bound`.
pub(super) fn scale(bits: u64, bound: u64) -> u64 {
    ((u128::from(bits) * u128::from(bound)) >> 64) as u64
}

fn split(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// One block: the four words of `counter` (low word first) under `key`.
pub(super) fn block(counter: [u64; 2], key: u64) -> [u32; 4] {
    let ([a, b], [c, d]) = (split(counter[0]), split(counter[1]));
    philox([[a], [b], [c], [d]], split(key)).map(|[word]| word)
}

/// Fills `out`, a whole number of blocks, from the block `first` on.
pub(super) fn fill(key: u64, first: u64, out: &mut [u32]) {
    const WIDTH: usize = 16;
    debug_assert!(out.len().is_multiple_of(4));
    vectorize(
        #[inline(always)]
        || {
            for (i, out) in out.chunks_mut(4 * WIDTH).enumerate() {
                let start = first.wrapping_add((i * WIDTH) as u64);
                let mut counters = [[0u32; WIDTH]; 4];
                let [low, high, ..] = &mut counters;
                for (j, (low, high)) in low.iter_mut().zip(high).enumerate() {
                    let at = start.wrapping_add(j as u64);
                    (*low, *high) = (at as u32, (at >> 32) as u32);
                }
                let words = philox(counters, split(key));
                for (j, out) in out.chunks_exact_mut(4).enumerate() {
                    out.copy_from_slice(&[words[0][j], words[1][j], words[2][j], words[3][j]]);
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_the_published_known_answers() {
        let ones = u64::MAX;
        let cases = [
            (
                [0, 0],
                0,
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [ones, ones],
                ones,
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x85a3_08d3_243f_6a88, 0x0370_7344_1319_8a2e],
                0x299f_31d0_a409_3822,
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(block(counter, key), expected);
        }
    }

    #[test]
    fn a_filled_range_is_its_blocks() {
        for first in [0, 5, u64::from(u32::MAX) - 3] {
            let mut words = [0; 4 * 37];
            fill(99, first, &mut words);
            for (i, four) in words.chunks(4).enumerate() {
                assert_eq!(four, block([first + i as u64, 0], 99));
            }
        }
    }
}
