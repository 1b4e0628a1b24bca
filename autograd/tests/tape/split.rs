//! A sweep in two halves, with chosen inputs, against the sweep in one.

use crate::{Product, mul, on, param, tensor, times, vals};
use phalanx_autograd::{
    Backward, Gradients, Grads, MultiVjp, OutputGrads, Param, Result, Tape, Var, Vjp,
};
use phalanx_tensor::Tensor;
use std::cell::RefCell;
use std::rc::Rc;

/// A product that gives both gradients at once.
#[derive(Debug)]
struct Joint(Product);

impl Vjp for Joint {
    fn name(&self) -> &'static str {
        "joint"
    }
    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        self.0.backward(grad, &[true; 2])
    }
    fn saved_bytes(&self) -> usize {
        self.0.saved_bytes()
    }
    fn joint(&self) -> bool {
        true
    }
}

fn joint(a: &Var, b: &Var) -> Var {
    let out = times(a.value(), b.value());
    Var::from_vjp(a.tape(), &[a, b], out, |_| {
        Joint(Product {
            a: Some(a.value().clone()),
            b: Some(b.value().clone()),
        })
    })
    .unwrap()
}

/// `a · b` and `b`: two outputs, whose gradients come in the list that it is given.
#[derive(Debug)]
struct Pair {
    a: Option<Tensor>,
    b: Option<Tensor>,
    joint: bool,
}

impl MultiVjp for Pair {
    fn name(&self) -> &'static str {
        "pair"
    }
    fn backward(&self, grads: OutputGrads, needs: &[bool]) -> Result<Grads> {
        assert!(grads.len() == 2 && grads.iter().any(Option::is_some));
        let part = |other: &Option<Tensor>| {
            let grad = grads[0].as_ref();
            grad.map(|grad| times(grad, other.as_ref().expect("saved for this gradient")))
        };
        let zeros = || tensor(&[0.0; 2]);
        let of_b = || match (part(&self.a), &grads[1]) {
            (Some(product), Some(copy)) => product.add(copy).unwrap(),
            (product, copy) => product.or(copy.clone()).expect("one has come"),
        };
        Ok(Grads::from_iter([
            needs[0].then(|| part(&self.b).unwrap_or_else(zeros)),
            needs[1].then(of_b),
        ]))
    }
    fn saved_bytes(&self) -> usize {
        let saved = self.a.iter().chain(&self.b);
        saved.map(phalanx_autograd::tensor_bytes).sum()
    }
    fn joint(&self) -> bool {
        self.joint
    }
    fn shrink(&mut self, needs: &[bool]) {
        self.b = self.b.take().filter(|_| needs[0]);
        self.a = self.a.take().filter(|_| needs[1]);
    }
}

fn pair(a: &Var, b: &Var, joint: bool) -> Vec<Var> {
    let values = vec![times(a.value(), b.value()), b.value().clone()];
    Var::from_multi_vjp(a.tape(), &[a, b], values, |needs| Pair {
        a: needs[1].then(|| a.value().clone()),
        b: needs[0].then(|| b.value().clone()),
        joint,
    })
    .unwrap()
}

/// An operation without inputs, which notes the gradients that come in.
#[derive(Debug)]
struct Receive(Rc<RefCell<Vec<u64>>>);

impl Vjp for Receive {
    fn name(&self) -> &'static str {
        "receive"
    }
    fn backward(&self, grad: Tensor, _: &[bool]) -> Result<Grads> {
        self.0.borrow_mut().extend(bits(&grad));
        Ok(Grads::new())
    }
    fn saved_bytes(&self) -> usize {
        0
    }
}

fn bits(t: &Tensor) -> Vec<u64> {
    vals(t).iter().map(|v| v.to_bits()).collect()
}

/// Small numbers from a seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % n
    }
}

/// What a sweep found, as far as a user can see.
#[derive(Debug, PartialEq)]
struct Found {
    /// By variable.
    wrt: Vec<Option<Vec<u64>>>,
    /// By parameter.
    of: Vec<Option<Vec<u64>>>,
    /// The parameters that the hook was told of, in order.
    ready: Vec<phalanx_autograd::ParamId>,
    received: Vec<u64>,
}

fn one_of(first: Option<&Tensor>, second: Option<&Tensor>) -> Option<Vec<u64>> {
    assert!(first.is_none() || second.is_none(), "found twice");
    first.or(second).map(bits)
}

/// Builds the graph of `seed`, draws roots and chosen variables, and sweeps; the second value says
/// whether both halves had work.
fn run(seed: u64, params: &[Param], split: bool, choose: bool) -> (Found, bool) {
    let mut draw = Draw(seed);
    let tape = Tape::new();
    let received = Rc::default();
    let source = |_: &[bool]| Receive(Rc::clone(&received));
    let mut vars = vec![
        tape.input(tensor(&[1.25, 0.3])).unwrap(),
        tape.input(tensor(&[0.9, -0.4])).unwrap(),
        Var::from_vjp(&tape, &[], tensor(&[0.8, 1.1]), source).unwrap(),
        tape.constant(tensor(&[1.5, 0.5])),
    ];
    vars.extend(params.iter().map(|p| tape.leaf(p)));
    let leaves = vars.len();
    for _ in 0..3 + draw.below(8) {
        let (a, b) = (draw.below(vars.len()), draw.below(vars.len()));
        match draw.below(4) {
            0 => vars.push(joint(&vars[a], &vars[b])),
            1 => vars.extend(pair(&vars[a], &vars[b], draw.below(2) == 0)),
            _ => vars.push(mul(&vars[a], &vars[b]).unwrap()),
        }
    }
    let recorded = |v: &&Var| v.requires_grad();
    let mut roots = Vec::new();
    for _ in 0..1 + draw.below(2) {
        // Now and then a leaf is a root.
        let from = if draw.below(6) == 0 { 0 } else { leaves };
        let root = &vars[from + draw.below(vars.len() - from)];
        let seed = tensor(&[1.0, 0.1 + draw.below(5) as f64]);
        roots.extend(Some(root).filter(recorded).map(|root| (root, Some(seed))));
    }
    if roots.is_empty() {
        roots.push((&vars[0], Some(tensor(&[1.0, 0.1]))));
    }
    let chosen: Vec<&Var> = (0..1 + draw.below(4))
        .map(|_| &vars[draw.below(vars.len())])
        .filter(recorded)
        .collect();
    let mut ready = Vec::new();
    let mut hook = |p: &Param, g| {
        ready.push(p.id());
        Ok(Some(g))
    };
    let mut how = Backward {
        roots: &roots,
        inputs: choose.then_some(&chosen),
        ..Backward::default()
    };
    // Of some parameters, there are gradients to add to.
    let mut into = Gradients::new();
    for param in &params[..draw.below(params.len())] {
        into.insert(param, tensor(&[0.1, 1e-3]));
    }
    let (first, second) = if split {
        let (first, later) = tape.sweep_inputs(how).unwrap();
        (first, later.run(into, Some(&mut hook)).unwrap())
    } else {
        how.on_ready = Some(&mut hook);
        how.into = into;
        (Gradients::new(), tape.sweep(how).unwrap())
    };
    assert!(first.is_empty(), "a parameter's gradient in the first half");
    let weights = 4..leaves;
    for (i, v) in vars.iter().enumerate() {
        let late = split && !weights.contains(&i) && second.wrt(v).is_some();
        assert!(!late, "a variable's gradient in the second half");
    }
    let wrt = vars.iter().map(|v| one_of(first.wrt(v), second.wrt(v)));
    let found = Found {
        wrt: wrt.collect(),
        of: params.iter().map(|p| second.get(p).map(bits)).collect(),
        ready,
        received: received.borrow().clone(),
    };
    let both = vars.iter().any(|v| first.wrt(v).is_some()) && !found.ready.is_empty();
    (found, both)
}

#[test]
fn both_halves_do_what_the_sweep_does() {
    on(0);
    let params: Vec<Param> = (0..3)
        .map(|i| param(&[0.7 + 0.1 * f64::from(i), -1.1]))
        .collect();
    for choose in [false, true] {
        let (mut halves, mut hits) = (0, 0);
        for seed in 0..2000 {
            let (whole, _) = run(seed, &params, false, choose);
            let (split, both) = run(seed, &params, true, choose);
            assert_eq!(split, whole, "seed {seed}, chosen inputs: {choose}");
            halves += usize::from(both);
            hits += usize::from(whole.wrt.iter().any(Option::is_some));
        }
        assert!(halves > 100 && hits > 1000, "{choose}: {halves} of {hits}");
    }
}

#[test]
fn what_nobody_chose_is_not_computed_in_either_half() {
    on(0);
    let (a, b) = (param(&[2.0]), param(&[5.0]));
    let tape = Tape::new();
    let (x, z) = (tensor(&[3.0]), tensor(&[7.0]));
    let (x, z) = (tape.input(x).unwrap(), tape.input(z).unwrap());
    let early = mul(&x, &tape.leaf(&a)).unwrap();
    let root = mul(&mul(&early, &tape.leaf(&b)).unwrap(), &z).unwrap();
    let how = Backward {
        roots: &[(&root, None)],
        inputs: Some(&[&early, &tape.leaf(&b)]),
        ..Backward::default()
    };
    let (first, later) = tape.sweep_inputs(how).unwrap();
    assert_eq!(vals(first.wrt(&early).unwrap()), [35.0]);
    assert!(first.wrt(&x).is_none() && first.wrt(&z).is_none());
    let second = later.run(Gradients::new(), None).unwrap();
    assert_eq!(vals(second.get(&b).unwrap()), [42.0]);
    assert!(second.get(&a).is_none(), "nobody chose it");
}

#[test]
fn an_operation_with_two_outputs_is_the_operations_apart() {
    on(0);
    let (a, b) = (param(&[2.0, 0.5]), param(&[5.0, -3.0]));
    // Which outputs the roots depend on.
    for (first, second) in [(true, true), (true, false), (false, true)] {
        let run = |together: bool| {
            let tape = Tape::new();
            let (x, y) = (tape.leaf(&a), tape.leaf(&b));
            let out = match together {
                true => pair(&x, &y, true),
                false => vec![mul(&x, &y).unwrap(), y.clone()],
            };
            let own = tape.constant(tensor(&[0.3, 0.7]));
            let roots: Vec<Var> = [(first, &out[0]), (second, &out[1])]
                .iter()
                .filter(|(uses, _)| *uses)
                .map(|(_, out)| mul(out, &own).unwrap())
                .collect();
            let plan = tape.plan(&roots.iter().collect::<Vec<_>>()).unwrap();
            let seeds = |root| (root, Some(tensor(&[1.0, 10.0])));
            let g = tape
                .sweep(Backward {
                    roots: &roots.iter().map(seeds).collect::<Vec<_>>(),
                    ..Backward::default()
                })
                .unwrap();
            let plan: Vec<_> = plan.params().iter().map(Param::id).collect();
            (plan, g.get(&a).map(bits), g.get(&b).map(bits))
        };
        let ((plan, of_a, of_b), apart) = (run(true), run(false));
        assert_eq!(of_b, apart.2, "{first} {second}");
        match first {
            true => assert_eq!((plan, of_a), (apart.0, apart.1)),
            // The node says that both parameters lead to it: a zero then.
            false => assert_eq!((plan.len(), of_a), (2, Some(bits(&tensor(&[0.0; 2]))))),
        }
    }
    let tape = Tape::new();
    let out = pair(&tape.leaf(&a), &tape.leaf(&b), true);
    let text = format!("{tape:?}");
    let lines = "2 = pair of 0, 1\n  3 = output of 2\n  4 = output of 2";
    assert!(text.contains(lines), "{text}");
    assert_eq!(tape.saved_bytes(), 2 * 2 * 8);
    // One whose elements are no floats, and those of nothing recorded, are constants.
    let numbers = Tensor::from_slice(&[1i64], [1], out[0].device()).unwrap();
    let values = vec![tensor(&[1.0; 2]), numbers];
    let (x, free) = (tape.leaf(&a), tape.constant(tensor(&[1.0; 2])));
    let made = |x: &Var| {
        let vjp = |_: &[bool]| Pair {
            a: None,
            b: None,
            joint: true,
        };
        Var::from_multi_vjp(&tape, &[x], values.clone(), vjp).unwrap()
    };
    assert!(made(&x)[0].requires_grad() && !made(&x)[1].requires_grad());
    assert!(!made(&free)[0].requires_grad());
}
