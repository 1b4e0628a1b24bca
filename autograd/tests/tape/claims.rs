//! Whose parameters a sweep may reach.

use crate::{mul, param, tensor, vals};
use phalanx_autograd::{Backward, Claim, Claims, Error, Holder, Param, Tape, checkpoint};

fn claim<'p>(name: &'static str, params: impl IntoIterator<Item = &'p Param>) -> Claim {
    let holder = Holder {
        name,
        outside: "call it there",
        unclaimed: "show it",
    };
    Claim::new(holder, params).unwrap()
}

fn holding<'a>(held: &'a [&'a Claim], beside: &'a [Param]) -> Claims<'a> {
    Claims { held, beside }
}

#[test]
fn only_a_sweep_that_holds_the_claim_reaches_a_claimed_parameter() {
    let (a, b, c) = (param(&[2.0]), param(&[5.0]), param(&[7.0]));
    let (of_a, of_b) = (claim("a wrapper", [&a]), claim("another", [&b]));
    let tape = Tape::new();
    let both = mul(&tape.leaf(&a), &tape.leaf(&b)).unwrap();
    let beside = mul(&both, &tape.leaf(&c)).unwrap();

    let refused = tape.backward(&both).unwrap_err();
    let text = refused.to_string();
    assert!(
        matches!(&refused, Error::Claimed { id, shape, op: "product", holder: "a wrapper", .. }
            if *id == a.id() && **shape == [1]),
        "{text}"
    );
    assert!(
        text.ends_with("`product` used first and a wrapper holds: call it there"),
        "{text}"
    );
    let sweep = |root, claims| {
        let roots = [(root, None)];
        tape.sweep(Backward {
            roots: &roots,
            claims,
            ..Backward::default()
        })
    };
    let held = [&of_a, &of_b];
    // One claim of two is not enough, in whatever half of a split sweep.
    let e = sweep(&both, holding(&held[..1], &[])).unwrap_err();
    assert!(
        matches!(e, Error::Claimed { id, holder: "another", .. } if id == b.id()),
        "{e}"
    );
    let e = tape.sweep_inputs(Backward {
        roots: &[(&both, None)],
        ..Backward::default()
    });
    assert!(matches!(e.map(drop), Err(Error::Claimed { .. })));
    // Nor are claims a right to what nobody claims, unless it was named.
    let e = sweep(&beside, holding(&held, &[])).unwrap_err();
    assert!(
        matches!(e, Error::Unclaimed { id, op: "product", .. } if id == c.id()),
        "{e}"
    );
    assert_eq!(tape.len(), 5, "nothing was consumed");

    let gradients = sweep(&beside, holding(&held, std::slice::from_ref(&c))).unwrap();
    assert_eq!(
        [&a, &b, &c].map(|p| vals(gradients.get(p).unwrap())),
        [[35.0], [14.0], [10.0]]
    );
}

#[test]
fn what_the_roots_do_not_reach_is_of_no_interest() {
    let (a, b) = (param(&[2.0]), param(&[5.0]));
    let _of_b = claim("a wrapper", [&b]);
    let tape = Tape::new();
    let x = mul(&tape.leaf(&a), &tape.leaf(&a)).unwrap();
    let _unused = mul(&x, &tape.leaf(&b)).unwrap();
    assert_eq!(vals(tape.backward(&x).unwrap().get(&a).unwrap()), [4.0]);
    // A frozen one is a constant.
    b.set_requires_grad(false);
    let x = mul(&tape.leaf(&a), &tape.leaf(&b)).unwrap();
    assert_eq!(vals(tape.backward(&x).unwrap().get(&a).unwrap()), [5.0]);
}

#[test]
fn a_sweep_to_chosen_inputs_makes_no_gradients_of_parameters() {
    let a = param(&[2.0]);
    let _claim = claim("a wrapper", [&a]);
    let tape = Tape::new();
    let x = tape.input(tensor(&[3.0])).unwrap();
    let y = mul(&x, &tape.leaf(&a)).unwrap();
    let gradients = tape
        .sweep(Backward {
            roots: &[(&y, None)],
            inputs: Some(&[&x]),
            ..Backward::default()
        })
        .unwrap();
    assert_eq!(vals(gradients.wrt(&x).unwrap()), [2.0]);
    // Unless it names one, or starts at one.
    let (x, leaf) = (tape.input(tensor(&[3.0])).unwrap(), tape.leaf(&a));
    let y = mul(&leaf, &leaf).unwrap();
    for (root, input) in [(&y, &leaf), (&leaf, &x)] {
        let refused = tape.sweep(Backward {
            roots: &[(root, None)],
            inputs: Some(&[input]),
            ..Backward::default()
        });
        let e = refused.map(drop).unwrap_err();
        assert!(
            matches!(e, Error::Claimed { id, .. } if id == a.id()),
            "{e}"
        );
    }
}

#[test]
fn a_checkpoint_is_checked_where_it_was_recorded() {
    let a = param(&[2.0]);
    let of_a = claim("a wrapper", [&a]);
    let tape = Tape::new();
    let segment = {
        let a = a.clone();
        move |tape: &Tape, x: &[phalanx_autograd::Var]| mul(&x[0], &tape.leaf(&a))
    };
    let x = tape.input(tensor(&[3.0])).unwrap();
    let y = checkpoint(&tape, &[&x], segment).unwrap();
    let e = tape.backward(&y).unwrap_err();
    assert!(
        matches!(
            e,
            Error::Claimed {
                op: "checkpoint",
                ..
            }
        ),
        "{e}"
    );
    let gradients = tape
        .sweep(Backward {
            roots: &[(&y, None)],
            claims: holding(&[&of_a], &[]),
            ..Backward::default()
        })
        .unwrap();
    assert_eq!(vals(gradients.get(&a).unwrap()), [3.0]);
}

#[test]
fn a_claim_is_of_one_and_ends_with_it() {
    let (a, b) = (param(&[2.0]), param(&[5.0]));
    let of_b = claim("a wrapper", [&b]);
    let holder = Holder {
        name: "another",
        outside: "",
        unclaimed: "",
    };
    let e = Claim::new(holder, [&a, &b]).unwrap_err();
    assert!(
        matches!(e, Error::ClaimedTwice { id, holder: "a wrapper", .. } if id == b.id()),
        "{e}"
    );
    // Nothing stays of the refused one.
    let tape = Tape::new();
    tape.backward(&mul(&tape.leaf(&a), &tape.leaf(&a)).unwrap())
        .unwrap();
    drop(of_b);
    let both = Claim::new(holder, [&a, &b, &a]).unwrap(); // a tied weight may be named twice
    assert!(
        tape.backward(&mul(&tape.leaf(&a), &tape.leaf(&b)).unwrap())
            .is_err()
    );
    drop(both);
    tape.clear();
    tape.backward(&mul(&tape.leaf(&a), &tape.leaf(&b)).unwrap())
        .unwrap();
}
