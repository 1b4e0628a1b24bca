//! CPU kernels: one line for each function and kind of number.

use super::Binary;
use crate::cpu::elementwise::{
    BLOCK, RealKernel, for_widened, map, map_real, readable, stretched, stretched_pair,
};
use crate::cpu::math::{Computed, Real};
use crate::cpu::rows::{C, is_exact};
use crate::cpu::working::dispatch_pair;
use crate::cpu::{convert, vectorize};
use crate::{DType, Element, Result, Tensor, dispatch_float};
use bytemuck::cast_slice_mut;

/// `out = kind(a, b)`; both broadcast to the shape of `out`.
pub(super) fn binary(
    op: &'static str,
    kind: Binary,
    a: &Tensor,
    b: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    let x = stretched_pair(op, [a, b], out.shape())?;
    let x = x.each_ref();
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
            Binary::Pow if self.scalar == 2.0 => each(x, out, |x| x * x),
            Binary::Pow if self.scalar == 3.0 => each(x, out, |x| x * x * x),
            Binary::Pow => each(x, out, |x| x.powf(c)),
            Binary::Add => each(x, out, |x| x + c),
            Binary::Sub => each(x, out, |x| x - c),
            Binary::Mul => each(x, out, |x| x * c),
            Binary::Div => each(x, out, |x| x / c),
            Binary::Maximum => each(x, out, |x| maximum(x, c)),
            Binary::Minimum => each(x, out, |x| minimum(x, c)),
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
        DType::I64 => add_integers::<i64>(rhs, out.make_mut()?),
        DType::I32 => add_integers::<i32>(rhs, out.make_mut()?),
        DType::U8 => add_integers::<u8>(rhs, out.make_mut()?),
        _ => dispatch_pair!(op, rhs, out, T, O => add_floats::<T, O>(rhs, out.make_mut()?)),
    }
    Ok(())
}

fn accumulate<T: Element>(out: &mut [T], x: &[T], add: impl Fn(T, T) -> T) {
    vectorize(
        #[inline(always)]
        || out.iter_mut().zip(x).for_each(|(o, x)| *o = add(*o, *x)),
    );
}

fn add_integers<T: Integer>(rhs: &Tensor, out: &mut [T]) {
    map([rhs], out, &|_, [x], out| accumulate(out, x, T::add));
}

fn add_floats<T: Computed, O: Computed<Compute = C<T>>>(rhs: &Tensor, out: &mut [O]) {
    map([rhs], out, &|_, x: [&[T]; 1], out| {
        let mut sum = [C::<T>::ZERO; BLOCK];
        for_widened(x, |range, [x]| {
            let out = &mut out[range];
            if is_exact::<O>() {
                return accumulate(cast_slice_mut(out), x, |o: C<T>, x| o + x);
            }
            let sum = &mut sum[..x.len()];
            convert::widen(out, sum);
            accumulate(sum, x, |s, x| s + x);
            convert::narrow(sum, out);
        });
    });
}

/// `out = a + b` of a half type, in `f32`; both broadcast to the shape of `out`.
pub(super) fn add_widened(
    op: &'static str,
    a: &Tensor,
    b: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    let x = stretched_pair(op, [a, b], out.shape())?;
    dispatch_float!(op, a.dtype(), T => {
        map(x.each_ref(), out.make_mut()?, &|_, x: [&[T]; 2], out| {
            for_widened(x, |range, x| each(x, &mut out[range], |a, b| a + b));
        });
    });
    Ok(())
}
