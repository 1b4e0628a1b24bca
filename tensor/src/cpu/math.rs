//! Elementary functions as branch-free polynomials in `f32`: a loop over them vectorises under
//! [`vectorize`](super::vectorize), which calls into the C library do not.
//!
//! | function | bound on the error, in ulp of the result | largest error of all 2³² arguments |
//! | --- | --- | --- |
//! | [`exp`] | 1.1 | 1.009 |
//! | [`ln`] | 1.0 | 0.834 |
//! | [`ln_1p_unit`] | 1.5 | 1.387 |
//! | [`tanh`] | 1.5 | 1.333 |
//! | [`sigmoid`](Real::sigmoid) | 2.5 | 2.402 |
//! | [`erf`] | 1.5 | 1.215 |
//!
//! Subnormal arguments and results are included. The tests below compare with `f64`: four million
//! arguments of every exponent each time, every argument when asked (last on 2026-11-23).
//! Infinities, overflow and NaN come out as in the C library. The polynomials
//! are minimax fits (Remez exchange at 40 digits, rounded to `f32`); the methods, range reduction
//! by Cody and Waite and `erf` through `ln erfc`, are standard (Muller, *Elementary Functions*).
//!
//! Kernels that serve both precisions are generic over [`Real`]: for `f64` it calls the C library,
//! since `f64` is there to check results, not to train.

use crate::dtype::Float;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// A type of computation, `f32` or `f64`, with its elementary functions.
///
/// On a variable that is known to be an `f32`, `x.exp()` means the standard library's; in code
/// generic over `R: Real` it means the vectorising one.
pub(crate) trait Real:
    Float<Compute = Self>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + Default
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// +∞.
    const INFINITY: Self;

    /// |x|.
    fn abs(self) -> Self;
    /// √x, correctly rounded.
    fn sqrt(self) -> Self;
    /// |self| with the sign of `sign`.
    fn copysign(self, sign: Self) -> Self;
    /// Whether it is NaN.
    fn is_nan(self) -> bool;
    /// eˣ.
    fn exp(self) -> Self;
    /// The natural logarithm.
    fn ln(self) -> Self;
    /// ln(1 + x) for x in 0 ..= 1.
    fn ln_1p_unit(self) -> Self;
    /// The hyperbolic tangent.
    fn tanh(self) -> Self;
    /// The logistic function 1 / (1 + e⁻ˣ).
    #[inline(always)]
    fn sigmoid(self) -> Self {
        // Of e⁻|ˣ| ≤ 1: nothing overflows, and small results keep their digits.
        let e = (-self.abs()).exp();
        let numerator = if self < Self::ZERO { e } else { Self::ONE };
        let s = numerator / (Self::ONE + e);
        if self.is_nan() { self } else { s }
    }
    /// The error function.
    fn erf(self) -> Self;
    /// The sine; not vectorised.
    fn sin(self) -> Self;
    /// The cosine; not vectorised.
    fn cos(self) -> Self;
    /// `self` to the power `exponent`; not vectorised.
    fn powf(self, exponent: Self) -> Self;
}

/// What the kernels know of a [`Float`]: that its type of computation is [`Real`]. That of every float
/// type is.
pub(crate) trait Computed: Float<Compute: Real> {}

impl<T: Float<Compute: Real>> Computed for T {}

macro_rules! real {
    ($t:ty, $($name:ident: $function:path),*) => {
        impl Real for $t {
            const ZERO: $t = 0.0;
            const ONE: $t = 1.0;
            const INFINITY: $t = <$t>::INFINITY;
            $(
                #[inline(always)]
                fn $name(self) -> $t {
                    $function(self)
                }
            )*
            #[inline(always)]
            fn copysign(self, sign: $t) -> $t {
                <$t>::copysign(self, sign)
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                <$t>::is_nan(self)
            }
            #[inline(always)]
            fn powf(self, exponent: $t) -> $t {
                <$t>::powf(self, exponent)
            }
        }
    };
}
real!(
    f32, abs: f32::abs, sqrt: f32::sqrt, exp: exp, ln: ln, ln_1p_unit: ln_1p_unit, tanh: tanh,
    erf: erf, sin: f32::sin, cos: f32::cos
);
real!(
    f64, abs: f64::abs, sqrt: f64::sqrt, exp: f64::exp, ln: f64::ln, ln_1p_unit: f64::ln_1p,
    tanh: f64::tanh, erf: libm::erf, sin: f64::sin, cos: f64::cos
);

/// Horner's scheme, lowest coefficient first.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let mut p = c[N - 1];
    for i in (0..N - 1).rev() {
        p = p.mul_add(x, c[i]);
    }
    p
}

/// Adding and subtracting this rounds to an integer, which then stands in the low mantissa bits.
const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³
const LN_2: f32 = std::f32::consts::LN_2;
/// ln 2 = `LN_2` + `LN_2_LOW`.
const LN_2_LOW: f32 = -1.904_654_2e-9;

/// eˣ. Overflows to +∞ above 88.72, passes through subnormal numbers to 0 below −103.97.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Beyond these the result is ∞ or 0 anyway, and the exponent arithmetic below stays in range.
    // Comparisons with NaN are false, so NaN stays.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    // x = n ln 2 + r, |r| ≤ ln 2 / 2
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let nf = shifted - ROUND;
    let r = nf.mul_add(-LN_2, x);
    let r = nf.mul_add(-LN_2_LOW, r);
    let p = polynomial(
        r,
        [
            0.499_999_94,
            0.166_665_15,
            0.041_668_456,
            0.008_369_419,
            0.001_381_313_4,
        ],
    );
    let y = 1.0 + p.mul_add(r * r, r);
    // In two steps, since 2ⁿ itself may be subnormal or too large; only the last one rounds.
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    y * power(half) * power(n.wrapping_sub(half))
}

/// f − f²/2 + f³ P(f) = ln(1 + f) for √½ − 1 ≤ f ≤ √2 − 1, plus `exponent` · ln 2.
#[inline(always)]
fn ln_reduced(f: f32, exponent: f32) -> f32 {
    let p = polynomial(
        f,
        [
            0.333_333_08,
            -0.249_999_73,
            0.200_025_11,
            -0.166_703_5,
            0.142_134_41,
            -0.123_589_516,
            0.118_863_9,
            -0.119_622_33,
            0.071_053_55,
        ],
    );
    let square = f * f;
    let low = (square * f).mul_add(p, exponent * LN_2_LOW);
    let low = square.mul_add(-0.5, low);
    exponent.mul_add(LN_2, f + low)
}

/// The natural logarithm: −∞ at 0, NaN below.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    const SQRT_HALF: i32 = 0x3f35_04f3;
    let tiny = x < f32::MIN_POSITIVE;
    let scaled = if tiny { x * 8_388_608.0 } else { x }; // 2²³
    let bits = scaled.to_bits() as i32;
    let n = bits.wrapping_sub(SQRT_HALF) >> 23;
    let f = f32::from_bits(bits.wrapping_sub(n << 23) as u32) - 1.0;
    let y = ln_reduced(f, n as f32 - if tiny { 23.0 } else { 0.0 });
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    let y = if x < 0.0 { f32::NAN } else { y };
    if x.is_nan() { x } else { y }
}

/// ln(1 + x) for 0 ≤ x ≤ 1, accurate for small x; any other argument gives an arbitrary result
/// (NaN for NaN).
#[inline(always)]
pub(crate) fn ln_1p_unit(x: f32) -> f32 {
    // 1 + x = 2 (1 + f) brings the upper half into range, exactly.
    let upper = x > std::f32::consts::SQRT_2 - 1.0;
    let f = if upper { x.mul_add(0.5, -0.5) } else { x };
    ln_reduced(f, if upper { 1.0 } else { 0.0 })
}

/// The hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let s = a * a;
    let p = polynomial(
        s,
        [
            -0.333_332_78,
            0.133_313_28,
            -0.053_729_236,
            0.020_602_025,
            -0.005_660_807,
        ],
    );
    let small = (p * s).mul_add(a, a);
    let large = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
    (if a < 0.625 { small } else { large }).copysign(x)
}

/// The error function.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let a = x.abs();
    let p = polynomial(
        a * a,
        [
            0.128_379_17,
            -0.376_126_32,
            0.112_836_74,
            -0.026_858_186,
            0.005_197_991_6,
            -0.000_810_808_4,
            8.223_992e-5,
        ],
    );
    let small = p.mul_add(a, a);
    // ln erfc on 0.9 ≤ a ≤ 4, beyond which erf rounds to 1.
    let b = if a > 4.0 { 4.0 } else { a };
    let q = polynomial(
        b,
        [
            -0.000_166_482_55,
            -1.127_797_1,
            -0.636_976_36,
            -0.104_113_43,
            0.022_315_085,
            -0.003_065_456_6,
            0.000_198_216_06,
        ],
    );
    let large = 1.0 - exp(q);
    (if a < 0.92 { small } else { large }).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::vectorize;

    /// The distance of `y` from `reference` in units of the last place of the nearest `f32`.
    fn ulps(y: f32, reference: f64) -> f64 {
        let right = |right: bool| if right { 0.0 } else { f64::INFINITY };
        if y.is_nan() || reference.is_nan() {
            return right(y.is_nan() && reference.is_nan());
        }
        if f64::from(y) == reference {
            return 0.0;
        }
        if y.is_infinite() {
            // ∞ stands for whatever rounds to it.
            return right(reference as f32 == y);
        }
        let nearest = (reference as f32).abs().min(f32::MAX);
        let ulp = f64::from(f32::from_bits(nearest.to_bits() + 1) - nearest);
        let ulp = if ulp.is_finite() { ulp } else { 2f64.powi(104) };
        (f64::from(y) - reference).abs() / ulp
    }

    /// The largest error over every `step`-th bit pattern, and where.
    fn worst(step: usize, f: impl Fn(f32) -> f32, reference: impl Fn(f64) -> f64) -> (f64, f32) {
        let mut worst = (0.0, 0.0);
        let mut x = [0f32; 1024];
        let mut y = [0f32; 1024];
        let mut bits = (0..=u32::MAX).step_by(step);
        loop {
            let mut n = 0;
            for (x, bits) in x.iter_mut().zip(&mut bits) {
                *x = f32::from_bits(bits);
                n += 1;
            }
            if n == 0 {
                return worst;
            }
            // As the kernels call it: vectorised.
            vectorize(
                #[inline(always)]
                || y.iter_mut().zip(&x).for_each(|(y, x)| *y = f(*x)),
            );
            for (&x, &y) in x[..n].iter().zip(&y) {
                let e = ulps(y, reference(f64::from(x)));
                if e > worst.0 {
                    worst = (e, x);
                }
            }
        }
    }

    type Case = (&'static str, f64, fn(usize) -> (f64, f32));
    /// Name, stated bound, and the measurement. `ln_1p_unit` is folded into its range.
    const CASES: [Case; 6] = [
        ("exp", 1.1, |s| worst(s, exp, f64::exp)),
        ("ln", 1.0, |s| worst(s, ln, f64::ln)),
        ("ln_1p_unit", 1.5, |s| {
            worst(
                s,
                |x| ln_1p_unit(unit(x)),
                |x| f64::from(unit(x as f32)).ln_1p(),
            )
        }),
        ("tanh", 1.5, |s| worst(s, tanh, f64::tanh)),
        ("sigmoid", 2.5, |s| worst(s, Real::sigmoid, Real::sigmoid)),
        ("erf", 1.5, |s| worst(s, erf, libm::erf)),
    ];

    #[inline(always)]
    fn unit(x: f32) -> f32 {
        let a = x.abs();
        if a > 1.0 { 1.0 / a } else { a }
    }

    fn check(step: usize) {
        for (name, bound, measure) in CASES {
            let (error, at) = measure(step);
            println!("{name}: {error:.3} ulp at {at:e}");
            assert!(
                error <= bound,
                "{name}({at:e}) is off by {error:.3} ulp, stated {bound}"
            );
        }
    }

    #[test]
    fn errors_are_as_stated() {
        check(1009); // a prime: four million arguments of every exponent
    }

    #[test]
    #[ignore = "every f32: twelve minutes"]
    fn errors_are_as_stated_for_every_argument() {
        check(1);
    }

    #[test]
    fn edges_are_those_of_the_c_library() {
        type Function = (&'static str, f64, fn(f32) -> f32, fn(f64) -> f64);
        let functions: [Function; 4] = [
            ("exp", 1.1, exp, f64::exp),
            ("ln", 1.0, ln, f64::ln),
            ("tanh", 1.5, tanh, f64::tanh),
            ("erf", 1.5, erf, libm::erf),
        ];
        let inf = f32::INFINITY;
        for x in [
            0.0,
            -0.0,
            inf,
            -inf,
            f32::NAN,
            f32::MIN_POSITIVE,
            1e-45,
            -1e-45,
            1.0,
            -1.0,
            f32::MAX,
            f32::MIN,
            88.722_83,
            88.722_84,
            89.0,
            -87.4,
            -103.97,
            -103.98,
            -104.0,
            4.0,
            0.92,
            0.625,
        ] {
            for (name, bound, f, reference) in functions {
                let y = f(x);
                let error = ulps(y, reference(x.into()));
                assert!(error <= bound, "{name} {x:e}: {y:e}");
            }
        }
        assert_eq!(
            (exp(inf), exp(-inf), exp(0.0), ln(1.0)),
            (inf, 0.0, 1.0, 0.0)
        );
        let s: fn(f32) -> f32 = Real::sigmoid;
        assert_eq!((s(inf), s(-inf), s(0.0)), (1.0, 0.0, 0.5));
        assert!(tanh(-0.0).is_sign_negative() && erf(-0.0).is_sign_negative());
        assert!(s(-88.9) > 0.0, "a subnormal result is not flushed");
    }

    #[test]
    fn the_f64_error_function_is_its_integral() {
        // An independent reference: erf x = 2/√π Σ (−1)ⁿ x²ⁿ⁺¹ / (n! (2n + 1)).
        for i in -20..=20 {
            let x = f64::from(i) * 0.1;
            let (mut term, mut sum) = (x, x);
            for n in 1..60 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            let expected = sum * std::f64::consts::FRAC_2_SQRT_PI;
            assert!((Real::erf(x) - expected).abs() < 1e-14, "{x}");
        }
    }
}
