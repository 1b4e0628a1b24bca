//! How long any plan must be at least.
//!
//! For a rank with a given set of stages, the best of:
//!
//! - its work, after the head: the quickest way of a microbatch to its first stage;
//! - its F and I, after the head and before the tail: the quickest way of a gradient from its
//!   first stage back to stage 0;
//! - its I and W, after the first gradient can be there; and the F that cannot have been done by
//!   then because memory holds only so many;
//! - what its memory must hold, summed over time, divided by what it can hold: a microbatch stays
//!   at least until its gradient has come back from the last stage.
//!
//! A placement needs at least what its worst rank needs; all placements need at least what the best
//! of them needs. Where there are too many to look at each, the stages are bounded one by one, and
//! all the work shared evenly.

use super::super::Kind;
use super::instance::Instance;

/// More placements than this are not looked at one by one; more stages than so many have more.
const PLACEMENTS: usize = 5_000;
const STAGES: usize = 13;

/// No plan on any placement is shorter.
pub(super) fn lower_bound(instance: &Instance) -> f64 {
    let anywhere = of_any_placement(instance);
    if instance.stages > STAGES && instance.ranks > 1 {
        return anywhere;
    }
    let mut least = f64::INFINITY;
    let mut count = 0;
    placements(instance.stages, instance.ranks, &mut |placement| {
        least = least.min(of_placement(instance, placement));
        count += 1;
        count < PLACEMENTS
    });
    if count < PLACEMENTS {
        least.max(anywhere)
    } else {
        anywhere
    }
}

/// Visits every way to put stages on ranks, ranks being alike: the first stage that is put on a
/// new rank is put on the next one. Stops when the visitor says so.
pub(super) fn placements(stages: usize, ranks: usize, visit: &mut dyn FnMut(&[u16]) -> bool) {
    fn go(
        placement: &mut Vec<u16>,
        used: u16,
        stages: usize,
        ranks: u16,
        visit: &mut dyn FnMut(&[u16]) -> bool,
    ) -> bool {
        if placement.len() == stages {
            return visit(placement);
        }
        for rank in 0..(used + 1).min(ranks) {
            placement.push(rank);
            let more = go(placement, used.max(rank + 1), stages, ranks, visit);
            placement.pop();
            if !more {
                return false;
            }
        }
        true
    }
    go(
        &mut Vec::with_capacity(stages),
        0,
        stages,
        ranks as u16,
        visit,
    );
}

/// For each stage, the quickest way of a microbatch: from the start to the beginning of its F, from
/// there to the beginning of its I, from the start to the latter, and from the end of its I to the
/// end of all.
struct Ways {
    head: Vec<f64>,
    stay: Vec<f64>,
    turn: Vec<f64>,
    tail: Vec<f64>,
    whole: f64,
}

impl Ways {
    /// `crossing(s)`: what it takes from stage s to s + 1.
    fn new(instance: &Instance, crossing: impl Fn(usize) -> f64) -> Self {
        let n = instance.stages;
        // A whole backward can be quicker than I alone only if the costs are strange; allow it.
        let input = |s: usize, mb: usize| {
            instance
                .time(Kind::Input, s, mb)
                .min(instance.time(Kind::Backward, s, mb))
        };
        let mut ways = Self {
            head: vec![f64::INFINITY; n],
            stay: vec![f64::INFINITY; n],
            turn: vec![f64::INFINITY; n],
            tail: vec![f64::INFINITY; n],
            whole: 0.0,
        };
        for mb in 0..instance.microbatches {
            let mut now = 0.0;
            let mut begun = Vec::with_capacity(n);
            for s in 0..n {
                begun.push(now);
                ways.head[s] = ways.head[s].min(now);
                now += instance.time(Kind::Forward, s, mb) + crossing(s);
            }
            now -= crossing(n - 1);
            for s in (0..n).rev() {
                ways.turn[s] = ways.turn[s].min(now);
                ways.stay[s] = ways.stay[s].min(now - begun[s]);
                now += input(s, mb);
                if s > 0 {
                    now += crossing(s - 1);
                }
            }
            let weight = instance.time(Kind::Weight, 0, mb);
            let whole = instance.time(Kind::Backward, 0, mb) - input(0, mb);
            let last = weight.min(whole).max(0.0);
            ways.whole = ways.whole.max(now + last);
            let mut after = last;
            for s in 0..n {
                ways.tail[s] = ways.tail[s].min(after);
                after += input(s, mb) + crossing(s);
            }
        }
        ways
    }
}

/// The bound for the rank that holds `stages` and may hold `room` beside what is resident.
fn of_rank(instance: &Instance, ways: &Ways, stages: &[usize], room: u64) -> f64 {
    if stages.is_empty() {
        return 0.0;
    }
    let sum = |f: &dyn Fn(usize) -> f64| stages.iter().map(|&s| f(s)).sum::<f64>();
    let least = |ways: &[f64]| {
        stages
            .iter()
            .map(|&s| ways[s])
            .fold(f64::INFINITY, f64::min)
    };
    let forward = sum(&|s| instance.total(Kind::Forward, s));
    let backward = sum(&|s| instance.total_backward(s));
    let input = sum(&|s| {
        let least = |mb| {
            let (i, b) = (
                instance.time(Kind::Input, s, mb),
                instance.time(Kind::Backward, s, mb),
            );
            f64::min(i, b)
        };
        (0..instance.microbatches).map(least).sum()
    });
    let (head, turn, tail) = (least(&ways.head), least(&ways.turn), least(&ways.tail));

    // The most forward time that fits into memory before anything is let go: I lets go of some.
    let mut kinds: Vec<(f64, f64, f64)> = stages
        .iter()
        .map(|&s| {
            let time = instance.total(Kind::Forward, s);
            let bytes = instance.activation[s] as f64 * instance.microbatches as f64;
            (
                if bytes > 0.0 {
                    time / bytes
                } else {
                    f64::INFINITY
                },
                time,
                bytes,
            )
        })
        .collect();
    kinds.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut left = if room == u64::MAX {
        f64::INFINITY
    } else {
        room as f64
    };
    let mut fits = 0.0;
    for (_, time, bytes) in kinds {
        let share = if bytes > left { left / bytes } else { 1.0 };
        fits += time * share;
        left -= bytes * share;
    }
    let mut after_turn = (forward - fits).max(0.0);
    // One stage, and microbatches alike: whole forwards only, and as many weight gradients must
    // come before the last input gradient as forwards are left over.
    let mut weights_between = 0.0;
    if let [s] = *stages
        && instance.uniform
        && instance.activation[s] > 0
        && room != u64::MAX
    {
        let held = (room / instance.activation[s]) as usize;
        let over = instance.microbatches.saturating_sub(held) as f64;
        after_turn = over * instance.least(Kind::Forward, s);
        if instance.kept[s] == instance.activation[s] && !instance.merges {
            weights_between = over * instance.least(Kind::Weight, s);
        }
    }
    [
        head + held_over_time(instance, ways, stages, room),
        head + forward + backward,
        head + forward + input + tail,
        turn + backward + after_turn,
        turn + input + after_turn + weights_between + tail,
    ]
    .into_iter()
    .fold(0.0, f64::max)
}

/// The least time in which a rank's memory can hold all that it must hold.
fn held_over_time(instance: &Instance, ways: &Ways, stages: &[usize], room: u64) -> f64 {
    if room == 0 || room == u64::MAX {
        return 0.0;
    }
    let m = instance.microbatches;
    // From the beginning of its F to the beginning of its W, and the W itself, which a whole
    // backward may hide.
    let until_weight = |s: usize| ways.stay[s] + instance.least(Kind::Input, s);
    let weight = |s: usize| match instance.merges {
        true => 0.0,
        false => instance.least(Kind::Weight, s),
    };
    let early = |s: usize| match instance.merges {
        true => ways.stay[s],
        false => until_weight(s),
    };
    let byte_time = |&s: &usize| {
        let (all, kept) = (instance.activation[s] as f64, instance.kept[s] as f64);
        // Between I and W only what W needs is held; the I itself counts with the former.
        m as f64 * (all * early(s) + kept * weight(s))
    };
    let spread = stages.iter().map(byte_time).sum::<f64>() / room as f64;
    // One stage: so many at a time, and each lot stays as long.
    if let [s] = *stages
        && instance.activation[s] > 0
        && instance.kept[s] == instance.activation[s]
    {
        let places = (room / instance.activation[s]) as usize;
        if places > 0 {
            return spread.max(m.div_ceil(places) as f64 * (early(s) + weight(s)));
        }
    }
    spread
}

fn of_placement(instance: &Instance, placement: &[u16]) -> f64 {
    let ways = Ways::new(instance, |s| {
        let apart = placement
            .get(s + 1)
            .is_some_and(|&next| next != placement[s]);
        if apart { instance.transfer[s] } else { 0.0 }
    });
    let mut bound = ways.whole;
    for rank in 0..instance.ranks {
        let here: Vec<usize> = (0..instance.stages)
            .filter(|&s| usize::from(placement[s]) == rank)
            .collect();
        let resident: u64 = here.iter().map(|&s| instance.resident[s]).sum();
        let room = match instance.limit {
            u64::MAX => u64::MAX,
            // No plan at all fits there.
            limit if limit < resident => return f64::INFINITY,
            limit => limit - resident,
        };
        bound = bound.max(of_rank(instance, &ways, &here, room));
    }
    bound
}

fn of_any_placement(instance: &Instance) -> f64 {
    let ways = Ways::new(instance, |_| 0.0);
    let work: f64 = (0..instance.stages)
        .map(|s| instance.total(Kind::Forward, s) + instance.total_backward(s))
        .sum();
    let one = |s: usize| {
        let room = match instance.limit {
            u64::MAX => u64::MAX,
            limit => limit.saturating_sub(instance.resident[s]),
        };
        of_rank(instance, &ways, &[s], room)
    };
    let single = (0..instance.stages).map(one).fold(0.0, f64::max);
    single.max(work / instance.ranks as f64).max(ways.whole)
}
