//! [`Membership`]: who is in a group. Ground: it knows nothing of engines.

use phalanx_tensor::Device;
use std::sync::Arc;
use std::time::Duration;

/// Who a rank is in a group.
#[derive(Debug, Clone)]
pub struct Membership {
    /// This rank's number in the group.
    pub rank: usize,
    /// The members' numbers in the world, in the order of their ranks.
    pub world_ranks: Arc<[usize]>,
    /// The group's name in error messages.
    pub name: Arc<str>,
    /// Where results live if no tensor went in.
    pub device: Device,
    /// How long a wait may last.
    pub deadline: Duration,
}

impl Membership {
    /// The number of ranks in the group.
    pub fn size(&self) -> usize {
        self.world_ranks.len()
    }

    /// This rank's number in the world, which errors name.
    pub fn world_rank(&self) -> usize {
        self.world_ranks[self.rank]
    }
}
