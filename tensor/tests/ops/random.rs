//! Random numbers: their distribution, and that nothing but seed and calls decides them.

use crate::util::*;
use phalanx_tensor::{DType, Error, Rng, Tensor, cpu};
use proptest::prelude::*;

const MANY: usize = 200_000;

fn mean(v: &[f64]) -> f64 {
    v.iter().sum::<f64>() / v.len() as f64
}

/// Pearson's statistic over equally likely bins, in standard deviations from its expectation.
fn chi_square(counts: &[usize]) -> f64 {
    let expected = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    let statistic: f64 = counts
        .iter()
        .map(|&c| (c as f64 - expected).powi(2) / expected)
        .sum();
    let freedom = counts.len() as f64 - 1.0;
    (statistic - freedom) / (2.0 * freedom).sqrt()
}

#[test]
fn the_first_numbers_are_those_of_the_published_block() {
    // Philox4x32-10 with key 0 and counter 0 starts with these words.
    let words = [0x6627_e8d5u32, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8];
    let expected = words.map(|w| f64::from(w >> 8) * 2f64.powi(-24));
    let t = Tensor::rand([4], DType::F32, device(), &mut Rng::new(0)).unwrap();
    assert_close(&t, &[4], &expected, 0.0, "rand");
    assert_eq!(Rng::new(0).next_u64(), 0xe169_c58d_6627_e8d5);
    let half = Tensor::rand([4], DType::F16, device(), &mut Rng::new(0)).unwrap();
    assert_close(
        &half,
        &[4],
        &words.map(|w| f64::from(w >> 21) * 2f64.powi(-11)),
        0.0,
        "f16",
    );
}

#[test]
fn uniform_numbers_are_uniform() {
    for (seed, dtype) in FLOATS.into_iter().enumerate() {
        let t = Tensor::rand([MANY], dtype, device(), &mut Rng::new(seed as u64)).unwrap();
        let v = values(&t);
        assert!(v.iter().all(|v| (0.0..1.0).contains(v)), "{dtype}");
        let mut counts = [0; 128];
        v.iter().for_each(|v| counts[(v * 128.0) as usize] += 1);
        assert!(
            chi_square(&counts).abs() < 4.0,
            "{dtype}: {}",
            chi_square(&counts)
        );
        // Neighbours are independent.
        let product: Vec<f64> = v.windows(2).map(|w| (w[0] - 0.5) * (w[1] - 0.5)).collect();
        assert!(
            mean(&product).abs() < 4.0 / 12.0 / (MANY as f64).sqrt(),
            "{dtype}"
        );
    }
}

#[test]
fn normal_numbers_are_normal() {
    for (seed, dtype) in FLOATS.into_iter().enumerate() {
        let t = Tensor::randn([MANY + 1], dtype, device(), &mut Rng::new(seed as u64)).unwrap();
        let v = values(&t);
        let n = (MANY as f64).sqrt();
        // Moments 1 to 4 of the normal distribution, within 4.5 of their standard deviations.
        for (power, expected, deviation) in [
            (1, 0.0, 1.0),
            (2, 1.0, 2f64.sqrt()),
            (3, 0.0, 15f64.sqrt()),
            (4, 3.0, 96f64.sqrt()),
        ] {
            let moment = mean(&v.iter().map(|v| v.powi(power)).collect::<Vec<_>>());
            assert!(
                (moment - expected).abs() < 4.5 * deviation / n + 2.0 * rounding(dtype),
                "{dtype}: moment {power} is {moment}"
            );
        }
        // Equally likely bins by the distribution function itself. The half types have too few
        // numbers in a bin for that.
        if dtype.size() >= 4 {
            let mut counts = [0; 100];
            for v in &v {
                let cdf = 0.5 * libm::erfc(-v / std::f64::consts::SQRT_2);
                counts[((cdf * 100.0) as usize).min(99)] += 1;
            }
            assert!(
                chi_square(&counts).abs() < 4.0,
                "{dtype}: {}",
                chi_square(&counts)
            );
        }
        // The two numbers of a pair are independent, and so are neighbouring pairs.
        for lag in [1, 2] {
            let products: Vec<f64> = v.windows(lag + 1).map(|w| w[0] * w[lag]).collect();
            assert!(mean(&products).abs() < 4.5 / n, "{dtype}: lag {lag}");
        }
        let tail = v.iter().filter(|v| v.abs() > 3.0).count() as f64 / v.len() as f64;
        assert!(
            (tail - 0.0027).abs() < 0.0006,
            "{dtype}: {tail} beyond 3 deviations"
        );
    }
}

#[test]
fn integers_are_uniform_and_keep_their_bounds() {
    let mut rng = Rng::new(5);
    let t = Tensor::randint(-3, 7, [MANY], device(), &mut rng).unwrap();
    let mut counts = [0; 10];
    values(&t)
        .iter()
        .for_each(|v| counts[(v + 3.0) as usize] += 1);
    assert!(chi_square(&counts).abs() < 4.0);
    let wide = Tensor::randint(i64::MIN, i64::MAX, [1000], device(), &mut rng).unwrap();
    let negative = wide
        .to_vec::<i64>()
        .unwrap()
        .iter()
        .filter(|v| **v < 0)
        .count();
    assert!((420..580).contains(&negative), "{negative}");
    let only = Tensor::randint(4, 5, [9], device(), &mut rng).unwrap();
    assert_eq!(only.to_vec::<i64>().unwrap(), [4; 9]);
    assert_eq!(
        Tensor::randint(2, 2, [1], device(), &mut rng).unwrap_err(),
        Error::InvalidArgument {
            op: "randint",
            reason: "no integer is in 2 .. 2".into()
        }
    );
}

#[test]
fn bernoulli_hits_as_often_as_asked() {
    let mut rng = Rng::new(6);
    for p in [0.0, 1e-3, 0.3, 0.5, 0.9, 1.0] {
        let t = Tensor::bernoulli(p, [MANY], DType::F32, device(), &mut rng).unwrap();
        let share = mean(&values(&t));
        let deviation = (p * (1.0 - p) / MANY as f64).sqrt();
        assert!((share - p).abs() <= 4.5 * deviation, "{p}: {share}");
    }
    for p in [-0.1, 1.1, f64::NAN] {
        assert!(Tensor::bernoulli(p, [1], DType::U8, device(), &mut rng).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn dropout_keeps_what_its_mask_says(seed: u64) {
        let mut test = TestRng::new(seed);
        let shape = test.shape(3, 12);
        for dtype in FLOATS {
            let p = [0.0, 0.25, 0.5, 1.0][test.below(4)];
            let x = test.tensor(&shape, dtype, (0.5, 2.0));
            let (out, mask) = x.dropout(p, &mut Rng::new(seed)).unwrap();
            prop_assert_eq!(mask.dtype(), DType::Bool);
            let m = values(&mask);
            let kept = |v: &[f64]| -> Vec<f64> {
                v.iter().zip(&m).map(|(v, m)| if *m != 0.0 { v / (1.0 - p) } else { 0.0 }).collect()
            };
            prop_assert!(p > 0.0 || m.iter().all(|m| *m == 1.0));
            prop_assert!(p < 1.0 || m.iter().all(|m| *m == 0.0));
            assert_close(&out, &shape, &kept(&values(&x)), tolerance(dtype, 2.0), "dropout");
            let grad = test.tensor(&shape, dtype, (-1.0, 1.0));
            let back = grad.dropout_backward(&mask, p).unwrap();
            let bytes = mask.cast(DType::U8).unwrap();
            assert_same(&grad.dropout_backward(&bytes, p).unwrap(), &back, "a mask of u8");
            assert_close(&back, &shape, &kept(&values(&grad)), tolerance(dtype, 2.0), "backward");
        }
    }

    #[test]
    fn what_is_drawn_depends_on_seed_and_calls_alone(seed: u64) {
        let mut test = TestRng::new(seed);
        let n = 1 + test.below(70_000);
        for dtype in FLOATS {
            let draw = |threads| cpu::with_threads(threads, || {
                let mut rng = Rng::new(seed);
                let first = Tensor::randn([n], dtype, device(), &mut rng).unwrap();
                (first, Tensor::rand([3], dtype, device(), &mut rng).unwrap(), rng.state())
            });
            let (a, b) = (draw(1), draw(3));
            assert_same(&a.0, &b.0, "randn");
            assert_same(&a.1, &b.1, "rand");
            prop_assert_eq!(a.2, b.2);
            // A longer draw starts with a shorter one.
            let longer = Tensor::randn([n + 9], dtype, device(), &mut Rng::new(seed)).unwrap();
            let start = longer.narrow(0, 0, n / 2 * 2).unwrap();
            assert_same(&start, &a.0.narrow(0, 0, n / 2 * 2).unwrap(), "prefix");
        }
    }

    #[test]
    fn permutations_hold_every_number_once(seed: u64) {
        let mut rng = Rng::new(seed);
        let n = (seed % 500) as usize;
        let mut order = rng.permutation(n).unwrap();
        let drawn = Tensor::randperm(n, device(), &mut Rng::new(seed)).unwrap();
        let same: Vec<usize> =
            drawn.to_vec::<i64>().unwrap().into_iter().map(|v| v as usize).collect();
        prop_assert_eq!(&order, &same);
        order.sort_unstable();
        prop_assert_eq!(order, (0..n).collect::<Vec<_>>());
    }
}

#[test]
fn a_permutation_beyond_all_memory_is_refused() {
    for len in [usize::MAX, isize::MAX as usize / 4, 1 << 59] {
        let e = Rng::new(0).permutation(len).unwrap_err();
        assert!(e.to_string().contains(&format!("len is {len}")), "{e}");
    }
}

#[test]
fn permutations_are_equally_likely() {
    let mut rng = Rng::new(9);
    let mut counts = [0; 24];
    for _ in 0..24_000 {
        let p = rng.permutation(4).unwrap();
        // The rank of the permutation among the 24.
        let rank = (0..4).fold(0, |rank, i| {
            rank * (4 - i) + p[i + 1..].iter().filter(|v| **v < p[i]).count()
        });
        counts[rank] += 1;
    }
    assert!(chi_square(&counts).abs() < 4.0, "{counts:?}");
}

#[test]
fn streams_are_distinct_and_states_resume() {
    let root = Rng::new(1);
    let mut keys: Vec<[u64; 2]> = (0..1000).map(|i| root.fold_in(i).state()).collect();
    let mut other = root.clone();
    keys.extend((0..1000).map(|_| other.split().state()));
    keys.push(root.state());
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 2001);
    assert_eq!(
        other.fold_in(7),
        root.fold_in(7),
        "whatever was read before"
    );
    assert_ne!(root.fold_in(1).fold_in(2), root.fold_in(2).fold_in(1));

    // Two streams are not correlated.
    let draw =
        |i| values(&Tensor::randn([MANY], DType::F32, device(), &mut root.fold_in(i)).unwrap());
    let products: Vec<f64> = draw(0).iter().zip(draw(1)).map(|(a, b)| a * b).collect();
    assert!(mean(&products).abs() < 4.5 / (MANY as f64).sqrt());

    let mut rng = Rng::new(3);
    Tensor::rand([10], DType::F32, device(), &mut rng).unwrap();
    let mut resumed = Rng::from_state(rng.state());
    assert_eq!(rng.next_u64(), resumed.next_u64());
    assert_eq!(rng.uniform(), resumed.uniform());
}

#[test]
fn errors_name_the_operation() {
    let mut rng = Rng::new(0);
    let e = Tensor::randn([1], DType::I64, device(), &mut rng).unwrap_err();
    assert_eq!(
        e,
        Error::UnsupportedDType {
            op: "randn",
            dtype: DType::I64
        }
    );
    let x = Tensor::ones([2, 3], DType::F32, device()).unwrap();
    let message = x.dropout(1.5, &mut rng).unwrap_err().to_string();
    assert_eq!(message, "dropout: 1.5 is no probability");
    let mask = Tensor::ones([3, 2], DType::U8, device()).unwrap();
    let message = x.dropout_backward(&mask, 0.5).unwrap_err().to_string();
    assert!(
        message.contains("dropout_backward: shapes [2, 3] and [3, 2]"),
        "{message}"
    );
    assert_eq!(
        x.dropout_backward(&x, 0.5).unwrap_err(),
        Error::WrongDType {
            op: "dropout_backward",
            operand: "the mask",
            wanted: DType::Bool,
            found: DType::F32
        }
    );
}
