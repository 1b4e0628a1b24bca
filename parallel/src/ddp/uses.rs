//! Which parameters any rank uses: counted beside the gradients, in the same step.

use super::bucket::Bucket;
use crate::Result;
use phalanx_comm::{ProcessGroup, ReduceOp, Work};
use phalanx_tensor::{DType, Tensor};

/// The count of one step, on its way.
pub(super) enum Uses {
    /// Of a group of one rank, which knows already: nothing is sent, and nothing read from its device.
    Own(Vec<bool>),
    /// Behind the gradients of this bucket, an element for each parameter of the module: 1 from a
    /// rank that uses it, 0 from the others. Their sum, or their mean, is above 0 if anybody does.
    Within(usize),
    /// In a small collective of its own.
    Apart(Work<Tensor>),
}

impl Uses {
    /// Starts the count. It adds no collective where some bucket of the plan is copied together
    /// anyway; otherwise gradients travel in place, and a small collective is cheaper than a copy
    /// of them. `apart`, too, for hooks, which may do to a bucket what they like. All ranks decide
    /// alike.
    pub(super) fn start(
        plan: &[Bucket],
        used: &[bool],
        apart: bool,
        group: &dyn ProcessGroup,
    ) -> Result<Uses> {
        if group.size() == 1 {
            return Ok(Uses::Own(used.to_vec()));
        }
        let carrier = plan.iter().position(|bucket| !bucket.is_single());
        if let Some(bucket) = carrier.filter(|_| !apart) {
            return Ok(Uses::Within(bucket));
        }
        let counts: Vec<i64> = used.iter().map(|&u| i64::from(u)).collect();
        let counts = Tensor::from_vec(counts, used.len(), group.device())?;
        Ok(Uses::Apart(group.all_reduce(counts, ReduceOp::Sum)?))
    }

    /// Whether bucket `b` carries the count.
    pub(super) fn are_within(&self, b: usize) -> bool {
        matches!(self, Uses::Within(carrier) if *carrier == b)
    }

    /// Waits for the count: for each parameter, whether any rank uses it. `reduced` are the buckets
    /// of `plan`.
    pub(super) fn wait(self, plan: &[Bucket], reduced: &[Tensor]) -> Result<Vec<bool>> {
        Ok(match self {
            Uses::Own(used) => used,
            Uses::Within(b) => read(&reduced[b], plan[b].len)?,
            Uses::Apart(work) => {
                let counts = work.wait()?.to_vec::<i64>()?;
                counts.into_iter().map(|count| count > 0).collect()
            }
        })
    }
}

/// Writes this rank's part of the count behind the gradients, from element `start` on, where all is
/// zero.
pub(super) fn write(flat: &mut Tensor, start: usize, used: &[bool]) -> phalanx_tensor::Result<()> {
    let counts: Vec<f64> = used.iter().map(|&used| f64::from(u8::from(used))).collect();
    let counts = Tensor::from_vec(counts, used.len(), flat.device())?;
    flat.write_at(start, &counts.cast(flat.dtype())?)
}

/// What [`write`] left, once it is reduced.
fn read(flat: &Tensor, start: usize) -> phalanx_tensor::Result<Vec<bool>> {
    let counts = flat
        .narrow(0, start, flat.numel() - start)?
        .cast(DType::F64)?;
    let counts = counts.to_vec::<f64>()?.into_iter();
    Ok(counts.map(|count| count > 0.0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_comm::launch;
    use phalanx_tensor::DType;

    #[test]
    fn a_single_user_counts_in_every_float_type_and_reduction() {
        const RANKS: usize = 8;
        let ends = launch(RANKS, |group| -> Result<()> {
            let mine: Vec<bool> = (0..=RANKS).map(|param| param == group.rank()).collect();
            for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
                for op in [ReduceOp::Avg, ReduceOp::Sum] {
                    let mut flat = Tensor::full([3 + mine.len()], 0.0, dtype, group.device())?;
                    write(&mut flat, 3, &mine)?;
                    let found = read(&group.all_reduce(flat, op)?.wait()?, 3)?;
                    let wanted: Vec<bool> = (0..=RANKS).map(|param| param < RANKS).collect();
                    assert_eq!(found, wanted, "{dtype} {op}");
                }
            }
            Ok(())
        });
        ends.unwrap();
    }
}
