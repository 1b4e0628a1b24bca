//! The check that all ranks hold the same module, before anything is averaged.

use crate::{Error, Result};
use phalanx_autograd::{Buffer, Param};
use phalanx_comm::ProcessGroup;
use phalanx_tensor::{Device, Tensor};
use std::collections::HashMap;

/// One line per parameter and buffer, the same text on ranks that agree. Ranks have devices of
/// their own; but what shares a device, and so a bucket, must be the same.
fn describe(params: &[(String, Param)], buffers: &[(String, Buffer)]) -> String {
    let kind = |p: &Param| match p.requires_grad() {
        true => "parameter",
        false => "frozen parameter",
    };
    let params = params.iter().map(|(name, p)| (kind(p), name, p.value()));
    let buffers = buffers.iter().map(|(name, b)| ("buffer", name, b.value()));
    let mut firsts: HashMap<Device, &str> = HashMap::new();
    let mut text = String::new();
    for (kind, name, t) in params.chain(buffers) {
        let (dtype, shape) = (t.dtype(), t.shape());
        let first = firsts.entry(t.device()).or_insert(name);
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

/// Compares this module's parameters and buffers with every other rank's.
pub(super) fn replicas_agree(
    params: &[(String, Param)],
    buffers: &[(String, Buffer)],
    group: &dyn ProcessGroup,
) -> Result<()> {
    let device = group.device();
    let mine = describe(params, buffers).into_bytes();
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
        return Ok(()); // a group has a rank
    };
    for (rank, text) in texts {
        if let Some(difference) = first_difference((rank, &text), (first, &firsts)) {
            return Err(Error::ReplicasDiffer { rank, difference });
        }
    }
    Ok(())
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
