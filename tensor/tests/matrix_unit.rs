//! Products on the matrix unit beside the vector kernels: as exact, and the same where numbers are
//! out of the unit's reach. On a machine without the unit both sides are the vector kernels.

mod level;

use half::bf16;
use phalanx_tensor::cpu::internals::{
    Bias, Epilogue, Kernels, MatMut, MatRef, Scalar, gemm, has_matrix_unit,
};
use phalanx_tensor::cpu::{simd_level, with_threads};

/// Numbers from a linear congruence: uniform in -1 to 1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// About normal: the sum of twelve.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.next()).sum::<f64>() / 2.0
    }

    fn matrix(&mut self, len: usize, f: impl Fn(&mut Self) -> f64) -> Vec<f32> {
        (0..len).map(|_| f(self) as f32).collect()
    }
}

/// `a b` on the unit and by the vector kernels.
fn both<T: Scalar>((m, n, k): (usize, usize, usize), a: &[T], b: &[T]) -> [Vec<T>; 2] {
    [true, false].map(|unit| {
        let mut c = vec![T::from_f64(0.0); m * n];
        let to = MatMut::row_major(&mut c, m, n);
        let (a, b) = (MatRef::row_major(a, m, k), MatRef::row_major(b, k, n));
        let epilogue = Epilogue::default();
        let kernels = match unit {
            true => Kernels::Unit,
            false => Kernels::Vector(simd_level()),
        };
        gemm(kernels, to, a, b, &epilogue);
        c
    })
}

/// The largest error, and the root of the mean square, of elements over the sum of their terms'
/// magnitudes, in units of the roundoff `2^-24`.
fn errors((m, n, k): (usize, usize, usize), a: &[f32], b: &[f32], c: &[f32]) -> (f64, f64) {
    let (mut most, mut squares) = (0.0f64, 0.0);
    for i in 0..m {
        for j in 0..n {
            let terms = (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j]));
            let (sum, size) = terms.fold((0.0, 0.0), |(s, z), t| (s + t, z + t.abs()));
            let error = (f64::from(c[i * n + j]) - sum).abs() / size * (1u64 << 24) as f64;
            most = most.max(error);
            squares += error * error;
        }
    }
    (most, (squares / (m * n) as f64).sqrt())
}

/// Over kinds of numbers and lengths of sums, the unit's errors are below the stated bound, and in
/// the mean no larger than those of chains of multiply-adds.
#[test]
fn as_exact_as_chains_of_multiply_adds() {
    type Kind = (&'static str, fn(&mut Random) -> f64);
    let kinds: [Kind; 5] = [
        ("uniform", |r| r.next()),
        ("positive", |r| r.next().abs()),
        ("normal", |r| r.normal()),
        ("wide", |r| r.next() * (r.next() * 20.0).exp2()),
        ("small", |r| r.normal() * 1e-9),
    ];
    for (name, kind) in kinds {
        for k in [32, 33, 100, 128, 784, 1024, 4096] {
            let shape = (48, 40, k);
            let mut random = Random(k as u64);
            let a = random.matrix(48 * k, kind);
            let b = random.matrix(k * 40, kind);
            let [unit, vector] = both(shape, &a, &b);
            let (most, mean) = errors(shape, &a, &b, &unit);
            let (_, chain) = errors(shape, &a, &b, &vector);
            println!("{name} {k}: unit {mean:.3}, chain {chain:.3}, most {most:.2}");
            assert!(most <= 44.0 + k as f64 / 128.0, "{name} {k}: {most}");
            assert!(mean <= chain, "{name} {k}: {mean} against {chain}");
        }
    }
}

/// Sums that cancel: each term comes again with the other sign, a little changed.
#[test]
fn as_exact_where_sums_cancel() {
    for k in [64, 1024, 4096] {
        let shape = (32, 64, k);
        let mut random = Random(7);
        let mut a = random.matrix(32 * k, Random::normal);
        let mut b = random.matrix(k * 64, Random::normal);
        for i in 0..32 {
            (0..k / 2).for_each(|p| a[i * k + k / 2 + p] = -a[i * k + p] * (1.0 + 1e-6));
        }
        b.copy_within(..k / 2 * 64, k / 2 * 64);
        let [unit, vector] = both(shape, &a, &b);
        let (most, mean) = errors(shape, &a, &b, &unit);
        let (_, chain) = errors(shape, &a, &b, &vector);
        println!("cancel {k}: unit {mean:.3}, chain {chain:.3}, most {most:.2}");
        assert!(most <= 44.0 + k as f64 / 128.0);
        assert!(mean <= chain, "{k}: {mean} against {chain}");
    }
}

/// Infinities, numbers that are none, and magnitudes out of the unit's reach: the tiles that
/// depend on them have the bits of the vector kernels.
#[test]
fn what_the_unit_cannot_take_comes_out_as_without_it() {
    let (m, n, k) = (100, 90, 200);
    let special = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        1e-44,
        1e-38,
        3e33,
    ];
    for bad in special {
        for (in_a, opposite) in [(true, 1.0), (false, 1.0), (true, 1e-20), (true, 0.0)] {
            let mut random = Random(11);
            let mut a = random.matrix(m * k, Random::normal);
            let mut b = random.matrix(k * n, Random::normal);
            if in_a {
                a[37 * k + 150] = bad;
                b[150 * n..151 * n].iter_mut().for_each(|b| *b *= opposite);
            } else {
                b[150 * n + 70] = bad;
            }
            let [unit, vector] = both((m, n, k), &a, &b);
            for (at, (u, v)) in unit.iter().zip(&vector).enumerate() {
                let same = u.to_bits() == v.to_bits() || u.is_nan() && v.is_nan();
                let affected = if in_a { at / n == 37 } else { at % n == 70 };
                let close = (u - v).abs() <= 1e-4;
                assert!(
                    same || close && !affected || (u - v).abs() <= 1e-5 * v.abs().max(1.0),
                    "{bad:e} {in_a} {opposite:e} at {at}: {u} and {v}"
                );
                assert!(u.is_finite() == v.is_finite() && u.is_nan() == v.is_nan());
            }
        }
    }
    // Everything tiny: subnormal results, bit for bit.
    let mut random = Random(12);
    let a = random.matrix(m * k, |r| r.normal() * 1e-22);
    let b = random.matrix(k * n, |r| r.normal() * 1e-22);
    let [unit, vector] = both((m, n, k), &a, &b);
    assert!(unit == vector && vector.iter().any(|v| v.is_subnormal()));
    // The same for `bf16`, whose own subnormal numbers the unit would drop.
    let narrow = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
    let mut a = narrow(&random.matrix(m * k, |r| r.normal()));
    let b = narrow(&random.matrix(k * n, |r| r.normal()));
    a.iter_mut()
        .for_each(|a| *a = bf16::from_f32(a.to_f32() * 1e-39));
    let [unit, vector] = both((m, n, k), &a, &b);
    assert!(unit == vector && vector.iter().any(|v| v.to_f32() != 0.0));
}

/// The bits are those of one thread, whatever the shape of the threads' pieces, refused tiles among
/// them; with an epilogue, and with none, where sums are finished by the way. One number that is
/// small enough to be refused in one operand but not in the other must be so for all pieces.
#[test]
fn threads_change_no_bit() {
    let shapes = [
        (300, 520, 400),
        (256, 512, 512),
        (512, 256, 512),
        (96, 700, 600),
        (700, 130, 1100),
    ];
    for (m, n, k) in shapes {
        let mut random = Random(13);
        let a = random.matrix(m * k, Random::normal);
        let b = random.matrix(k * n, Random::normal);
        let bias = random.matrix(n, Random::normal);
        let old = random.matrix(m * n, Random::normal);
        let full = Epilogue {
            alpha: -0.5,
            beta: 2.0,
            bias: Bias::PerCol(&bias[..]),
            relu: true,
            map: None,
        };
        for (bad, in_a) in [(f32::INFINITY, true), (1e-32, true), (1e-32, false)] {
            let (mut a, mut b) = (a.clone(), b.clone());
            let spoiled = if in_a { &mut a } else { &mut b };
            let middle = spoiled.len() / 2 + 3;
            spoiled[middle] = bad;
            let run = |threads, turned: bool, epilogue: &Epilogue<'_, f32>| {
                let mut c = old.clone();
                let b = match turned {
                    true => MatRef::row_major(&b, n, k).t(),
                    false => MatRef::row_major(&b, k, n),
                };
                let a = MatRef::row_major(&a, m, k);
                with_threads(threads, || {
                    gemm(
                        Kernels::Unit,
                        MatMut::row_major(&mut c, m, n),
                        a,
                        b,
                        epilogue,
                    )
                });
                c.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            };
            for turned in [false, true] {
                for (name, epilogue) in [("plain", &Epilogue::default()), ("full", &full)] {
                    let alone = run(1, turned, epilogue);
                    for threads in 2..=4 {
                        assert!(
                            run(threads, turned, epilogue) == alone,
                            "{m} {n} {k}, {bad:e} {in_a}, {turned}, {name}, {threads} threads"
                        );
                    }
                }
            }
        }
    }
    println!("matrix unit: {}", has_matrix_unit());
}
