//! Functions of two variables that broadcast against each other, and the choice by a mask.

use super::unbroadcast;
use crate::error::Result;
use crate::var::Var;
use crate::vjp::{Grads, Vjp, tensor_bytes};
use phalanx_tensor::{Shape, Tensor};

/// One row an operation: its Vjp, the tensor's method, for each of `a`, `b` and the result `out`
/// whether the backward pass reads it (given which gradients are needed), and the gradients.
macro_rules! binary {
    (|$a:ident, $b:ident, $out:ident, $g:ident|
     $($(#[$doc:meta])* $vjp:ident: $name:ident
       [$keep_a:expr, $keep_b:expr, $keep_out:expr] $da:expr, $db:expr;)*) => {
        $(
            #[doc = concat!("Backward of [`Var::", stringify!($name), "`].")]
            #[derive(Debug)]
            pub struct $vjp {
                shapes: [Shape; 2],
                a: Option<Tensor>,
                b: Option<Tensor>,
                out: Option<Tensor>,
            }

            impl Vjp for $vjp {
                fn name(&self) -> &'static str {
                    stringify!($name)
                }

                fn backward(&self, $g: Tensor, needs: &[bool]) -> Result<Grads> {
                    let ($a, $b, $out) = (saved(&self.a), saved(&self.b), saved(&self.out));
                    let _ = ($a, $b, $out);
                    let da = match needs[0] {
                        true => Some(unbroadcast($da?, &self.shapes[0])?),
                        false => None,
                    };
                    let db = match needs[1] {
                        true => Some(unbroadcast($db?, &self.shapes[1])?),
                        false => None,
                    };
                    Ok(Grads::from_buf([da, db]))
                }

                fn saved_bytes(&self) -> usize {
                    let saved = [&self.a, &self.b, &self.out];
                    saved.into_iter().flatten().map(tensor_bytes).sum()
                }

                fn shrink(&mut self, needs: &[bool]) {
                    let keep: [fn(&[bool]) -> bool; 3] = [$keep_a, $keep_b, $keep_out];
                    self.a.take_if(|_| !keep[0](needs));
                    self.b.take_if(|_| !keep[1](needs));
                    self.out.take_if(|_| !keep[2](needs));
                }
            }
        )*

        impl Var {
            $(
                $(#[$doc])*
                #[doc = concat!("As [`Tensor::", stringify!($name), "`].")]
                ///
                /// # Errors
                /// As the tensor's method; [`Error::TapeMismatch`](crate::Error::TapeMismatch).
                pub fn $name(&self, rhs: &Var) -> Result<Var> {
                    let (a, b) = (self.value(), rhs.value());
                    let out = a.$name(b)?;
                    let keep: [fn(&[bool]) -> bool; 3] = [$keep_a, $keep_b, $keep_out];
                    Var::from_vjp(self.tape(), &[self, rhs], out.clone(), |needs| $vjp {
                        shapes: [a.shape().clone(), b.shape().clone()],
                        a: keep[0](needs).then(|| a.clone()),
                        b: keep[1](needs).then(|| b.clone()),
                        out: keep[2](needs).then(|| out.clone()),
                    })
                }
            )*
        }
    };
}

/// What the table above says is there, for the gradients that are needed.
#[derive(Clone, Copy)]
struct Saved<'a>(&'a Option<Tensor>);

fn saved(tensor: &Option<Tensor>) -> Saved<'_> {
    Saved(tensor)
}

impl std::ops::Deref for Saved<'_> {
    type Target = Tensor;
    fn deref(&self) -> &Tensor {
        match self.0 {
            Some(tensor) => tensor,
            None => {
                unreachable!("the operation's row says that this gradient reads no such tensor")
            }
        }
    }
}

binary! { |a, b, out, g|
    /// `self` + `rhs`.
    Add: add [|_| false, |_| false, |_| false] keep(&g), keep(&g);
    /// `self` − `rhs`.
    Sub: sub [|_| false, |_| false, |_| false] keep(&g), g.neg();
    /// `self` · `rhs`.
    Mul: mul [|n| n[1], |n| n[0], |_| false] g.mul(&b), g.mul(&a);
    /// `self` / `rhs`.
    Div: div [|_| false, |_| true, |n| n[1]] g.div(&b), g.mul(&out)?.div(&b)?.neg();
    /// The larger of the two; equals share the gradient, and at NaN both have it.
    Maximum: maximum [|_| true, |_| true, |_| false] larger(&g, &a, &b), larger(&g, &b, &a);
    /// The smaller of the two; equals share the gradient, and at NaN both have it.
    Minimum: minimum [|_| true, |_| true, |_| false] larger(&g, &b, &a), larger(&g, &a, &b);
    /// `self` to the power `rhs`.
    Pow: pow [|_| true, |n| n[0], |n| n[1]] pow_base(&g, &a, &b), pow_exponent(&g, &a, &out);
}

fn keep(g: &Tensor) -> phalanx_tensor::Result<Tensor> {
    Ok(g.clone())
}

/// `g` where `a` is the larger, half of it at equality, 0 where `a` is the smaller. A NaN on either
/// side is none of these: both sides get `g`, as PyTorch has it.
fn larger(g: &Tensor, a: &Tensor, b: &Tensor) -> phalanx_tensor::Result<Tensor> {
    let shared = Tensor::where_cond(&a.eq(b)?, &g.mul_scalar(0.5)?, g)?;
    let zero = Tensor::full((), 0.0, g.dtype(), g.device())?;
    Tensor::where_cond(&a.lt(b)?, &zero, &shared)
}

/// `g · b · a^(b − 1)`, and 0 where `b` is 0.
fn pow_base(g: &Tensor, a: &Tensor, b: &Tensor) -> phalanx_tensor::Result<Tensor> {
    let zero = Tensor::full((), 0.0, g.dtype(), g.device())?;
    let slope = a.pow(&b.sub_scalar(1.0)?)?.mul(b)?;
    g.mul(&Tensor::where_cond(&b.eq(&zero)?, &zero, &slope)?)
}

/// `g · a^b · ln a`, and 0 where `a` is 0 (with a positive exponent, the limit).
fn pow_exponent(g: &Tensor, a: &Tensor, out: &Tensor) -> phalanx_tensor::Result<Tensor> {
    let zero = Tensor::full((), 0.0, g.dtype(), g.device())?;
    g.mul(&Tensor::where_cond(
        &a.eq(&zero)?,
        &zero,
        &out.mul(&a.log()?)?,
    )?)
}

/// Backward of [`Var::where_cond`].
#[derive(Debug)]
pub struct WhereCond {
    cond: Tensor,
    shapes: [Shape; 2],
}

impl Vjp for WhereCond {
    fn name(&self) -> &'static str {
        "where_cond"
    }

    fn backward(&self, grad: Tensor, needs: &[bool]) -> Result<Grads> {
        let zero = Tensor::full((), 0.0, grad.dtype(), grad.device())?;
        let mut grads = Grads::new();
        for (i, &need) in needs.iter().enumerate() {
            let (a, b) = if i == 0 {
                (&grad, &zero)
            } else {
                (&zero, &grad)
            };
            grads.push(match need {
                true => Some(unbroadcast(
                    Tensor::where_cond(&self.cond, a, b)?,
                    &self.shapes[i],
                )?),
                false => None,
            });
        }
        Ok(grads)
    }

    fn saved_bytes(&self) -> usize {
        tensor_bytes(&self.cond)
    }
}

impl Var {
    /// `a` where `cond` (of type `bool` or `u8`) is not 0, else `b`. As [`Tensor::where_cond`].
    ///
    /// # Errors
    /// As the tensor's method; [`Error::TapeMismatch`](crate::Error::TapeMismatch).
    pub fn where_cond(cond: &Tensor, a: &Var, b: &Var) -> Result<Var> {
        let out = Tensor::where_cond(cond, a.value(), b.value())?;
        Var::from_vjp(a.tape(), &[a, b], out, |_| WhereCond {
            cond: cond.clone(),
            shapes: [a.shape().clone(), b.shape().clone()],
        })
    }
}
