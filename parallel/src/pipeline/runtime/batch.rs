//! From a batch to microbatches: rows in order, the first ones a row longer where the numbers do not divide.

use crate::{Error, Result};
use phalanx_tensor::Tensor;

/// The rows of each microbatch, the batch's own first axis being cut (PyTorch: `tensor_split`).
pub(super) fn cut(
    what: &'static str,
    batch: &[Tensor],
    microbatches: usize,
) -> Result<Vec<Vec<Tensor>>> {
    let wrong = |reason: String| Error::InvalidUse {
        op: "Pipeline::step",
        reason,
    };
    let mut rows = None;
    for tensor in batch {
        let Some(&n) = tensor.dims().first() else {
            return Err(wrong(format!(
                "the {what} {tensor:?} have no rows to be cut into microbatches"
            )));
        };
        if *rows.get_or_insert(n) != n {
            let other = batch[0].shape();
            let shape = tensor.shape();
            return Err(wrong(format!(
                "the {what} have the shapes {other} and {shape}, whose rows differ"
            )));
        }
    }
    let Some(rows) = rows else {
        return Ok(vec![Vec::new(); microbatches]);
    };
    if rows < microbatches {
        return Err(wrong(format!(
            "the {what} have {rows} rows, which are fewer than the {microbatches} microbatches of the plan"
        )));
    }
    let (each, more) = (rows / microbatches, rows % microbatches);
    let mut start = 0;
    let mut out = Vec::with_capacity(microbatches);
    for microbatch in 0..microbatches {
        let len = each + usize::from(microbatch < more);
        let cut = batch
            .iter()
            .map(|tensor| tensor.narrow(0, start, len)?.contiguous());
        out.push(cut.collect::<Result<Vec<_>, _>>()?);
        start += len;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_tensor::Device;

    fn rows(n: usize) -> Tensor {
        let values: Vec<i64> = (0..n as i64).collect();
        Tensor::from_vec(values, n, Device::cpu(0)).unwrap()
    }

    #[test]
    fn every_row_stands_in_one_microbatch() {
        for (n, m, want) in [
            (8, 4, vec![2; 4]),
            (9, 4, vec![3, 2, 2, 2]),
            (9, 8, vec![2, 1, 1, 1, 1, 1, 1, 1]),
        ] {
            let cut = cut("inputs", &[rows(n)], m).unwrap();
            let lens: Vec<usize> = cut.iter().map(|mb| mb[0].numel()).collect();
            assert_eq!(lens, want);
            let all = cut.iter().flat_map(|mb| mb[0].to_vec::<i64>().unwrap());
            assert!(all.eq(0..n as i64));
        }
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let text = |batch: &[Tensor]| cut("inputs", batch, 4).unwrap_err().to_string();
        assert!(text(&[rows(3)]).contains("3 rows, which are fewer than the 4 microbatches"));
        assert!(text(&[rows(8), rows(9)]).contains("[8] and [9]"));
        assert!(text(&[Tensor::scalar(1.0f32, Device::cpu(0)).unwrap()]).contains("no rows"));
        assert_eq!(cut("inputs", &[], 4).unwrap().len(), 4);
    }
}
