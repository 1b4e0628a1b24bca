//! The check that all ranks hold the same module, before anything is averaged.

use crate::{Error, Result};
use phalanx_autograd::{Buffer, Param};
use phalanx_comm::ProcessGroup;
use phalanx_tensor::Tensor;

/// One line per parameter and buffer, the same text on ranks that agree.
fn describe(params: &[(String, Param)], buffers: &[(String, Buffer)]) -> String {
    let line = |kind: &str, name: &str, t: &Tensor| {
        format!("{kind} {name}: {} {}\n", t.dtype(), t.shape())
    };
    let params = params.iter().map(|(name, p)| match p.requires_grad() {
        true => line("parameter", name, &p.value()),
        false => line("frozen parameter", name, &p.value()),
    });
    let buffers = buffers
        .iter()
        .map(|(name, b)| line("buffer", name, &b.value()));
    params.chain(buffers).collect()
}

/// Where two descriptions part, as a sentence.
fn first_difference(rank: usize, theirs: &str, zeros: &str) -> Option<String> {
    let (mut a, mut b) = (theirs.lines(), zeros.lines());
    loop {
        return match (a.next(), b.next()) {
            (Some(x), Some(y)) if x == y => continue,
            (Some(x), Some(y)) => Some(format!("rank {rank} has {x}, where rank 0 has {y}")),
            (Some(x), None) => Some(format!("rank {rank} has {x}, which rank 0 does not have")),
            (None, Some(y)) => Some(format!("rank {rank} lacks {y}, which rank 0 has")),
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
    let texts: Vec<_> = (0..group.size())
        .map(|r| String::from_utf8_lossy(text(r)))
        .collect();
    for (rank, text) in texts.iter().enumerate().skip(1) {
        if let Some(difference) = first_difference(rank, text, &texts[0]) {
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
        assert_eq!(first_difference(1, "a\nb\n", "a\nb\n"), None);
        let d = first_difference(2, "parameter w: f32 [2]\n", "parameter w: f32 [3]\n").unwrap();
        assert_eq!(
            d,
            "rank 2 has parameter w: f32 [2], where rank 0 has parameter w: f32 [3]"
        );
        assert!(
            first_difference(1, "a\n", "a\nb\n")
                .unwrap()
                .contains("lacks b")
        );
        assert!(
            first_difference(1, "a\nb\n", "a\n")
                .unwrap()
                .contains("does not have")
        );
    }
}
