//! [`Place`]: where a rank stands: which of how many it is, in the world and on its host, and where the ranks meet.
//! What the variables of launchers say of it; who reads them is `env.rs`.

use crate::env::{Launcher, Process, Start, Unclear};
use std::fmt;

/// Where a rank stands. A program chooses its device by it: rank `local_rank` of a host takes the card of that
/// number, say.
///
/// ```
/// use phalanx_comm::{Device, Place};
///
/// let place = Place::of_thread(2, 4);
/// assert_eq!(place.to_string(), "rank 2 of 4 (2 of 4 on its host), among threads");
/// let device = Device::cuda(place.local_rank);
/// # assert_eq!(device, Device::cuda(2));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// Its number in the world, from 0.
    pub rank: usize,
    /// How many ranks the world has.
    pub size: usize,
    /// Its number among the ranks on its host, from 0.
    pub local_rank: usize,
    /// How many ranks its host has.
    pub local_size: usize,
    /// How the ranks meet.
    pub rendezvous: Rendezvous,
    /// How often the world was started anew: 0 at first.
    pub epoch: u64,
}

/// How the ranks of a world meet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rendezvous {
    /// They are threads of one process.
    Threads,
    /// By MPI.
    Mpi,
    /// At a [store](crate::StoreServer) that rank 0's process serves.
    Tcp {
        /// Its address and port, as in `10.0.0.1:29500`.
        address: String,
        /// The name of the job, which all its ranks share.
        job: String,
    },
}

impl fmt::Display for Place {
    /// A sentence's part, as in the example.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { rank, size, .. } = self;
        let (local_rank, local_size) = (self.local_rank, self.local_size);
        write!(
            f,
            "rank {rank} of {size} ({local_rank} of {local_size} on its host), "
        )?;
        match &self.rendezvous {
            Rendezvous::Threads => f.write_str("among threads")?,
            Rendezvous::Mpi => f.write_str("under MPI")?,
            Rendezvous::Tcp { address, .. } => write!(f, "by the store at {address}")?,
        }
        match self.epoch {
            0 => Ok(()),
            epoch => write!(f, ", in epoch {epoch}"),
        }
    }
}

/// The variables of torchrun's manner, besides `RANK` and `WORLD_SIZE`.
const LOCAL_RANK: &str = "LOCAL_RANK";
const LOCAL_SIZE: &str = "LOCAL_WORLD_SIZE";
const ADDRESS: &str = "MASTER_ADDR";
const PORT: &str = "MASTER_PORT";
const JOB: &str = "TORCHELASTIC_RUN_ID";
const EPOCH: &str = "TORCHELASTIC_RESTART_COUNT";
const AGENT_STORE: &str = "TORCHELASTIC_USE_AGENT_STORE";

impl Place {
    /// Rank `rank` of `size` that are threads of this process.
    pub fn of_thread(rank: usize, size: usize) -> Place {
        Place {
            rank,
            size,
            local_rank: rank,
            local_size: size,
            rendezvous: Rendezvous::Threads,
            epoch: 0,
        }
    }

    /// As these variables tell of a process that was started so. `get` gives what is set and not empty.
    pub(crate) fn of_process(
        start: Start,
        get: &impl Fn(&str) -> Option<String>,
    ) -> Result<Place, Unclear> {
        let (process, rendezvous, epoch) = match start {
            Start::Alone => return Ok(Place::of_thread(0, 1)),
            Start::Mpi(process) => (process, Rendezvous::Mpi, 0),
            Start::Torchrun(process) => {
                let epoch = number(EPOCH, get)?.unwrap_or(0) as u64;
                let rendezvous = match process.size {
                    1 => Rendezvous::Threads,
                    _ => tcp(process, get)?,
                };
                (process, rendezvous, epoch)
            }
        };
        let (local_rank, local_size) = local(process, get)?;
        Ok(Place {
            rank: process.rank,
            size: process.size,
            local_rank,
            local_size,
            rendezvous,
            epoch,
        })
    }
}

fn unclear(variable: &'static str, value: &str, problem: String, remedy: String) -> Unclear {
    Unclear {
        variable,
        value: value.into(),
        problem,
        remedy,
    }
}

/// The variable's number, if it is set.
fn number(
    variable: &'static str,
    get: &impl Fn(&str) -> Option<String>,
) -> Result<Option<usize>, Unclear> {
    let Some(text) = get(variable) else {
        return Ok(None);
    };
    text.trim().parse().map(Some).map_err(|_| {
        let remedy = "set it to a number that counts from 0, or unset it";
        unclear(variable, &text, "is no number".into(), remedy.into())
    })
}

/// Where the ranks of torchrun's manner meet: at `MASTER_ADDR` and `MASTER_PORT`. Where torchrun's agent says that it
/// has a store of its own there, which speaks another protocol, ours stands one port above.
fn tcp(process: Process, get: &impl Fn(&str) -> Option<String>) -> Result<Rendezvous, Unclear> {
    let missing = |variable: &str| {
        let size = process.size;
        unclear(
            "WORLD_SIZE",
            &size.to_string(),
            format!("speaks of {size} processes, but {variable} does not say where they meet"),
            format!("set {variable} too, or unset RANK and WORLD_SIZE"),
        )
    };
    let host = get(ADDRESS).ok_or_else(|| missing(ADDRESS))?;
    let text = get(PORT).ok_or_else(|| missing(PORT))?;
    let wrong = |problem: &str| {
        let remedy = "set it to a free port of rank 0's host, the same for all ranks";
        unclear(PORT, &text, problem.into(), remedy.into())
    };
    let port: Option<u16> = text.trim().parse().ok().filter(|&port| port != 0);
    let port = port.ok_or_else(|| wrong("is no port, which is a number from 1 to 65535"))?;
    // Python's `str(True)`, and nothing else, as PyTorch has it.
    let agent = get(AGENT_STORE).is_some_and(|value| value == "True");
    let port = match agent {
        false => port,
        true => port.checked_add(1).ok_or_else(|| {
            wrong("has no port above it, where the store would stand, since torchrun's agent has this one")
        })?,
    };
    let host = host.trim();
    let address = match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]:{port}"), // IPv6
        false => format!("{host}:{port}"),
    };
    let job = get(JOB).unwrap_or_default();
    Ok(Rendezvous::Tcp { address, job })
}

/// The process's number on its host, and how many there are. Nothing is guessed: two processes that take themselves
/// for the first of their host would share its first card.
fn local(
    process: Process,
    get: &impl Fn(&str) -> Option<String>,
) -> Result<(usize, usize), Unclear> {
    let size_variable = process.launcher.size_variable();
    let pairs: &[(&'static str, &'static str)] = match process.launcher {
        Launcher::OpenMpi => &[("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")],
        Launcher::Pmi => &[("MPI_LOCALRANKID", "MPI_LOCALNRANKS"), SLURM],
        Launcher::Slurm => &[SLURM],
        Launcher::Torchrun => &[(LOCAL_RANK, LOCAL_SIZE)],
    };
    let there = pairs.iter().find(|(rank, _)| get(rank).is_some());
    let (rank_variable, local_variable) = there.unwrap_or(&pairs[0]);
    let rank = number(rank_variable, get)?;
    let size = match local_variable {
        &SLURM_TASKS => slurm_tasks(get)?,
        variable => number(variable, get)?,
    };
    let (rank, size) = match (rank, size, process.size) {
        (Some(rank), Some(size), _) => (rank, size),
        (None, None | Some(1), 1) => (0, 1),
        (rank, _, all) => {
            let (missing, what) = match rank {
                None => (rank_variable, "which of those on its host this process is"),
                Some(_) => (local_variable, "how many of them this host has"),
            };
            return Err(unclear(
                size_variable,
                &all.to_string(),
                format!("speaks of {all} processes, but {missing} does not say {what}"),
                format!(
                    "set {rank_variable} and {local_variable} too, or start the program by {}",
                    process.launcher
                ),
            ));
        }
    };
    if rank >= size {
        return Err(unclear(
            rank_variable,
            &rank.to_string(),
            format!("is not below {local_variable}={size}, and ranks count from 0"),
            format!("correct both, or start the program by {}", process.launcher),
        ));
    }
    if size > process.size {
        let all = process.size;
        return Err(unclear(
            local_variable,
            &size.to_string(),
            format!("is more than {size_variable}={all}, which counts all hosts"),
            format!("correct both, or start the program by {}", process.launcher),
        ));
    }
    Ok((rank, size))
}

const SLURM_TASKS: &str = "SLURM_STEP_TASKS_PER_NODE";
const SLURM: (&str, &str) = ("SLURM_LOCALID", SLURM_TASKS);

/// How many tasks this host has by Slurm, which says it of all hosts: `2(x3),1`, and which host this is.
fn slurm_tasks(get: &impl Fn(&str) -> Option<String>) -> Result<Option<usize>, Unclear> {
    let Some(text) = get(SLURM_TASKS) else {
        return Ok(None);
    };
    let Some(node) = number("SLURM_NODEID", get)? else {
        return Ok(None);
    };
    let mut node = node;
    for part in text.split(',') {
        let (tasks, times) = match part.split_once("(x") {
            None => (part, Some(1)),
            Some((tasks, times)) => (tasks, times.trim_end_matches(')').parse::<usize>().ok()),
        };
        let (Ok(tasks), Some(times)) = (tasks.trim().parse::<usize>(), times) else {
            break;
        };
        if node < times {
            return Ok(Some(tasks));
        }
        node -= times;
    }
    Err(unclear(
        SLURM_TASKS,
        &text,
        "does not say how many tasks this host has, which is that of SLURM_NODEID".into(),
        "start the program by srun again".into(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As these variables tell: `A=1 B=2`.
    fn place(variables: &str) -> Result<Place, Unclear> {
        let get = |name: &str| {
            let mut pairs = variables.split(' ').filter_map(|pair| pair.split_once('='));
            let (_, value) = pairs.find(|(n, _)| *n == name)?;
            (!value.is_empty()).then(|| value.to_owned())
        };
        Place::of_process(Start::from_text(&get)?, &get)
    }

    const TORCHRUN: &str =
        "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 MASTER_ADDR=node1 MASTER_PORT=29500";

    #[test]
    fn launchers_say_where_a_rank_stands() {
        let slurm = "SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=7 SLURM_LOCALID=1 SLURM_STEP_TASKS_PER_NODE=2(x3),1";
        for (variables, want) in [
            ("", "rank 0 of 1 (0 of 1 on its host), among threads"),
            (
                "WORLD_SIZE=1",
                "rank 0 of 1 (0 of 1 on its host), among threads",
            ),
            (
                TORCHRUN,
                "rank 5 of 8 (1 of 4 on its host), by the store at node1:29500",
            ),
            (
                "OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_SIZE=8 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=4",
                "rank 5 of 8 (1 of 4 on its host), under MPI",
            ),
            (
                "PMI_RANK=5 PMI_SIZE=8 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=4",
                "rank 5 of 8 (1 of 4 on its host), under MPI",
            ),
            (
                &format!("{slurm} SLURM_NODEID=2"),
                "rank 5 of 7 (1 of 2 on its host), under MPI",
            ),
            (
                "PMI_RANK=6 PMI_SIZE=7 SLURM_LOCALID=0 SLURM_STEP_TASKS_PER_NODE=2(x3),1 SLURM_NODEID=3",
                "rank 6 of 7 (0 of 1 on its host), under MPI",
            ),
        ] {
            let place = place(variables).unwrap_or_else(|e| panic!("{variables}: {e}"));
            assert_eq!(place.to_string(), want, "{variables}");
        }
    }

    #[test]
    fn torchrun_says_more() {
        let of = |more: &str| place(&format!("{TORCHRUN} {more}")).unwrap();
        let tcp = |address: &str, job: &str| Rendezvous::Tcp {
            address: address.into(),
            job: job.into(),
        };
        let plain = of("");
        assert_eq!((plain.rendezvous, plain.epoch), (tcp("node1:29500", ""), 0));
        let again = of("TORCHELASTIC_RUN_ID=abc TORCHELASTIC_RESTART_COUNT=3");
        assert_eq!(again.rendezvous, tcp("node1:29500", "abc"));
        assert_eq!(again.epoch, 3);
        assert!(
            again
                .to_string()
                .ends_with("by the store at node1:29500, in epoch 3"),
            "{again}"
        );
        // The agent's own store is at the port itself, if it says `True` as Python does.
        for (value, port) in [("True", 29501), ("False", 29500), ("1", 29500), ("", 29500)] {
            let place = of(&format!("{AGENT_STORE}={value}"));
            assert_eq!(
                place.rendezvous,
                tcp(&format!("node1:{port}"), ""),
                "{value}"
            );
        }
        let v6 = place(&TORCHRUN.replace("node1", "fe80::1")).unwrap();
        assert_eq!(v6.rendezvous, tcp("[fe80::1]:29500", ""));
    }

    #[test]
    fn what_is_wrong_or_missing_is_named_with_its_value() {
        let without = |name: &str| {
            let pairs = TORCHRUN
                .split(' ')
                .filter(|pair| !pair.starts_with(&format!("{name}=")));
            pairs.collect::<Vec<_>>().join(" ")
        };
        let with = |name: &str, value: &str| format!("{} {name}={value}", without(name));
        for (variables, begins, tells) in [
            (with("RANK", "8"), "RANK=8 ", "is not below WORLD_SIZE=8"),
            (with("RANK", "x"), "RANK=x ", "is no number"),
            (without("RANK"), "WORLD_SIZE=8 ", "RANK does not say which this one is"),
            (without("WORLD_SIZE"), "RANK=5 ", "WORLD_SIZE does not say how many"),
            (without("MASTER_ADDR"), "WORLD_SIZE=8 ", "MASTER_ADDR does not say where they meet"),
            (without("MASTER_PORT"), "WORLD_SIZE=8 ", "MASTER_PORT does not say where they meet"),
            (with("MASTER_PORT", "abc"), "MASTER_PORT=abc ", "a number from 1 to 65535"),
            (with("MASTER_PORT", "0"), "MASTER_PORT=0 ", "a number from 1 to 65535"),
            (with("MASTER_PORT", "65536"), "MASTER_PORT=65536 ", "a number from 1 to 65535"),
            (
                with("MASTER_PORT", "65535") + " TORCHELASTIC_USE_AGENT_STORE=True",
                "MASTER_PORT=65535 ",
                "torchrun's agent has this one",
            ),
            (without("LOCAL_RANK"), "WORLD_SIZE=8 ", "LOCAL_RANK does not say which of those on its host"),
            (without("LOCAL_WORLD_SIZE"), "WORLD_SIZE=8 ", "LOCAL_WORLD_SIZE does not say how many"),
            (with("LOCAL_RANK", "4"), "LOCAL_RANK=4 ", "is not below LOCAL_WORLD_SIZE=4"),
            (with("LOCAL_RANK", "-1"), "LOCAL_RANK=-1 ", "is no number"),
            (with("LOCAL_WORLD_SIZE", "9"), "LOCAL_WORLD_SIZE=9 ", "is more than WORLD_SIZE=8"),
            (
                format!("{TORCHRUN} TORCHELASTIC_RESTART_COUNT=often"),
                "TORCHELASTIC_RESTART_COUNT=often ",
                "is no number",
            ),
            (
                "OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_SIZE=8".into(),
                "OMPI_COMM_WORLD_SIZE=8 ",
                "OMPI_COMM_WORLD_LOCAL_RANK does not say which of those on its host",
            ),
            (
                "SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=7 SLURM_LOCALID=1 SLURM_NODEID=3 SLURM_STEP_TASKS_PER_NODE=2(x3)".into(),
                "SLURM_STEP_TASKS_PER_NODE=2(x3) ",
                "SLURM_NODEID",
            ),
        ] {
            let text = place(&variables).expect_err(&variables).to_string();
            assert!(text.starts_with(begins) && text.contains(tells), "{variables}: {text}");
            assert!(text.contains("; "), "no remedy: {text}");
        }
    }

    /// Nothing is refused that says enough.
    #[test]
    fn a_rank_of_one_needs_no_more() {
        let alone = place("RANK=0 WORLD_SIZE=1 MASTER_PORT=abc").unwrap();
        assert_eq!(
            (alone.local_rank, alone.rendezvous),
            (0, Rendezvous::Threads)
        );
        assert_eq!(place("PMI_SIZE=1").unwrap().local_size, 1);
    }
}
