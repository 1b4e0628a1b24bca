//! The checks that ranks agree: on the module and the configuration before anything is averaged, and on the
//! parameters' values later.

use super::DdpConfig;
use super::replica::{Replica, entry_of, entry_of_buffer};
use crate::reduce::bucket;
use crate::{Error, Result, talk};
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
    let params = params.map(|(name, p)| (kind(p), &**name, entry_of(p)));
    let buffers = buffers.iter();
    let buffers = buffers.map(|(name, b)| ("buffer", &**name, entry_of_buffer(b)));
    bucket::describe(params.chain(buffers))
}

/// Compares this rank's module and configuration with every other rank's.
pub(super) fn replicas_agree(
    config: &DdpConfig,
    params: &[(String, Param)],
    buffers: &[(String, Buffer)],
    group: &dyn ProcessGroup,
) -> Result<()> {
    match talk::compare(group, config.describe(group) + &describe(params, buffers))? {
        Some((rank, difference)) => Err(Error::ReplicasDiffer { rank, difference }),
        None => Ok(()),
    }
}

/// Compares the values of this rank's parameters, and of the buffers that the wrapper keeps equal, with
/// every other rank's.
pub(super) fn values_agree(replica: &Replica) -> Result<()> {
    if replica.group().size() == 1 {
        return Ok(()); // there is no other to differ from
    }
    let (mut names, mut hashes) = (Vec::new(), Vec::new());
    let mut take = |name: &str, value: &Tensor| -> Result<()> {
        names.push(format!("{name} ({} {})", value.dtype(), value.shape()));
        hashes.push(hash(value)?);
        Ok(())
    };
    for (name, param) in replica.params().iter().chain(&replica.frozen) {
        param.read(|value| take(name, value))?;
    }
    let kept = replica.config.broadcast_buffers;
    for (name, buffer) in replica.buffers.named.iter().filter(|_| kept) {
        buffer.read(|value| take(name, value))?;
    }
    let (group, n) = (replica.group(), hashes.len());
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
