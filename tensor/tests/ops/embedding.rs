//! Embedding against plain loops.

use crate::util::*;
use phalanx_tensor::{DType, Device, Error, Tensor, cpu};

fn ids(rng: &mut TestRng, shape: &[usize], entries: usize) -> (Tensor, Vec<usize>) {
    let n = shape.iter().product();
    let ids: Vec<usize> = (0..n).map(|_| rng.below(entries)).collect();
    let values: Vec<f64> = ids.iter().map(|&i| i as f64).collect();
    (
        tensor_of(&values, shape, [DType::I64, DType::I32][n % 2]),
        ids,
    )
}

#[test]
fn rows_come_out_by_id_and_gradients_go_back() {
    let mut rng = TestRng::new(21);
    for _ in 0..100 {
        let (entries, width) = (1 + rng.below(12), rng.below(20));
        let shape = rng.shape(3, 5);
        let (t, plain) = ids(&mut rng, &shape, entries);
        let out_shape: Vec<usize> = shape.iter().copied().chain([width]).collect();
        for dtype in DType::ALL {
            let table = rng.tensor(&[entries, width], dtype, (0.0, 100.0));
            let v = values(&table);
            let expected: Vec<f64> = plain
                .iter()
                .flat_map(|&i| v[i * width..][..width].to_vec())
                .collect();
            assert_close(
                &table.embedding(&t).unwrap(),
                &out_shape,
                &expected,
                0.0,
                "forward",
            );
        }
        for dtype in FLOATS {
            let grad = rng.tensor(&out_shape, dtype, (-1.0, 1.0));
            let g = values(&grad);
            let mut expected = vec![0.0; entries * width];
            for (row, &i) in plain.iter().enumerate() {
                (0..width).for_each(|c| expected[i * width + c] += g[row * width + c]);
            }
            let actual = grad.embedding_backward(&t, entries).unwrap();
            assert_eq!(actual.dtype(), dtype);
            // Onto what is there, which stays where it is.
            let old = rng.tensor(&[entries, width], computed(dtype), (-1.0, 1.0));
            let mut sum = old.copy().unwrap();
            let at = sum.address();
            grad.embedding_backward_into(&t, &mut sum).unwrap();
            assert_eq!((sum.dtype(), sum.address()), (computed(dtype), at));
            let both: Vec<f64> = expected
                .iter()
                .zip(values(&old))
                .map(|(e, o)| e + o)
                .collect();
            let tol = tolerance(computed(dtype), 256.0);
            assert_close(&sum, &[entries, width], &both, tol, "added backward");
            assert_close(
                &actual,
                &[entries, width],
                &expected,
                tolerance(dtype, 256.0),
                "backward",
            );
        }
    }
}

#[test]
fn a_half_type_sums_a_repeated_id_in_f32() {
    let ids = Tensor::zeros([1000], DType::I64, device()).unwrap();
    let grad = Tensor::ones([1000, 1], DType::BF16, device()).unwrap();
    // Summed in bf16 it would stop at 256.
    assert_eq!(values(&grad.embedding_backward(&ids, 1).unwrap()), [1000.0]);
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut rng = TestRng::new(22);
    let (t, _) = ids(&mut rng, &[3000], 900);
    let grad = rng.tensor(&[3000, 200], DType::F32, (-1.0, 1.0));
    let run = || grad.embedding_backward(&t, 900).unwrap();
    let alone = cpu::with_threads(1, run);
    for threads in [2, 5] {
        assert_same(&alone, &cpu::with_threads(threads, run), "threads");
    }
}

#[test]
fn misuse_is_named() {
    let table = Tensor::zeros([4, 2], DType::F32, device()).unwrap();
    let of = |ids: &[i64]| Tensor::from_slice(ids, [ids.len()], device()).unwrap();
    for index in [4, -1] {
        assert_eq!(
            out_of_range(table.embedding(&of(&[0, index]))),
            Error::IndexOutOfRange {
                op: "embedding",
                index,
                extent: 4,
                late: matches!(device(), Device::Cuda(_))
            }
        );
    }
    assert!(matches!(
        table.embedding(&table),
        Err(Error::WrongDType {
            op: "embedding",
            ..
        })
    ));
    let row = table.select(0, 0).unwrap();
    assert!(matches!(
        row.embedding(&of(&[0])),
        Err(Error::InvalidShape { .. })
    ));
    assert!(matches!(
        table.embedding_backward(&of(&[0]), 4),
        Err(Error::ShapeMismatch {
            op: "embedding_backward",
            ..
        })
    ));
}
