//! [`Sequential`]: modules one after another.

use super::module::{Module, Visitor, one_output};
use crate::error::Result;
use crate::tape::Tape;
use crate::var::Var;
use std::slice::from_ref;

/// Modules one after another, named `0`, `1`, …, as `torch.nn.Sequential`. Where a layer gives several
/// variables, the next one takes them all.
#[derive(Default)]
pub struct Sequential {
    layers: Vec<Box<dyn Module>>,
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

    /// Takes the layers out, to cut the model into stages.
    pub fn into_layers(self) -> Vec<Box<dyn Module>> {
        self.layers
    }
}

impl FromIterator<Box<dyn Module>> for Sequential {
    fn from_iter<I: IntoIterator<Item = Box<dyn Module>>>(layers: I) -> Sequential {
        Sequential {
            layers: layers.into_iter().collect(),
        }
    }
}

impl Module for Sequential {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        one_output("Sequential", self.forward_all(tape, from_ref(x))?)
    }

    fn forward_all(&self, tape: &Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        let forward = |i: usize, x: &[Var]| {
            let y = self.layers[i].forward_all(tape, x);
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
