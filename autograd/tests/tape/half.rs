//! Gradients of half types: summed in `f32`, handed to operations in their own type.

use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{
    Backward, Error, Gradients, Grads, Param, Result, Tape, Var, Vjp, checkpoint, tensor_bytes,
};
use phalanx_tensor::{DType, Device, Rng, Tensor};

const CPU: Device = Device::cpu(0);
const HALVES: [DType; 2] = [DType::BF16, DType::F16];

fn full(value: f64, dtype: DType) -> Tensor {
    Tensor::full([2], value, dtype, CPU).unwrap()
}

fn vals(t: &Tensor) -> Vec<f64> {
    t.cast(DType::F64).unwrap().to_vec().unwrap()
}

/// `x` added up so often.
fn times(x: &Var, n: usize) -> Result<Var> {
    (1..n).try_fold(x.clone(), |sum, _| sum.add(x))
}

#[test]
fn micro_batches_add_up_in_f32() {
    // Beyond 256 and 2,048, the types cannot count by ones.
    for (dtype, n) in [(DType::BF16, 601), (DType::F16, 3001)] {
        let w = Param::new(full(1.0, dtype));
        let tape = Tape::new();
        let mut sum = Gradients::new();
        for _ in 0..n {
            let loss = tape.leaf(&w).sum_all().unwrap();
            sum.accumulate(tape.backward(&loss).unwrap()).unwrap();
        }
        let sum = sum.get(&w).unwrap();
        assert_eq!(sum.dtype(), DType::F32);
        assert_eq!(vals(sum), [f64::from(n); 2], "{dtype}");
    }
}

/// The identity, which checks what it is given; all gradients at once where `joint`.
#[derive(Debug)]
struct Strict {
    dtype: DType,
    joint: bool,
}

impl Vjp for Strict {
    fn name(&self) -> &'static str {
        "strict"
    }
    fn backward(&self, grad: Tensor, needs: &[bool]) -> Result<Grads> {
        assert_eq!(grad.dtype(), self.dtype, "the output's type");
        Ok(needs.iter().map(|_| Some(grad.clone())).collect())
    }
    fn saved_bytes(&self) -> usize {
        0
    }
    fn joint(&self) -> bool {
        self.joint
    }
}

fn strict(inputs: &[&Var], joint: bool) -> Result<Var> {
    let dtype = inputs[0].dtype();
    let value = inputs[0].value().clone();
    Var::from_vjp(inputs[0].tape(), inputs, value, |_| Strict { dtype, joint })
}

#[test]
fn uses_on_one_tape_add_up_in_f32() {
    for dtype in HALVES {
        for (n, joint) in [(1, false), (1000, false), (1000, true)] {
            for split in [false, true] {
                let w = Param::new(full(0.0, dtype));
                let tape = Tape::new();
                let x = tape.input(full(0.0, dtype)).unwrap();
                // n uses of the parameter, the input and what is computed from them.
                let h = strict(&[&tape.leaf(&w), &x], joint).unwrap();
                let on_w = times(&tape.leaf(&w), n).unwrap();
                let y = times(&h, n).unwrap().add(&on_w).unwrap();
                let y = y.add(&times(&x, n).unwrap()).unwrap();
                let mut of_hook = Vec::new();
                let mut hook = |_: &Param, grad: Tensor| {
                    of_hook.push((grad.dtype(), vals(&grad)));
                    Ok(Some(grad))
                };
                let roots = [(&y, Some(full(1.0, dtype)))];
                let mut how = Backward {
                    roots: &roots,
                    ..Backward::default()
                };
                let (first, second) = match split {
                    true => {
                        let (first, later) = tape.sweep_inputs(how).unwrap();
                        let second = later.run(Gradients::new(), Some(&mut hook)).unwrap();
                        (Some(first), second)
                    }
                    false => {
                        how.on_ready = Some(&mut hook);
                        (None, tape.sweep(how).unwrap())
                    }
                };
                let total = 2.0 * n as f64;
                assert_eq!(
                    of_hook,
                    [(DType::F32, vec![total; 2])],
                    "{dtype} {n} {split}"
                );
                assert_eq!(second.get(&w).unwrap().dtype(), DType::F32);
                assert_eq!(vals(second.get(&w).unwrap()), [total; 2]);
                let of_x = first.as_ref().unwrap_or(&second).wrt(&x).unwrap();
                assert_eq!((of_x.dtype(), vals(of_x)), (dtype, vec![total; 2]));
            }
        }
    }
}

#[test]
fn what_is_used_once_is_not_widened() {
    const N: usize = 10_000;
    let device = Device::cpu(305);
    let tape = Tape::new();
    let x = Tensor::ones([N], DType::BF16, device).unwrap();
    let x = tape.input(x).unwrap();
    let y = (0..6).fold(x.clone(), |h, _| h.square().unwrap());
    let seed = Tensor::ones([N], DType::BF16, device).unwrap();
    let roots = [(&y, Some(seed))];
    device.reset_peak().unwrap();
    let before = device.memory().unwrap().live;
    let how = Backward {
        roots: &roots,
        ..Backward::default()
    };
    let gradients = tape.sweep(how).unwrap();
    assert_eq!(vals(gradients.wrt(&x).unwrap())[0], 64.0);
    // The gradient that comes in and the one that goes out, beside the first seed.
    let peak = device.memory().unwrap().peak - before;
    assert!(peak <= 2 * N * 2, "{peak}");
}

#[test]
fn a_chosen_variable_has_its_own_type_and_a_parameter_f32() {
    let w = Param::new(full(1.0, DType::BF16));
    let tape = Tape::new();
    let leaf = tape.leaf(&w);
    let h = strict(&[&leaf], false).unwrap();
    let y = times(&h, 600).unwrap();
    let gradients = tape
        .sweep(Backward {
            roots: &[(&y, Some(full(1.0, DType::BF16)))],
            inputs: Some(&[&leaf, &h]),
            ..Backward::default()
        })
        .unwrap();
    // 600 has 7 digits.
    let found = |x: &Var| gradients.wrt(x).map(|g| (g.dtype(), vals(g)));
    assert_eq!(found(&h), Some((DType::BF16, vec![600.0; 2])));
    assert_eq!(found(&leaf), Some((DType::F32, vec![600.0; 2])));
}

/// The sum of the parameter times each factor: the gradient of each use is its factor, exactly.
fn weighted(tape: &Tape, w: &Param, factors: &[Tensor]) -> Result<Var> {
    let zero = tape.constant(factors[0].sub(&factors[0])?);
    factors.iter().try_fold(zero, |sum, factor| {
        sum.add(&tape.leaf(w).mul(&tape.constant(factor.clone()))?)
    })
}

#[test]
fn sums_agree_with_f64() {
    for case in 0..40 {
        let dtype = HALVES[case % 2];
        let mut rng = Rng::new(case as u64);
        let n = 20 + 17 * case;
        let draw = |rng: &mut Rng| {
            let x = Tensor::randn([5], DType::F32, CPU, rng).unwrap();
            x.cast(dtype).unwrap()
        };
        let w = Param::new(draw(&mut rng));
        let factors: Vec<Tensor> = (0..n).map(|_| draw(&mut rng)).collect();
        let halves = factors.split_at(n / 2);
        let seed = || Some(Tensor::ones([5], dtype, CPU).unwrap());
        let run = |nested: bool| {
            let tape = Tape::new();
            let y = match nested {
                false => weighted(&tape, &w, &factors).unwrap(),
                true => {
                    let (inside, of) = (halves.0.to_vec(), w.clone());
                    let inner = move |tape: &Tape, _: &[Var]| weighted(tape, &of, &inside);
                    let inner = checkpoint(&tape, &[], inner).unwrap();
                    inner.add(&weighted(&tape, &w, halves.1).unwrap()).unwrap()
                }
            };
            let how = Backward {
                roots: &[(&y, seed())],
                ..Backward::default()
            };
            tape.sweep(how).unwrap().take(&w).unwrap()
        };
        for nested in [false, true] {
            let got = run(nested);
            assert_eq!(got.dtype(), DType::F32);
            for (i, got) in vals(&got).into_iter().enumerate() {
                let terms = || factors.iter().map(|f| vals(f)[i]);
                let (sum, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                assert!(
                    (got - sum).abs() <= size * n as f64 * 0.5f64.powi(24),
                    "{dtype}, {n} uses, nested {nested}: {got} is not {sum}"
                );
            }
        }
    }
}

/// Gives its input this gradient.
#[derive(Debug)]
struct Gives(Tensor);

impl Vjp for Gives {
    fn name(&self) -> &'static str {
        "gives"
    }
    fn backward(&self, _: Tensor, _: &[bool]) -> Result<Grads> {
        Ok(Grads::from_iter([Some(self.0.clone())]))
    }
    fn saved_bytes(&self) -> usize {
        tensor_bytes(&self.0)
    }
}

#[test]
fn a_gradient_of_another_type_is_an_error_at_the_first_use_already() {
    use DType::{BF16, F16, F32, F64};
    for (of, given, fits) in [
        (BF16, BF16, true),
        (BF16, F32, true), // a sum that was made in f32
        (F16, F32, true),
        (F32, F32, true),
        (BF16, F16, false),
        (F16, F64, false),
        (F32, BF16, false),
        (F32, F64, false),
        (F64, F32, false),
    ] {
        for (uses, behind) in [(1, false), (2, false), (1, true)] {
            let w = Param::new(full(1.0, of));
            let tape = Tape::new();
            let leaf = tape.leaf(&w);
            let x = match behind {
                true => strict(&[&leaf], false).unwrap(),
                false => leaf,
            };
            let give = || {
                let value = Tensor::ones((), F32, CPU).unwrap();
                Var::from_vjp(&tape, &[&x], value, |_| Gives(full(3.0, given))).unwrap()
            };
            let ends: Vec<Var> = (0..uses).map(|_| give()).collect();
            let roots: Vec<_> = ends.iter().map(|end| (end, None)).collect();
            let result = tape.sweep(Backward {
                roots: &roots,
                ..Backward::default()
            });
            match (fits, result) {
                (true, Ok(gradients)) => {
                    let grad = gradients.get(&w).unwrap();
                    assert_eq!(grad.dtype(), w.grad_dtype());
                    assert_eq!(vals(grad), [3.0 * f64::from(uses); 2]);
                }
                (false, Err(Error::VjpContract { vjp: "gives", .. })) => {}
                (_, other) => panic!("{given} for {of}, {uses} times: {other:?}"),
            }
        }
    }
}

#[test]
fn gradients_that_are_put_in_may_be_half() {
    let w = Param::new(full(1.0, DType::BF16));
    assert_eq!(w.grad_dtype(), DType::F32);
    let of = |grad: Tensor| {
        let mut gradients = Gradients::new();
        gradients.insert(&w, grad);
        gradients
    };
    let halves = [DType::BF16, DType::F32];
    for (a, b) in halves.into_iter().flat_map(|a| halves.map(|b| (a, b))) {
        let mut sum = of(full(256.0, a));
        let shared = full(1.0, b);
        sum.accumulate(of(shared.clone())).unwrap();
        sum.accumulate(of(shared)).unwrap();
        let found = sum.get(&w).unwrap();
        assert_eq!((found.dtype(), vals(found)), (DType::F32, vec![258.0; 2]));
    }
    // A sum that is refused is still there.
    let mut sum = of(full(5.0, DType::F32));
    let e = sum.accumulate(of(full(1.0, DType::F16))).unwrap_err();
    assert!(matches!(e, Error::InvalidArgument { .. }), "{e}");
    assert_eq!(vals(sum.get(&w).unwrap()), [5.0; 2]);
}

#[test]
fn a_half_linear_learns_from_many_micro_batches() {
    // y = w x + b with x = ±1: one step along the mean of all gradients goes to the end, where all
    // of them count.
    let dtype = DType::BF16;
    let make = |values: &[f32]| {
        let t = Tensor::from_slice(values, [values.len(), 1], CPU).unwrap();
        t.cast(dtype).unwrap()
    };
    let (goal, bias) = ([1.5f32, -0.75, 0.5, 2.0], 0.25f32);
    let (w, b) = (Param::new(make(&[0.0; 4])), Param::new(make(&[0.0])));
    let config = SgdConfig {
        lr: 0.5,
        ..SgdConfig::default()
    };
    let mut sgd = Sgd::new(vec![w.clone(), b.clone()], config).unwrap();
    const N: usize = 2048;
    for _ in 0..2 {
        let mut sum = Gradients::new();
        let tape = Tape::new();
        for i in 0..N {
            let x: [f32; 4] = std::array::from_fn(|k| if i >> k & 1 == 0 { 1.0 } else { -1.0 });
            let y = bias + x.iter().zip(goal).map(|(x, g)| x * g).sum::<f32>();
            let x = tape.constant(make(&x).t().unwrap());
            let out = x
                .matmul(&tape.leaf(&w))
                .unwrap()
                .add(&tape.leaf(&b))
                .unwrap();
            let error = out.sub(&tape.constant(make(&[y]))).unwrap();
            let loss = error.square().unwrap().mul_scalar(1.0 / N as f64).unwrap();
            sum.accumulate(tape.backward(&loss.sum_all().unwrap()).unwrap())
                .unwrap();
        }
        sgd.step(&sum).unwrap();
        assert_eq!(w.dtype(), dtype);
        assert_eq!(vals(&w.value().unwrap()), goal.map(f64::from));
        assert_eq!(vals(&b.value().unwrap()), [f64::from(bias)]);
    }
}
