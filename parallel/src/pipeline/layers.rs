//! [`Layers`]: a model as a list of constructors, of which each rank builds its own part.

use super::{EdgeOutputs, PlanError, StageGraph, Tie};
use crate::{Error, Result};
use phalanx_autograd::nn::{self, Factory, Module, Visitor};
use phalanx_autograd::{Tape, Var};
use phalanx_tensor::{DType, Device};
use std::collections::HashMap;
use std::fmt::Write;
use std::ops::Range;

type Build = dyn Fn(&mut Factory) -> phalanx_autograd::Result<Box<dyn Module>> + Send + Sync;

/// A model as a list of named layers, which are given as constructors: **a rank builds only the layers of its own
/// stages**, and a layer's random numbers follow from the seed and the layer's name, so that its first values are the same
/// in every cut.
///
/// A layer takes the output of the one before it. A skip edge takes what a layer gave to a later layer as well, whose
/// [`forward_all`](Module::forward_all) gets it behind its first input.
///
/// ```
/// use phalanx_autograd::nn::{Linear, Module, Relu};
/// use phalanx_parallel::pipeline::Layers;
/// use phalanx_tensor::{DType, Device};
///
/// let model = Layers::new(7)
///     .layer("first", |f| Ok(Box::new(Linear::new(3, 8, f)?)))
///     .layer("relu", |_| Ok(Box::new(Relu)))
///     .layer("last", |f| Ok(Box::new(Linear::new(8, 2, f)?)));
/// let whole = model.whole(DType::F32, Device::cpu(0))?;
/// let second = model.stage(1, &[0, 2], DType::F32, Device::cpu(1))?; // cut before the last layer
/// let names = |m: &dyn Module| m.named_parameters().into_iter().map(|(n, _)| n).collect::<Vec<_>>();
/// assert_eq!(names(&*whole), ["first.weight", "first.bias", "last.weight", "last.bias"]);
/// assert_eq!(names(&*second), ["last.weight", "last.bias"]);
/// let value = |m: &dyn Module, at: usize| m.parameters()[at].value().unwrap().to_vec::<f32>().unwrap();
/// assert_eq!(value(&*whole, 2), value(&*second, 0));
/// # Ok::<(), phalanx_parallel::Error>(())
/// ```
pub struct Layers {
    seed: u64,
    layers: Vec<Layer>,
    ties: Vec<[String; 2]>,
}

struct Layer {
    name: String,
    build: Box<Build>,
    /// The layers whose outputs it takes beside that of the one before it, by name.
    takes: Vec<String>,
}

impl Layers {
    /// No layers; their random numbers will follow from `seed`.
    pub fn new(seed: u64) -> Layers {
        Layers {
            seed,
            layers: Vec::new(),
            ties: Vec::new(),
        }
    }

    /// The same with one more layer at the end.
    #[must_use]
    pub fn layer(
        self,
        name: impl Into<String>,
        build: impl Fn(&mut Factory) -> phalanx_autograd::Result<Box<dyn Module>>
        + Send
        + Sync
        + 'static,
    ) -> Layers {
        self.layer_with(name, &[], build)
    }

    /// The same with one more layer at the end, which also takes the outputs of earlier layers: a skip edge from each.
    #[must_use]
    pub fn layer_with(
        mut self,
        name: impl Into<String>,
        takes: &[&str],
        build: impl Fn(&mut Factory) -> phalanx_autograd::Result<Box<dyn Module>>
        + Send
        + Sync
        + 'static,
    ) -> Layers {
        self.layers.push(Layer {
            name: name.into(),
            build: Box::new(build),
            takes: takes.iter().map(|&name| name.to_owned()).collect(),
        });
        self
    }

    /// The same with two parameters that are one, such as the weights of an embedding and of the last layer of a language
    /// model: `second` begins with the values of `first`, and both get the sum of their gradients. Each layer keeps a
    /// parameter of its own, as in every cut.
    #[must_use]
    pub fn tie(mut self, first: impl Into<String>, second: impl Into<String>) -> Layers {
        self.ties.push([first.into(), second.into()]);
        self
    }

    /// How many layers there are.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// The layers of each stage, where `cuts` are the first layers of the stages, the first one 0.
    ///
    /// # Errors
    /// [`Error::InvalidUse`] for cuts that do not ascend from 0, for a name that occurs twice, and for a skip edge that does
    /// not come from an earlier layer.
    fn cut(&self, cuts: &[usize]) -> Result<Vec<Range<usize>>> {
        let wrong = |reason: String| Error::InvalidUse {
            op: "Layers",
            reason,
        };
        let mut places = HashMap::new();
        for (at, layer) in self.layers.iter().enumerate() {
            for name in &layer.takes {
                if !places.contains_key(name.as_str()) {
                    let taker = &layer.name;
                    return Err(wrong(format!(
                        "`{taker}` takes the output of `{name}`, which is no layer before it"
                    )));
                }
            }
            if layer.name.is_empty() || places.insert(layer.name.as_str(), at).is_some() {
                return Err(wrong(format!(
                    "`{}` is the name of two layers, or of none",
                    layer.name
                )));
            }
        }
        let ascends = cuts.windows(2).all(|pair| pair[0] < pair[1]);
        if cuts.first() != Some(&0)
            || !ascends
            || cuts.last().is_some_and(|&last| last >= self.len())
        {
            return Err(wrong(format!(
                "{cuts:?} are no first layers of stages: they ascend from 0, and there are {} layers",
                self.len()
            )));
        }
        let ends = cuts.iter().skip(1).copied().chain([self.len()]);
        Ok(cuts
            .iter()
            .copied()
            .zip(ends)
            .map(|(start, end)| start..end)
            .collect())
    }

    /// Cuts that give every stage as many layers, the first ones one more where the numbers do not divide.
    pub fn even_cuts(&self, stages: usize) -> Vec<usize> {
        let (each, more) = (self.len() / stages.max(1), self.len() % stages.max(1));
        (0..stages)
            .map(|stage| stage * each + stage.min(more))
            .collect()
    }

    /// The stages of a cut and the edges between them: the chain, and a skip edge wherever a layer takes what one of an
    /// earlier stage than the one before gave.
    ///
    /// # Errors
    /// [`Error::InvalidUse`] for cuts that are none.
    pub fn graph(&self, cuts: &[usize]) -> Result<StageGraph> {
        let stages = self.stages(cuts)?;
        let mut edges = Vec::new();
        for (to, stage) in stages.iter().enumerate() {
            edges.extend(stage.takes.keys().map(|&from| (from as u16, to as u16)));
        }
        let count = u16::try_from(stages.len()).map_err(|_| PlanError::Placement {
            reason: format!("{} stages are more than a plan can hold", stages.len()),
        })?;
        Ok(StageGraph::new(count, &edges)?)
    }

    /// For each edge, which outputs of the stage it carries: for [`PipelineConfig::edges`](super::PipelineConfig::edges).
    ///
    /// # Errors
    /// As [`graph`](Layers::graph).
    pub fn edges(&self, cuts: &[usize]) -> Result<Vec<EdgeOutputs>> {
        let stages = self.stages(cuts)?;
        let mut edges = Vec::new();
        for (to, stage) in stages.iter().enumerate() {
            for (&from, layers) in &stage.takes {
                let gives = &stages[from].gives;
                let at = |layer: &usize| gives.iter().position(|given| given == layer);
                edges.push(((from, to), layers.iter().filter_map(at).collect()));
            }
        }
        Ok(edges)
    }

    /// The ties of a cut, for [`PipelineConfig::tied`](super::PipelineConfig::tied).
    ///
    /// # Errors
    /// As [`graph`](Layers::graph); [`Error::InvalidUse`] for a parameter that is of no layer.
    pub fn ties(&self, cuts: &[usize]) -> Result<Vec<Tie>> {
        let names = self.names(cuts)?;
        let end = |name: &String| -> Result<(usize, String)> {
            let inside = |layer: &String| {
                name.strip_prefix(layer.as_str())
                    .is_some_and(|rest| rest.starts_with('.'))
            };
            let stage = names.iter().position(|layers| layers.iter().any(inside));
            let stage = stage.ok_or_else(|| Error::InvalidUse {
                op: "Layers::tie",
                reason: format!("`{name}` is a parameter of no layer"),
            })?;
            Ok((stage, name.clone()))
        };
        let ties = self.ties.iter();
        ties.map(|[first, second]| Ok([end(first)?, end(second)?]))
            .collect()
    }

    /// Builds one stage of a cut. Its inputs are what comes along its edges, the one from the earliest stage first; its
    /// outputs are what later stages need, in the order of the layers.
    ///
    /// # Errors
    /// As [`graph`](Layers::graph); [`Error::InvalidUse`] for a stage that is none; those of the constructors.
    pub fn stage(
        &self,
        stage: usize,
        cuts: &[usize],
        dtype: DType,
        device: Device,
    ) -> Result<Box<dyn Module>> {
        let mut stages = self.stages(cuts)?;
        if stage >= stages.len() {
            return Err(Error::InvalidUse {
                op: "Layers::stage",
                reason: format!("there is no stage {stage} of {}", stages.len()),
            });
        }
        let wires = stages.swap_remove(stage);
        let layers = &self.layers[wires.layers.clone()];
        let build = |layer: &Layer| -> phalanx_autograd::Result<(String, Box<dyn Module>)> {
            let mut factory = Factory::new(device, self.seed).at(&layer.name);
            factory.dtype = dtype;
            Ok((layer.name.clone(), (layer.build)(&mut factory)?))
        };
        let built = layers
            .iter()
            .map(build)
            .collect::<phalanx_autograd::Result<_>>()?;
        Ok(Box::new(Part {
            layers: built,
            takes: layers
                .iter()
                .map(|layer| self.places(&layer.takes))
                .collect(),
            wires,
        }))
    }

    /// The model uncut, as one module.
    ///
    /// # Errors
    /// As [`stage`](Layers::stage).
    pub fn whole(&self, dtype: DType, device: Device) -> Result<Box<dyn Module>> {
        self.stage(0, &[0], dtype, device)
    }

    /// One line for each layer and its stage: what ranks must agree on.
    pub(super) fn describe(&self, cuts: &[usize]) -> String {
        let mut text = format!("seed: {}\n", self.seed);
        for (at, layer) in self.layers.iter().enumerate() {
            let stage = cuts
                .iter()
                .filter(|&&first| first <= at)
                .count()
                .saturating_sub(1);
            // Writing to a string cannot fail.
            let _ = write!(text, "layer {at}: `{}` in stage {stage}", layer.name);
            for name in &layer.takes {
                let _ = write!(text, ", takes `{name}`");
            }
            text.push('\n');
        }
        text
    }

    /// The names of each stage's layers.
    pub(super) fn names(&self, cuts: &[usize]) -> Result<Vec<Vec<String>>> {
        let name = |at: usize| self.layers[at].name.clone();
        let stages = self.cut(cuts)?.into_iter();
        Ok(stages.map(|range| range.map(name).collect()).collect())
    }

    fn places(&self, names: &[String]) -> Vec<usize> {
        let place = |name: &String| self.layers.iter().position(|layer| layer.name == *name);
        names.iter().filter_map(place).collect()
    }

    /// What each stage takes from which other, and what it gives.
    fn stages(&self, cuts: &[usize]) -> Result<Vec<Wires>> {
        let ranges = self.cut(cuts)?;
        let home = |layer: usize| ranges.iter().position(|range| range.contains(&layer));
        let mut stages: Vec<Wires> = Vec::new();
        for range in ranges.iter().cloned() {
            let mut wires = Wires {
                layers: range.clone(),
                ..Wires::default()
            };
            let chain = range.start.checked_sub(1);
            let skips = self.layers[range.clone()]
                .iter()
                .flat_map(|layer| self.places(&layer.takes));
            let mut needed: Vec<usize> = chain
                .into_iter()
                .chain(skips)
                .filter(|layer| *layer < range.start)
                .collect();
            needed.sort_unstable();
            needed.dedup();
            for layer in needed {
                let Some(from) = home(layer) else { continue };
                wires.takes.entry(from).or_default().push(layer);
                if !stages[from].gives.contains(&layer) {
                    stages[from].gives.push(layer);
                    stages[from].gives.sort_unstable();
                }
            }
            stages.push(wires);
        }
        if let Some(last) = stages.last_mut() {
            last.gives.push(self.len() - 1);
        }
        Ok(stages)
    }
}

/// How a stage is joined to others.
#[derive(Default)]
struct Wires {
    layers: Range<usize>,
    /// By the stage that they come from, in ascending order: the layers whose outputs it takes.
    takes: std::collections::BTreeMap<usize, Vec<usize>>,
    /// The layers whose outputs it gives to others, in ascending order; of the last stage, the last layer.
    gives: Vec<usize>,
}

/// The layers of a stage.
struct Part {
    layers: Vec<(String, Box<dyn Module>)>,
    /// By layer: whose outputs it takes besides that of the one before.
    takes: Vec<Vec<usize>>,
    wires: Wires,
}

impl Module for Part {
    fn forward(&self, tape: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        nn::one_output("Layers", self.forward_all(tape, std::slice::from_ref(x))?)
    }

    fn forward_all(&self, tape: &Tape, inputs: &[Var]) -> phalanx_autograd::Result<Vec<Var>> {
        let start = self.wires.layers.start;
        let taken: Vec<usize> = self.wires.takes.values().flatten().copied().collect();
        // By layer: what it gave, as long as somebody still needs it.
        let mut given: HashMap<usize, Var> = HashMap::new();
        let mut before: Vec<Var> = Vec::new();
        if start == 0 {
            before = inputs.to_vec();
        } else {
            if inputs.len() != taken.len() {
                return Err(phalanx_autograd::Error::InvalidArgument {
                    op: "Layers",
                    reason: format!(
                        "the stage takes {} inputs, but got {}",
                        taken.len(),
                        inputs.len()
                    ),
                });
            }
            given.extend(taken.into_iter().zip(inputs.iter().cloned()));
            before.extend(given.get(&(start - 1)).cloned());
        }
        for (at, ((name, layer), takes)) in self.layers.iter().zip(&self.takes).enumerate() {
            before.extend(takes.iter().filter_map(|from| given.get(from).cloned()));
            let outputs = layer.forward_all(tape, &before);
            let outputs = outputs.map_err(|error| error.in_module(name))?;
            let at = start + at;
            let needed = |from: &usize| *from == at;
            if self.takes.iter().flatten().any(needed) || self.wires.gives.iter().any(needed) {
                let output =
                    nn::one_output("a layer whose output is taken elsewhere", outputs.clone());
                given.insert(at, output.map_err(|error| error.in_module(name))?);
            }
            before = outputs;
        }
        let out = self
            .wires
            .gives
            .iter()
            .filter_map(|layer| given.get(layer).cloned());
        Ok(out.collect())
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        for (name, layer) in &self.layers {
            v.child(name, layer);
        }
    }
}
