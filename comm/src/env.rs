//! The one file that reads the environment: who started this process, and as which rank of how many.

use std::fmt;

/// How this process was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// By itself: its ranks are its threads.
    Alone,
    /// As one of several processes, by an MPI launcher.
    Mpi(Process),
    /// As one of several processes, by torchrun or in its manner (`RANK`, `WORLD_SIZE`,
    /// `MASTER_ADDR`, `MASTER_PORT`).
    Torchrun(Process),
}

/// One process of several.
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
    /// torchrun.
    Torchrun,
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

impl Start {
    /// As the environment tells.
    pub fn detect() -> Start {
        Start::from_variables(|name| std::env::var(name).ok())
    }

    /// As these variables tell.
    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Start {
        let number = |name: &str| get(name)?.trim().parse::<usize>().ok();
        let process = |rank, size, launcher| {
            let (rank, size) = (number(rank)?, number(size)?);
            (rank < size).then_some(Process {
                rank,
                size,
                launcher,
            })
        };
        let open_mpi = || {
            process(
                "OMPI_COMM_WORLD_RANK",
                "OMPI_COMM_WORLD_SIZE",
                Launcher::OpenMpi,
            )
        };
        let pmi = || process("PMI_RANK", "PMI_SIZE", Launcher::Pmi);
        // A batch script has the variables of the job, but not those of a step.
        let slurm = || process("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", Launcher::Slurm);
        if let Some(process) = open_mpi().or_else(pmi).or_else(slurm) {
            return Start::Mpi(process);
        }
        let is_torchrun = get("MASTER_ADDR").is_some() && get("MASTER_PORT").is_some();
        match process("RANK", "WORLD_SIZE", Launcher::Torchrun) {
            Some(process) if is_torchrun => Start::Torchrun(process),
            _ => Start::Alone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(variables: &[(&str, &str)]) -> Start {
        Start::from_variables(|name| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn launchers_tell_themselves() {
        let process = |launcher| Process {
            rank: 1,
            size: 4,
            launcher,
        };
        let open_mpi = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4")];
        assert_eq!(start(&open_mpi), Start::Mpi(process(Launcher::OpenMpi)));
        let pmi = [("PMI_RANK", "1"), ("PMI_SIZE", "4")];
        assert_eq!(start(&pmi), Start::Mpi(process(Launcher::Pmi)));
        let slurm = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "4")];
        assert_eq!(start(&slurm), Start::Mpi(process(Launcher::Slurm)));
        let torchrun = [
            ("RANK", "1"),
            ("WORLD_SIZE", "4"),
            ("MASTER_ADDR", "localhost"),
            ("MASTER_PORT", "29500"),
        ];
        assert_eq!(
            start(&torchrun),
            Start::Torchrun(process(Launcher::Torchrun))
        );
    }

    #[test]
    fn what_is_incomplete_is_nobody() {
        assert_eq!(start(&[]), Start::Alone);
        assert_eq!(start(&[("RANK", "1"), ("WORLD_SIZE", "4")]), Start::Alone);
        assert_eq!(start(&[("PMI_RANK", "4"), ("PMI_SIZE", "4")]), Start::Alone);
        // A Slurm batch script that starts the program without `srun`.
        assert_eq!(
            start(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]),
            Start::Alone
        );
    }
}
