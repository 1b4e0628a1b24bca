//! [`Tags`]: which tags of bulk data are taken. Pure: nothing is sent here.
//!
//! The rank that receives chooses the tags, and tells the sender with its header. So it knows when a tag is free: when
//! all data that came under it has been received, of which MPI has nothing left then.

use std::collections::VecDeque;
use std::ops::Range;

/// The tags of bulk data that one other rank sends to this one: numbers below a bound.
pub(super) struct Tags {
    bound: u32,
    /// Where to look next: behind the last range that was given out. No range that is taken has it inside.
    next: u32,
    /// What is taken, in order. Ranges of operations that were given up stay for ever: their data may still come.
    taken: VecDeque<Range<u32>>,
}

impl Tags {
    pub(super) fn new(bound: u32) -> Tags {
        Tags {
            bound,
            next: 0,
            taken: VecDeque::new(),
        }
    }

    /// The first of `count` tags that nobody has from now on until [`give_back`](Tags::give_back); `None` where no such
    /// range is free.
    pub(super) fn take(&mut self, count: u32) -> Option<u32> {
        if count == 0 {
            return Some(0);
        }
        // On the usual way nothing lies between the last range and the bound.
        let (first, at) = self
            .free(self.next, count)
            .or_else(|| self.free(0, count))?;
        self.taken.insert(at, first..first + count);
        self.next = first + count;
        Some(first)
    }

    /// The first free range from `start` on, which lies in no range that is taken, and its place among those.
    fn free(&self, start: u32, count: u32) -> Option<(u32, usize)> {
        let mut at = match self.taken.back() {
            Some(last) if last.end > start => self.taken.partition_point(|r| r.start < start),
            _ => self.taken.len(),
        };
        let mut first = start;
        while let Some(range) = self.taken.get(at)
            && range.start - first < count
        {
            first = range.end;
            at += 1;
        }
        (count <= self.bound.saturating_sub(first)).then_some((first, at))
    }

    /// All data of the `count` tags from `first` on has come, or none was asked for.
    pub(super) fn give_back(&mut self, first: u32, count: u32) {
        if count > 0
            && let Ok(at) = self.taken.binary_search_by_key(&first, |range| range.start)
        {
            self.taken.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes it, and looks that nobody else has it.
    fn take(tags: &mut Tags, held: &mut Vec<Range<u32>>, count: u32) -> Option<u32> {
        let first = tags.take(count)?;
        let range = first..first + count;
        assert!(range.end <= tags.bound, "{range:?}");
        let overlaps = |other: &&Range<u32>| other.start < range.end && range.start < other.end;
        assert_eq!(held.iter().find(overlaps), None, "{range:?}");
        held.push(range);
        Some(first)
    }

    #[test]
    fn a_range_follows_the_last_one() {
        let mut tags = Tags::new(100);
        assert_eq!(tags.take(10), Some(0));
        tags.give_back(0, 10);
        assert_eq!(tags.take(3), Some(10));
        assert_eq!(tags.take(0), Some(0));
        assert_eq!(tags.take(87), Some(13));
        // None is left behind it, and before it as many.
        assert_eq!(tags.take(11), None);
        assert_eq!(tags.take(10), Some(0));
        assert_eq!(tags.take(1), None);
    }

    /// The least bound that MPI promises, and the longest calls: three fit, and the fourth has to wait for one of them.
    #[test]
    fn who_is_in_flight_keeps_its_tags_when_they_begin_anew() {
        let (mut tags, mut held) = (Tags::new(32_767), Vec::new());
        let firsts = [8192; 3].map(|count| take(&mut tags, &mut held, count));
        assert_eq!(firsts, [Some(0), Some(8192), Some(16_384)]);
        assert_eq!(take(&mut tags, &mut held, 8192), None);
        assert_eq!(take(&mut tags, &mut held, 8191), Some(24_576));
        tags.give_back(8192, 8192);
        held.remove(1);
        assert_eq!(take(&mut tags, &mut held, 8192), Some(8192));
        assert_eq!(take(&mut tags, &mut held, 1), None);
    }

    /// More than there are, whatever is free.
    #[test]
    fn no_range_is_longer_than_the_bound() {
        let mut tags = Tags::new(7);
        assert_eq!(tags.take(8), None);
        assert_eq!(tags.take(u32::MAX), None);
        assert_eq!(tags.take(7), Some(0));
    }

    /// What a failure has left is never given back: round after round goes past it.
    #[test]
    fn what_was_given_up_is_gone_for_ever() {
        let mut tags = Tags::new(64);
        tags.take(20);
        tags.give_back(0, 20);
        let mut lost: Vec<_> = tags
            .take(8)
            .map(|first| first..first + 8)
            .into_iter()
            .collect();
        for round in 0..200 {
            let mut held = lost.clone();
            let first = take(&mut tags, &mut held, 9);
            // A second failure, after the tags have begun anew.
            match round {
                100 => lost = held,
                _ => tags.give_back(first.expect("there is room"), 9),
            }
        }
        assert_eq!(tags.taken.len(), lost.len());
    }

    /// Calls that come and go in any order: none has a tag of another one.
    #[test]
    fn nobody_shares_a_tag() {
        let (mut tags, mut held) = (Tags::new(300), Vec::new());
        let (mut seed, mut refused) = (1_u64, 0);
        let mut below = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % n
        };
        for _ in 0..20_000 {
            if below(2) == 0 && !held.is_empty() {
                let gone: Range<u32> = held.swap_remove(below(held.len() as u64) as usize);
                tags.give_back(gone.start, gone.end - gone.start);
            } else if take(&mut tags, &mut held, 1 + below(40) as u32).is_none() {
                refused += 1;
            }
            assert_eq!(tags.taken.len(), held.len());
        }
        assert!(refused > 0);
    }
}
