//! [`PowerSgd`]: gradients that are matrices travel as products of two thin ones.

mod config;
mod orthonormal;
mod rounds;

pub use config::PowerSgdConfig;

use super::hook::{CommHook, Completion, GradBucket};
use crate::Result;
use phalanx_comm::{ProcessGroup, ReduceOp};
use phalanx_tensor::Tensor;
use rounds::{Compressed, Matrix, Whole};
use std::sync::{Arc, Mutex, MutexGuard};

/// Sends each gradient that is a matrix as the product of two thin ones, and keeps what that loses for the next step
/// (Vogels, Karimireddy and Jaggi, *PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization*,
/// NeurIPS 2019; PyTorch: `powerSGD_hook`).
///
/// A gradient *M* of shape *n* × *m* (the first dimension by all others) becomes *P Qᵀ*, where *P* has
/// *r* = [`rank`](PowerSgdConfig::rank) columns: *P* is the sum of *M Q* over the ranks, made orthonormal, and the
/// next *Q* the sum of *Mᵀ P*, made orthonormal before it is used. This is a step of the power iteration, which
/// starts from the *Q* of the step before.
/// What the product lacks of *M* stays on the rank, and is added to its next gradient (error feedback), so that all
/// of it arrives in the end. Gradients with fewer than two dimensions, and matrices for which it does not
/// [pay](PowerSgdConfig::pays), are averaged as they are.
///
/// # What it costs
/// Each rank sends *r*(*n* + *m*) elements for a matrix instead of *n m*: for 4096 × 4096 in `f32` and a rank of 4,
/// 128 KiB instead of 64 MiB. A bucket travels in two collectives: *P* with all that is not compressed while the sweep
/// runs, *Q* after it, while other buckets still compute. The work is three products of some 2 *n m r* operations,
/// and some 50 *r* small kernels for each matrix, which make *P* and *Q*
/// orthonormal. It pays where the links are slow, not within a machine. Each rank
/// keeps as much memory as the compressed gradients have, and as much again of *Q* as it sends.
///
/// # What it changes
/// Averages are not exact: a training wants other settings, and sees the exact average for its first
/// [`start_step`](PowerSgdConfig::start_step) steps. All ranks get the same average to the bit. It is the sum of all
/// gradients, less what the ranks still keep:
/// a gradient that is not a number stays kept, and so in all averages to come; look for it before `backward`.
/// [`backward_weighted`](crate::Ddp::backward_weighted) and [`join`](crate::Ddp::join) work: what a rank keeps has the
/// weight of the step that it comes from, and a rank that has no more data still hands it out.
///
/// What is kept belongs to one [`GradReducer`](crate::GradReducer) on one rank, and is in no checkpoint: a training that
/// goes on from one starts with nothing kept, and from a random *Q* again.
///
/// # Where it differs from PyTorch
/// - *P* and what is not compressed are one collective; PyTorch has two.
/// - Nothing divides by zero, so there is no `orthogonalization_epsilon`: a direction in which *M* has nothing counts as
///   zero, and the next step tries a random one instead, so that a gradient that was zero once does not stay so.
/// - What is not compressed has no error, and is summed as without a hook. (PyTorch keeps the difference of this rank's
///   gradient and the average, which adds up to zero over the ranks.)
/// - Compression may start in the first step: buckets are planned before anything is sent.
///
/// ```
/// use phalanx_autograd::{Tape, nn::{Factory, Linear, Module}, optim::{Optimizer, Sgd, SgdConfig}};
/// use phalanx_comm::launch;
/// use phalanx_parallel::{Ddp, DdpConfig, PowerSgd, PowerSgdConfig};
/// use phalanx_tensor::{DType, Device, Tensor};
/// use std::sync::Arc;
///
/// let hook = PowerSgd::new(PowerSgdConfig { rank: 2, start_step: 1, ..Default::default() })?;
/// let config = DdpConfig { hook: Some(Arc::new(hook)), ..Default::default() };
/// let losses = launch(2, |group| -> phalanx_parallel::Result<Vec<f64>> {
///     let device = Device::cpu(group.rank());
///     let model = Linear::new(32, 16, &mut Factory::new(device, 0))?;
///     let ddp = Ddp::new(model, group.clone(), config.clone())?;
///     let mut sgd = Sgd::new(ddp.parameters(), SgdConfig { lr: 0.02, ..Default::default() })?;
///     let x = Tensor::full([8, 32], 1.0 + group.rank() as f64, DType::F32, device)?;
///     let mut losses = Vec::new();
///     for _ in 0..5 {
///         let tape = Tape::new();
///         let loss = ddp.forward(&tape, &tape.constant(x.clone()))?.square()?.mean_all()?;
///         sgd.step(&ddp.backward(&tape, &loss)?)?; // 2 (16 + 32) elements of the weight instead of 512
///         losses.push(loss.value().item::<f64>()?);
///     }
///     ddp.check_replicas()?; // compressed, but equal
///     Ok(losses)
/// })?;
/// assert!(losses.iter().all(|of_rank| of_rank[4] < of_rank[0]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PowerSgd {
    config: PowerSgdConfig,
    /// By bucket: what the last step has left. A completion has it while its step is under way.
    kept: Arc<Mutex<Vec<Kept>>>,
}

/// What a bucket keeps from step to step.
#[derive(Debug, Default)]
struct Kept {
    /// How many steps it has left in.
    steps: u64,
    /// By compressed matrix, in order; none before the first compressed step.
    memories: Vec<Memory>,
}

/// What a compressed matrix keeps.
#[derive(Debug, Default)]
struct Memory {
    /// What this rank's gradients have and the averages lack so far: `[n, m]`.
    error: Option<Tensor>,
    /// The last *Qᵀ*: `[r, m]`.
    q: Option<Tensor>,
    /// The random *Qᵀ* of the start, which takes the place of rows that are zero.
    start: Option<Tensor>,
}

impl PowerSgd {
    /// A hook that has kept nothing yet.
    ///
    /// # Errors
    /// [`Error::InvalidUse`](crate::Error::InvalidUse) for a rank of 0, and for a rate that is negative or not finite.
    pub fn new(config: PowerSgdConfig) -> Result<PowerSgd> {
        config.check()?;
        Ok(PowerSgd::of_checked(config))
    }

    fn of_checked(config: PowerSgdConfig) -> PowerSgd {
        PowerSgd {
            config,
            kept: Arc::default(),
        }
    }

    /// How it compresses.
    pub fn config(&self) -> &PowerSgdConfig {
        &self.config
    }
}

fn lock(kept: &Mutex<Vec<Kept>>) -> MutexGuard<'_, Vec<Kept>> {
    // What a panic has left half done, the reducer's poison tells.
    kept.lock().unwrap_or_else(|e| e.into_inner())
}

impl CommHook for PowerSgd {
    fn fresh(&self) -> Option<Arc<dyn CommHook>> {
        Some(Arc::new(PowerSgd::of_checked(self.config)))
    }

    fn start(
        &self,
        group: &Arc<dyn ProcessGroup>,
        bucket: GradBucket<'_>,
    ) -> Result<Box<dyn Completion>> {
        let (step, memories) = {
            let mut kept = lock(&self.kept);
            if kept.len() <= bucket.index {
                kept.resize_with(bucket.index + 1, Kept::default);
            }
            let kept = &mut kept[bucket.index];
            kept.steps += 1;
            (kept.steps - 1, std::mem::take(&mut kept.memories))
        };
        let compressed = bucket.slots.iter().zip(bucket.parameters);
        let compressed = compressed.map(|(slot, param)| {
            let (n, m) = self.config.compresses(param.shape())?;
            Some(Matrix::new(slot.offset, n, m, self.config.rank_of(n, m)))
        });
        let compressed: Vec<Option<Matrix>> = compressed.collect();
        let none = compressed.iter().all(Option::is_none);
        if step < self.config.start_step || none {
            let work = group.all_reduce(bucket.buffer, ReduceOp::Sum)?;
            return Ok(Box::new(Whole(work)));
        }
        let plan = rounds::Plan {
            config: self.config,
            step,
            kept: Arc::clone(&self.kept),
        };
        Ok(Box::new(Compressed::start(
            plan, group, bucket, compressed, memories,
        )?))
    }

    fn name(&self) -> String {
        format!("PowerSgd {:?}", self.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reduce::bucket::Slot;
    use phalanx_autograd::Param;
    use phalanx_comm::launch;
    use phalanx_tensor::{DType, Device, Rng};

    /// A bucket of one matrix and of one vector behind it.
    fn bucket<'a>(buffer: Tensor, params: &'a [Param], slots: &'a [Slot]) -> GradBucket<'a> {
        GradBucket {
            index: 0,
            is_last: true,
            parameters: params,
            buffer,
            slots,
        }
    }

    fn sum_of(numbers: &mut Vec<f64>, tensor: &Tensor) {
        let more = tensor.to_vec::<f64>().unwrap();
        numbers.resize(more.len(), 0.0);
        numbers.iter_mut().zip(more).for_each(|(n, m)| *n += m);
    }

    #[test]
    fn averages_and_what_is_kept_are_all_gradients() {
        const RANKS: usize = 3;
        let ends = launch(RANKS, |group| -> Result<_> {
            let device = Device::cpu(group.rank());
            let hook = PowerSgd::new(PowerSgdConfig {
                rank: 2,
                start_step: 2,
                min_compression_rate: 1.0,
                ..Default::default()
            })?;
            let shapes: [&[usize]; 2] = [&[8, 2, 5], &[3]];
            let params =
                shapes.map(|shape| Param::new(Tensor::zeros(shape, DType::F64, device).unwrap()));
            let slot = |param, offset, numel| Slot {
                param,
                offset,
                numel,
            };
            let slots = [slot(0, 0, 80), slot(1, 128, 3)];
            let mut rng = Rng::new(group.rank() as u64);
            let (mut sent, mut got) = (Vec::new(), Vec::new());
            for step in 0..7 {
                let mut buffer = Tensor::zeros([131], DType::F64, device)?;
                for slot in &slots {
                    let random = Tensor::randn([slot.numel], DType::F64, device, &mut rng)?;
                    buffer.write_at(slot.offset, &random)?;
                }
                sum_of(&mut sent, &buffer);
                let mut completion = hook.start(&group, bucket(buffer, &params, &slots))?;
                completion.proceed()?;
                let average = completion.finish()?;
                sum_of(&mut got, &average);
                let between = average.narrow(0, 80, 48)?.to_vec::<f64>()?;
                assert!(
                    between.iter().all(|&x| x == 0.0),
                    "step {step}: {between:?}"
                );
            }
            let kept = lock(&hook.kept);
            let [Memory { error, q, .. }] = &kept[0].memories[..] else {
                panic!("one matrix is compressed: {kept:?}");
            };
            assert_eq!(q.as_ref().map(Tensor::dims), Some(&[2, 10][..]));
            let error = error.as_ref().unwrap().to_vec::<f64>()?;
            Ok((sent, got, error))
        });
        let ends = ends.unwrap();
        let mut large = 0;
        for i in 0..131 {
            let sent: f64 = ends.iter().map(|(sent, ..)| sent[i]).sum();
            let kept: f64 = ends.iter().filter_map(|(.., error)| error.get(i)).sum();
            let got = ends[0].1[i];
            assert!(
                (got + kept - sent).abs() < 1e-12,
                "{i}: {got} + {kept}, {sent}"
            );
            large += usize::from(kept.abs() > 0.1);
        }
        assert!(large > 40, "something is kept: {large}");
    }

    #[test]
    fn each_reducer_has_a_hook_of_its_own() {
        let hook = PowerSgd::new(PowerSgdConfig::default()).unwrap();
        lock(&hook.kept).push(Kept::default());
        let fresh = hook.fresh().unwrap();
        assert_eq!(fresh.name(), hook.name());
        assert!(hook.name().contains("rank: 1"), "ranks compare its numbers");
    }
}
