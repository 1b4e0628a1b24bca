//! A first lesson: every collective on a few numbers, and what each rank gets out of it.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::Parser;
use phalanx_comm::{ProcessGroup, ReduceOp};
use phalanx_examples::cli::{World, exit, say};
use phalanx_tensor::{DType, Shape, Tensor};

/// Every collective on a few numbers, and what each rank gets out of it.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    world: World,
}

fn main() -> ExitCode {
    let Cli { world } = Cli::parse();
    exit(world.launch(4, lesson).map(drop))
}

/// What every rank does. All ranks call the same collectives in the same order.
fn lesson(group: Arc<dyn ProcessGroup>) -> Result<()> {
    let lesson = Lesson { group };
    let group = &*lesson.group;
    let (rank, size) = (group.rank(), group.size());
    let number = rank as f32 + 1.0;

    // Two numbers that tell whose they are: 1, 10 on rank 0; 2, 20 on rank 1; ...
    let mine = || lesson.tensor(vec![number, 10.0 * number], [2]);
    // One such row for each rank: 11, 12, 13 on rank 0; 21, 22, 23 on rank 1; ...
    let row_for_each = || {
        let rows = (1..=size)
            .map(|other| 10.0 * number + other as f32)
            .collect();
        lesson.tensor(rows, [size, 1])
    };

    lesson.title("the ranks begin with")?;
    lesson.say(&text(&mine()?)?)?;

    for (op, what) in [
        (ReduceOp::Sum, "the sum of all"),
        (ReduceOp::Avg, "the mean of all"),
        (ReduceOp::Max, "the largest of all"),
    ] {
        lesson.title(&format!("all_reduce({op}): every rank gets {what}"))?;
        let out = group.all_reduce(mine()?, op)?.wait()?;
        lesson.say(&text(&out)?)?;
    }

    lesson.title("reduce(sum, root 0): only rank 0 gets the sum")?;
    let out = group.reduce(mine()?, ReduceOp::Sum, 0)?.wait()?;
    lesson.say_if_any(out.as_ref())?;

    lesson.title("broadcast(root 0): every rank gets what rank 0 has")?;
    let out = group.broadcast(mine()?, 0)?.wait()?;
    lesson.say(&text(&out)?)?;

    lesson.title("all_gather: every rank gets what all have, a row each")?;
    let out = group.all_gather(mine()?)?.wait()?;
    lesson.say(&text(&out)?)?;

    lesson.title("gather(root 0): only rank 0 gets it")?;
    let out = group.gather(mine()?, 0)?.wait()?;
    lesson.say_if_any(out.as_ref())?;

    lesson.title("the ranks now begin with a row for each rank")?;
    lesson.say(&text(&row_for_each()?)?)?;

    lesson.title("scatter(root 0): rank r gets row r of rank 0")?;
    let rows = if rank == 0 {
        Some(row_for_each()?)
    } else {
        None
    };
    let out = group
        .scatter(rows, Shape::from([1]), DType::F32, 0)?
        .wait()?;
    lesson.say(&text(&out)?)?;

    lesson.title("reduce_scatter(sum): rank r gets the sum of everybody's row r")?;
    let out = group
        .reduce_scatter(row_for_each()?, ReduceOp::Sum)?
        .wait()?;
    lesson.say(&text(&out)?)?;

    lesson.title("all_to_all: rank r gets row r of everybody")?;
    let out = group.all_to_all(row_for_each()?)?.wait()?;
    lesson.say(&text(&out)?)?;

    lesson.title("all_to_all_v: rank r gets r rows of everybody, so rank 0 gets none")?;
    let send: Vec<usize> = (0..size).collect();
    let rows = size * (size - 1) / 2;
    let input = lesson.tensor(vec![number; rows], [rows])?;
    let out = group
        .all_to_all_v(input, &send, &vec![rank; size])?
        .wait()?;
    lesson.say(&text(&out)?)?;

    // A rank does not send to itself.
    if size > 1 {
        lesson.title("send and recv: every rank gives its numbers to the next one")?;
        // Both are issued before either is waited for: in a ring, whoever waits first waits forever.
        let sent = group.send(mine()?, (rank + 1) % size, 0)?;
        let received = group.recv(Shape::from([2]), DType::F32, (rank + size - 1) % size, 0)?;
        let out = received.wait()?;
        sent.wait()?;
        lesson.say(&text(&out)?)?;
    }

    lesson.title("split(rank mod 2), then all_reduce(sum): even and odd ranks on their own")?;
    let half = group
        .split(Some(rank as u32 % 2), 0)?
        .expect("every rank has a color");
    let out = half.all_reduce(mine()?, ReduceOp::Sum)?.wait()?;
    lesson.say(&text(&out)?)?;

    group.barrier()?.wait()?;
    lesson.title("barrier: nobody gets here before everybody has come")
}

/// A rank that shows what it has.
struct Lesson {
    group: Arc<dyn ProcessGroup>,
}

impl Lesson {
    fn tensor(&self, values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
        Ok(Tensor::from_vec(values, shape, self.group.device())?)
    }

    /// Rank 0 prints a heading.
    fn title(&self, title: &str) -> Result<()> {
        if self.group.rank() == 0 {
            say(format_args!("\n{title}"))?;
        }
        Ok(())
    }

    fn say_if_any(&self, tensor: Option<&Tensor>) -> Result<()> {
        self.say(&tensor.map_or(Ok("nothing".to_owned()), text)?)
    }

    /// Rank 0 prints what every rank says, in rank order. The lines come to it by the collective that they are
    /// about: gathered as bytes, padded to one length.
    fn say(&self, line: &str) -> Result<()> {
        let length = Tensor::scalar(line.len() as i64, self.group.device())?;
        let length = self
            .group
            .all_reduce(length, ReduceOp::Max)?
            .wait()?
            .item::<f64>()? as usize;
        let mut bytes = line.as_bytes().to_vec();
        bytes.resize(length, b' ');
        let bytes = Tensor::from_vec(bytes, [length], self.group.device())?;
        let Some(lines) = self.group.gather(bytes, 0)?.wait()? else {
            return Ok(());
        };
        for (rank, line) in lines.to_vec::<u8>()?.chunks(length).enumerate() {
            let line = String::from_utf8_lossy(line);
            say(format_args!("  rank {rank}: {}", line.trim_end()))?;
        }
        Ok(())
    }
}

/// The numbers of a vector, or of a matrix row by row.
fn text(tensor: &Tensor) -> Result<String> {
    let values = tensor.to_vec::<f32>()?;
    let list = |values: &[f32]| {
        let values: Vec<_> = values.iter().map(f32::to_string).collect();
        format!("[{}]", values.join(", "))
    };
    Ok(match tensor.dims() {
        [_, columns] => {
            let rows: Vec<_> = values.chunks((*columns).max(1)).map(list).collect();
            format!("[{}]", rows.join(", "))
        }
        _ => list(&values),
    })
}
