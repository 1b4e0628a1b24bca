//! The matrix product over slices, against plain sums over `f64`, at every SIMD level and on the matrix unit.

mod level;

use half::{bf16, f16};
use phalanx_tensor::Element;
use phalanx_tensor::cpu::internals::{
    Bias, Epilogue, Kernels, MatMut, MatRef, Scalar, gemm, has_matrix_unit,
};
use phalanx_tensor::cpu::{SimdLevel, simd_level, with_threads};
use proptest::prelude::*;

/// What the tests need to know of an element type.
trait Number: Scalar + PartialEq + std::fmt::Debug {
    /// Half the distance from one to the next number of the accumulator, and of the type.
    const ROUNDING: (f64, f64);
    /// Half the smallest number of the type, or a little more.
    const TINY: f64;
    fn of(x: f64) -> Self;
    fn to(self) -> f64;
}

macro_rules! number {
    ($t:ty, $acc:literal, $own:literal, $tiny:expr, $from:expr, $to:expr) => {
        impl Number for $t {
            const ROUNDING: (f64, f64) = (1.0 / (1u64 << $acc) as f64, 1.0 / (1u64 << $own) as f64);
            const TINY: f64 = $tiny;
            fn of(x: f64) -> Self {
                $from(x)
            }
            fn to(self) -> f64 {
                $to(self)
            }
        }
    };
}
number!(f32, 24, 24, 1e-45, |x| x as f32, f64::from);
number!(f64, 53, 53, 0.0, |x| x, |x| x);
number!(bf16, 24, 8, 1e-40, bf16::from_f64, bf16::to_f64);
number!(
    f16,
    24,
    11,
    1.0 / (1u64 << 25) as f64,
    f16::from_f64,
    f16::to_f64
);

/// The ways that this machine can go, the plain one among them.
fn ways() -> impl Iterator<Item = Kernels> {
    [SimdLevel::Baseline, SimdLevel::Avx2, SimdLevel::Avx512]
        .into_iter()
        .filter(|&l| l <= simd_level())
        .map(Kernels::Vector)
        .chain(has_matrix_unit().then_some(Kernels::Unit))
}

/// How a matrix lies in its slice.
#[derive(Clone, Copy, Debug)]
enum Lie {
    Rows,
    Cols,
    /// Rows with a gap, and an offset.
    Window,
    /// No stride of one.
    Sparse,
    /// One row, repeated.
    Repeated,
}

const LIES: [Lie; 5] = [
    Lie::Rows,
    Lie::Cols,
    Lie::Window,
    Lie::Sparse,
    Lie::Repeated,
];

/// A matrix with its data.
struct Matrix<T> {
    data: Vec<T>,
    shape: (usize, usize),
    strides: (usize, usize),
}

impl<T: Number> Matrix<T> {
    /// Values in -1 to 1, a few of them far smaller, from a linear congruence.
    fn new(rows: usize, cols: usize, lie: Lie, seed: u64) -> Self {
        let strides = match lie {
            Lie::Rows => (cols, 1),
            Lie::Cols => (1, rows),
            Lie::Window => (cols + 3, 1),
            Lie::Sparse => (2 * cols + 1, 2),
            Lie::Repeated => (0, 1),
        };
        let len = if rows * cols == 0 {
            0
        } else {
            (rows - 1) * strides.0 + (cols - 1) * strides.1 + 1
        };
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let data = (0..len)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let x = (state >> 33) as f64 / (1u64 << 30) as f64 - 1.0;
                T::of(if state >> 61 == 0 { x * 1e-3 } else { x })
            })
            .collect();
        Matrix {
            data,
            shape: (rows, cols),
            strides,
        }
    }

    fn view(&self) -> MatRef<'_, T> {
        MatRef::new(&self.data, self.shape, self.strides)
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.data[i * self.strides.0 + j * self.strides.1].to()
    }
}

/// The epilogue of one case.
#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    a: Lie,
    b: Lie,
    alpha: f64,
    beta: f64,
    bias: u8,
    relu: bool,
    double: bool,
    gap: usize,
}

impl Case {
    fn plain(m: usize, n: usize, k: usize, a: Lie, b: Lie) -> Self {
        Case {
            m,
            n,
            k,
            a,
            b,
            alpha: 1.0,
            beta: 0.0,
            bias: 0,
            relu: false,
            double: false,
            gap: 0,
        }
    }

    /// Runs the case in every way and holds it to the reference; gaps in the result keep what
    /// they held.
    fn check<T: Number>(self) {
        let Case { m, n, k, .. } = self;
        let a = Matrix::<T>::new(m, k, self.a, 1);
        let b = Matrix::<T>::new(k, n, self.b, 2);
        let bias = Matrix::<T>::new(1, if self.bias == 1 { m } else { n }, Lie::Rows, 3).data;
        let ld = n + self.gap;
        let old = Matrix::<T>::new(m, ld, Lie::Rows, 4).data;
        let double = |piece: &mut [T::Compute]| twice::<T>(piece);
        let epilogue = Epilogue {
            alpha: self.alpha,
            beta: self.beta,
            bias: match self.bias {
                1 => Bias::PerRow(&bias[..]),
                2 => Bias::PerCol(&bias[..]),
                _ => Bias::None,
            },
            relu: self.relu,
            map: self.double.then_some(&double),
        };
        for way in ways() {
            let mut c = old.clone();
            if self.beta == 0.0 {
                // What is not read may hold anything.
                c.iter_mut()
                    .enumerate()
                    .filter(|(i, _)| i % ld < n)
                    .for_each(|(_, x)| *x = T::of(f64::NAN));
            }
            gemm(
                way,
                MatMut::new(&mut c, m, n, ld),
                a.view(),
                b.view(),
                &epilogue,
            );
            for (at, &actual) in c.iter().enumerate() {
                let (i, j) = (at / ld, at % ld);
                if j >= n {
                    assert_eq!(
                        actual, old[at],
                        "{self:?} {way:?}: wrote beyond its columns"
                    );
                    continue;
                }
                let (mut sum, mut size) = (0.0, 0.0);
                for p in 0..k {
                    sum += a.at(i, p) * b.at(p, j);
                    size += (a.at(i, p) * b.at(p, j)).abs();
                }
                let mut expected = self.alpha * sum;
                size *= self.alpha.abs();
                if self.beta != 0.0 {
                    expected += self.beta * old[at].to();
                    size += (self.beta * old[at].to()).abs();
                }
                if self.bias > 0 {
                    let bias = bias[if self.bias == 1 { i } else { j }].to();
                    expected += bias;
                    size += bias.abs();
                }
                if self.relu {
                    expected = expected.max(0.0);
                }
                if self.double {
                    expected *= 2.0;
                    size *= 2.0;
                }
                let (acc, own) = T::ROUNDING;
                let bound = (k + 4) as f64 * acc * size + own * expected.abs() + T::TINY;
                let error = (actual.to() - expected).abs();
                assert!(
                    error <= bound,
                    "{self:?} {way:?} at ({i}, {j}): {actual:?}, expected {expected:e} within {bound:e}"
                );
            }
        }
    }
}

/// Doubles numbers of the accumulator type.
fn twice<T: Number>(x: &mut [T::Compute]) {
    // Adding a number to itself by the public interface of the type: through bytes would be worse.
    for x in x {
        *x = T::Compute::from_f64(2.0) * *x;
    }
}

fn extent() -> impl Strategy<Value = usize> {
    prop_oneof![
        2 => 0usize..4,
        4 => 1usize..40,
        2 => prop_oneof![Just(13usize), Just(14), Just(15), Just(16), Just(17), Just(28), Just(31), Just(32), Just(33), Just(48), Just(49)],
        1 => 40usize..200,
    ]
}

fn depth() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0usize..40, 1 => 500usize..540, 1 => 1000usize..1100]
}

fn case() -> impl Strategy<Value = Case> {
    let lie = || proptest::sample::select(&LIES[..]);
    let coefficient = || proptest::sample::select(&[1.0, 1.0, 0.0, -0.5, 2.0][..]);
    (
        (extent(), extent(), depth()),
        (lie(), lie(), coefficient(), coefficient()),
        (0u8..3, any::<bool>(), any::<bool>(), 0usize..3),
    )
        .prop_map(
            |((m, n, k), (a, b, alpha, beta), (bias, relu, double, gap))| Case {
                m,
                n,
                k,
                a,
                b,
                alpha,
                beta,
                bias,
                relu,
                double,
                gap,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_product_of_f32(case in case()) {
        case.check::<f32>();
    }

    #[test]
    fn any_product_of_f64(case in case()) {
        case.check::<f64>();
    }

    #[test]
    fn any_product_of_bf16(case in case()) {
        case.check::<bf16>();
    }

    #[test]
    fn any_product_of_f16(case in case()) {
        case.check::<f16>();
    }
}

/// Every height and width of tile, in both directions of writing.
#[test]
fn every_tile() {
    for m in 1..=30 {
        for n in (1..=34).chain([47, 48, 49, 64, 65]) {
            for (a, b) in [
                (Lie::Rows, Lie::Rows),
                (Lie::Rows, Lie::Cols),
                (Lie::Cols, Lie::Rows),
                (Lie::Cols, Lie::Cols),
            ] {
                Case::plain(m, n, 5, a, b).check::<f32>();
            }
        }
    }
}

/// The shapes of training, and blocks that do not come out even.
#[test]
fn large_products() {
    for (m, n, k) in [
        (128, 1000, 784),
        (1024, 80, 128),
        (10, 1024, 64),
        (400, 900, 513),
        (900, 400, 20),
    ] {
        for (a, b) in [
            (Lie::Rows, Lie::Cols),
            (Lie::Rows, Lie::Rows),
            (Lie::Cols, Lie::Rows),
        ] {
            Case {
                bias: 2,
                relu: true,
                ..Case::plain(m, n, k, a, b)
            }
            .check::<f32>();
        }
    }
    Case {
        beta: 1.0,
        bias: 1,
        ..Case::plain(300, 500, 700, Lie::Rows, Lie::Cols)
    }
    .check::<bf16>();
}

/// The bits are those of one thread.
#[test]
fn threads_change_no_bit() {
    fn run<T: Number>((m, n, k): (usize, usize, usize), a: Lie, b: Lie, threads: usize) -> Vec<T> {
        let (a, b) = (Matrix::<T>::new(m, k, a, 5), Matrix::<T>::new(k, n, b, 6));
        let bias = Matrix::<T>::new(1, n, Lie::Rows, 7).data;
        let mut c = vec![T::of(0.0); m * n];
        let epilogue = Epilogue {
            bias: Bias::PerCol(&bias),
            ..Epilogue::default()
        };
        with_threads(threads, || {
            gemm(
                Kernels::Best,
                MatMut::row_major(&mut c, m, n),
                a.view(),
                b.view(),
                &epilogue,
            )
        });
        c
    }
    for shape in [
        (128, 1024, 784),
        (1024, 300, 128),
        (333, 257, 1025),
        (17, 4000, 100),
        (4000, 10, 128),
    ] {
        for (a, b) in [
            (Lie::Rows, Lie::Cols),
            (Lie::Rows, Lie::Rows),
            (Lie::Cols, Lie::Rows),
        ] {
            let alone = run::<f32>(shape, a, b, 1);
            for threads in [2, 3, 4, 7] {
                assert!(
                    run::<f32>(shape, a, b, threads) == alone,
                    "{shape:?} {a:?} {b:?} {threads}"
                );
            }
            assert!(
                run::<bf16>(shape, a, b, 3) == run::<bf16>(shape, a, b, 1),
                "{shape:?} {a:?} {b:?}"
            );
        }
    }
}

/// A number that is none spreads to its row and column, and to nothing else; infinity too.
#[test]
fn not_a_number_stays_in_its_row_and_column() {
    for (bad, lie) in [(f32::NAN, Lie::Rows), (f32::INFINITY, Lie::Cols)] {
        for way in ways() {
            let mut a = Matrix::<f32>::new(40, 70, Lie::Rows, 8);
            let b = Matrix::<f32>::new(70, 50, lie, 9);
            a.data[17 * 70 + 33] = bad;
            let mut c = vec![0.0; 40 * 50];
            gemm(
                way,
                MatMut::row_major(&mut c, 40, 50),
                a.view(),
                b.view(),
                &Epilogue::default(),
            );
            for (at, x) in c.iter().enumerate() {
                assert_eq!(x.is_finite(), at / 50 != 17, "{way:?} {bad} at {at}");
            }
            let relu = Epilogue {
                relu: true,
                ..Epilogue::default()
            };
            gemm(
                way,
                MatMut::row_major(&mut c, 40, 50),
                a.view(),
                b.view(),
                &relu,
            );
            assert!(
                bad.is_finite()
                    || c[17 * 50..18 * 50]
                        .iter()
                        .all(|x| x.is_nan() == bad.is_nan())
            );
        }
    }
}

#[test]
#[should_panic(expected = "ends beyond its 5 elements")]
fn a_view_beyond_its_slice_is_refused() {
    MatRef::new(&[0.0f32; 5], (2, 3), (3, 1));
}

#[test]
#[should_panic(expected = "a 2x3 by a 4x5 matrix into a 2x5 one")]
fn shapes_that_disagree_are_refused() {
    let (a, b, mut c) = ([0.0f32; 6], [0.0; 20], [0.0; 10]);
    gemm(
        Kernels::Best,
        MatMut::row_major(&mut c, 2, 5),
        MatRef::row_major(&a, 2, 3),
        MatRef::row_major(&b, 4, 5),
        &Epilogue::default(),
    );
}
