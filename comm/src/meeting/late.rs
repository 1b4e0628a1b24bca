//! Who is late, and what that one waits for, across groups: chains of waits, circles among them, and the clock by
//! which a wait is too long.

use crate::error::{Link, Stands};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Where the first of the `missing` ranks stands, then whom that one waits for, and so on: until a rank that does not
/// wait, or one that has been there before.
pub(crate) fn chain(missing: &[usize], stands: impl Fn(usize) -> Stands) -> Vec<Link> {
    let mut chain: Vec<Link> = Vec::new();
    let mut next = missing.first().copied();
    while let Some(rank) = next {
        if chain.iter().any(|link| link.rank == rank) {
            break;
        }
        let stands = stands(rank);
        next = match &stands {
            // Rather one that has not been there: the chain says more then.
            Stands::Waits { missing, .. } => {
                let is_new = |r: &&usize| chain.iter().all(|link| link.rank != **r);
                missing.iter().find(is_new).or(missing.first()).copied()
            }
            _ => None,
        };
        chain.push(Link { rank, stands });
    }
    chain
}

/// A circle of ranks of which each waits for the next, and the last for the first; begun at its lowest rank, so that
/// all who find it say the same. `stands` holds the world's ranks in order. A rank that waits for several waits for
/// each of them.
pub(crate) fn circle(stands: &[Stands]) -> Option<Vec<Link>> {
    let waits_for = |rank: usize| match stands.get(rank) {
        Some(Stands::Waits { missing, .. }) => &missing[..],
        _ => &[],
    };
    // From each rank that may begin a circle as its lowest, through higher ones alone.
    for lowest in 0..stands.len() {
        let mut path = vec![(lowest, 0)];
        let mut seen = BTreeSet::from([lowest]);
        while let Some((rank, tried)) = path.last_mut() {
            match waits_for(*rank).get(*tried) {
                None => drop(path.pop()),
                Some(&next) => {
                    *tried += 1;
                    if next == lowest {
                        let link = |&(rank, _): &(usize, usize)| Link {
                            rank,
                            stands: stands[rank].clone(),
                        };
                        return Some(path.iter().map(link).collect());
                    }
                    if next > lowest && seen.insert(next) {
                        path.push((next, 0));
                    }
                }
            }
        }
    }
    None
}

/// How long a rank waits, by the looks that it takes: a rank that was stopped, or had no core, has not looked, and
/// that is no time in which others were late.
#[derive(Debug)]
pub(crate) struct Clock {
    last: Instant,
    waited: Duration,
    deadline: Duration,
}

/// A look counts for at most this part of the deadline: so no wait ends with less than so many looks.
const LOOKS: u32 = 16;

impl Clock {
    pub(crate) fn start(now: Instant, deadline: Duration) -> Clock {
        Clock {
            last: now,
            waited: Duration::ZERO,
            deadline,
        }
    }

    /// A look, at this time. Returns how long the rank has waited.
    pub(crate) fn look(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.last);
        self.last = now;
        self.waited += passed.min(self.deadline / LOOKS);
        self.waited
    }

    /// Something has come: the wait begins again.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.last = now;
        self.waited = Duration::ZERO;
    }

    /// The longest pause until the next look, so that all time counts.
    pub(crate) fn pause(&self) -> Duration {
        let left = self.deadline.saturating_sub(self.waited);
        left.min(self.deadline / (2 * LOOKS))
    }

    /// Whether the deadline has passed.
    pub(crate) fn is_over(&self) -> bool {
        self.waited >= self.deadline
    }
}

/// How long ranks that differ are left alone until the rest of the group has come, so that the verdict knows what most
/// have called: no more than a second.
pub(crate) fn grace(deadline: Duration) -> Duration {
    (deadline / 10).min(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn waits(missing: &[usize]) -> Stands {
        Stands::Waits {
            call: "barrier".into(),
            group: "world".into(),
            sequence: 3,
            missing: missing.to_vec(),
        }
    }

    fn ranks(chain: &[Link]) -> Vec<usize> {
        chain.iter().map(|link| link.rank).collect()
    }

    #[test]
    fn a_chain_is_followed_to_its_end() {
        let all = [waits(&[1]), waits(&[2, 3]), Stands::RUNS, waits(&[0])];
        let found = chain(&[1], |rank| all[rank].clone());
        assert_eq!(ranks(&found), [1, 2]);
        assert_eq!(found[1].stands, Stands::RUNS);
        // Round a circle, once.
        assert_eq!(ranks(&chain(&[3], |rank| all[rank].clone())), [3, 0, 1, 2]);
        let two = [waits(&[1]), waits(&[0])];
        assert_eq!(ranks(&chain(&[1], |rank| two[rank].clone())), [1, 0]);
        assert!(chain(&[], |_| Stands::RUNS).is_empty());
    }

    #[test]
    fn a_circle_is_found_from_its_lowest_rank() {
        assert_eq!(circle(&[waits(&[1]), Stands::RUNS, waits(&[0])]), None);
        let all = [
            waits(&[1]),
            waits(&[4, 3]),
            waits(&[1]),
            waits(&[1]),
            Stands::RUNS,
        ];
        assert_eq!(ranks(&circle(&all).unwrap()), [1, 3]);
        let alone = [Stands::Ended, waits(&[1])];
        assert_eq!(ranks(&circle(&alone).unwrap()), [1]);
        let long: Vec<Stands> = (0..256).map(|rank| waits(&[(rank + 1) % 256])).collect();
        assert_eq!(circle(&long).unwrap().len(), 256);
    }

    /// A circle of the exhaustive search is a circle, and none is missed: all graphs of three ranks.
    #[test]
    fn circles_are_found_where_there_are_any() {
        for code in 0..1_usize << 9 {
            let edge = |a: usize, b: usize| code >> (3 * a + b) & 1 == 1;
            let of = |a: usize| {
                let missing: Vec<usize> = (0..3).filter(|&b| edge(a, b)).collect();
                match missing.is_empty() {
                    true => Stands::RUNS,
                    false => waits(&missing),
                }
            };
            let all = [of(0), of(1), of(2)];
            // Whoever reaches itself in up to three steps.
            let two = |a: usize, c: usize| (0..3).any(|b| edge(a, b) && edge(b, c));
            let three = |a: usize| (0..3).any(|c| two(a, c) && edge(c, a));
            let is_there = (0..3).any(|a| edge(a, a) || two(a, a) || three(a));
            let found = circle(&all);
            assert_eq!(found.is_some(), is_there, "{all:?}");
            if let Some(found) = found {
                let found = ranks(&found);
                for (at, &rank) in found.iter().enumerate() {
                    assert!(edge(rank, found[(at + 1) % found.len()]), "{all:?}");
                }
            }
        }
    }

    #[test]
    fn errors_follow_the_chain() {
        let error = Error::DeadlineExceeded {
            group: "world/0:0".into(),
            sequence: 0,
            rank: 1,
            call: "all_reduce(sum) of f32 [3]".into(),
            missing: vec![0],
            deadline: Duration::from_secs(2),
            note: String::new(),
            chain: chain(&[0], |rank| [waits(&[1, 2]), Stands::RUNS][rank].clone()),
        };
        assert_eq!(
            error.to_string(),
            "rank 1 waited 2s in all_reduce(sum) of f32 [3] (number 0 of group world/0:0) for rank 0, which waits in \
             barrier (number 3 of group world) for ranks 1, 2; rank 1 waits in no call"
        );
        let says = Stands::Runs {
            activity: "2F5".into(),
        };
        assert_eq!(says.to_string(), "waits in no call, but is in 2F5");
        let error = Error::Deadlock {
            chain: circle(&[waits(&[1]), waits(&[0])]).unwrap(),
        };
        assert_eq!(
            error.to_string(),
            "ranks 0, 1 wait for each other: rank 0 waits in barrier (number 3 of group world) for rank 1, which waits \
             in barrier (number 3 of group world) for rank 0"
        );
    }

    #[test]
    fn time_without_looks_does_not_count() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut clock = Clock::start(start, Duration::from_millis(1600));
        assert_eq!(clock.look(at(100)), Duration::from_millis(100));
        // Stopped for a minute.
        assert_eq!(clock.look(at(60_100)), Duration::from_millis(200));
        assert!(!clock.is_over() && clock.pause() <= Duration::from_millis(50));
        for look in 1..=14 {
            clock.look(at(60_100 + 100 * look));
        }
        assert!(clock.is_over());
        clock.restart(at(70_000));
        assert!(!clock.is_over());
        let mut brief = Clock::start(start, Duration::ZERO);
        brief.look(start);
        assert!(brief.is_over());
    }
}
