//! Reductions against plain loops over `f64`.

use crate::util::*;
use phalanx_tensor::{DType, Error, Shape, Tensor, cpu};
use proptest::prelude::*;

/// A random set of axes, some counted from the end, and the shape with those axes set to 1.
fn axes(rng: &mut TestRng, shape: &[usize]) -> (Vec<isize>, Vec<usize>) {
    let rank = shape.len();
    let mut axes = Vec::new();
    let mut kept = shape.to_vec();
    for (i, extent) in kept.iter_mut().enumerate() {
        if rng.below(2) == 0 {
            let back = if rng.below(2) == 0 { rank as isize } else { 0 };
            axes.insert(rng.below(axes.len() + 1), i as isize - back);
            *extent = 1;
        }
    }
    (axes, kept)
}

/// For each element of `kept`, the elements of `values` that fall onto it.
fn groups(values: &[f64], shape: &[usize], kept: &[usize]) -> Vec<Vec<f64>> {
    let mut groups = vec![Vec::new(); kept.iter().product()];
    for (flat, v) in values.iter().enumerate() {
        groups[flat_index(&coordinates(flat, shape), kept)].push(*v);
    }
    groups
}

/// `kept` without the axes that were reduced.
fn dropped(axes: &[isize], kept: &[usize]) -> Vec<usize> {
    let rank = kept.len() as isize;
    let gone: Vec<isize> = axes.iter().map(|a| a.rem_euclid(rank)).collect();
    (0..rank)
        .filter(|i| !gone.contains(i))
        .map(|i| kept[i as usize])
        .collect()
}

/// Compensated (Kahan, Babuška, Neumaier): a running sum would be less accurate than what it is to
/// check.
fn sum(g: &[f64]) -> f64 {
    let (mut sum, mut lost) = (0.0f64, 0.0);
    for &v in g {
        let next = sum + v;
        lost += if sum.abs() >= v.abs() {
            (sum - next) + v
        } else {
            (v - next) + sum
        };
        sum = next;
    }
    sum + lost
}

fn mean(g: &[f64]) -> f64 {
    sum(g) / g.len() as f64
}

fn shape(rng: &mut TestRng) -> Vec<usize> {
    let mut shape = rng.shape(4, 5);
    // Now and then one axis is long enough for lanes and for the pairwise tree.
    if !shape.is_empty() && rng.below(3) == 0 {
        let axis = rng.below(shape.len());
        shape[axis] = 10 + rng.below(1500);
    }
    shape
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn floats_reduce_as_a_plain_loop_does(seed: u64) {
        let mut rng = TestRng::new(seed);
        let shape = shape(&mut rng);
        let (axes, kept) = axes(&mut rng, &shape);
        let short = dropped(&axes, &kept);
        for dtype in FLOATS {
            let x = rng.tensor(&shape, dtype, (-1.0, 3.0));
            let groups = groups(&values(&x), &shape, &kept);
            let count = groups.first().map_or(0, Vec::len) as f64;
            if dtype == DType::F16 && 3.0 * count > 65504.0 {
                continue; // the sum may not fit in
            }
            let all = |f: &dyn Fn(&[f64]) -> f64| groups.iter().map(|g| f(g)).collect::<Vec<_>>();
            // The stated bound, with Σ|x| ≤ 3 n, on top of one rounding of the result.
            let bound = (24.0 + count.max(1.0).log2()) * 3.0 * count.max(1.0);
            let tol = |n: f64| tolerance(dtype, n);
            let what = format!("{dtype} {} over {axes:?}", show(&shape));

            let y = x.sum(&axes, true).unwrap();
            assert_close(&y, &kept, &all(&sum), tol(bound), &format!("sum of {what}"));
            let y = x.sum(&axes, false).unwrap();
            assert_close(&y, &short, &all(&sum), tol(bound), &format!("sum of {what}"));
            if count > 0.0 {
                let y = x.mean(&axes, false).unwrap();
                assert_close(&y, &short, &all(&mean), tol(100.0), &format!("mean of {what}"));
                let y = x.max(&axes, true).unwrap();
                let max = |g: &[f64]| g.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                assert_close(&y, &kept, &all(&max), 0.0, &format!("max of {what}"));
                let y = x.min(&axes, false).unwrap();
                let min = |g: &[f64]| g.iter().copied().fold(f64::INFINITY, f64::min);
                assert_close(&y, &short, &all(&min), 0.0, &format!("min of {what}"));
            }
            for correction in [0, 1] {
                if count <= correction as f64 {
                    continue;
                }
                let var = |g: &[f64]| {
                    let m = mean(g);
                    let squares: Vec<f64> = g.iter().map(|v| (v - m).powi(2)).collect();
                    sum(&squares) / (g.len() - correction) as f64
                };
                let y = x.var(&axes, correction, false).unwrap();
                assert_close(&y, &short, &all(&var), tol(400.0), &format!("var of {what}"));
            }
        }
    }

    #[test]
    fn integers_reduce_exactly(seed: u64) {
        let mut rng = TestRng::new(seed);
        let shape = shape(&mut rng);
        let (axes, kept) = axes(&mut rng, &shape);
        for dtype in [DType::I64, DType::I32, DType::U8, DType::Bool] {
            let x = rng.tensor(&shape, dtype, (0.0, 255.9));
            let groups = groups(&values(&x), &shape, &kept);
            let y = x.sum(&axes, true).unwrap();
            prop_assert_eq!(y.dtype(), DType::I64);
            let sums: Vec<f64> = groups.iter().map(|g| sum(g)).collect();
            assert_close(&y, &kept, &sums, 0.0, "sum");
            if groups.first().is_some_and(|g| !g.is_empty()) {
                let y = x.max(&axes, true).unwrap();
                prop_assert_eq!(y.dtype(), dtype);
                let max: Vec<f64> =
                    groups.iter().map(|g| g.iter().copied().fold(0.0, f64::max)).collect();
                assert_close(&y, &kept, &max, 0.0, "max");
            }
        }
    }

    #[test]
    fn the_index_is_that_of_the_first_extremum(seed: u64) {
        let mut rng = TestRng::new(seed);
        let shape = shape(&mut rng);
        prop_assume!(!shape.is_empty() && !shape.contains(&0));
        let axis = rng.below(shape.len());
        let mut kept = shape.clone();
        kept[axis] = 1;
        for dtype in DType::ALL {
            // Few distinct values, so that there are ties.
            let x = rng.tensor(&shape, DType::I64, (0.0, 5.0)).cast(dtype).unwrap();
            let groups = groups(&values(&x), &shape, &kept);
            let first = |better: fn(&f64, &f64) -> bool| -> Vec<f64> {
                let index = |g: &Vec<f64>| {
                    (0..g.len()).fold(0, |best, i| if better(&g[i], &g[best]) { i } else { best })
                };
                groups.iter().map(|g| index(g) as f64).collect()
            };
            let short = dropped(&[axis as isize], &kept);
            let (hi, lo) = (x.argmax(axis as isize).unwrap(), x.argmin(axis as isize).unwrap());
            prop_assert_eq!(hi.dtype(), DType::I64);
            assert_close(&hi, &short, &first(f64::gt), 0.0, "argmax");
            assert_close(&lo, &short, &first(f64::lt), 0.0, "argmin");
        }
    }

    #[test]
    fn sum_to_shape_undoes_broadcasting(seed: u64) {
        let mut rng = TestRng::new(seed);
        let shape = rng.shape(4, 5);
        let below = rng.shape_below(&shape);
        let x = rng.tensor(&shape, DType::F64, (-1.0, 1.0));
        let expected: Vec<f64> =
            groups(&values(&x), &shape, &[vec![1; shape.len() - below.len()], below.clone()].concat())
                .iter()
                .map(|g| sum(g))
                .collect();
        assert_close(&x.sum_to_shape(&*below).unwrap(), &below, &expected, 1e-12, "sum_to_shape");
    }
}

#[test]
fn a_sum_of_many_is_accurate_and_the_same_whatever_the_threads() {
    let mut rng = TestRng::new(11);
    let n = 3_000_017;
    let x = rng
        .tensor(&[n], DType::F32, (0.0, 1.0))
        .contiguous()
        .unwrap();
    let exact = sum(&values(&x));
    let alone = cpu::with_threads(1, || x.sum_all().unwrap());
    let bound = (24.0 + (n as f64).log2()) * rounding(DType::F32) * exact;
    assert!((alone.item::<f64>().unwrap() - exact).abs() <= bound);
    assert!(
        (alone.item::<f64>().unwrap() - exact).abs() <= 1e-6 * exact,
        "far better than the bound"
    );
    for threads in [2, 3, 5] {
        cpu::with_threads(threads, || {
            assert_same(&x.sum_all().unwrap(), &alone, "sum_all");
            let rows = x
                .narrow(0, 0, 3_000_000)
                .unwrap()
                .reshape([1000, 3000])
                .unwrap();
            for axis in [0, 1] {
                let many = rows.sum(&[axis], false).unwrap();
                let one = cpu::with_threads(1, || rows.sum(&[axis], false).unwrap());
                assert_same(&many, &one, "sum over an axis");
            }
        });
    }
    // A naive running sum in f32 stops growing at 2²⁴.
    let ones = Tensor::ones([20_000_000, 1], DType::F32, device()).unwrap();
    assert_eq!(ones.sum(&[0], false).unwrap().item::<f64>().unwrap(), 2e7);
    let ones = Tensor::ones([2_000_000, 10], DType::F32, device()).unwrap();
    assert_eq!(
        ones.sum(&[0], false).unwrap().to_vec::<f32>().unwrap(),
        [2e6; 10]
    );
}

#[test]
fn nan_wins() {
    let nan = f64::NAN;
    for dtype in FLOATS {
        for n in [3, 20, 3000] {
            for at in [0, n / 2, n - 1] {
                let mut v = vec![1.0; n];
                v[at] = nan;
                v[n - 1 - at] = if n - 1 - at == at { nan } else { 2.0 };
                for shape in [[1, n], [n, 1]] {
                    let t = tensor_of(&v, &shape, dtype).broadcast_to(if shape[0] == 1 {
                        [2, n]
                    } else {
                        [n, 2]
                    });
                    let (t, axis) = (t.unwrap(), if shape[0] == 1 { 1 } else { 0 });
                    for t in [t.clone(), t.contiguous().unwrap()] {
                        let both = [nan, nan];
                        assert_close(&t.max(&[axis], false).unwrap(), &[2], &both, 0.0, "max");
                        assert_close(&t.min(&[axis], false).unwrap(), &[2], &both, 0.0, "min");
                        assert_close(&t.sum(&[axis], false).unwrap(), &[2], &both, 0.0, "sum");
                        let index = [at as f64; 2];
                        assert_close(&t.argmax(axis).unwrap(), &[2], &index, 0.0, "argmax");
                        assert_close(&t.argmin(axis).unwrap(), &[2], &index, 0.0, "argmin");
                    }
                }
            }
        }
    }
}

#[test]
fn empty_reductions_are_defined_or_refused() {
    let t = Tensor::zeros([2, 0], DType::F32, device()).unwrap();
    assert_eq!(
        t.sum(&[1], false).unwrap().to_vec::<f32>().unwrap(),
        [0.0, 0.0]
    );
    assert!(
        t.mean(&[1], false)
            .unwrap()
            .to_vec::<f32>()
            .unwrap()
            .iter()
            .all(|v| v.is_nan())
    );
    assert!(t.mean_all().unwrap().item::<f64>().unwrap().is_nan());
    assert_eq!(
        t.max(&[0], false).unwrap().dims(),
        &[0],
        "nothing of nothing"
    );
    assert_eq!(t.sum(&[0], false).unwrap().dims(), &[0]);
    for e in [
        t.max(&[1], false).unwrap_err(),
        t.min(&[0, 1], true).unwrap_err(),
    ] {
        assert!(matches!(e, Error::InvalidShape { .. }), "{e}");
    }
    let message = t.argmax(1).unwrap_err().to_string();
    assert_eq!(
        message,
        "argmax: shape [2, 0] is not usable: there are no elements to choose from"
    );
    let single = Tensor::ones([1, 3], DType::F64, device()).unwrap();
    assert!(single.var(&[0], 1, false).unwrap().to_vec::<f64>().unwrap()[0].is_nan());
}

#[test]
fn errors_name_the_operation() {
    let t = Tensor::zeros([2, 3], DType::I64, device()).unwrap();
    assert_eq!(
        t.sum(&[2], false).unwrap_err(),
        Error::AxisOutOfRange {
            op: "sum",
            axis: 2,
            rank: 2
        }
    );
    let message = t.max(&[0, -2], false).unwrap_err().to_string();
    assert!(message.contains("max: axis 0 appears twice"), "{message}");
    let message = t.mean(&[0], false).unwrap_err().to_string();
    assert!(
        message.contains("mean: not defined for elements of type i64"),
        "{message}"
    );
    assert_eq!(
        t.sum_to_shape([2, 2]).unwrap_err(),
        Error::ShapeMismatch {
            op: "sum_to_shape",
            lhs: Shape::from([2, 3]),
            rhs: Shape::from([2, 2]),
            reason: "the second does not broadcast to the first",
        }
    );
}
