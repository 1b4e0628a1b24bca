//! [`Pipeline`]: the one interpreter, which runs any lowered plan on a model cut into stages.

mod announce;
mod batch;
mod config;
mod edges;
mod failure;
mod finish;
mod pass;
mod place;
mod prepare;
mod program;
mod replicate;
mod stage;
mod state;
mod tied;
mod trace;
mod walk;

pub use config::{EdgeOutputs, LossOn, PipelineConfig};
pub use stage::Loss;
pub use tied::Tie;

use self::announce::Announced;
use self::edges::{Carried, Sizes};
use self::pass::{Pass, Purpose};
use self::place::Place;
use self::prepare::{describe, prepare};
use self::program::{Instruction, forward_part, program};
use self::replicate::replicate;
use self::stage::Stage;
use self::state::Numbered;
use self::tied::Tied;
use self::trace::Clock;
use self::walk::Walk;
use super::{Layers, Schedule, Span};
use crate::reduce::{GradReducer, Poison};
use crate::{Error, Result, talk};
use phalanx_autograd::nn::Module;
use phalanx_autograd::{Gradients, Tape, Var};
use phalanx_comm::{Label, Name, ProcessGroup};
use phalanx_tensor::{DType, Tensor};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

/// A model that is cut into stages over the ranks of a group, and trained by a plan (PyTorch:
/// `torch.distributed.pipelining`).
///
/// Every rank makes one with the same plan and with the stages that the plan puts on it, and calls
/// [`step`](Pipeline::step) for every batch. The batch is cut along its first axis into as many microbatches as the plan
/// has. The gradients are those of the mean loss of the whole batch, whatever the plan:
///
/// - **The weight gradients of a stage are added in ascending order of the microbatches**, so that every schedule gives
///   the same bits, and those of one process that works through the same microbatches.
/// - **An error in mid-step poisons the pipeline**: it names the stage, the action and the microbatch, and the other ranks
///   are told.
///
/// ```
/// use phalanx_autograd::nn::{Factory, Linear, Module, Relu, Sequential};
/// use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
/// use phalanx_comm::launch;
/// use phalanx_parallel::pipeline::{Named, Pipeline, PipelineConfig};
/// use phalanx_tensor::{DType, Device, Tensor};
///
/// let losses = launch(2, |group| -> Result<Vec<f64>, Box<dyn std::error::Error + Send + Sync>> {
///     let device = Device::cpu(group.rank());
///     let plan = Named::OneFOneB.schedule(2, 1, 4)?; // 2 ranks, a stage on each, 4 microbatches
///     let mut f = Factory::new(device, 7);
///     let stage: Box<dyn Module> = match group.rank() {
///         0 => Box::new(Sequential::new().with(Linear::new(3, 8, &mut f)?).with(Relu)),
///         _ => Box::new(Linear::new(8, 1, &mut f)?),
///     };
///     // The sum over the rows of a microbatch, and how many these are.
///     let loss = |_: &_, outputs: &[phalanx_autograd::Var], targets: &[Tensor]| {
///         let error = outputs[0].sub(&outputs[0].tape().constant(targets[0].clone()))?;
///         Ok((error.square()?.sum_all()?, targets[0].dims()[0] as f64))
///     };
///     let number = group.rank();
///     let mut pipeline = Pipeline::new(group, &plan, vec![(number, stage)], loss, PipelineConfig::default())?;
///     let mut optimizer = Sgd::new(pipeline.parameters(), SgdConfig { lr: 0.05, ..SgdConfig::default() })?;
///     let (x, y) = (Tensor::ones([8, 3], DType::F32, device)?, Tensor::ones([8, 1], DType::F32, device)?);
///     let mut losses = Vec::new();
///     for _ in 0..3 {
///         let step = pipeline.step(&[x.clone()], &[y.clone()])?;
///         optimizer.step(&step.gradients)?;
///         losses.extend(step.loss);
///     }
///     Ok(losses)
/// })?;
/// assert!(losses[0][2] < losses[0][0]);
/// assert_eq!(losses[0], losses[1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Pipeline {
    group: Arc<dyn ProcessGroup>,
    /// Its number in labels.
    owner: u64,
    schedule: Schedule,
    /// What this rank does in a step, and in a pass forward alone.
    programs: [Vec<Instruction>; 2],
    /// This rank's stages in ascending order.
    stages: Vec<Stage>,
    carried: Carried,
    loss: Box<Loss>,
    config: PipelineConfig,
    reducers: Vec<(usize, GradReducer)>,
    tied: Tied,
    /// By the shapes of the batch, and whether there is a backward pass.
    sizes: HashMap<u64, Sizes>,
    poison: Poison,
    step: u64,
    /// Batches that have been accumulated in this step.
    batches: usize,
    /// By stage: the names under which its parameters stand in the uncut model, or their first parts.
    names: Vec<Vec<String>>,
    /// What has been accumulated since the last step.
    sums: finish::Sums,
    spans: Vec<Span>,
}

/// What a step gives on this rank.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Step {
    /// The gradients of the mean loss, for the parameters of this rank's stages.
    pub gradients: Gradients,
    /// The mean loss over all microbatches and replicas, where [`PipelineConfig::loss`] wants it.
    pub loss: Option<f64>,
    /// The sum of the weights: rows, or whatever the loss counts.
    pub weight: f64,
    /// The norm of the gradient of the whole model before it was clipped, where [`PipelineConfig::max_norm`] is set.
    pub norm: Option<f64>,
}

/// The most batches of different shapes whose sizes are remembered: more are rare, and what is forgotten is told again.
const REMEMBERED: usize = 64;

impl Pipeline {
    /// A pipeline over the ranks of `group`, which are those of the plan. `stages` are this rank's own, with their
    /// numbers; `loss` gives the sum of the losses of a microbatch and its weight, and is called where the last stage is.
    /// A plan of compute actions is lowered; either way it is proved before anything runs. Replicas begin with the parameters
    /// and buffers of the first one, as those of [`Ddp`](crate::Ddp). Every rank must call it.
    ///
    /// # Errors
    /// [`Error::Plan`] for a plan that is wrong; [`Error::InvalidUse`] for stages that are not those of this rank, for a plan
    /// with several last stages, with collectives and no transfers, without a `REDUCE_GRAD` where there are replicas, or with
    /// other `REDUCE_TIED` than the ties; [`Error::RanksDiffer`], the same on every rank, where ranks or replicas have
    /// different plans or configurations; [`Error::ReplicasDiffer`] where a stage has other parameters in another replica;
    /// errors of the communication.
    pub fn new(
        group: Arc<dyn ProcessGroup>,
        plan: &Schedule,
        stages: Vec<(usize, Box<dyn Module>)>,
        loss: impl Fn(&Tape, &[Var], &[Tensor]) -> phalanx_autograd::Result<(Var, f64)> + 'static,
        config: PipelineConfig,
    ) -> Result<Pipeline> {
        let stages = stages.into_iter().map(|(number, module)| {
            let name = number.to_string();
            (
                number,
                Box::new(Numbered { name, module }) as Box<dyn Module>,
            )
        });
        let stages = Ok(stages.collect());
        let names = (0..plan.stages()).map(|stage| vec![stage.to_string()]);
        let model = (String::new(), names.collect());
        Pipeline::agreed(group, plan, stages, loss, config, model)
    }

    /// As [`new`](Pipeline::new), over a model that is given as a list of layers and cut into the stages whose first layers
    /// are `cuts`: builds this rank's stages, of elements of type `dtype`, on the group's device. The plan is one over
    /// [`Layers::graph`] (see [`Schedule::over`]), and what its edges carry follows from the layers:
    /// [`PipelineConfig::edges`] must be empty.
    ///
    /// # Errors
    /// As [`new`](Pipeline::new) and [`Layers::stage`]; [`Error::RanksDiffer`] too where the ranks have different layers or
    /// cuts.
    pub fn of_layers(
        group: Arc<dyn ProcessGroup>,
        plan: &Schedule,
        (layers, cuts): (&Layers, &[usize]),
        dtype: DType,
        loss: impl Fn(&Tape, &[Var], &[Tensor]) -> phalanx_autograd::Result<(Var, f64)> + 'static,
        mut config: PipelineConfig,
    ) -> Result<Pipeline> {
        let own = plan.stages_of(group.rank());
        let device = group.device();
        let made = || {
            if !config.edges.is_empty() {
                return Err(Error::InvalidUse {
                    op: "Pipeline::of_layers",
                    reason:
                        "the configuration says what edges carry, which follows from the layers"
                            .into(),
                });
            }
            config.edges = layers.edges(cuts)?;
            config.tied.extend(layers.ties(cuts)?);
            if layers.graph(cuts)? != *plan.graph() {
                return Err(Error::InvalidUse {
                    op: "Pipeline::of_layers",
                    reason:
                        "the plan is over another graph than that of the cut; see Schedule::over"
                            .into(),
                });
            }
            let stages = own.map(|s| Ok((s, layers.stage(s, cuts, dtype, device)?)));
            Ok((stages.collect::<Result<Vec<_>>>()?, layers.names(cuts)?))
        };
        let (stages, names) = match made() {
            Ok((stages, names)) => (Ok(stages), names),
            Err(error) => (Err(error), Vec::new()),
        };
        let text = format!("elements: {dtype}\n{}", layers.describe(cuts));
        Pipeline::agreed(group, plan, stages, loss, config, (text, names))
    }

    /// As [`new`](Pipeline::new), of a model that is described so, with the names of each stage's layers.
    fn agreed(
        group: Arc<dyn ProcessGroup>,
        plan: &Schedule,
        stages: Result<Vec<(usize, Box<dyn Module>)>>,
        loss: impl Fn(&Tape, &[Var], &[Tensor]) -> phalanx_autograd::Result<(Var, f64)> + 'static,
        config: PipelineConfig,
        (model, names): (String, Vec<Vec<String>>),
    ) -> Result<Pipeline> {
        let prepared = stages.and_then(|stages| prepare(&*group, plan, stages, &config));
        // A rank that cannot take part says so, and no other waits for it.
        let text = match &prepared {
            Ok((schedule, _, carried, _)) => model + &describe(schedule, carried, &config),
            Err(error) => format!("no pipeline: {error}"),
        };
        let agreed = talk::agree(&*group, "pipelines", &text);
        // The replicas run one plan: on that the proof of its collectives stands. What this replica's ranks do not agree in,
        // they all say, so that all groups of replicas come to an end.
        let text = match &agreed {
            Ok(()) => text,
            Err(error) => format!("no pipeline: {error}"),
        };
        let replicas = config.data.as_deref();
        let alike = replicas.map_or(Ok(()), |data| talk::agree(data, "pipelines", &text));
        let (schedule, stages, carried, tied) = prepared?;
        agreed?;
        alike?;
        let owner = talk::owner(&*group)?;
        let reducers = match &config.data {
            Some(data) => replicate(&*group, data, &stages, &config.reduce)?,
            None => Vec::new(),
        };
        tied.start(&*group)?;
        let rank = group.rank();
        Ok(Pipeline {
            programs: [
                program(&schedule, rank),
                program(&forward_part(&schedule), rank),
            ],
            group,
            owner,
            schedule,
            stages,
            carried,
            loss: Box::new(loss),
            config,
            reducers,
            tied,
            sizes: HashMap::new(),
            poison: Poison::default(),
            step: 0,
            batches: 0,
            names,
            sums: finish::Sums::default(),
            spans: Vec::new(),
        })
    }

    /// Runs the plan for a batch: forward, backward, and the average over the replicas. `inputs` go to the first stages
    /// and `targets` to the loss, each cut along its first axis; other ranks may give none. Every rank must call it, of all
    /// replicas.
    ///
    /// # Errors
    /// [`Error::InvalidUse`] before anything is sent, for a batch that cannot be cut, and [`Error::BatchRefused`] on the
    /// other ranks of all replicas; [`Error::RanksDiffer`] where ranks are in different passes; [`Error::Action`] with the
    /// stage, the action and the microbatch in which this rank failed; the failure of the group. Then [`Error::Poisoned`].
    pub fn step(&mut self, inputs: &[Tensor], targets: &[Tensor]) -> Result<Step> {
        Ok(self.pass(Purpose::Train, inputs, targets)?.0)
    }

    /// As [`step`](Pipeline::step), of which the gradients and the loss wait for the next step, which counts this batch
    /// as a part of its own: gradient accumulation.
    ///
    /// # Errors
    /// As [`step`](Pipeline::step).
    pub fn accumulate(&mut self, inputs: &[Tensor], targets: &[Tensor]) -> Result<()> {
        self.pass(Purpose::Accumulate, inputs, targets).map(drop)
    }

    /// The mean loss of a batch, by the forward part of the plan; nothing is recorded. Layers behave as their
    /// [mode](Module::set_training) says.
    ///
    /// # Errors
    /// As [`step`](Pipeline::step).
    pub fn evaluate(&mut self, inputs: &[Tensor], targets: &[Tensor]) -> Result<Step> {
        Ok(self.pass(Purpose::Evaluate, inputs, targets)?.0)
    }

    /// The outputs of the last stage for a batch, on the rank that has it; the others get none. It is the matter of one
    /// replica: the others need not call it.
    ///
    /// # Errors
    /// As [`step`](Pipeline::step); those of [`Tensor::cat`] where the microbatches' outputs do not fit together.
    pub fn infer(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(self.pass(Purpose::Infer, inputs, &[])?.1)
    }

    /// All parameters of this rank's stages, the frozen ones too: an optimizer's state counts them so.
    pub fn parameters(&self) -> Vec<phalanx_autograd::Param> {
        let all = self
            .stages
            .iter()
            .flat_map(|stage| stage.module.parameters());
        all.collect()
    }

    /// This rank's stages with their numbers.
    pub fn stages(&self) -> impl Iterator<Item = (usize, &dyn Module)> {
        self.stages
            .iter()
            .map(|stage| (stage.number, &*stage.module))
    }

    /// Says to every stage of this rank whether it is in training: see [`Module::set_training`].
    pub fn set_training(&self, on: bool) {
        self.stages
            .iter()
            .for_each(|stage| stage.module.set_training(on));
    }

    /// The lowered plan that it runs.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// When this rank's compute actions of the last pass began and ended, in seconds since it began, where
    /// [`PipelineConfig::trace`] is set. On a card these are the times of the host, which goes on before the card is done.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    fn pass(
        &mut self,
        purpose: Purpose,
        inputs: &[Tensor],
        targets: &[Tensor],
    ) -> Result<(Step, Vec<Tensor>)> {
        self.poison
            .expect_whole(talk::world_rank(&*self.group), self.step)?;
        let cut = self.cut(purpose, inputs, targets);
        let announced = Announced {
            step: self.step,
            batches: self.batches,
            purpose,
            cut: cut.as_ref().ok(),
            stages: &self.stages,
        };
        let data = self.config.data.as_deref();
        let key = announced.exchange(&*self.group, data)?;
        let (inputs, targets) = cut?;
        let Pipeline {
            group,
            owner,
            schedule,
            programs,
            stages,
            carried,
            loss,
            config,
            reducers,
            tied,
            sizes: remembered,
            poison,
            step,
            batches,
            sums,
            spans,
            names: _,
        } = self;
        let data = config.data.as_deref();
        let (replica, replicas) = data.map_or((0, 1), |data| (data.rank(), data.size()));
        let mut attempt = poison.attempt();
        let known = remembered.remove(&key);
        let pass = Pass {
            purpose,
            schedule,
            group: &**group,
            label: Label::new(*owner, *step, 0),
            carried,
            loss: &**loss,
            inputs,
            targets,
            tell_sizes: config.dynamic_shapes || known.is_none(),
            // Each batch of the step, and each replica's share of it, has microbatches of its own.
            draws: (
                *step,
                ((*batches * replicas + replica) * schedule.microbatches()) as u64,
            ),
            tied,
            reducers,
        };
        let mut sizes = known.unwrap_or_default();
        let place = Place::new(&**group, *step);
        let mut clock = Clock::new(config.trace);
        let walk = || {
            let walk = Walk::new(&pass, stages, &mut sizes, &place);
            let passed = walk.run(&programs[usize::from(!purpose.has_backward())], &mut clock)?;
            place.enter(None);
            let end = group.labelled(Label {
                name: Name::new("the end of the step"),
                ..Label::new(*owner, *step, 1)
            });
            let ranks = finish::Ranks {
                group: &*end,
                schedule,
                config,
                tied,
            };
            finish::finish(&ranks, purpose, passed, stages, sums, &place)
        };
        let done = match catch_unwind(AssertUnwindSafe(walk)) {
            Ok(done) => done,
            Err(panic) => {
                // The others hear where, before they hear that this rank has ended.
                group.abort(&failure::sentence(&**group, *step, place.get(), "a panic"));
                resume_unwind(panic);
            }
        };
        let done =
            attempt.note(done.map_err(|error| failure::of(&**group, *step, place.get(), error)))?;
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(key, sizes);
        *spans = clock.spans();
        match purpose {
            Purpose::Train => (*step, *batches) = (*step + 1, 0),
            Purpose::Accumulate => *batches += 1,
            Purpose::Evaluate | Purpose::Infer => {}
        }
        attempt.done();
        Ok(done)
    }

    /// The microbatches of what this rank needs of a batch: inputs where a first stage is, targets where the last one is.
    fn cut(&self, purpose: Purpose, inputs: &[Tensor], targets: &[Tensor]) -> Result<Cut> {
        let graph = self.schedule.graph();
        let mut numbers = self.stages.iter().map(|stage| stage.number);
        let takes_inputs = numbers.clone().any(|s| graph.predecessors(s).is_empty());
        let takes_targets =
            purpose != Purpose::Infer && numbers.any(|s| graph.successors(s).is_empty());
        let cut = |what, batch, needed| match needed {
            true => batch::cut(what, batch, self.schedule.microbatches()),
            false => Ok(vec![Vec::new(); self.schedule.microbatches()]),
        };
        if takes_inputs && inputs.is_empty() {
            return Err(Error::InvalidUse {
                op: "Pipeline::step",
                reason: "this rank has a first stage, and the batch has no inputs".into(),
            });
        }
        Ok((
            cut("inputs", inputs, takes_inputs)?,
            cut("targets", targets, takes_targets)?,
        ))
    }
}

/// What a pass works on, by microbatch: inputs and targets.
type Cut = (Vec<Vec<Tensor>>, Vec<Vec<Tensor>>);
