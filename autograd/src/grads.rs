//! [`Gradients`]: what a backward pass returns.

use crate::error::{Error, Result};
use crate::param::{IdMap, Param, ParamId};
use crate::tape::NodeRef;
use crate::var::Var;
use phalanx_tensor::ops::Scalar;
use phalanx_tensor::{DType, Tensor};

/// Gradients by parameter, and by variable where inputs were asked for.
///
/// What the roots do not depend on has no gradient: `None`, not zeros.
///
/// **A sum of gradients is not rounded to a half type.** A parameter's gradient has the type
/// [`Param::grad_dtype`]: `f32` where the parameter is `bf16` or `f16`, from the tape's first sum to
/// the optimizer. A variable's ([`wrt`](Gradients::wrt)) has the variable's type: it is summed in
/// `f32` and rounded once.
#[derive(Debug, Default)]
pub struct Gradients {
    /// In the order in which they became final; `None` where taken.
    params: Vec<(Param, Option<Tensor>)>,
    place: IdMap<usize>,
    vars: Vec<(NodeRef, Tensor)>,
}

impl Gradients {
    /// No gradients.
    pub fn new() -> Gradients {
        Gradients::default()
    }

    /// The gradient of a parameter.
    pub fn get(&self, param: &Param) -> Option<&Tensor> {
        self.by_id(param.id())
    }

    /// The gradient of the parameter with this id.
    pub fn by_id(&self, id: ParamId) -> Option<&Tensor> {
        self.params[*self.place.get(&id)?].1.as_ref()
    }

    /// The gradient of a variable: one made by [`Tape::input`](crate::Tape::input), or one that
    /// was named in [`Backward::inputs`](crate::Backward::inputs).
    pub fn wrt(&self, var: &Var) -> Option<&Tensor> {
        let node = var.node()?;
        let found = self.vars.iter().find(|(n, _)| *n == node);
        found.map(|(_, grad)| grad)
    }

    /// Takes the gradient of a variable out.
    pub fn take_wrt(&mut self, var: &Var) -> Option<Tensor> {
        let node = var.node()?;
        let at = self.vars.iter().position(|(n, _)| *n == node)?;
        Some(self.vars.swap_remove(at).1)
    }

    /// Takes the gradient of a parameter out.
    pub fn take(&mut self, param: &Param) -> Option<Tensor> {
        self.params[*self.place.get(&param.id())?].1.take()
    }

    /// Puts a gradient in, in place of one that may be there. It has the type
    /// [`Param::grad_dtype`], or that of the parameter: optimizers take both.
    pub fn insert(&mut self, param: &Param, grad: Tensor) {
        let next = self.params.len();
        let at = *self.place.entry(param.id()).or_insert(next);
        if at == next {
            self.params.push((param.clone(), Some(grad)));
        } else {
            self.params[at].1 = Some(grad);
        }
    }

    /// Whether no parameter has ever had a place here.
    pub(crate) fn is_new(&self) -> bool {
        self.params.is_empty()
    }

    /// Whether a parameter's gradient was here and has been taken out.
    pub(crate) fn is_taken(&self, param: &Param) -> bool {
        let at = self.place.get(&param.id());
        at.is_some_and(|&at| self.params[at].1.is_none())
    }

    pub(crate) fn insert_var(&mut self, node: NodeRef, grad: Tensor) {
        self.vars.push((node, grad));
    }

    /// The parameters that have a gradient, in the order in which these became final. What a sweep has
    /// added to ([`Backward::into`](crate::Backward::into)) keeps its place.
    pub fn iter(&self) -> impl Iterator<Item = (&Param, &Tensor)> {
        self.params
            .iter()
            .filter_map(|(param, grad)| Some((param, grad.as_ref()?)))
    }

    /// As [`iter`](Gradients::iter), to change gradients in place.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&Param, &mut Tensor)> {
        self.params
            .iter_mut()
            .filter_map(|(param, grad)| Some((&*param, grad.as_mut()?)))
    }

    /// How many parameters have a gradient.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether no parameter has a gradient.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds the gradients of another pass: gradient accumulation over micro-batches. Those of
    /// parameters of a half type are added in `f32`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where two gradients of a parameter differ in shape, or one is not
    /// of a type that [`insert`](Gradients::insert) allows. As [`Tensor::add_into`]. Gradients before
    /// the failing one have been added; the failing one and those behind it are as they were.
    pub fn accumulate(&mut self, other: Gradients) -> Result<()> {
        for (param, grad) in other.params {
            let Some(grad) = grad else { continue };
            match self.place.get(&param.id()) {
                Some(&at) => add_to(&mut self.params[at].1, grad, param.dtype(), |sum, grad| {
                    Error::InvalidArgument {
                        op: "accumulate",
                        reason: format!(
                            "{param:?} has the gradient {sum:?}, to which {grad:?} is added"
                        ),
                    }
                })?,
                None => self.insert(&param, grad),
            }
        }
        self.vars.extend(other.vars);
        Ok(())
    }

    /// Multiplies every gradient by `factor`, a number or a tensor with one float, in place where
    /// nobody shares it.
    ///
    /// # Errors
    /// As [`scale`](phalanx_tensor::ops::optim::scale).
    pub fn scale<'f>(&mut self, factor: impl Into<Scalar<'f>>) -> Result<()> {
        let params = self.params.iter_mut().filter_map(|(_, grad)| grad.as_mut());
        let all = params.chain(self.vars.iter_mut().map(|(_, grad)| grad));
        Ok(phalanx_tensor::ops::optim::scale(all, factor)?)
    }
}

/// Adds a contribution to the gradient of something of type `dtype`, in place where one side
/// belongs to nobody else. A gradient is of that type or of its type of computation, and a sum of
/// the latter: what has one gradient alone costs nothing. Nothing is broadcast: `differ` makes the
/// error where the contribution is not like the something, or not like the sum that is there.
pub(crate) fn add_to(
    slot: &mut Option<Tensor>,
    grad: Tensor,
    dtype: DType,
    differ: impl FnOnce(Option<&Tensor>, &Tensor) -> Error,
) -> Result<()> {
    let wide = dtype.compute();
    let fits = |t: &Tensor| t.dtype() == dtype || t.dtype() == wide;
    let alike = |sum: &Tensor| fits(sum) && sum.shape() == grad.shape();
    if !fits(&grad) || !slot.as_ref().is_none_or(alike) {
        return Err(differ(slot.as_ref(), &grad));
    }
    let Some(sum) = slot.take() else {
        *slot = Some(grad);
        return Ok(());
    };
    // Where there is no memory for a new sum, the old one stays.
    let (added, old) = match (sum.dtype() == wide, grad.dtype() == wide) {
        (false, false) => (sum.add_widened(&grad), Some(sum)),
        // Floating-point addition commutes: into whichever is free.
        (true, true) if grad.is_unique() && !sum.is_unique() => (grad.add_into(&sum), Some(sum)),
        (false, true) => (grad.add_into(&sum), Some(sum)),
        (true, _) => {
            // What belongs to nobody else is added to in place, which needs no memory.
            let in_place = sum.is_unique() && sum.is_contiguous();
            let old = (!in_place).then(|| sum.clone());
            (sum.add_into(&grad), old)
        }
    };
    match added {
        Ok(added) => *slot = Some(added),
        Err(error) => {
            *slot = old;
            return Err(error.into());
        }
    }
    Ok(())
}
