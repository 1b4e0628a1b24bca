//! [`Mesh`]: the ranks of a group along named axes, and the groups along them.

mod axes;
mod error;

pub use error::MeshError;

use crate::{Result, replicas, talk};
use axes::Axes;
use phalanx_autograd::nn::Module;
use phalanx_comm::ProcessGroup;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The ranks of a group along named axes, in row-major order: the last axis varies fastest (PyTorch: `DeviceMesh`,
/// `init_device_mesh`).
///
/// Where the model is split as well as the data, each rank has a place along every axis: which replica it belongs to,
/// which stage of the model it holds, and which part of each layer. What ranks do together, they do in the group along
/// an axis, which holds the ranks that differ in that coordinate alone. Put the axis that communicates most last: its
/// ranks are neighbours, and so most often on one host.
///
/// ```
/// use phalanx_comm::{ReduceOp, Tensor, launch};
/// use phalanx_parallel::Mesh;
///
/// let sums = launch(8, |group| -> phalanx_parallel::Result<_> {
///     let mesh = Mesh::new(group, [("data", 2), ("pipe", 2), ("tensor", 2)])?;
///     let rank = mesh.whole().rank();
///     if rank == 5 {
///         let place = ["data", "pipe", "tensor"].map(|axis| mesh.coordinate(axis).unwrap());
///         assert_eq!(place, [1, 0, 1]);
///         assert_eq!(mesh.group("data")?.world_ranks(), [1, 5]);
///         let error = mesh.size("model").unwrap_err();
///         let sentence = "there is no axis `model`; the mesh has data 2 × pipe 2 × tensor 2";
///         assert_eq!(error.to_string(), sentence);
///     }
///     let mine = Tensor::scalar(rank as i64, mesh.whole().device())?;
///     let along_data = mesh.group("data")?.all_reduce(mine, ReduceOp::Sum)?.wait()?;
///     Ok((along_data.item::<i64>()?, mesh.to_string()))
/// })?;
/// assert_eq!(sums.iter().map(|(sum, _)| *sum).collect::<Vec<_>>(), [4, 6, 8, 10, 4, 6, 8, 10]);
/// assert_eq!(
///     sums[0].1,
///     "data  pipe  tensor 0  tensor 1
///    0     0         0         1
///    0     1         2         3
///    1     0         4         5
///    1     1         6         7"
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Mesh {
    axes: Axes,
    group: Arc<dyn ProcessGroup>,
    /// By the axes that they go over, in the order of the mesh.
    groups: Mutex<BTreeMap<Vec<usize>, Arc<dyn ProcessGroup>>>,
}

impl Mesh {
    /// A mesh of a group's ranks, in the order of the group. It splits the group once for each axis, the outermost one
    /// first. Every rank must call it, with the same axes.
    ///
    /// An axis along which all ranks of the group lie takes the group itself.
    ///
    /// # Errors
    /// [`Error::RanksDiffer`](crate::Error::RanksDiffer), the same on every rank, where a rank names other axes or sizes;
    /// [`MeshError`] where the names make no sense, or the sizes do not multiply to the number of ranks; errors of the
    /// communication.
    pub fn new<N: Into<String>>(
        group: Arc<dyn ProcessGroup>,
        axes: impl IntoIterator<Item = (N, usize)>,
    ) -> Result<Mesh> {
        let axes: Vec<(String, usize)> = axes.into_iter().map(|(n, s)| (n.into(), s)).collect();
        // Before the axes are judged: what is wrong on one rank alone is every rank's error.
        let lines = axes.iter().enumerate();
        let lines = lines.map(|(i, (name, size))| format!("axis {i} {name:?} of size {size}\n"));
        talk::agree(&*group, "meshes", &lines.collect::<String>())?;
        let axes = Axes::new(axes, group.size())?;
        let mesh = Mesh {
            axes,
            group,
            groups: Mutex::default(),
        };
        for axis in 0..mesh.axes.count() {
            let group = mesh.split(&[axis])?;
            mesh.keep(vec![axis], group);
        }
        Ok(mesh)
    }

    /// The group over these axes that this rank is in.
    fn split(&self, over: &[usize]) -> Result<Arc<dyn ProcessGroup>> {
        if self.axes.group_size(over) == self.axes.places() {
            return Ok(self.group.clone());
        }
        let color = self.axes.color(self.group.rank(), over);
        // Of equal keys, so that ranks keep their order.
        let group = self.group.split(Some(color as u32), 0)?;
        Ok(group.unwrap_or_else(|| unreachable!("a rank with a color is in a group")))
    }

    fn kept(&self, over: &[usize]) -> Option<Arc<dyn ProcessGroup>> {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.get(over).cloned()
    }

    fn keep(&self, over: Vec<usize>, group: Arc<dyn ProcessGroup>) {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.insert(over, group);
    }

    /// The group of all ranks of the mesh.
    pub fn whole(&self) -> &Arc<dyn ProcessGroup> {
        &self.group
    }

    /// The axes, outermost first, with their sizes.
    pub fn axes(&self) -> impl Iterator<Item = (&str, usize)> {
        let sizes = (0..self.axes.count()).map(|axis| self.axes.size(axis));
        self.axes.names().zip(sizes)
    }

    /// The numbers of the mesh's ranks in the world, place by place in row-major order.
    pub fn ranks(&self) -> &[usize] {
        self.group.world_ranks()
    }

    /// How many places there are along an axis.
    ///
    /// # Errors
    /// [`MeshError::UnknownAxis`].
    pub fn size(&self, axis: &str) -> Result<usize> {
        Ok(self.axes.size(self.axes.find(axis)?))
    }

    /// Where along an axis this rank is, from 0.
    ///
    /// # Errors
    /// [`MeshError::UnknownAxis`].
    pub fn coordinate(&self, axis: &str) -> Result<usize> {
        let axis = self.axes.find(axis)?;
        Ok(self.axes.coordinate(self.group.rank(), axis))
    }

    /// The group along an axis: the ranks whose other coordinates are this rank's, in the order of their coordinates
    /// along it, so that [`coordinate`](Mesh::coordinate) is the rank in this group.
    ///
    /// # Errors
    /// [`MeshError::UnknownAxis`].
    pub fn group(&self, axis: &str) -> Result<Arc<dyn ProcessGroup>> {
        self.group_of(&[axis])
    }

    /// The group over several axes: the ranks whose coordinates along all others are this rank's, in the order of their
    /// places, whatever the order in which the axes are named.
    ///
    /// A group over more than one axis is made when it is first asked for, and kept: every rank of the mesh must ask for
    /// it then.
    ///
    /// ```
    /// use phalanx_comm::launch;
    /// use phalanx_parallel::Mesh;
    ///
    /// let replicas = launch(8, |group| -> phalanx_parallel::Result<_> {
    ///     let mesh = Mesh::new(group, [("data", 2), ("pipe", 2), ("tensor", 2)])?;
    ///     let replica = mesh.group_of(&["pipe", "tensor"])?; // all that holds one replica
    ///     Ok(replica.world_ranks().to_vec())
    /// })?;
    /// assert_eq!(replicas[1], [0, 1, 2, 3]);
    /// assert_eq!(replicas[6], [4, 5, 6, 7]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`MeshError`] for axes that the mesh does not have, one that is named twice, and none at all;
    /// [`Error::RanksDiffer`](crate::Error::RanksDiffer), the same on every rank, where a rank asks for other axes; errors
    /// of the communication.
    pub fn group_of(&self, axes: &[&str]) -> Result<Arc<dyn ProcessGroup>> {
        let over = self.axes.find_all(axes)?;
        if let Some(group) = self.kept(&over) {
            return Ok(group);
        }
        let names: Vec<&str> = self.axes.names().collect();
        let lines = over.iter().map(|&axis| format!("axis {:?}\n", names[axis]));
        talk::agree(
            &*self.group,
            "axes of a group of the mesh",
            &lines.collect::<String>(),
        )?;
        let group = self.split(&over)?;
        self.keep(over, group.clone());
        Ok(group)
    }

    /// Whether the ranks along an axis hold the same module, bit for bit: as [`check_replicas`](crate::check_replicas)
    /// of the group along it. Every rank along it must call this.
    ///
    /// # Errors
    /// [`Error::ReplicasDiffer`](crate::Error::ReplicasDiffer), the same on every rank along the axis; errors of the
    /// communication.
    pub fn check_replicas(&self, axis: &str, module: &(impl Module + ?Sized)) -> Result<()> {
        replicas::check_replicas(&*self.group(axis)?, module)
    }
}

/// A table of the ranks: a row for each place along all axes but the last one, and a column for each place along that.
impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        axes::table(&self.axes, self.ranks(), f)
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mesh({}, rank {})", self.axes, self.group.rank())
    }
}
