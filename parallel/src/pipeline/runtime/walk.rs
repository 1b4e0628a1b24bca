//! [`Walk`]: one pass through a rank's program. It computes, sends and receives in the order of the plan, and decides
//! nothing.

use super::edges::{self, Item, Sizes};
use super::pass::{Pass, Passed, Purpose};
use super::place::Place;
use super::program::Instruction;
use super::stage::{Arrival, Outcome, Stage};
use super::trace::Clock;
use crate::pipeline::{Action, Kind};
use crate::reduce::Average;
use crate::{Error, Result};
use phalanx_comm::{Message, Work};
use phalanx_tensor::Tensor;
use std::collections::HashMap;

/// What travels: along which edge, with the activations or against them, of which microbatch. Each is made once and used
/// once.
type Key = (usize, Way, usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Way {
    Forward,
    Back,
}

/// What a rank holds between the action that makes it and the one that uses it.
enum Held {
    There(Vec<Tensor>),
    /// It comes with the flight of this number.
    Coming(usize),
}

/// Transfers under way, and what they bring: so many tensors for each.
struct Flight {
    /// The first of them, which errors name.
    action: Action,
    work: Work<Vec<Tensor>>,
    brings: Vec<(Key, usize)>,
}

/// A pass under way.
pub(super) struct Walk<'a, 's> {
    pass: &'a Pass<'a>,
    stages: &'s mut [Stage],
    sizes: &'s mut Sizes,
    place: &'s Place<'s>,
    held: HashMap<Key, Held>,
    flights: Vec<Option<Flight>>,
    /// The flights before this one have landed.
    landed: usize,
    passed: Passed<'a>,
}

impl<'a, 's> Walk<'a, 's> {
    pub(super) fn new(
        pass: &'a Pass<'a>,
        stages: &'s mut [Stage],
        sizes: &'s mut Sizes,
        place: &'s Place<'s>,
    ) -> Self {
        let microbatches = pass.schedule.microbatches();
        stages.iter_mut().for_each(Stage::start);
        Walk {
            pass,
            stages,
            sizes,
            place,
            held: HashMap::new(),
            flights: Vec::new(),
            landed: 0,
            passed: Passed {
                losses: vec![None; microbatches],
                outputs: vec![Vec::new(); microbatches],
                ..Passed::default()
            },
        }
    }

    /// Does the whole program.
    pub(super) fn run(mut self, program: &[Instruction], clock: &mut Clock) -> Result<Passed<'a>> {
        for instruction in program {
            match instruction {
                Instruction::Compute(action) => {
                    self.place.enter(*action);
                    self.compute(*action, clock)?;
                }
                Instruction::Exchange(list) => self.exchange(list)?,
                Instruction::Reduce(stage) => {
                    self.place
                        .enter(Action::whole_stage(Kind::ReduceGrad, *stage as u16));
                    self.reduce(*stage)?;
                }
                Instruction::ReduceTied(action) => {
                    self.place.enter(*action);
                    self.reduce_tied(*action)?;
                }
            }
            self.poll()?;
        }
        for flight in self.flights.drain(..).flatten() {
            self.place.enter(flight.action);
            flight.work.wait()?;
        }
        Ok(self.passed)
    }

    fn compute(&mut self, action: Action, clock: &mut Clock) -> Result<()> {
        let (number, mb) = (action.stage(), action.microbatch());
        match action.kind() {
            Kind::Forward => {
                let inputs = self.arrivals(number, mb)?;
                let outcome = clock.measure(action, || self.forward(number, mb, inputs))?;
                self.hand_on(number, mb, outcome)
            }
            Kind::Weight => {
                clock.measure(action, || stage(self.stages, number).weight(mb, self.place))
            }
            kind => {
                let seeds = self.seeds(number, mb)?;
                let gradients = clock.measure(action, || {
                    let stage = stage(self.stages, number);
                    match kind {
                        Kind::Input => stage.input(mb, seeds),
                        _ => stage.backward(mb, seeds, self.place),
                    }
                })?;
                self.hand_back(number, mb, gradients)
            }
        }
    }

    fn forward(&mut self, number: usize, mb: usize, inputs: Vec<Arrival>) -> Result<Outcome> {
        let pass = self.pass;
        let is_last = pass.schedule.graph().successors(number).is_empty();
        let wants_loss = is_last && pass.purpose != Purpose::Infer;
        let loss = wants_loss.then_some((pass.loss, &pass.targets[mb][..]));
        let stage = stage(self.stages, number);
        match pass.purpose.has_backward() {
            true => stage.forward(mb, inputs, loss, pass.draws),
            false => stage.infer(inputs, loss),
        }
    }

    /// What a stage computes on: the batch's own rows in a first stage, else what comes along its edges, in the order of
    /// the stages that they come from.
    fn arrivals(&mut self, number: usize, mb: usize) -> Result<Vec<Arrival>> {
        let graph = self.pass.schedule.graph();
        let before = graph.predecessors(number);
        if before.is_empty() {
            let inputs = self.pass.inputs[mb].iter();
            let inputs = inputs.map(|value| Arrival {
                value: value.clone(),
                wants_grad: false,
            });
            return Ok(inputs.collect());
        }
        let mut arrivals = Vec::new();
        for &from in before {
            let edge = self.edge(usize::from(from), number);
            let values = self.take((edge, Way::Forward, mb))?;
            let items = self.sizes.get(&(edge, mb)).into_iter().flatten();
            arrivals.extend(values.into_iter().zip(items).map(|(value, item)| Arrival {
                value,
                wants_grad: item.wants_grad && self.pass.purpose.has_backward(),
            }));
        }
        Ok(arrivals)
    }

    /// Puts a stage's outputs where the stages behind it find them.
    fn hand_on(&mut self, number: usize, mb: usize, outcome: Outcome) -> Result<()> {
        let graph = self.pass.schedule.graph();
        for &to in graph.successors(number) {
            let edge = self.edge(number, usize::from(to));
            let (mut values, mut items) = (Vec::new(), Vec::new());
            for output in self.pass.carried.of(edge, outcome.outputs.len()) {
                let Some(arrival) = outcome.outputs.get(output) else {
                    let count = outcome.outputs.len();
                    return Err(invalid(format!(
                        "the edge {number}>{to} carries output {output} of stage {number}, which has {count}"
                    )));
                };
                values.push(arrival.value.contiguous()?);
                items.push(Item::of(arrival));
            }
            self.held
                .insert((edge, Way::Forward, mb), Held::There(values));
            self.settle(edge, number, mb, items)?;
        }
        if graph.successors(number).is_empty() {
            self.passed.losses[mb] = outcome.loss;
            if self.pass.purpose == Purpose::Infer {
                let outputs = outcome.outputs.into_iter().map(|output| output.value);
                self.passed.outputs[mb] = outputs.collect();
            }
        }
        Ok(())
    }

    /// Notes the sizes of what goes along an edge; those that the receiver expects must come again.
    fn settle(&mut self, edge: usize, number: usize, mb: usize, items: Vec<Item>) -> Result<()> {
        if self.pass.tell_sizes {
            self.sizes.insert((edge, mb), items);
            return Ok(());
        }
        match self.sizes.get(&(edge, mb)) {
            Some(known) if *known == items => Ok(()),
            known => Err(invalid(format!(
                "stage {number} gave {items:?} for inputs whose shapes had given {known:?} before; where shapes follow \
                 from values, set PipelineConfig::dynamic_shapes on every rank"
            ))),
        }
    }

    /// The gradients of a stage's outputs: the sums of what comes back along its edges, the last stage first, as a single
    /// sweep adds them.
    fn seeds(&mut self, number: usize, mb: usize) -> Result<Vec<Option<Tensor>>> {
        let graph = self.pass.schedule.graph();
        let count = stage(self.stages, number).outputs(mb);
        let mut seeds: Vec<Option<Tensor>> = vec![None; count];
        for &to in graph.successors(number).iter().rev() {
            let edge = self.edge(number, usize::from(to));
            let values = self.take((edge, Way::Back, mb))?;
            let items = self.sizes.get(&(edge, mb)).into_iter().flatten();
            let carried = self.pass.carried.of(edge, count).into_iter().zip(items);
            let wanting = carried.filter(|(_, item)| item.wants_grad);
            for ((output, _), value) in wanting.zip(values) {
                seeds[output] = Some(match seeds[output].take() {
                    None => value,
                    Some(sum) => sum.add_into(&value)?,
                });
            }
        }
        Ok(seeds)
    }

    /// Puts the gradients of a stage's inputs where the stages before it find them.
    fn hand_back(
        &mut self,
        number: usize,
        mb: usize,
        gradients: Vec<Option<Tensor>>,
    ) -> Result<()> {
        let mut gradients = gradients.into_iter();
        for &from in self.pass.schedule.graph().predecessors(number) {
            let edge = self.edge(usize::from(from), number);
            let count = self.sizes.get(&(edge, mb)).map_or(0, Vec::len);
            let values = gradients.by_ref().take(count).flatten().collect();
            self.held.insert((edge, Way::Back, mb), Held::There(values));
        }
        Ok(())
    }

    /// Starts transfers with one other rank.
    fn exchange(&mut self, list: &[Action]) -> Result<()> {
        let pass = self.pass;
        let Some(&(mut first)) = list.first() else {
            return Ok(());
        };
        let (mut messages, mut brings) = (Vec::new(), Vec::new());
        for action in list {
            self.place.enter(*action);
            let (kind, mb) = (action.kind(), action.microbatch());
            let peer = pass.schedule.rank_of(action.peer());
            let (from, to, way) = match kind {
                Kind::SendForward => (action.stage(), action.peer(), Way::Forward),
                Kind::RecvForward => (action.peer(), action.stage(), Way::Forward),
                Kind::SendBackward => (action.peer(), action.stage(), Way::Back),
                _ => (action.stage(), action.peer(), Way::Back),
            };
            let edge = self.edge(from, to);
            let key = (edge, way, mb);
            let tag = ((edge * 2 + way as usize) * pass.schedule.microbatches() + mb) as u32;
            if way == Way::Forward && pass.tell_sizes {
                // What stands before goes out first: the other rank may wait for it, and takes it first.
                self.launch(first, &mut messages, &mut brings)?;
                first = *action;
                if kind.is_send() {
                    let items = self.sizes.get(&(edge, mb)).map_or(&[][..], |items| items);
                    edges::tell(&*pass.group_for(first), peer, tag, items)?;
                } else {
                    let items = edges::hear(&*pass.group_for(first), peer, tag)?;
                    self.sizes.insert((edge, mb), items);
                }
            }
            if kind.is_send() {
                for tensor in self.take(key)? {
                    self.expect_carried(*action, &tensor)?;
                    messages.push(Message::Send {
                        tensor,
                        destination: peer,
                        tag,
                    });
                }
            } else {
                let items = self.sizes.get(&(edge, mb)).into_iter().flatten();
                let items = items.filter(|item| way == Way::Forward || item.wants_grad);
                let before = messages.len();
                messages.extend(items.map(|item| Message::Recv {
                    shape: item.shape.clone(),
                    dtype: item.dtype,
                    source: peer,
                    tag,
                }));
                brings.push((key, messages.len() - before));
            }
        }
        self.launch(first, &mut messages, &mut brings)
    }

    /// Between cards travels what is on a card.
    fn expect_carried(&self, action: Action, tensor: &Tensor) -> Result<()> {
        let (own, device) = (self.pass.group.device(), tensor.device());
        match own.is_cpu() == device.is_cpu() {
            true => Ok(()),
            false => Err(invalid(format!(
                "stage {} gave {tensor:?} on {device}, and what travels to another rank is on {own}: see Var::to_device",
                action.stage()
            ))),
        }
    }

    /// Issues messages that run together.
    fn launch(
        &mut self,
        action: Action,
        messages: &mut Vec<Message>,
        brings: &mut Vec<(Key, usize)>,
    ) -> Result<()> {
        let brings = std::mem::take(brings);
        if messages.is_empty() {
            for (key, _) in brings {
                self.held.insert(key, Held::There(Vec::new()));
            }
            return Ok(());
        }
        for (key, _) in &brings {
            self.held.insert(*key, Held::Coming(self.flights.len()));
        }
        let before = self.place.enter(action);
        let group = self.pass.group_for(action);
        let work = group.batch(std::mem::take(messages))?;
        self.place.enter(before);
        self.flights.push(Some(Flight {
            action,
            work,
            brings,
        }));
        Ok(())
    }

    /// Takes what an action uses; waits for it where it is under way.
    fn take(&mut self, key: Key) -> Result<Vec<Tensor>> {
        match self.held.remove(&key) {
            Some(Held::There(tensors)) => Ok(tensors),
            Some(Held::Coming(flight)) => {
                self.land(flight)?;
                match self.held.remove(&key) {
                    Some(Held::There(tensors)) => Ok(tensors),
                    _ => Ok(Vec::new()), // a flight brings what it was noted for
                }
            }
            None => Err(invalid(format!(
                "the plan uses what it has not made: {key:?}"
            ))),
        }
    }

    fn land(&mut self, flight: usize) -> Result<()> {
        let Some(Flight {
            action,
            work,
            brings,
        }) = self.flights[flight].take()
        else {
            return Ok(());
        };
        let before = self.place.enter(action);
        let mut tensors = work.wait()?.into_iter();
        self.place.enter(before);
        for (key, count) in brings {
            let part = tensors.by_ref().take(count).collect();
            self.held.insert(key, Held::There(part));
        }
        Ok(())
    }

    /// Lends what is under way a hand, and lets go of what has been sent.
    fn poll(&mut self) -> Result<()> {
        while let Some(flight) = self.flights.get_mut(self.landed) {
            if let Some(under_way) = flight {
                let action = under_way.action;
                let mut done = under_way.work.poll();
                if let (Ok(true), true) = (&done, under_way.brings.is_empty()) {
                    let sent = flight.take();
                    done = sent.map_or(Ok(true), |sent| sent.work.wait().map(|_| true));
                }
                match done {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        self.place.enter(action);
                        return Err(error.into());
                    }
                }
            }
            self.landed += 1;
        }
        for (_, reduction) in &mut self.passed.reductions {
            reduction.poll();
        }
        for sum in &mut self.passed.sums {
            if let Err(error) = sum.poll() {
                self.place.enter(sum.action);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Starts to average the gradients of a stage over the replicas.
    fn reduce(&mut self, number: usize) -> Result<()> {
        let found = self
            .pass
            .reducers
            .iter()
            .find(|(stage, _)| *stage == number);
        let (Some((_, reducer)), Purpose::Train) = (found, self.pass.purpose) else {
            return Ok(());
        };
        let mut gradients = stage(self.stages, number).take_gradients();
        let sums = Average::sums(reducer.group().size());
        let expected: Vec<_> = gradients.iter().map(|(param, _)| param.clone()).collect();
        let mut reduction = reducer.begin(&expected, &sums)?;
        for param in &expected {
            if let Some(gradient) = gradients.take(param) {
                reduction.ready(param, gradient)?;
            }
        }
        self.passed.reductions.push((number, reduction));
        Ok(())
    }

    /// Starts to add up the gradients of what a stage shares with another one.
    fn reduce_tied(&mut self, action: Action) -> Result<()> {
        let pass = self.pass;
        if pass.purpose != Purpose::Train {
            return Ok(());
        }
        let is_here = |stage: &usize| pass.schedule.rank_of(*stage) == pass.group.rank();
        let ends = [action.stage(), action.peer()].into_iter();
        ends.filter(is_here)
            .try_for_each(|stage| self.whole(stage))?;
        let group = pass.group_for(action);
        let gradients = &mut self.passed.gradients;
        let sums = pass.tied.begin(&*group, gradients, action)?;
        self.passed.sums.extend(sums);
        Ok(())
    }

    /// Waits until the gradients of a stage are whole, over the replicas too.
    fn whole(&mut self, number: usize) -> Result<()> {
        let passed = &mut self.passed;
        if passed.gradients.iter().any(|(stage, _)| *stage == number) {
            return Ok(());
        }
        let under_way = passed.reductions.iter().position(|(s, _)| *s == number);
        let whole = match under_way {
            Some(at) => passed.reductions.swap_remove(at).1.finish()?,
            None => stage(self.stages, number).take_gradients(),
        };
        passed.gradients.push((number, whole));
        Ok(())
    }

    fn edge(&self, from: usize, to: usize) -> usize {
        // The proof has found an edge for every transfer, and the graph has one for every neighbour.
        self.pass
            .schedule
            .graph()
            .edge(from, to)
            .unwrap_or_default()
    }
}

/// The stage of this number: the proof says that it is here.
fn stage(stages: &mut [Stage], number: usize) -> &mut Stage {
    let at = stages.partition_point(|stage| stage.number < number);
    &mut stages[at]
}

fn invalid(reason: String) -> Error {
    Error::InvalidUse {
        op: "Pipeline",
        reason,
    }
}
