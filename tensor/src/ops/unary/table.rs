//! The table of this family: all that is known of a function stands in its one row, and whatever
//! takes part in it (methods, kernels, texts for the card, and in the crates above variables,
//! layers and tests) is made from the row.
//!
//! # A row
//!
//! ```text
//! /// What the function is. Goes to the documentation of all that follows from the row.
//! Name: method(argument: Type) {              // the argument is optional
//!     example { /// Text for the tensor's method. }                              (optional)
//!     forward |x| formula, "CUDA C";
//!     integers |x| formula, "CUDA C";         // of `i64`, and so of `i32`; it wraps (optional)
//!     backward method_backward |g, x| formula, "CUDA C";     // an operation of its own, or
//!     gradient [out] g.mul(out);                             // one of operations that there are
//!     module { /// Text for the layer. }      // there is a layer `Name`         (optional)
//!     activation {}                           // `linear` can apply it           (optional)
//!     test |x| formula, roundings 3.0, range (-4.0, 4.0);
//! }
//! ```
//!
//! - **Rust formulas** are over `R: Real`, and may call the functions of other rows by name, as in
//!   `softplus(x)`. `g` is the gradient of the result. The other parameter of a derivative names
//!   what is saved for it: `x`, the argument, or `out`, the result, where the derivative follows
//!   from it.
//! - **CUDA C** is the body of a function over `R`, `float` or `double`, with parameters of the
//!   same names, the argument (an enum as its number) being an `R` too. It may call the functions of
//!   rows above, as in `unary_softplus(x)`. Integers are `long long`.
//! - **test** gives a formula in `f64` that shares nothing with the kernel, how many roundings of
//!   `f32` the kernel may be away from it (relative to the larger of 1 and the result), where the
//!   derivative is checked, and, `with` those values, the argument. The range is also where the
//!   function has values: one that is positive tells that others have none.

/// Calls the macro `$callback` with all rows, or only with those that are `modules` or `activations`, as `|x, out, g| {row} {row} …`: the names that formulas
/// use, then the rows, each brought into the form
///
/// ```text
/// Name method (argument: Type) [[(value,), …]] [range] [[saved] gradient] [x [reference] roundings]
/// [method_backward [g saved] [formula] "CUDA C"] [x [integers] "CUDA C"] [[module's doc]] [[]]
/// [doc] [example] [x [formula] "CUDA C"]
/// ```
///
/// where the groups of what a row does not have are empty. The values of no argument are `[()]`, so
/// that `for ($($arg,)?) in $values` goes through those of any row.
#[doc(hidden)]
#[macro_export]
macro_rules! unary_table {
    ($callback:ident $($which:ident)?) => {
        $crate::unary_table! { @rows $callback [$($which)?] |x, out, g|
            /// −x. Also of `i64` and `i32`.
            Neg: neg() {
                forward |x| -x, "return -x;";
                integers |x| x.wrapping_neg(), "return (long long)(0ull - (unsigned long long)x);";
                gradient [] g.neg();
                test |x| -x, roundings 0.0, range (-2.0, 2.0);
            }
            /// |x|. Also of `i64` and `i32`. The subgradient at 0 is 0, and NaN at NaN.
            Abs: abs() {
                forward |x| x.abs(), "return fabs(x);";
                integers |x| x.wrapping_abs(),
                    "return x < 0 ? (long long)(0ull - (unsigned long long)x) : x;";
                backward abs_backward |g, x| g * sign(x),
                    "return g * (fabs(x) > R(0) ? copysign(R(1), x) : x);";
                test |x| x.abs(), roundings 0.0, range (-2.0, 2.0);
            }
            /// −1, 0 or 1; NaN for NaN. Also of `i64` and `i32`. The gradient is 0 everywhere.
            Sign: sign() {
                // Neither above nor below: ±0 and NaN are their own sign.
                forward |x| {
                    let one = R::ONE.copysign(x);
                    if x.abs() > R::ZERO { one } else { x }
                }, "return fabs(x) > R(0) ? copysign(R(1), x) : x;";
                integers |x| x.signum(), "return (x > 0) - (x < 0);";
                gradient [] $crate::Tensor::zeros(g.shape(), g.dtype(), g.device());
                test |x| x.signum(), roundings 0.0, range (-2.0, 2.0);
            }
            /// x². Also of `i64` and `i32`.
            Square: square() {
                forward |x| x * x, "return x * x;";
                integers |x| x.wrapping_mul(x),
                    "return (long long)((unsigned long long)x * (unsigned long long)x);";
                backward square_backward |g, x| g * (x + x), "return g * (x + x);";
                test |x| x * x, roundings 1.0, range (-2.0, 2.0);
            }
            /// √x.
            Sqrt: sqrt() {
                forward |x| x.sqrt(), "return sqrt(x);";
                backward sqrt_backward |g, out| g / (R::from_f64(2.0) * out),
                    "return g / (R(2) * out);";
                test |x| x.sqrt(), roundings 1.0, range (0.3, 3.0);
            }
            /// 1 / √x.
            Rsqrt: rsqrt() {
                forward |x| R::ONE / x.sqrt(), "return rsqrt(x);";
                backward rsqrt_backward |g, out| R::from_f64(-0.5) * g * (out * out * out),
                    "return R(-0.5) * g * (out * out * out);";
                test |x| 1.0 / x.sqrt(), roundings 3.0, range (0.5, 3.0);
            }
            /// 1 / x (PyTorch: `reciprocal`).
            Recip: recip() {
                forward |x| R::ONE / x, "return R(1) / x;";
                backward recip_backward |g, out| -g * (out * out), "return -g * (out * out);";
                test |x| 1.0 / x, roundings 1.0, range (0.5, 3.0);
            }
            /// eˣ.
            Exp: exp() {
                forward |x| x.exp(), "return exp(x);";
                gradient [out] g.mul(out);
                test |x| x.exp(), roundings 2.0, range (-2.0, 1.0);
            }
            /// The natural logarithm.
            Log: log() {
                forward |x| x.ln(), "return log(x);";
                gradient [x] g.div(x);
                test |x| x.ln(), roundings 2.0, range (0.5, 4.0);
            }
            /// The sine.
            Sin: sin() {
                forward |x| x.sin(), "return sin(x);";
                backward sin_backward |g, x| g * x.cos(), "return g * cos(x);";
                test |x| x.sin(), roundings 1.5, range (-4.0, 4.0);
            }
            /// The cosine.
            Cos: cos() {
                forward |x| x.cos(), "return cos(x);";
                backward cos_backward |g, x| -g * x.sin(), "return -g * sin(x);";
                test |x| x.cos(), roundings 1.5, range (-4.0, 4.0);
            }
            /// The hyperbolic tangent.
            Tanh: tanh() {
                forward |x| x.tanh(), "return tanh(x);";
                backward tanh_backward |g, out| g * (R::ONE - out * out),
                    "return g * (R(1) - out * out);";
                module {}
                activation {}
                test |x| x.tanh(), roundings 2.0, range (-2.0, 2.0);
            }
            /// The logistic function 1 / (1 + e⁻ˣ).
            Sigmoid: sigmoid() {
                forward |x| x.sigmoid(),
                    "R e = exp(-fabs(x)); return (x < R(0) ? e : R(1)) / (R(1) + e);";
                backward sigmoid_backward |g, out| g * ((R::ONE - out) * out),
                    "return g * ((R(1) - out) * out);";
                module {}
                activation {}
                test |x| 1.0 / (1.0 + (-x).exp()), roundings 2.0, range (-4.0, 4.0);
            }
            /// The larger of x and 0; NaN stays NaN. The subgradient at 0 is 0, and at NaN the
            /// gradient passes.
            Relu: relu() {
                example {
                    /// ```
                    /// # use phalanx_tensor::{Device, Tensor};
                    /// let x = Tensor::from_vec(vec![-1.0f32, 0.5], [2], Device::cpu(0))?;
                    /// assert_eq!(x.relu()?.to_vec::<f32>()?, [0.0, 0.5]);
                    /// # Ok::<(), phalanx_tensor::Error>(())
                    /// ```
                }
                forward |x| if x < R::ZERO { R::ZERO } else { x }, "return x < R(0) ? R(0) : x;";
                integers |x| x.max(0), "return x < 0 ? 0 : x;";
                backward relu_backward |g, out| if out <= R::ZERO { R::ZERO } else { g },
                    "return out <= R(0) ? R(0) : g;";
                module {
                    /// In front of it, [`Linear::with_activation`](super::Linear) and
                    /// [`BatchNorm2d::with_relu`](super::BatchNorm2d::with_relu) do the same in
                    /// one pass.
                }
                activation {}
                test |x| x.max(0.0), roundings 0.0, range (-2.0, 2.0);
            }
            /// x where it is positive, else `slope` · x.
            LeakyRelu: leaky_relu(slope: f64) {
                forward |x| if x > R::ZERO { x } else { R::from_f64(slope) * x },
                    "return x > R(0) ? x : slope * x;";
                backward leaky_relu_backward |g, x|
                    if x > R::ZERO { g } else { R::from_f64(slope) * g },
                    "return x > R(0) ? g : slope * g;";
                module {}
                test |x| if x > 0.0 { x } else { slope * x }, roundings 1.0, range (-2.0, 2.0),
                    with (0.125);
            }
            /// The Gaussian error linear unit (Hendrycks and Gimpel 2016).
            Gelu: gelu(kind: $crate::GeluKind) {
                forward |x| match kind {
                    $crate::GeluKind::Exact => {
                        let half = R::from_f64(0.5) * x;
                        half * (R::ONE + (x * R::from_f64(FRAC_1_SQRT_2)).erf())
                    }
                    $crate::GeluKind::Tanh => {
                        let inner = R::from_f64(GELU_SCALE) * (x + R::from_f64(GELU_CUBIC) * x * x * x);
                        R::from_f64(0.5) * x * (R::ONE + inner.tanh())
                    }
                }, "\
                    const R scale = R(0.79788456080286535588), cubic = R(0.044715);
                    if (kind == R(0)) return R(0.5) * x * (R(1) + erf(x * R(0.70710678118654752440)));
                    return R(0.5) * x * (R(1) + tanh(scale * (x + cubic * x * x * x)));";
                backward gelu_backward |g, x| g * match kind {
                    // Φ(x) + x φ(x).
                    $crate::GeluKind::Exact => {
                        let half = R::from_f64(0.5);
                        let cdf = half * (R::ONE + (x * R::from_f64(FRAC_1_SQRT_2)).erf());
                        let pdf = R::from_f64(0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2)
                            * (-half * x * x).exp();
                        cdf + x * pdf
                    }
                    $crate::GeluKind::Tanh => {
                        let half = R::from_f64(0.5);
                        let square = x * x;
                        let t = R::from_f64(GELU_SCALE) * (x + R::from_f64(GELU_CUBIC) * square * x);
                        let t = t.tanh();
                        let inner_slope = R::from_f64(GELU_SCALE)
                            * (R::ONE + R::from_f64(3.0 * GELU_CUBIC) * square);
                        half * (R::ONE + t) + half * x * (R::ONE - t * t) * inner_slope
                    }
                }, "\
                    const R scale = R(0.79788456080286535588), cubic = R(0.044715);
                    if (kind == R(0)) {
                        R cdf = R(0.5) * (R(1) + erf(x * R(0.70710678118654752440)));
                        return g * (cdf + x * (R(0.39894228040143267794) * exp(R(-0.5) * x * x)));
                    }
                    R t = tanh(scale * (x + cubic * x * x * x));
                    R slope = scale * (R(1) + R(3) * cubic * x * x);
                    return g * (R(0.5) * (R(1) + t) + R(0.5) * x * (R(1) - t * t) * slope);";
                module {}
                activation {}
                test |x| match kind {
                    // By the midpoint rule on the density: no error function in sight.
                    $crate::GeluKind::Exact => {
                        let h = x / 20_000.0;
                        let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
                        let area: f64 = (0..20_000).map(|i| density((f64::from(i) + 0.5) * h)).sum();
                        x * (0.5 + area * h)
                    }
                    $crate::GeluKind::Tanh => {
                        let scale = (2.0 / std::f64::consts::PI).sqrt();
                        0.5 * x * (1.0 + (scale * (x + 0.044715 * x.powi(3))).tanh())
                    }
                }, roundings 12.0, range (-3.0, 3.0), with ($crate::GeluKind::Exact, $crate::GeluKind::Tanh);
            }
            /// x · sigmoid(x), also known as swish.
            Silu: silu() {
                forward |x| x * x.sigmoid(), "return x * unary_sigmoid(x);";
                backward silu_backward |g, x| {
                    let s = x.sigmoid();
                    g * (s * (R::ONE + x * (R::ONE - s)))
                }, "R s = unary_sigmoid(x); return g * (s * (R(1) + x * (R(1) - s)));";
                module {}
                activation {}
                test |x| x / (1.0 + (-x).exp()), roundings 3.0, range (-4.0, 4.0);
            }
            /// ln(1 + eˣ), without overflow.
            Softplus: softplus() {
                // The larger of x and 0, and what remains, in 0 ..= ln 2.
                forward |x| relu(x) + (-x.abs()).exp().ln_1p_unit(),
                    "return (x < R(0) ? R(0) : x) + log1p(exp(-fabs(x)));";
                backward softplus_backward |g, x| g * x.sigmoid(), "return g * unary_sigmoid(x);";
                test |x| x.exp().ln_1p(), roundings 3.0, range (-4.0, 4.0);
            }
            /// x · tanh(softplus(x)) (Misra 2019).
            Mish: mish() {
                example {
                    /// ```
                    /// # use phalanx_tensor::{Device, Tensor};
                    /// let x = Tensor::scalar(1.0f64, Device::cpu(0))?;
                    /// assert!((x.mish()?.item::<f64>()? - 0.865_098).abs() < 1e-6);
                    /// # Ok::<(), phalanx_tensor::Error>(())
                    /// ```
                }
                forward |x| x * softplus(x).tanh(), "return x * tanh(unary_softplus(x));";
                backward mish_backward |g, x| {
                    let t = softplus(x).tanh();
                    g * (t + x * x.sigmoid() * (R::ONE - t * t))
                }, "\
                    R t = tanh(unary_softplus(x));
                    return g * (t + x * unary_sigmoid(x) * (R(1) - t * t));";
                module {}
                activation {}
                // tanh ln(1 + eˣ) without either of them.
                test |x| x - 2.0 * x / (2.0 + x.exp() * (2.0 + x.exp())), roundings 4.0,
                    range (-4.0, 4.0);
            }
        }
    };
    (@rows $callback:ident $which:tt |$vx:ident, $vout:ident, $vg:ident| $(
        $(#[$doc:meta])*
        $Name:ident: $name:ident $args:tt {
            $(example { $(#[$example:meta])* })?
            forward |$x:ident| $forward:expr, $cuda:literal;
            $(integers |$ix:ident| $integers:expr, $integers_cuda:literal;)?
            $(backward $back:ident |$g:ident, $saved:ident| $backward:expr, $back_cuda:literal;)?
            $(gradient [$($kept:ident)?] $gradient:expr;)?
            $(module { $(#[$module:meta])* })?
            $(activation { $($activation:tt)* })?
            test |$tx:ident| $reference:expr, roundings $roundings:literal, range $range:expr
                $(, with ($($value:expr),+))?;
        }
    )*) => {
        $crate::unary_table! { @keep $which $callback [|$vx, $vout, $vg|] $({
            $Name $name $args
            [$crate::unary_table!(@values $($(($value,)),+)?)] [$range]
            [
                $([$saved] $crate::unary_table!(@call $g $back $saved $args))?
                $([$($kept)?] $gradient)?
            ]
            [$tx [$reference] $roundings]
            [$($back [$g $saved] [$backward] $back_cuda)?]
            [$($ix [$integers] $integers_cuda)?]
            [$([$(#[$module])*])?] [$([$($activation)*])?]
            [$(#[$doc])*] [$($(#[$example])*)?]
            [$x [$forward] $cuda]
        })* }
    };
    (@keep [modules] $callback:ident [$($kept:tt)*]
     { $Name:ident $name:ident $args:tt $values:tt $range:tt $gradient:tt $reference:tt
       $backward:tt $integers:tt [] $($more:tt)* } $($rest:tt)*) => {
        $crate::unary_table! { @keep [modules] $callback [$($kept)*] $($rest)* }
    };
    (@keep [activations] $callback:ident [$($kept:tt)*]
     { $Name:ident $name:ident $args:tt $values:tt $range:tt $gradient:tt $reference:tt
       $backward:tt $integers:tt $module:tt [] $($more:tt)* } $($rest:tt)*) => {
        $crate::unary_table! { @keep [activations] $callback [$($kept)*] $($rest)* }
    };
    (@keep [$which:ident] $callback:ident [$($kept:tt)*] $row:tt $($rest:tt)*) => {
        $crate::unary_table! { @keep [$which] $callback [$($kept)* $row] $($rest)* }
    };
    (@keep $which:tt $callback:ident [$($kept:tt)*] $($rest:tt)*) => {
        $callback! { $($kept)* $($rest)* }
    };
    (@call $g:ident $back:ident $saved:ident ($($arg:ident: $ty:ty)?)) => {
        $g.$back($saved $(, $arg)?)
    };
    (@values) => { [()] };
    (@values $($value:expr),+) => { [$($value),+] };
}
