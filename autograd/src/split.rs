//! The backward pass in two halves: the gradients of the inputs now, those of the parameters later.

use crate::contribute::{Inputs, Needs, Target, needs};
use crate::error::Result;
use crate::grads::Gradients;
use crate::sweep::{Backward, OnReady, Sink, expect_buffers};
use crate::tape::{Kind, Node, NodeId, NodeRef, Tape};
use crate::vjp::Grads;
use phalanx_tensor::Tensor;

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
    /// told of parameters, so it belongs to [`WeightSweep::run`]; the one in `how` is not called. Neither
    /// is anything added to the gradients in [`Backward::into`], which come back as they were.
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
            let mut inputs = Inputs {
                ids: &node.inputs,
                needs: &now,
                target: |id: NodeId| nodes[id.index()].target(),
                slots: &mut slots,
                into: &mut sink.gradients,
            };
            if !rest.contains(&true) {
                if now.contains(&true) || node.inputs.is_empty() {
                    let grads = inputs.call(&**vjp, grad)?;
                    inputs.add(name, grads)?;
                }
            } else if vjp.joint() && now.contains(&true) {
                inputs.needs = &all;
                let mut grads = inputs.call(&**vjp, grad)?;
                let held: Grads = rest
                    .iter()
                    .zip(&mut grads)
                    .map(|(&rest, g)| if rest { g.take() } else { None })
                    .collect();
                inputs.needs = &now;
                inputs.add(name, grads)?;
                node.kind = Kind::Input; // its work is done, the saved tensors go
                later
                    .nodes
                    .push((index, node, Work::Deliver(name, Box::new(held), rest)));
            } else {
                if now.contains(&true) {
                    let grads = inputs.call(&**vjp, grad.clone())?;
                    inputs.add(name, grads)?;
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
    /// In the order of the tape, all that gradients may still go to.
    nodes: Vec<(usize, Node, Work)>,
}

impl WeightSweep {
    /// Computes the parameters' gradients, in the order that [`Tape::plan`] gave; of chosen
    /// parameters also [by variable](Gradients::wrt). They are added to those in `into`, as
    /// [`Backward::into`] says.
    ///
    /// # Errors
    /// Those of the operations' backward passes and of the hook;
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) where `into` holds something unlike its
    /// parameter.
    pub fn run<'a>(
        mut self,
        into: Gradients,
        on_ready: Option<&'a mut OnReady<'a>>,
    ) -> Result<Gradients> {
        expect_buffers("run", &into)?;
        let how = Backward {
            on_ready,
            into,
            ..Backward::default()
        };
        let mut sink = Sink::new(self.recording, how);
        while let Some((index, node, work)) = self.nodes.pop() {
            let grad = self.slots[index].take();
            let grad = grad.map(|grad| node.finish(grad)).transpose()?;
            let mut inputs = Inputs {
                ids: &node.inputs,
                needs: &[],
                target: |id| target(&self.nodes, id),
                slots: &mut self.slots,
                into: &mut sink.gradients,
            };
            match (work, grad) {
                (Work::Deliver(name, grads, needs), _) => {
                    inputs.needs = &needs;
                    inputs.add(name, *grads)?;
                }
                (Work::Part(_), None) => {}
                (Work::Part(needs), Some(grad)) => {
                    if let Kind::Op(vjp) = node.kind {
                        inputs.needs = &needs;
                        let grads = inputs.call(&*vjp, grad)?;
                        let name = vjp.name();
                        drop(vjp);
                        inputs.add(name, grads)?;
                        continue;
                    }
                    let grad = sink.onto_buffer(&node, grad)?;
                    if self.chosen.contains(&index) {
                        let (recording, id) = (self.recording, NodeId::at(index));
                        let node = NodeRef { recording, id };
                        sink.gradients.insert_var(node, grad.clone());
                    }
                    sink.leaf(index, node.kind, grad)?;
                }
            }
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

/// What a node is that waits for its gradient.
fn target(nodes: &[(usize, Node, Work)], id: NodeId) -> Target<'_> {
    match nodes.binary_search_by_key(&id.index(), |(index, ..)| *index) {
        Ok(at) => nodes[at].1.target(),
        Err(_) => unreachable!("what leads to a parameter waits until its gradient comes"),
    }
}
