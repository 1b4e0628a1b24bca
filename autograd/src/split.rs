//! The backward pass in two halves: the gradients of the inputs now, those of the parameters later.

use crate::error::Result;
use crate::grads::Gradients;
use crate::sweep::{Backward, Needs, OnReady, Sink, call, distribute, needs};
use crate::tape::{Kind, Node, NodeId, NodeRef, Tape};
use crate::vjp::Grads;
use phalanx_tensor::{DType, Tensor};

impl Tape {
    /// The first half of a backward pass split in two: the gradients of the inputs (`I`) now, those
    /// of the parameters (`W`) when the returned work is run. A pipeline stage sends the first to
    /// its neighbour and fills idle time with the second. Consumes the recording; what `W` needs of
    /// it moves into the returned work.
    ///
    /// **Both halves together do exactly what [`sweep`](Tape::sweep) does, with the same bits**, and
    /// nothing that it does not. Without [`Backward::inputs`], that is every [`Tape::input`] and
    /// every operation without inputs now, every parameter later. With them, it is the chosen
    /// variables alone: those that are no parameters now, the chosen parameters later. A hook is
    /// told of parameters, so it belongs to [`WeightSweep::run`]; the one in `how` is not called.
    ///
    /// # Errors
    /// As [`sweep`](Tape::sweep).
    pub fn sweep_inputs<'a>(&self, how: Backward<'a>) -> Result<(Gradients, WeightSweep)> {
        let reached = self.reach(how.roots)?;
        let (mut slots, wanted) = self.prepare(&how)?;
        let chosen = how.inputs.map(|inputs| {
            let nodes = inputs.iter().filter_map(|v| v.node());
            nodes.map(|node| node.id.index()).collect::<Vec<_>>()
        });
        let at_once = |index: usize, node: &Node| match &chosen {
            _ if matches!(node.kind, Kind::Param(_)) => false,
            Some(chosen) => chosen.contains(&index),
            // An operation without inputs passes its gradient on by itself: to a neighbour, who waits.
            None => node.inputs.is_empty(),
        };
        let first = self.leading_to(at_once);
        let mut later = WeightSweep {
            recording: self.recording(),
            chosen: chosen.unwrap_or_default(),
            ..WeightSweep::default()
        };
        let mut sink = Sink::new(self.recording(), how);
        let mut nodes = self.take_nodes();
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
            let is_param = matches!(node.kind, Kind::Param(_));
            // A root that nobody chose may be an input itself.
            if !first.contains_index(index) && (is_param || !node.inputs.is_empty()) {
                // Parameters, and what lies only between them and the rest.
                let needs = needs(&node.inputs, |id| wanted.contains(id));
                if let Kind::Op(vjp) = &mut node.kind {
                    match (needs.contains(&true), needs.contains(&false)) {
                        (false, _) => continue,
                        (true, true) => vjp.shrink(&needs),
                        (true, false) => {}
                    }
                }
                later.slots[index] = slot;
                later.nodes.push((index, node, Work::Part(needs)));
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
            let all = needs(&node.inputs, |id| wanted.contains(id));
            let now = needs(&node.inputs, |id| first.contains(id));
            let rest: Needs = all
                .iter()
                .zip(&now)
                .map(|(&all, &now)| all && !now)
                .collect();
            let name = vjp.name();
            if !rest.contains(&true) {
                if now.contains(&true) || node.inputs.is_empty() {
                    let grads = call(&**vjp, grad, &now)?;
                    distribute(name, &mut slots, &node.inputs, dtype, &now, grads)?;
                }
            } else if vjp.joint() && now.contains(&true) {
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
                if now.contains(&true) {
                    let grads = call(&**vjp, grad.clone(), &now)?;
                    distribute(name, &mut slots, &node.inputs, dtype, &now, grads)?;
                }
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
    /// The gradients of the marked inputs, or the leaf; the gradient of the output waits in the
    /// slot, where there is one.
    Part(Needs),
    /// Nothing but handing out the gradients of the marked inputs, which the vjp of this name gave.
    Deliver(&'static str, Box<Grads>, Needs),
}

/// The second half of a split backward pass, made by [`Tape::sweep_inputs`]. Dropping it gives up
/// the parameters' gradients.
#[derive(Default)]
#[must_use = "the parameters' gradients are computed by `run`"]
pub struct WeightSweep {
    recording: u64,
    /// The nodes that [`Backward::inputs`] named.
    chosen: Vec<usize>,
    slots: Vec<Option<Tensor>>,
    /// Of all nodes.
    dtypes: Vec<DType>,
    /// In the order of the tape.
    nodes: Vec<(usize, Node, Work)>,
}

impl WeightSweep {
    /// Computes the parameters' gradients, in the order that [`Tape::plan`] gave; of chosen
    /// parameters also [by variable](Gradients::wrt).
    ///
    /// # Errors
    /// Those of the operations' backward passes and of the hook.
    pub fn run<'a>(mut self, on_ready: Option<&'a mut OnReady<'a>>) -> Result<Gradients> {
        let how = Backward {
            on_ready,
            ..Backward::default()
        };
        let mut sink = Sink::new(self.recording, how);
        while let Some((index, node, work)) = self.nodes.pop() {
            let grad = self.slots[index].take();
            let grad = grad.map(|grad| node.finish(grad)).transpose()?;
            let (name, grads, needs) = match (work, node.kind, grad) {
                (Work::Deliver(name, grads, needs), ..) => (name, *grads, needs),
                (_, _, None) => continue,
                (Work::Part(needs), Kind::Op(vjp), Some(grad)) => {
                    (vjp.name(), call(&*vjp, grad, &needs)?, needs)
                }
                (_, leaf, Some(grad)) => {
                    if self.chosen.contains(&index) {
                        let (recording, id) = (self.recording, NodeId::at(index));
                        let node = NodeRef { recording, id };
                        sink.gradients.insert_var(node, grad.clone());
                    }
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
