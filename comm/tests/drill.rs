//! Ranks that go wrong in ways that are no cell of the drill's table (`cells/`), and what ends the whole job:
//! `mpirun -n 3 …/drill-… WHAT`. `cargo xtask test` starts them, and checks how the job ends.

use phalanx_comm::{
    DType, Error, LaunchConfig, OnFailure, ProcessGroup, Ranks, ReduceOp, RunConfig, Tensor,
    report, run,
};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

const DEADLINE: Duration = Duration::from_secs(3);
/// How long a rank computes that makes no call while another one fails.
const BACKWARD: Duration = Duration::from_secs(3);

/// How long a rank is stopped: more than half of the deadline, and more than all of it.
const PAUSE: Duration = Duration::from_millis(2000);
const STOP: Duration = Duration::from_millis(5000);
/// How long after the deadline the others are told of it at the latest.
const TOLD: Duration = Duration::from_millis(1500);
/// By when a program that does nothing has ended, as a rule: on a machine where it has not, mpirun says its own sentence.
const OTHER_ENDS: Duration = Duration::from_secs(1);
/// Elements of a reduction that takes some time.
const AGAIN: usize = 1 << 22;

fn main() -> ExitCode {
    let what = std::env::args().nth(1).unwrap_or_default();
    if !std::env::vars().any(|(name, _)| name == "OMPI_COMM_WORLD_SIZE" || name == "PMI_SIZE") {
        println!("drill: started alone, there is nobody to go wrong for");
        return ExitCode::SUCCESS;
    }
    if what == "start" {
        // Let the other program of the job end first: where a process ends after another one has told mpirun of itself,
        // mpirun ends the job, and no deadline is needed.
        std::thread::sleep(OTHER_ENDS);
    }
    let config = LaunchConfig::new(1).start_deadline(DEADLINE);
    let config = match &*what {
        // All is by default here, the deadline too; and a busy machine looks at gigabytes for long.
        "busy-error" | "busy-panic" | "large" => config,
        // Whom nobody can reach.
        "link" => {
            let at_once = OnFailure::EndAfter(Duration::from_millis(700));
            config.deadline(DEADLINE).on_failure(at_once)
        }
        _ => config.deadline(DEADLINE),
    };
    let config = RunConfig::new(Ranks::OrAlone(1)).launch(config);
    let end = run(config.clone(), |group| drill(&*group, &what));
    match end {
        Err(e) if what == "again" => {
            report(format_args!("error: {e}"));
            again(config)
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(e) => {
            report(format_args!("error: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// The culprit is rank 1.
fn drill(group: &dyn ProcessGroup, what: &str) -> Result<(), String> {
    let is_culprit = group.rank() == 1;
    let text = |e: Error| e.to_string();
    let sum = |len: usize| -> Result<Tensor, Error> {
        let mine = Tensor::ones([len], DType::F32, group.device())?;
        group.all_reduce(mine, ReduceOp::Sum)?.wait()
    };
    sum(1000).map_err(text)?;
    if is_culprit {
        // From here on counts the time in which all has to end.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        println!("fault at {}", now.map_or(0, |time| time.as_nanos()));
    }
    match what {
        "return" if is_culprit => return Ok(()),
        "exit" if is_culprit => std::process::exit(7),
        // Rank 1 fails, and rank 0 makes no call for long: in a backward; or for ever.
        "busy-error" if is_culprit => return Err("no such file: weights".into()),
        "busy-panic" if is_culprit => panic!("the dog ate my gradients"),
        "busy-error" | "busy-panic" if group.rank() == 0 => {
            compute(BACKWARD);
            return match sum(1000) {
                Ok(_) => Err("it reduced, with a rank that has failed".into()),
                Err(e) => {
                    let path = std::env::temp_dir();
                    let path = path.join(format!("last-checkpoint-{}", std::process::id()));
                    let saved = std::fs::write(&path, "weights").and_then(|()| {
                        let read = std::fs::read_to_string(&path)?;
                        std::fs::remove_file(&path).map(|()| read)
                    });
                    report(format_args!("saved the last {saved:?}, since {e}"));
                    Err(e.to_string())
                }
            };
        }
        // It is stopped, as a debugger or an overloaded machine does it: for a while, or for too long.
        "pause" if is_culprit => stop(PAUSE).map_err(|e| e.to_string())?,
        "stop" if is_culprit => stop(STOP).map_err(|e| e.to_string())?,
        "pause" => {
            sum(1000).map_err(text)?;
            println!("it went on");
            return Ok(());
        }
        "stop" => {
            let start = Instant::now();
            let end = sum(1000).map(|_| "it reduced".to_owned());
            let end = end.unwrap_or_else(text);
            let is_in_time = (DEADLINE..DEADLINE + TOLD).contains(&start.elapsed());
            let when = if is_in_time {
                "in time"
            } else {
                "at the wrong time"
            };
            return Err(format!("{when}: {end}"));
        }
        // The world fails while data moves, which is left to MPI; the next one is not mixed up with it.
        "again" => {
            let mine = Tensor::full([AGAIN], 7.0, DType::F32, group.device());
            let mine = mine.map_err(|e| e.to_string())?;
            let sum = group.all_reduce(mine, ReduceOp::Sum).map_err(text)?;
            if is_culprit {
                group.abort("in the midst of it");
            }
            sum.wait().map_err(text)?;
            group.barrier().and_then(|w| w.wait()).map_err(text)?;
        }
        "stuck" if is_culprit => std::process::exit(7),
        "stuck" if group.rank() == 0 => compute(Duration::from_secs(60)),
        // Endless large reductions: somebody will cut the cable.
        "link" => {
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(60) {
                sum(16 << 20).map_err(text)?;
                if group.rank() == 0 {
                    println!("reduced");
                }
            }
        }
        "large" => return large(group).map_err(text),
        "overlap" => return overlap(group).map_err(text),
        _ => {}
    }
    sum(1000).map_err(text)?;
    Ok(())
}

/// A second world in the same processes. MPI keeps what the first has left, so these do not end in order.
fn again(config: RunConfig) -> ExitCode {
    let end = run(config, |group| {
        for _ in 0..8 {
            let mine = Tensor::ones([AGAIN], DType::F32, group.device())?;
            let sum = group.all_reduce(mine, ReduceOp::Sum)?.wait()?;
            let want = group.size() as f32;
            assert!(sum.as_slice::<f32>()?.iter().all(|x| *x == want));
        }
        Ok::<_, Error>(())
    });
    report(format_args!("again: {:?}", end.map(|_| "reduced")));
    ExitCode::FAILURE
}

/// Stops this process for so long: another one wakes it.
fn stop(time: Duration) -> std::io::Result<()> {
    let (pid, time) = (std::process::id(), time.as_secs_f64());
    let script = format!("kill -STOP {pid}; sleep {time}; kill -CONT {pid}");
    let mut shell = std::process::Command::new("sh")
        .args(["-c", &script])
        .spawn()?;
    shell.wait().map(drop)
}

/// What no cancellation reaches: plain computing.
fn compute(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// A message of more than 2³¹ elements, there and back, and a reduction of as many.
fn large(group: &dyn ProcessGroup) -> Result<(), Error> {
    let len = (1usize << 31) + 12_345;
    let rank = group.rank();
    let mine = Tensor::full([len], (rank + 1) as f64, DType::U8, group.device())?;
    let sum = group.all_reduce(mine, ReduceOp::Sum)?.wait()?;
    let want = (group.size() * (group.size() + 1) / 2) as u8;
    assert!(
        sum.as_slice::<u8>()?.iter().all(|&x| x == want),
        "all_reduce"
    );
    match rank {
        0 => group.send(sum, 1, 0)?.wait()?,
        1 => {
            drop(sum);
            let got = group.recv([len].into(), DType::U8, 0, 0)?.wait()?;
            assert!(got.as_slice::<u8>()?.iter().all(|&x| x == want), "recv");
        }
        _ => {}
    }
    group.barrier()?.wait()
}

/// Data goes on moving while the ranks compute, though they have waited for something else in between: after that wait
/// the background thread must not sleep on, for 5 ms or more. Then hardly any reduction is done after 4 ms, on any
/// machine; otherwise most are, and on a machine that is busy with other things at least a quarter, now and then.
fn overlap(group: &dyn ProcessGroup) -> Result<(), Error> {
    const BATCHES: usize = 25;
    const ROUNDS: usize = 20;
    const COMPUTE: Duration = Duration::from_millis(4);
    let mut best = 0;
    for _ in 0..BATCHES {
        let mut done = 0;
        for _ in 0..ROUNDS {
            // It takes less than 1 ms, and many more looks than the one of `poll`.
            let mine = Tensor::ones([1 << 20], DType::F32, group.device())?;
            let mut sum = group.all_reduce(mine, ReduceOp::Sum)?;
            group.barrier()?.wait()?;
            // As a device computes: it leaves the core to others.
            std::thread::sleep(COMPUTE);
            done += i64::from(sum.poll()?);
            sum.wait()?;
        }
        // Over all ranks, so that they stop together.
        let done = Tensor::scalar(done, group.device())?;
        let done = group
            .all_reduce(done, ReduceOp::Sum)?
            .wait()?
            .to_vec::<i64>()?[0] as usize;
        best = best.max(done);
        if 4 * done >= ROUNDS * group.size() {
            return Ok(());
        }
    }
    let size = group.size();
    panic!("of {ROUNDS} on each of {size} ranks at most {best} were done after {COMPUTE:?}");
}
