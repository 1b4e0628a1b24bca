//! Cross-entropy: log-softmax and negative log-likelihood in one pass, and the gradient of the
//! logits in another.

use super::cpu;
use crate::storage::{On, on, out};
use crate::{DType, Error, Result, Shape, Tensor};

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
    /// For the backward pass too: the sum of the weights of the targets that count, by which the
    /// mean divides (their number, where the classes have no weights). A scalar of type `F64`.
    pub total_weight: Tensor,
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
        let logits = rows(OP, self, targets, config)?;
        let (device, wide) = (self.device(), self.dtype().compute());
        let shape = match config.reduction {
            Reduction::None => targets.shape().clone(),
            Reduction::Mean | Reduction::Sum => Shape::default(),
        };
        let mut output = CrossEntropyOutput {
            saved: Tensor::allocate(OP, [targets.numel(), 2].into(), wide, device)?,
            loss: Tensor::allocate(OP, shape, wide, device)?,
            total_weight: Tensor::allocate(OP, Shape::default(), DType::F64, device)?,
        };
        let (loss, saved) = (out(&mut output.loss), out(&mut output.saved));
        let results = (loss, saved, out(&mut output.total_weight));
        match on(OP, ((&logits, targets, config.weight.as_ref()), results))? {
            On::Cpu((operands, results)) => cpu::cross_entropy(OP, config, operands, results)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (operands, results)) => {
                super::cuda::cross_entropy(&mut lane, config, operands, results)?;
            }
        }
        Ok(output)
    }

    /// The gradient of [`cross_entropy`](Tensor::cross_entropy)'s logits, in one pass over them;
    /// `self` is the gradient of the loss, of the loss's type, `saved` and `total_weight` are what
    /// the forward pass left. The result has the logits' type.
    ///
    /// # Errors
    /// As [`cross_entropy`](Tensor::cross_entropy).
    pub fn cross_entropy_backward(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        saved: &Tensor,
        total_weight: &Tensor,
        config: &CrossEntropyConfig,
    ) -> Result<Tensor> {
        const OP: &str = "cross_entropy_backward";
        let x = rows(OP, logits, targets, config)?;
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
        let rows = targets.numel();
        if saved.dims() != [rows, 2] {
            return Err(Error::InvalidShape {
                op: OP,
                shape: saved.shape().clone(),
                reason: format!("it must be what the forward pass has saved, [{rows}, 2]"),
            });
        }
        logits.expect_same_device(OP, total_weight)?;
        total_weight.expect_operand(OP, "the total weight", DType::F64)?;
        if total_weight.numel() != 1 {
            return Err(Error::InvalidShape {
                op: OP,
                shape: total_weight.shape().clone(),
                reason: "the total weight must have one element".into(),
            });
        }
        let mut dx = Tensor::allocate(OP, x.shape().clone(), x.dtype(), x.device())?;
        let operands = (&x, targets, config.weight.as_ref());
        match on(OP, (operands, (self, saved, total_weight), out(&mut dx)))? {
            On::Cpu((operands, saved, dx)) => {
                cpu::cross_entropy_backward(OP, config, operands, saved, dx)?;
            }
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (operands, saved, dx)) => {
                super::cuda::cross_entropy_backward(&mut lane, config, operands, saved, dx)?;
            }
        }
        match logits.rank() {
            0..=2 => Ok(dx),
            rank => {
                let axes: smallvec::SmallVec<[isize; 4]> = std::iter::once(0)
                    .chain(std::iter::once(rank as isize - 1))
                    .chain(1..rank as isize - 1)
                    .collect();
                dx.permute(&axes)
            }
        }
    }
}

/// Checks the operands; the logits with the classes as their last axis.
fn rows(
    op: &'static str,
    logits: &Tensor,
    targets: &Tensor,
    config: &CrossEntropyConfig,
) -> Result<Tensor> {
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
    match logits.rank() {
        1 | 2 => Ok(logits.clone()),
        rank => {
            let axes: smallvec::SmallVec<[isize; 4]> = std::iter::once(0)
                .chain(2..rank as isize)
                .chain(std::iter::once(1))
                .collect();
            logits.permute(&axes)
        }
    }
}
