//! Random numbers that follow from a place: of a forward pass by step and micro-batch, of initial values
//! by the path of a module.

use crate::{CPU, vals};
use phalanx_autograd::nn::{Dropout, Factory, Linear, Module, Sequential};
use phalanx_autograd::{Result, State, Tape, Var, checkpoint};
use phalanx_tensor::{DType, Tensor};

fn model(f: &mut Factory) -> Sequential {
    Sequential::new()
        .with(Dropout::new(0.5, f).unwrap())
        .with(Dropout::new(0.5, f).unwrap())
}

fn ones(tape: &Tape) -> Var {
    tape.constant(Tensor::ones([64], DType::F32, CPU).unwrap())
}

fn run(model: &Sequential, tape: &Tape) -> Vec<f64> {
    vals(model.forward(tape, &ones(tape)).unwrap().value())
}

#[test]
fn dropout_follows_from_step_and_micro_batch_in_any_order() {
    let mut f = Factory::new(CPU, 7);
    let model = model(&mut f);
    let at = |step, micro_batch| {
        let tape = Tape::new();
        tape.draw_at(step, micro_batch);
        run(&model, &tape)
    };
    let places = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)];
    let found: Vec<_> = places.iter().map(|&(s, m)| at(s, m)).collect();
    for (i, a) in found.iter().enumerate() {
        assert!(found[..i].iter().all(|b| a != b), "{:?}", places[i]);
    }
    // Others draw in between, and the count of uses goes on elsewhere.
    run(&model, &Tape::new());
    for (&(s, m), want) in places.iter().zip(&found).rev() {
        assert_eq!(at(s, m), *want, "{s} {m}");
    }
    // A model of the same seed elsewhere; one of another seed.
    let same = self::model(&mut Factory::new(CPU, 7));
    let other = self::model(&mut Factory::new(CPU, 8));
    let tape = Tape::new();
    tape.draw_at(1, 0);
    assert_eq!(run(&same, &tape), found[2]);
    tape.draw_at(1, 0);
    assert_ne!(run(&other, &tape), found[2]);
}

#[test]
fn uses_in_one_forward_pass_differ_and_are_not_counted() {
    let layer = Dropout::new(0.5, &mut Factory::new(CPU, 7)).unwrap();
    let tape = Tape::new();
    let twice = |tape: &Tape| {
        let x = ones(tape);
        let use_it = || vals(layer.forward(tape, &x).unwrap().value());
        [use_it(), use_it()]
    };
    tape.draw_at(3, 4);
    let first = twice(&tape);
    assert_ne!(first[0], first[1]);
    tape.draw_at(3, 4);
    assert_eq!(twice(&tape), first, "a new forward pass starts anew");
    let uses = State::of(&layer).unwrap().take("uses").unwrap();
    assert_eq!(vals(&uses), [0.0]);
}

#[test]
fn a_checkpoint_draws_what_its_segment_draws_at_the_place() {
    let gradient = |checkpointed: bool| {
        let model = model(&mut Factory::new(CPU, 7));
        let tape = Tape::new();
        tape.draw_at(5, 6);
        let x = Tensor::ones([64], DType::F64, CPU).unwrap();
        let x = tape.input(x).unwrap();
        let segment = move |tape: &Tape, x: &[Var]| -> Result<Var> {
            model.forward(tape, &model.forward(tape, &x[0])?)
        };
        let y = match checkpointed {
            true => checkpoint(&tape, &[&x], segment).unwrap(),
            false => segment(&tape, std::slice::from_ref(&x)).unwrap(),
        };
        // The place of the next forward pass, before this one's backward.
        tape.draw_at(5, 7);
        let gradients = tape.backward(&y.sum_all().unwrap()).unwrap();
        vals(gradients.wrt(&x).unwrap())
    };
    assert!(gradient(false).iter().any(|g| *g != 0.0));
    assert_eq!(gradient(true), gradient(false));
}

#[test]
fn initial_values_follow_from_the_path() {
    let f = Factory::new(CPU, 42);
    let layer = |f: &Factory, path: &str| {
        let layer = Linear::new(3, 5, &mut f.at(path)).unwrap();
        let of = |p: &phalanx_autograd::Param| vals(&p.value().unwrap());
        [of(&layer.weight), of(layer.bias.as_ref().unwrap())]
    };
    let paths = ["0", "1", "2", "a", "1.a", "a.1", "1.1", "11"];
    let made: Vec<_> = paths.iter().map(|path| layer(&f, path)).collect();
    for (i, a) in made.iter().enumerate() {
        assert!(made[..i].iter().all(|b| a != b), "{}", paths[i]);
    }
    // In another order, and after the factory itself has been used.
    let mut used = f.clone();
    Linear::new(3, 5, &mut used).unwrap();
    for (path, want) in paths.iter().zip(&made).rev() {
        assert_eq!(layer(&used, path), *want, "{path}");
    }
    assert_eq!(layer(&f.at("1"), "a"), made[4], "paths join");
    assert_ne!(layer(&Factory::new(CPU, 43), "0"), made[0]);
    let wide = Factory {
        dtype: DType::F64,
        ..f.clone()
    };
    let there = wide.at("0");
    assert_eq!((there.dtype, there.device), (DType::F64, CPU));
}
