//! CPU kernels: one loop for the functions and one for the derivatives, compiled for each row of
//! the table.

use super::{GeluKind, Unary};
use crate::cpu::elementwise::{RealKernel, map, map_real, readable};
use crate::cpu::math::Real;
use crate::cpu::vectorize;
use crate::{DType, Error, Result, Tensor, unary_table};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, SQRT_2};

/// √(2/π), and the cubic coefficient of the tanh formula of GELU.
const GELU_SCALE: f64 = FRAC_2_SQRT_PI / SQRT_2;
const GELU_CUBIC: f64 = 0.044715;

/// `out = kind(x)`.
pub(crate) fn unary(op: &'static str, kind: Unary, x: &Tensor, out: &mut Tensor) -> Result<()> {
    let x = readable(op, x)?;
    match x.dtype() {
        DType::I64 | DType::I32 => integer(op, kind, &x, out),
        _ => map_real(op, [&x], out, &kind),
    }
}

/// `out = grad · kind'(saved)`.
pub(super) fn backward(
    op: &'static str,
    kind: Unary,
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

/// The argument that a function has besides the tensor.
trait Argument: Copy {
    /// Calls `loop_with` with the argument. Where there are a few values only, each has a call of its
    /// own, in which the value is a constant: a choice inside the loop would not vectorise.
    fn fixed(self, loop_with: impl FnMut(Self));
}

impl Argument for f64 {
    #[inline(always)]
    fn fixed(self, mut loop_with: impl FnMut(f64)) {
        loop_with(self);
    }
}

impl Argument for GeluKind {
    #[inline(always)]
    fn fixed(self, mut loop_with: impl FnMut(GeluKind)) {
        match self {
            GeluKind::Exact => loop_with(GeluKind::Exact),
            GeluKind::Tanh => loop_with(GeluKind::Tanh),
        }
    }
}

/// A loop over elements, compiled for each SIMD level and each value of the argument. What is not
/// inlined into it does not vectorise, and a closure is inlined for certain only if marked so.
macro_rules! vector_loop {
    ([$($arg:ident)?] for $at:pat in $over:expr => $body:expr) => {
        vectorize(
            #[inline(always)]
            || {
                vector_loop!(@fixed [$($arg)?] {
                    for $at in $over {
                        $body
                    }
                })
            },
        )
    };
    (@fixed [] $each:block) => { $each };
    (@fixed [$arg:ident] $each:block) => {
        $arg.fixed(
            #[inline(always)]
            |$arg| $each,
        )
    };
}

macro_rules! kernels {
    (|$vx:ident, $vout:ident, $vg:ident| $({
        $Name:ident $name:ident ($($arg:ident: $ty:ty)?) $values:tt $range:tt $gradient:tt $reference:tt
        $backward:tt [$($ix:ident [$integer:expr] $integer_cuda:literal)?]
        $module:tt $activation:tt $doc:tt $example:tt [$x:ident [$forward:expr] $cuda:literal]
    })*) => {
        $(
            #[inline(always)]
            fn $name<R: Real>($x: R $(, $arg: $ty)?) -> R {
                $forward
            }

            derivative! { ($($arg: $ty)?) $backward }
        )*

        impl RealKernel<1> for Unary {
            fn run<R: Real>(&self, [x]: [&[R]; 1], out: &mut [R]) {
                match *self {
                    $(Unary::$Name $(($arg))? => vector_loop!(
                        [$($arg)?] for (o, x) in out.iter_mut().zip(x) => *o = $name(*x $(, $arg)?)
                    ),)*
                }
            }
        }

        impl RealKernel<2> for Unary {
            /// Of the gradient and the saved tensor.
            fn run<R: Real>(&self, [g, x]: [&[R]; 2], out: &mut [R]) {
                match *self {
                    $(Unary::$Name $(($arg))? => {
                        derivative!(@run [$($arg)?] $backward (g, x, out))
                    })*
                }
            }
        }

        /// The functions that integers have; overflow wraps.
        fn integer(op: &'static str, kind: Unary, x: &Tensor, out: &mut Tensor) -> Result<()> {
            let f: fn(i64) -> i64 = match kind {
                $($(Unary::$Name => |$ix| $integer,)?)*
                _ => {
                    let dtype = x.dtype();
                    return Err(Error::UnsupportedDType { op, dtype });
                }
            };
            match x.dtype() {
                // What wraps at 64 bits is right in the low 32, too.
                DType::I32 => map([x], out.make_mut::<i32>()?, &|_, [x]: [&[i32]; 1], out| {
                    out.iter_mut().zip(x).for_each(|(o, x)| *o = f((*x).into()) as i32);
                }),
                _ => map([x], out.make_mut::<i64>()?, &|_, [x]: [&[i64]; 1], out| {
                    out.iter_mut().zip(x).for_each(|(o, x)| *o = f(*x));
                }),
            }
            Ok(())
        }
    };
}

macro_rules! derivative {
    ($args:tt []) => {};
    (($($arg:ident: $ty:ty)?)
     [$back:ident [$g:ident $saved:ident] [$backward:expr] $cuda:literal]) => {
        #[inline(always)]
        fn $back<R: Real>($g: R, $saved: R $(, $arg: $ty)?) -> R {
            $backward
        }
    };
    (@run $arg:tt [] ($($slices:ident),*)) => {
        unreachable!("its gradient is another operation's")
    };
    (@run [$($arg:ident)?] [$back:ident $($formulas:tt)*] ($g:ident, $x:ident, $out:ident)) => {
        vector_loop!(
            [$($arg)?] for (o, (g, x)) in $out.iter_mut().zip($g.iter().zip($x))
                => *o = $back(*g, *x $(, $arg)?)
        )
    };
}

unary_table!(kernels);
