//! What the detector promises, in simulated worlds; and what it does in a few that are told one by one.

use super::simulator::{DEADLINE, END, LOOK, Rank, World};
use super::*;
use crate::backends::mpi::word::{Letter, Standing, Word};

/// How many there are of what a run is to show, so that it shows something.
#[derive(Default)]
struct Shown {
    failed: u32,
    went_on: u32,
    late: u32,
    without_rank_0: u32,
    stopped: u32,
    own: u32,
}

fn play(seed: u64, shown: &mut Shown) {
    let mut world = World::new(seed);
    world.run();
    let play = format!("seed {seed}");
    let live: Vec<&Rank> = world.ranks.iter().filter(|rank| !rank.is_dead).collect();
    let was_stopped = |rank: &Rank| rank.stopped.0 < rank.stopped.1;
    let errors: Vec<&Error> = live
        .iter()
        .filter_map(|r| Some(&r.failed.as_ref()?.0))
        .collect();
    if let Some(first) = errors.first() {
        shown.failed += 1;
        shown.without_rank_0 += u32::from(world.ranks[0].is_dead);
        for (at, rank) in world
            .ranks
            .iter()
            .enumerate()
            .filter(|(_, rank)| !rank.is_dead)
        {
            let Some((error, _)) = &rank.failed else {
                // Only the partial news of a dead rank may leave those out who wait for nobody.
                assert!(
                    rank.waits.is_none() && world.ranks.iter().any(|rank| rank.is_dead),
                    "AGREED: {play}: rank {at} heard nothing of {first}"
                );
                continue;
            };
            assert_eq!(error, *first, "AGREED: {play}, rank {at}");
        }
        match first {
            Error::RankReturned { rank, .. } => {
                assert!(!world.ranks[*rank].may_fail(), "OWN WORDS: {play}: {first}")
            }
            Error::RankFailed { .. } => shown.own += 1,
            _ => {}
        }
        if let Error::DeadlineExceeded { chain, .. } = first {
            shown.late += 1;
            for link in chain.iter().filter(|link| link.stands == Stands::Silent) {
                let rank = &world.ranks[link.rank];
                assert!(rank.is_dead || was_stopped(rank), "ALIVE: {play}: {first}");
            }
        }
    } else {
        shown.went_on += 1;
    }
    // Nobody waits for ever, and none for longer than promised whose process was not stopped.
    let look = DEADLINE.as_millis() as u64 / 16;
    let limit = DEADLINE.as_millis() as u64 + 2 * look + 2 * 160;
    let stops: u64 = world.ranks.iter().map(|r| r.stopped.1 - r.stopped.0).sum();
    shown.stopped += u32::from(stops > 0);
    for (at, rank) in world
        .ranks
        .iter()
        .enumerate()
        .filter(|(_, rank)| !rank.is_dead)
    {
        if let Some((_, since)) = &rank.waits {
            let until = rank.failed.as_ref().map_or(END, |(_, at)| *at);
            assert!(
                until - since <= limit + stops,
                "IN TIME: {play}: rank {at} waited from {since} to {until}"
            );
        }
    }
}

/// How many plays there are.
const SEEDS: u64 = 5000;

#[test]
fn all_live_ranks_end_alike_whatever_happens() {
    let mut shown = Shown::default();
    for seed in 0..SEEDS {
        play(seed, &mut shown);
    }
    let Shown {
        failed,
        went_on,
        late,
        without_rank_0,
        stopped,
        own,
    } = shown;
    let all = [failed, went_on, late, without_rank_0, stopped, own];
    assert!(all.iter().all(|&n| n > 20), "{all:?}");
}

fn detector(me: usize, size: usize, now: Instant) -> Detector {
    let mut detector = Detector::new(me, size, now);
    detector.begin(DEADLINE, |_| false);
    detector
}

fn failed(rank: usize) -> Error {
    Error::RankFailed {
        rank,
        message: "on purpose".into(),
    }
}

/// What belongs to an epoch stays with it.
#[test]
fn epochs_fail_by_themselves() {
    let now = Instant::now();
    let mut zero = detector(0, 2, now);
    zero.accuse(now, 0, &failed(0));
    zero.look(now);
    assert_eq!(zero.tell(now, 0), Some(failed(0)));
    zero.end(Ended::Failed(now));
    assert_eq!(zero.begin(DEADLINE, |epoch| epoch == 0), 1);
    assert_eq!((zero.tell(now, 1), zero.accuses(1)), (None, false));
    assert_eq!(zero.tell(now, 0), Some(failed(0)), "a handle of it is left");
    // The other one has not heard of it yet, and speaks of it still.
    zero.letters();
    let word = Word::Accusation(failed(1));
    zero.receive(now, 1, 0, word, || Standing::RUNS);
    let letter = Letter {
        to: 1,
        epoch: 0,
        word: Word::Verdict(failed(0)),
    };
    assert_eq!(zero.letters(), [letter]);
    assert!(zero.tell(now, 1).is_none());
    // And it is ahead of this one.
    let word = Word::Verdict(failed(1));
    zero.receive(now, 1, 2, word, || Standing::RUNS);
    assert!(zero.tell(now, 1).is_none());
    zero.end(Ended::Well);
    assert_eq!(zero.begin(DEADLINE, |_| false), 2);
    assert_eq!(zero.tell(now, 2), Some(failed(1)));
}

/// Rank 0 has died while it told its verdict. Who knows it tells those who ask, and they tell all.
#[test]
fn a_verdict_of_the_dead_is_handed_on() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let mut two = detector(2, 4, start);
    two.accuse(start, 0, &failed(2));
    for ms in (0..90).step_by(10) {
        two.look(at(ms));
    }
    let asked = two.letters();
    let is_question = |to| move |l: &Letter| l.to == to && matches!(l.word, Word::Ask(_));
    assert!(
        (0..4).all(|to| to == 2 || asked.iter().any(is_question(to))),
        "{asked:?}"
    );
    let verdict = Word::Verdict(failed(0));
    two.receive(at(90), 3, 0, verdict.clone(), || Standing::RUNS);
    assert_eq!(two.tell(at(90), 0), Some(failed(0)));
    let told: Vec<usize> = two
        .letters()
        .iter()
        .filter(|l| l.word == verdict)
        .map(|l| l.to)
        .collect();
    assert_eq!(told, [0, 1]);
}

/// Two that were stopped together, and that wait for a verdict of the dead, do not both give theirs when they go on: each
/// asks again first.
#[test]
fn who_was_stopped_asks_again() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let mut two = detector(2, 3, start);
    two.accuse(start, 0, &failed(2));
    for ms in (0..100).step_by(10) {
        two.look(at(ms));
    }
    two.letters();
    for ms in (1000..1070).step_by(10) {
        two.look(at(ms));
        assert!(two.fault(0).is_none());
    }
    let questions = two.letters();
    assert!(
        questions.iter().all(|l| matches!(l.word, Word::Ask(_))) && questions.len() >= 2,
        "{questions:?}"
    );
    for ms in (1070..1100).step_by(10) {
        two.look(at(ms));
    }
    assert_eq!(two.tell(at(1100), 0), Some(failed(2)));
}

/// A process that ends while it waits for a verdict says farewell behind it; one that waits for nothing, at once.
#[test]
fn a_farewell_comes_behind_the_verdict() {
    let now = Instant::now();
    let mut one = detector(1, 3, now);
    let farewells =
        |letters: Vec<Letter>| letters.iter().filter(|l| l.word == Word::Farewell).count();
    one.accuse(now, 0, &failed(1));
    one.bid_farewell();
    assert_eq!(
        (farewells(one.letters()), one.has_said_farewell()),
        (0, false)
    );
    one.receive(now, 0, 0, Word::Verdict(failed(2)), || Standing::RUNS);
    assert_eq!(
        (farewells(one.letters()), one.has_said_farewell()),
        (2, true)
    );
    one.bid_farewell();
    assert_eq!(farewells(one.letters()), 0, "once");
    let mut two = detector(2, 3, now);
    two.bid_farewell();
    assert_eq!(
        (farewells(two.letters()), two.has_said_farewell()),
        (2, true)
    );
}

/// A thousand programs leave no trace.
#[test]
fn epochs_are_forgotten() {
    let now = Instant::now();
    let mut zero = detector(0, 2, now);
    for epoch in 0..1000 {
        assert_eq!(zero.begin(DEADLINE, |_| false), epoch);
        if epoch % 3 == 0 {
            zero.accuse(now, epoch, &failed(0));
            zero.look(now);
        }
        zero.end(Ended::Well);
        zero.receive(now, 1, epoch, Word::Departed, || Standing::RUNS);
        zero.letters();
    }
    assert!(zero.epochs() <= 2, "{}", zero.epochs());
}

/// Two ranks, each of which waits for the other, in calls of one thread: seen before the deadline. Where one of them may
/// be freed by another of its threads, it is not.
#[test]
fn a_circle_is_seen_in_half_of_the_deadline() {
    let start = Instant::now();
    let waits = |missing: usize, is_fixed| Standing {
        stands: Stands::Waits {
            call: "recv".into(),
            group: "world".into(),
            sequence: 0,
            missing: vec![missing],
        },
        is_fixed,
    };
    for is_fixed in [true, false] {
        let mut zero = detector(0, 2, start);
        let mut watch = Watch::start(start, DEADLINE, 0);
        let (mut found, mut ms) = (Finding::Nothing, 0);
        while found == Finding::Nothing {
            ms += LOOK;
            let now = start + Duration::from_millis(ms);
            found = watch.look(now, 0, 0, &mut zero, || waits(1, true));
            for letter in zero.letters() {
                if let Word::Ask(round) = letter.word {
                    let answer = Word::Answer(round, waits(0, is_fixed));
                    zero.receive(now, 1, 0, answer, || Standing::RUNS);
                }
            }
        }
        match (is_fixed, found) {
            (true, Finding::Deadlock(chain)) => {
                assert_eq!(chain.len(), 2);
                assert!(ms < 1000, "{ms} ms");
            }
            (false, Finding::Late(_)) => assert!((1600..1700).contains(&ms), "{ms} ms"),
            (_, found) => panic!("{found:?}"),
        }
    }
}

/// Data that moves begins the wait anew; a process that was stopped asks, and gives the others time to answer.
#[test]
fn a_wait_counts_looks_since_its_own_data_moved() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let own = || Standing::RUNS;
    let mut zero = detector(0, 2, start);
    let mut watch = Watch::start(start, DEADLINE, 0);
    for ms in 1..1500 {
        assert_eq!(watch.look(at(ms), 0, 0, &mut zero, own), Finding::Nothing);
    }
    assert_eq!(zero.letters().len(), 1, "asked once");
    watch.look(at(1500), 1, 0, &mut zero, own);
    for ms in 1500..3000 {
        assert_eq!(watch.look(at(ms), 1, 0, &mut zero, own), Finding::Nothing);
    }
    // Stopped for a minute: that is one look.
    let mut watch = Watch::start(start, DEADLINE, 0);
    zero.letters();
    assert_eq!(
        watch.look(at(60_000), 0, 0, &mut zero, own),
        Finding::Nothing
    );
    assert!(zero.letters().is_empty());
}
