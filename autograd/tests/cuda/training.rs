//! Training on a card against training on the CPU.

use phalanx_autograd::nn::{Activation, Factory, Linear, Module, Sequential};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Result, Tape};
use phalanx_tensor::{DType, Device, Rng, Tensor};

use crate::support::{distance, read};

/// What training leaves: the losses and all parameters.
struct Outcome {
    losses: Vec<f64>,
    params: Vec<f64>,
}

/// Twenty steps of an MLP of odd sizes, which is made on the CPU and trained on `device`.
fn train(device: Device, dtype: DType, seed: u64) -> Result<Outcome> {
    let mut f = Factory::new(Device::cpu(0), seed);
    f.dtype = dtype;
    let model = Sequential::new()
        .with(Linear::new(7, 33, &mut f)?.with_activation(Activation::Relu))
        .with(Linear::new(33, 17, &mut f)?.with_activation(Activation::Silu))
        .with(Linear::new(17, 5, &mut f)?);
    for param in model.parameters() {
        param.to_device(device)?;
    }
    let mut rng = Rng::new(seed + 1);
    let x = Tensor::randn([19, 7], dtype, Device::cpu(0), &mut rng)?;
    let y = x.narrow(1, 0, 5)?.sin()?.to_device(device)?;
    let x = x.to_device(device)?;
    let config = SgdConfig {
        lr: 0.05,
        momentum: 0.9,
        weight_decay: 1e-3,
        ..SgdConfig::default()
    };
    let mut sgd = Sgd::new(model.parameters(), config)?;
    let tape = Tape::new();
    let mut losses = Vec::new();
    let mut reserved = (0, 0);
    for step in 0..20 {
        let out = model.forward(&tape, &tape.constant(x.clone()))?.tanh()?;
        let loss = out.sub(&tape.constant(y.clone()))?.square()?.mean_all()?;
        losses.push(loss.item::<f64>()?);
        sgd.step(&tape.backward(&loss)?)?;
        drop((out, loss));
        let memory = device.memory()?;
        let now = (memory.reserved, memory.system_allocations);
        match step {
            0..3 => reserved = now,
            _ => assert_eq!(
                now, reserved,
                "after the third step the system is asked for memory"
            ),
        }
    }
    let mut params = Vec::new();
    for param in model.parameters() {
        params.extend(read(&param.value()?));
    }
    Ok(Outcome { losses, params })
}

#[test]
fn an_mlp_trains_as_on_the_cpu() {
    let (device, _turn) = card!();
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
        for seed in [1, 2, 3] {
            let here = train(Device::cpu(0), dtype, seed).unwrap();
            let there = train(device, dtype, seed).unwrap();
            assert!(here.losses[19] < 0.9 * here.losses[0], "{:?}", here.losses);
            for (name, got, expected) in [
                ("losses", &there.losses, &here.losses),
                ("parameters", &there.params, &here.params),
            ] {
                let apart = distance(got, expected);
                eprintln!("{dtype}, seed {seed}: {name} are {apart:.1e} apart");
                assert!(
                    apart <= tolerance,
                    "{dtype}, seed {seed}: {name} are {apart} apart"
                );
            }
        }
    }
}
