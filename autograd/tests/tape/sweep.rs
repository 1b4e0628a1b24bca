//! One sweep: sums, order, roots, stops, constants.

use crate::{mul, on, param, tensor, vals};
use phalanx_autograd::{Backward, Error, Gradients, Grads, Param, Result, Tape, Var, Vjp};
use phalanx_tensor::Tensor;
use std::cell::RefCell;
use std::rc::Rc;

#[test]
fn a_parameter_used_twice_gets_the_sum() {
    let w = param(&[3.0]);
    let tape = Tape::new();
    let (x, y) = (tape.leaf(&w), tape.leaf(&w));
    assert_eq!(tape.len(), 1, "one node per parameter");
    let cube = mul(&mul(&x, &y).unwrap(), &x).unwrap();
    let gradients = tape.backward(&cube).unwrap();
    assert_eq!(vals(gradients.get(&w).unwrap()), [27.0]);
}

#[test]
fn the_value_is_the_one_at_the_first_use() {
    let w = param(&[2.0]);
    let tape = Tape::new();
    let x = tape.leaf(&w);
    w.set(tensor(&[100.0])).unwrap();
    assert_eq!(vals(tape.leaf(&w).value()), [2.0]);
    let y = mul(&x, &tape.leaf(&w)).unwrap();
    assert_eq!(vals(tape.backward(&y).unwrap().get(&w).unwrap()), [4.0]);
    assert_eq!(vals(tape.leaf(&w).value()), [100.0], "a new recording");
}

#[test]
fn a_parameter_is_ready_when_the_sweep_passes_it_in_the_planned_order() {
    let w: Vec<Param> = (0..6).map(|i| param(&[1.0 + i as f64])).collect();
    let tape = Tape::new();
    let x = tape.constant(tensor(&[1.0]));
    // w[4] is used on a branch that the loss does not see; w[5] is not used; w[0] is used first
    // and last, so that it is ready last.
    let mut h = mul(&x, &tape.leaf(&w[0])).unwrap();
    let _branch = mul(&h, &tape.leaf(&w[4])).unwrap();
    for k in [1, 2, 3, 0] {
        h = mul(&h, &tape.leaf(&w[k])).unwrap();
    }
    let after = mul(&h, &tape.leaf(&w[4])).unwrap();
    let plan = tape.plan(&[&h]).unwrap();
    let ids: Vec<_> = plan.params().iter().map(Param::id).collect();
    assert_eq!(ids, [3, 2, 1, 0].map(|k: usize| w[k].id()));
    assert!(plan.contains(w[2].id()) && !plan.contains(w[4].id()) && !plan.contains(w[5].id()));
    assert_eq!(tape.plan(&[&h, &after]).unwrap().params().len(), 5);

    let mut ready = Vec::new();
    let gradients = tape
        .sweep(Backward {
            roots: &[(&h, None)],
            on_ready: Some(&mut |p, grad| {
                ready.push((p.id(), vals(&grad)[0]));
                Ok((p.id() != w[1].id()).then_some(grad)) // the hook keeps w[1]'s
            }),
            ..Backward::default()
        })
        .unwrap();
    let order: Vec<_> = ready.iter().map(|r| r.0).collect();
    assert_eq!(order, ids, "each once, in the planned order");
    // d(w0² w1 w2 w3) at 1, 2, 3, 4: final at the moment of the call.
    assert_eq!(
        ready.iter().map(|r| r.1).collect::<Vec<_>>(),
        [6.0, 8.0, 12.0, 48.0]
    );
    assert!(gradients.get(&w[1]).is_none(), "taken by the hook");
    assert!(
        gradients.get(&w[4]).is_none() && gradients.get(&w[5]).is_none(),
        "not zero: none"
    );
    assert_eq!(gradients.len(), 3);
}

#[test]
fn several_roots_with_seeds() {
    let w = param(&[2.0, 3.0]);
    let tape = Tape::new();
    let x = tape.leaf(&w);
    let square = mul(&x, &x).unwrap();
    let cube = mul(&square, &x).unwrap();
    let gradients = tape
        .sweep(Backward {
            roots: &[
                (&square, Some(tensor(&[1.0, 10.0]))),
                (&cube, Some(tensor(&[1.0, 0.0]))),
                (&square, Some(tensor(&[0.0, 1.0]))),
            ],
            ..Backward::default()
        })
        .unwrap();
    assert_eq!(vals(gradients.get(&w).unwrap()), [4.0 + 12.0, 66.0]);
}

#[test]
fn a_sweep_stops_at_chosen_inputs() {
    let (a, b) = (param(&[2.0]), param(&[5.0]));
    let tape = Tape::new();
    let x = tape.input(tensor(&[3.0])).unwrap();
    let early = mul(&x, &tape.leaf(&a)).unwrap();
    let late = mul(&early, &tape.leaf(&b)).unwrap();
    let root = mul(&late, &early).unwrap();
    let mut calls = 0;
    let gradients = tape
        .sweep(Backward {
            roots: &[(&root, None)],
            inputs: Some(&[&early]),
            on_ready: Some(&mut |_, g| {
                calls += 1;
                Ok(Some(g))
            }),
            ..Backward::default()
        })
        .unwrap();
    assert_eq!(vals(gradients.wrt(&early).unwrap()), [60.0]); // 2 b early
    assert!(gradients.wrt(&x).is_none() && gradients.is_empty() && calls == 0);
}

#[test]
fn an_inference_tape_keeps_nothing() {
    let device = on(302);
    let w = param(&[2.0; 100]);
    let tape = Tape::inference();
    let live = device.memory().unwrap().live;
    let x = tape.input(tensor(&[3.0; 100])).unwrap();
    let mut h = mul(&x, &tape.leaf(&w)).unwrap();
    for _ in 0..10 {
        h = mul(&h, &tape.leaf(&w)).unwrap();
    }
    assert_eq!((tape.len(), h.requires_grad()), (0, false));
    drop(x);
    assert_eq!(device.memory().unwrap().live - live, 800, "only the result");
    assert!(matches!(
        tape.backward(&h),
        Err(Error::NothingToDifferentiate { .. })
    ));
}

#[test]
fn a_frozen_parameter_is_a_constant() {
    let (a, b) = (param(&[2.0]), param(&[5.0]));
    a.set_requires_grad(false);
    let tape = Tape::new();
    let root = mul(&tape.leaf(&a), &tape.leaf(&b)).unwrap();
    assert_eq!(tape.len(), 2);
    let gradients = tape.backward(&root).unwrap();
    assert!(gradients.get(&a).is_none());
    assert_eq!(vals(gradients.get(&b).unwrap()), [2.0]);
}

#[test]
fn gradients_accumulate_over_micro_batches() {
    let (a, b) = (param(&[2.0]), param(&[5.0]));
    let run = |x: f64, with_b: bool| {
        let tape = Tape::new();
        let h = mul(&tape.constant(tensor(&[x])), &tape.leaf(&a)).unwrap();
        let h = if with_b {
            mul(&h, &tape.leaf(&b)).unwrap()
        } else {
            h
        };
        tape.backward(&h).unwrap()
    };
    let mut sum = run(3.0, false);
    sum.accumulate(run(4.0, true)).unwrap();
    sum.accumulate(run(1.0, true)).unwrap();
    assert_eq!(vals(sum.get(&a).unwrap()), [28.0]);
    assert_eq!(vals(sum.get(&b).unwrap()), [10.0]);
    let order: Vec<_> = sum.iter().map(|(p, _)| p.id()).collect();
    assert_eq!(order, [a.id(), b.id()]);
    assert_eq!(vals(&sum.take(&a).unwrap()), [28.0]);
    assert!(sum.get(&a).is_none() && sum.len() == 1);
}

#[test]
fn an_operation_without_inputs_is_swept() {
    #[derive(Debug)]
    struct Receive(Rc<RefCell<Vec<f64>>>);
    impl Vjp for Receive {
        fn name(&self) -> &'static str {
            "receive"
        }
        fn backward(&self, grad: Tensor, _: &[bool]) -> Result<Grads> {
            self.0.borrow_mut().extend(vals(&grad));
            Ok(Grads::new())
        }
        fn saved_bytes(&self) -> usize {
            0
        }
    }
    let w = param(&[4.0]);
    let tape = Tape::new();
    for split in [false, true] {
        let sent = Rc::default();
        let x = Var::from_vjp(&tape, &[], tensor(&[2.0]), |_| Receive(Rc::clone(&sent))).unwrap();
        let y = mul(&x, &tape.leaf(&w)).unwrap();
        let gradients = match split {
            false => tape.backward(&y).unwrap(),
            true => {
                let roots = [(&y, None)];
                let how = Backward {
                    roots: &roots,
                    ..Backward::default()
                };
                let (first, later) = tape.sweep_inputs(how).unwrap();
                assert!(first.is_empty());
                assert_eq!(
                    *sent.borrow(),
                    [4.0],
                    "its neighbour does not wait for the weights"
                );
                later.run(Gradients::new(), None).unwrap()
            }
        };
        assert_eq!(*sent.borrow(), [4.0]);
        assert_eq!(vals(gradients.get(&w).unwrap()), [2.0]);
    }
}

#[test]
fn a_long_chain_needs_no_stack() {
    let w = param(&[1.0]);
    let tape = Tape::new();
    let x = tape.leaf(&w);
    let mut h = x.clone();
    for _ in 0..200_000 {
        h = mul(&h, &x).unwrap();
    }
    let gradients = tape.backward(&h).unwrap();
    assert_eq!(vals(gradients.get(&w).unwrap()), [200_001.0]);
}

#[test]
fn the_tape_prints() {
    let w = param(&[1.0]);
    let tape = Tape::new();
    let _y = mul(&tape.constant(tensor(&[1.0])), &tape.leaf(&w)).unwrap();
    let text = format!("{tape:?}");
    assert!(text.contains("1 = product of _, 0"), "{text}");
}
