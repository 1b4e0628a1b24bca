//! CPU kernels: words of the generator, turned into numbers block by block.

use super::{Rng, philox};
use crate::cpu::elementwise::{BLOCK, GRAIN, map_computed, readable};
use crate::cpu::math::{self, Real};
use crate::cpu::pieces::parallel_pieces;
use crate::cpu::{convert, vectorize};
use crate::{Bool, DType, Element, Float, Result, Tensor, bf16, dispatch_float, f16};

/// Fills `out` from `each` words for each element: `f(words, out)` gets whole blocks, at least as
/// many words as it needs.
fn fill<T: Element>(
    rng: &mut Rng,
    each: usize,
    out: &mut [T],
    f: impl Fn(&[u32], &mut [T]) + Sync,
) {
    assert!(matches!(each, 1 | 2));
    let (key, first) = (rng.key, rng.reserve((out.len() * each).div_ceil(4)));
    parallel_pieces(out, GRAIN, |start, out| {
        let mut words = [0; 2 * BLOCK];
        for (i, out) in out.chunks_mut(BLOCK).enumerate() {
            // Grain and block are multiples of four: every piece starts with a block.
            let at = (start + i * BLOCK) * each / 4;
            let words = &mut words[..(out.len() * each).next_multiple_of(4)];
            philox::fill(key, first.wrapping_add(at as u64), words);
            f(words, out);
        }
    });
}

/// Writes as many values as there is room for.
#[inline(always)]
fn put<T>(out: &mut [T], values: impl IntoIterator<Item = T>) {
    out.iter_mut().zip(values).for_each(|(o, v)| *o = v);
}

/// The same for a half type, through `f32`.
fn fill_half<T: Float<Compute = f32>>(
    rng: &mut Rng,
    out: &mut [T],
    f: impl Fn(&[u32], &mut [f32]) + Sync,
) {
    fill(rng, 1, out, |words, out| {
        let mut wide = [0f32; BLOCK];
        let wide = &mut wide[..out.len()];
        f(words, wide);
        convert::narrow(wide, out);
    });
}

/// `bits` random bits below the binary point.
fn uniform(bits: u32) -> impl Fn(&[u32], &mut [f32]) + Sync {
    let unit = 2f32.powi(-(bits as i32));
    move |words, out| {
        vectorize(
            #[inline(always)]
            || put(out, words.iter().map(|w| (w >> (32 - bits)) as f32 * unit)),
        );
    }
}

fn pairs(words: &[u32]) -> impl Iterator<Item = u64> {
    words
        .chunks_exact(2)
        .map(|w| u64::from(w[0]) | u64::from(w[1]) << 32)
}

pub(super) fn rand(out: &mut Tensor, rng: &mut Rng) -> Result<()> {
    // As many bits as make every result exact: rounding up would give 1.
    match out.dtype() {
        DType::BF16 => fill_half::<bf16>(rng, out.make_mut()?, uniform(8)),
        DType::F16 => fill_half::<f16>(rng, out.make_mut()?, uniform(11)),
        DType::F32 => fill::<f32>(rng, 1, out.make_mut()?, uniform(24)),
        _ => fill::<f64>(rng, 2, out.make_mut()?, |words, out| {
            put(out, pairs(words).map(|w| (w >> 11) as f64 * 2f64.powi(-53)));
        }),
    }
    Ok(())
}

pub(super) fn randn(out: &mut Tensor, rng: &mut Rng) -> Result<()> {
    match out.dtype() {
        DType::BF16 => fill_half::<bf16>(rng, out.make_mut()?, normal),
        DType::F16 => fill_half::<f16>(rng, out.make_mut()?, normal),
        DType::F32 => fill::<f32>(rng, 1, out.make_mut()?, normal),
        _ => fill::<f64>(rng, 2, out.make_mut()?, |words, out| {
            for (out, words) in out.chunks_mut(2).zip(words.chunks_exact(4)) {
                let mut words = pairs(words).map(|w| ((w >> 11) as f64 + 0.5) * 2f64.powi(-53));
                let (u, turn) = (words.next().unwrap_or(1.0), words.next().unwrap_or(0.0));
                let radius = (-2.0 * u.ln()).sqrt();
                let (sin, cos) = (std::f64::consts::TAU * turn).sin_cos();
                put(out, [radius * cos, radius * sin]);
            }
        }),
    }
    Ok(())
}

/// Box and Muller: of each pair of words, the first gives the radius, the second the angle.
fn normal(words: &[u32], out: &mut [f32]) {
    let mut numbers = [[0f32; BLOCK / 2]; 2];
    vectorize(
        #[inline(always)]
        || {
            let [cosines, sines] = &mut numbers;
            let pairs = words.chunks_exact(2);
            for ((cosine, sine), pair) in cosines.iter_mut().zip(sines).zip(pairs) {
                // In (0, 1], and as fine near 0 as 32 bits allow: the tail ends beyond 6.7.
                let u = (pair[0] as f32 + 0.5) * 2f32.powi(-32);
                let radius = (-2.0 * math::ln(u)).sqrt();
                let (sin, cos) = sin_cos_turn(pair[1] as i32);
                (*cosine, *sine) = (radius * cos, radius * sin);
            }
        },
    );
    for (i, out) in out.chunks_mut(2).enumerate() {
        put(out, [numbers[0][i], numbers[1][i]]);
    }
}

/// Sine and cosine of `turn` · 2π / 2³², to 2 · 2⁻²⁴ absolute.
#[inline(always)]
fn sin_cos_turn(turn: i32) -> (f32, f32) {
    // The nearest quarter turn, and an angle within ±π/4 of it.
    let quarter = turn.wrapping_add(1 << 29) >> 30;
    let rest = turn.wrapping_sub(quarter << 30);
    let a = rest as f32 * (std::f32::consts::TAU * 2f32.powi(-32));
    let s = a * a;
    let sin = [0.008_332_155, -0.000_195_140_86];
    let sin = f32::mul_add(f32::mul_add(sin[1], s, sin[0]), s, -0.166_666_55);
    let sin = (sin * s).mul_add(a, a);
    let cos = [-0.001_388_733_7, 2.443_484_7e-5];
    let cos = f32::mul_add(f32::mul_add(cos[1], s, cos[0]), s, 0.041_666_646);
    let cos = (cos * s).mul_add(s, s.mul_add(-0.5, 1.0));
    let odd = quarter & 1 == 1;
    let (sin, cos) = (if odd { cos } else { sin }, if odd { sin } else { cos });
    let sign = |negative: bool| if negative { -1.0 } else { 1.0 };
    (
        sin * sign(quarter & 2 != 0),
        cos * sign((quarter + 1) & 2 != 0),
    )
}

pub(super) fn randint(low: i64, high: i64, out: &mut Tensor, rng: &mut Rng) -> Result<()> {
    let extent = high.wrapping_sub(low) as u64; // modulo 2⁶⁴, hence right even where it overflows
    fill::<i64>(rng, 2, out.make_mut()?, |words, out| {
        put(
            out,
            pairs(words).map(|w| low.wrapping_add(philox::scale(w, extent) as i64)),
        );
    });
    Ok(())
}

pub(super) fn bernoulli(p: f64, out: &mut Tensor, rng: &mut Rng) -> Result<()> {
    // A word below `threshold` has the probability p; 2³² itself does not fit a word.
    let threshold = (p * 2f64.powi(32)).round();
    let all = threshold >= 2f64.powi(32);
    let threshold = threshold as u32;
    fill::<Bool>(rng, 1, out.make_mut()?, |words, out| {
        vectorize(
            #[inline(always)]
            || put(out, words.iter().map(|w| Bool::from(*w < threshold || all))),
        );
    });
    Ok(())
}

pub(super) fn randperm(out: &mut Tensor, rng: &mut Rng) -> Result<()> {
    let out = out.make_mut::<i64>()?;
    put(out, 0..);
    rng.shuffle(out);
    Ok(())
}

/// `out = x · scale` where `mask` is not 0, else 0.
pub(super) fn scale_kept(
    op: &'static str,
    x: &Tensor,
    mask: &Tensor,
    scale: f64,
    out: &mut Tensor,
) -> Result<()> {
    let (x, mask) = (&readable(op, x)?, mask.contiguous_for(op)?);
    let mask = mask.as_bytes()?;
    fn run<R: Real>(mask: &[u8], x: &[R], scale: f64, out: &mut [R]) {
        let scale = R::from_f64(scale);
        vectorize(
            #[inline(always)]
            || {
                let operands = mask.iter().zip(x);
                out.iter_mut()
                    .zip(operands)
                    .for_each(|(o, (m, x))| *o = if *m != 0 { *x * scale } else { R::ZERO });
            },
        );
    }
    dispatch_float!(op, out.dtype(), T => {
        map_computed::<T, 1>([x], out.make_mut()?, &|at, [x], out| run(&mask[at..], x, scale, out));
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_circle_is_round() {
        for i in 0..100_000u32 {
            let turn = i.wrapping_mul(2_654_435_761) as i32;
            let (sin, cos) = sin_cos_turn(turn);
            let angle = f64::from(turn) * std::f64::consts::TAU * 2f64.powi(-32);
            let error = (f64::from(sin) - angle.sin())
                .abs()
                .max((f64::from(cos) - angle.cos()).abs());
            assert!(error < 2.0 * 2f64.powi(-24), "{turn}: {error:e}");
        }
        assert_eq!(sin_cos_turn(0), (0.0, 1.0));
        assert_eq!(sin_cos_turn(1 << 30), (1.0, -0.0));
        assert_eq!(sin_cos_turn(i32::MIN).1, -1.0);
    }
}
