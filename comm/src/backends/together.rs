//! [`Together`]: calls that were issued one after another, as one work.

use crate::error::Result;
use crate::work::{Pending, Tensors};

/// What is done when all of its calls are.
pub(crate) struct Together(pub(crate) Vec<Box<dyn Pending>>);

impl Pending for Together {
    fn poll(&mut self) -> Result<bool> {
        let mut all = true;
        for pending in &mut self.0 {
            all &= pending.poll()?;
        }
        Ok(all)
    }

    fn wait(self: Box<Self>) -> Result<Tensors> {
        let mut outputs = Tensors::new();
        for pending in self.0 {
            outputs.extend(pending.wait()?);
        }
        Ok(outputs)
    }
}
