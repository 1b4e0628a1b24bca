//! What a training step costs outside its kernels: the steps of networks so small that the kernels
//! cost next to nothing. Run on an idle machine: `cargo run --release --example overhead`.

use phalanx_autograd::nn::{Activation, Factory, Linear, Module, Sequential, cross_entropy};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Result, Tape};
use phalanx_tensor::{DType, Device, Rng, Tensor, cpu};
use std::time::Instant;

/// Median microseconds of each phase of a step, and of the whole.
fn measure(dims: &[usize], batch: usize) -> Result<[f64; 4]> {
    let device = Device::cpu(0);
    let mut f = Factory::new(device, 1);
    let mut model = Sequential::new();
    for (i, pair) in dims.windows(2).enumerate() {
        let last = i + 2 == dims.len();
        let activation = if last {
            Activation::None
        } else {
            Activation::Relu
        };
        model = model.with(Linear::new(pair[0], pair[1], &mut f)?.with_activation(activation));
    }
    let config = SgdConfig {
        lr: 0.01,
        momentum: 0.9,
        ..SgdConfig::default()
    };
    let mut sgd = Sgd::new(model.parameters(), config)?;
    let x = Tensor::randn([batch, dims[0]], DType::F32, device, &mut f.rng)?;
    let y = Tensor::randint(
        0,
        dims[dims.len() - 1] as i64,
        [batch],
        device,
        &mut Rng::new(2),
    )?;
    let tape = Tape::new();
    let mut times: [Vec<f64>; 4] = Default::default();
    for _ in 0..3000 {
        let start = Instant::now();
        let logits = model.forward(&tape, &tape.constant(x.clone()))?;
        let loss = cross_entropy(&logits, &y)?;
        let forward = start.elapsed();
        let gradients = tape.backward(&loss)?;
        let backward = start.elapsed();
        sgd.step(&gradients)?;
        drop((gradients, logits, loss));
        let whole = start.elapsed();
        let phases = [forward, backward - forward, whole - backward, whole];
        for (times, phase) in times.iter_mut().zip(phases) {
            times.push(phase.as_secs_f64() * 1e6);
        }
    }
    Ok(times.map(|mut t| {
        t.sort_by(f64::total_cmp);
        t[t.len() / 2]
    }))
}

fn main() -> Result<()> {
    println!("microseconds a step, one thread: forward, backward, optimizer, whole");
    cpu::with_threads(1, || {
        for (what, dims, batch) in [
            ("1-1-1, batch 1", &[1, 1, 1][..], 1),
            ("784-128-10, batch 64", &[784, 128, 10], 64),
        ] {
            let [forward, backward, step, whole] = measure(dims, batch)?;
            println!("{what:22} {forward:8.2} {backward:8.2} {step:8.2} {whole:8.2}");
        }
        Ok(())
    })
}
