//! The table's functions in CUDA C: the device code that kernels are made of.

use crate::unary_table;

macro_rules! texts {
    (|$vx:ident, $vout:ident, $vg:ident| $({
        $Name:ident $name:ident ($($arg:ident: $ty:ty)?) $values:tt $range:tt $gradient:tt $reference:tt
        $backward:tt [$($ix:ident [$integer:expr] $integer_cuda:literal)?]
        $module:tt $activation:tt $doc:tt $example:tt [$x:ident [$forward:expr] $cuda:literal]
    })*) => {
        /// A device function for each row and for each derivative, over `R`, which is `float` or
        /// `double`, or `long long` or `int` where integers have the function:
        ///
        /// ```text
        /// template <class R> __device__ R unary_silu(R x)
        /// template <class R> __device__ R unary_silu_backward(R g, R x)
        /// template <class R> __device__ R unary_gelu(R x, R kind)
        /// __device__ long long unary_neg(long long x)
        /// ```
        ///
        /// Half types are widened before and narrowed after. The text needs no header.
        pub const CUDA: &str = concat!($(
            "template <class R> __device__ R unary_", stringify!($name), "(R ", stringify!($x),
            $(", R ", stringify!($arg),)? ") { ", $cuda, " }\n",
            $("inline __device__ long long unary_", stringify!($name), "(long long ",
            stringify!($ix), ") { ", $integer_cuda, " }\n",
            // What wraps at 64 bits is right in the low 32, too.
            "inline __device__ int unary_", stringify!($name), "(int ", stringify!($ix),
            ") { return (int)unary_", stringify!($name), "((long long)", stringify!($ix), "); }\n",)?
            derivative!(($($arg)?) $backward),
        )*);
    };
}

macro_rules! derivative {
    ($args:tt []) => { "" };
    (($($arg:ident)?) [$back:ident [$g:ident $saved:ident] [$backward:expr] $cuda:literal]) => {
        concat!(
            "template <class R> __device__ R unary_", stringify!($back), "(R ", stringify!($g),
            ", R ", stringify!($saved), $(", R ", stringify!($arg),)? ") { ", $cuda, " }\n",
        )
    };
}

unary_table!(texts);
