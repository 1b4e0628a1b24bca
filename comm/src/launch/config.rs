//! [`LaunchConfig`]: how a world is started, how long its ranks wait, and what a failure does.

use crate::backends::nccl;
use crate::launch::LaunchError;
use phalanx_tensor::Device;
use std::fmt::{Debug, Display};
use std::path::PathBuf;
use std::time::Duration;

/// How to start a world. `LaunchConfig::from(n)` has `n` ranks and the defaults.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LaunchConfig {
    /// The number of ranks.
    pub world_size: usize,
    /// How long a rank waits for others before the world fails; 5 minutes by default.
    pub deadline: Duration,
    /// How long a process waits for the others before they have all started MPI; 2 minutes by
    /// default. Then it ends, with a line on its stderr and code 1: no error can be returned, since
    /// MPI offers no way out of its start. Ranks that are threads do not wait.
    pub start_deadline: Duration,
    /// What happens to a rank that goes on when the world has failed; [`OnFailure::Tell`] by
    /// default.
    pub on_failure: OnFailure,
    /// How many threads the tensor operations of a rank may use; 1 by default.
    pub threads_per_rank: usize,
    /// Where rank 0's results live; rank `r`'s live on the device of this kind `r` numbers on. `cpu:0` by default.
    /// Of cards, it is the one of the first rank of each host; the others follow by their local rank. Several ranks on
    /// cards need the feature `nccl`, and the library: else they are [`LaunchError::Cards`].
    pub device: Device,
    /// The folder into which each rank writes its last calls, by group, where the world fails: `rank-<rank>.json`. Also
    /// the guilty one does so: by itself where it returned an error or panicked; and where it hangs or has returned, by
    /// the launch, if ranks are threads. None by default. (PyTorch: the flight recorder.)
    pub flight_record: Option<PathBuf>,
    /// The stack of a rank's thread, in bytes; 64 MiB by default, which modules need that are nested
    /// some thousand deep. Only what is used of it takes memory.
    pub stack_size: usize,
}

/// What happens to a rank that goes on when the world has failed: because another rank returned an
/// error or panicked, because the ranks disagree, or because one was late.
///
/// In either case its next call, and all that it waits for, return the [error](enum@crate::Error) at
/// once. The policy is about ranks that make no call, and about those that do not end when they have
/// been told. A process whose program returned well, without having been told, is not ended: what it does
/// after [`run`](crate::run()) has nothing to do with the failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnFailure {
    /// It is told, at its next call. So a rank that computes when another one fails gets the error,
    /// and can save what it has.
    ///
    /// A process that has made no call when the deadline has passed once more is taken to hang: it is
    /// ended, with a line on its stderr, and with it the job. One that has been told may go on for as
    /// long as the deadline, and for a minute at least. Ranks that are threads are never ended, since
    /// the process may have other things to do; after the deadline, and a minute at least, a line on
    /// stderr names the rank that [`launch`](crate::launch()) still waits for.
    #[default]
    Tell,
    /// It is ended after so long, told or not; and all other ranks with it. For jobs that are started
    /// again at once, from a checkpoint. Where ranks are threads, this ends their process, with code
    /// 1, so long after the failure. Where they are processes, the time starts anew when the rank is
    /// told: so a rank that is told late may go on for up to twice as long.
    EndAfter(Duration),
}

/// How long a rank that has been told may go on, at least.
const LAST_WORDS: Duration = Duration::from_secs(60);

impl LaunchConfig {
    /// `world_size` ranks and the defaults.
    pub fn new(world_size: usize) -> LaunchConfig {
        LaunchConfig {
            world_size,
            deadline: Duration::from_secs(300),
            start_deadline: Duration::from_secs(120),
            on_failure: OnFailure::Tell,
            threads_per_rank: 1,
            device: Device::cpu(0),
            flight_record: None,
            stack_size: 64 << 20,
        }
    }

    /// With this deadline.
    pub fn deadline(self, deadline: Duration) -> LaunchConfig {
        LaunchConfig { deadline, ..self }
    }

    /// With this deadline for the start.
    pub fn start_deadline(self, start_deadline: Duration) -> LaunchConfig {
        LaunchConfig {
            start_deadline,
            ..self
        }
    }

    /// With this policy.
    pub fn on_failure(self, on_failure: OnFailure) -> LaunchConfig {
        LaunchConfig { on_failure, ..self }
    }

    /// With so many threads for each rank's operations.
    pub fn threads_per_rank(self, threads_per_rank: usize) -> LaunchConfig {
        LaunchConfig {
            threads_per_rank,
            ..self
        }
    }

    /// With rank 0 on this device.
    pub fn device(self, device: Device) -> LaunchConfig {
        LaunchConfig { device, ..self }
    }

    /// With the last calls of each rank in this folder, where the world fails.
    pub fn flight_record(self, folder: impl Into<PathBuf>) -> LaunchConfig {
        LaunchConfig {
            flight_record: Some(folder.into()),
            ..self
        }
    }

    /// With a stack of so many bytes for each rank.
    pub fn stack_size(self, stack_size: usize) -> LaunchConfig {
        LaunchConfig { stack_size, ..self }
    }

    /// Where a rank's results live: the first device, and as many numbers on.
    fn device_of(&self, number: usize) -> Device {
        match self.device {
            Device::Cpu(first) => Device::cpu(first.saturating_add(number)),
            Device::Cuda(first) => Device::cuda(first.saturating_add(number)),
            other => other,
        }
    }

    /// Where the engine for the host's tensors has its results, for this rank of `size`.
    pub(crate) fn host_device(&self, rank: usize, size: usize) -> Device {
        match self.card_of(rank, size) {
            None => self.device_of(rank),
            Some(_) => Device::cpu(rank),
        }
    }

    /// The card on which a rank's results live, if a group of cards is needed: the rank is number `local_rank` of its
    /// host. A world of one rank needs none.
    pub(crate) fn card_of(&self, local_rank: usize, size: usize) -> Option<Device> {
        (size > 1 && !self.device.is_cpu()).then(|| self.device_of(local_rank))
    }

    /// Fails where a world of `size` ranks cannot be on the device.
    pub(crate) fn check_device<E: Display + Debug>(
        &self,
        size: usize,
    ) -> Result<(), LaunchError<E>> {
        let device = self.device;
        if device.is_cpu() {
            return Ok(());
        }
        // What is missing is said first: the feature, the driver, the card.
        device
            .memory()
            .map_err(|error| LaunchError::World(error.into()))?;
        if size == 1 {
            return Ok(());
        }
        nccl::is_there().map_err(|reason| LaunchError::Cards {
            device,
            size,
            reason: reason.into(),
        })
    }

    /// How long a rank may go on in a failed world.
    pub(crate) fn patience(&self) -> Patience {
        match self.on_failure {
            OnFailure::Tell => Patience {
                untold: self.deadline,
                told: self.deadline.max(LAST_WORDS),
            },
            OnFailure::EndAfter(limit) => Patience {
                untold: limit,
                told: limit,
            },
        }
    }
}

impl From<usize> for LaunchConfig {
    fn from(world_size: usize) -> LaunchConfig {
        LaunchConfig::new(world_size)
    }
}

/// How long a rank may go on when the world has failed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Without a call.
    pub(crate) untold: Duration,
    /// From when it has been told, or has failed itself.
    pub(crate) told: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_told_has_a_minute_and_who_is_not_the_deadline() {
        let seconds = Duration::from_secs;
        let config = LaunchConfig::new(2);
        let both = |config: &LaunchConfig| (config.patience().untold, config.patience().told);
        assert_eq!(both(&config), (seconds(300), seconds(300)));
        let config = config.deadline(seconds(3));
        assert_eq!(both(&config), (seconds(3), seconds(60)));
        let config = config.on_failure(OnFailure::EndAfter(seconds(1)));
        assert_eq!(both(&config), (seconds(1), seconds(1)));
    }
}
