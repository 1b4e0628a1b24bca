//! What ranks tell each other beside gradients: small, in the host's memory, and never through a card.

use crate::{Error, Result};
use phalanx_comm::{ProcessGroup, Work};
use phalanx_tensor::{Device, Tensor, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where the tensors of small talk live: in the host's memory, also where the group's results live on a
/// card, so that to read them waits for nothing that a card does.
pub(crate) fn device(group: &dyn ProcessGroup) -> Device {
    match group.device() {
        device if device.is_cpu() => device,
        _ => Device::cpu(0),
    }
}

/// This rank's number in the world, which errors name.
pub(crate) fn world_rank(group: &dyn ProcessGroup) -> usize {
    group.world_ranks()[group.rank()]
}

/// A group that carries tensors on all these devices: this one, or one of the same ranks with an engine for each card, the
/// group's own first and then in the order of `devices`. Every rank must call it.
pub(crate) fn over_devices(
    group: Arc<dyn ProcessGroup>,
    devices: impl IntoIterator<Item = Device>,
) -> Result<Arc<dyn ProcessGroup>> {
    if group.device().is_cpu() || group.size() == 1 {
        return Ok(group);
    }
    let mut cards = vec![group.device()];
    for device in devices {
        if !device.is_cpu() && !cards.contains(&device) {
            cards.push(device);
        }
    }
    let lacks = cards.iter().any(|&card| group.promises(card).is_none());
    let mine = Tensor::scalar(i64::from(lacks), device(&*group))?;
    let all = group.all_gather(mine)?.wait()?.to_vec::<i64>()?;
    match all.contains(&1) {
        true => Ok(group.with_cards(&cards)?),
        false => Ok(group),
    }
}

/// The numbers of the group's rank `root`, on every rank. All give as many.
pub(crate) fn numbers_of(
    root: usize,
    mine: Vec<i64>,
    group: &dyn ProcessGroup,
) -> Result<Vec<i64>> {
    let n = mine.len();
    let mine = Tensor::from_vec(mine, n, device(group))?;
    Ok(group.broadcast(mine, root)?.wait()?.to_vec::<i64>()?)
}

/// As [`numbers_of`], of floats.
pub(crate) fn floats_of(root: usize, mine: Vec<f64>, group: &dyn ProcessGroup) -> Result<Vec<f64>> {
    if group.size() == 1 {
        return Ok(mine);
    }
    let n = mine.len();
    let mine = Tensor::from_vec(mine, n, device(group))?;
    Ok(group.broadcast(mine, root)?.wait()?.to_vec::<f64>()?)
}

/// The numbers of all ranks, one rank's behind the other's. All give as many.
pub(crate) fn gather_numbers<T: Value>(mine: Vec<T>, group: &dyn ProcessGroup) -> Result<Vec<T>> {
    if group.size() == 1 {
        return Ok(mine);
    }
    let n = mine.len();
    let mine = Tensor::from_vec(mine, n, device(group))?;
    Ok(group.all_gather(mine)?.wait()?.to_vec::<T>()?)
}

/// A number for what calls in labels of this group, the same on all ranks: it keeps the calls of two reducers, say, of equal
/// shape apart. It is the first rank's count. Every rank must call it.
pub(crate) fn owner(group: &dyn ProcessGroup) -> Result<u64> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mine = NEXT.fetch_add(1, Relaxed) as i64;
    Ok(numbers_of(0, vec![mine], group)?[0] as u64)
}

/// Tells one rank something of any length, which it [hears](hear).
pub(crate) fn tell<T: Value>(
    group: &dyn ProcessGroup,
    to: usize,
    tag: u32,
    words: Vec<T>,
) -> Result<Work<()>> {
    let n = words.len();
    let words = Tensor::from_vec(words, n, device(group))?;
    Ok(group.send_any(words, to, tag)?)
}

/// What another rank [tells](tell).
pub(crate) fn hear<T: Value>(group: &dyn ProcessGroup, from: usize, tag: u32) -> Result<Vec<T>> {
    Ok(group.recv_any(from, tag)?.wait()?.to_vec::<T>()?)
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
pub(crate) fn compare(group: &dyn ProcessGroup, mine: String) -> Result<Option<(usize, String)>> {
    let device = device(group);
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
