//! Ranks that hold the same module: the checks that they do, of its parameters and buffers before anything is averaged and
//! of their values at any time later; and the values of one rank for all.

pub(crate) mod broadcast;

use self::broadcast::Buffers;
use crate::reduce::bucket::{self, Entry};
use crate::{Error, Result, talk};
use phalanx_autograd::nn::Module;
use phalanx_autograd::{Buffer, Param};
use phalanx_comm::ProcessGroup;
use phalanx_tensor::{Device, Tensor};
use std::hash::Hasher;

/// One line per parameter and buffer, the same text on ranks that agree.
fn describe(params: &[(String, Param)], buffers: &[(String, Buffer)]) -> String {
    let kind = |p: &Param| match p.requires_grad() {
        true => "parameter",
        false => "frozen parameter",
    };
    let params = params.iter();
    let params = params.map(|(name, p)| (kind(p), &**name, Entry::of(p)));
    let buffers = buffers.iter();
    let buffers = buffers.map(|(name, b)| ("buffer", &**name, Entry::of_buffer(b)));
    bucket::describe(params.chain(buffers))
}

/// Compares this rank's module, and the lines of its configuration, with every other rank's.
pub(crate) fn structures_agree(
    group: &dyn ProcessGroup,
    configuration: String,
    params: &[(String, Param)],
    buffers: &[(String, Buffer)],
) -> Result<()> {
    match talk::compare(group, configuration + &describe(params, buffers))? {
        Some((rank, difference)) => Err(Error::ReplicasDiffer { rank, difference }),
        None => Ok(()),
    }
}

/// Gives the parameters and buffers of all ranks, which have the same ones, the values of the group's rank `root`. The group
/// carries tensors on all their devices. Every rank must call it.
pub(crate) fn take_values_of(
    root: usize,
    params: &[(String, Param)],
    buffers: Vec<(String, Buffer)>,
    group: &dyn ProcessGroup,
) -> Result<Buffers> {
    // Shared until it has arrived everywhere: it is only read.
    let works = params
        .iter()
        .map(|(_, p)| group.broadcast(p.read(Tensor::clone), root));
    let works = works.collect::<Result<Vec<_>, _>>()?;
    for ((_, param), work) in params.iter().zip(works) {
        let value = work.wait()?;
        if group.rank() != root {
            param.set(value)?;
        }
    }
    let buffers = Buffers::new(buffers);
    buffers.send(group, root)?.receive()?;
    Ok(buffers)
}

/// Compares the values of this rank's parameters and buffers with every other rank's, which has the same ones.
pub(crate) fn values_agree<'a>(
    group: &dyn ProcessGroup,
    params: impl Iterator<Item = &'a (String, Param)>,
    buffers: impl Iterator<Item = &'a (String, Buffer)>,
) -> Result<()> {
    if group.size() == 1 {
        return Ok(()); // there is no other to differ from
    }
    let (mut names, mut hashes) = (Vec::new(), Vec::new());
    let mut take = |name: &str, value: &Tensor| -> Result<()> {
        names.push(format!("{name} ({} {})", value.dtype(), value.shape()));
        hashes.push(hash(value)?);
        Ok(())
    };
    for (name, param) in params {
        param.read(|value| take(name, value))?;
    }
    for (name, buffer) in buffers {
        buffer.read(|value| take(name, value))?;
    }
    let n = hashes.len();
    let all = Tensor::from_vec(hashes, n, talk::device(group))?;
    let all = group.all_gather(all)?.wait()?.to_vec::<i64>()?;
    let ranks = group.world_ranks();
    for (rank, theirs) in ranks.iter().zip(all.chunks(n.max(1))).skip(1) {
        let differs = theirs.iter().zip(&all).position(|(a, b)| a != b);
        if let Some(at) = differs {
            return Err(Error::ReplicasDiffer {
                rank: *rank,
                difference: format!(
                    "rank {rank} has other values of {} than rank {}",
                    names[at], ranks[0]
                ),
            });
        }
    }
    Ok(())
}

/// Whether all ranks of a group hold the same module: the same parameters and buffers, with the same bits. The
/// group is one whose ranks have replicas of each other, such as a [`Mesh`](crate::Mesh) has along an axis. Every
/// rank of it must call this.
///
/// It reads every value once, and sends eight bytes for each.
///
/// # Errors
/// [`Error::ReplicasDiffer`], the same on every rank of the group; errors of the communication.
pub fn check_replicas(group: &dyn ProcessGroup, module: &(impl Module + ?Sized)) -> Result<()> {
    let (params, buffers) = (module.named_parameters(), module.named_buffers());
    structures_agree(group, String::new(), &params, &buffers)?;
    values_agree(group, params.iter(), buffers.iter())
}

/// 64 bits that depend on every bit of the elements, in order.
fn hash(value: &Tensor) -> Result<i64> {
    let value = match value.device().is_cpu() {
        true => value.contiguous()?,
        false => value.to_device(Device::cpu(0))?,
    };
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(value.as_bytes()?);
    Ok(hasher.finish() as i64)
}
