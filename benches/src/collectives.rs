//! `bench collectives`: every collective between ranks, in the conventions of nccl-tests.
//!
//! Sizes are those of the whole message: the buffer of all_reduce, broadcast and reduce, what all_gather and gather
//! end with, what reduce_scatter, scatter and all_to_all begin with. The algorithm bandwidth is size over time, the
//! bus bandwidth counts what has to move. Each call works on input that its rank has just written, as gradients are;
//! the writing, and the meeting of the ranks before the call and after it, are not timed. (Without the second meeting,
//! a rank that shares its core would wait for its result while another one writes its next input.)

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use phalanx_comm::{ProcessGroup, ReduceOp};
use phalanx_examples::cli::ranks;
use phalanx_tensor::{DType, Device, Shape, Tensor};
use serde::Serialize;

use crate::mpi;
use crate::options::Common;
use crate::peer::{CProgram, number};
use crate::ranks::{launch, slowest};
use crate::sample::{Sampling, Spread, calls_per_sample};
use crate::table::{Table, figure, ratio};

/// What to time.
#[derive(Args, Clone, Debug)]
pub struct CollectivesArgs {
    /// Collectives
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Op::value_variants().to_vec())]
    pub op: Vec<Op>,
    /// Ranks
    #[arg(long, value_delimiter = ',', default_value = "2", value_parser = ranks)]
    pub ranks: Vec<usize>,
    /// Sizes of the message
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1024,65536,1048576,16777216,67108864"
    )]
    pub bytes: Vec<usize>,
    /// What carries the messages
    #[arg(long, value_enum, default_value = "local")]
    pub backend: Backend,
    #[command(flatten)]
    common: Common,
}

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Threads of one process.
    Local,
    /// Processes, under mpirun.
    Mpi,
    /// Threads of one process, each with a card: cuda:0 and those that follow.
    Nccl,
}

impl Backend {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Backend::Local => "local",
            Backend::Mpi => "mpi",
            Backend::Nccl => "nccl",
        }
    }

    /// Of rank 0; the others follow.
    pub(crate) fn first_device(self) -> Device {
        match self {
            Backend::Local | Backend::Mpi => Device::cpu(0),
            Backend::Nccl => Device::cuda(0),
        }
    }
}

/// A collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
#[expect(missing_docs, reason = "they are named as in `ProcessGroup`")]
pub enum Op {
    AllReduce,
    Broadcast,
    Reduce,
    AllGather,
    ReduceScatter,
    Gather,
    Scatter,
    AllToAll,
}

impl Op {
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    /// Bus bandwidth over algorithm bandwidth.
    fn bus_factor(self, ranks: usize) -> f64 {
        let n = ranks as f64;
        match self {
            Op::AllReduce => 2.0 * (n - 1.0) / n,
            Op::Broadcast | Op::Reduce => 1.0,
            Op::AllGather | Op::ReduceScatter | Op::Gather | Op::Scatter | Op::AllToAll => {
                (n - 1.0) / n
            }
        }
    }

    /// Whether gloo's script has it.
    fn has_peer(self) -> bool {
        matches!(
            self,
            Op::AllReduce | Op::Broadcast | Op::AllGather | Op::ReduceScatter
        )
    }
}

#[derive(Serialize)]
struct Row {
    bench: &'static str,
    op: String,
    backend: &'static str,
    ranks: usize,
    bytes: usize,
    microseconds: f64,
    min: f64,
    max: f64,
    algbw: f64,
    busbw: f64,
    wrong: usize,
    over_plain_c: Option<f64>,
    peer_over_ours: Option<f64>,
}

/// One kind of call of one rank: fresh input for every call, and a look at the result.
struct Call<'a> {
    op: Op,
    group: &'a dyn ProcessGroup,
    /// Elements of the whole message.
    count: usize,
}

impl Call<'_> {
    /// What this rank puts in, everywhere its number plus one. A tensor with a part for each rank has a row for each.
    fn input(&self) -> phalanx_tensor::Result<Tensor> {
        let (ranks, part) = (self.group.size(), self.part());
        let shape = match self.op {
            Op::AllReduce | Op::Broadcast | Op::Reduce => Shape::from([self.count]),
            Op::AllGather | Op::Gather => Shape::from([part]),
            Op::ReduceScatter | Op::Scatter | Op::AllToAll => Shape::from([ranks, part]),
        };
        Tensor::full(
            shape,
            self.group.rank() as f64 + 1.0,
            DType::F32,
            self.group.device(),
        )
    }

    /// Elements of one rank's part of the message.
    fn part(&self) -> usize {
        self.count / self.group.size()
    }

    /// The call; what it ends with on this rank.
    fn run(&self, input: Tensor) -> phalanx_comm::Result<Option<Tensor>> {
        let group = self.group;
        Ok(match self.op {
            Op::AllReduce => Some(group.all_reduce(input, ReduceOp::Sum)?.wait()?),
            Op::Broadcast => Some(group.broadcast(input, 0)?.wait()?),
            Op::Reduce => group.reduce(input, ReduceOp::Sum, 0)?.wait()?,
            Op::AllGather => Some(group.all_gather(input)?.wait()?),
            Op::ReduceScatter => Some(group.reduce_scatter(input, ReduceOp::Sum)?.wait()?),
            Op::Gather => group.gather(input, 0)?.wait()?,
            Op::Scatter => {
                let (parts, shape) = (
                    (group.rank() == 0).then_some(input),
                    Shape::from([self.part()]),
                );
                Some(group.scatter(parts, shape, DType::F32, 0)?.wait()?)
            }
            Op::AllToAll => Some(group.all_to_all(input)?.wait()?),
        })
    }

    /// How many elements of the result are not what they should be.
    fn wrong(&self, output: Option<Tensor>) -> phalanx_tensor::Result<usize> {
        let (ranks, part) = (self.group.size(), self.part());
        let sum = (ranks * (ranks + 1) / 2) as f32;
        let rows = || {
            (1..=ranks)
                .flat_map(|rank| std::iter::repeat_n(rank as f32, part))
                .collect()
        };
        let expected: Vec<f32> = match self.op {
            Op::Reduce | Op::Gather if self.group.rank() != 0 => Vec::new(),
            Op::AllReduce | Op::Reduce => vec![sum; self.count],
            Op::Broadcast => vec![1.0; self.count],
            Op::ReduceScatter => vec![sum; part],
            Op::Scatter => vec![1.0; part],
            Op::AllGather | Op::Gather | Op::AllToAll => rows(),
        };
        let got = output.map_or(Ok(Vec::new()), |output| output.to_vec::<f32>())?;
        let wrong = got
            .iter()
            .zip(&expected)
            .filter(|(got, expected)| got != expected)
            .count();
        Ok(wrong + got.len().abs_diff(expected.len()))
    }
}

/// What one rank does: samples of the seconds that a call takes on the slowest rank, and how many elements of this
/// rank's result were wrong.
pub(crate) fn time(
    group: &dyn ProcessGroup,
    op: Op,
    bytes: usize,
    sampling: Sampling,
) -> Result<(Vec<f64>, usize)> {
    let call = Call {
        op,
        group,
        count: bytes / DType::F32.size(),
    };
    let wrong = call.wrong(call.run(call.input()?)?)?;
    let timed = |calls: u32| -> Result<f64> {
        if let Device::Cuda(_) = group.device() {
            return on_card(&call, calls);
        }
        let mut spent = 0.0;
        for _ in 0..calls {
            let input = call.input()?;
            group.barrier()?.wait()?;
            let start = Instant::now();
            let output = call.run(input)?;
            spent += start.elapsed().as_secs_f64();
            group.barrier()?.wait()?;
            drop(output);
        }
        slowest(group, spent / f64::from(calls))
    };
    timed(3)?;
    let calls = calls_per_sample(sampling, timed(5)?).max(2);
    let samples = (0..sampling.samples)
        .map(|_| timed(calls))
        .collect::<Result<Vec<_>>>()?;
    Ok((samples, wrong))
}

/// Inputs that a card holds at once, at most, and their bytes.
const INPUTS: (usize, usize) = (20, 1 << 30);

/// Seconds for each of about `calls` calls, as nccl-tests measure: they are put on the card one behind the other, and the
/// host waits for the last one.
fn on_card(call: &Call<'_>, calls: u32) -> Result<f64> {
    let Call { group, count, .. } = *call;
    let fitting = INPUTS.1 / (count * DType::F32.size()).max(1);
    let at_once = (calls as usize).min(INPUTS.0).min(fitting).max(1);
    let rounds = (calls as usize).div_ceil(at_once);
    let mut spent = 0.0;
    for _ in 0..rounds {
        let inputs = (0..at_once).map(|_| call.input());
        let inputs = inputs.collect::<phalanx_tensor::Result<Vec<_>>>()?;
        group.device().synchronize()?;
        group.barrier()?.wait()?;
        let start = Instant::now();
        let outputs = inputs.into_iter().map(|input| call.run(input));
        let outputs = outputs.collect::<phalanx_comm::Result<Vec<_>>>()?;
        group.device().synchronize()?;
        spent += start.elapsed().as_secs_f64();
        drop(outputs);
    }
    slowest(group, spent / (rounds * at_once) as f64)
}

/// Seconds that a call takes on the slowest rank, and how many elements of all results were wrong.
fn measure(args: &CollectivesArgs, op: Op, ranks: usize, bytes: usize) -> Result<(Spread, usize)> {
    let sampling = args.common.sampling;
    if args.backend == Backend::Mpi {
        return mpi::measure(op, ranks, bytes, sampling);
    }
    let outcomes = launch(ranks, args.backend.first_device(), move |group| {
        time(&*group, op, bytes, sampling)
    })?;
    let wrong = outcomes.iter().map(|(_, wrong)| wrong).sum();
    let (samples, _) = outcomes.into_iter().next().unwrap_or_default();
    Ok((Spread::of(samples), wrong))
}

/// Runs the benchmark.
///
/// # Errors
/// A collective or a peer fails.
pub fn run(args: &CollectivesArgs) -> Result<()> {
    let limit = match args.backend {
        Backend::Local => CProgram::build("shm_allreduce")?,
        Backend::Mpi => CProgram::build_with("mpicc", "mpi_coll")?,
        Backend::Nccl => None,
    };
    let columns = [
        "op",
        "ranks",
        "size (B)",
        "count",
        "time (us)",
        "min",
        "max",
        "algbw GB/s",
        "busbw GB/s",
        "#wrong",
        "vs plain C",
        "peer/ours",
    ];
    let title = match args.backend {
        Backend::Local => {
            "f32 on the local backend; plain C: time over that of shm_allreduce.c; peer: gloo"
        }
        Backend::Mpi => {
            "f32 on the MPI backend; plain C: time over that of MPI_Allreduce (mpi_coll.c); peer: gloo"
        }
        Backend::Nccl => "f32 between cards, by NCCL; peer: PyTorch's, by NCCL",
    };
    let mut table = Table::new(title, &columns, args.common.json)?;
    for (&ranks, &op) in args
        .ranks
        .iter()
        .flat_map(|ranks| args.op.iter().map(move |op| (ranks, op)))
    {
        for &bytes in &args.bytes {
            let limit = limit.as_ref().filter(|_| op == Op::AllReduce);
            let limit = || {
                let time = |program| match args.backend {
                    Backend::Local | Backend::Nccl => plain_c(program, ranks, bytes),
                    Backend::Mpi => mpi::plain_c(program, ranks, bytes, args.common.sampling),
                };
                limit.map(time).transpose()
            };
            let before = limit()?;
            let (seconds, wrong) = measure(args, op, ranks, bytes)?;
            let limit = before
                .zip(limit()?)
                .map(|(before, after)| (before + after) / 2.0);
            let peer = if op.has_peer() {
                peer(args, op, ranks, bytes)?
            } else {
                None
            };
            let algbw = bytes as f64 / seconds.median * 1e-9;
            let micro = seconds.scaled(1e6);
            let row = Row {
                bench: "collectives",
                op: op.name(),
                backend: args.backend.name(),
                ranks,
                bytes,
                microseconds: micro.median,
                min: micro.min,
                max: micro.max,
                algbw,
                busbw: algbw * op.bus_factor(ranks),
                wrong,
                over_plain_c: limit.map(|limit| micro.median / limit),
                peer_over_ours: peer.map(|peer| peer / micro.median),
            };
            let cells = [
                row.op.clone(),
                ranks.to_string(),
                bytes.to_string(),
                (bytes / DType::F32.size()).to_string(),
                figure(micro.median),
                figure(micro.min),
                figure(micro.max),
                figure(row.algbw),
                figure(row.busbw),
                wrong.to_string(),
                ratio(row.over_plain_c),
                ratio(row.peer_over_ours),
            ];
            table.row(&cells, &row)?;
            ensure!(
                wrong == 0,
                "{} of {bytes} bytes on {ranks} ranks gave wrong results",
                op.name()
            );
        }
    }
    table.finish()
}

/// Microseconds of the plain C program.
fn plain_c(program: &CProgram, ranks: usize, bytes: usize) -> Result<f64> {
    let lines = program.run(&[ranks.to_string(), bytes.to_string()])?;
    ensure!(
        lines.len() == 1,
        "shm_allreduce printed {} lines",
        lines.len()
    );
    number(&lines[0], "microseconds")
}

/// Microseconds of PyTorch's collective.
fn peer(args: &CollectivesArgs, op: Op, ranks: usize, bytes: usize) -> Result<Option<f64>> {
    let (ranks, bytes) = (ranks.to_string(), bytes.to_string());
    let backend = match args.backend {
        Backend::Local | Backend::Mpi => "gloo",
        Backend::Nccl => "nccl",
    };
    let options = ["--backend", backend, "--op", &op.name()];
    let options = [&options[..], &["--ranks", &ranks, "--bytes", &bytes]].concat();
    let figures = args.common.peer.figures("collectives.py", &options)?;
    figures
        .map(|figures| number(&figures, "microseconds"))
        .transpose()
}
