//! The one file that reads the environment: who started this process, and as which rank of how many.
//!
//! Variables are inherited, by shells and by programs that start programs; so some may be there that
//! nobody meant for this process, or that are incomplete. What says that there are several processes
//! is taken at its word where it is whole, and refused with a sentence where it is not: a rank that
//! takes itself for alone would train beside the others, and overwrite what they save. What says that
//! there is one process may be incomplete.

use crate::place::Place;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

/// How this process was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// By itself: its ranks are its threads.
    Alone,
    /// As one of several processes, by an MPI launcher.
    Mpi(Process),
    /// By torchrun or in its manner (`RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`); of one
    /// process, `WORLD_SIZE=1` suffices.
    Torchrun(Process),
}

/// One process of several, or of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// Who says so.
    pub launcher: Launcher,
}

/// Who starts processes; tells itself by what it puts into their environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Launcher {
    /// Open MPI's `mpirun` (`OMPI_COMM_WORLD_SIZE`).
    OpenMpi,
    /// `mpirun` of MPICH and its kin, or Slurm with PMI-2 (`PMI_SIZE`).
    Pmi,
    /// A step of Slurm, by `srun` (`SLURM_STEP_NUM_TASKS`).
    Slurm,
    /// torchrun (`WORLD_SIZE`).
    Torchrun,
}

impl Launcher {
    /// All, an inner one before those that it may have been started by.
    const ALL: [Launcher; 4] = [
        Launcher::OpenMpi,
        Launcher::Pmi,
        Launcher::Slurm,
        Launcher::Torchrun,
    ];

    /// The variable in which it tells a process its number.
    pub const fn rank_variable(self) -> &'static str {
        match self {
            Launcher::OpenMpi => "OMPI_COMM_WORLD_RANK",
            Launcher::Pmi => "PMI_RANK",
            Launcher::Slurm => "SLURM_PROCID",
            Launcher::Torchrun => "RANK",
        }
    }

    /// The variable in which it tells how many processes there are.
    pub const fn size_variable(self) -> &'static str {
        match self {
            Launcher::OpenMpi => "OMPI_COMM_WORLD_SIZE",
            Launcher::Pmi => "PMI_SIZE",
            // A batch script has the variables of the job, but not those of a step.
            Launcher::Slurm => "SLURM_STEP_NUM_TASKS",
            Launcher::Torchrun => "WORLD_SIZE",
        }
    }
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Launcher::OpenMpi => "Open MPI's mpirun",
            Launcher::Pmi => "an mpirun that speaks PMI",
            Launcher::Slurm => "srun",
            Launcher::Torchrun => "torchrun",
        })
    }
}

/// The environment says something of several processes, but not clearly what. Prints a sentence that
/// names the variable and what to do.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}={value} in the environment {problem}; {remedy}")]
#[non_exhaustive]
pub struct Unclear {
    /// The variable.
    pub variable: &'static str,
    /// What it is set to.
    pub value: String,
    /// What is wrong with that.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Debug for Unclear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Start {
    /// As the environment tells.
    ///
    /// # Errors
    /// [`Unclear`], if it says that there are several processes, but not which of them this one is,
    /// and nothing else does.
    pub fn detect() -> Result<Start, Unclear> {
        Start::from_text(&read)
    }

    /// As these variables tell.
    #[cfg(test)]
    fn from_variables(get: impl Fn(&str) -> Option<OsString>) -> Result<Start, Unclear> {
        Start::from_text(&|name| text(get(name)))
    }

    /// As these variables tell. `get` gives what is set and not empty.
    pub(crate) fn from_text(get: &impl Fn(&str) -> Option<String>) -> Result<Start, Unclear> {
        let claims = Launcher::ALL.map(|launcher| claim(launcher, get));
        let many =
            |claim: &&Result<Option<Process>, Unclear>| matches!(claim, Ok(Some(p)) if p.size > 1);
        let elastic = get("TORCHELASTIC_RUN_ID").is_some();
        // torchrun may itself have been started by `srun`, once on each host.
        let by_torchrun = claims.last().filter(many).filter(|_| elastic);
        if let Some(Ok(Some(process))) = by_torchrun.or_else(|| claims.iter().find(many)) {
            return match process.launcher {
                Launcher::Torchrun => rendezvous(*process, get),
                _ => Ok(Start::Mpi(*process)),
            };
        }
        let (mut one, mut unclear) = (None, None);
        for claim in claims {
            match claim {
                Ok(found) => one = one.or(found),
                Err(found) => unclear = unclear.or(Some(found)),
            }
        }
        match (unclear, one) {
            (Some(unclear), _) => Err(unclear),
            (None, None) => Ok(Start::Alone),
            (None, Some(process)) if process.launcher == Launcher::Torchrun => {
                Ok(Start::Torchrun(process))
            }
            (None, Some(process)) => Ok(Start::Mpi(process)),
        }
    }
}

/// Where a Python may have its packages, below `lib`: that of the active environment first, the system's last.
#[cfg_attr(not(feature = "nccl"), expect(dead_code, reason = "nobody asks"))]
pub(crate) fn python_prefixes() -> Vec<PathBuf> {
    let active =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].map(|name| std::env::var_os(name).map(PathBuf::from));
    let home = std::env::home_dir().map(|home| home.join(".local"));
    let system = ["/usr/local", "/usr"].map(|prefix| Some(prefix.into()));
    active
        .into_iter()
        .chain([home])
        .chain(system)
        .flatten()
        .collect()
}

/// Whether `PHALANX_COMM_DEBUG=1` asks engines that cannot compare calls by themselves to do so before each collective and
/// each `recv`. (PyTorch: `TORCH_DISTRIBUTED_DEBUG=DETAIL`.)
#[cfg_attr(
    not(feature = "nccl"),
    expect(dead_code, reason = "such an engine is not there")
)]
pub(crate) fn compares_calls() -> bool {
    text(std::env::var_os("PHALANX_COMM_DEBUG")).is_some_and(|value| value != "0")
}

impl Place {
    /// Where this process stands, as the environment tells.
    ///
    /// # Errors
    /// [`Unclear`], if it says something that is wrong, or only a part of what is needed.
    pub fn detect() -> Result<Place, Unclear> {
        Place::of_process(Start::from_text(&read)?, &read)
    }
}

/// What is set and not empty.
fn read(name: &str) -> Option<String> {
    text(std::env::var_os(name))
}

/// An empty variable is none; one that is no Unicode is there, and is no number.
fn text(value: Option<OsString>) -> Option<String> {
    let text = value?.to_string_lossy().into_owned();
    (!text.trim().is_empty()).then_some(text)
}

/// What a launcher's variables say of this process, if anything.
fn claim(
    launcher: Launcher,
    get: &impl Fn(&str) -> Option<String>,
) -> Result<Option<Process>, Unclear> {
    let (rank_variable, size_variable) = (launcher.rank_variable(), launcher.size_variable());
    let unclear = |variable, value: &dyn fmt::Display, problem, remedy| Unclear {
        variable,
        value: value.to_string(),
        problem,
        remedy,
    };
    let number = |variable: &'static str| {
        let Some(text) = get(variable) else {
            return Ok(None);
        };
        text.trim().parse::<usize>().map(Some).map_err(|_| {
            let remedy = format!("unset it, or start the program by {launcher} again");
            unclear(variable, &text, "is no number".into(), remedy)
        })
    };
    let complete = |missing, given| format!("set {missing} too, or unset {given}");
    let process = |rank, size| Process {
        rank,
        size,
        launcher,
    };
    match (number(rank_variable)?, number(size_variable)?) {
        (Some(rank), Some(size)) if rank < size => Ok(Some(process(rank, size))),
        (None, Some(1)) => Ok(Some(process(0, 1))),
        // What a batch script of Slurm has, for one.
        (None | Some(0), None) => Ok(None),
        (Some(rank), Some(size)) => Err(unclear(
            rank_variable,
            &rank,
            format!("is not below {size_variable}={size}, and ranks count from 0"),
            format!("correct both, or unset {rank_variable} and {size_variable}"),
        )),
        (None, Some(size)) => Err(unclear(
            size_variable,
            &size,
            format!(
                "speaks of {size} processes, but {rank_variable} does not say which this one is"
            ),
            complete(rank_variable, size_variable),
        )),
        (Some(rank), None) => Err(unclear(
            rank_variable,
            &rank,
            format!("speaks of several processes, but {size_variable} does not say how many"),
            complete(size_variable, rank_variable),
        )),
    }
}

/// One of several processes in torchrun's manner, if it knows where they meet.
fn rendezvous(process: Process, get: &impl Fn(&str) -> Option<String>) -> Result<Start, Unclear> {
    let missing = ["MASTER_ADDR", "MASTER_PORT"];
    let Some(missing) = missing.into_iter().find(|name| get(name).is_none()) else {
        return Ok(Start::Torchrun(process));
    };
    let size = process.size;
    Err(Unclear {
        variable: "WORLD_SIZE",
        value: size.to_string(),
        problem: format!("speaks of {size} processes, but {missing} does not say where they meet"),
        remedy: format!("set {missing} too, or unset RANK and WORLD_SIZE"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As these variables tell: `A=1 B=2`.
    fn start(variables: &str) -> Result<Start, Unclear> {
        Start::from_variables(|name| {
            let mut pairs = variables.split(' ').filter_map(|pair| pair.split_once('='));
            let found = pairs.find(|(n, _)| *n == name);
            found.map(|(_, value)| value.into())
        })
    }

    fn process(rank: usize, size: usize, launcher: Launcher) -> Process {
        Process {
            rank,
            size,
            launcher,
        }
    }

    const OPEN_MPI: &str = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=4";
    const PMI: &str = "PMI_RANK=1 PMI_SIZE=4";
    const SLURM: &str = "SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=4";
    const TORCHRUN: &str = "RANK=1 WORLD_SIZE=4 MASTER_ADDR=localhost MASTER_PORT=29500";

    #[test]
    fn launchers_tell_themselves() {
        for (variables, launcher) in [
            (OPEN_MPI, Launcher::OpenMpi),
            (PMI, Launcher::Pmi),
            (SLURM, Launcher::Slurm),
        ] {
            assert_eq!(start(variables), Ok(Start::Mpi(process(1, 4, launcher))));
        }
        let torchrun = Start::Torchrun(process(1, 4, Launcher::Torchrun));
        assert_eq!(start(TORCHRUN), Ok(torchrun));
    }

    #[test]
    fn one_process_is_a_world_of_one() {
        use Launcher::{OpenMpi, Pmi, Slurm, Torchrun};
        for (variables, launcher) in [
            ("RANK=0 WORLD_SIZE=1 MASTER_ADDR=a MASTER_PORT=1", Torchrun),
            ("RANK=0 WORLD_SIZE=1", Torchrun),
            ("WORLD_SIZE=1", Torchrun),
            ("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1", OpenMpi),
            ("PMI_SIZE=1", Pmi),
            ("SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1", Slurm),
            ("SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 WORLD_SIZE=1", Slurm),
        ] {
            let want = match launcher {
                Torchrun => Start::Torchrun(process(0, 1, launcher)),
                _ => Start::Mpi(process(0, 1, launcher)),
            };
            assert_eq!(start(variables), Ok(want), "{variables}");
        }
    }

    #[test]
    fn what_says_nothing_of_several_is_alone() {
        for variables in [
            "",
            "RANK=0",
            "RANK= WORLD_SIZE=",
            "MASTER_ADDR=localhost MASTER_PORT=29500",
            "LOCAL_RANK=1 LOCAL_WORLD_SIZE=2",
            "PMI_RANK=0",
            // A Slurm batch script that starts the program without `srun`.
            "SLURM_PROCID=0 SLURM_NTASKS=4",
        ] {
            assert_eq!(start(variables), Ok(Start::Alone), "{variables}");
        }
    }

    #[test]
    fn what_is_unclear_is_told_with_its_variable() {
        for (variables, variable, remedy) in [
            (
                "WORLD_SIZE=4",
                "WORLD_SIZE",
                "set RANK too, or unset WORLD_SIZE",
            ),
            ("WORLD_SIZE=0", "WORLD_SIZE", "unset WORLD_SIZE"),
            ("RANK=1", "RANK", "set WORLD_SIZE too, or unset RANK"),
            (
                "RANK=1 WORLD_SIZE=4",
                "WORLD_SIZE",
                "unset RANK and WORLD_SIZE",
            ),
            (
                "RANK=1 WORLD_SIZE=4 MASTER_ADDR=a",
                "WORLD_SIZE",
                "unset RANK and WORLD_SIZE",
            ),
            ("RANK=4 WORLD_SIZE=4", "RANK", "unset RANK and WORLD_SIZE"),
            ("RANK=0 WORLD_SIZE=four", "WORLD_SIZE", "unset it"),
            ("RANK=-1 WORLD_SIZE=4", "RANK", "unset it"),
            (
                "PMI_RANK=4 PMI_SIZE=4",
                "PMI_RANK",
                "unset PMI_RANK and PMI_SIZE",
            ),
            (
                "OMPI_COMM_WORLD_SIZE=2",
                "OMPI_COMM_WORLD_SIZE",
                "unset OMPI_COMM_WORLD_SIZE",
            ),
            ("SLURM_PROCID=3", "SLURM_PROCID", "unset SLURM_PROCID"),
            // That there is one process by one launcher does not make it so by the other.
            ("PMI_SIZE=1 WORLD_SIZE=4", "WORLD_SIZE", "unset WORLD_SIZE"),
        ] {
            let unclear = start(variables).expect_err(variables);
            assert_eq!(unclear.variable, variable, "{variables}");
            let text = unclear.to_string();
            assert!(text.starts_with(&format!("{variable}=")), "{text}");
            assert!(
                text.ends_with(remedy) || text.contains(&format!("; {remedy}")),
                "{text}"
            );
        }
    }

    /// Who says something that nobody can read has said something.
    #[cfg(unix)]
    #[test]
    fn what_is_no_unicode_is_no_number() {
        use std::os::unix::ffi::OsStringExt;

        let start = Start::from_variables(|name| {
            (name == "WORLD_SIZE").then(|| OsString::from_vec(b"\xff".to_vec()))
        });
        let text = start.unwrap_err().to_string();
        let want = "WORLD_SIZE=\u{fffd} in the environment is no number; unset it";
        assert!(text.starts_with(want), "{text}");
    }

    /// Two launchers, one within the other or one that has left its variables behind.
    #[test]
    fn who_speaks_of_several_counts() {
        let both = |a: &str, b: &str| start(&format!("{a} {b}"));
        let mpi = |launcher| Ok(Start::Mpi(process(1, 4, launcher)));
        // An inner mpirun before the outer srun.
        let slurm = "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2";
        assert_eq!(both(OPEN_MPI, slurm), mpi(Launcher::OpenMpi));
        let slurm = "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1";
        assert_eq!(both(PMI, slurm), mpi(Launcher::Pmi));
        // What torchrun's manner has left behind, whole or not, is nothing against mpirun.
        for left in [
            "RANK=0 WORLD_SIZE=1",
            "RANK=2 WORLD_SIZE=8",
            "RANK=x",
            "WORLD_SIZE=4",
        ] {
            assert_eq!(both(left, OPEN_MPI), mpi(Launcher::OpenMpi), "{left}");
        }
        // A shell in a step of one task is nothing against torchrun; nor is srun's one on each host.
        let torchrun = Ok(Start::Torchrun(process(1, 4, Launcher::Torchrun)));
        assert_eq!(both(slurm, TORCHRUN), torchrun);
        let elastic = format!("{TORCHRUN} TORCHELASTIC_RUN_ID=none");
        assert_eq!(both(SLURM, &elastic), torchrun);
        assert_eq!(both(SLURM, TORCHRUN), mpi(Launcher::Slurm));
    }

    /// Every combination of what may stand in torchrun's and Open MPI's variables: a run, or a
    /// sentence that names one of them; and never alone where there are several.
    #[test]
    fn every_combination_has_an_answer() {
        let values = ["", "0", "1", "2", "four"];
        let names = [
            "RANK",
            "WORLD_SIZE",
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
        ];
        for i in 0..values.len().pow(4) {
            let value = |k: usize| values[i / values.len().pow(k as u32) % values.len()];
            let pairs: Vec<String> = (0..4)
                .map(|k| format!("{}={}", names[k], value(k)))
                .collect();
            let variables = pairs.join(" ");
            let several = value(1) == "2" || value(3) == "2";
            match start(&variables) {
                Ok(Start::Alone) => assert!(!several, "{variables}"),
                Ok(Start::Mpi(p) | Start::Torchrun(p)) => {
                    assert!(p.rank < p.size && (p.size > 1 || !several), "{variables}");
                }
                Err(unclear) => {
                    assert!(names.contains(&unclear.variable), "{variables}");
                    assert!(unclear.remedy.contains("unset"), "{variables}: {unclear}");
                }
            }
        }
    }
}
