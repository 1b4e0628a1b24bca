//! What ranks tell each other before a pass.

use super::Cut;
use super::pass::Purpose;
use crate::{Error, Result, talk};
use phalanx_comm::ProcessGroup;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Tells the other ranks what is to come, and hears it of them: ranks that are in different passes are told apart, a
/// batch that one refuses is taken by none, and all know whether the shapes are new. Gives a number for the shapes.
pub(super) fn announce(
    group: &dyn ProcessGroup,
    step: u64,
    purpose: Purpose,
    cut: Option<&Cut>,
) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    for (what, part) in cut.iter().flat_map(|(i, t)| [(0, i), (1, t)]) {
        for (mb, tensors) in part.iter().enumerate() {
            for tensor in tensors {
                (what, mb, tensor.dtype(), tensor.dims()).hash(&mut hasher);
            }
        }
    }
    let mine = [
        step as i64,
        purpose as i64,
        i64::from(cut.is_none()),
        hasher.finish() as i64,
    ];
    let all = talk::gather_numbers(mine.to_vec(), group)?;
    let ranks = group.world_ranks();
    for (rank, theirs) in ranks.iter().zip(all.chunks_exact(mine.len())) {
        if theirs[..2] != all[..2] {
            let what = |words: &[i64]| format!("{} of step {}", purpose_name(words[1]), words[0]);
            return Err(Error::RanksDiffer {
                what: "passes of a pipeline",
                rank: *rank,
                difference: format!(
                    "rank {rank} is in {}, where rank {} is in {}",
                    what(theirs),
                    ranks[0],
                    what(&all)
                ),
            });
        }
    }
    let refused = all
        .chunks_exact(mine.len())
        .position(|theirs| theirs[2] != 0);
    if let (Some(rank), Some(_)) = (refused, cut) {
        return Err(Error::BatchRefused {
            rank: ranks[rank],
            step,
        });
    }
    let mut key = DefaultHasher::new();
    (purpose.has_backward(), &all).hash(&mut key);
    Ok(key.finish())
}

fn purpose_name(number: i64) -> &'static str {
    match number {
        0 => "`accumulate`",
        1 => "`step`",
        2 => "`evaluate`",
        _ => "`infer`",
    }
}
