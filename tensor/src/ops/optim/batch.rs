//! The parameters of a step by the device on which they are, and the two phases of a step: first
//! everything that can fail, on all devices, and then the kernels.

#[cfg(feature = "cuda")]
use super::cuda::Launch;
#[cfg(feature = "cuda")]
use crate::cuda::Issue;
use crate::ops::Scalar;
use crate::storage::{On, inouts, on};
use crate::{Device, Result, Tensor};
use smallvec::SmallVec;

/// The parameters of one device, with all that their step needs.
pub(super) struct Batch<'a, C> {
    pub(super) params: List<&'a mut Tensor>,
    /// Contiguous.
    pub(super) grads: List<&'a Tensor>,
    /// The states of each parameter that has some, one after another.
    pub(super) states: List<&'a mut Tensor>,
    /// Those of the numbers that are on the device, in `f64`.
    numbers: List<Tensor>,
    pub(super) items: List<Item<'a, C>>,
}

/// What one parameter steps with, beside its tensors.
pub(super) struct Item<'a, C> {
    pub(super) config: &'a C,
    /// How many tensors of the batch's states are this parameter's.
    pub(super) states: usize,
    /// Whether its states have no values yet, so that the step sets and does not read them.
    pub(super) is_first: bool,
    pub(super) lr_scale: Number,
    /// Counted from 1, or from where the states started.
    pub(super) step: Number,
}

/// A number of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Number {
    /// One that the host knows.
    Host(f64),
    /// The place of a tensor in the batch's list of numbers.
    At(usize),
}

impl Number {
    /// The number as an operand, with the batch's list of numbers.
    pub(super) fn of(self, numbers: &[Tensor]) -> Scalar<'_> {
        match self {
            Number::Host(value) => Scalar::Host(value),
            Number::At(place) => Scalar::Device(&numbers[place]),
        }
    }
}

pub(super) type List<T> = SmallVec<[T; 8]>;

/// Something for each device, in the order of devices, so that threads which lock several cards lock
/// them in one order.
pub(super) struct ByDevice<B>(pub(super) SmallVec<[(Device, B); 1]>);

impl<B: Default> ByDevice<B> {
    pub(super) fn new() -> ByDevice<B> {
        ByDevice(SmallVec::new())
    }

    /// That of `device`.
    pub(super) fn of(&mut self, device: Device) -> &mut B {
        let at = self.0.partition_point(|(other, _)| *other < device);
        if self.0.get(at).is_none_or(|(other, _)| *other != device) {
            self.0.insert(at, (device, B::default()));
        }
        &mut self.0[at].1
    }
}

/// The batches of a step.
pub(super) type Batches<'a, C> = ByDevice<Batch<'a, C>>;

impl<C> Default for Batch<'_, C> {
    fn default() -> Self {
        Batch {
            params: List::new(),
            grads: List::new(),
            states: List::new(),
            numbers: List::new(),
            items: List::new(),
        }
    }
}

impl<C> Batch<'_, C> {
    /// Makes a number ready for the kernels of this batch, which is that of `device`.
    pub(super) fn number(
        &mut self,
        op: &'static str,
        number: Scalar<'_>,
        device: Device,
    ) -> Result<Number> {
        if let Scalar::Host(value) = number {
            return Ok(Number::Host(value));
        }
        self.numbers.extend(number.copy_for(op, device)?);
        Ok(Number::At(self.numbers.len() - 1))
    }
}

/// Parameters, gradients, states and numbers of a batch.
pub(super) type Lists<'b, 'a> = (
    &'b mut [&'a mut Tensor],
    &'b [&'a Tensor],
    &'b mut [&'a mut Tensor],
    &'b [Tensor],
);

/// What is left to do when nothing can fail any more.
pub(super) enum Ready<T> {
    /// The operands of a CPU kernel.
    Cpu(T),
    /// The launches of a card.
    #[cfg(feature = "cuda")]
    Cuda(Box<Issue>, Vec<Launch>),
}

/// What a step's kernels on the CPU take: a batch's tensors, and an item for each parameter.
pub(super) type Step<'b, 'a, C> = (Lists<'b, 'a>, &'b [Item<'a, C>]);

impl<'a, C> Batches<'a, C> {
    /// Makes all batches ready by `prepare`, and then runs the kernels of each, on the CPU by `cpu`:
    /// where a device gives an error, nothing has been changed on any.
    pub(super) fn run(
        mut self,
        op: &'static str,
        prepare: impl for<'b> Fn(On<Lists<'b, 'a>>, &'b [Item<'a, C>]) -> Result<Ready<Step<'b, 'a, C>>>,
        cpu: impl Fn(Step<'_, 'a, C>) -> Result<()>,
    ) -> Result<()> {
        let mut ready: SmallVec<[_; 1]> = SmallVec::new();
        for (_, batch) in &mut self.0 {
            let (params, states) = (inouts(&mut batch.params), inouts(&mut batch.states));
            let on = on(op, (params, &batch.grads[..], states, &batch.numbers[..]))?;
            ready.push(prepare(on, &batch.items)?);
        }
        ready.into_iter().try_for_each(|ready| match ready {
            Ready::Cpu(step) => cpu(step),
            #[cfg(feature = "cuda")]
            Ready::Cuda(mut lane, launches) => super::cuda::launch(&mut lane, &launches),
        })
    }
}
