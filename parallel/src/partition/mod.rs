//! Where to cut a chain of layers into pipeline stages, given what each layer costs.
//!
//! One stage per device, in the order of the devices. Two objectives:
//!
//! - **The bottleneck**: the slowest stage, or the slowest link between two, since in the long run
//!   a microbatch leaves the pipeline whenever that one is done. Exact, by dynamic programming over
//!   (device, last layer).
//! - **The simulated step**: the makespan of the plan that will run, with its ramps and its idle
//!   time. Exact where all cuts can be tried; else the cuts of least bottleneck are moved as long
//!   as the step becomes shorter.
//!
//! What a device holds is its stage's parameters, and the activations of as many microbatches as
//! the plan has in flight there; a plan of 1F1B has more in flight on the first device than on the
//! last, so the first gets less to do if memory is short.

mod error;

use crate::pipeline::{
    Costs, PlanError, Rules, Schedule, StageCosts, Transfers, simulate, validate,
};

pub use error::PartitionError;

/// What one layer costs. Times are per microbatch, on a device of speed 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Layer {
    /// The forward pass.
    pub forward: f64,
    /// The gradient of its input.
    pub input: f64,
    /// The gradient of its weights.
    pub weight: f64,
    /// Bytes held all the time: parameters, gradients, optimizer state.
    pub parameters: u64,
    /// Bytes saved per microbatch from forward to backward.
    pub activation: u64,
    /// Bytes of its output per microbatch, which are sent if a cut comes after it.
    pub boundary: u64,
}

/// What a device can do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Device {
    /// How many times faster than a device of speed 1.
    pub speed: f64,
    /// Bytes that it may hold.
    pub memory: u64,
    /// Bytes per unit of time to the next device; infinite if transfers are free.
    pub bandwidth: f64,
}

impl Default for Device {
    /// Speed 1, memory without end, free transfers.
    fn default() -> Self {
        Self {
            speed: 1.0,
            memory: u64::MAX,
            bandwidth: f64::INFINITY,
        }
    }
}

/// Where the cuts are, and what comes of it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Partition {
    /// Per stage, the number of its first layer; the first is 0.
    pub starts: Vec<usize>,
    /// The time of the slowest stage or link, per microbatch.
    pub bottleneck: f64,
    /// The simulated time of a step.
    pub makespan: f64,
    /// Per device, the bytes that it holds at most.
    pub memory: Vec<u64>,
}

/// More ways to cut than this are not tried one by one.
const ALL_CUTS: u64 = 3_000;

/// Cuts `layers` into one stage for each of `devices`, for the plan that will run them.
///
/// `plan` is a plan of compute actions with one stage per rank, for example
/// `Named::OneFOneB.schedule(devices.len(), 1, microbatches)`.
///
/// # Errors
/// [`PartitionError::Memory`] says how much more memory a cut would need, if there is none; the
/// others say which of the arguments makes no sense.
///
/// ```
/// use phalanx_parallel::partition::{Device, Layer, partition};
/// use phalanx_parallel::pipeline::Named;
///
/// let layer = |time| Layer { forward: time, input: time, weight: time, ..Layer::default() };
/// let layers = [1.0, 1.0, 1.0, 3.0, 1.0, 1.0].map(layer);
/// let plan = Named::OneFOneB.schedule(2, 1, 8)?;
/// let cut = partition(&layers, &[Device::default(); 2], &plan)?;
/// assert_eq!(cut.starts, [0, 3]); // 3 units each way before the cut, 5 after it
/// assert_eq!(cut.bottleneck, 15.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn partition(
    layers: &[Layer],
    devices: &[Device],
    plan: &Schedule,
) -> Result<Partition, PartitionError> {
    let problem = Problem::new(layers, devices, plan)?;
    let starts = problem.least_bottleneck()?;
    let starts = match problem.count_cuts() {
        count if count <= ALL_CUTS => problem.try_all()?.unwrap_or(starts),
        _ => problem.refine(starts)?,
    };
    Ok(Partition {
        bottleneck: problem.bottleneck(&starts),
        makespan: problem.makespan(&starts)?,
        memory: (0..devices.len())
            .map(|d| problem.stage(&starts, d).memory)
            .collect(),
        starts,
    })
}

/// The cut of least bottleneck, as starts of the stages, without regard to the simulated step.
///
/// # Errors
/// As [`partition`].
pub fn least_bottleneck(
    layers: &[Layer],
    devices: &[Device],
    plan: &Schedule,
) -> Result<Vec<usize>, PartitionError> {
    Problem::new(layers, devices, plan)?.least_bottleneck()
}

/// Sums over layers from the first on, so that those of a stage are a difference.
#[derive(Clone, Copy, Default)]
struct Prefix {
    forward: f64,
    input: f64,
    weight: f64,
    parameters: u64,
    activation: u64,
}

/// What a stage costs on its device.
struct Stage {
    forward: f64,
    input: f64,
    weight: f64,
    transfer: f64,
    memory: u64,
}

impl Stage {
    /// The time between two microbatches that this stage and its link allow.
    fn period(&self) -> f64 {
        (self.forward + self.input + self.weight).max(self.transfer)
    }
}

struct Problem<'a> {
    layers: &'a [Layer],
    devices: &'a [Device],
    plan: &'a Schedule,
    prefix: Vec<Prefix>,
    /// Per device, the microbatches in flight.
    in_flight: Vec<u64>,
}

impl<'a> Problem<'a> {
    fn new(
        layers: &'a [Layer],
        devices: &'a [Device],
        plan: &'a Schedule,
    ) -> Result<Self, PartitionError> {
        let (n, p) = (layers.len(), devices.len());
        if p == 0 || n < p {
            return Err(PartitionError::TooFewLayers {
                layers: n,
                devices: p,
            });
        }
        let in_order = plan
            .placement()
            .iter()
            .enumerate()
            .all(|(s, &r)| s == usize::from(r));
        if plan.stages() != p || plan.rank_count() != p || !in_order || plan.has_transfers() {
            let (stages, ranks) = (plan.stages(), plan.rank_count());
            return Err(PartitionError::Plan {
                stages,
                ranks,
                devices: p,
            });
        }
        for (index, layer) in layers.iter().enumerate() {
            for (what, value) in [
                ("forward", layer.forward),
                ("input", layer.input),
                ("weight", layer.weight),
            ] {
                if !(value.is_finite() && value >= 0.0) {
                    let wanted = match value {
                        f64::INFINITY => "finite",
                        _ => "a time",
                    };
                    return Err(PartitionError::NotANumber {
                        what,
                        which: "layer",
                        index,
                        value,
                        wanted,
                    });
                }
            }
        }
        for (index, device) in devices.iter().enumerate() {
            let speed = device.speed.is_finite() && device.speed > 0.0;
            for (what, value, fine) in [
                ("speed", device.speed, speed),
                ("bandwidth", device.bandwidth, device.bandwidth > 0.0),
            ] {
                if !fine {
                    let wanted = match value {
                        f64::INFINITY => "finite",
                        _ => "more than 0",
                    };
                    return Err(PartitionError::NotANumber {
                        what,
                        which: "device",
                        index,
                        value,
                        wanted,
                    });
                }
            }
        }
        let proof = validate(plan, &Rules::default()).map_err(PlanError::from)?;
        let mut prefix = vec![Prefix::default()];
        let mut sum = Prefix::default();
        let speeds = devices.iter().map(|device| device.speed);
        let slowest = speeds.fold(f64::INFINITY, f64::min);
        for (index, layer) in layers.iter().enumerate() {
            sum.forward += layer.forward;
            sum.input += layer.input;
            sum.weight += layer.weight;
            sum.parameters = sum.parameters.saturating_add(layer.parameters);
            sum.activation = sum.activation.saturating_add(layer.activation);
            prefix.push(sum);
            let value = (sum.forward + sum.input + sum.weight) / slowest;
            if !value.is_finite() {
                return Err(PartitionError::NotANumber {
                    what: "time up to the end",
                    which: "layer",
                    index,
                    value,
                    wanted: "finite on the slowest device",
                });
            }
        }
        let in_flight = proof.peak_live.iter().map(|&live| live as u64).collect();
        Ok(Self {
            layers,
            devices,
            plan,
            prefix,
            in_flight,
        })
    }

    /// Layers `first..end` on `device`.
    fn cost(&self, device: usize, first: usize, end: usize) -> Stage {
        let (a, b) = (&self.prefix[first], &self.prefix[end]);
        let Device {
            speed, bandwidth, ..
        } = self.devices[device];
        let last = device + 1 == self.devices.len();
        let boundary = if last {
            0.0
        } else {
            self.layers[end - 1].boundary as f64
        };
        let activations = (b.activation - a.activation).saturating_mul(self.in_flight[device]);
        Stage {
            forward: (b.forward - a.forward) / speed,
            input: (b.input - a.input) / speed,
            weight: (b.weight - a.weight) / speed,
            transfer: boundary / bandwidth,
            memory: (b.parameters - a.parameters).saturating_add(activations),
        }
    }

    fn stage(&self, starts: &[usize], device: usize) -> Stage {
        let end = starts.get(device + 1).copied().unwrap_or(self.layers.len());
        self.cost(device, starts[device], end)
    }

    fn fits(&self, starts: &[usize]) -> bool {
        let fits = |d: usize| self.stage(starts, d).memory <= self.devices[d].memory;
        (0..self.devices.len()).all(fits)
    }

    fn bottleneck(&self, starts: &[usize]) -> f64 {
        (0..starts.len())
            .map(|d| self.stage(starts, d).period())
            .fold(0.0, f64::max)
    }

    fn makespan(&self, starts: &[usize]) -> Result<f64, PartitionError> {
        let of = |device| {
            let stage = self.stage(starts, device);
            let costs = StageCosts::new(stage.forward, stage.input, stage.weight);
            StageCosts {
                transfer: stage.transfer,
                ..costs
            }
        };
        let costs = Costs {
            stages: (0..starts.len()).map(of).collect(),
        };
        Ok(simulate(self.plan, &costs, Transfers::Overlapped)?.makespan)
    }

    /// The cut whose worst stage is best: `best[d][end]` is the worst of devices `0..=d` with layers
    /// `0..end`, at the best cut. `None` where a stage must be `None`.
    fn best_cut<T: PartialOrd + Copy>(
        &self,
        worth: impl Fn(usize, usize, usize) -> Option<T>,
    ) -> Option<Vec<usize>> {
        let (n, p) = (self.layers.len(), self.devices.len());
        let max = |a: T, b: T| if a > b { a } else { b };
        let mut best: Vec<Option<T>> = (0..=n)
            .map(|end| if end > 0 { worth(0, 0, end) } else { None })
            .collect();
        let mut from = vec![vec![0usize; n + 1]; p];
        for (d, from) in from.iter_mut().enumerate().skip(1) {
            let mut next: Vec<Option<T>> = vec![None; n + 1];
            for end in d + 1..=n {
                let worst = |first: usize| Some((max(best[first]?, worth(d, first, end)?), first));
                for (worst, first) in (d..end).filter_map(worst) {
                    if next[end].is_none_or(|b| worst < b) {
                        next[end] = Some(worst);
                        from[end] = first;
                    }
                }
            }
            best = next;
        }
        best[n]?;
        let mut starts = vec![0; p];
        let mut end = n;
        for d in (1..p).rev() {
            end = from[d][end];
            starts[d] = end;
        }
        Some(starts)
    }

    fn least_bottleneck(&self) -> Result<Vec<usize>, PartitionError> {
        let fitting = |device: usize, first, end| {
            let stage = self.cost(device, first, end);
            (stage.memory <= self.devices[device].memory).then(|| stage.period())
        };
        if let Some(starts) = self.best_cut(fitting) {
            return Ok(starts);
        }
        // Nothing fits: where is the least missing?
        let missing = |device: usize, first, end| {
            Some(
                self.cost(device, first, end)
                    .memory
                    .saturating_sub(self.devices[device].memory),
            )
        };
        let starts = self
            .best_cut(missing)
            .unwrap_or_else(|| (0..self.devices.len()).collect());
        let lack = |d: usize| {
            let needed = self.stage(&starts, d).memory;
            (needed.saturating_sub(self.devices[d].memory), needed)
        };
        let device = (0..self.devices.len())
            .max_by_key(|&d| lack(d).0)
            .unwrap_or(0);
        let (missing, needed) = lack(device);
        let limit = self.devices[device].memory;
        Err(PartitionError::Memory {
            device,
            needed,
            limit,
            missing,
        })
    }

    /// How many ways there are to cut, or some larger number than is worth counting.
    fn count_cuts(&self) -> u64 {
        let (n, k) = (self.layers.len() as u64 - 1, self.devices.len() as u64 - 1);
        let k = k.min(n - k);
        let mut count = 1u64;
        for i in 0..k {
            count = count.saturating_mul(n - i) / (i + 1);
            if count > ALL_CUTS {
                return u64::MAX;
            }
        }
        count
    }

    /// The cut of the shortest simulated step, of all that fit.
    fn try_all(&self) -> Result<Option<Vec<usize>>, PartitionError> {
        let (n, p) = (self.layers.len(), self.devices.len());
        let mut starts: Vec<usize> = (0..p).collect();
        let mut best: Option<(f64, Vec<usize>)> = None;
        loop {
            if self.fits(&starts) {
                let time = self.makespan(&starts)?;
                if best.as_ref().is_none_or(|(least, _)| time < *least) {
                    best = Some((time, starts.clone()));
                }
            }
            // The next combination: the last start that can still move does, those after it close up.
            let Some(d) = (1..p).rev().find(|&d| starts[d] < n - (p - d)) else {
                return Ok(best.map(|(_, starts)| starts));
            };
            starts[d] += 1;
            for later in d + 1..p {
                starts[later] = starts[later - 1] + 1;
            }
        }
    }

    /// Moves one cut, or all from one on, as long as the simulated step becomes shorter.
    fn refine(&self, mut starts: Vec<usize>) -> Result<Vec<usize>, PartitionError> {
        let (n, p) = (self.layers.len(), self.devices.len());
        let mut time = self.makespan(&starts)?;
        loop {
            let mut best: Option<(f64, Vec<usize>)> = None;
            for first in 1..p {
                for last in [first, p - 1] {
                    for step in [-2isize, -1, 1, 2] {
                        let mut moved = starts.clone();
                        for start in &mut moved[first..=last] {
                            *start = start.saturating_add_signed(step);
                        }
                        let in_order = moved.windows(2).all(|w| w[0] < w[1]) && moved[p - 1] < n;
                        if !in_order || !self.fits(&moved) {
                            continue;
                        }
                        let then = self.makespan(&moved)?;
                        if then < time && best.as_ref().is_none_or(|(least, _)| then < *least) {
                            best = Some((then, moved));
                        }
                    }
                }
            }
            match best {
                Some((then, moved)) => (time, starts) = (then, moved),
                None => return Ok(starts),
            }
        }
    }
}
