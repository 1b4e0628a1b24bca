//! [`DistributedSampler`]: which samples of a data set a rank trains on in an epoch. Pure.

use crate::{Error, Mesh, Result};
use phalanx_tensor::Rng;

/// Splits a data set of `len` samples over ranks, a different order every epoch
/// (PyTorch: `torch.utils.data.DistributedSampler`).
///
/// All ranks get the same number of samples: the order is padded by wrapping around, or its tail
/// is dropped. Rank `r` takes the positions `r, r + world_size, …` of it.
///
/// ```
/// use phalanx_parallel::DistributedSampler;
///
/// let sampler = |rank| DistributedSampler { len: 10, world_size: 4, rank, ..Default::default() };
/// assert_eq!(sampler(1).indices(0)?, [1, 5, 9]);
/// assert_eq!(sampler(3).indices(0)?, [3, 7, 1]); // wrapped around
///
/// let shuffled = DistributedSampler { shuffle: true, seed: 7, ..sampler(0) };
/// assert_ne!(shuffled.indices(0)?, shuffled.indices(1)?); // another order every epoch
/// assert_eq!(shuffled.indices(1)?, shuffled.indices(1)?); // and the same one at every call
/// # Ok::<(), phalanx_parallel::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DistributedSampler {
    /// Number of samples in the data set.
    pub len: usize,
    /// Number of ranks; at least 1.
    pub world_size: usize,
    /// This rank, below `world_size`.
    pub rank: usize,
    /// Shuffle before splitting; the order depends on `seed` and the epoch alone, so all ranks
    /// must use the same seed.
    pub shuffle: bool,
    /// Seed of the shuffle.
    pub seed: u64,
    /// Drop the tail that does not divide evenly, where the default pads by wrapping around.
    pub drop_last: bool,
}

impl Default for DistributedSampler {
    fn default() -> Self {
        DistributedSampler {
            len: 0,
            world_size: 1,
            rank: 0,
            shuffle: false,
            seed: 0,
            drop_last: false,
        }
    }
}

impl DistributedSampler {
    /// A sampler of the ranks of a mesh, of which those along `axis` share the data set out: the others, such as
    /// the ranks that hold the other parts of one replica of a model, see the same samples. It has no samples yet:
    /// give `len`, and what else is not the default.
    ///
    /// A sampler of the world's ranks would give each part of a replica other samples than the next one.
    ///
    /// ```
    /// use phalanx_comm::launch;
    /// use phalanx_parallel::{DistributedSampler, Mesh};
    ///
    /// let samples = launch(4, |group| {
    ///     let mesh = Mesh::new(group, [("data", 2), ("tensor", 2)])?;
    ///     let sampler = DistributedSampler { len: 6, ..DistributedSampler::over(&mesh, "data")? };
    ///     sampler.indices(0)
    /// })?;
    /// assert_eq!(samples, [[0, 2, 4], [0, 2, 4], [1, 3, 5], [1, 3, 5]]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`MeshError::UnknownAxis`](crate::MeshError::UnknownAxis).
    pub fn over(mesh: &Mesh, axis: &str) -> Result<DistributedSampler> {
        Ok(DistributedSampler {
            world_size: mesh.size(axis)?,
            rank: mesh.coordinate(axis)?,
            ..DistributedSampler::default()
        })
    }

    /// How many samples each rank gets per epoch.
    pub fn samples_per_rank(&self) -> usize {
        let world = self.world_size.max(1);
        if self.drop_last {
            self.len / world
        } else {
            self.len.div_ceil(world)
        }
    }

    /// This rank's samples of `epoch`, in order.
    ///
    /// # Errors
    /// [`Error::InvalidUse`] if `rank` is not below `world_size`.
    pub fn indices(&self, epoch: u64) -> Result<Vec<usize>> {
        if self.rank >= self.world_size {
            return Err(Error::InvalidUse {
                op: "DistributedSampler::indices",
                reason: format!("there is no rank {} of {}", self.rank, self.world_size),
            });
        }
        let positions = (0..self.samples_per_rank()).map(|i| i * self.world_size + self.rank);
        if self.shuffle {
            let order = Rng::new(self.seed).fold_in(epoch).permutation(self.len)?;
            Ok(positions.map(|p| order[p % self.len]).collect())
        } else {
            Ok(positions.map(|p| p % self.len).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(serde::Deserialize)]
    struct Golden {
        n: usize,
        world: usize,
        drop_last: bool,
        idx: Vec<Vec<usize>>,
    }

    #[test]
    fn unshuffled_indices_are_pytorchs() {
        let rows: Vec<Golden> =
            serde_json::from_str(include_str!("../tests/golden/sampler.json")).unwrap();
        assert!(rows.len() >= 30);
        for Golden {
            n,
            world,
            drop_last,
            idx,
        } in rows
        {
            let ours: Vec<_> = (0..world)
                .map(|rank| DistributedSampler {
                    len: n,
                    world_size: world,
                    rank,
                    drop_last,
                    ..Default::default()
                })
                .map(|s| s.indices(0).unwrap())
                .collect();
            assert_eq!(ours, idx, "n {n}, world {world}, drop_last {drop_last}");
        }
    }

    #[test]
    fn a_rank_that_does_not_exist_has_no_samples() {
        for (rank, world_size) in [(2, 2), (0, 0), (7, 3)] {
            let sampler = DistributedSampler {
                len: 10,
                world_size,
                rank,
                ..Default::default()
            };
            let e = sampler.indices(0).unwrap_err();
            assert!(matches!(e, Error::InvalidUse { .. }), "{e}");
        }
    }

    proptest! {
        #[test]
        fn ranks_share_the_data_set(len in 0usize..300, world in 1usize..9, drop_last: bool, shuffle: bool, seed: u64, epoch in 0u64..5) {
            let of = |rank| DistributedSampler { len, world_size: world, rank, shuffle, seed, drop_last }.indices(epoch).unwrap();
            let mut count = vec![0usize; len];
            for rank in 0..world {
                let indices = of(rank);
                prop_assert_eq!(indices.len(), of(0).len());
                indices.into_iter().for_each(|i| count[i] += 1);
            }
            let total: usize = count.iter().sum();
            prop_assert_eq!(total, if drop_last { len / world * world } else { len.div_ceil(world) * world });
            // Each sample at least once, or (dropping) at most once; never twice more than another.
            let (lo, hi) = (count.iter().min().copied().unwrap_or(0), count.iter().max().copied().unwrap_or(0));
            prop_assert!(hi - lo <= 1);
            let whole = if drop_last { hi <= 1 } else { len == 0 || lo >= 1 };
            prop_assert!(whole);
        }
    }
}
