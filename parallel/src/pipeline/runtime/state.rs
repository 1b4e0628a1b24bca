//! Saving and loading in the form of the uncut model, whatever the cut.

use super::Pipeline;
use crate::{Error, Result, talk};
use phalanx_autograd::State;
use phalanx_autograd::nn::{Module, Visitor};
use phalanx_autograd::optim::Optimizer;
use phalanx_autograd::{Tape, Var};

/// A stage that was made by hand: its parameters are named by its number.
pub(super) struct Numbered {
    pub(super) name: String,
    pub(super) module: Box<dyn Module>,
}

impl Module for Numbered {
    fn forward(&self, tape: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        self.module.forward(tape, x)
    }
    fn forward_all(&self, tape: &Tape, inputs: &[Var]) -> phalanx_autograd::Result<Vec<Var>> {
        self.module.forward_all(tape, inputs)
    }
    fn visit(&self, v: &mut Visitor<'_>) {
        v.child(&self.name, &self.module);
    }
}

/// The tags of what is gathered, which no transfer of a step has.
const NAMES: u32 = u32::MAX;
const TENSORS: u32 = u32::MAX - 1;

impl Pipeline {
    /// The parameters, buffers and counts of the whole model, in the form of the uncut one, on the group's first rank; the
    /// others get none. Those of layers have the layers' names; those of stages that were made by hand begin with the
    /// stage's number, as `3.weight`. Every rank must call it.
    ///
    /// # Errors
    /// As [`State::of`]; errors of the communication.
    pub fn state(&self) -> Result<Option<State>> {
        let mut mine = State::new();
        for (_, stage) in self.stages() {
            add(&mut mine, State::of(stage)?);
        }
        self.gather(mine)
    }

    /// Loads this rank's part of a state that [`state`](Pipeline::state) gave at any cut, or that is one of the uncut model.
    /// Nothing is sent; every rank loads for itself.
    ///
    /// # Errors
    /// As [`State::load_into`], for names of this rank's stages; [`Error::InvalidUse`] for a name that is of no stage.
    pub fn load_state(&self, state: &State) -> Result<()> {
        let known = |name: &str| {
            self.names
                .iter()
                .flatten()
                .any(|layer| is_inside(name, layer))
        };
        if let Some((name, _)) = state.iter().find(|(name, _)| !known(name)) {
            return Err(Error::InvalidUse {
                op: "Pipeline::load_state",
                reason: format!("the state has `{name}`, which is a part of no stage"),
            });
        }
        for (number, stage) in self.stages() {
            let mut own = State::new();
            let inside = |name: &str| {
                self.names[number]
                    .iter()
                    .any(|layer| is_inside(name, layer))
            };
            for (name, tensor) in state.iter().filter(|(name, _)| inside(name)) {
                own.insert(name, tensor.clone());
            }
            own.load_into(stage)?;
        }
        Ok(())
    }

    /// The state of an optimizer over [`parameters`](Pipeline::parameters), in the form of one over the parameters of the
    /// uncut model, on the group's first rank; the others get none. Every rank must call it.
    ///
    /// # Errors
    /// As [`Optimizer::state`]; errors of the communication.
    pub fn optimizer_state(&self, optimizer: &dyn Optimizer) -> Result<Option<State>> {
        let places = self.places()?;
        let mut mine = State::new();
        for (name, tensor) in optimizer.state()?.iter() {
            let renamed = renumbered(name, |local| places.get(local).copied());
            mine.insert(renamed.unwrap_or_else(|| name.to_owned()), tensor.clone());
        }
        self.gather(mine)
    }

    /// Loads this rank's part of what [`optimizer_state`](Pipeline::optimizer_state) gave at any cut. Every rank must call
    /// it.
    ///
    /// # Errors
    /// As [`Optimizer::load_state`]; errors of the communication.
    pub fn load_optimizer_state(&self, optimizer: &mut dyn Optimizer, state: &State) -> Result<()> {
        let places = self.places()?;
        let mut own = State::new();
        for (name, tensor) in state.iter() {
            let local = |whole: usize| places.iter().position(|&place| place == whole);
            match name.split('.').next().map(str::parse::<usize>) {
                Some(Ok(_)) => {
                    if let Some(name) = renumbered(name, local) {
                        own.insert(name, tensor.clone());
                    }
                }
                _ => own.insert(name, tensor.clone()),
            }
        }
        Ok(optimizer.load_state(own)?)
    }

    /// Which parameter of the uncut model each of this rank's is.
    fn places(&self) -> Result<Vec<usize>> {
        let stages = self.schedule.stages();
        let mut counts = vec![0i64; stages];
        for (number, stage) in self.stages() {
            counts[number] = stage.parameters().len() as i64;
        }
        let all = talk::gather_numbers(counts, &*self.group)?;
        let count = |stage: usize| all[self.schedule.rank_of(stage) * stages + stage] as usize;
        let mut places = Vec::new();
        for (number, _) in self.stages() {
            let before: usize = (0..number).map(count).sum();
            places.extend(before..before + count(number));
        }
        Ok(places)
    }

    /// All ranks' states as one, on the first rank.
    fn gather(&self, mine: State) -> Result<Option<State>> {
        let group = &*self.group;
        if group.rank() > 0 {
            let names: Vec<&str> = mine.iter().map(|(name, _)| name).collect();
            let names = names.join("\n").into_bytes();
            // Tensors of a stage over several cards travel from the one of the group. All are there before the first goes.
            let card = group.device();
            let tensors = mine.iter().map(|(_, tensor)| match tensor.device() {
                device if device.is_cpu() || device == card => Ok(tensor.clone()),
                _ => tensor.to_device(card),
            });
            let tensors = tensors.collect::<std::result::Result<Vec<_>, _>>()?;
            let mut works = vec![talk::tell(group, 0, NAMES, names)?];
            for tensor in tensors {
                works.push(group.send_any(tensor, 0, TENSORS)?);
            }
            for work in works {
                work.wait()?;
            }
            return Ok(None);
        }
        let mut whole = mine;
        for rank in 1..group.size() {
            let names = talk::hear::<u8>(group, rank, NAMES)?;
            let names = String::from_utf8_lossy(&names).into_owned();
            let mut theirs = State::new();
            for name in names.lines() {
                theirs.insert(name, group.recv_any(rank, TENSORS)?.wait()?);
            }
            add(&mut whole, theirs);
        }
        Ok(Some(whole))
    }
}

fn add(to: &mut State, from: State) {
    for (name, tensor) in from.iter() {
        to.insert(name, tensor.clone());
    }
}

/// Whether a dotted name is of something in this layer.
fn is_inside(name: &str, layer: &str) -> bool {
    name.strip_prefix(layer)
        .is_some_and(|rest| rest.starts_with('.'))
}

/// `3.exp_avg` with another number.
fn renumbered(name: &str, number: impl Fn(usize) -> Option<usize>) -> Option<String> {
    let (first, rest) = name.split_once('.')?;
    let number = number(first.parse().ok()?)?;
    Some(format!("{number}.{rest}"))
}
