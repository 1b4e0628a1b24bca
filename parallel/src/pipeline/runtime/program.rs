//! [`program`]: a rank's lowered list as what the interpreter does, one instruction after the other.

use crate::pipeline::{Action, Kind, Schedule};

/// What is done at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Instruction {
    /// `F`, `I`, `W` or `B`.
    Compute(Action),
    /// Transfers with one other rank: several where they go in opposite directions and stand side by side, so
    /// that they run together.
    Exchange(Vec<Action>),
    /// `REDUCE_GRAD` of a stage.
    Reduce(usize),
    /// `REDUCE_TIED` of a stage and another one.
    ReduceTied(Action),
}

/// What `rank` does, in the order of its list.
pub(super) fn program(schedule: &Schedule, rank: usize) -> Vec<Instruction> {
    let peer = |action: &Action| schedule.rank_of(action.peer());
    let mut out = Vec::with_capacity(schedule.ranks()[rank].len());
    let mut rest = &schedule.ranks()[rank][..];
    while let Some((&action, behind)) = rest.split_first() {
        rest = behind;
        match action.kind() {
            kind if kind.is_compute() => out.push(Instruction::Compute(action)),
            kind if kind.is_transfer() => {
                let same = |a: &&Action| a.kind().is_transfer() && peer(a) == peer(&action);
                let run = behind.iter().take_while(same).count();
                let (with, behind) = behind.split_at(run);
                rest = behind;
                let all = std::iter::once(action).chain(with.iter().copied());
                match with.iter().any(|a| a.kind().is_send() != kind.is_send()) {
                    true => out.push(Instruction::Exchange(all.collect())),
                    false => out.extend(all.map(|a| Instruction::Exchange(vec![a]))),
                }
            }
            Kind::ReduceGrad => out.push(Instruction::Reduce(action.stage())),
            // Of two stages of this rank, the second does it: by then the gradients of both are there.
            Kind::ReduceTied if behind.iter().any(|a| action.counterpart() == Some(*a)) => {}
            Kind::ReduceTied => out.push(Instruction::ReduceTied(action)),
            _ => {} // gathering of parameters: refused when the pipeline was made
        }
    }
    out
}

/// The part of a plan that computes outputs: what is left of it needs nothing that is left out, and its transfers keep
/// the order of the plan, by which no rank waits in a circle.
pub(super) fn forward_part(schedule: &Schedule) -> Schedule {
    let forward = |a: &&Action| {
        matches!(
            a.kind(),
            Kind::Forward | Kind::SendForward | Kind::RecvForward
        )
    };
    let lists = schedule.ranks().iter();
    schedule.with_ranks(
        lists
            .map(|l| l.iter().filter(forward).copied().collect())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{Lowering, Named, Rules, lower, validate};

    #[test]
    fn opposite_neighbours_run_together() {
        let plan = lower(
            &Named::OneFOneB.schedule(2, 1, 3).unwrap(),
            &Lowering::default(),
        )
        .unwrap();
        let exchanges = |rank| {
            let program = program(&plan, rank).into_iter();
            let exchanges = program.filter_map(|i| match i {
                Instruction::Exchange(list) => Some(list.len()),
                _ => None,
            });
            exchanges.collect::<Vec<_>>()
        };
        let together = |list: Vec<usize>| list.iter().filter(|&&n| n > 1).count();
        assert_eq!(exchanges(0).iter().sum::<usize>(), 6);
        assert!(
            together(exchanges(0)) + together(exchanges(1)) > 0,
            "{plan}"
        );
    }

    #[test]
    fn the_forward_part_has_no_circle() {
        for named in Named::ALL {
            let per_rank = named.default_stages_per_rank();
            let Ok(plan) = named.schedule(3, per_rank, 6) else {
                continue;
            };
            let plan = lower(&plan, &Lowering::default()).unwrap();
            let part = forward_part(&plan);
            let kept = part.ranks().iter().flatten();
            assert_eq!(
                kept.filter(|a| a.kind() == Kind::Forward).count(),
                3 * per_rank * 6
            );
            // As a whole plan it lacks its backward, and nothing else.
            let error = validate(&part, &Rules::default()).unwrap_err();
            assert!(error.to_string().contains("never"), "{error}");
        }
    }
}
