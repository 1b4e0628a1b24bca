//! Floating point: rounding modes, flushed subnormals, NaN, and the arithmetic of the half types, against exact values.

mod support;

use support::Arg::{Int, Pointer};
use support::Bench;

/// An exact value as a sum of two f64, the second far below the first.
type Exact = (f64, f64);

fn sum(a: f64, b: f64) -> Exact {
    let s = a + b;
    if !s.is_finite() {
        return (s, 0.0);
    }
    let t = s - a;
    (s, (a - (s - t)) + (b - t))
}

/// The f32 next to an exact value in a direction: `n` nearest, `z` zero, `m` down, `p` up.
fn rounded((s, rest): Exact, mode: char) -> f32 {
    let near = s as f32;
    if s.is_nan() || s.is_infinite() {
        return near;
    }
    let above = (f64::from(near) - s - rest) > 0.0 || near == f32::INFINITY;
    let below = (f64::from(near) - s - rest) < 0.0 || near == f32::NEG_INFINITY;
    let (low, high) = (
        if above { near.next_down() } else { near },
        if below { near.next_up() } else { near },
    );
    match mode {
        'm' => low,
        'p' => high,
        'z' if s > 0.0 => low,
        'z' => high,
        // Ties are decided by the rest, which the first rounding did not see.
        _ if low == high || !low.is_finite() || !high.is_finite() => near,
        _ => {
            let (down, up) = (s - f64::from(low), f64::from(high) - s);
            if lower(down, up, rest, low.to_bits() % 2 == 0) {
                low
            } else {
                high
            }
        }
    }
}

/// Whether the lower neighbour is nearer: the rest, too small for a sum with the distances, decides where they are equal.
fn lower(down: f64, up: f64, rest: f64, even: bool) -> bool {
    down < up || down == up && (rest < 0.0 || rest == 0.0 && even)
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() {
        0f32.copysign(x)
    } else {
        x
    }
}

fn same(got: f32, want: f32) -> bool {
    got.is_nan() && want.is_nan() || got == want
}

fn wide(x: f32) -> f64 {
    f64::from(x)
}

type Op = (&'static str, fn(f32, f32, f32) -> f32);

const OPS: &[Op] = &[
    ("add.f32 %0, %1, %2;", |a, b, _| a + b),
    ("add.rz.f32 %0, %1, %2;", |a, b, _| {
        rounded(sum(wide(a), wide(b)), 'z')
    }),
    ("add.rm.f32 %0, %1, %2;", |a, b, _| {
        rounded(sum(wide(a), wide(b)), 'm')
    }),
    ("sub.rp.f32 %0, %1, %2;", |a, b, _| {
        rounded(sum(wide(a), wide(-b)), 'p')
    }),
    ("add.ftz.f32 %0, %1, %2;", |a, b, _| {
        flush(flush(a) + flush(b))
    }),
    ("add.sat.f32 %0, %1, %2;", |a, b, _| {
        if (a + b).is_nan() {
            0.0
        } else {
            (a + b).clamp(0.0, 1.0)
        }
    }),
    ("mul.rz.f32 %0, %1, %2;", |a, b, _| {
        rounded((wide(a) * wide(b), 0.0), 'z')
    }),
    ("mul.rp.f32 %0, %1, %2;", |a, b, _| {
        rounded((wide(a) * wide(b), 0.0), 'p')
    }),
    ("mul.ftz.f32 %0, %1, %2;", |a, b, _| {
        flush(flush(a) * flush(b))
    }),
    ("fma.rn.f32 %0, %1, %2, %3;", f32::mul_add),
    ("fma.rm.f32 %0, %1, %2, %3;", |a, b, c| {
        rounded(sum(wide(a) * wide(b), wide(c)), 'm')
    }),
    ("fma.rz.f32 %0, %1, %2, %3;", |a, b, c| {
        rounded(sum(wide(a) * wide(b), wide(c)), 'z')
    }),
    ("div.rn.f32 %0, %1, %2;", |a, b, _| a / b),
    ("rcp.rn.f32 %0, %1;", |a, _, _| 1.0 / a),
    ("sqrt.rn.f32 %0, %1;", |a, _, _| a.sqrt()),
    ("min.f32 %0, %1, %2;", f32_min),
    ("max.f32 %0, %1, %2;", |a, b, _| -f32_min(-a, -b, 0.0)),
    ("min.NaN.f32 %0, %1, %2;", |a, b, _| {
        if a.is_nan() || b.is_nan() {
            f32::NAN
        } else {
            f32_min(a, b, 0.0)
        }
    }),
    ("abs.f32 %0, %1;", |a, _, _| a.abs()),
    ("neg.f32 %0, %1;", |a, _, _| -a),
    ("copysign.f32 %0, %1, %2;", |a, b, _| b.copysign(a)),
    ("cvt.rni.f32.f32 %0, %1;", |a, _, _| a.round_ties_even()),
    ("cvt.rmi.f32.f32 %0, %1;", |a, _, _| a.floor()),
    ("cvt.sat.f32.f32 %0, %1;", |a, _, _| {
        if a.is_nan() { 0.0 } else { a.clamp(0.0, 1.0) }
    }),
    (
        "{ .reg .f64 w; cvt.f64.f32 w, %1; mul.f64 w, w, 0d3FF0000010000001; cvt.rz.f32.f64 %0, w; }",
        |a, _, _| rounded((wide(a) * f64::from_bits(0x3ff0_0000_1000_0001), 0.0), 'z'),
    ),
    (
        "{ .reg .pred p; setp.geu.f32 p, %1, %2; selp.f32 %0, 0f3F800000, 0f00000000, p; }",
        |a, b, _| {
            f32::from(u8::from(!matches!(
                a.partial_cmp(&b),
                Some(std::cmp::Ordering::Less)
            )))
        },
    ),
    (
        "{ .reg .pred p; setp.ne.f32 p, %1, %2; selp.f32 %0, 0f3F800000, 0f00000000, p; }",
        |a, b, _| {
            f32::from(u8::from(
                a.partial_cmp(&b).is_some_and(std::cmp::Ordering::is_ne),
            ))
        },
    ),
];

fn f32_min(a: f32, b: f32, _: f32) -> f32 {
    if a == b {
        if a.is_sign_negative() { a } else { b }
    } else {
        a.min(b)
    }
}

const VALUES: &[f32] = &[
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1.5,
    2.5,
    -3.5,
    1e-38,
    -1e-39,
    1e-45,
    3e38,
    -3.4e38,
    1.000_000_1,
    0.999_999_94,
    1e10,
    -1e-10,
    16_777_216.0,
    33_554_430.0,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    f32::MIN_POSITIVE,
    0.1,
    -7.7,
    1e20,
];

#[test]
fn f32_is_rounded_as_asked() {
    let mut source = String::new();
    for (at, (text, _)) in OPS.iter().enumerate() {
        source += &format!(
            "extern \"C\" __global__ void k{at}(const float* x, float* y, int n) {{\n\
             for (int i = threadIdx.x; i < n * n * n; i += blockDim.x) {{ float r, a = x[i / n / n], b = x[i / n % n], c = x[i % n];\n\
             asm volatile(\"{text}\" : \"=f\"(r) : \"f\"(a), \"f\"(b), \"f\"(c)); y[i] = r; }} }}\n"
        );
    }
    let Some(bench) = Bench::new("floats.cu", &source) else {
        return;
    };
    let (n, device) = (VALUES.len(), &bench.device);
    for (at, (text, op)) in OPS.iter().enumerate() {
        let y = device.empty(4 * n * n * n);
        bench.go(
            &format!("k{at}"),
            1,
            64,
            &[Pointer(device.with(VALUES)), Pointer(y), Int(n as i32)],
        );
        for (i, got) in device.read::<f32>(y).into_iter().enumerate() {
            let (a, b, c) = (VALUES[i / n / n], VALUES[i / n % n], VALUES[i % n]);
            let want = op(a, b, c);
            assert!(
                same(got, want),
                "{text} of {a:e}, {b:e}, {c:e}: {got:e}, not {want:e}"
            );
        }
    }
}

/// The value of a half: 5 bits of exponent and 10 of fraction for f16, 8 and 7 for bf16.
fn value(bits: u16, brain: bool) -> f64 {
    let fraction_bits = if brain { 7 } else { 10 };
    let (most, bias) = if brain { (255, 127) } else { (31, 15) };
    let fraction = f64::from(bits & ((1 << fraction_bits) - 1));
    let exponent = i32::from(bits & 0x7fff) >> fraction_bits;
    let unit = 2f64.powi(exponent.max(1) - bias - fraction_bits);
    let size = match exponent {
        0 => fraction * unit,
        _ if exponent == most && fraction == 0.0 => f64::INFINITY,
        _ if exponent == most => f64::NAN,
        _ => (fraction + f64::from(1 << fraction_bits)) * unit,
    };
    if bits >> 15 == 1 { -size } else { size }
}

/// The half nearest to an exact value, ties to even: the neighbours are tried one by one.
fn nearest((s, rest): Exact, brain: bool) -> u16 {
    let infinity = if brain { 0x7f80 } else { 0x7c00 };
    if s.is_nan() {
        return 0x7fff;
    }
    let sign = if s.is_sign_negative() { 0x8000 } else { 0 };
    let (s, rest) = (s.abs(), if sign == 0 { rest } else { -rest });
    let (mut low, mut high) = (0u16, infinity);
    while high - low > 1 {
        let middle = low.midpoint(high);
        let above = value(middle, brain) - s - rest > 0.0;
        if above { high = middle } else { low = middle }
    }
    // Infinity stands one unit above the largest.
    let top = match high == infinity {
        true => 2.0 * value(low, brain) - value(low - 1, brain),
        false => value(high, brain),
    };
    let (down, up) = (s - value(low, brain), top - s);
    sign | if lower(down, up, rest, low % 2 == 0) {
        low
    } else {
        high
    }
}

#[test]
fn halves_are_rounded_once() {
    let mut source = String::new();
    for name in ["f16", "bf16"] {
        source += &format!(
            "extern \"C\" __global__ void {name}(const unsigned short* x, unsigned short* y, int n) {{\n\
             for (int i = threadIdx.x; i < n * n * n; i += blockDim.x) {{ unsigned short a = x[i / n / n], b = x[i / n % n], c = x[i % n], r;\n\
             asm volatile(\"fma.rn.{name} %0, %1, %2, %3;\" : \"=h\"(r) : \"h\"(a), \"h\"(b), \"h\"(c)); y[i] = r;\n\
             unsigned p, q = a | b << 16, s = b | c << 16, t = c | a << 16;\n\
             asm volatile(\"fma.rn.{name}x2 %0, %1, %2, %3;\" : \"=r\"(p) : \"r\"(q), \"r\"(s), \"r\"(t));\n\
             if ((p & 0xffff) != r) __trap(); }} }}\n"
        );
    }
    source += "extern \"C\" __global__ void sums(const unsigned short* x, unsigned short* y, int n) {\n\
               for (int i = threadIdx.x; i < n * n; i += blockDim.x) { unsigned short r;\n\
               asm volatile(\"add.f16 %0, %1, %2;\" : \"=h\"(r) : \"h\"(x[i / n]), \"h\"(x[i % n])); y[2 * i] = r;\n\
               asm volatile(\"mul.f16 %0, %1, %2;\" : \"=h\"(r) : \"h\"(x[i / n]), \"h\"(x[i % n])); y[2 * i + 1] = r; } }\n";
    let Some(bench) = Bench::new("halves.cu", &source) else {
        return;
    };
    // 3 times 87 lies between two bf16, and only the smallest addend decides which is nearer.
    let x: Vec<u16> = [
        0, 1, 0x3ff, 0x400, 0x3c00, 0x3c01, 0x3f80, 0x3f81, 0x4049, 0x7bff, 0x7c00, 0x5555, 0x2bad,
        0x0123, 0x7f7f, 0x4040, 0x42ae, 0x0080,
    ]
    .into_iter()
    .flat_map(|bits| [bits, bits | 0x8000])
    .collect();
    let (n, device) = (x.len(), &bench.device);
    for (name, brain) in [("f16", false), ("bf16", true)] {
        let y = device.empty(2 * n * n * n);
        bench.go(
            name,
            1,
            64,
            &[Pointer(device.with(&x)), Pointer(y), Int(n as i32)],
        );
        for (i, got) in device.read::<u16>(y).into_iter().enumerate() {
            let [a, b, c] = [i / n / n, i / n % n, i % n].map(|at| value(x[at], brain));
            let want = nearest(sum(a * b, c), brain);
            // The sign of a zero sum is not what this test is about.
            assert!(
                got == want || (got | want) & 0x7fff == 0,
                "{name}: {a:e} * {b:e} + {c:e} = {got:#x}, not {want:#x}"
            );
        }
    }
    let y = device.empty(4 * n * n);
    bench.go(
        "sums",
        1,
        64,
        &[Pointer(device.with(&x)), Pointer(y), Int(n as i32)],
    );
    for (i, got) in device.read::<[u16; 2]>(y).into_iter().enumerate() {
        let (a, b) = (value(x[i / n], false), value(x[i % n], false));
        let want = [nearest(sum(a, b), false), nearest((a * b, 0.0), false)];
        for (got, want) in got.into_iter().zip(want) {
            assert!(
                got == want || (got | want) & 0x7fff == 0,
                "{a:e}, {b:e}: {got:#x}, not {want:#x}"
            );
        }
    }
}
