//! The best plan of small cases, by dynamic programming over sets of done actions.
//!
//! Plans are grown action by action, each begun as soon as its rank and its inputs are ready; so
//! every order of every rank is reached, on every placement. Of two ways to have done the same set
//! of actions, one that leaves every rank, link and result no later makes the other superfluous.
//! Where all microbatches cost the same, only orders are looked at in which each stage takes them
//! in turn: any plan can be relabelled so without moving an action in time.

use std::collections::HashMap;
use std::time::Instant;

use super::super::Kind;
use super::Action;
use super::bound::placements;
use super::instance::{Instance, Plan};

/// More ways than this in all are too many; so are more than so many actions.
const WAYS: usize = 200_000;
const ACTIONS: usize = 96;

/// One way to have done a set of actions.
struct Way {
    /// When each rank, each link, and each result that is still awaited is ready.
    ready: Box<[f64]>,
    /// The way without the last action, in the layer before it, and that action.
    parent: usize,
    last: Action,
}

/// The best plan, if it is shorter than `incumbent`; the outer `None` if the case is too large.
pub(super) fn solve(
    instance: &Instance,
    incumbent: f64,
    steps: u64,
    until: Instant,
) -> Option<Option<Plan>> {
    if 3 * instance.stages * instance.microbatches > ACTIONS {
        return None;
    }
    let mut best = incumbent;
    let mut plan = None;
    let mut ways = 0;
    let limit = usize::try_from(steps).unwrap_or(usize::MAX).min(WAYS);
    let mut whole = true;
    placements(instance.stages, instance.ranks, &mut |placement| {
        let mut table = Table {
            instance,
            placement,
            until,
            best,
            ways,
            limit,
        };
        match table.run() {
            Some(Some((makespan, found))) => {
                best = makespan;
                plan = Some(found);
            }
            Some(None) => {}
            None => whole = false,
        }
        ways = table.ways;
        whole
    });
    whole.then_some(plan)
}

struct Table<'a> {
    instance: &'a Instance,
    placement: &'a [u16],
    until: Instant,
    best: f64,
    ways: usize,
    limit: usize,
}

impl Table<'_> {
    fn bit(&self, kind: Kind, stage: usize, mb: usize) -> u128 {
        let k = match kind {
            Kind::Forward => 0,
            Kind::Input => 1,
            _ => 2,
        };
        1 << ((k * self.instance.stages + stage) * self.instance.microbatches + mb)
    }

    /// Where in a way stands when a stage's result is at its reader's: output (0) or gradient (1).
    fn slot(&self, direction: usize, stage: usize, mb: usize) -> usize {
        let (n, m) = (self.instance.stages, self.instance.microbatches);
        self.instance.ranks + 2 * n + (direction * n + stage) * m + mb
    }

    /// The bits that `kind` sets.
    fn sets(&self, kind: Kind, stage: usize, mb: usize) -> u128 {
        match kind {
            Kind::Backward => self.bit(Kind::Input, stage, mb) | self.bit(Kind::Weight, stage, mb),
            _ => self.bit(kind, stage, mb),
        }
    }

    /// Whether an action may come next after the set `done`.
    fn open(&self, done: u128, kind: Kind, stage: usize, mb: usize) -> bool {
        let has = |kind, stage, mb| done & self.bit(kind, stage, mb) != 0;
        let fresh = done & self.sets(kind, stage, mb) == 0;
        let fed = match kind {
            Kind::Forward => stage == 0 || has(Kind::Forward, stage - 1, mb),
            Kind::Weight => has(Kind::Input, stage, mb),
            _ => {
                has(Kind::Forward, stage, mb)
                    && (stage + 1 == self.instance.stages || has(Kind::Input, stage + 1, mb))
            }
        };
        let turn = !self.instance.uniform
            || mb == 0
            || match kind {
                // A whole backward may overtake a W that waits, but no input gradient.
                Kind::Backward => has(Kind::Input, stage, mb - 1),
                kind => has(kind, stage, mb - 1),
            };
        fresh && fed && turn
    }

    fn held(&self, done: u128, rank: usize) -> i64 {
        let instance = self.instance;
        let mut held = 0;
        for s in (0..instance.stages).filter(|&s| usize::from(self.placement[s]) == rank) {
            for mb in 0..instance.microbatches {
                let has = |kind| done & self.bit(kind, s, mb) != 0;
                for kind in [Kind::Forward, Kind::Input, Kind::Weight] {
                    if has(kind) {
                        held += instance.held(kind, s);
                    }
                }
            }
        }
        held
    }

    /// `None` if there is not room or time enough; `Some(None)` if nothing beats the best so far.
    fn run(&mut self) -> Option<Option<(f64, Plan)>> {
        let instance = self.instance;
        let (n, m, p) = (instance.stages, instance.microbatches, instance.ranks);
        let room: Vec<i64> = (0..p)
            .map(|r| {
                let free = instance
                    .limit
                    .saturating_sub(instance.resident_of(self.placement, r));
                i64::try_from(free).unwrap_or(i64::MAX)
            })
            .collect();
        if (0..p).any(|r| instance.resident_of(self.placement, r) > instance.limit) {
            return Some(None);
        }
        let mut kinds = vec![Kind::Forward, Kind::Input, Kind::Weight];
        if instance.merges {
            kinds.push(Kind::Backward);
        }
        let total = 3 * n * m;
        // All ways ever kept, and for each number of done actions the sets with their ways.
        let mut all = vec![Way {
            ready: vec![0.0; p + 2 * n + 2 * n * m].into(),
            parent: usize::MAX,
            last: Action::compute(Kind::Forward, 0, 0),
        }];
        let mut layers: Vec<HashMap<u128, Vec<usize>>> = vec![HashMap::new(); total + 1];
        layers[0].insert(0, vec![0]);
        for layer in 0..total {
            for (done, ways) in std::mem::take(&mut layers[layer]) {
                if Instant::now() > self.until {
                    return None;
                }
                for s in 0..n {
                    let rank = usize::from(self.placement[s]);
                    let held = self.held(done, rank);
                    for (&kind, mb) in kinds.iter().flat_map(|k| (0..m).map(move |mb| (k, mb))) {
                        let fits = held + instance.held(kind, s) <= room[rank];
                        if !self.open(done, kind, s, mb) || !fits {
                            continue;
                        }
                        let then = done | self.sets(kind, s, mb);
                        let next = then.count_ones() as usize;
                        for &way in &ways {
                            let Some(ready) = self.after(&all[way].ready, then, kind, s, mb) else {
                                continue;
                            };
                            let rivals = layers[next].entry(then).or_default();
                            let no_later =
                                |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| a <= b);
                            if rivals.iter().any(|&w| no_later(&all[w].ready, &ready)) {
                                continue;
                            }
                            rivals.retain(|&w| !no_later(&ready, &all[w].ready));
                            rivals.push(all.len());
                            let last = Action::compute(kind, s as u16, mb as u16);
                            all.push(Way {
                                ready,
                                parent: way,
                                last,
                            });
                            self.ways += 1;
                            if self.ways > self.limit {
                                return None;
                            }
                        }
                    }
                }
            }
        }
        let makespan = |way: &Way| way.ready[..p].iter().fold(0.0, |a: f64, &b| a.max(b));
        let ends = layers[total].values().flatten().copied();
        let Some(mut way) = ends.min_by(|&a, &b| makespan(&all[a]).total_cmp(&makespan(&all[b])))
        else {
            return Some(None);
        };
        let time = makespan(&all[way]);
        let mut lists = vec![Vec::new(); p];
        while all[way].parent != usize::MAX {
            let action = all[way].last;
            lists[usize::from(self.placement[action.stage()])].push(action);
            way = all[way].parent;
        }
        lists.iter_mut().for_each(|list| list.reverse());
        Some(Some((
            time,
            Plan {
                placement: self.placement.to_vec(),
                lists,
            },
        )))
    }

    /// The way after one more action; `None` if it cannot become better than the best so far.
    fn after(
        &self,
        ready: &[f64],
        then: u128,
        kind: Kind,
        stage: usize,
        mb: usize,
    ) -> Option<Box<[f64]>> {
        let instance = self.instance;
        let (n, p) = (instance.stages, instance.ranks);
        let rank = usize::from(self.placement[stage]);
        let mut out: Box<[f64]> = ready.into();
        let mut start = ready[rank];
        // What is taken here is awaited no more.
        match kind {
            Kind::Forward if stage > 0 => {
                let slot = self.slot(0, stage - 1, mb);
                start = start.max(std::mem::take(&mut out[slot]));
            }
            Kind::Input | Kind::Backward if stage + 1 < n => {
                let slot = self.slot(1, stage + 1, mb);
                start = start.max(std::mem::take(&mut out[slot]));
            }
            _ => {}
        }
        let end = start + instance.time(kind, stage, mb);
        out[rank] = end;
        let target = match kind {
            Kind::Forward if stage + 1 < n => Some((0, stage + 1, stage)),
            Kind::Input | Kind::Backward if stage > 0 => Some((1, stage - 1, stage - 1)),
            _ => None,
        };
        if let Some((direction, to, edge)) = target {
            let apart = usize::from(self.placement[to]) != rank;
            let mut there = end;
            if apart && instance.transfer[edge] > 0.0 {
                // Edges between the same two ranks share a link: the first of them stands for it.
                let link = self.link(direction, edge);
                there = out[link].max(end) + instance.transfer[edge];
                out[link] = there;
            }
            out[self.slot(direction, stage, mb)] = there;
        }
        let late = (0..p).any(|r| out[r] + self.left(then, r) >= self.best * (1.0 - 1e-12));
        (!late).then_some(out)
    }

    /// Where in a way stands when the link of an edge is free.
    fn link(&self, direction: usize, edge: usize) -> usize {
        let ends = |edge: usize, direction: usize| {
            let (a, b) = (self.placement[edge], self.placement[edge + 1]);
            if direction == 0 { (a, b) } else { (b, a) }
        };
        let n = self.instance.stages;
        let wanted = ends(edge, direction);
        let same = |&k: &usize| ends(k % (n - 1), k / (n - 1)) == wanted;
        let first = (0..2 * (n - 1))
            .find(same)
            .unwrap_or(direction * (n - 1) + edge);
        self.instance.ranks + first
    }

    /// The work that a rank still has.
    fn left(&self, done: u128, rank: usize) -> f64 {
        let instance = self.instance;
        let mut left = 0.0;
        for s in (0..instance.stages).filter(|&s| usize::from(self.placement[s]) == rank) {
            for mb in 0..instance.microbatches {
                let open = |kind| done & self.bit(kind, s, mb) == 0;
                if open(Kind::Forward) {
                    left += instance.time(Kind::Forward, s, mb);
                }
                let split = [Kind::Input, Kind::Weight]
                    .into_iter()
                    .filter(|&k| open(k))
                    .map(|k| instance.time(k, s, mb))
                    .sum::<f64>();
                left += match open(Kind::Input) {
                    true => split.min(instance.time(Kind::Backward, s, mb)),
                    false => split,
                };
            }
        }
        left
    }
}
