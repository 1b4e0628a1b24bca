//! CPU kernels: the native types convert directly, half types through `f32` in blocks.

use crate::cpu::elementwise::{BLOCK, for_widened, map, number, on_native, readable};
use crate::cpu::math::Computed;
use crate::cpu::{convert, vectorize};
use crate::ops::Scalar;
use crate::{Bool, DType, Element, Float, Result, Tensor, bf16, dispatch_float, f16};
use bytemuck::{cast_slice, cast_slice_mut};

/// `out = x`, in `out`'s type.
pub(crate) fn cast(op: &'static str, x: &Tensor, out: &mut Tensor) -> Result<()> {
    let x = &readable(op, x)?;
    on_native!(
        x.dtype(), T => from_native::<T>(x, out);
        DType::BF16 => from_half::<bf16>(x, out),
        DType::F16 => from_half::<f16>(x, out),
    )
}

/// `y[start + i] = factor · x[i]`, in `y`'s type.
pub(super) fn write_scaled(
    op: &'static str,
    y: &mut Tensor,
    start: usize,
    x: &Tensor,
    factor: Scalar<'_>,
) -> Result<()> {
    let (x, factor) = (&readable(op, x)?, number(factor));
    dispatch_float!(op, x.dtype(), T => dispatch_float!(op, y.dtype(), U => {
        let y = &mut y.make_mut::<U>()?[start..][..x.numel()];
        map([x], y, &|_, [x]: [&[T]; 1], y| scaled(x, factor, y));
    }));
    Ok(())
}

fn scaled<T: Computed, U: Computed>(x: &[T], factor: f64, y: &mut [U]) {
    if [T::DTYPE, U::DTYPE].contains(&DType::F64) {
        return vectorize(
            #[inline(always)]
            || {
                let pairs = y.iter_mut().zip(x);
                pairs.for_each(|(y, x)| *y = U::from_f64(x.to_f64() * factor));
            },
        );
    }
    let factor = factor as f32;
    let times = |x: &[f32], y: &mut [f32]| {
        vectorize(
            #[inline(always)]
            || y.iter_mut().zip(x).for_each(|(y, x)| *y = x * factor),
        );
    };
    for_widened([x], |range, [x]| {
        let (x, y) = (cast_slice::<_, f32>(x), &mut y[range]);
        if U::DTYPE == DType::F32 {
            return times(x, cast_slice_mut(y));
        }
        let mut product = [0f32; BLOCK];
        for (x, y) in x.chunks(BLOCK).zip(y.chunks_mut(BLOCK)) {
            let product = &mut product[..x.len()];
            times(x, product);
            convert::narrow(cast_slice(product), y);
        }
    });
}

/// A type that the processor converts itself.
trait Native: Element + As<f32> + As<f64> + As<i64> + As<i32> + As<u8> + As<Bool> {}
impl<T> Native for T where T: Element + As<f32> + As<f64> + As<i64> + As<i32> + As<u8> + As<Bool> {}

/// Integers up to here are exact in `f32`, whatever their sign.
const EXACT: u64 = 1 << 24;

/// The language's `as`; as a truth value, what is not 0 is true.
trait As<U> {
    fn as_(self) -> U;
}

macro_rules! as_ {
    ($($from:ty => $($to:ty)*;)*) => {$($(
        impl As<$to> for $from {
            #[inline(always)]
            fn as_(self) -> $to {
                self as $to
            }
        }
    )*)*};
}
as_! {
    f32 => f32 f64 i64 i32 u8;
    f64 => f32 f64 i64 i32 u8;
    i64 => f32 f64 i64 i32 u8;
    i32 => f32 f64 i64 i32 u8;
    u8 => f32 f64 i64 i32 u8;
}

macro_rules! as_bool {
    ($($t:ty)*) => {$(
        impl As<Bool> for $t {
            #[inline(always)]
            fn as_(self) -> Bool {
                Bool::from(self != <$t>::default())
            }
        }
        impl As<$t> for Bool {
            #[inline(always)]
            fn as_(self) -> $t {
                u8::from(self.get()).into()
            }
        }
    )*};
}
as_bool!(f32 f64 i64 i32 u8);
impl As<Bool> for Bool {
    #[inline(always)]
    fn as_(self) -> Bool {
        self
    }
}

#[inline(always)]
fn run<T: Copy + As<U>, U>(src: &[T], dst: &mut [U]) {
    vectorize(
        #[inline(always)]
        || dst.iter_mut().zip(src).for_each(|(d, s)| *d = s.as_()),
    );
}

fn from_native<T: Native>(x: &Tensor, out: &mut Tensor) -> Result<()> {
    on_native!(
        out.dtype(), U => map([x], out.make_mut::<U>()?, &|_, [x]: [&[T]; 1], y| run(x, y));
        DType::BF16 => to_half::<T, bf16>(x, out.make_mut()?),
        DType::F16 => to_half::<T, f16>(x, out.make_mut()?),
    );
    Ok(())
}

fn to_half<T: Native, H: Float<Compute = f32>>(x: &Tensor, out: &mut [H]) {
    map([x], out, &|_, [x]: [&[T]; 1], out| {
        if T::DTYPE == DType::F64 {
            // Not through f32, which would round twice.
            return out
                .iter_mut()
                .zip(x)
                .for_each(|(o, x)| *o = H::from_f64(x.to_f64()));
        }
        if T::DTYPE == DType::F32 {
            return convert::narrow(bytemuck::cast_slice::<T, f32>(x), out);
        }
        let mut wide = [0f32; BLOCK];
        for (out, x) in out.chunks_mut(BLOCK).zip(x.chunks(BLOCK)) {
            let wide = &mut wide[..x.len()];
            if matches!(T::DTYPE, DType::I64 | DType::I32) {
                let integer = |x: &T| As::<i64>::as_(*x);
                let beyond = |far, x| far | (integer(x).unsigned_abs() > EXACT);
                if x.iter().fold(false, beyond) {
                    // Not through f32 either.
                    out.iter_mut()
                        .zip(x)
                        .for_each(|(o, x)| *o = H::from_i64(integer(x)));
                    continue;
                }
            }
            run(x, wide);
            convert::narrow(wide, out);
        }
    });
}

fn from_half<H: Float<Compute = f32>>(x: &Tensor, out: &mut Tensor) -> Result<()> {
    if out.dtype() == DType::F32 {
        map([x], out.make_mut()?, &|_, [x]: [&[H]; 1], y| {
            convert::widen(x, y)
        });
        return Ok(());
    }
    on_native!(
        out.dtype(), U => widened::<H, _>(x, out.make_mut()?, run::<f32, U>);
        DType::BF16 => widened::<H, _>(x, out.make_mut()?, convert::narrow::<bf16>),
        DType::F16 => widened::<H, _>(x, out.make_mut()?, convert::narrow::<f16>),
    );
    return Ok(());

    fn widened<H: Float<Compute = f32>, U: Element>(
        x: &Tensor,
        out: &mut [U],
        finish: fn(&[f32], &mut [U]),
    ) {
        map([x], out, &|_, x: [&[H]; 1], out| {
            for_widened(x, |range, [x]| finish(x, &mut out[range]));
        });
    }
}
