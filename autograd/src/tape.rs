//! [`Tape`]: the record of a forward pass.
//!
//! **Append order is topological order**: an operation is recorded after its inputs. So backward is
//! one loop from the end ([`sweep`](crate::sweep)), without sort, recursion or counters.
//!
//! **A parameter has one node per recording**, made where it is used first, before everything that
//! uses it. So its gradient is final exactly when the sweep passes that node.

use crate::draws::Draws;
use crate::error::{Error, Result};
use crate::param::{IdMap, Param, ParamId};
use crate::var::Var;
use crate::vjp::Vjp;
use phalanx_tensor::{DType, Tensor};
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Index of a node in its recording.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct NodeId(u32);

impl NodeId {
    /// Stands for an input that needs no gradient.
    pub(crate) const NONE: NodeId = NodeId(u32::MAX);

    pub(crate) fn at(index: usize) -> NodeId {
        NodeId(index as u32)
    }

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A node of one recording: what a recorded variable points to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NodeRef {
    /// Unique in the process, so that a variable of a consumed recording is never mistaken.
    pub(crate) recording: u64,
    pub(crate) id: NodeId,
}

/// What a node stands for.
pub(crate) enum Kind {
    /// A parameter: its gradient goes to the hook and to the result.
    Param(Param),
    /// An input that wants a gradient.
    Input,
    /// An operation.
    Op(Box<dyn Vjp>),
}

pub(crate) struct Node {
    pub(crate) inputs: SmallVec<[NodeId; 2]>,
    pub(crate) kind: Kind,
    /// The element type of its value.
    pub(crate) dtype: DType,
}

/// What a tape does with the operations on its variables.
enum Mode {
    Record,
    Infer,
    /// Record nothing, but note the parameters, frozen ones too, and the seeds that are used: a
    /// computation on behalf of the tape inside.
    Trace(Tape),
    /// Record, with the parameters' values and the seeds of a trace.
    Replay(RefCell<std::vec::IntoIter<u64>>),
}

/// What a tracing tape has seen.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) params: Vec<(Param, Tensor)>,
    /// Those that were frozen.
    pub(crate) frozen: Vec<(ParamId, Tensor)>,
    pub(crate) seeds: Vec<u64>,
}

struct Inner {
    mode: Mode,
    recording: Cell<u64>,
    nodes: RefCell<Vec<Node>>,
    /// The first use of each parameter in this recording.
    leaves: RefCell<IdMap<(NodeId, Tensor)>>,
    /// What a trace has found, or a replay finds, in frozen parameters.
    frozen: RefCell<IdMap<Tensor>>,
    trace: RefCell<Trace>,
    /// What random numbers follow from; `None`: from how often each layer drew.
    draws: RefCell<Option<Draws>>,
}

/// The record of a forward pass, and the handle to run it backward.
///
/// A tape belongs to one thread; its clones are handles to the same record. Variables carry it
/// along, so it is passed by hand only where a computation begins.
///
/// [`backward`](Tape::backward) consumes the recording: the tape is empty afterwards, holds no
/// tensor, and is ready for the next step. Variables of the consumed recording keep their values,
/// but using one in a new recorded operation is [`Error::Consumed`].
///
/// ```
/// use phalanx_autograd::{Param, Tape};
/// use phalanx_tensor::{Device, Tensor};
///
/// let w = Param::new(Tensor::from_slice(&[3.0f64], [1], Device::cpu(0))?);
/// let tape = Tape::new();
/// let x = tape.leaf(&w);
/// let y = x.mul(&x)?; // w²
/// let gradients = tape.backward(&y)?;
/// assert_eq!(gradients.get(&w).unwrap().item::<f64>()?, 6.0);
/// # Ok::<(), phalanx_autograd::Error>(())
/// ```
///
/// It cannot leave its thread:
///
/// ```compile_fail
/// let tape = phalanx_autograd::Tape::new();
/// std::thread::spawn(move || tape.clear());
/// ```
#[derive(Clone)]
pub struct Tape(Rc<Inner>);

fn next_recording() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Relaxed)
}

impl Tape {
    fn with_mode(mode: Mode) -> Tape {
        Tape(Rc::new(Inner {
            mode,
            recording: Cell::new(next_recording()),
            nodes: RefCell::default(),
            leaves: RefCell::default(),
            frozen: RefCell::default(),
            trace: RefCell::default(),
            draws: RefCell::default(),
        }))
    }

    /// A tape that records.
    pub fn new() -> Tape {
        Tape::with_mode(Mode::Record)
    }

    /// A tape that records nothing: nothing is kept for a backward pass.
    pub fn inference() -> Tape {
        Tape::with_mode(Mode::Infer)
    }

    /// A tape that records nothing, but notes what a later [`replay`](Tape::replay) needs.
    pub(crate) fn tracing(&self) -> Tape {
        Tape::with_mode(Mode::Trace(self.clone()))
    }

    /// A tape that records a traced computation again, with the values it had then.
    pub(crate) fn replay(trace: &Trace) -> Tape {
        let seeds = RefCell::new(trace.seeds.clone().into_iter());
        let tape = Tape::with_mode(Mode::Replay(seeds));
        for (param, value) in &trace.params {
            tape.add_leaf(param, value.clone());
        }
        tape.0
            .frozen
            .borrow_mut()
            .extend(trace.frozen.iter().cloned());
        tape
    }

    /// Whether operations on parameters and inputs are recorded.
    pub fn is_recording(&self) -> bool {
        matches!(self.0.mode, Mode::Record | Mode::Replay(_))
    }

    /// Whether this is a second run of a computation that ran before (see
    /// [`checkpoint`](crate::checkpoint())), whose side effects have taken place: running statistics
    /// must not be updated again.
    pub fn is_replaying(&self) -> bool {
        match &self.0.mode {
            Mode::Record | Mode::Infer => false,
            Mode::Trace(parent) => parent.is_replaying(),
            Mode::Replay(_) => true,
        }
    }

    /// The variable of a parameter. The first call in a recording fixes the value; later ones
    /// return the same variable.
    pub fn leaf(&self, param: &Param) -> Var {
        if !self.records(param) {
            return self.constant(self.frozen_value(param));
        }
        let known = self.0.leaves.borrow().get(&param.id()).cloned();
        let (id, value) = known.unwrap_or_else(|| match &self.0.mode {
            Mode::Trace(parent) => self.add_leaf(param, parent.leaf(param).into_value()),
            _ => self.add_leaf(param, param.share()),
        });
        Var::new(self, id, value)
    }

    /// Whether a parameter has a gradient here. In a second run what held in the first, whatever has
    /// become of the parameter since; one that was both is one that the computation switches itself.
    fn records(&self, param: &Param) -> bool {
        match &self.0.mode {
            Mode::Infer => false,
            Mode::Record => param.requires_grad(),
            Mode::Trace(parent) => parent.records(param),
            Mode::Replay(_) => {
                let trained = self.0.leaves.borrow().contains_key(&param.id());
                let frozen = self.0.frozen.borrow().contains_key(&param.id());
                match trained == frozen {
                    true => param.requires_grad(),
                    false => trained,
                }
            }
        }
    }

    /// The value of a parameter that has no gradient here.
    fn frozen_value(&self, param: &Param) -> Tensor {
        let known = || self.0.frozen.borrow().get(&param.id()).cloned();
        match &self.0.mode {
            Mode::Record | Mode::Infer => param.share(),
            Mode::Replay(_) => known().unwrap_or_else(|| param.share()),
            Mode::Trace(parent) => known().unwrap_or_else(|| {
                let value = parent.frozen_value(param);
                let mut frozen = self.0.frozen.borrow_mut();
                frozen.insert(param.id(), value.clone());
                let mut trace = self.0.trace.borrow_mut();
                trace.frozen.push((param.id(), value.clone()));
                value
            }),
        }
    }

    fn add_leaf(&self, param: &Param, value: Tensor) -> (NodeId, Tensor) {
        let id = if self.is_recording() {
            self.push(SmallVec::new(), Kind::Param(param.clone()), value.dtype())
        } else {
            let mut trace = self.0.trace.borrow_mut();
            trace.params.push((param.clone(), value.clone()));
            NodeId::NONE
        };
        let leaf = (id, value);
        let mut leaves = self.0.leaves.borrow_mut();
        leaves.insert(param.id(), leaf.clone());
        leaf
    }

    /// A variable without gradient: data, labels, masks.
    pub fn constant(&self, value: Tensor) -> Var {
        Var::new(self, NodeId::NONE, value)
    }

    /// A variable that wants a gradient and is no parameter, such as the input of a pipeline stage;
    /// read it with [`Gradients::wrt`](crate::Gradients::wrt). The gradient has the type of `value`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for elements that are no floats.
    pub fn input(&self, value: Tensor) -> Result<Var> {
        if !value.dtype().is_float() {
            return Err(Error::InvalidArgument {
                op: "input",
                reason: format!("elements of type {} have no gradient", value.dtype()),
            });
        }
        let id = if self.is_recording() {
            self.push(SmallVec::new(), Kind::Input, value.dtype())
        } else {
            NodeId::NONE
        };
        Ok(Var::new(self, id, value))
    }

    pub(crate) fn push(&self, inputs: SmallVec<[NodeId; 2]>, kind: Kind, dtype: DType) -> NodeId {
        let mut nodes = self.0.nodes.borrow_mut();
        // 2³² nodes of 60 bytes do not fit a machine that could run out of ids.
        let id = NodeId(nodes.len() as u32);
        nodes.push(Node {
            inputs,
            kind,
            dtype,
        });
        id
    }

    /// A seed for one use of random numbers: `fresh`, or in a second run of the same computation
    /// the seed that was drawn at this place in the first.
    pub fn seed(&self, fresh: impl FnOnce() -> u64) -> u64 {
        match &self.0.mode {
            Mode::Record | Mode::Infer => fresh(),
            Mode::Trace(parent) => {
                let seed = parent.seed(fresh);
                self.0.trace.borrow_mut().seeds.push(seed);
                seed
            }
            // A computation that draws more often in its second run is another computation.
            Mode::Replay(seeds) => {
                let recorded = seeds.borrow_mut().next();
                recorded.unwrap_or_else(fresh)
            }
        }
    }

    /// What random numbers follow from: that of the tape on whose behalf this one traces.
    pub(crate) fn draws(&self) -> &RefCell<Option<Draws>> {
        match &self.0.mode {
            Mode::Trace(parent) => parent.draws(),
            _ => &self.0.draws,
        }
    }

    pub(crate) fn take_trace(&self) -> Trace {
        self.0.leaves.borrow_mut().clear();
        self.0.frozen.borrow_mut().clear();
        self.0.trace.take()
    }

    /// Forgets the recording and every tensor in it. For a forward pass that gets no backward.
    pub fn clear(&self) {
        drop(self.take_nodes());
    }

    /// Ends the recording and hands out its nodes.
    pub(crate) fn take_nodes(&self) -> Vec<Node> {
        self.0.recording.set(next_recording());
        self.0.leaves.borrow_mut().clear();
        self.0.nodes.take()
    }

    /// Gives the emptied list back, so that the next recording need not grow it again.
    pub(crate) fn recycle(&self, nodes: Vec<Node>) {
        debug_assert!(nodes.is_empty());
        let mut own = self.0.nodes.borrow_mut();
        if own.capacity() == 0 {
            *own = nodes;
        }
    }

    pub(crate) fn with_nodes<R>(&self, f: impl FnOnce(&[Node]) -> R) -> R {
        f(&self.0.nodes.borrow())
    }

    pub(crate) fn recording(&self) -> u64 {
        self.0.recording.get()
    }

    pub(crate) fn same(&self, other: &Tape) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// The number of recorded nodes: operations, parameters and inputs.
    pub fn len(&self) -> usize {
        self.0.nodes.borrow().len()
    }

    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the recorded operations hold for the backward pass; storage that several share
    /// counts at each of them.
    pub fn saved_bytes(&self) -> usize {
        self.with_nodes(|nodes| {
            nodes
                .iter()
                .map(|node| match &node.kind {
                    Kind::Op(vjp) => vjp.saved_bytes(),
                    Kind::Param(_) | Kind::Input => 0,
                })
                .sum()
        })
    }
}

impl Default for Tape {
    fn default() -> Tape {
        Tape::new()
    }
}

impl fmt::Debug for Tape {
    /// The recorded nodes, one a line: number, operation, inputs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_nodes(|nodes| {
            writeln!(f, "Tape with {} nodes", nodes.len())?;
            for (i, node) in nodes.iter().enumerate() {
                match &node.kind {
                    Kind::Param(param) => write!(f, "  {i} = {param:?}")?,
                    Kind::Input => write!(f, "  {i} = input")?,
                    Kind::Op(vjp) => write!(f, "  {i} = {}", vjp.name())?,
                }
                for (k, input) in node.inputs.iter().enumerate() {
                    let comma = if k == 0 { " of " } else { ", " };
                    if *input == NodeId::NONE {
                        write!(f, "{comma}_")?;
                    } else {
                        write!(f, "{comma}{}", input.index())?;
                    }
                }
                writeln!(f)?;
            }
            Ok(())
        })
    }
}
