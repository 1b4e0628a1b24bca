//! What each rank of a cell does: one program for every backend.

use crate::reads::{expect_refusals, read, read_in_vain};
use crate::site::{Site, WRONG};
use crate::table::{Backend, CULPRIT, Fault, ON_PURPOSE, Phase};
use phalanx_comm::{DType, Error, ProcessGroup, ReduceOp, Result, Tensor, Work, report};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// Long enough for all ranks to have made their next call.
const SETTLE: Duration = Duration::from_millis(60);
/// How many rounds the others work on by themselves after the fault.
const ROUNDS: usize = 20;
/// Elements that take a moment to reduce.
const LARGE: usize = 1 << 20;

/// One rank's part in a cell. Whatever error it ends with, it says so.
pub fn play(group: &dyn ProcessGroup, site: &Site, backend: Backend) -> Result<()> {
    let end = match (group.rank() == CULPRIT, site.cell.phase) {
        (true, _) => culprit(group, site, backend),
        (false, phase) => other(group, site, phase),
    };
    if let Err(error) = &end
        && error.is_fatal()
    {
        site.hold(group.rank(), error);
        expect_refusals(group, error);
    }
    end
}

fn issue(group: &dyn ProcessGroup, len: usize, op: ReduceOp) -> Result<Work<Tensor>> {
    group.all_reduce(Tensor::ones([len], DType::F32, group.device())?, op)
}

/// A sum to which all ranks come.
fn sum(group: &dyn ProcessGroup, len: usize) -> Result<Tensor> {
    read(group, issue(group, len, ReduceOp::Sum)?.wait()?)
}

/// Comes to its phase, and goes wrong there.
fn culprit(g: &dyn ProcessGroup, site: &Site, backend: Backend) -> Result<()> {
    let go_wrong = |differ: &dyn Fn() -> Result<()>| go_wrong(g, site, backend, differ);
    if site.cell.phase == Phase::Before {
        return go_wrong(&|| g.barrier()?.wait());
    }
    sum(g, 1000)?;
    match site.cell.phase {
        Phase::Before => Ok(()),
        Phase::Making => {
            sleep(SETTLE);
            go_wrong(&|| g.barrier()?.wait())
        }
        Phase::Between => {
            sleep(SETTLE);
            go_wrong(&|| read_in_vain(g, issue(g, 4, ReduceOp::Sum)?.wait()?).map(drop))
        }
        Phase::InFlight => {
            let _first = issue(g, 1000, ReduceOp::Sum)?;
            sleep(SETTLE);
            go_wrong(&|| {
                let ones = Tensor::ones([3], DType::F32, g.device())?;
                read_in_vain(g, g.broadcast(ones, 0)?.wait()?).map(drop)
            })
        }
        Phase::Leaving => {
            g.split(None, 0)?;
            go_wrong(&|| g.barrier()?.wait())
        }
        Phase::Teardown => {
            let differs = site.cell.fault == Fault::Differs;
            let op = if differs {
                ReduceOp::Max
            } else {
                ReduceOp::Sum
            };
            let works = [issue(g, LARGE, ReduceOp::Sum)?, issue(g, 3, op)?];
            sleep(SETTLE);
            if differs {
                // It waits for none of them, and hears of it in its next call.
                drop(works);
                return go_wrong(&|| Ok(()));
            }
            let _works = works;
            go_wrong(&|| Ok(()))
        }
    }
}

/// The fault. Where the program goes on, it ends with the error that its next call gives.
fn go_wrong(
    g: &dyn ProcessGroup,
    site: &Site,
    backend: Backend,
    differ: &dyn Fn() -> Result<()>,
) -> Result<()> {
    site.note_fault();
    match site.cell.fault {
        Fault::Panic => panic!("{ON_PURPOSE}"),
        Fault::Error => {
            return Err(Error::InvalidArgument {
                op: "test",
                rank: CULPRIT,
                reason: ON_PURPOSE.into(),
            });
        }
        Fault::Gone if backend == Backend::Mpi => vanish(),
        Fault::Gone => return Ok(()),
        Fault::Loop => site.compute(),
        Fault::Differs => differ()?,
        Fault::Abort => g.abort(ON_PURPOSE),
    }
    g.barrier()?.wait()
}

/// The process is killed.
pub fn vanish() {
    let pid = std::process::id().to_string();
    let killed = Command::new("kill").args(["-9", &pid]).status();
    panic!("it survived kill -9: {killed:?}");
}

/// What the ranks do that do nothing wrong.
fn other(g: &dyn ProcessGroup, site: &Site, phase: Phase) -> Result<()> {
    if phase != Phase::Before {
        sum(g, 1000)?;
    }
    match phase {
        Phase::Before | Phase::Between => {}
        Phase::Making => drop(g.split(Some(0), 0)?),
        Phase::InFlight => {
            if g.rank() > CULPRIT {
                site.wait_for_fault();
            }
            let first = issue(g, 1000, ReduceOp::Sum)?;
            let second = issue(g, 3, ReduceOp::Sum)?;
            let first = first.wait();
            let second = second.wait();
            let first = first.and_then(|sum| read(g, sum));
            if site.cell.fault == Fault::Loop {
                innocent("what the culprit had issued", &first);
            }
            // Also where the first was lost: each of them is looked at.
            let second = second.and_then(|sum| read_in_vain(g, sum));
            first?;
            second?;
        }
        Phase::Leaving => {
            let pair = g.split(Some(0), 0)?;
            let pair = pair.expect("it has a color");
            let quiet = matches!(site.cell.fault, Fault::Gone | Fault::Loop | Fault::Differs);
            let mut left = ROUNDS;
            while left > 0 {
                let work = sum(&*pair, 100);
                if quiet {
                    innocent("a group that the culprit is not in", &work);
                }
                work?;
                // Both stop after the same round: rank 0 says which.
                let over = i64::from(site.fault().is_some());
                let over = Tensor::scalar(over, pair.device())?;
                let over = pair.broadcast(over, 0)?.wait()?.to_vec::<i64>()?[0];
                left -= over as usize;
            }
        }
        Phase::Teardown => {
            let first = issue(g, LARGE, ReduceOp::Sum)?.wait();
            site.wait_for_fault();
            let first = first.and_then(|sum| read(g, sum));
            if site.cell.fault == Fault::Loop {
                innocent("what the culprit had issued", &first);
            }
            first?;
            let last = issue(g, 3, ReduceOp::Sum)?.wait()?;
            match site.cell.fault {
                Fault::Differs => read_in_vain(g, last)?,
                _ => read(g, last)?,
            };
        }
    }
    read_in_vain(g, issue(g, 1000, ReduceOp::Sum)?.wait()?)?;
    report(format_args!("{WRONG}: rank {} holds no error", g.rank()));
    Ok(())
}

/// Says so where the fault has reached what it has nothing to do with.
fn innocent<T>(what: &str, end: &Result<T>) {
    if let Err(error) = end {
        report(format_args!("{WRONG}: {what} ends with: {error}"));
    }
}

/// A world that has failed is no hindrance to the next one in the same process.
pub fn again(g: &dyn ProcessGroup) -> Result<()> {
    sum(g, 100)?;
    let half = g.split(Some(g.rank() as u32 % 2), 0)?;
    sum(&*half.expect("it has a color"), 100)?;
    g.barrier()?.wait()
}
