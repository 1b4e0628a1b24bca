//! Single instructions, written as inline PTX, against the same in Rust, over values at the edges.

mod support;

use support::Arg::{Int, Pointer};
use support::Bench;

type Op32 = (&'static str, fn(u32, u32, u32) -> u32);
type Op64 = (&'static str, fn(u64, u64, u64) -> u64);

fn s(x: u32) -> i32 {
    x as i32
}

fn f(x: u32) -> f32 {
    f32::from_bits(x)
}

/// A shuffle of bytes, as the manual describes it.
fn permute(a: u32, b: u32, by: u32) -> u32 {
    let all = [a.to_le_bytes(), b.to_le_bytes()].concat();
    let byte = |i: u32| {
        let select = by >> (4 * i) & 15;
        let byte = all[(select & 7) as usize];
        if select & 8 == 0 {
            byte
        } else {
            ((byte as i8) >> 7) as u8
        }
    };
    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}

fn field(a: u32, b: u32, c: u32) -> u32 {
    let (position, len) = (b & 255, c & 255);
    (0..32.min(len))
        .map(|i| {
            if position + i < 32 {
                (a >> (position + i) & 1) << i
            } else {
                0
            }
        })
        .sum()
}

fn signed_field(a: u32, b: u32, c: u32) -> u32 {
    let (position, len) = (b & 255, c & 255);
    let top = if len == 0 {
        0
    } else {
        a >> (position + len - 1).min(31) & 1
    };
    (0..32)
        .map(|i| {
            if i < len && position + i < 32 {
                (a >> (position + i) & 1) << i
            } else {
                top << i
            }
        })
        .sum()
}

fn insert(a: u32, b: u32, c: u32) -> u32 {
    let (position, len) = (c & 255, (c >> 8) & 255);
    (0..32)
        .map(|i| {
            if i >= position && i < position + len {
                (a >> (i - position) & 1) << i
            } else {
                b & 1 << i
            }
        })
        .sum()
}

const OPS32: &[Op32] = &[
    ("add.u32 %0, %1, %2;", |a, b, _| a.wrapping_add(b)),
    ("add.sat.s32 %0, %1, %2;", |a, b, _| {
        s(a).saturating_add(s(b)) as u32
    }),
    ("sub.sat.s32 %0, %1, %2;", |a, b, _| {
        s(a).saturating_sub(s(b)) as u32
    }),
    ("mul.lo.u32 %0, %1, %2;", |a, b, _| a.wrapping_mul(b)),
    ("mul.hi.u32 %0, %1, %2;", |a, b, _| {
        ((u64::from(a) * u64::from(b)) >> 32) as u32
    }),
    ("mul.hi.s32 %0, %1, %2;", |a, b, _| {
        ((i64::from(s(a)) * i64::from(s(b))) >> 32) as u32
    }),
    ("mad.lo.s32 %0, %1, %2, %3;", |a, b, c| {
        a.wrapping_mul(b).wrapping_add(c)
    }),
    ("mad.hi.u32 %0, %1, %2, %3;", |a, b, c| {
        (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c)
    }),
    ("mul24.lo.s32 %0, %1, %2;", |a, b, _| {
        (i64::from(s(a << 8) >> 8) * i64::from(s(b << 8) >> 8)) as u32
    }),
    ("mul24.lo.u32 %0, %1, %2;", |a, b, _| {
        (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff)
    }),
    ("div.u32 %0, %1, %2;", |a, b, _| {
        a.checked_div(b).unwrap_or(u32::MAX)
    }),
    ("div.s32 %0, %1, %2;", |a, b, _| {
        if b == 0 {
            u32::MAX
        } else {
            s(a).wrapping_div(s(b)) as u32
        }
    }),
    ("rem.s32 %0, %1, %2;", |a, b, _| {
        if b == 0 {
            a
        } else {
            s(a).wrapping_rem(s(b)) as u32
        }
    }),
    ("sad.s32 %0, %1, %2, %3;", |a, b, c| {
        s(a).abs_diff(s(b)).wrapping_add(c)
    }),
    ("sad.u32 %0, %1, %2, %3;", |a, b, c| {
        a.abs_diff(b).wrapping_add(c)
    }),
    ("min.s32 %0, %1, %2;", |a, b, _| s(a).min(s(b)) as u32),
    ("max.u32 %0, %1, %2;", |a, b, _| a.max(b)),
    ("abs.s32 %0, %1;", |a, _, _| s(a).wrapping_abs() as u32),
    ("neg.s32 %0, %1;", |a, _, _| s(a).wrapping_neg() as u32),
    ("not.b32 %0, %1;", |a, _, _| !a),
    ("cnot.b32 %0, %1;", |a, _, _| u32::from(a == 0)),
    ("shl.b32 %0, %1, %2;", |a, b, _| {
        a.checked_shl(b).unwrap_or(0)
    }),
    ("shr.u32 %0, %1, %2;", |a, b, _| {
        a.checked_shr(b).unwrap_or(0)
    }),
    ("shr.s32 %0, %1, %2;", |a, b, _| (s(a) >> b.min(31)) as u32),
    ("shf.l.wrap.b32 %0, %1, %2, %3;", |a, b, c| {
        ((u64::from(b) << 32 | u64::from(a)) << (c & 31) >> 32) as u32
    }),
    ("shf.l.clamp.b32 %0, %1, %2, %3;", |a, b, c| {
        ((u64::from(b) << 32 | u64::from(a)) << c.min(32) >> 32) as u32
    }),
    ("shf.r.wrap.b32 %0, %1, %2, %3;", |a, b, c| {
        ((u64::from(b) << 32 | u64::from(a)) >> (c & 31)) as u32
    }),
    ("shf.r.clamp.b32 %0, %1, %2, %3;", |a, b, c| {
        ((u64::from(b) << 32 | u64::from(a)) >> c.min(32)) as u32
    }),
    ("popc.b32 %0, %1;", |a, _, _| a.count_ones()),
    ("clz.b32 %0, %1;", |a, _, _| a.leading_zeros()),
    ("brev.b32 %0, %1;", |a, _, _| a.reverse_bits()),
    ("bfind.u32 %0, %1;", |a, _, _| {
        if a == 0 { u32::MAX } else { a.ilog2() }
    }),
    ("bfind.shiftamt.u32 %0, %1;", |a, _, _| {
        if a == 0 { u32::MAX } else { a.leading_zeros() }
    }),
    ("bmsk.clamp.b32 %0, %1, %2;", |a, b, _| {
        (((1u64 << b.min(32)) - 1) << a.min(32)) as u32
    }),
    ("bmsk.wrap.b32 %0, %1, %2;", |a, b, _| {
        ((1u32 << (b & 31)) - 1) << (a & 31)
    }),
    ("bfind.s32 %0, %1;", |a, _, _| {
        let a = if s(a) < 0 { !a } else { a };
        if a == 0 { u32::MAX } else { a.ilog2() }
    }),
    ("bfe.u32 %0, %1, %2, %3;", field),
    ("bfe.s32 %0, %1, %2, %3;", signed_field),
    (
        "{ .reg .b32 n; shr.u32 n, %3, 8; bfi.b32 %0, %1, %2, %3, n; }",
        insert,
    ),
    ("prmt.b32 %0, %1, %2, %3;", permute),
    ("lop3.b32 %0, %1, %2, %3, 0x96;", |a, b, c| a ^ b ^ c),
    ("lop3.b32 %0, %1, %2, %3, 0xe8;", |a, b, c| {
        a & b | a & c | b & c
    }),
    ("lop3.b32 %0, %1, %2, %3, 0xca;", |a, b, c| a & b | !a & c),
    ("dp4a.u32.s32 %0, %1, %2, %3;", |a, b, c| {
        let pairs = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
        pairs.fold(c, |sum, (x, y)| {
            sum.wrapping_add((i32::from(x) * i32::from(y as i8)) as u32)
        })
    }),
    ("slct.u32.s32 %0, %1, %2, %3;", |a, b, c| {
        if s(c) >= 0 { a } else { b }
    }),
    (
        "{ .reg .pred p, q; setp.lt.s32 p|q, %1, %2; selp.b32 %0, 1, 2, p; @q add.u32 %0, %0, 4; }",
        |a, b, _| {
            if s(a) < s(b) { 1 } else { 6 }
        },
    ),
    ("set.gt.u32.u32 %0, %1, %2;", |a, b, _| {
        if a > b { u32::MAX } else { 0 }
    }),
    (
        "{ .reg .u32 h; add.cc.u32 h, %1, %2; addc.u32 %0, %3, 0; }",
        |a, b, c| c.wrapping_add(u32::from(a.checked_add(b).is_none())),
    ),
    (
        "{ .reg .u32 h; sub.cc.u32 h, %1, %2; subc.u32 %0, %3, 0; }",
        |a, b, c| c.wrapping_sub(u32::from(a < b)),
    ),
    (
        "{ .reg .u32 h; mad.lo.cc.u32 h, %1, %2, %3; madc.hi.u32 %0, %1, %2, 0; }",
        |a, b, c| ((u64::from(a) * u64::from(b) + u64::from(c)) >> 32) as u32,
    ),
    (
        "{ .reg .b16 l, h; mov.b32 {l, h}, %1; mov.b32 %0, {h, l}; }",
        |a, _, _| a.rotate_left(16),
    ),
    ("cvt.s32.s8 %0, %1;", |a, _, _| a as i8 as u32),
    ("cvt.u32.u16 %0, %1;", |a, _, _| u32::from(a as u16)),
    ("cvt.sat.s8.s32 %0, %1;", |a, _, _| {
        s(a).clamp(-128, 127) as u32
    }),
    ("cvt.sat.u8.s32 %0, %1;", |a, _, _| {
        s(a).clamp(0, 255) as u32
    }),
    ("cvt.rzi.s32.f32 %0, %1;", |a, _, _| (f(a) as i32) as u32),
    ("cvt.rzi.u32.f32 %0, %1;", |a, _, _| f(a) as u32),
    ("cvt.rni.s32.f32 %0, %1;", |a, _, _| {
        (f(a).round_ties_even() as i32) as u32
    }),
    ("cvt.rmi.s32.f32 %0, %1;", |a, _, _| {
        (f(a).floor() as i32) as u32
    }),
    ("cvt.rpi.s32.f32 %0, %1;", |a, _, _| {
        (f(a).ceil() as i32) as u32
    }),
    ("cvt.rn.f32.s32 %0, %1;", |a, _, _| (s(a) as f32).to_bits()),
    ("cvt.rn.f32.u32 %0, %1;", |a, _, _| (a as f32).to_bits()),
    ("cvt.rz.f32.u32 %0, %1;", |a, _, _| {
        let near = a as f32;
        if near as u64 > u64::from(a) {
            near.to_bits() - 1
        } else {
            near.to_bits()
        }
    }),
    ("cvt.rp.f32.s32 %0, %1;", |a, _, _| {
        let near = s(a) as f32;
        (if (near as i64) < i64::from(s(a)) {
            near.next_up()
        } else {
            near
        })
        .to_bits()
    }),
    ("setp_number", |a, _, _| u32::from(!f(a).is_nan())),
];

#[test]
fn instructions_of_32_bits() {
    let (mut source, mut ops) = (String::new(), Vec::new());
    for (text, op) in OPS32 {
        let text = match *text {
            "setp_number" => "{ .reg .pred p; setp.num.f32 p, %1, %1; selp.u32 %0, 1, 0, p; }",
            text => text,
        };
        source += &format!(
            "extern \"C\" __global__ void k{}(const unsigned* x, unsigned* y, int n) {{\n\
             for (int i = threadIdx.x; i < n * n; i += blockDim.x) {{ unsigned r; unsigned a = x[i / n], b = x[i % n], c = x[(i * 7 + 3) % n];\n\
             asm volatile(\"{text}\" : \"=r\"(r) : \"r\"(a), \"r\"(b), \"r\"(c)); y[i] = r; }} }}\n",
            ops.len()
        );
        ops.push((text, op));
    }
    let Some(bench) = Bench::new("ops32.cu", &source) else {
        return;
    };
    let x: Vec<u32> = [
        0u32, 1, 2, 3, 5, 7, 8, 31, 32, 33, 64, 127, 128, 255, 256, 0x0805, 0x1010, 0x7fff, 0x8000,
        0xffff, 0x10000,
    ]
    .into_iter()
    .chain([
        0x0080_0001,
        0x3f80_0000,
        0x3fc0_0000,
        0x4020_0000,
        0xbfc0_0000,
        0x4f00_0000,
        0x4f80_0001,
        0xcf00_0001,
    ])
    .chain([
        0x7fff_ffff,
        0x8000_0000,
        0x8000_0001,
        0x1234_5678,
        0x9abc_def0,
        0xffff_fffe,
        0xffff_ffff,
        0x7f80_0000,
    ])
    .collect();
    let (n, device) = (x.len(), &bench.device);
    for (at, (text, op)) in ops.iter().enumerate() {
        let y = device.empty(4 * n * n);
        bench.go(
            &format!("k{at}"),
            1,
            64,
            &[Pointer(device.with(&x)), Pointer(y), Int(n as i32)],
        );
        for (i, got) in device.read::<u32>(y).into_iter().enumerate() {
            let (a, b, c) = (x[i / n], x[i % n], x[(i * 7 + 3) % n]);
            let want = op(a, b, c);
            assert_eq!(
                got, want,
                "{text} of {a:#x}, {b:#x}, {c:#x}: {got:#x}, not {want:#x}"
            );
        }
    }
}

const OPS64: &[Op64] = &[
    ("mul.hi.u64 %0, %1, %2;", |a, b, _| {
        ((u128::from(a) * u128::from(b)) >> 64) as u64
    }),
    ("mul.hi.s64 %0, %1, %2;", |a, b, _| {
        ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
    }),
    ("mad.lo.u64 %0, %1, %2, %3;", |a, b, c| {
        a.wrapping_mul(b).wrapping_add(c)
    }),
    ("div.s64 %0, %1, %2;", |a, b, _| {
        if b == 0 {
            u64::MAX
        } else {
            (a as i64).wrapping_div(b as i64) as u64
        }
    }),
    ("rem.u64 %0, %1, %2;", |a, b, _| {
        a.checked_rem(b).unwrap_or(a)
    }),
    (
        "{ .reg .u32 n; cvt.u32.u64 n, %2; shl.b64 %0, %1, n; }",
        |a, b, _| a.checked_shl(b as u32).unwrap_or(0),
    ),
    (
        "{ .reg .u32 n; cvt.u32.u64 n, %2; shr.s64 %0, %1, n; }",
        |a, b, _| ((a as i64) >> (b as u32).min(63)) as u64,
    ),
    ("brev.b64 %0, %1;", |a, _, _| a.reverse_bits()),
    (
        "{ .reg .u32 n; popc.b64 n, %1; cvt.u64.u32 %0, n; }",
        |a, _, _| u64::from(a.count_ones()),
    ),
    (
        "{ .reg .u32 n; clz.b64 n, %1; cvt.u64.u32 %0, n; }",
        |a, _, _| u64::from(a.leading_zeros()),
    ),
    (
        "{ .reg .u32 l, h; mov.b64 {l, h}, %1; mov.b64 %0, {h, l}; }",
        |a, _, _| a.rotate_left(32),
    ),
    (
        "{ .reg .s32 n; cvt.u32.u64 n, %1; mul.wide.s32 %0, n, n; }",
        |a, _, _| i64::from(a as i32).pow(2) as u64,
    ),
    (
        "{ .reg .s32 n; cvt.u32.u64 n, %1; cvt.s64.s32 %0, n; }",
        |a, _, _| i64::from(a as i32) as u64,
    ),
    ("cvt.rn.f64.s64 %0, %1;", |a, _, _| {
        (a as i64 as f64).to_bits()
    }),
    ("cvt.rn.f64.u64 %0, %1;", |a, _, _| (a as f64).to_bits()),
    ("cvt.rzi.s64.f64 %0, %1;", |a, _, _| {
        (f64::from_bits(a) as i64) as u64
    }),
    ("cvt.rzi.u64.f64 %0, %1;", |a, _, _| {
        f64::from_bits(a) as u64
    }),
    ("bfe.u64 %0, %1, 7, 20;", |a, _, _| a >> 7 & 0xf_ffff),
    ("bfe.s64 %0, %1, 50, 20;", |a, _, _| {
        ((a as i64) >> 50) as u64
    }),
];

#[test]
fn instructions_of_64_bits() {
    let mut source = String::new();
    for (at, (text, _)) in OPS64.iter().enumerate() {
        source += &format!(
            "extern \"C\" __global__ void k{at}(const unsigned long* x, unsigned long* y, int n) {{\n\
             for (int i = threadIdx.x; i < n * n; i += blockDim.x) {{ unsigned long r, a = x[i / n], b = x[i % n], c = x[(i * 7 + 3) % n];\n\
             asm volatile(\"{text}\" : \"=l\"(r) : \"l\"(a), \"l\"(b), \"l\"(c)); y[i] = r; }} }}\n"
        );
    }
    let Some(bench) = Bench::new("ops64.cu", &source) else {
        return;
    };
    let x: Vec<u64> = [
        0u64,
        1,
        2,
        5,
        31,
        63,
        64,
        65,
        0xffff_ffff,
        0x1_0000_0000,
        0x3ff8_0000_0000_0000,
        0xc00c_0000_0000_0000,
    ]
    .into_iter()
    .chain([
        0x43e0_0000_0000_0001,
        0x7ff0_0000_0000_0000,
        0x7ff8_0000_0000_0000,
        i64::MAX as u64,
        1 << 63,
        u64::MAX,
    ])
    .chain([0x1234_5678_9abc_def0, 0xfedc_ba98_7654_3210])
    .collect();
    let (n, device) = (x.len(), &bench.device);
    for (at, (text, op)) in OPS64.iter().enumerate() {
        let y = device.empty(8 * n * n);
        bench.go(
            &format!("k{at}"),
            1,
            64,
            &[Pointer(device.with(&x)), Pointer(y), Int(n as i32)],
        );
        for (i, got) in device.read::<u64>(y).into_iter().enumerate() {
            let (a, b, c) = (x[i / n], x[i % n], x[(i * 7 + 3) % n]);
            let want = op(a, b, c);
            assert_eq!(
                got, want,
                "{text} of {a:#x}, {b:#x}, {c:#x}: {got:#x}, not {want:#x}"
            );
        }
    }
}
