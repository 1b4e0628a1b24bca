//! The functions of CUDA's mathematical library, as NVRTC compiles them, against those of the host.

mod support;

use support::Arg::{Int, Pointer};
use support::Bench;

/// Units in the last place between two values.
fn ulps32(a: f32, b: f32) -> u64 {
    let order = |x: f32| {
        let bits = x.to_bits() as i32;
        i64::from(if bits < 0 { i32::MIN - bits } else { bits })
    };
    if a.is_nan() && b.is_nan() {
        0
    } else {
        order(a).abs_diff(order(b))
    }
}

fn ulps64(a: f64, b: f64) -> u64 {
    let order = |x: f64| {
        let bits = x.to_bits() as i64;
        if bits < 0 {
            i64::MIN.wrapping_sub(bits)
        } else {
            bits
        }
    };
    if a.is_nan() && b.is_nan() {
        0
    } else {
        order(a).abs_diff(order(b))
    }
}

unsafe extern "C" {
    safe fn erf(x: f64) -> f64;
}

/// A name in CUDA, the same in the host's f64, and the units in the last place that CUDA's guide grants.
type Function = (&'static str, fn(f64) -> f64, u64);

const FUNCTIONS: &[Function] = &[
    ("exp", f64::exp, 2),
    ("exp2", f64::exp2, 2),
    ("expm1", f64::exp_m1, 2),
    ("log", f64::ln, 2),
    ("log2", f64::log2, 2),
    ("log1p", f64::ln_1p, 2),
    ("sin", f64::sin, 2),
    ("cos", f64::cos, 2),
    ("tan", f64::tan, 4),
    ("tanh", f64::tanh, 2),
    ("erf", |x| erf(x), 2),
    ("sqrt", f64::sqrt, 0),
    ("cbrt", f64::cbrt, 1),
    ("atan", f64::atan, 2),
    ("floor", f64::floor, 0),
    ("ceil", f64::ceil, 0),
    ("trunc", f64::trunc, 0),
    ("rint", f64::round_ties_even, 0),
    ("round", f64::round, 0),
];

fn inputs() -> Vec<f64> {
    let mut all = vec![
        0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, -1e-30, 1e-40, 88.0, -88.0, 110.0, -110.0, 1e6, -1e6,
        3e8, 1e30,
    ];
    all.extend([f64::INFINITY, f64::NEG_INFINITY, f64::NAN]);
    all.extend((-300..300).map(|i| f64::from(i) * 0.0617 + 0.003));
    all.extend((0..100).map(|i| f64::from(i) * 1234.567 + 0.1));
    all
}

#[test]
fn functions_of_one_argument() {
    let mut source = String::new();
    for (name, ..) in FUNCTIONS {
        source += &format!(
            "extern \"C\" __global__ void f_{name}(const float* x, float* y, int n) \
             {{ int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) y[i] = {name}f(x[i]); }}\n\
             extern \"C\" __global__ void d_{name}(const double* x, double* y, int n) \
             {{ int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) y[i] = {name}(x[i]); }}\n"
        );
    }
    let Some(bench) = Bench::new("functions.cu", &source) else {
        return;
    };
    let wide = inputs();
    let narrow: Vec<f32> = wide.iter().map(|x| *x as f32).collect();
    let (n, device) = (wide.len(), &bench.device);
    for (name, function, bound) in FUNCTIONS {
        let y = device.empty(4 * n);
        bench.go(
            &format!("f_{name}"),
            8,
            128,
            &[Pointer(device.with(&narrow)), Pointer(y), Int(n as i32)],
        );
        for (x, y) in narrow.iter().zip(device.read::<f32>(y)) {
            let want = function(f64::from(*x)) as f32;
            assert!(
                ulps32(y, want) <= *bound,
                "{name}f({x:e}) = {y:e}, not {want:e}"
            );
        }
        let y = device.empty(8 * n);
        bench.go(
            &format!("d_{name}"),
            8,
            128,
            &[Pointer(device.with(&wide)), Pointer(y), Int(n as i32)],
        );
        for (x, y) in wide.iter().zip(device.read::<f64>(y)) {
            let want = function(*x);
            assert!(
                ulps64(y, want) <= bound + 1,
                "{name}({x:e}) = {y:e}, not {want:e}"
            );
        }
    }
}

#[test]
fn powers_and_quotients() {
    let source = r#"
extern "C" __global__ void f(const float* x, const float* y, float* p, float* q, float* m, int n) {
    int i = threadIdx.x + blockIdx.x * blockDim.x;
    if (i < n) { p[i] = powf(x[i], y[i]); q[i] = x[i] / y[i]; m[i] = fmodf(x[i], y[i]); }
}
extern "C" __global__ void d(const double* x, const double* y, double* p, double* q, double* m, int n) {
    int i = threadIdx.x + blockIdx.x * blockDim.x;
    if (i < n) { p[i] = pow(x[i], y[i]); q[i] = x[i] / y[i]; m[i] = fmod(x[i], y[i]); }
}"#;
    let Some(bench) = Bench::new("powers.cu", source) else {
        return;
    };
    let some = [
        0.0,
        1.0,
        -1.0,
        0.5,
        2.0,
        -2.0,
        3.0,
        10.25,
        1e-5,
        1e5,
        -7.5,
        f64::INFINITY,
        f64::NAN,
    ];
    let pairs: Vec<(f64, f64)> = some.iter().flat_map(|x| some.map(|y| (*x, y))).collect();
    let (n, device) = (pairs.len(), &bench.device);
    let (x, y): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let (p, q, m) = (
        device.empty(8 * n),
        device.empty(8 * n),
        device.empty(8 * n),
    );
    let args = [device.with(&x), device.with(&y), p, q, m].map(Pointer);
    bench.go("d", 2, 128, &[args.as_slice(), &[Int(n as i32)]].concat());
    for (i, (x, y)) in pairs.iter().enumerate() {
        let close = |got: f64, want: f64, bound| {
            assert!(ulps64(got, want) <= bound, "{x} {y}: {got:e}, not {want:e}")
        };
        close(device.read::<f64>(p)[i], x.powf(*y), 2);
        close(device.read::<f64>(q)[i], x / y, 0);
        close(device.read::<f64>(m)[i], x % y, 0);
    }
    let narrow: Vec<(f32, f32)> = pairs.iter().map(|(x, y)| (*x as f32, *y as f32)).collect();
    let (x, y): (Vec<f32>, Vec<f32>) = narrow.iter().copied().unzip();
    let (p, q, m) = (
        device.empty(4 * n),
        device.empty(4 * n),
        device.empty(4 * n),
    );
    let args = [device.with(&x), device.with(&y), p, q, m].map(Pointer);
    bench.go("f", 2, 128, &[args.as_slice(), &[Int(n as i32)]].concat());
    for (i, (x, y)) in narrow.iter().enumerate() {
        let close = |got: f32, want: f32, bound| {
            assert!(ulps32(got, want) <= bound, "{x} {y}: {got:e}, not {want:e}")
        };
        close(
            device.read::<f32>(p)[i],
            f64::from(*x).powf(f64::from(*y)) as f32,
            4,
        );
        close(device.read::<f32>(q)[i], x / y, 0);
        close(device.read::<f32>(m)[i], x % y, 0);
    }
}

#[test]
fn half_types_are_converted_as_the_host_does() {
    let source = r#"
extern "C" __global__ void k(const float* x, unsigned short* b, unsigned short* h, unsigned short* bits, float* back, int n) {
    int i = threadIdx.x + blockIdx.x * blockDim.x;
    if (i >= n) return;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b[i]) : "f"(x[i]));
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h[i]) : "f"(x[i]));
    unsigned u = __float_as_uint(x[i]);
    bits[i] = (u & 0x7fffffff) > 0x7f800000 ? 0x7fff : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    asm("cvt.f32.f16 %0, %1;" : "=f"(back[i]) : "h"(h[i]));
}"#;
    let Some(bench) = Bench::new("halves.cu", source) else {
        return;
    };
    let mut x: Vec<f32> = inputs().iter().map(|x| *x as f32).collect();
    x.extend([
        65504.0,
        65519.0,
        65520.0,
        6e-8,
        2.98e-8,
        3e-8,
        1.0 + 1.0 / 1024.0,
        1.0 + 1.0 / 2048.0,
        1.0 + 3.0 / 2048.0,
    ]);
    let (n, device) = (x.len(), &bench.device);
    let (b, h, bits, back) = (
        device.empty(2 * n),
        device.empty(2 * n),
        device.empty(2 * n),
        device.empty(4 * n),
    );
    let args = [device.with(&x), b, h, bits, back].map(Pointer);
    bench.go("k", 16, 64, &[args.as_slice(), &[Int(n as i32)]].concat());
    assert_eq!(device.read::<u16>(b), device.read::<u16>(bits));
    for (i, x) in x.iter().enumerate() {
        let (h, back) = (device.read::<u16>(h)[i], device.read::<f32>(back)[i]);
        assert_eq!(h, half_of(*x), "{x:e}");
        if x.abs() < 65520.0 {
            assert!(
                (back - x).abs() <= (x.abs() / 2048.0).max(3e-8),
                "{x:e} {back:e}"
            );
        }
    }
}

/// The nearest f16, ties to even, found by exact arithmetic.
fn half_of(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
    let size = f64::from(x.abs());
    if size >= 65520.0 {
        return sign | 0x7c00;
    }
    let exponent = if size < 2f64.powi(-14) {
        -14
    } else {
        size.log2().floor() as i32
    };
    let units = (size / 2f64.powi(exponent - 10)).round_ties_even() as u16;
    sign | if exponent == -14 && units < 1024 {
        units
    } else {
        (((exponent + 15) as u16) << 10) + units - 1024
    }
}
