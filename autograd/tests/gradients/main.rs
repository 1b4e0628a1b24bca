//! Every differentiable operation against central differences in `f64`, over random shapes, strides
//! and broadcasts; `f32` and the half types against `f64`; and a check that none is missing here.

mod arguments;
mod row;
mod table;
#[path = "../../../tensor/tests/ops/util.rs"]
mod util;

use phalanx_autograd::{Backward, Result, Tape, Var};
use phalanx_tensor::{DType, Device, Tensor, unary_table};
use row::{Case, Row};
use table::rows;
use util::{TestRng, assert_gradient, assert_same, device, rounding, values};

/// Random cases of each row; fewer on a card, which may be a simulated one.
fn count() -> u64 {
    match device() {
        Device::Cpu(_) => 24,
        _ => 4,
    }
}

/// The function's value alone.
fn value(case: &Case, inputs: &[Tensor]) -> Result<Tensor> {
    let tape = Tape::inference();
    let vars: Vec<Var> = inputs.iter().map(|x| tape.constant(x.clone())).collect();
    Ok((case.f)(&tape, &vars)?.into_value())
}

/// The gradients of the inputs that `wanted` picks, given that of the result.
fn gradients(
    case: &Case,
    inputs: &[Tensor],
    wanted: impl Fn(usize) -> bool,
    seed: impl FnOnce(&Var) -> Tensor,
) -> Result<Vec<Option<Tensor>>> {
    let tape = Tape::new();
    let mut vars = Vec::new();
    for (i, x) in inputs.iter().enumerate() {
        vars.push(match wanted(i) {
            true => tape.input(x.clone())?,
            false => tape.constant(x.clone()),
        });
    }
    let out = (case.f)(&tape, &vars)?;
    let mut all = tape.sweep(Backward {
        roots: &[(&out, Some(seed(&out)))],
        ..Backward::default()
    })?;
    Ok(vars.iter().map(|v| all.take_wrt(v)).collect())
}

fn cases(row: &Row) -> impl Iterator<Item = (String, TestRng, Case)> {
    let name = row.ops.join("+");
    (0..count()).map(move |seed| {
        let mut rng = TestRng::new(seed * 7919 + name.len() as u64);
        let case = (row.make)(&mut rng);
        let shapes: Vec<_> = case.inputs.iter().map(|x| x.shape().to_string()).collect();
        (
            format!("{name} of {}, case {seed}", shapes.join(" ")),
            rng,
            case,
        )
    })
}

#[test]
fn central_differences_agree() {
    for row in rows() {
        for (what, mut rng, case) in cases(row) {
            let out = value(&case, &case.inputs).unwrap_or_else(|e| panic!("{what}: {e}"));
            let seed = rng.tensor(out.dims(), DType::F64, (-1.0, 1.0));
            let all = gradients(&case, &case.inputs, |_| true, |_| seed.clone()).unwrap();
            for (i, grad) in all.iter().enumerate() {
                let grad = grad
                    .as_ref()
                    .unwrap_or_else(|| panic!("{what}: none for input {i}"));
                let f = |inputs: &[Tensor]| value(&case, inputs).unwrap();
                let what = format!("{what}, input {i}");
                assert_gradient(f, &case.inputs, i, &seed, grad, &what);
                // What else wants a gradient does not change this one.
                let alone = gradients(&case, &case.inputs, |k| k == i, |_| seed.clone()).unwrap();
                assert_same(alone[i].as_ref().unwrap(), grad, &what);
                assert!(alone.iter().flatten().count() == 1, "{what}");
            }
        }
    }
}

#[test]
fn single_and_half_precision_agree_with_f64() {
    for row in rows().filter(|row| !row.f64_only) {
        for (what, mut rng, case) in cases(row) {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let what = format!("{what}, {dtype}");
                let low: Vec<_> = case.inputs.iter().map(|x| x.cast(dtype).unwrap()).collect();
                // The reference starts from the rounded inputs.
                let high: Vec<_> = low.iter().map(|x| x.cast(DType::F64).unwrap()).collect();
                let (got, want) = (value(&case, &low).unwrap(), value(&case, &high).unwrap());
                let out = if row.wide { DType::F32 } else { dtype };
                assert_eq!(got.dtype(), out, "{what}");
                let close = |got: &Tensor, want: &Tensor, what: &str| {
                    let want_values = values(want);
                    assert_eq!(got.dims(), want.dims(), "{what}");
                    let largest = want_values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                    // One that vanishes, as softmax's does for equal seeds, has only the scale of
                    // its terms.
                    let scale = if largest < 1e-12 { 1.0 } else { largest };
                    // The half types compute in `f32`, with intermediate values of about 1, and
                    // round the result: as large as it is, so that zeros do not pass.
                    let inside = rounding(DType::F32) * scale.max(1.0);
                    let tol = row.roundings * (rounding(dtype) * scale).max(inside);
                    for (i, (got, want)) in values(got).iter().zip(&want_values).enumerate() {
                        assert!(
                            (got - want).abs() <= tol,
                            "{what}: element {i} is {got:e}, not {want:e} within {tol:e}"
                        );
                    }
                };
                close(&got, &want, &what);
                let seed = rng.tensor(want.dims(), out, (-1.0, 1.0));
                let wide = seed.cast(DType::F64).unwrap();
                let low = gradients(&case, &low, |_| true, |_| seed.clone()).unwrap();
                let high = gradients(&case, &high, |_| true, |_| wide.clone()).unwrap();
                for (i, (low, high)) in low.iter().zip(&high).enumerate() {
                    let what = format!("{what}, input {i}");
                    let low = low.as_ref().unwrap();
                    assert_eq!(low.dtype(), dtype, "{what}");
                    close(low, high.as_ref().unwrap(), &what);
                }
            }
        }
    }
}

#[test]
fn gradients_of_half_reductions_round_once() {
    let gradient = |x: &Tensor, f: &dyn Fn(&Var) -> Result<Var>| {
        let tape = Tape::new();
        let x = tape.input(x.clone()).unwrap();
        let all = tape.backward(&f(&x).unwrap()).unwrap();
        let slope = all.wrt(&x).unwrap();
        assert_eq!(slope.dtype(), x.dtype());
        values(slope)
    };
    for dtype in [DType::BF16, DType::F16] {
        // One more than the type can count.
        let n = (1.0 / rounding(dtype)) as usize + 1;
        let equal = Tensor::full([n], 3.0, dtype, device()).unwrap();
        let share = values(&util::tensor_of(&[1.0 / n as f64], &[1], dtype))[0];
        assert_ne!(share, rounding(dtype), "{dtype}");
        for axes in [&[0isize][..], &[-1]] {
            let got = gradient(&equal, &|x| x.max(axes, false));
            assert_eq!(got, vec![share; n], "{dtype}");
        }
        assert_eq!(gradient(&equal, &|x| x.min(&[0], true)), vec![share; n]);

        // The mean of these lies between two numbers of the type.
        let step = 2.0 * rounding(dtype);
        let x = util::tensor_of(&[1.0, 1.0, 1.0 + step], &[3], dtype);
        let got = gradient(&x, &|x| x.var(&[0], 0, false));
        let want = [-1.0, -1.0, 2.0].map(|d| d * step / 3.0 * 2.0 / 3.0);
        for (got, want) in got.iter().zip(want) {
            let error = (got - want).abs() / want.abs();
            assert!(error < 1.01 * rounding(dtype), "{dtype}: {got}, not {want}");
        }
    }
}

/// The slopes at ties, at limits and at NaN, as PyTorch's `derivatives.yaml` has them: `where(a == b,
/// g / 2, g)`, then 0 where the side loses, for `maximum` and `minimum`; `x >= low && x <= high`
/// for `clamp`; not `x <= 0` for `relu`.
#[test]
fn ties_and_nan_have_pytorchs_slopes() {
    const NAN: f64 = f64::NAN;
    fn slopes(inputs: &[f64], f: impl Fn(&[Var]) -> Result<Var>) -> Vec<f64> {
        let tape = Tape::new();
        let input = |v: &f64| tape.input(util::tensor_of(&[*v], &[1], DType::F64));
        let x: Vec<Var> = inputs.iter().map(|v| input(v).unwrap()).collect();
        let all = tape.backward(&f(&x).unwrap()).unwrap();
        x.iter().map(|x| values(all.wrt(x).unwrap())[0]).collect()
    }
    for (pair, larger, smaller) in [
        ([2.0, 1.0], [1.0, 0.0], [0.0, 1.0]),
        ([1.0, 2.0], [0.0, 1.0], [1.0, 0.0]),
        ([1.5, 1.5], [0.5, 0.5], [0.5, 0.5]),
        ([0.0, -0.0], [0.5, 0.5], [0.5, 0.5]),
        ([NAN, 1.0], [1.0, 1.0], [1.0, 1.0]),
        ([1.0, NAN], [1.0, 1.0], [1.0, 1.0]),
        ([NAN, NAN], [1.0, 1.0], [1.0, 1.0]),
    ] {
        assert_eq!(slopes(&pair, |x| x[0].maximum(&x[1])), larger, "{pair:?}");
        assert_eq!(slopes(&pair, |x| x[0].minimum(&x[1])), smaller, "{pair:?}");
    }
    let each = |f: fn(&Var) -> Result<Var>, at: &[f64]| {
        let slope = |&x: &f64| slopes(&[x], |x| f(&x[0]))[0];
        at.iter().map(slope).collect::<Vec<_>>()
    };
    let at = [-1.0, 0.0, 1.0, 2.0, NAN];
    assert_eq!(each(|x| x.relu(), &at), [0.0, 0.0, 1.0, 1.0, 1.0]);
    let clamp = each(|x| x.clamp(0.0, 1.0), &at);
    assert_eq!(clamp, [0.0, 1.0, 1.0, 0.0, 0.0]);
    let low = each(|x| x.maximum_scalar(0.0), &at);
    assert_eq!(low, [0.0, 1.0, 1.0, 1.0, 0.0]);
    let high = each(|x| x.minimum_scalar(1.0), &at);
    assert_eq!(high, [1.0, 1.0, 1.0, 0.0, 0.0]);
    let abs = each(|x| x.abs(), &at);
    assert!(abs[..4] == [-1.0, 0.0, 1.0, 1.0] && abs[4].is_nan());
}

#[test]
fn a_cast_passes_the_gradient_and_a_cast_to_integers_does_not() {
    let tape = Tape::new();
    let x = tape
        .input(util::tensor_of(&[1.1, -2.3], &[2], DType::F64))
        .unwrap();
    assert!(!x.cast(DType::I64).unwrap().requires_grad());
    let y = x.cast(DType::BF16).unwrap().square().unwrap();
    assert_eq!(y.dtype(), DType::BF16);
    let seed = util::tensor_of(&[1.0, 1.0], &[2], DType::BF16);
    let how = Backward {
        roots: &[(&y, Some(seed))],
        ..Backward::default()
    };
    let gradients = tape.sweep(how).unwrap();
    let rounded = values(&x.value().cast(DType::BF16).unwrap());
    let twice: Vec<f64> = rounded.iter().map(|v| 2.0 * v).collect();
    let slope = gradients.wrt(&x).unwrap();
    assert_eq!(slope.dtype(), DType::F64);
    assert_eq!(values(slope), twice);
}

/// The names of the tensor's table.
macro_rules! names {
    (|$vx:ident, $vout:ident, $vg:ident| $({ $Name:ident $name:ident $($rest:tt)* })*) => {
        [$(stringify!($name)),*]
    };
}

#[test]
fn no_operation_is_missing_from_the_table() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/ops");
    let mut operations = unary_table!(names).map(str::to_owned).to_vec();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let before = operations.len();
        for line in text.lines() {
            // A method written out, or a row of a table: `    Relu: relu() [out] …`.
            let written = line.trim_start().strip_prefix("pub fn ");
            let row = line.strip_prefix("    ").and_then(|l| l.split_once(": "));
            let row = row.filter(|(vjp, _)| vjp.starts_with(char::is_uppercase));
            let name = match (written, row) {
                (Some(rest), _) => rest,
                (_, Some((vjp, rest))) if vjp.chars().all(char::is_alphanumeric) => rest,
                _ => continue,
            };
            if name.starts_with('$') {
                continue; // the method of a table
            }
            let end = name.find(|c: char| c != '_' && !c.is_alphanumeric());
            operations.push(name[..end.unwrap_or(name.len())].to_owned());
        }
        let exempt = path.ends_with("mod.rs");
        assert!(
            exempt || operations.len() > before,
            "{} defines none?",
            path.display()
        );
    }
    assert!(operations.len() > 60, "{operations:?}");
    let tested: Vec<&str> = rows().flat_map(|row| row.ops).copied().collect();
    let missing: Vec<_> = operations
        .iter()
        .filter(|op| !tested.contains(&op.as_str()))
        .collect();
    assert!(missing.is_empty(), "not in the table: {missing:?}");
    let unknown: Vec<_> = tested
        .iter()
        .filter(|op| !operations.iter().any(|known| known == **op))
        .collect();
    assert!(
        unknown.is_empty(),
        "in the table, but no operation: {unknown:?}"
    );
}
