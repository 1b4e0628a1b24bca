//! [`Module`]: a computation with parameters, and the one way to walk through it.

use crate::error::{Error, Result};
use crate::param::{Buffer, Param, ParamId};
use crate::tape::Tape;
use crate::var::Var;
use phalanx_tensor::Device;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// A layer, or a model made of layers.
///
/// A module says how it computes and what it consists of; names, counts, states, training mode
/// and everything else follow from that one description.
///
/// ```
/// use phalanx_autograd::nn::{Factory, Linear, Module, Visitor};
/// use phalanx_autograd::{Result, Tape, Var};
/// use phalanx_tensor::Device;
///
/// struct Residual {
///     inner: Linear,
/// }
///
/// impl Module for Residual {
///     fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
///         self.inner.forward(tape, x)?.add(x)
///     }
///     fn visit(&self, v: &mut Visitor<'_>) {
///         v.child("inner", &self.inner);
///     }
/// }
///
/// let mut f = Factory::new(Device::cpu(0), 0);
/// let model = Residual { inner: Linear::new(4, 4, &mut f)? };
/// let names: Vec<String> = model.named_parameters().into_iter().map(|(name, _)| name).collect();
/// assert_eq!(names, ["inner.weight", "inner.bias"]);
/// # Ok::<(), phalanx_autograd::Error>(())
/// ```
///
/// A module may take several variables and give several: a part of a U-Net takes what came over a
/// skip connection, too. Such a module implements [`forward_all`](Module::forward_all).
///
/// ```
/// use phalanx_autograd::nn::{self, Factory, Linear, Module, Visitor};
/// use phalanx_autograd::{Error, Result, Tape, Var};
/// use phalanx_tensor::{DType, Device, Tensor};
///
/// /// Goes on with `x`, and adds what it has computed to the second variable.
/// struct Collect {
///     inner: Linear,
/// }
///
/// impl Module for Collect {
///     fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
///         let out = self.forward_all(tape, std::slice::from_ref(x))?; // one is too few: an error
///         nn::one_output("Collect", out)
///     }
///     fn forward_all(&self, tape: &Tape, inputs: &[Var]) -> Result<Vec<Var>> {
///         let [x, sum] = nn::inputs("Collect", inputs)?;
///         let x = self.inner.forward(tape, x)?;
///         let sum = sum.add(&x)?;
///         Ok(vec![x, sum])
///     }
///     fn visit(&self, v: &mut Visitor<'_>) {
///         v.child("inner", &self.inner);
///     }
/// }
///
/// let device = Device::cpu(0);
/// let mut f = Factory::new(device, 0);
/// let first = Collect { inner: Linear::new(4, 4, &mut f)? };
/// let second = Collect { inner: Linear::new(4, 4, &mut f)? };
/// let model = nn::Sequential::new().with(first).with(second);
/// let tape = Tape::new();
/// let x = tape.constant(Tensor::ones([2, 4], DType::F32, device)?);
/// let zero = tape.constant(Tensor::zeros([2, 4], DType::F32, device)?);
/// let out = model.forward_all(&tape, &[x.clone(), zero])?;
/// assert_eq!(out.len(), 2);
/// assert_eq!(tape.backward(&out[1].sum_all()?)?.len(), 4);
///
/// let error = model.forward(&tape, &x).unwrap_err();
/// assert_eq!(error.to_string(), "layer `0`: Collect takes 2 inputs, but got 1");
/// # Ok::<(), phalanx_autograd::Error>(())
/// ```
pub trait Module: Send + Sync {
    /// Computes the output for `x`. The same on every tape: one that records and one that does not.
    ///
    /// # Errors
    /// Those of the operations inside; those of modules inside with their names, where
    /// [`Error::in_module`](crate::Error::in_module) gives them.
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var>;

    /// Computes the outputs for all `inputs`, where there may be several of either. Without an
    /// implementation of its own, a module takes one and gives one: it calls
    /// [`forward`](Module::forward).
    ///
    /// # Errors
    /// [`Error::InputCount`](crate::Error::InputCount) where the module takes another number of
    /// inputs ([`nn::inputs`](crate::nn::inputs) makes it); as [`forward`](Module::forward).
    fn forward_all(&self, tape: &Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        let [x] = super::inputs(std::any::type_name::<Self>(), inputs)?;
        Ok(vec![self.forward(tape, x)?])
    }

    /// Shows `v` the module's own parameters, buffers, counts and training flag, then its children, each by
    /// its name and always in the same order.
    fn visit(&self, v: &mut Visitor<'_>);

    /// Every parameter with its dotted name, in the order of the visit. One that the module uses in
    /// several places is listed once, under its first name.
    fn named_parameters(&self) -> Vec<(String, Param)> {
        let mut seen = HashSet::new();
        let mut out = Vec::new();
        walk(self, &mut |path, item| {
            if let Item::Param(p) = item
                && seen.insert(p.id())
            {
                out.push((path.to_owned(), p.clone()));
            }
        });
        out
    }

    /// Every parameter once, in the order of the visit.
    fn parameters(&self) -> Vec<Param> {
        self.named_parameters()
            .into_iter()
            .map(|(_, p)| p)
            .collect()
    }

    /// Every buffer with its dotted name, each once.
    fn named_buffers(&self) -> Vec<(String, Buffer)> {
        let mut seen = HashSet::new();
        let mut out = Vec::new();
        walk(self, &mut |path, item| {
            if let Item::Buffer(b) = item
                && seen.insert(b.id())
            {
                out.push((path.to_owned(), b.clone()));
            }
        });
        out
    }

    /// Whether layers such as dropout and batch norm behave as in training (they do at first).
    /// Batch norm updates its running statistics in this mode, dropout drops.
    fn set_training(&self, on: bool) {
        walk(self, &mut |_, item| {
            if let Item::Mode(mode) = item {
                mode.0.store(on, Relaxed);
            }
        });
    }

    /// Moves every parameter and buffer to `device`.
    ///
    /// # Errors
    /// As [`phalanx_tensor::Tensor::to_device`].
    fn to_device(&self, device: Device) -> Result<()> {
        for (_, p) in self.named_parameters() {
            p.to_device(device)?;
        }
        for (_, b) in self.named_buffers() {
            b.to_device(device)?;
        }
        Ok(())
    }
}

impl<M: Module + ?Sized> Module for Box<M> {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        (**self).forward(tape, x)
    }
    fn forward_all(&self, tape: &Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        (**self).forward_all(tape, inputs)
    }
    fn visit(&self, v: &mut Visitor<'_>) {
        (**self).visit(v);
    }
}

impl<M: Module + ?Sized> Module for std::sync::Arc<M> {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        (**self).forward(tape, x)
    }
    fn forward_all(&self, tape: &Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        (**self).forward_all(tape, inputs)
    }
    fn visit(&self, v: &mut Visitor<'_>) {
        (**self).visit(v);
    }
}

/// The inputs of a module that takes `N` of them, for its [`Module::forward_all`].
///
/// # Errors
/// [`Error::InputCount`] with the name `module`, where another number has come.
pub fn inputs<'v, const N: usize>(module: &'static str, inputs: &'v [Var]) -> Result<&'v [Var; N]> {
    inputs.try_into().map_err(|_| Error::InputCount {
        module,
        wanted: N,
        given: inputs.len(),
    })
}

/// The output of a module that has given just one, for a [`Module::forward`] that calls
/// [`Module::forward_all`].
///
/// # Errors
/// [`Error::OutputCount`] with the name `module`, where another number has come.
pub fn one_output(module: &'static str, outputs: Vec<Var>) -> Result<Var> {
    let outputs: [Var; 1] = outputs
        .try_into()
        .map_err(|outputs: Vec<Var>| Error::OutputCount {
            module,
            given: outputs.len(),
        })?;
    let [output] = outputs;
    Ok(output)
}

/// A module's own training flag: on at first. Show it in [`Module::visit`], and
/// [`Module::set_training`] of whatever contains the module reaches it.
#[derive(Debug)]
pub struct Training(AtomicBool);

impl Training {
    /// Whether the module is in training.
    pub fn is_on(&self) -> bool {
        self.0.load(Relaxed)
    }
}

impl Default for Training {
    fn default() -> Training {
        Training(AtomicBool::new(true))
    }
}

/// How often a module did something that its next result depends on, such as dropout's draws. Show
/// it in [`Module::visit`], and a [`State`](crate::State) saves and restores it as an `i64`, so
/// that a run resumes bit for bit. It lives on the host: using it waits for no device.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Counts one more and returns the count before.
    pub fn advance(&self) -> u64 {
        self.0.fetch_add(1, Relaxed)
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Goes on from `count`.
    pub fn set(&self, count: u64) {
        self.0.store(count, Relaxed);
    }
}

/// What a module consists of.
pub(crate) enum Item<'a> {
    Param(&'a Param),
    Buffer(&'a Buffer),
    Count(&'a Count),
    Mode(&'a Training),
}

/// Sees a module's parts and keeps the path to them. See [`Module::visit`].
pub struct Visitor<'a> {
    path: String,
    see: &'a mut dyn FnMut(&str, Item<'_>),
}

impl Visitor<'_> {
    /// A parameter.
    pub fn param(&mut self, name: &str, param: &Param) {
        self.at(name, |v| (v.see)(&v.path, Item::Param(param)));
    }

    /// A parameter that may be absent, such as a bias.
    pub fn optional_param(&mut self, name: &str, param: Option<&Param>) {
        if let Some(param) = param {
            self.param(name, param);
        }
    }

    /// A buffer.
    pub fn buffer(&mut self, name: &str, buffer: &Buffer) {
        self.at(name, |v| (v.see)(&v.path, Item::Buffer(buffer)));
    }

    /// A count that belongs to the module's state.
    pub fn count(&mut self, name: &str, count: &Count) {
        self.at(name, |v| (v.see)(&v.path, Item::Count(count)));
    }

    /// The module's training flag.
    pub fn training(&mut self, flag: &Training) {
        (self.see)(&self.path, Item::Mode(flag));
    }

    /// A module inside this one: its parts get the prefix `name.`.
    pub fn child<M: Module + ?Sized>(&mut self, name: &str, module: &M) {
        self.at(name, |v| module.visit(v));
    }

    fn at(&mut self, name: &str, f: impl FnOnce(&mut Self)) {
        let len = self.path.len();
        if len > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        f(self);
        self.path.truncate(len);
    }
}

/// Shows every part of a module, under each of its names.
pub(crate) fn walk<M: Module + ?Sized>(module: &M, see: &mut dyn FnMut(&str, Item<'_>)) {
    module.visit(&mut Visitor {
        path: String::new(),
        see,
    });
}

/// The names of one parameter or buffer beyond the first: `(alias, first name)` pairs.
pub(crate) fn aliases<M: Module + ?Sized>(module: &M) -> Vec<(String, String)> {
    let mut first: std::collections::HashMap<ParamId, String> = Default::default();
    let mut out = Vec::new();
    walk(module, &mut |path, item| {
        let id = match item {
            Item::Param(p) => p.id(),
            Item::Buffer(b) => b.id(),
            Item::Count(_) | Item::Mode(_) => return,
        };
        match first.get(&id) {
            Some(name) => out.push((path.to_owned(), name.clone())),
            None => _ = first.insert(id, path.to_owned()),
        }
    });
    out
}
