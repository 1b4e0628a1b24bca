//! Orthonormal rows by tensor operations alone, so that nothing waits for the device.

use crate::Result;
use phalanx_tensor::{DType, Tensor};

/// Added to lengths: it changes none but 0, and makes 0 / 0 a 0.
const TINY: f64 = f32::MIN_POSITIVE as f64;

/// The length of each row of `[r, n]`, as `[r, 1]`.
fn lengths(rows: &Tensor) -> Result<Tensor> {
    Ok(rows.square()?.sum(&[1], true)?.sqrt()?)
}

/// Rows `[r, n]` that are orthonormal and span what those of `rows` span (Gram and Schmidt). A row that depends on those
/// before it, up to rounding, becomes zero; where there are `others`, the row of these takes its place, so that as many
/// directions come out as there are rows. NaN stays NaN.
pub(super) fn orthonormal(rows: &Tensor, others: Option<&Tensor>) -> Result<Tensor> {
    let (count, len) = (rows.dims()[0], rows.dims()[1]);
    let rounding = match rows.dtype() {
        DType::F64 => f64::EPSILON,
        _ => f64::from(f32::EPSILON),
    };
    let mut basis = Tensor::empty(rows.shape().clone(), rows.dtype(), rows.device())?;
    for i in 0..count {
        let before = basis.narrow(0, 0, i)?;
        let row = rows.narrow(0, i, 1)?;
        let (unit, length) = freed(&row, &before)?;
        let other = match others {
            Some(others) => freed(&others.narrow(0, i, 1)?, &before)?.0,
            None => Tensor::zeros([1, 1], rows.dtype(), rows.device())?,
        };
        drop(before);
        let depends = length.le(&lengths(&row)?.mul_scalar(8.0 * rounding)?)?;
        basis.write_at(i * len, &Tensor::where_cond(&depends, &other, &unit)?)?;
    }
    Ok(basis)
}

/// What is left of a row without the directions of the orthonormal rows `before`: divided by its length, and that length. It
/// is freed of them twice, without which rows that almost depend on each other would not come out orthogonal.
fn freed(row: &Tensor, before: &Tensor) -> Result<(Tensor, Tensor)> {
    let mut rest = row.clone();
    if before.dims()[0] > 0 {
        for _ in 0..2 {
            let shares = rest.matmul(&before.t()?)?;
            rest = rest.sub(&shares.matmul(before)?)?;
        }
    }
    let length = lengths(&rest)?;
    Ok((rest.div(&length.add_scalar(TINY)?)?, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_tensor::{Device, Rng};

    fn products(basis: &Tensor) -> Vec<f64> {
        let products = basis.matmul(&basis.t().unwrap()).unwrap();
        products.cast(DType::F64).unwrap().to_vec().unwrap()
    }

    #[test]
    fn random_rows_become_orthonormal() {
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-14)] {
            let rows = Tensor::randn([5, 40], dtype, Device::cpu(0), &mut Rng::new(1)).unwrap();
            let found = products(&orthonormal(&rows, None).unwrap());
            for (i, found) in found.iter().enumerate() {
                let wanted = f64::from(i % 6 == 0);
                assert!((found - wanted).abs() < tolerance, "{i}: {found}");
            }
        }
    }

    #[test]
    fn rows_that_almost_depend_come_out_orthogonal() {
        let mut rng = Rng::new(2);
        let device = Device::cpu(0);
        let a = Tensor::randn([1, 300], DType::F32, device, &mut rng).unwrap();
        let noise = Tensor::randn([1, 300], DType::F32, device, &mut rng).unwrap();
        let b = a.add(&noise.mul_scalar(3e-6).unwrap()).unwrap();
        let found = products(&orthonormal(&Tensor::cat(&[&a, &b], 0).unwrap(), None).unwrap());
        assert!(found[1].abs() < 1e-5, "{found:?}");
        assert!((found[3] - 1.0).abs() < 1e-5, "{found:?}");
    }

    #[test]
    fn rows_that_depend_become_zero_and_nan_stays() {
        let device = Device::cpu(0);
        let rows = [3.0f32, 4.0, 6.0, 8.0, 0.0, 0.0];
        let rows = Tensor::from_slice(&rows, [3, 2], device).unwrap();
        let found = orthonormal(&rows, None).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(found, [0.6, 0.8, 0.0, 0.0, 0.0, 0.0]);
        let nan = Tensor::full([1, 2], f64::NAN, DType::F32, device).unwrap();
        let found = orthonormal(&nan, None).unwrap().to_vec::<f32>().unwrap();
        assert!(found.iter().all(|x| x.is_nan()));
    }

    #[test]
    fn a_row_that_depends_is_replaced() {
        let device = Device::cpu(0);
        let others = [5.0f32, 1.0, -7.0, 2.0];
        let others = Tensor::from_slice(&others, [2, 2], device).unwrap();
        // Without a length, a multiple of the first up to rounding, and much smaller than it.
        for second in [[0.0f32, 0.0], [6.0, 8.0], [3e-9, 4e-9]] {
            let rows = [3.0f32, 4.0, second[0], second[1]];
            let rows = Tensor::from_slice(&rows, [2, 2], device).unwrap();
            let found = orthonormal(&rows, Some(&others)).unwrap();
            let found = found.to_vec::<f32>().unwrap();
            for (found, want) in found.iter().zip([0.6, 0.8, -0.8, 0.6]) {
                assert!((found - want).abs() < 1e-6, "{second:?}: {found:?}");
            }
        }
        let rows = Tensor::from_slice(&[3.0f32, 4.0, f32::NAN, 1.0], [2, 2], device).unwrap();
        let found = orthonormal(&rows, Some(&others)).unwrap();
        let found = found.to_vec::<f32>().unwrap();
        assert!(found[2].is_nan(), "{found:?}");
    }
}
