//! [`Sequential`]: modules one after another, on one device or on several.

use super::module::{Module, Visitor, one_output};
use crate::error::{Error, Result};
use crate::param::ParamId;
use crate::tape::Tape;
use crate::var::Var;
use phalanx_tensor::Device;
use std::collections::HashMap;
use std::slice::from_ref;

/// Modules one after another, named `0`, `1`, …, as `torch.nn.Sequential`. Where a layer gives several
/// variables, the next one takes them all.
#[derive(Default)]
pub struct Sequential {
    layers: Vec<Box<dyn Module>>,
    /// Where the first layers compute; the others compute where their input is.
    devices: Vec<Device>,
}

impl Sequential {
    /// No layers: the identity.
    pub fn new() -> Sequential {
        Sequential::default()
    }

    /// The same with one more layer at the end.
    #[must_use]
    pub fn with(mut self, layer: impl Module + 'static) -> Sequential {
        self.layers.push(Box::new(layer));
        self
    }

    /// The layers in order.
    pub fn layers(&self) -> &[Box<dyn Module>] {
        &self.layers
    }

    /// Spreads the model over several devices: the layers before the first cut are on the first one, those from there
    /// to the second cut on the second one, and so on. Moves the parameters and buffers, and from then on
    /// [`forward`](Module::forward) moves what comes in to a layer's device, and gradients travel back. Names stay what
    /// they were. Layers that are added later compute where their input is.
    ///
    /// A device may occur several times. Labels, and whatever else meets the output, belong on the last device.
    ///
    /// Where no device has room for the whole model, make the layers where they belong
    /// ([`Factory::device`](super::Factory)), or on the host: this moves only what is elsewhere.
    ///
    /// ```
    /// use phalanx_autograd::Tape;
    /// use phalanx_autograd::nn::{Factory, Linear, Module, Relu, Sequential, mse};
    /// use phalanx_tensor::{DType, Device, Tensor};
    ///
    /// let (first, second) = (Device::cpu(0), Device::cpu(1));
    /// let mut f = Factory::new(first, 0);
    /// let model = Sequential::new()
    ///     .with(Linear::new(10, 10, &mut f)?)
    ///     .with(Relu)
    ///     .with(Linear::new(10, 5, &mut f)?)
    ///     .over(&[first, second], &[2])?; // the last layer is on the second device
    ///
    /// let tape = Tape::new();
    /// let x = tape.constant(Tensor::ones([20, 10], DType::F32, first)?);
    /// let y = tape.constant(Tensor::zeros([20, 5], DType::F32, second)?);
    /// let loss = mse(&model.forward(&tape, &x)?, &y)?;
    /// let gradients = tape.backward(&loss)?;
    /// let devices = model.parameters().into_iter().map(|p| gradients.get(&p).unwrap().device());
    /// assert_eq!(devices.collect::<Vec<_>>(), [first, first, second, second]);
    /// # Ok::<(), phalanx_autograd::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the cuts do not give each device at least one layer, or a parameter or buffer is
    /// shared by layers on two devices: nothing has moved then. As [`phalanx_tensor::Tensor::to_device`]: some layers
    /// have moved then.
    pub fn over(mut self, devices: &[Device], cuts: &[usize]) -> Result<Sequential> {
        let n = self.layers.len();
        let ends: Vec<usize> = cuts.iter().copied().chain([n]).collect();
        let starts = || [0].into_iter().chain(cuts.iter().copied());
        let grow = starts().zip(&ends).all(|(start, &end)| start < end);
        if ends.len() != devices.len() || !grow {
            return Err(invalid(format!(
                "{n} layers with cuts at {cuts:?} are no parts for {} devices; there is one cut fewer than devices, and \
                 the cuts rise from at least 1 to at most the number of layers less 1",
                devices.len()
            )));
        }
        let parts = starts().zip(&ends).zip(devices);
        self.devices = parts
            .flat_map(|((start, end), device)| (start..*end).map(|_| *device))
            .collect();
        self.expect_no_shared()?;
        for (layer, device) in self.layers.iter().zip(&self.devices) {
            layer.to_device(*device)?;
        }
        Ok(self)
    }

    /// That no parameter or buffer belongs on two devices.
    fn expect_no_shared(&self) -> Result<()> {
        let mut homes: HashMap<ParamId, (String, Device)> = HashMap::new();
        for (i, (layer, &device)) in self.layers.iter().zip(&self.devices).enumerate() {
            let params = layer.named_parameters().into_iter();
            let params = params.map(|(name, p)| (name, p.id()));
            let buffers = layer.named_buffers().into_iter();
            for (name, id) in params.chain(buffers.map(|(name, b)| (name, b.id()))) {
                let name = format!("{i}.{name}");
                match homes.get(&id) {
                    Some((first, home)) if *home != device => {
                        return Err(invalid(format!(
                            "`{first}` on {home} and `{name}` on {device} are one tensor, which has one device"
                        )));
                    }
                    Some(_) => {}
                    None => _ = homes.insert(id, (name, device)),
                }
            }
        }
        Ok(())
    }

    /// Takes the layers out, to cut the model into stages. They stay on their devices, and nothing moves what goes from
    /// one to the next any more.
    pub fn into_layers(self) -> Vec<Box<dyn Module>> {
        self.layers
    }
}

fn invalid(reason: String) -> Error {
    Error::InvalidArgument {
        op: "Sequential::over",
        reason,
    }
}

impl FromIterator<Box<dyn Module>> for Sequential {
    fn from_iter<I: IntoIterator<Item = Box<dyn Module>>>(layers: I) -> Sequential {
        Sequential {
            layers: layers.into_iter().collect(),
            devices: Vec::new(),
        }
    }
}

impl Module for Sequential {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        one_output("Sequential", self.forward_all(tape, from_ref(x))?)
    }

    fn forward_all(&self, tape: &Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        let forward = |i: usize, x: &[Var]| {
            let y = match self.devices.get(i) {
                Some(&device) => {
                    let moved = x.iter().map(|x| x.to_device(device));
                    let moved: Result<Vec<Var>> = moved.collect();
                    moved.and_then(|x| self.layers[i].forward_all(tape, &x))
                }
                None => self.layers[i].forward_all(tape, x),
            };
            y.map_err(|error| error.in_module(&i.to_string()))
        };
        if self.layers.is_empty() {
            return Ok(inputs.to_vec());
        }
        (1..self.layers.len()).try_fold(forward(0, inputs)?, |x, i| forward(i, &x))
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        for (i, layer) in self.layers.iter().enumerate() {
            v.child(&i.to_string(), layer);
        }
    }
}
