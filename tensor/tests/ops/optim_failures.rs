//! Optimizer steps that fail: they change nothing.

use crate::util::*;
use phalanx_tensor::ops::optim::{
    AdamConfig, AdamState, Part, SgdConfig, adam_step, adam_steps, scale, sgd_step, sgd_steps,
};
use phalanx_tensor::{DType, Error, Tensor};

/// A step or a scaling that runs out of memory at its last tensor.
#[test]
fn what_fails_changes_nothing_and_can_be_repeated() {
    let small = |v: f64| tensor_of(&[v, -v], &[2], DType::F32);
    // A view of a single element, of which no memory holds a copy.
    let huge = |v: f64| {
        small(v)
            .select(0, 0)
            .unwrap()
            .broadcast_to([1usize << 55])
            .unwrap()
    };
    let sgd = &SgdConfig {
        lr: 0.1,
        momentum: 0.5,
        ..SgdConfig::default()
    };
    let plain = &SgdConfig {
        momentum: 0.0,
        ..*sgd
    };
    let adam = &AdamConfig::adamw();
    let good = [small(1.0), small(2.0)];
    for warm in [false, true] {
        let (mut p, mut m, mut s) = ([small(5.0), small(6.0)], [None, None], [None, None]);
        if warm {
            sgd_step(&mut p, &good, &mut m, sgd).unwrap();
            adam_step(&mut p, &good, &mut s, adam).unwrap();
        }
        let state = |m: &[Option<Tensor>; 2], s: &[Option<AdamState>; 2]| {
            let m = m.each_ref().map(|m| m.as_ref().map(values));
            let s = s.each_ref().map(|s| {
                let s = s.as_ref()?;
                Some((values(&s.exp_avg), values(&s.exp_avg_sq), s.step))
            });
            (m, s)
        };
        let before = (p.each_ref().map(values), state(&m, &s));
        let mut last = [p[0].clone(), huge(1.0)];
        let wrong = [small(1.0), huge(1.0)];
        let failed = [
            sgd_step(&mut last, &wrong, &mut [None, None], plain),
            sgd_step(&mut last, &wrong, &mut [m[0].clone(), None], sgd),
            adam_step(&mut last, &wrong, &mut [s[0].clone(), None], adam),
            scale(&mut last, 0.5),
        ];
        for e in failed {
            assert!(matches!(e, Err(Error::OutOfMemory { .. })), "{e:?}");
        }
        assert_eq!(values(&last[0]), before.0[0]);
        // The states of the parameters before the one that fails, too.
        let mut last = [p[0].clone(), huge(1.0)];
        let (mut m2, mut s2) = ([m[0].clone(), None], [s[0].clone(), None]);
        let was = state(&m2, &s2);
        sgd_step(&mut last, &wrong, &mut m2, sgd).unwrap_err();
        adam_step(&mut last, &wrong, &mut s2, adam).unwrap_err();
        assert_eq!(state(&m2, &s2), was);
        // And a gradient that does not fit.
        let misfit = [small(1.0), tensor_of(&[1.0], &[1], DType::F32)];
        sgd_step(&mut p, &misfit, &mut m, sgd).unwrap_err();
        adam_step(&mut p, &misfit, &mut s, adam).unwrap_err();
        assert_eq!((p.each_ref().map(values), state(&m, &s)), before);
        // Once more, with what fits: as if nothing had failed.
        let (mut q, mut qm, mut qs) = (p.clone(), m.clone(), s.clone());
        m[0] = m2[0].take();
        s[0] = s2[0].take();
        for (p, m, s) in [(&mut p, &mut m, &mut s), (&mut q, &mut qm, &mut qs)] {
            sgd_step(p, &good, m, sgd).unwrap();
            adam_step(p, &good, s, adam).unwrap();
        }
        assert_eq!(p.each_ref().map(values), q.each_ref().map(values));
        assert_eq!(state(&m, &s), state(&qm, &qs));
    }
}

#[test]
fn parts_step_with_their_own_numbers_or_not_at_all() {
    let t = |n: usize| Tensor::ones([n], DType::F32, device()).unwrap();
    let rates = [0.5, 0.25];
    let run = |sizes: [usize; 2]| {
        let mut p = [[t(2)], [t(3)]];
        let grads = sizes.map(|n| [t(n)]);
        let (mut m, mut s) = ([[None], [None]], [[None], [None]]);
        let [p0, p1] = &mut p;
        let [m0, m1] = &mut m;
        let mut parts = [(p0, &grads[0], m0, rates[0]), (p1, &grads[1], m1, rates[1])].map(
            |(params, grads, states, lr)| {
                Part::new(
                    params,
                    grads,
                    states,
                    SgdConfig {
                        lr,
                        momentum: 0.5,
                        ..SgdConfig::default()
                    },
                )
            },
        );
        let sgd = sgd_steps(&mut parts).is_ok();
        let [p0, p1] = &mut p;
        let [s0, s1] = &mut s;
        let mut parts = [(p0, &grads[0], s0, rates[0]), (p1, &grads[1], s1, rates[1])].map(
            |(params, grads, states, lr)| {
                Part::new(
                    params,
                    grads,
                    states,
                    AdamConfig {
                        lr,
                        ..AdamConfig::adam()
                    },
                )
            },
        );
        let adam = adam_steps(&mut parts).is_ok();
        let fresh = m.as_flattened().iter().filter(|m| m.is_some()).count()
            + s.as_flattened().iter().filter(|s| s.is_some()).count();
        (sgd, adam, fresh, values(&p[0][0])[0], values(&p[1][0])[0])
    };
    assert_eq!(run([2, 4]), (false, false, 0, 1.0, 1.0));
    let (sgd, adam, fresh, a, b) = run([2, 3]);
    assert!(sgd && adam && fresh == 4);
    assert!(a.abs() < 1e-6 && (b - 0.5).abs() < 1e-6, "{a} {b}");
}
