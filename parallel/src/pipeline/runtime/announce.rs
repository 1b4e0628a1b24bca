//! What ranks tell each other before a pass.

use super::Cut;
use super::pass::Purpose;
use super::stage::Stage;
use crate::{Error, Result, talk};
use phalanx_comm::ProcessGroup;
use std::hash::{DefaultHasher, Hash, Hasher};

/// The pass that a rank is about to begin.
pub(super) struct Announced<'a> {
    pub(super) step: u64,
    /// Batches that this step has had before.
    pub(super) batches: usize,
    pub(super) purpose: Purpose,
    /// The batch; none where this rank refuses it.
    pub(super) cut: Option<&'a Cut>,
    pub(super) stages: &'a [Stage],
}

/// What a rank says first: where it is, which all have alike.
const WHERE: usize = 3;
/// A word behind it: whether it refuses its batch.
const REFUSES: usize = WHERE;
/// And one more: what the sizes of all that travels follow from.
const SHAPES: usize = WHERE + 1;

/// What the ranks of a replica have found.
enum Verdict {
    Go,
    /// This rank of the world refuses its batch.
    Refused(usize),
    /// This rank of the world is elsewhere, in these words.
    Elsewhere(usize, String),
}

impl Verdict {
    /// In two numbers, for other replicas.
    fn numbers(&self) -> [i64; 2] {
        match self {
            Verdict::Go => [0, 0],
            Verdict::Refused(rank) => [1, *rank as i64],
            Verdict::Elsewhere(rank, _) => [2, *rank as i64],
        }
    }

    /// From the [numbers](Verdict::numbers) of another replica.
    fn of_numbers(numbers: &[i64]) -> Verdict {
        let rank = numbers[1] as usize;
        match numbers[0] {
            0 => Verdict::Go,
            1 => Verdict::Refused(rank),
            _ => Verdict::Elsewhere(
                rank,
                format!("rank {rank} is in another pass than its replica's first rank"),
            ),
        }
    }

    fn into_result(self, step: u64) -> Result<()> {
        match self {
            Verdict::Go => Ok(()),
            Verdict::Refused(rank) => Err(Error::BatchRefused { rank, step }),
            Verdict::Elsewhere(rank, difference) => Err(Error::RanksDiffer {
                what: "passes of a pipeline",
                rank,
                difference,
            }),
        }
    }
}

impl Announced<'_> {
    /// Tells the other ranks what is to come, and hears it of them: ranks that are in different passes are told apart, a
    /// batch that one refuses is taken by none, in no replica, and all know whether the sizes are new. Gives a number for
    /// what these follow from.
    ///
    /// Inference is the matter of one replica: it exchanges nothing with the others.
    pub(super) fn exchange(
        &self,
        group: &dyn ProcessGroup,
        data: Option<&dyn ProcessGroup>,
    ) -> Result<u64> {
        let here = [self.step as i64, self.batches as i64, self.purpose as i64];
        let mut mine = here.to_vec();
        mine.extend([i64::from(self.cut.is_none()), self.shapes()]);
        let words = mine.len();
        let all = talk::gather_numbers(mine, group)?;
        let mut verdict = elsewhere(group.world_ranks(), &all, words);
        if let Verdict::Go = verdict {
            let refused = all.chunks_exact(words).position(|w| w[REFUSES] != 0);
            verdict = refused.map_or(Verdict::Go, |rank| {
                Verdict::Refused(group.world_ranks()[rank])
            });
        }
        let infers = |words: &[i64]| words[2] == Purpose::Infer as i64;
        let is_alone = all.chunks_exact(words).all(infers);
        if let Some(data) = data.filter(|_| !is_alone) {
            let mut mine = here.to_vec();
            mine.extend(verdict.numbers());
            let words = mine.len();
            let all = talk::gather_numbers(mine, data)?;
            if let Verdict::Go = verdict {
                let theirs = all
                    .chunks_exact(words)
                    .map(|w| Verdict::of_numbers(&w[WHERE..]));
                let bad = theirs.into_iter().find(|v| !matches!(v, Verdict::Go));
                verdict = bad.unwrap_or_else(|| elsewhere(data.world_ranks(), &all, words));
            }
        }
        match verdict {
            // Its own error says more.
            Verdict::Refused(_) if self.cut.is_none() => {}
            verdict => verdict.into_result(self.step)?,
        }
        let mut key = DefaultHasher::new();
        self.purpose.has_backward().hash(&mut key);
        all.chunks_exact(words)
            .for_each(|w| w[SHAPES].hash(&mut key));
        Ok(key.finish())
    }

    /// What the sizes of all that travels from here follow from: the shapes of the batch, and which parameters are frozen.
    fn shapes(&self) -> i64 {
        let mut hasher = DefaultHasher::new();
        for (what, part) in self.cut.iter().flat_map(|(i, t)| [(0, i), (1, t)]) {
            for (mb, tensors) in part.iter().enumerate() {
                for tensor in tensors {
                    (what, mb, tensor.dtype(), tensor.dims()).hash(&mut hasher);
                }
            }
        }
        for stage in self.stages {
            let params = stage.module.parameters();
            params
                .iter()
                .for_each(|p| p.requires_grad().hash(&mut hasher));
        }
        hasher.finish() as i64
    }
}

/// Whether all ranks of a group are in one place, by the first of each rank's words.
fn elsewhere(ranks: &[usize], all: &[i64], words: usize) -> Verdict {
    let mut each = ranks.iter().zip(all.chunks_exact(words));
    let other = each.find(|(_, theirs)| theirs[..WHERE] != all[..WHERE]);
    other.map_or(Verdict::Go, |(&rank, theirs)| {
        let first = ranks[0];
        Verdict::Elsewhere(
            rank,
            format!(
                "rank {rank} is in {}, where rank {first} is in {}",
                told(theirs),
                told(all)
            ),
        )
    })
}

/// Where a rank is.
fn told(words: &[i64]) -> String {
    let purpose = match words[2] {
        0 => "`accumulate`",
        1 => "`step`",
        2 => "`evaluate`",
        _ => "`infer`",
    };
    let before = match words[1] {
        0 => String::new(),
        1 => " after 1 batch".to_owned(),
        n => format!(" after {n} batches"),
    };
    format!("{purpose} of step {}{before}", words[0])
}
