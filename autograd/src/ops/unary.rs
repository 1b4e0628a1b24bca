//! Functions of one variable, element by element, with numbers as further arguments.

use super::{one, zeros_like};
use crate::error::Result;
use crate::var::Var;
use crate::vjp::{Grads, Vjp, tensor_bytes};
use phalanx_tensor::{Tensor, unary_table};

/// One row an operation: its Vjp, the tensor's method, what the backward pass reads (the argument
/// `x`, the result `out`), and the gradient of the argument given that of the result.
macro_rules! unary {
    (|$x:ident, $out:ident, $g:ident|
     $($(#[$doc:meta])* $vjp:ident: $name:ident($($arg:ident: $ty:ty),*) [$($save:ident),*] $back:expr;)*) => {
        $(
            #[doc = concat!("Backward of [`Var::", stringify!($name), "`].")]
            #[derive(Debug)]
            pub struct $vjp {
                $($save: Tensor,)*
                $($arg: $ty,)*
            }

            impl Vjp for $vjp {
                fn name(&self) -> &'static str {
                    stringify!($name)
                }

                fn backward(&self, $g: Tensor, _needs: &[bool]) -> Result<Grads> {
                    let Self { $($save,)* $($arg,)* } = self;
                    $(let $arg = *$arg;)*
                    Ok(one($back?))
                }

                fn saved_bytes(&self) -> usize {
                    0 $(+ tensor_bytes(&self.$save))*
                }
            }
        )*

        impl Var {
            $(
                $(#[$doc])*
                ///
                #[doc = concat!("As [`Tensor::", stringify!($name), "`].")]
                ///
                /// # Errors
                /// As the tensor's method.
                pub fn $name(&self, $($arg: $ty),*) -> Result<Var> {
                    let $x = self.value();
                    let $out = $x.$name($($arg),*)?;
                    Var::from_vjp(self.tape(), &[self], $out.clone(), |_| $vjp {
                        $($save: $save.clone(),)*
                        $($arg,)*
                    })
                }
            )*
        }
    };
}

/// The rows of the tensor's table, as rows of [`unary!`].
macro_rules! table {
    (|$x:ident, $out:ident, $g:ident| $({
        $Name:ident $name:ident $args:tt $values:tt $range:tt [[$($save:ident)?] $gradient:expr]
        $reference:tt $backward:tt $integers:tt $module:tt $activation:tt [$(#[$doc:meta])*] $($rest:tt)*
    })*) => {
        unary! { |$x, $out, $g|
            $($(#[$doc])* $Name: $name $args [$($save)?] $gradient;)*
        }
    };
}

unary_table!(table);

unary! { |x, out, g|
    /// x + `rhs`.
    AddScalar: add_scalar(rhs: f64) [] { let _ = rhs; Ok::<_, phalanx_tensor::Error>(g) };
    /// x − `rhs`.
    SubScalar: sub_scalar(rhs: f64) [] { let _ = rhs; Ok::<_, phalanx_tensor::Error>(g) };
    /// x · `rhs`.
    MulScalar: mul_scalar(rhs: f64) [] g.mul_scalar(rhs);
    /// x / `rhs`.
    DivScalar: div_scalar(rhs: f64) [] g.div_scalar(rhs);
    /// xʳ for a number r.
    PowScalar: pow_scalar(rhs: f64) [x] {
        // The derivative of x⁰ is 0 at 0 too, where the formula would give 0 · ∞.
        if rhs == 0.0 { zeros_like(&g) } else { g.mul(&x.pow_scalar(rhs - 1.0)?.mul_scalar(rhs)?) }
    };
    /// The larger of x and `rhs`; at equality the gradient passes, at NaN it does not.
    MaximumScalar: maximum_scalar(rhs: f64) [x] {
        Tensor::where_cond(&x.ge(&number(rhs, x)?)?, &g, &number(0.0, x)?)
    };
    /// The smaller of x and `rhs`; at equality the gradient passes, at NaN it does not.
    MinimumScalar: minimum_scalar(rhs: f64) [x] {
        Tensor::where_cond(&x.le(&number(rhs, x)?)?, &g, &number(0.0, x)?)
    };
    /// x limited to `low ..= high`; at the limits the gradient passes, at NaN it does not.
    Clamp: clamp(low: f64, high: f64) [x] {
        let zero = number(0.0, x)?;
        let below = Tensor::where_cond(&x.le(&number(high, x)?)?, &g, &zero)?;
        Tensor::where_cond(&x.ge(&number(low, x)?)?, &below, &zero)
    };
}

/// A number as a tensor of rank 0 that goes with `like`.
fn number(value: f64, like: &Tensor) -> phalanx_tensor::Result<Tensor> {
    Tensor::full((), value, like.dtype(), like.device())
}
