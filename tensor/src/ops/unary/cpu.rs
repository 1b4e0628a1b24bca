//! CPU kernels: one line for each function and for each derivative.

use super::{Backward, GeluKind, Unary};
use crate::cpu::elementwise::{RealKernel, map, map_real, readable};
use crate::cpu::math::Real;
use crate::cpu::vectorize;
use crate::{DType, Error, Result, Tensor};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, SQRT_2};

/// √(2/π), and the cubic coefficient of the tanh formula of GELU.
const GELU_SCALE: f64 = FRAC_2_SQRT_PI / SQRT_2;
const GELU_CUBIC: f64 = 0.044715;

/// `out = kind(x)`.
pub(super) fn unary(op: &'static str, kind: Unary, x: &Tensor, out: &mut Tensor) -> Result<()> {
    let x = readable(op, x)?;
    match x.dtype() {
        DType::I64 => integer(op, kind, &x, out),
        _ => map_real(op, [&x], out, &kind),
    }
}

/// `out = grad · kind'(saved)`.
pub(super) fn backward(
    op: &'static str,
    kind: Backward,
    grad: &Tensor,
    saved: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    map_real(
        op,
        [&readable(op, grad)?, &readable(op, saved)?],
        out,
        &kind,
    )
}

// Functions are passed by name where they are large, since a closure is inlined only if marked so,
// and what is not inlined does not vectorise.

#[inline(always)]
fn each<R: Copy>([x]: [&[R]; 1], out: &mut [R], f: impl Fn(R) -> R) {
    vectorize(
        #[inline(always)]
        || {
            for (o, x) in out.iter_mut().zip(x) {
                *o = f(*x);
            }
        },
    );
}

#[inline(always)]
fn each2<R: Copy>([g, x]: [&[R]; 2], out: &mut [R], f: impl Fn(R, R) -> R) {
    vectorize(
        #[inline(always)]
        || {
            for (o, (g, x)) in out.iter_mut().zip(g.iter().zip(x)) {
                *o = f(*g, *x);
            }
        },
    );
}

impl RealKernel<1> for Unary {
    fn run<R: Real>(&self, x: [&[R]; 1], out: &mut [R]) {
        match *self {
            Unary::Neg => each(x, out, |x| -x),
            Unary::Abs => each(x, out, R::abs),
            Unary::Sign => each(x, out, sign),
            Unary::Square => each(x, out, |x| x * x),
            Unary::Sqrt => each(x, out, R::sqrt),
            Unary::Rsqrt => each(x, out, |x| R::ONE / x.sqrt()),
            Unary::Recip => each(x, out, |x| R::ONE / x),
            Unary::Exp => each(x, out, R::exp),
            Unary::Log => each(x, out, R::ln),
            Unary::Sin => each(x, out, R::sin),
            Unary::Cos => each(x, out, R::cos),
            Unary::Tanh => each(x, out, R::tanh),
            Unary::Sigmoid => each(x, out, R::sigmoid),
            Unary::Relu => each(x, out, relu),
            Unary::LeakyRelu(slope) => {
                let slope = R::from_f64(slope);
                each(x, out, |x| if x > R::ZERO { x } else { slope * x });
            }
            Unary::Gelu(GeluKind::Exact) => each(x, out, gelu_exact),
            Unary::Gelu(GeluKind::Tanh) => each(x, out, gelu_tanh),
            Unary::Silu => each(x, out, silu),
            Unary::Softplus => each(x, out, softplus),
        }
    }
}

impl RealKernel<2> for Backward {
    /// Of the gradient and the saved tensor.
    fn run<R: Real>(&self, x: [&[R]; 2], out: &mut [R]) {
        let two = R::from_f64(2.0);
        match *self {
            Backward::Abs => each2(x, out, |g, x| g * sign(x)),
            Backward::Square => each2(x, out, |g, x| g * (x + x)),
            Backward::Sqrt => each2(x, out, |g, y| g / (two * y)),
            Backward::Rsqrt => each2(x, out, |g, y| R::from_f64(-0.5) * g * (y * y * y)),
            Backward::Recip => each2(x, out, |g, y| -g * (y * y)),
            Backward::Sin => each2(x, out, |g, x| g * x.cos()),
            Backward::Cos => each2(x, out, |g, x| -g * x.sin()),
            Backward::Tanh => each2(x, out, |g, y| g * (R::ONE - y * y)),
            Backward::Sigmoid => each2(x, out, |g, y| g * ((R::ONE - y) * y)),
            Backward::Relu => each2(x, out, |g, y| if y <= R::ZERO { R::ZERO } else { g }),
            Backward::LeakyRelu(slope) => {
                let slope = R::from_f64(slope);
                each2(x, out, |g, x| if x > R::ZERO { g } else { slope * g });
            }
            Backward::Gelu(GeluKind::Exact) => each2(x, out, gelu_exact_backward),
            Backward::Gelu(GeluKind::Tanh) => each2(x, out, gelu_tanh_backward),
            Backward::Silu => each2(x, out, silu_backward),
            Backward::Softplus => each2(x, out, softplus_backward),
        }
    }
}

#[inline(always)]
fn sign<R: Real>(x: R) -> R {
    let one = R::ONE.copysign(x);
    // Neither above nor below: ±0 and NaN are their own sign.
    if x.abs() > R::ZERO { one } else { x }
}

/// The larger of x and 0; NaN stays NaN.
#[inline(always)]
pub(crate) fn relu<R: Real>(x: R) -> R {
    if x < R::ZERO { R::ZERO } else { x }
}

/// x Φ(x).
#[inline(always)]
pub(crate) fn gelu_exact<R: Real>(x: R) -> R {
    let half = R::from_f64(0.5) * x;
    half * (R::ONE + (x * R::from_f64(FRAC_1_SQRT_2)).erf())
}

/// Φ(x) + x φ(x).
#[inline(always)]
pub(crate) fn gelu_exact_slope<R: Real>(x: R) -> R {
    let half = R::from_f64(0.5);
    let cdf = half * (R::ONE + (x * R::from_f64(FRAC_1_SQRT_2)).erf());
    let pdf = R::from_f64(0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2) * (-half * x * x).exp();
    cdf + x * pdf
}

/// The tanh formula.
#[inline(always)]
pub(crate) fn gelu_tanh<R: Real>(x: R) -> R {
    let inner = R::from_f64(GELU_SCALE) * (x + R::from_f64(GELU_CUBIC) * x * x * x);
    R::from_f64(0.5) * x * (R::ONE + inner.tanh())
}

/// The derivative of the tanh formula.
#[inline(always)]
pub(crate) fn gelu_tanh_slope<R: Real>(x: R) -> R {
    let half = R::from_f64(0.5);
    let square = x * x;
    let t = (R::from_f64(GELU_SCALE) * (x + R::from_f64(GELU_CUBIC) * square * x)).tanh();
    let inner_slope = R::from_f64(GELU_SCALE) * (R::ONE + R::from_f64(3.0 * GELU_CUBIC) * square);
    half * (R::ONE + t) + half * x * (R::ONE - t * t) * inner_slope
}

/// x · sigmoid(x).
#[inline(always)]
pub(crate) fn silu<R: Real>(x: R) -> R {
    x * x.sigmoid()
}

/// The derivative of x · sigmoid(x).
#[inline(always)]
pub(crate) fn silu_slope<R: Real>(x: R) -> R {
    let s = x.sigmoid();
    s * (R::ONE + x * (R::ONE - s))
}

/// ln(1 + eˣ): the larger of x and 0, and what remains, in 0 ..= ln 2.
#[inline(always)]
fn softplus<R: Real>(x: R) -> R {
    relu(x) + (-x.abs()).exp().ln_1p_unit()
}

#[inline(always)]
fn gelu_exact_backward<R: Real>(g: R, x: R) -> R {
    g * gelu_exact_slope(x)
}

#[inline(always)]
fn gelu_tanh_backward<R: Real>(g: R, x: R) -> R {
    g * gelu_tanh_slope(x)
}

#[inline(always)]
fn silu_backward<R: Real>(g: R, x: R) -> R {
    g * silu_slope(x)
}

#[inline(always)]
fn softplus_backward<R: Real>(g: R, x: R) -> R {
    g * x.sigmoid()
}

/// The functions that integers have; overflow wraps.
fn integer(op: &'static str, kind: Unary, x: &Tensor, out: &mut Tensor) -> Result<()> {
    let f: fn(i64) -> i64 = match kind {
        Unary::Neg => i64::wrapping_neg,
        Unary::Abs => i64::wrapping_abs,
        Unary::Sign => i64::signum,
        Unary::Square => |x| x.wrapping_mul(x),
        Unary::Relu => |x| x.max(0),
        _ => {
            let dtype = x.dtype();
            return Err(Error::UnsupportedDType { op, dtype });
        }
    };
    map([x], out.make_mut::<i64>()?, &|_, [x]: [&[i64]; 1], out| {
        out.iter_mut().zip(x).for_each(|(o, x)| *o = f(*x));
    });
    Ok(())
}
