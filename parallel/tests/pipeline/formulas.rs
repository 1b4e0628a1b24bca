//! What the papers promise, over all sizes and many costs.

use phalanx_parallel::pipeline::*;
use proptest::prelude::*;

/// F, I and W of one stage; whole numbers, so that sums are exact.
#[derive(Clone, Copy, Debug)]
struct Times {
    f: f64,
    i: f64,
    w: f64,
}

fn run(named: Named, ranks: usize, per_rank: usize, m: usize, t: Times) -> Option<Timeline> {
    let plan = named.schedule(ranks, per_rank, m).ok()?;
    validate(&plan, &Rules::default()).unwrap_or_else(|e| panic!("{named}: {e}"));
    let costs = Costs {
        stages: vec![StageCosts::new(t.f, t.i, t.w); plan.stages()],
    };
    Some(simulate(&plan, &costs, Transfers::Overlapped).expect("a valid plan runs"))
}

fn idle_is(time: &Timeline, expected: f64) -> Result<(), TestCaseError> {
    prop_assert!(
        time.idle.iter().all(|&idle| idle == expected),
        "{:?} != {expected}",
        time.idle
    );
    Ok(())
}

/// Idle time between a rank's first and last action.
fn internal_idle(time: &Timeline) -> Vec<f64> {
    let of = |spans: &Vec<Span>| {
        let busy: f64 = spans.iter().map(|s| s.end - s.start).sum();
        spans.last().map_or(0.0, |s| s.end) - spans.first().map_or(0.0, |s| s.start) - busy
    };
    time.ranks.iter().map(of).collect()
}

fn times() -> impl Strategy<Value = Times> {
    (1u8..=9, 1u8..=9, 1u8..=9).prop_map(|(f, i, w)| Times {
        f: f.into(),
        i: i.into(),
        w: w.into(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn gpipe_and_1f1b(p in 1usize..=16, m in 1usize..=64, t in times()) {
        let bubble = (p - 1) as f64 * (t.f + t.i + t.w);
        let gpipe = run(Named::Gpipe, p, 1, m, t).unwrap();
        idle_is(&gpipe, bubble)?;
        prop_assert_eq!(gpipe.peak_live, vec![m; p]);
        let one = run(Named::OneFOneB, p, 1, m, t).unwrap();
        idle_is(&one, bubble)?;
        let peak: Vec<usize> = (0..p).map(|r| (p - r).min(m)).collect();
        prop_assert_eq!(one.peak_live, peak);
    }

    #[test]
    fn interleaving_divides_the_bubble(
        p in 1usize..=16, v in 1usize..=4, m in 1usize..=64, t in times(),
    ) {
        // Per rank F is v·f, so a v-th of (p−1)(F+B) is (p−1)(f+b).
        let bubble = (p - 1) as f64 * (t.f + t.i + t.w);
        for named in [Named::Interleaved, Named::LoopedBfs] {
            let Some(time) = run(named, p, v, m, t) else {
                prop_assert_eq!(named, Named::Interleaved);
                prop_assert!(m % (m / p).max(1) != 0);
                continue;
            };
            if m >= p || v == 1 {
                idle_is(&time, bubble)?;
            } else {
                prop_assert!(time.idle.iter().all(|&idle| idle >= bubble));
            }
            if named == Named::LoopedBfs {
                prop_assert_eq!(&time.peak_live, &vec![v * m; p]);
            }
            if named == Named::Interleaved && m >= p && m % p == 0 {
                let peak = |r: usize| (p * (v - 1) + 2 * (p - r) - 1).min(v * m);
                prop_assert_eq!(time.peak_live, (0..p).map(peak).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn zero_bubble_h1(
        p in 1usize..=16, v in 1usize..=4, m in 1usize..=64, t in times(),
    ) {
        // The formula is for weight gradients that fit the gap which they are to fill.
        prop_assume!(t.w <= t.f && t.w <= t.i);
        let bubble = (p - 1) as f64 * (t.f + t.i - t.w);
        let h1 = run(Named::ZbH1, p, 1, m, t).unwrap();
        if m >= p {
            idle_is(&h1, bubble)?;
        }
        prop_assert!(h1.peak_live.iter().all(|&live| live <= p));
        match run(Named::Zb1p, p, v, m, t) {
            Some(time) => {
                if m % p == 0 {
                    prop_assert!(time.peak_live.iter().all(|&live| live <= p * v), "{:?}", time.peak_live);
                }
                if m >= p {
                    idle_is(&time, bubble)?;
                }
            }
            // As interleaving, of which it is a kind.
            None => prop_assert!(m % (m / p).max(1) != 0),
        }
    }

    #[test]
    fn zbv_never_waits_inside(p in 1usize..=16, m in 1usize..=64) {
        let time = run(Named::Zbv, p, 2, m, Times { f: 1.0, i: 1.0, w: 1.0 }).unwrap();
        if m >= 2 * p {
            prop_assert_eq!(internal_idle(&time), vec![0.0; p]);
            idle_is(&time, (p - 1) as f64)?;
        }
        prop_assert!(time.peak_live.iter().all(|&live| live <= 2 * p));
    }

    #[test]
    fn dualpipev_idles_as_little_as_zbv(p in 1usize..=16, m in 1usize..=64) {
        let t = Times { f: 1.0, i: 1.0, w: 1.0 };
        let Some(time) = run(Named::DualPipeV, p, 2, m, t) else {
            prop_assert!(m < 2 * p);
            return Ok(());
        };
        idle_is(&time, (p - 1) as f64)?;
        prop_assert_eq!(time.peak_live, vec![2 * p + 1; p]);
    }
}
