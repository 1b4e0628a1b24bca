//! What is freed when, and the sweep in two halves.

use crate::{in_place, mul, on, param, tensor, vals};
use phalanx_autograd::{Backward, Gradients, Param, Tape, Var};
use phalanx_tensor::{DType, Tensor};

#[test]
fn saved_tensors_are_freed_as_the_sweep_passes() {
    const N: usize = 1000;
    const BYTES: usize = N * 8;
    let device = on(301);
    let live = || device.memory().unwrap().live;
    let w: Vec<Param> = (0..5).map(|_| param(&[1.5; N])).collect();
    let start = live();
    assert_eq!(start, 5 * BYTES);
    let tape = Tape::new();
    let root = {
        let mut h = tape.input(tensor(&[2.0; N])).unwrap();
        for w in &w {
            h = mul(&h, &tape.leaf(w)).unwrap();
        }
        h
    };
    // The input and five products; parameters are shared, not copied.
    assert_eq!(live() - start, 6 * BYTES);
    assert_eq!(
        tape.saved_bytes(),
        10 * BYTES,
        "each product holds both factors"
    );
    let seed = tensor(&[1.0; N]);
    let mut seen = Vec::new();
    device.reset_peak().unwrap();
    let gradients = tape
        .sweep(Backward {
            roots: &[(&root, Some(seed.clone()))],
            on_ready: Some(&mut |_, _grad| {
                seen.push((live() - start) / BYTES);
                Ok(None)
            }),
            ..Backward::default()
        })
        .unwrap();
    // The root, the seed, the gradient that travels on, the parameter's own, and the first factors
    // of the products that are still to come.
    assert_eq!(seen, [4 + 4, 4 + 3, 4 + 2, 4 + 1, 4]);
    drop(gradients);
    assert_eq!(
        live() - start,
        2 * BYTES,
        "the root and the seed, which the test holds"
    );
    assert!(
        w.iter().all(in_place),
        "the tape holds no parameter any more"
    );
}

/// The gradient of a weight that a whole batch shares: one matrix, not one for each of the batch.
#[test]
fn the_gradient_of_a_shared_matrix_takes_its_own_memory() {
    let device = on(305);
    let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, device).unwrap();
    // Of x, of w; what the backward pass may take at once, in matrices [64, 32].
    let cases: [(&[usize], &[usize], usize); 6] = [
        (&[16, 8, 64], &[64, 32], 1),
        (&[4, 4, 8, 64], &[64, 32], 1),
        (&[4, 4, 8, 64], &[1, 1, 64, 32], 1),
        // One matrix for each of the first axis: rows of the second lie together.
        (&[4, 4, 8, 64], &[4, 1, 64, 32], 4),
        // The first axis is summed: x and the gradient, an eighth and a quarter, are moved.
        (&[4, 4, 4, 64], &[4, 64, 32], 4),
        (&[16, 8, 64], &[64, 1], 1),
    ];
    for (x, w, matrices) in cases {
        let bytes = w.iter().rev().take(2).product::<usize>() * 4;
        let tape = Tape::new();
        let x = tape.constant(ones(x));
        let w = Param::new(ones(w));
        let y = x.matmul(&tape.leaf(&w)).unwrap();
        let seed = ones(y.dims());
        let copied = match matrices == 4 && w.shape().len() == 3 {
            true => (x.numel() + y.numel()) * 4,
            false => 0,
        };
        let before = device.memory().unwrap().live;
        device.reset_peak().unwrap();
        let how = Backward {
            roots: &[(&y, Some(seed.clone()))],
            ..Backward::default()
        };
        let gradients = tape.sweep(how).unwrap();
        let peak = device.memory().unwrap().peak - before;
        assert_eq!(
            peak,
            matrices * bytes + copied,
            "{} {}",
            x.shape(),
            w.shape()
        );
        let rows = x.numel() / 64;
        let each = (rows / matrices) as f64;
        let slope = gradients.get(&w).unwrap().cast(DType::F64).unwrap();
        assert_eq!(slope.shape(), w.shape());
        assert!(vals(&slope).iter().all(|v| *v == each), "{slope:?}");
    }
}

#[test]
fn accumulation_is_in_place_where_it_can_be() {
    let device = on(303);
    const N: usize = 500;
    let w = param(&[2.0; N]);
    let tape = Tape::new();
    let x = tape.leaf(&w);
    let mut h = x.clone();
    for _ in 0..8 {
        h = mul(&h, &x).unwrap();
    }
    let seed = tensor(&[1.0; N]);
    drop(x);
    device.reset_peak().unwrap();
    let before = device.memory().unwrap().live;
    tape.sweep(Backward {
        roots: &[(&h, Some(seed))],
        ..Default::default()
    })
    .unwrap();
    // Beyond what was live: the travelling gradient, the next one, the contribution, the sum; the
    // first product is freed only after its gradients are there.
    let peak = device.memory().unwrap().peak - before;
    assert!(peak <= 3 * N * 8, "{peak}");
}

/// A random expression over some parameters and inputs.
fn random_graph(tape: &Tape, seed: u64, params: &[Param], inputs: &[Var]) -> Var {
    let mut state = seed;
    let mut below = |n: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let mut pool: Vec<Var> = inputs.to_vec();
    for _ in 0..12 {
        let pick = |i: usize, pool: &[Var]| match i.checked_sub(pool.len()) {
            Some(k) => tape.leaf(&params[k]),
            None => pool[i].clone(),
        };
        let n = pool.len() + params.len();
        let (a, b) = (pick(below(n), &pool), pick(below(n), &pool));
        pool.push(mul(&a, &b).unwrap());
    }
    pool.pop().unwrap()
}

#[test]
fn the_two_halves_of_a_split_sweep_make_the_whole() {
    on(0);
    let params: Vec<Param> = (0..4)
        .map(|i| param(&[0.7 + 0.1 * i as f64, -1.1]))
        .collect();
    let (mut split_work, mut with_input) = (0, 0);
    for seed in 0..300 {
        let run = |split: bool| {
            let tape = Tape::new();
            let inputs = [[1.25, 0.3], [0.9, -0.4]].map(|v| tape.input(tensor(&v)).unwrap());
            let root = random_graph(&tape, seed, &params, &inputs);
            if !root.requires_grad() {
                return None;
            }
            let plan: Vec<_> = tape
                .plan(&[&root])
                .unwrap()
                .params()
                .iter()
                .map(Param::id)
                .collect();
            let mut ready = Vec::new();
            let mut hook = |p: &Param, g| {
                ready.push(p.id());
                Ok(Some(g))
            };
            let roots = [(&root, Some(tensor(&[1.0, 0.1])))];
            let mut how = Backward {
                roots: &roots,
                ..Backward::default()
            };
            let (first, second) = if split {
                let (first, later) = tape.sweep_inputs(how).unwrap();
                assert!(first.is_empty());
                let bytes = later.saved_bytes();
                (
                    first,
                    (later.run(Gradients::new(), Some(&mut hook)).unwrap(), bytes),
                )
            } else {
                how.on_ready = Some(&mut hook);
                let all = tape.sweep(how).unwrap();
                (Default::default(), (all, 0))
            };
            assert_eq!(ready, plan, "both ways in the planned order");
            let bits = |t: Option<&Tensor>| {
                t.map(|t| vals(t).iter().map(|v| v.to_bits()).collect::<Vec<_>>())
            };
            let of_inputs = inputs
                .each_ref()
                .map(|x| bits(if split { first.wrt(x) } else { second.0.wrt(x) }));
            let of_params: Vec<_> = params.iter().map(|p| bits(second.0.get(p))).collect();
            Some((of_inputs, of_params, plan.len(), second.1))
        };
        let (whole, split) = (run(false), run(true));
        match (whole, split) {
            (None, None) => {}
            (Some(a), Some(b)) => {
                assert_eq!((&a.0, &a.1), (&b.0, &b.1), "seed {seed}");
                with_input += usize::from(a.0.iter().any(Option::is_some));
                split_work += usize::from(a.0.iter().any(Option::is_some) && a.2 > 0);
            }
            _ => panic!("the same graph"),
        }
    }
    assert!(
        split_work > 200 && with_input > 200,
        "the graphs exercise both halves: {split_work}"
    );
}

#[test]
fn the_second_half_keeps_only_what_it_reads() {
    const N: usize = 1000;
    let device = on(304);
    let w: Vec<Param> = (0..3).map(|_| param(&[1.5; N])).collect();
    let tape = Tape::new();
    let x = tape.input(tensor(&[2.0; N])).unwrap();
    let root = w
        .iter()
        .fold(x.clone(), |h, w| mul(&h, &tape.leaf(w)).unwrap());
    let roots = [(&root, Some(tensor(&[1.0; N])))];
    let (first, later) = tape
        .sweep_inputs(Backward {
            roots: &roots,
            ..Default::default()
        })
        .unwrap();
    assert_eq!(vals(first.wrt(&x).unwrap())[0], 1.5f64.powi(3));
    // Per product: its first factor and the gradient of its output, not the weight.
    assert_eq!(later.saved_bytes(), 6 * N * 8);
    assert!(
        w.iter().all(in_place),
        "weights may be updated before the second half"
    );
    for w in &w {
        w.set(tensor(&[0.0; N])).unwrap();
    }
    let second = later.run(Gradients::new(), None).unwrap();
    assert!(
        w.iter()
            .all(|w| vals(second.get(w).unwrap())[0] == 2.0 * 1.5 * 1.5)
    );
    drop(roots);
    drop((first, second, x, root));
    assert_eq!(device.memory().unwrap().live, 3 * N * 8);
}
