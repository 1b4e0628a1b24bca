//! The checks that ranks agree: on the module and the configuration before anything is averaged, on the
//! parameters' values later, and on whatever else a program must not differ in.

use super::DdpConfig;
use super::bucket::Entry;
use super::replica::{Replica, entry_of, entry_of_buffer};
use crate::{Error, Result};
use phalanx_autograd::{Buffer, Param};
use phalanx_comm::ProcessGroup;
use phalanx_tensor::{Device, Tensor};
use std::collections::HashMap;
use std::hash::Hasher;

/// One line per parameter and buffer, the same text on ranks that agree. Ranks have devices of
/// their own; but what shares a device, and so a bucket, must be the same.
fn describe(params: &[(String, Param)], buffers: &[(String, Buffer)]) -> String {
    let kind = |p: &Param| match p.requires_grad() {
        true => "parameter",
        false => "frozen parameter",
    };
    let params = params.iter().map(|(name, p)| (kind(p), name, entry_of(p)));
    let buffers = buffers
        .iter()
        .map(|(name, b)| ("buffer", name, entry_of_buffer(b)));
    let mut firsts: HashMap<Device, &str> = HashMap::new();
    let mut text = String::new();
    for (kind, name, entry) in params.chain(buffers) {
        let Entry {
            shape,
            dtype,
            device,
        } = entry;
        let first = firsts.entry(device).or_insert(name);
        text += &format!("{kind} {name}: {dtype} {shape} on the device of {first}\n");
    }
    text
}

/// Where two descriptions part, as a sentence.
fn first_difference(
    (rank, theirs): (usize, &str),
    (first, firsts): (usize, &str),
) -> Option<String> {
    let (mut a, mut b) = (theirs.lines(), firsts.lines());
    loop {
        return match (a.next(), b.next()) {
            (Some(x), Some(y)) if x == y => continue,
            (Some(x), Some(y)) => Some(format!("rank {rank} has {x}, where rank {first} has {y}")),
            (Some(x), None) => Some(format!(
                "rank {rank} has {x}, which rank {first} does not have"
            )),
            (None, Some(y)) => Some(format!("rank {rank} lacks {y}, which rank {first} has")),
            (None, None) => None,
        };
    }
}

/// Compares a text of this rank with every other rank's. `Some`: the first rank whose text is not that
/// of the group's first rank, and where they part; the same on every rank.
fn compare(group: &dyn ProcessGroup, mine: String) -> Result<Option<(usize, String)>> {
    let device = group.device();
    let mine = mine.into_bytes();
    let length = Tensor::scalar(mine.len() as i64, device)?;
    let lengths = group.all_gather(length)?.wait()?.to_vec::<i64>()?;
    // Padded to the longest, so that all ranks gather the same shape.
    let longest = lengths.iter().map(|&n| n as usize).max().unwrap_or(0);
    let mut padded = mine;
    padded.resize(longest, 0);
    let texts = group
        .all_gather(Tensor::from_vec(padded, longest, device)?)?
        .wait()?;
    let texts = texts.to_vec::<u8>()?;
    let text = |rank: usize| &texts[rank * longest..][..lengths[rank] as usize];
    let texts = (0..group.size()).map(|r| String::from_utf8_lossy(text(r)));
    let mut texts = group.world_ranks().iter().copied().zip(texts);
    let Some((first, firsts)) = texts.next() else {
        return Ok(None); // a group has a rank
    };
    Ok(texts.find_map(|(rank, text)| {
        let difference = first_difference((rank, &text), (first, &firsts))?;
        Some((rank, difference))
    }))
}

/// Compares this rank's module and configuration with every other rank's.
pub(super) fn replicas_agree(
    config: &DdpConfig,
    params: &[(String, Param)],
    buffers: &[(String, Buffer)],
    group: &dyn ProcessGroup,
) -> Result<()> {
    match compare(group, config.describe() + &describe(params, buffers))? {
        Some((rank, difference)) => Err(Error::ReplicasDiffer { rank, difference }),
        None => Ok(()),
    }
}

/// Whether all ranks say the same of something that they must not differ in, such as the arguments that
/// the program was started with: ranks that train with different learning rates drift apart without a
/// sign. `text` has one line for each thing, and `what` says what they are, in the plural. Every rank
/// must call it.
///
/// ```
/// use phalanx_comm::launch;
/// use phalanx_parallel::{Error, ddp};
///
/// let ends = launch(2, |group| -> phalanx_parallel::Result<String> {
///     let lr = if group.rank() == 0 { 0.05 } else { 0.01 };
///     let arguments = format!("--epochs 4\n--lr {lr}\n");
///     let Err(error) = ddp::agree(&*group, "arguments", &arguments) else { panic!() };
///     Ok(error.to_string())
/// })?;
/// assert_eq!(
///     ends[0],
///     "the ranks have different arguments: rank 1 has --lr 0.01, where rank 0 has --lr 0.05"
/// );
/// assert_eq!(ends[0], ends[1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::RanksDiffer`], the same on every rank; errors of the communication.
pub fn agree(group: &dyn ProcessGroup, what: &'static str, text: &str) -> Result<()> {
    match compare(group, text.to_owned())? {
        Some((rank, difference)) => Err(Error::RanksDiffer {
            what,
            rank,
            difference,
        }),
        None => Ok(()),
    }
}

/// Compares the values of this rank's parameters, and of the buffers that the wrapper keeps equal, with
/// every other rank's.
pub(super) fn values_agree(replica: &Replica) -> Result<()> {
    if replica.group.size() == 1 {
        return Ok(()); // there is no other to differ from
    }
    let (mut names, mut hashes) = (Vec::new(), Vec::new());
    let mut take = |name: &str, value: &Tensor| -> Result<()> {
        names.push(format!("{name} ({} {})", value.dtype(), value.shape()));
        hashes.push(hash(value)?);
        Ok(())
    };
    for (name, param) in replica.params.iter().chain(&replica.frozen) {
        param.read(|value| take(name, value))?;
    }
    let kept = replica.config.broadcast_buffers;
    for (name, buffer) in replica.buffers.iter().filter(|_| kept) {
        buffer.read(|value| take(name, value))?;
    }
    let (group, n) = (&*replica.group, hashes.len());
    let all = Tensor::from_vec(hashes, n, group.device())?;
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

#[cfg(test)]
mod tests {
    use super::first_difference;

    #[test]
    fn differences_are_named() {
        let cases = [
            ("a\nb\n", "a\nb\n", None),
            (
                "w: f32 [2]\n",
                "w: f32 [3]\n",
                Some("rank 5 has w: f32 [2], where rank 3 has w: f32 [3]"),
            ),
            ("a\n", "a\nb\n", Some("rank 5 lacks b, which rank 3 has")),
            (
                "a\nb\n",
                "a\n",
                Some("rank 5 has b, which rank 3 does not have"),
            ),
        ];
        for (theirs, firsts, want) in cases {
            let found = first_difference((5, theirs), (3, firsts));
            assert_eq!(found.as_deref(), want);
        }
    }
}
