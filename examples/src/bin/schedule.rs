//! Makes, reads or searches a pipeline plan, proves it, predicts it, prints and draws it:
//! `cargo xtask schedule --kind 1f1b --ranks 4 --microbatches 8`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use phalanx_examples::cli::{device, exit, say, writable};
use phalanx_parallel::pipeline::{
    Budget, Cost, Costs, Found, Lowering, Named, Rules, Schedule, StageCosts, Timeline, Transfers,
    lower, optimize, render, simulate, validate,
};
use phalanx_tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

/// Makes, proves, predicts and draws a pipeline plan.
#[derive(Parser)]
#[command(name = "schedule", bin_name = "cargo xtask schedule")]
struct Args {
    /// A schedule by its name: gpipe, 1f1b, interleaved, bfs, zbh1, zb1p, zbv, dualpipev.
    #[arg(long)]
    kind: Option<String>,
    /// A schedule from a file: a line per rank, actions separated by commas.
    #[arg(long, conflicts_with_all = ["kind", "optimize", "ranks", "microbatches", "stages_per_rank"])]
    file: Option<PathBuf>,
    /// Search for a schedule under the given costs.
    #[arg(long, conflicts_with = "kind")]
    optimize: bool,
    /// How many ranks.
    #[arg(long, default_value_t = 4)]
    ranks: usize,
    /// How many microbatches.
    #[arg(long, default_value_t = 8)]
    microbatches: usize,
    /// How many stages on each rank; what the schedule has by nature, if left out.
    #[arg(long)]
    stages_per_rank: Option<usize>,
    /// JSON with the costs of each stage: {"stages": [{"forward": 1, "input": 1, "weight": 1,
    /// "backward": 2, "transfer": 0, "reduce": 0, "tied": 0, "activation": 1, "kept_for_weight": 1, "resident": 0}, ...]}.
    /// A time may be a list, one per microbatch. Unit costs if left out.
    #[arg(long)]
    costs: Option<PathBuf>,
    /// How long to search.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// The most that a rank may hold, in the unit of the costs' `activation`; live (stage,
    /// microbatch) pairs under unit costs.
    #[arg(long)]
    memory: Option<u64>,
    /// The device that plans are made on: cpu.
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device)]
    device: Device,
    /// Draw the timeline into this file.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Write the timeline into this file for Perfetto.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Leave the grid out.
    #[arg(long)]
    quiet: bool,
    /// Say how long planning, lowering and validating took.
    #[arg(long)]
    timing: bool,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
}

/// The line that `--json` ends with.
#[derive(Default, Serialize)]
struct Summary {
    kind: String,
    ranks: usize,
    stages_per_rank: usize,
    microbatches: usize,
    makespan: Value,
    idle_per_rank: Vec<Value>,
    peak_live: Vec<usize>,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lower_bound: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    grid: Vec<Vec<String>>,
    lowered: Vec<Vec<String>>,
}

/// A time as JSON, whole numbers without a point.
fn number(value: f64) -> Value {
    if value == value.trunc() && value.abs() < 1e15 {
        return Value::from(value as i64);
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

fn printed(schedule: &Schedule) -> Vec<Vec<String>> {
    schedule
        .ranks()
        .iter()
        .map(|list| list.iter().map(ToString::to_string).collect())
        .collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CostsFile {
    stages: Vec<StageEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StageEntry {
    forward: Time,
    input: Time,
    weight: Time,
    backward: Option<Time>,
    #[serde(default)]
    transfer: f64,
    #[serde(default)]
    reduce: f64,
    #[serde(default)]
    tied: f64,
    #[serde(default = "one")]
    activation: u64,
    kept_for_weight: Option<u64>,
    #[serde(default)]
    resident: u64,
}

fn one() -> u64 {
    1
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Time {
    All(f64),
    Each(Vec<f64>),
}

impl From<Time> for Cost {
    fn from(time: Time) -> Self {
        match time {
            Time::All(time) => Cost::All(time),
            Time::Each(times) => Cost::Each(times),
        }
    }
}

fn read_costs(path: &Path) -> Result<Costs> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file: CostsFile =
        serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
    let stage = |entry: StageEntry| StageCosts {
        forward: entry.forward.into(),
        input: entry.input.into(),
        weight: entry.weight.into(),
        backward: entry.backward.map(Cost::from),
        transfer: entry.transfer,
        reduce: entry.reduce,
        tied: entry.tied,
        activation: entry.activation,
        kept_for_weight: entry.kept_for_weight.unwrap_or(entry.activation),
        resident: entry.resident,
    };
    Ok(Costs {
        stages: file.stages.into_iter().map(stage).collect(),
    })
}

/// What is to be looked at: a plan, its costs, and how it was found if it was searched for.
struct Subject {
    plan: Schedule,
    costs: Costs,
    found: Option<Found>,
}

/// Pairs of a stage and a microbatch in a plan that is made, and in one that is searched for: some 400
/// bytes each, and each is looked at often.
const MOST_PAIRS: usize = 1 << 24;
const MOST_SEARCHED: usize = 1 << 18;

/// Refuses what cannot be planned in memory and time that a person has.
fn check_extent(args: &Args) -> Result<()> {
    let counts = [
        ("--ranks", args.ranks),
        ("--microbatches", args.microbatches),
        ("--stages-per-rank", args.stages_per_rank.unwrap_or(1)),
    ];
    for (name, count) in counts {
        ensure!(
            (1..=usize::from(u16::MAX)).contains(&count),
            "{name} is {count}; it should be at least 1 and at most {}",
            u16::MAX
        );
    }
    let pairs: usize = counts.iter().map(|(_, count)| count).product();
    let most = if args.optimize {
        MOST_SEARCHED
    } else {
        MOST_PAIRS
    };
    ensure!(
        pairs <= most,
        "--ranks, --microbatches and --stages-per-rank make {pairs} pairs of a stage and a microbatch; \
         this takes at most {most}"
    );
    Ok(())
}

fn subject(args: &Args, summary: &mut Summary) -> Result<Subject> {
    let costs = args.costs.as_deref().map(read_costs).transpose()?;
    if let Some(path) = &args.file {
        summary.kind = "file".into();
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let plan: Schedule = text
            .parse()
            .with_context(|| format!("{}", path.display()))?;
        summary.grid = printed(&plan);
        summary.ranks = plan.rank_count();
        summary.microbatches = plan.microbatches();
        summary.stages_per_rank = plan.stages().div_ceil(plan.rank_count());
        // Costs as many as the stages only once the plan is known to have them all.
        validate(&plan, &Rules::default())?;
        let costs = costs.unwrap_or_else(|| Costs::unit(plan.stages()));
        return Ok(Subject {
            plan,
            costs,
            found: None,
        });
    }
    summary.ranks = args.ranks;
    summary.microbatches = args.microbatches;
    check_extent(args)?;
    if args.optimize {
        summary.kind = "optimize".into();
        let per_rank = args.stages_per_rank.unwrap_or(1);
        summary.stages_per_rank = per_rank;
        let stages = args
            .ranks
            .checked_mul(per_rank)
            .filter(|&s| s <= usize::from(u16::MAX));
        let costs = match costs {
            Some(costs) => costs,
            None => Costs::unit(stages.context("there are more stages than a plan can hold")?),
        };
        summary.stages_per_rank = costs.stages.len().div_ceil(args.ranks.max(1));
        let time = Duration::try_from_secs_f64(args.seconds).ok();
        let time = time.with_context(|| {
            format!(
                "--seconds is {}; it should be a number, 0 or more",
                args.seconds
            )
        })?;
        let budget = Budget {
            time,
            ..Budget::default()
        };
        let found = optimize(&costs, args.ranks, args.microbatches, args.memory, &budget)?;
        summary.lower_bound = Some(number(found.lower_bound));
        summary.origin = Some(found.origin.clone());
        return Ok(Subject {
            plan: found.schedule.clone(),
            costs,
            found: Some(found),
        });
    }
    let Some(kind) = &args.kind else {
        bail!("which schedule? Give --kind NAME, --file FILE or --optimize");
    };
    summary.kind = kind.clone();
    let named: Named = kind.parse()?;
    let per_rank = args
        .stages_per_rank
        .unwrap_or(named.default_stages_per_rank());
    summary.stages_per_rank = per_rank;
    let plan = named.schedule(args.ranks, per_rank, args.microbatches)?;
    let costs = costs.unwrap_or_else(|| Costs::unit(plan.stages()));
    Ok(Subject {
        plan,
        costs,
        found: None,
    })
}

/// A time for the eye: what floating point adds in the tenth digit is left out.
fn shown(value: f64) -> Value {
    number((value * 1e9).round() / 1e9)
}

fn report(args: &Args, subject: &Subject, time: &Timeline) -> Result<()> {
    let plan = &subject.plan;
    if !args.quiet {
        say(plan)?;
    }
    let list = |values: &[f64]| {
        values
            .iter()
            .map(|v| shown(*v).to_string())
            .collect::<Vec<_>>()
            .join(" ")
    };
    say(format_args!("makespan       {}", shown(time.makespan)))?;
    say(format_args!("idle per rank  {}", list(&time.idle)))?;
    say(format_args!(
        "bubble         {:.1} %",
        100.0 * time.bubble()
    ))?;
    let peaks: Vec<String> = time.peak_live.iter().map(ToString::to_string).collect();
    say(format_args!("peak live      {}", peaks.join(" ")))?;
    if subject
        .costs
        .stages
        .iter()
        .any(|s| s.activation != 1 || s.resident != 0)
    {
        let peaks: Vec<String> = time.peak_bytes.iter().map(ToString::to_string).collect();
        say(format_args!("peak held      {}", peaks.join(" ")))?;
    }
    if let Some(found) = &subject.found {
        say(format_args!("found by       {}", found.origin))?;
        if let Some((named, time)) = found.best_named {
            say(format_args!(
                "best named     {} with {}",
                named.title(),
                shown(time)
            ))?;
        }
        let gap = 100.0 * found.gap();
        match found.exact {
            true => say("lower bound    reached: no schedule is shorter")?,
            false => say(format_args!(
                "lower bound    {} ({gap:.2} % less)",
                number(found.lower_bound)
            ))?,
        }
    }
    Ok(())
}

fn run(args: &Args, summary: &mut Summary) -> Result<()> {
    ensure!(
        args.device.is_cpu(),
        "a plan is made and predicted on the cpu, whatever runs it: --device names that"
    );
    // Where nothing can be written, nothing needs to be searched for.
    for path in [&args.svg, &args.trace].into_iter().flatten() {
        writable(path)?;
    }
    let begin = Instant::now();
    let subject = subject(args, summary)?;
    let planned = begin.elapsed();
    let Subject { plan, costs, .. } = &subject;
    if args.json {
        summary.grid = printed(plan);
    }

    let begin = Instant::now();
    // A plan that is lowered already is taken as it is.
    let lowered = match plan.has_transfers() {
        true => plan.clone(),
        false => lower(plan, &Lowering::default())?,
    };
    let lowering = begin.elapsed();
    let begin = Instant::now();
    let live_limit = args.memory.filter(|_| args.costs.is_none());
    let live_limit = live_limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let rules = Rules {
        live_limit,
        ..Rules::default()
    };
    validate(plan, &rules)?;
    validate(&lowered, &rules)?;
    let validating = begin.elapsed();
    if args.json {
        summary.lowered = printed(&lowered);
    }

    let begin = Instant::now();
    let time = simulate(plan, costs, Transfers::Overlapped)?;
    let simulating = begin.elapsed();
    summary.makespan = number(time.makespan);
    summary.idle_per_rank = time.idle.iter().map(|&idle| number(idle)).collect();
    summary.peak_live = time.peak_live.clone();
    report(args, &subject, &time)?;
    if let Some(memory) = args.memory {
        let over = time.peak_bytes.iter().position(|&peak| peak > memory);
        if let Some(rank) = over {
            bail!(
                "rank {rank} holds up to {}, more than {memory}",
                time.peak_bytes[rank]
            );
        }
    }
    say("verdict        valid: every input is there in time, and no rank can wait in a circle")?;
    if args.timing {
        say(format_args!(
            "took           {planned:.2?} to plan, {lowering:.2?} to lower, {validating:.2?} to \
             validate both, {simulating:.2?} to simulate; {} actions, lowered {}",
            plan.len(),
            lowered.len()
        ))?;
    }
    let title = match summary.origin {
        Some(_) => format!(
            "optimised: {} ranks, {} microbatches",
            summary.ranks, summary.microbatches
        ),
        None => {
            let kind = summary
                .kind
                .parse::<Named>()
                .map_or("schedule", Named::title);
            format!(
                "{kind}: {} ranks, {} microbatches",
                summary.ranks, summary.microbatches
            )
        }
    };
    if let Some(path) = &args.svg {
        let picture = render::svg(plan, &time, costs, &title);
        std::fs::write(path, picture).with_context(|| format!("{}", path.display()))?;
    }
    if let Some(path) = &args.trace {
        // A unit of time is a millisecond.
        let trace = render::chrome_trace(plan, &time, costs, 1000.0);
        std::fs::write(path, trace).with_context(|| format!("{}", path.display()))?;
    }
    summary.valid = true;
    Ok(())
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut summary = Summary::default();
    let mut done = run(&args, &mut summary);
    if args.json {
        summary.reason = done.as_ref().err().map(|error| format!("{error:#}"));
        let line = serde_json::to_string(&summary).map_err(anyhow::Error::from);
        done = done.and(line.and_then(say));
    }
    exit(done)
}
