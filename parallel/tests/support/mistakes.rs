//! Right plans, and mistakes in them.

use crate::rng::Rng;
use phalanx_parallel::pipeline::*;

/// Right plans with up to so many ranks and microbatches, as they are and lowered.
pub fn bases(ranks: usize, microbatches: usize) -> Vec<Schedule> {
    let mut bases = Vec::new();
    for named in Named::ALL {
        for p in 1..=ranks {
            for v in 1..=2 {
                for m in 1..=microbatches {
                    let Ok(plan) = named.schedule(p, v, m) else {
                        continue;
                    };
                    for merge in [false, true] {
                        bases.push(
                            lower(
                                &plan,
                                &Lowering {
                                    merge,
                                    ..Lowering::default()
                                },
                            )
                            .unwrap(),
                        );
                    }
                    bases.push(plan);
                }
            }
        }
    }
    // A skip connection over the middle rank.
    for m in 1..=microbatches {
        let graph = StageGraph::new(3, &[(0, 1), (1, 2), (0, 2)]).unwrap();
        let chain = Named::OneFOneB.schedule(3, 1, m).unwrap();
        let plan = Schedule::new(graph, vec![0, 1, 2], m as u16, chain.ranks().to_vec()).unwrap();
        bases.push(lower(&plan, &Lowering::default()).unwrap());
        bases.push(plan);
    }
    bases
}

/// These, and the same with one or two pairs of stages that share weights.
#[allow(dead_code, reason = "another test program uses it")]
pub fn with_ties(mut bases: Vec<Schedule>) -> Vec<Schedule> {
    for at in 0..bases.len() {
        let plan = &bases[at];
        let last = plan.stages() - 1;
        let pairs: &[(usize, usize)] = &[(0, last), (0, last / 2)];
        let count = if last > 1 { 1 + at % 2 } else { last };
        if count > 0 {
            bases.push(plan.with_tied(&pairs[..count]));
        }
    }
    bases
}

/// Drops, swaps, duplicates, retargets or moves an action.
pub fn mutate(plan: &mut Schedule, rng: &mut Rng) {
    let (stages, m, ranks) = (plan.stages(), plan.microbatches(), plan.rank_count());
    let rank = rng.below(ranks);
    let lists = plan.ranks_mut();
    let len = lists[rank].len();
    if len == 0 {
        return;
    }
    let at = rng.below(len);
    match rng.below(10) {
        0 => drop(lists[rank].remove(at)),
        1 => lists[rank].swap(at, rng.below(len)),
        2 => lists[rank].swap(at, (at + 1) % len),
        3 => {
            let action = lists[rank][at];
            lists[rank].insert(rng.below(len + 1), action);
        }
        4 => {
            let mb = rng.below(m + 1) as u16;
            lists[rank][at] = lists[rank][at].with_microbatch(mb);
        }
        5 => {
            let action = lists[rank][at];
            let (stage, mb) = (rng.below(stages) as u16, action.microbatch() as u16);
            lists[rank][at] = if action.kind().is_transfer() {
                Action::transfer(action.kind(), stage, action.peer() as u16, mb)
            } else if action.kind().is_compute() {
                let kinds = [Kind::Forward, Kind::Input, Kind::Weight, Kind::Backward];
                Action::compute(*rng.pick(&kinds), stage, mb)
            } else if action.kind() == Kind::ReduceTied {
                Action::tied(stage, action.peer() as u16)
            } else {
                Action::whole_stage(action.kind(), stage)
            };
        }
        6..=8 => {
            // A transfer goes elsewhere in its list.
            let transfers: Vec<usize> = (0..len)
                .filter(|&i| lists[rank][i].kind().is_transfer())
                .collect();
            if !transfers.is_empty() {
                let action = lists[rank].remove(*rng.pick(&transfers));
                lists[rank].insert(rng.below(len), action);
            }
        }
        _ => {
            let action = lists[rank].remove(at);
            let other = rng.below(ranks);
            let to = rng.below(lists[other].len() + 1);
            lists[other].insert(to, action);
        }
    }
}
