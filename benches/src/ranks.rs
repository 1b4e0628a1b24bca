//! Ranks for a measurement: threads of this process, and what they agree on.

use std::sync::Arc;

use anyhow::Result;
use phalanx_comm::{LaunchConfig, ProcessGroup, ReduceOp};
use phalanx_tensor::{Device, Tensor};

/// Runs `work` on `ranks` threads, the first of them on the device `first`; what each returned, in rank order.
///
/// # Errors
/// A rank failed.
pub fn launch<T: Send>(
    ranks: usize,
    first: Device,
    work: impl Fn(Arc<dyn ProcessGroup>) -> Result<T> + Send + Sync,
) -> Result<Vec<T>> {
    Ok(phalanx_comm::launch(
        LaunchConfig::new(ranks).device(first),
        work,
    )?)
}

/// The largest of the ranks' `seconds`, on every rank.
///
/// # Errors
/// The group has failed.
pub fn slowest(group: &dyn ProcessGroup, seconds: f64) -> Result<f64> {
    let mine = Tensor::scalar(seconds, group.device())?;
    Ok(group
        .all_reduce(mine, ReduceOp::Max)?
        .wait()?
        .item::<f64>()?)
}

/// The sum of the ranks' `counts`, on every rank.
///
/// # Errors
/// The group has failed.
pub fn sum(group: &dyn ProcessGroup, count: usize) -> Result<usize> {
    let mine = Tensor::from_slice(&[count as i64], [1], group.device())?;
    let all = group.all_reduce(mine, ReduceOp::Sum)?.wait()?;
    Ok(usize::try_from(all.to_vec::<i64>()?[0])?)
}
