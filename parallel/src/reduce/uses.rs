//! Which parameters any rank uses: small talk beside the gradients.

use crate::{Result, talk};
use phalanx_comm::{ProcessGroup, Work};
use phalanx_tensor::Tensor;

/// The answer for one step, on its way.
pub(super) enum Uses {
    /// There is nobody to ask, or nothing: nothing is sent.
    Known(Vec<bool>),
    /// A small collective in the host's memory, which is on its way while gradients are computed: a
    /// `bool` for each parameter, of each rank. (Gathered, since engines for small talk alone do not reduce.)
    Asked(Work<Tensor>),
}

impl Uses {
    /// Asks the other ranks, where this one uses `used`. `all`: every rank uses everything, so that there
    /// is no question; the ranks agree on that.
    pub(super) fn start(used: &[bool], all: bool, group: &dyn ProcessGroup) -> Result<Uses> {
        if all {
            return Ok(Uses::Known(vec![true; used.len()]));
        }
        if group.size() == 1 {
            return Ok(Uses::Known(used.to_vec()));
        }
        let mine = Tensor::from_slice(used, [used.len()], talk::device(group))?;
        Ok(Uses::Asked(group.all_gather(mine)?))
    }

    /// Does a small share of the asking, without blocking. Returns whether the answer is there.
    pub(super) fn poll(&mut self) -> bool {
        match self {
            Uses::Known(_) => true,
            Uses::Asked(work) => work.poll().unwrap_or(true),
        }
    }

    /// Waits for the answer: for each parameter, whether any rank uses it.
    pub(super) fn wait(self) -> Result<Vec<bool>> {
        Ok(match self {
            Uses::Known(used) => used,
            Uses::Asked(work) => {
                let all = work.wait()?;
                let params = all.dims()[1];
                let all = all.to_vec::<bool>()?;
                let any = |param| all[param..].iter().step_by(params).any(|used| *used);
                (0..params).map(any).collect()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_comm::launch;

    #[test]
    fn a_single_user_is_enough() {
        const RANKS: usize = 8;
        let ends = launch(RANKS, |group| -> Result<()> {
            let mine: Vec<bool> = (0..=RANKS).map(|param| param == group.rank()).collect();
            let found = Uses::start(&mine, false, &*group)?.wait()?;
            let wanted: Vec<bool> = (0..=RANKS).map(|param| param < RANKS).collect();
            assert_eq!(found, wanted);
            assert_eq!(
                Uses::start(&mine, true, &*group)?.wait()?,
                [true; RANKS + 1]
            );
            Ok(())
        });
        ends.unwrap();
    }
}
