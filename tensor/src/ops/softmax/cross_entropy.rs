//! Cross-entropy: log-softmax and negative log-likelihood in one pass, and the gradient of the
//! logits in another.

use super::cpu;
use crate::ops::index::first_outside;
use crate::storage::Memory;
use crate::{DType, Error, Result, Shape, Tensor, dispatch_float};

/// How the losses of a batch become the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reduction {
    /// One loss for each target.
    None,
    /// The mean over the targets that count, weighted by their class weights.
    #[default]
    Mean,
    /// The sum.
    Sum,
}

/// The options of [`Tensor::cross_entropy`], as in `torch.nn.functional.cross_entropy`.
#[derive(Debug, Clone)]
pub struct CrossEntropyConfig {
    /// How the losses become the result.
    pub reduction: Reduction,
    /// Share of the target's probability that is spread over all classes (Szegedy et al. 2016),
    /// in `0..=1`.
    pub label_smoothing: f64,
    /// Targets of this value do not count.
    pub ignore_index: i64,
    /// A weight for each class, of shape `[classes]`; 1 where there is none.
    pub weight: Option<Tensor>,
}

impl Default for CrossEntropyConfig {
    /// The mean, no smoothing, no weights; −100 is ignored.
    fn default() -> Self {
        CrossEntropyConfig {
            reduction: Reduction::Mean,
            label_smoothing: 0.0,
            ignore_index: -100,
            weight: None,
        }
    }
}

/// What [`Tensor::cross_entropy`] returns.
#[derive(Debug, Clone)]
pub struct CrossEntropyOutput {
    /// The loss: a scalar, or of the targets' shape under [`Reduction::None`]. It is `f32` for half
    /// types, whose sums would overflow (`f16`) or lose their digits.
    pub loss: Tensor,
    /// For the backward pass: the maximum of each row of logits and the logarithm of the sum of
    /// the exponentials above it, `[targets, 2]`.
    pub saved: Tensor,
}

impl Tensor {
    /// The cross-entropy between the softmax of these logits and class indices.
    ///
    /// The logits are `[classes]`, `[batch, classes]` or `[batch, classes, …]`; the targets are
    /// `I64` of the same shape without the class axis. The loss of a target `t` is `−w[t] ·
    /// log_softmax(logits)[t]`; with label smoothing ε it is `1 − ε` of that and `ε / classes` of
    /// the sum of the same over all classes. With [`Reduction::Mean`], a batch without targets, or
    /// whose targets are all ignored, gives NaN, as in PyTorch.
    ///
    /// ```
    /// # use phalanx_tensor::{Device, Tensor, ops::softmax::CrossEntropyConfig};
    /// let logits = Tensor::from_slice(&[0.0f64, 3f64.ln()], [1, 2], Device::cpu(0))?;
    /// let target = Tensor::from_slice(&[1i64], [1], Device::cpu(0))?;
    /// let out = logits.cross_entropy(&target, &CrossEntropyConfig::default())?;
    /// assert!((out.loss.item::<f64>()? + 0.75f64.ln()).abs() < 1e-12);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::IndexOutOfRange`] names a target that is no class; [`Error::ShapeMismatch`],
    /// [`Error::WrongDType`], [`Error::DTypeMismatch`], [`Error::DeviceMismatch`], [`Error::InvalidArgument`] for a
    /// smoothing outside `0..=1`.
    pub fn cross_entropy(
        &self,
        targets: &Tensor,
        config: &CrossEntropyConfig,
    ) -> Result<CrossEntropyOutput> {
        const OP: &str = "cross_entropy";
        let problem = Problem::new(OP, self, targets, config)?;
        let (device, dtype, rows) = (self.device(), self.dtype(), problem.rows);
        let wide = dtype.compute();
        let mut saved = Tensor::allocate(OP, [rows, 2].into(), wide, device)?;
        let shape = match config.reduction {
            Reduction::None => targets.shape().clone(),
            Reduction::Mean | Reduction::Sum => Shape::default(),
        };
        let mut loss = Tensor::allocate(OP, shape, wide, device)?;
        match self.storage().memory() {
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => return Err(s.unsupported(OP)),
            Memory::Cpu(_) => dispatch_float!(OP, dtype, T => {
                cpu::cross_entropy::<T>(&problem, config, &mut saved, &mut loss)?;
            }),
        }
        Ok(CrossEntropyOutput { loss, saved })
    }

    /// The gradient of [`cross_entropy`](Tensor::cross_entropy)'s logits, in one pass over them;
    /// `self` is the gradient of the loss, of the loss's type, `saved` what the forward pass left.
    /// The result has the logits' type.
    ///
    /// # Errors
    /// As [`cross_entropy`](Tensor::cross_entropy).
    pub fn cross_entropy_backward(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        saved: &Tensor,
        config: &CrossEntropyConfig,
    ) -> Result<Tensor> {
        const OP: &str = "cross_entropy_backward";
        let problem = Problem::new(OP, logits, targets, config)?;
        logits.expect_same_device(OP, self)?;
        self.expect_same_kind(OP, saved)?;
        if saved.dtype() != logits.dtype().compute() {
            return Err(Error::DTypeMismatch {
                op: OP,
                lhs: logits.dtype().compute(),
                rhs: saved.dtype(),
            });
        }
        match config.reduction {
            Reduction::None => {
                self.expect_same_shape(OP, targets, "there must be a gradient for each target")?;
            }
            _ if self.numel() == 1 => {}
            _ => {
                return Err(Error::InvalidShape {
                    op: OP,
                    shape: self.shape().clone(),
                    reason: "the gradient of a reduced loss must have one element".into(),
                });
            }
        }
        if saved.dims() != [problem.rows, 2] {
            return Err(Error::InvalidShape {
                op: OP,
                shape: saved.shape().clone(),
                reason: format!(
                    "it must be what the forward pass has saved, [{}, 2]",
                    problem.rows
                ),
            });
        }
        let (shape, dtype) = (problem.logits.shape().clone(), logits.dtype());
        let mut out = Tensor::allocate(OP, shape, dtype, logits.device())?;
        let (grad, saved) = (self.contiguous_for(OP)?, saved.contiguous_for(OP)?);
        match logits.storage().memory() {
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => return Err(s.unsupported(OP)),
            Memory::Cpu(_) => dispatch_float!(OP, dtype, T => {
                cpu::cross_entropy_backward::<T>(&problem, config, &grad, &saved, &mut out)?;
            }),
        }
        match logits.rank() {
            0..=2 => Ok(out),
            rank => {
                let axes: smallvec::SmallVec<[isize; 4]> = std::iter::once(0)
                    .chain(std::iter::once(rank as isize - 1))
                    .chain(1..rank as isize - 1)
                    .collect();
                out.permute(&axes)
            }
        }
    }
}

/// The operands, checked and brought into rows of classes.
pub(super) struct Problem {
    pub(super) op: &'static str,
    pub(super) logits: Tensor,
    pub(super) targets: Tensor,
    rows: usize,
    pub(super) classes: usize,
    pub(super) weight: Option<Tensor>,
}

impl Problem {
    fn new(
        op: &'static str,
        logits: &Tensor,
        targets: &Tensor,
        config: &CrossEntropyConfig,
    ) -> Result<Problem> {
        logits.expect_float(op)?;
        logits.expect_same_device(op, targets)?;
        targets.expect_operand(op, "targets", DType::I64)?;
        let class_axis = usize::from(logits.rank() > 1);
        let mut expected = logits.shape().clone();
        let classes = match logits.rank() {
            0 => {
                return Err(Error::InvalidShape {
                    op,
                    shape: expected,
                    reason: "logits must have a class axis".into(),
                });
            }
            _ => expected.remove(class_axis),
        };
        if *targets.shape() != expected {
            return Err(Error::ShapeMismatch {
                op,
                lhs: logits.shape().clone(),
                rhs: targets.shape().clone(),
                reason: "targets must have the logits' shape without the class axis",
            });
        }
        if !(0.0..=1.0).contains(&config.label_smoothing) {
            return Err(Error::InvalidArgument {
                op,
                reason: format!("label_smoothing {} is not in 0..=1", config.label_smoothing),
            });
        }
        if let Some(weight) = &config.weight {
            logits.expect_same_kind(op, weight)?;
            if weight.dims() != [classes] {
                return Err(Error::ShapeMismatch {
                    op,
                    lhs: logits.shape().clone(),
                    rhs: weight.shape().clone(),
                    reason: "there must be a weight for each class",
                });
            }
        }
        let targets = targets.contiguous_for(op)?;
        let except = Some(config.ignore_index);
        if let Some(index) = first_outside(&targets, 0..classes as i64, except)? {
            return Err(Error::IndexOutOfRange {
                op,
                index,
                extent: classes,
                late: false,
            });
        }
        let logits = match logits.rank() {
            1 | 2 => logits.contiguous_for(op)?,
            rank => {
                let axes: smallvec::SmallVec<[isize; 4]> = std::iter::once(0)
                    .chain(2..rank as isize)
                    .chain(std::iter::once(1))
                    .collect();
                logits.permute(&axes)?.contiguous_for(op)?
            }
        };
        Ok(Problem {
            op,
            logits,
            rows: targets.numel(),
            targets,
            classes,
            weight: match &config.weight {
                Some(weight) => Some(weight.contiguous_for(op)?),
                None => None,
            },
        })
    }
}
