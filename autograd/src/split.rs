//! The backward pass in two halves: the gradients of the inputs now, those of the parameters later.

use crate::error::Result;
use crate::grads::Gradients;
use crate::sweep::{Backward, Needs, OnReady, Sink, call, distribute, needs};
use crate::tape::{Kind, Node, NodeId, Tape};
use crate::vjp::Grads;
use phalanx_tensor::{DType, Tensor};

impl Tape {
    /// The first half of a backward pass split in two: the gradients of the inputs (`I`) now, of
    /// operations without inputs too, those of the parameters (`W`) when the returned work is run. A pipeline stage sends the first to
    /// its neighbour and fills idle time with the second. Consumes the recording; what `W` needs of
    /// it moves into the returned work.
    ///
    /// Both halves together do exactly what [`sweep`](Tape::sweep) does, with the same bits.
    ///
    /// # Errors
    /// As [`sweep`](Tape::sweep).
    pub fn sweep_inputs<'a>(&self, how: Backward<'a>) -> Result<(Gradients, WeightSweep)> {
        let reached = self.reach(how.roots)?;
        let (mut slots, mut wanted) = self.prepare(&how)?;
        if how.inputs.is_none() {
            // An operation without inputs passes its gradient on by itself: to a neighbour, who waits.
            let is_source =
                |node: &Node| node.inputs.is_empty() && !matches!(node.kind, Kind::Param(_));
            wanted = self.leading_to(|_, node| is_source(node));
        }
        let mut sink = Sink::new(self.recording(), how);
        let mut nodes = self.take_nodes();
        let mut later = WeightSweep::default();
        later.slots.resize_with(nodes.len(), || None);
        later.dtypes = nodes.iter().map(|node| node.dtype).collect();
        while let Some(mut node) = nodes.pop() {
            let index = nodes.len();
            if index >= slots.len() {
                continue;
            }
            let slot = slots.pop().flatten();
            if !reached[index] {
                continue;
            }
            if !wanted.contains_index(index) {
                // Parameters, and what lies only between them and the rest.
                later.slots[index] = slot;
                later.nodes.push((index, node, Work::Whole));
                continue;
            }
            let Some(grad) = slot else { continue };
            let grad = node.finish(grad)?;
            let dtype = |id: NodeId| nodes[id.index()].dtype;
            sink.keep_chosen(index, &grad);
            let Kind::Op(vjp) = &mut node.kind else {
                sink.leaf(index, node.kind, grad)?;
                continue;
            };
            let now = needs(&node.inputs, |id| wanted.contains(id));
            let rest = needs(&node.inputs, |id| !wanted.contains(id));
            let name = vjp.name();
            if !rest.contains(&true) {
                let grads = call(&**vjp, grad, &now)?;
                distribute(name, &mut slots, &node.inputs, dtype, &now, grads)?;
            } else if vjp.joint() {
                let all = needs(&node.inputs, |_| true);
                let mut grads = call(&**vjp, grad, &all)?;
                let held: Grads = rest
                    .iter()
                    .zip(&mut grads)
                    .map(|(&rest, g)| if rest { g.take() } else { None })
                    .collect();
                distribute(name, &mut slots, &node.inputs, dtype, &now, grads)?;
                node.kind = Kind::Input; // its work is done, the saved tensors go
                later
                    .nodes
                    .push((index, node, Work::Deliver(name, Box::new(held), rest)));
            } else {
                let grads = call(&**vjp, grad.clone(), &now)?;
                distribute(name, &mut slots, &node.inputs, dtype, &now, grads)?;
                vjp.shrink(&rest);
                later.slots[index] = Some(grad);
                later.nodes.push((index, node, Work::Part(rest)));
            }
        }
        self.recycle(nodes);
        later.nodes.reverse();
        Ok((sink.gradients, later))
    }
}

/// What is left to do at a node.
enum Work {
    /// All of it.
    Whole,
    /// The inputs that are marked; the gradient of the output waits in the slot.
    Part(Needs),
    /// Nothing but handing out the gradients of the marked inputs, which the vjp of this name gave.
    Deliver(&'static str, Box<Grads>, Needs),
}

/// The second half of a split backward pass, made by [`Tape::sweep_inputs`]. Dropping it gives up
/// the parameters' gradients.
#[derive(Default)]
#[must_use = "the parameters' gradients are computed by `run`"]
pub struct WeightSweep {
    slots: Vec<Option<Tensor>>,
    /// Of all nodes.
    dtypes: Vec<DType>,
    /// In the order of the tape.
    nodes: Vec<(usize, Node, Work)>,
}

impl WeightSweep {
    /// Computes the parameters' gradients, in the order that [`Tape::plan`] gave.
    ///
    /// # Errors
    /// Those of the operations' backward passes and of the hook.
    pub fn run<'a>(mut self, on_ready: Option<&'a mut OnReady<'a>>) -> Result<Gradients> {
        let how = Backward {
            on_ready,
            ..Backward::default()
        };
        let mut sink = Sink::new(u64::MAX, how);
        while let Some((index, node, work)) = self.nodes.pop() {
            let grad = self.slots[index].take();
            let grad = grad.map(|grad| node.finish(grad)).transpose()?;
            let (name, grads, needs) = match (work, node.kind, grad) {
                (Work::Deliver(name, grads, needs), ..) => (name, *grads, needs),
                (_, _, None) => continue,
                (work, Kind::Op(vjp), Some(grad)) => {
                    let needs = match work {
                        Work::Part(needs) => needs,
                        _ => needs(&node.inputs, |_| true),
                    };
                    (vjp.name(), call(&*vjp, grad, &needs)?, needs)
                }
                (_, leaf, Some(grad)) => {
                    sink.leaf(index, leaf, grad)?;
                    continue;
                }
            };
            let dtype = |id: NodeId| self.dtypes[id.index()];
            distribute(name, &mut self.slots, &node.inputs, dtype, &needs, grads)?;
        }
        Ok(sink.gradients)
    }

    /// Bytes held for the second half: saved tensors and waiting gradients, shared storage counted
    /// at each holder.
    pub fn saved_bytes(&self) -> usize {
        let saved = self.nodes.iter().map(|(_, node, work)| {
            let vjp = match &node.kind {
                Kind::Op(vjp) => vjp.saved_bytes(),
                _ => 0,
            };
            let held = match work {
                Work::Deliver(_, grads, _) => grads.iter().flatten().map(crate::tensor_bytes).sum(),
                _ => 0,
            };
            vjp + held
        });
        saved.sum::<usize>()
            + self
                .slots
                .iter()
                .flatten()
                .map(crate::tensor_bytes)
                .sum::<usize>()
    }
}
