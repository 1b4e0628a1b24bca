//! Programs that recurse as deep as the user nests: a rank's thread has the stack for it (pytorch#5534). The figures are
//! those of a debug build, whose frames are the largest.

use phalanx_autograd::nn::{Factory, Linear, Module, Sequential};
use phalanx_autograd::{Result, Tape, Var, checkpoint};
use phalanx_comm::{ProcessGroup, launch};
use phalanx_parallel::{Ddp, DdpConfig};
use phalanx_tensor::{DType, Device, Tensor};

/// Modules within modules.
const MODULES: usize = 3000;
/// Checkpoints within checkpoints.
const CHECKPOINTS: usize = 1000;

fn ones(group: &dyn ProcessGroup) -> phalanx_tensor::Result<Tensor> {
    Tensor::ones([1, 1], DType::F64, group.device())
}

/// A layer at each depth, whose weight is 1.
fn nested(depth: usize, device: Device) -> Result<Sequential> {
    let mut factory = Factory::new(device, 7);
    let mut model = Sequential::new();
    for _ in 0..depth {
        let layer = Linear::new(1, 1, &mut factory)?;
        for (name, param) in layer.named_parameters() {
            let value = f64::from(u8::from(name == "weight"));
            param.set(Tensor::full(param.shape(), value, DType::F32, device)?)?;
        }
        model = Sequential::new().with(layer).with(model);
    }
    Ok(model)
}

/// Forward, backward, `drop` and the visit, alone and by `Ddp`.
#[test]
fn modules_nested_three_thousand_deep() {
    let end = launch(2, |group| -> Result<(usize, f64)> {
        let model = nested(MODULES, group.device())?;
        let parameters = model.named_parameters();
        let (deepest, _) = parameters.last().expect("there are some");
        assert_eq!(deepest.split('.').count(), MODULES + 1);

        let tape = Tape::new();
        let x = tape.constant(ones(&*group)?.cast(DType::F32)?);
        let loss = model.forward(&tape, &x)?.sum_all()?;
        let gradients = tape.backward(&loss)?;
        let count = parameters.len();
        for (name, param) in parameters {
            let slope = gradients.get(&param).map(Tensor::item).transpose()?;
            assert_eq!(slope, Some(1.0), "{} deep", name.split('.').count());
        }
        drop(model);

        let model = nested(MODULES, group.device())?;
        let ddp = Ddp::new(model, group.clone(), DdpConfig::default()).expect("ranks agree");
        let loss = ddp.forward(&tape, &x)?.sum_all()?;
        ddp.backward(&tape, &loss).expect("ranks agree");
        Ok((count, loss.item::<f64>()?))
    });
    let ends = end.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(ends, vec![(2 * MODULES, 1.0); 2]);
}

/// `x ↦ x + depth`, each step within the checkpoint of the step around it.
fn steps(tape: &Tape, x: &Var, depth: usize) -> Result<Var> {
    match depth {
        0 => Ok(x.clone()),
        _ => checkpoint(tape, &[x], move |tape, x| {
            steps(tape, &x[0].add_scalar(1.0)?, depth - 1)
        }),
    }
}

#[test]
fn checkpoints_nested_a_thousand_deep() {
    let end = launch(1, |group| -> Result<(f64, Option<f64>)> {
        let tape = Tape::new();
        let x = tape.input(ones(&*group)?)?;
        let y = steps(&tape, &x, CHECKPOINTS)?.sum_all()?;
        let gradients = tape.backward(&y)?;
        Ok((y.item()?, gradients.wrt(&x).map(Tensor::item).transpose()?))
    });
    let ends = end.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(ends, [(1.0 + CHECKPOINTS as f64, Some(1.0))]);
}
