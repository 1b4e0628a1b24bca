//! [`Embedding`]: a table of learned vectors.

use super::init::{Factory, Init};
use super::module::{Module, Visitor};
use crate::error::Result;
use crate::param::Param;
use crate::tape::Tape;
use crate::var::Var;

/// The rows of a table at given ids, `[…]` of type `i64` or `i32` to `[…, width]`, as
/// `torch.nn.Embedding`: the parameter `weight` `[entries, width]`, normal with variance 1.
#[derive(Debug)]
pub struct Embedding {
    /// `[entries, width]`.
    pub weight: Param,
}

impl Embedding {
    /// A table of `entries` rows of `width` features.
    ///
    /// # Errors
    /// As [`Factory::tensor`].
    pub fn new(entries: usize, width: usize, f: &mut Factory) -> Result<Embedding> {
        let init = Init::Normal {
            mean: 0.0,
            std: 1.0,
        };
        Ok(Embedding {
            weight: Param::new(f.tensor([entries, width], init)?),
        })
    }
}

impl Module for Embedding {
    fn forward(&self, tape: &Tape, ids: &Var) -> Result<Var> {
        tape.leaf(&self.weight).embedding(ids.value())
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.param("weight", &self.weight);
    }
}
