//! The running statistics of batch normalisation.

use super::cpu::batch_norm as cpu;
use crate::storage::{On, on, out};
use crate::{DType, Error, Result, Tensor};

/// How far running statistics move towards those of a new batch.
#[derive(Clone, Copy, Debug)]
pub enum BatchNormMomentum<'a> {
    /// By this share of the way.
    Share(f64),
    /// By one part in so many: an `I64` of one element counts the batches, this one among them. So
    /// the statistics are the means over all batches. The count stays on its device.
    Cumulative(&'a Tensor),
}

impl Tensor {
    /// Running statistics, `[mean, variance]`, after a batch with the statistics `batch` of
    /// [`batch_norm`](Tensor::batch_norm): `running · (1 − m) + batch · m`, where the batch's
    /// variance is first made the unbiased one of `elements` elements per channel. They keep their
    /// type.
    ///
    /// ```
    /// use phalanx_tensor::ops::norm::BatchNormMomentum;
    /// use phalanx_tensor::{Device, Tensor};
    ///
    /// let stat = |x: f32| Tensor::from_slice(&[x], [1], Device::cpu(0));
    /// let (running, batch) = ([stat(0.0)?, stat(1.0)?], [stat(4.0)?, stat(1.0)?]);
    /// let (running, batch) = (running.each_ref(), batch.each_ref());
    /// let [mean, var] = Tensor::batch_norm_track(running, batch, 2, BatchNormMomentum::Share(0.5))?;
    /// assert_eq!((mean.item::<f64>()?, var.item::<f64>()?), (2.0, 1.5));
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for fewer than two elements, which have no unbiased variance;
    /// statistics of other shapes or devices, or of no float type; a count that is not one `I64`.
    pub fn batch_norm_track(
        running: [&Tensor; 2],
        batch: [&Tensor; 2],
        elements: usize,
        momentum: BatchNormMomentum<'_>,
    ) -> Result<[Tensor; 2]> {
        const OP: &str = "batch_norm_track";
        if elements < 2 {
            return Err(Error::InvalidArgument {
                op: OP,
                reason: format!("{elements} elements per channel have no unbiased variance"),
            });
        }
        for (running, batch) in running.into_iter().zip(batch) {
            running.expect_float(OP)?;
            batch.expect_float(OP)?;
            running.expect_same_device(OP, batch)?;
            running.expect_same_shape(OP, batch, "there must be one of each for a channel")?;
        }
        let count = match momentum {
            BatchNormMomentum::Share(_) => None,
            BatchNormMomentum::Cumulative(count) => Some(count),
        };
        if let Some(count) = count {
            running[0].expect_same_device(OP, count)?;
            count.expect_operand(OP, "the count of batches", DType::I64)?;
            if count.numel() != 1 {
                return Err(Error::InvalidShape {
                    op: OP,
                    shape: count.shape().clone(),
                    reason: "the count of batches must have one element".into(),
                });
            }
        }
        let like = |t: &Tensor| Tensor::allocate(OP, t.shape().clone(), t.dtype(), t.device());
        let (mut mean, mut var) = (like(running[0])?, like(running[1])?);
        let results = (out(&mut mean), out(&mut var));
        match on(OP, (&running[..], &batch[..], count, results))? {
            On::Cpu((running, batch, _, results)) => {
                cpu::track(OP, running, batch, elements, momentum, results)?;
            }
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (running, batch, _, results)) => {
                let lane = &mut lane;
                super::cuda::track::track(lane, running, batch, elements, momentum, results)?;
            }
        }
        Ok([mean, var])
    }
}
