//! CPU kernels: one line for each function and kind of number.

use super::Binary;
use crate::cpu::elementwise::{BLOCK, RealKernel, for_widened, map, map_real, readable, stretched};
use crate::cpu::math::Real;
use crate::cpu::{convert, vectorize};
use crate::{DType, Element, Error, Float, Result, Tensor, bf16, f16};

/// `out = kind(a, b)`; both broadcast to the shape of `out`.
pub(super) fn binary(
    op: &'static str,
    kind: Binary,
    a: &Tensor,
    b: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    let x = [
        &stretched(op, a, out.shape())?,
        &stretched(op, b, out.shape())?,
    ];
    match out.dtype() {
        DType::I64 => integer::<i64>(kind, x, out.make_mut()?),
        DType::I32 => integer::<i32>(kind, x, out.make_mut()?),
        DType::U8 => integer::<u8>(kind, x, out.make_mut()?),
        _ => map_real(op, x, out, &kind)?,
    }
    Ok(())
}

/// `out = kind(x, scalar)`, of floats.
pub(super) fn with_scalar(
    op: &'static str,
    kind: Binary,
    x: &Tensor,
    scalar: f64,
    out: &mut Tensor,
) -> Result<()> {
    map_real(op, [&readable(op, x)?], out, &WithScalar { kind, scalar })
}

/// A function with one side fixed to a number.
struct WithScalar {
    kind: Binary,
    scalar: f64,
}

#[inline(always)]
fn each<T: Copy>([a, b]: [&[T]; 2], out: &mut [T], f: impl Fn(T, T) -> T) {
    vectorize(
        #[inline(always)]
        || {
            for (o, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
                *o = f(*a, *b);
            }
        },
    );
}

/// The larger; NaN where either is NaN.
#[inline(always)]
fn maximum<R: Real>(a: R, b: R) -> R {
    if a > b || a.is_nan() { a } else { b }
}

/// The smaller; NaN where either is NaN.
#[inline(always)]
fn minimum<R: Real>(a: R, b: R) -> R {
    if a < b || a.is_nan() { a } else { b }
}

impl RealKernel<2> for Binary {
    fn run<R: Real>(&self, x: [&[R]; 2], out: &mut [R]) {
        match self {
            Binary::Add => each(x, out, |a, b| a + b),
            Binary::Sub => each(x, out, |a, b| a - b),
            Binary::Mul => each(x, out, |a, b| a * b),
            Binary::Div => each(x, out, |a, b| a / b),
            Binary::Maximum => each(x, out, maximum),
            Binary::Minimum => each(x, out, minimum),
            Binary::Pow => each(x, out, R::powf),
        }
    }
}

impl RealKernel<1> for WithScalar {
    fn run<R: Real>(&self, [x]: [&[R]; 1], out: &mut [R]) {
        #[inline(always)]
        fn each<R: Real>(x: &[R], out: &mut [R], f: impl Fn(R) -> R) {
            vectorize(
                #[inline(always)]
                || out.iter_mut().zip(x).for_each(|(o, x)| *o = f(*x)),
            );
        }
        let c = R::from_f64(self.scalar);
        match self.kind {
            Binary::Add => each(x, out, |x| x + c),
            Binary::Sub => each(x, out, |x| x - c),
            Binary::Mul => each(x, out, |x| x * c),
            Binary::Div => each(x, out, |x| x / c),
            Binary::Maximum => each(x, out, |x| maximum(x, c)),
            Binary::Minimum => each(x, out, |x| minimum(x, c)),
            Binary::Pow if self.scalar == 2.0 => each(x, out, |x| x * x),
            Binary::Pow if self.scalar == 3.0 => each(x, out, |x| x * x * x),
            Binary::Pow => each(x, out, |x| x.powf(c)),
        }
    }
}

/// What integer elements can do; overflow wraps.
trait Integer: Element + Ord {
    fn add(self, rhs: Self) -> Self;
    fn sub(self, rhs: Self) -> Self;
    fn mul(self, rhs: Self) -> Self;
}

macro_rules! integer {
    ($($t:ty),*) => {$(
        impl Integer for $t {
            #[inline(always)]
            fn add(self, rhs: $t) -> $t {
                self.wrapping_add(rhs)
            }
            #[inline(always)]
            fn sub(self, rhs: $t) -> $t {
                self.wrapping_sub(rhs)
            }
            #[inline(always)]
            fn mul(self, rhs: $t) -> $t {
                self.wrapping_mul(rhs)
            }
        }
    )*};
}
integer!(i64, i32, u8);

/// The functions that integers have.
fn integer<T: Integer>(kind: Binary, operands: [&Tensor; 2], out: &mut [T]) {
    map(operands, out, &|_, x: [&[T]; 2], out| match kind {
        Binary::Add => each(x, out, T::add),
        Binary::Sub => each(x, out, T::sub),
        Binary::Mul => each(x, out, T::mul),
        Binary::Maximum => each(x, out, T::max),
        Binary::Minimum => each(x, out, T::min),
        Binary::Div | Binary::Pow => unreachable!("only floats have this function"),
    });
}

/// `out += rhs`, where `rhs` broadcasts to the shape of `out`, and may be of a half type where
/// `out` is `f32`.
pub(super) fn add_into(op: &'static str, out: &mut Tensor, rhs: &Tensor) -> Result<()> {
    let rhs = &stretched(op, rhs, out.shape())?;
    match out.dtype() {
        DType::F32 if rhs.dtype() == DType::BF16 => accumulate_widened::<bf16>(out, rhs)?,
        DType::F32 if rhs.dtype() == DType::F16 => accumulate_widened::<f16>(out, rhs)?,
        DType::F32 => accumulate(out.make_mut()?, rhs, |o: f32, x| o + x),
        DType::F64 => accumulate(out.make_mut()?, rhs, |o: f64, x| o + x),
        DType::BF16 => accumulate_half::<bf16>(out.make_mut()?, rhs),
        DType::F16 => accumulate_half::<f16>(out.make_mut()?, rhs),
        DType::I64 => accumulate(out.make_mut()?, rhs, i64::wrapping_add),
        DType::I32 => accumulate(out.make_mut()?, rhs, i32::wrapping_add),
        DType::U8 => accumulate(out.make_mut()?, rhs, u8::wrapping_add),
        dtype @ DType::Bool => return Err(Error::UnsupportedDType { op, dtype }),
    }
    Ok(())
}

fn accumulate<T: Element>(out: &mut [T], rhs: &Tensor, add: impl Fn(T, T) -> T + Sync) {
    map([rhs], out, &|_, [x]: [&[T]; 1], out| {
        vectorize(
            #[inline(always)]
            || out.iter_mut().zip(x).for_each(|(o, x)| *o = add(*o, *x)),
        );
    });
}

fn accumulate_widened<T: Float<Compute = f32>>(out: &mut Tensor, rhs: &Tensor) -> Result<()> {
    map([rhs], out.make_mut::<f32>()?, &|_, x: [&[T]; 1], out| {
        for_widened(x, |range, [x]| {
            let out = &mut out[range];
            vectorize(
                #[inline(always)]
                || out.iter_mut().zip(x).for_each(|(o, x)| *o += *x),
            );
        });
    });
    Ok(())
}

/// `out = a + b` of a half type, in `f32`; both broadcast to the shape of `out`.
pub(super) fn add_widened(
    op: &'static str,
    a: &Tensor,
    b: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    fn run<T: Float<Compute = f32>>(x: [&Tensor; 2], out: &mut [f32]) {
        map(x, out, &|_, x: [&[T]; 2], out| {
            for_widened(x, |range, x| each(x, &mut out[range], |a, b| a + b));
        });
    }
    let x = [
        &stretched(op, a, out.shape())?,
        &stretched(op, b, out.shape())?,
    ];
    match a.dtype() {
        DType::F16 => run::<f16>(x, out.make_mut()?),
        _ => run::<bf16>(x, out.make_mut()?),
    }
    Ok(())
}

fn accumulate_half<T: Float<Compute = f32>>(out: &mut [T], rhs: &Tensor) {
    map([rhs], out, &|_, [x]: [&[T]; 1], out| {
        let (mut sum, mut addend) = ([0f32; BLOCK], [0f32; BLOCK]);
        for (out, x) in out.chunks_mut(BLOCK).zip(x.chunks(BLOCK)) {
            let (sum, addend) = (&mut sum[..x.len()], &mut addend[..x.len()]);
            convert::widen(out, sum);
            convert::widen(x, addend);
            vectorize(
                #[inline(always)]
                || sum.iter_mut().zip(&*addend).for_each(|(s, a)| *s += *a),
            );
            convert::narrow(sum, out);
        }
    });
}
