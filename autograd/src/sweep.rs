//! The backward pass: one loop over the tape, from the end.
//!
//! A node's gradient is complete when the loop reaches it, because everything that uses it was
//! recorded later. A node without a gradient at that moment is one that the roots do not depend
//! on; it costs a check. Each node is dropped, with the tensors it saved, as soon as it is done.

use crate::claim::Claims;
use crate::contribute::{Inputs, differ, needs};
use crate::error::{Error, Result};
use crate::grads::{Gradients, add_to};
use crate::param::{Param, ParamId};
use crate::tape::{Kind, Node, NodeId, NodeRef, Tape};
use crate::var::Var;
use phalanx_tensor::Tensor;
use smallvec::SmallVec;

/// Called once for every parameter that the roots depend on, when its gradient is final. It is
/// contiguous and of the type [`Param::grad_dtype`]: `f32` for a parameter of a half type. It
/// includes what [`Backward::into`] had for the parameter.
///
/// What it returns is put into the [`Gradients`]; a hook that keeps the gradient returns `None`.
/// An error stops the sweep; [`Error::other`] carries one of another crate.
pub type OnReady<'a> = dyn FnMut(&Param, Tensor) -> Result<Option<Tensor>> + 'a;

/// What a backward pass is to do.
///
/// ```
/// use phalanx_autograd::{Backward, Param, Tape};
/// use phalanx_tensor::{Device, Tensor};
///
/// let w = Param::new(Tensor::from_slice(&[1.0f32, 2.0], [2], Device::cpu(0))?);
/// let tape = Tape::new();
/// let y = tape.leaf(&w).square()?;
/// let seed = Tensor::from_slice(&[10.0f32, 100.0], [2], Device::cpu(0))?;
/// let mut order = Vec::new();
/// let gradients = tape.sweep(Backward {
///     roots: &[(&y, Some(seed))],
///     on_ready: Some(&mut |param, gradient| {
///         order.push(param.id());
///         Ok(Some(gradient))
///     }),
///     ..Backward::default()
/// })?;
/// assert_eq!(gradients.get(&w).unwrap().to_vec::<f32>()?, [20.0, 400.0]);
/// assert_eq!(order, [w.id()]);
/// # Ok::<(), phalanx_autograd::Error>(())
/// ```
#[derive(Default)]
pub struct Backward<'a> {
    /// Where to start, each with the gradient that comes in there; `None` stands for 1, and is
    /// right for a single element only.
    pub roots: &'a [(&'a Var, Option<Tensor>)],
    /// Where to stop: only these variables get a gradient (read it with
    /// [`Gradients::wrt`]), and what none of them leads to is not computed. `None`: every
    /// parameter and every [`Tape::input`]. Gradients of parameters of a half type are `f32`, all
    /// others have the type of their variable.
    pub inputs: Option<&'a [&'a Var]>,
    /// Told of each parameter's gradient as soon as it is final.
    pub on_ready: Option<&'a mut OnReady<'a>>,
    /// Whose parameters it may reach.
    pub claims: Claims<'a>,
    /// Gradients to add to: that of a parameter which has one here starts from it, and is added to in
    /// place, at its address, where nobody else shares the tensor. The result holds them all: those
    /// that the roots do not reach are as they were. Each has its parameter's shape, and the type
    /// that [`Gradients::insert`] allows. They are lost where the sweep fails.
    ///
    /// A micro-batch after the other, this sums gradients without memory for a second set of them:
    /// products such as those of [`Var::linear`](crate::Var::linear) and [`Var::conv2d`](crate::Var::conv2d) add themselves to what is there.
    /// The sums may so differ in their last bits from those of [`Gradients::accumulate`].
    ///
    /// ```
    /// use phalanx_autograd::{Backward, Gradients, Param, Tape};
    /// use phalanx_tensor::{Device, Tensor};
    ///
    /// let w = Param::new(Tensor::from_slice(&[1.0f32, 2.0], [2], Device::cpu(0))?);
    /// let tape = Tape::new();
    /// let mut gradients = Gradients::new();
    /// for _micro_batch in 0..3 {
    ///     let loss = tape.leaf(&w).square()?.sum_all()?;
    ///     gradients = tape.sweep(Backward {
    ///         roots: &[(&loss, None)],
    ///         into: gradients,
    ///         ..Backward::default()
    ///     })?;
    /// }
    /// assert_eq!(gradients.get(&w).unwrap().to_vec::<f32>()?, [6.0, 12.0]);
    /// # Ok::<(), phalanx_autograd::Error>(())
    /// ```
    pub into: Gradients,
}

/// The parameters that roots depend on, in the order in which backward makes their gradients
/// final. See [`Tape::plan`].
#[derive(Debug, Clone, Default)]
pub struct ReadyOrder {
    params: Vec<Param>,
}

impl ReadyOrder {
    /// The parameters, the first ready first.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Whether a parameter will get a gradient.
    pub fn contains(&self, id: ParamId) -> bool {
        self.params.iter().any(|p| p.id() == id)
    }
}

impl Tape {
    /// Runs the recording backward from one element, a loss: every parameter that it depends on
    /// gets its gradient. Consumes the recording.
    ///
    /// # Errors
    /// [`Error::SeedMissing`] for a root of several elements, [`Error::NothingToDifferentiate`],
    /// [`Error::TapeMismatch`], [`Error::Consumed`]; [`Error::Claimed`] where the loss reaches a
    /// parameter of a wrapper, such as a `Ddp`, whose own `backward` is to be called; those of the
    /// operations' backward passes.
    pub fn backward(&self, root: &Var) -> Result<Gradients> {
        self.sweep(Backward {
            roots: &[(root, None)],
            ..Backward::default()
        })
    }

    /// Runs the recording backward as `how` says. Consumes the recording.
    ///
    /// # Errors
    /// As [`backward`](Tape::backward); [`Error::SeedMismatch`]; [`Error::InvalidArgument`] where
    /// [`Backward::into`] holds something unlike its parameter; [`Error::Unclaimed`]; those of the hook.
    pub fn sweep(&self, how: Backward<'_>) -> Result<Gradients> {
        let (mut slots, wanted) = self.prepare(&how)?;
        let mut sink = Sink::new(self.recording(), how);
        let mut nodes = self.take_nodes();
        while let Some(node) = nodes.pop() {
            let index = nodes.len();
            if index >= slots.len() {
                continue; // after the last root
            }
            let Some(grad) = slots.pop().flatten() else {
                continue; // the roots do not depend on it
            };
            let grad = sink.onto_buffer(&node, node.finish(grad)?)?;
            sink.keep_chosen(index, &grad);
            if let Kind::Op(vjp) = node.kind {
                let name = vjp.name();
                let needs = needs(&node.inputs, |id| wanted.contains(id));
                if needs.contains(&true) || node.inputs.is_empty() {
                    let mut inputs = Inputs {
                        ids: &node.inputs,
                        needs: &needs,
                        target: |id: NodeId| nodes[id.index()].target(),
                        slots: &mut slots,
                        into: &mut sink.gradients,
                    };
                    let grads = inputs.call(&*vjp, grad)?;
                    drop(vjp);
                    inputs.add(name, grads)?;
                }
            } else {
                sink.leaf(index, node.kind, grad)?;
            }
        }
        self.recycle(nodes);
        Ok(sink.gradients)
    }

    /// The parameters that the roots depend on, in the order in which their gradients will become
    /// final. Reads the recording, changes nothing.
    ///
    /// **The order is exact**: a sweep from these roots calls its hook for these parameters, for
    /// each once, in this order.
    ///
    /// # Errors
    /// [`Error::NothingToDifferentiate`], [`Error::TapeMismatch`], [`Error::Consumed`].
    pub fn plan(&self, roots: &[&Var]) -> Result<ReadyOrder> {
        let roots: SmallVec<[(&Var, Option<Tensor>); 2]> =
            roots.iter().map(|&root| (root, None)).collect();
        let reached = self.reach(&roots)?;
        let params = self.with_nodes(|nodes| {
            let backwards = nodes[..reached.len()].iter().zip(&reached).rev();
            backwards
                .filter_map(|(node, &reached)| match &node.kind {
                    Kind::Param(param) if reached => Some(param.clone()),
                    _ => None,
                })
                .collect()
        });
        Ok(ReadyOrder { params })
    }

    /// Which nodes the roots depend on, up to the last root.
    pub(crate) fn reach(&self, roots: &[(&Var, Option<Tensor>)]) -> Result<Vec<bool>> {
        let mut reached = Vec::new();
        for (root, _) in roots {
            let index = self.root(root)?;
            reached.resize(reached.len().max(index + 1), false);
            reached[index] = true;
        }
        self.with_nodes(|nodes| {
            for index in (0..reached.len()).rev() {
                if reached[index] {
                    let inputs = nodes[index].inputs.iter();
                    inputs
                        .filter(|&&id| id != NodeId::NONE)
                        .for_each(|id| reached[id.index()] = true);
                }
            }
        });
        Ok(reached)
    }

    fn root(&self, root: &Var) -> Result<usize> {
        root.check(self, "backward")?;
        let node = root.node().ok_or_else(|| Error::NothingToDifferentiate {
            op: "backward",
            shape: root.shape().clone(),
        })?;
        Ok(node.id.index())
    }

    /// The nodes that lead back to one that `chosen` picks, themselves included.
    pub(crate) fn leading_to(&self, chosen: impl Fn(usize, &Node) -> bool) -> Wanted {
        self.with_nodes(|nodes| {
            let mut wanted: Vec<bool> = Vec::with_capacity(nodes.len());
            for (index, node) in nodes.iter().enumerate() {
                let mut inputs = node.inputs.iter();
                let leads = inputs.any(|&id| id != NodeId::NONE && wanted[id.index()]);
                wanted.push(leads || chosen(index, node));
            }
            Wanted(Some(wanted))
        })
    }

    /// Checks the request; returns the gradients of the nodes up to the last root, with the seeds
    /// in place, and the nodes that need one.
    pub(crate) fn prepare(&self, how: &Backward<'_>) -> Result<(Vec<Option<Tensor>>, Wanted)> {
        self.check_claims(how)?;
        expect_buffers("backward", &how.into)?;
        let mut slots: Vec<Option<Tensor>> = Vec::new();
        for (root, seed) in how.roots {
            let index = self.root(root)?;
            let seed = match seed {
                Some(seed) => like_root(root, seed)?.clone(),
                None if root.numel() == 1 => {
                    Tensor::ones(root.shape(), root.dtype(), root.device())?
                }
                None => {
                    return Err(Error::SeedMissing {
                        op: "backward",
                        shape: root.shape().clone(),
                    });
                }
            };
            let len = slots.len().max(index + 1);
            slots.resize_with(len, || None);
            add_to(&mut slots[index], seed, root.dtype(), |sum, seed| {
                differ("seed", root.dtype(), sum, seed)
            })?;
        }
        let Some(inputs) = how.inputs else {
            return Ok((slots, Wanted(None)));
        };
        let mut chosen: SmallVec<[usize; 4]> = SmallVec::new();
        for input in inputs {
            chosen.push(self.root(input)?);
        }
        Ok((slots, self.leading_to(|index, _| chosen.contains(&index))))
    }
}

fn like_root<'a>(root: &Var, seed: &'a Tensor) -> Result<&'a Tensor> {
    if seed.shape() == root.shape() && seed.dtype() == root.dtype() {
        return Ok(seed);
    }
    Err(Error::SeedMismatch {
        op: "backward",
        root: root.shape().clone(),
        root_dtype: root.dtype(),
        seed: seed.shape().clone(),
        seed_dtype: seed.dtype(),
    })
}

/// The nodes whose gradient is asked for; `None` means all of them, the common case.
pub(crate) struct Wanted(Option<Vec<bool>>);

impl Wanted {
    pub(crate) fn contains(&self, id: NodeId) -> bool {
        self.contains_index(id.index())
    }

    pub(crate) fn contains_index(&self, index: usize) -> bool {
        self.0.as_ref().is_none_or(|wanted| wanted[index])
    }
}

/// Gradients to add to are like their parameters.
pub(crate) fn expect_buffers(op: &'static str, into: &Gradients) -> Result<()> {
    for (param, grad) in into.iter() {
        let fits = [param.dtype(), param.grad_dtype()].contains(&grad.dtype());
        if !fits || grad.shape() != param.shape() {
            return Err(Error::InvalidArgument {
                op,
                reason: format!("{param:?} has the gradient {grad:?} to add to"),
            });
        }
    }
    Ok(())
}

/// Where final gradients go.
pub(crate) struct Sink<'a> {
    recording: u64,
    pub(crate) gradients: Gradients,
    chosen: SmallVec<[usize; 4]>,
    on_ready: Option<&'a mut OnReady<'a>>,
}

impl<'a> Sink<'a> {
    pub(crate) fn new(recording: u64, how: Backward<'a>) -> Sink<'a> {
        let nodes = how
            .inputs
            .unwrap_or_default()
            .iter()
            .filter_map(|v| v.node());
        Sink {
            recording,
            gradients: how.into,
            chosen: nodes.map(|node| node.id.index()).collect(),
            on_ready: how.on_ready,
        }
    }

    /// The gradient of a parameter that no vjp has added to its buffer, since a root is the parameter
    /// itself, is added now.
    pub(crate) fn onto_buffer(&mut self, node: &Node, grad: Tensor) -> Result<Tensor> {
        let Kind::Param(param) = &node.kind else {
            return Ok(grad);
        };
        let mut sum = self.gradients.take(param);
        add_to(&mut sum, grad, param.dtype(), |sum, grad| {
            differ("parameter", param.dtype(), sum, grad)
        })?;
        match sum {
            Some(sum) => node.finish(sum),
            None => unreachable!("a gradient was added"),
        }
    }

    /// Keeps the gradient of a variable that was named.
    pub(crate) fn keep_chosen(&mut self, index: usize, grad: &Tensor) {
        if self.chosen.contains(&index) {
            self.keep(index, grad.clone());
        }
    }

    fn keep(&mut self, index: usize, grad: Tensor) {
        let node = NodeRef {
            recording: self.recording,
            id: NodeId::at(index),
        };
        self.gradients.insert_var(node, grad);
    }

    pub(crate) fn leaf(&mut self, index: usize, kind: Kind, grad: Tensor) -> Result<()> {
        match kind {
            Kind::Param(param) => {
                if grad.shape() != param.shape() || grad.dtype() != param.grad_dtype() {
                    return Err(Error::VjpContract {
                        vjp: "parameter",
                        reason: format!("{param:?} got the gradient {grad:?}"),
                    });
                }
                // A view, such as the gradient of a sum, becomes a tensor that optimizers and
                // buckets read in one go.
                let grad = match grad.is_contiguous() {
                    true => grad, // still its only holder, so that the hook can change it in place
                    false => grad.contiguous()?,
                };
                let kept = match &mut self.on_ready {
                    Some(hook) => hook(&param, grad)?,
                    None => Some(grad),
                };
                if let Some(grad) = kept {
                    self.gradients.insert(&param, grad);
                }
            }
            Kind::Input if !self.chosen.contains(&index) => self.keep(index, grad),
            Kind::Input | Kind::Op(_) => {}
        }
        Ok(())
    }
}
