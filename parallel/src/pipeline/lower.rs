//! From a plan of compute actions to one that also says who sends what to whom, and when.
//!
//! The plan is run in its own time, with F = I = W = 1. When an action is done, its results are
//! sent: the send goes to the end of what its rank has begun by then, and the receive to the end
//! of what the receiving rank has begun by then. **A send and its receive are written down in one
//! moment, so one order of events fits all lists at once**: no rank can wait in a circle, even
//! under blocking sends, and the messages of a channel are sent and received in the same order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::costs::Costs;
use super::simulate::{Transfers, simulate};
use super::validate::{Rules, validate};
use super::{Action, Kind, PlanError, Schedule};

/// What lowering does besides sends and receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lowering {
    /// Joins an `I` and the `W` of the same stage and microbatch to a `B` where they meet. Where a
    /// send stands between them, they stay apart: the other rank waits for it.
    pub merge: bool,
    /// Reduces a stage's gradient right after its last microbatch.
    pub reduce: bool,
    /// Gathers a stage's parameters before their use and drops them after it, so that no rank has
    /// more than so many stages gathered at once.
    pub gathered: Option<usize>,
}

impl Default for Lowering {
    fn default() -> Self {
        Self {
            merge: true,
            reduce: true,
            gathered: None,
        }
    }
}

/// Writes out what a plan of compute actions leaves understood.
///
/// # Errors
/// [`PlanError::Lowered`] if that was done already, [`PlanError::Invalid`] if the plan is wrong.
///
/// ```
/// use phalanx_parallel::pipeline::{Lowering, Named, lower};
///
/// let plan = lower(&Named::OneFOneB.schedule(2, 1, 1)?, &Lowering::default())?;
/// assert_eq!(
///     plan.to_string(),
///     "0F0, 0SEND_F0, 0RECV_B0, 0B0, 0REDUCE_GRAD\n\
///      1RECV_F0, 1F0, 1B0, 1SEND_B0, 1REDUCE_GRAD\n"
/// );
/// # Ok::<(), phalanx_parallel::pipeline::PlanError>(())
/// ```
pub fn lower(schedule: &Schedule, lowering: &Lowering) -> Result<Schedule, PlanError> {
    for (rank, list) in schedule.ranks().iter().enumerate() {
        if let Some(&action) = list.iter().find(|a| !a.kind().is_compute()) {
            return Err(PlanError::Lowered { rank, action });
        }
    }
    validate(schedule, &Rules::default())?;
    let mut ranks = add_transfers(schedule)?;
    for list in &mut ranks {
        if lowering.merge {
            merge_backward(list);
        }
        if lowering.reduce {
            add_reductions(list);
        }
        if let Some(gathered) = lowering.gathered {
            add_gathering(list, gathered.max(1));
        }
    }
    Ok(schedule.with_ranks(ranks))
}

fn add_transfers(schedule: &Schedule) -> Result<Vec<Vec<Action>>, PlanError> {
    let time = simulate(
        schedule,
        &Costs::unit(schedule.stages()),
        Transfers::Overlapped,
    )?;
    let graph = schedule.graph();
    let ranks = schedule.rank_count();
    // Per action a transfer each way, for most.
    let mut out: Vec<Vec<Action>> = time
        .ranks
        .iter()
        .map(|spans| Vec::with_capacity(3 * spans.len()))
        .collect();
    let mut begun = vec![0usize; ranks];
    // Every action ends after it begins, since none is free at these costs.
    let begin_before = |out: &mut Vec<Action>, begun: &mut usize, rank: usize, now: f64| {
        while let Some(span) = time.ranks[rank].get(*begun).filter(|span| span.start < now) {
            out.push(span.action);
            *begun += 1;
        }
    };
    // The next end of each rank; times are whole numbers.
    let mut ended = vec![0usize; ranks];
    let end_of = |rank: usize, i: usize| time.ranks[rank].get(i).map(|span| span.end as u64);
    let mut ends: BinaryHeap<Reverse<(u64, usize)>> = (0..ranks)
        .filter_map(|r| Some(Reverse((end_of(r, 0)?, r))))
        .collect();
    while let Some(Reverse((now, rank))) = ends.pop() {
        let action = time.ranks[rank][ended[rank]].action;
        ended[rank] += 1;
        if let Some(next) = end_of(rank, ended[rank]) {
            ends.push(Reverse((next, rank)));
        }
        let (kind, others) = match action.kind() {
            Kind::Forward => (Kind::SendForward, graph.successors(action.stage())),
            kind if kind.yields_input_gradient() => {
                (Kind::SendBackward, graph.predecessors(action.stage()))
            }
            _ => continue,
        };
        for &other in others {
            let home = schedule.rank_of(usize::from(other));
            if home == rank {
                continue;
            }
            let (stage, mb) = (action.stage() as u16, action.microbatch() as u16);
            let send = Action::transfer(kind, stage, other, mb);
            for (r, transfer) in [(rank, Some(send)), (home, send.counterpart())] {
                begin_before(&mut out[r], &mut begun[r], r, now as f64);
                out[r].extend(transfer);
            }
        }
    }
    for rank in 0..ranks {
        begin_before(&mut out[rank], &mut begun[rank], rank, f64::INFINITY);
    }
    Ok(out)
}

/// `I` and then at once `W` of the same stage and microbatch become `B`.
fn merge_backward(list: &mut Vec<Action>) {
    let mut kept = 0;
    let mut i = 0;
    while i < list.len() {
        let here = list[i];
        let (stage, mb) = (here.stage() as u16, here.microbatch() as u16);
        let meets = here.kind() == Kind::Input
            && list.get(i + 1) == Some(&Action::compute(Kind::Weight, stage, mb));
        list[kept] = if meets {
            Action::compute(Kind::Backward, stage, mb)
        } else {
            here
        };
        kept += 1;
        i += if meets { 2 } else { 1 };
    }
    list.truncate(kept);
}

/// Puts `REDUCE_GRAD` where a stage's gradient is whole, behind the sends that others wait for.
fn add_reductions(list: &mut Vec<Action>) {
    let mut seen = std::collections::HashSet::new();
    let mut places = Vec::new();
    for (i, action) in list.iter().enumerate().rev() {
        if action.kind().releases_activation() && seen.insert(action.stage()) {
            let sends = list[i + 1..]
                .iter()
                .take_while(|a| a.kind().is_send())
                .count();
            places.push((i + 1 + sends, action.stage() as u16));
        }
    }
    // From the back, so that the earlier places stay right.
    places.sort_unstable_by_key(|&(place, _)| Reverse(place));
    for (place, stage) in places {
        list.insert(place, Action::whole_stage(Kind::ReduceGrad, stage));
    }
}

/// Gathers each stage just before its next use and drops it right after its last; where there is
/// no room, the stage that is needed last goes (Belady 1966).
fn add_gathering(list: &mut Vec<Action>, room: usize) {
    let mut uses: std::collections::HashMap<usize, Vec<usize>> = std::collections::HashMap::new();
    for (i, action) in list
        .iter()
        .enumerate()
        .filter(|(_, a)| a.kind().is_compute())
    {
        uses.entry(action.stage()).or_default().push(i);
    }
    let next_use = |stage: usize, after: usize| {
        let places = &uses[&stage];
        places.get(places.partition_point(|&i| i <= after)).copied()
    };
    let mut gathered: Vec<usize> = Vec::new();
    let mut out = Vec::with_capacity(list.len() + 4 * uses.len());
    for (i, &action) in list.iter().enumerate() {
        if !action.kind().is_compute() {
            out.push(action);
            continue;
        }
        let stage = action.stage();
        if !gathered.contains(&stage) {
            if gathered.len() == room {
                let last =
                    (0..room).max_by_key(|&k| next_use(gathered[k], i).unwrap_or(usize::MAX));
                let dropped = gathered.swap_remove(last.unwrap_or(0));
                out.push(Action::whole_stage(Kind::Reshard, dropped as u16));
            }
            gathered.push(stage);
            out.push(Action::whole_stage(Kind::Unshard, stage as u16));
        }
        out.push(action);
        if next_use(stage, i).is_none() {
            gathered.retain(|&s| s != stage);
            out.push(Action::whole_stage(Kind::Reshard, stage as u16));
        }
    }
    *list = out;
}
