//! PyTorch's DistributedDataParallel on 2 ranks: losses, first gradients, parameters after 5 steps.

use crate::model::{Mlp, assert_close, mse, on_ranks, values};
use phalanx_autograd::Tape;
use phalanx_autograd::nn::Module;
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_parallel::{Ddp, DdpConfig};
use phalanx_tensor::{DType, Device, Tensor};

#[derive(serde::Deserialize)]
struct Golden {
    world: usize,
    ranks: Vec<Vec<Mode>>,
}

#[derive(serde::Deserialize)]
struct Mode {
    mode: String,
    local_loss: Vec<f64>,
    grad_step0: Vec<Vec<f64>>,
    params_final: Vec<Vec<f64>>,
}

/// The recipe's integers: `(((i + 1) * 7919 + s * 104729) % 97 - 48) / 64`.
fn fill(n: usize, s: usize) -> Vec<f32> {
    (0..n)
        .map(|i| (((i + 1) * 7919 + s * 104_729) % 97) as f32)
        .map(|v| (v - 48.0) / 64.0)
        .collect()
}

fn batch(rank: usize, step: usize, device: Device) -> (Tensor, Tensor) {
    let doubled = |n, s| {
        fill(n, s)
            .into_iter()
            .map(|v| 2.0 * v)
            .collect::<Vec<f32>>()
    };
    let x = Tensor::from_vec(doubled(8, 100 + 10 * rank + step), [2, 4], device).unwrap();
    let y = Tensor::from_vec(fill(6, 500 + 10 * rank + step), [2, 3], device).unwrap();
    (x, y)
}

#[test]
fn ddp_reproduces_pytorch_in_every_mode() {
    let golden: Golden = serde_json::from_str(include_str!("../golden/ddp_ws2.json")).unwrap();
    let modes = ["plain25", "tinybuckets", "nosync2"];
    assert_eq!(golden.ranks.len(), golden.world);
    for (m, name) in modes.iter().enumerate() {
        on_ranks(golden.world, |group| {
            let rank = group.rank();
            let want = &golden.ranks[rank][m];
            assert_eq!(want.mode, *name);
            let device = group.device();
            let model = Mlp::new(&[4, 6, 5, 3], DType::F32, device, 7 + rank as u64);
            for (k, p) in model.params().iter().enumerate() {
                // Rank 1 starts elsewhere, to be corrected by the wrapper.
                let values = fill(p.shape().numel(), k + 90 * rank);
                p.set(Tensor::from_vec(values, p.shape(), device)?)?;
            }
            let config = match *name {
                "tinybuckets" => DdpConfig {
                    first_bucket_bytes: Some(1),
                    bucket_cap_bytes: Some(64),
                    in_place_bytes: Some(100),
                    ..Default::default()
                },
                _ => DdpConfig::default(),
            };
            let ddp = Ddp::new(model, group, config)?;
            let count = ddp.parameters().len();
            assert_eq!(
                (want.grad_step0.len(), want.params_final.len()),
                (count, count)
            );
            let mut sgd = Sgd::new(
                ddp.parameters(),
                SgdConfig {
                    lr: 0.1,
                    momentum: 0.9,
                    ..Default::default()
                },
            )?;
            let tape = Tape::new();
            for step in 0..5 {
                let forward = |data: usize| -> phalanx_parallel::Result<_> {
                    let (x, y) = batch(rank, data, device);
                    let loss = mse(&ddp.forward(&tape, &tape.constant(x))?, &tape.constant(y))?;
                    Ok(loss)
                };
                let gradients = if *name == "nosync2" {
                    let first = forward(2 * step)?.mul_scalar(0.5)?;
                    ddp.accumulate(&tape, &first)?;
                    let second = forward(2 * step + 1)?.mul_scalar(0.5)?;
                    ddp.backward(&tape, &second)?
                } else {
                    let loss = forward(step)?;
                    assert_close(
                        &[loss.item::<f64>()?],
                        &want.local_loss[step..=step],
                        1e-6,
                        "local loss",
                    );
                    ddp.backward(&tape, &loss)?
                };
                if step == 0 {
                    for (p, want) in ddp.parameters().iter().zip(&want.grad_step0) {
                        assert_close(&values(gradients.get(p).unwrap()), want, 1e-6, name);
                    }
                }
                sgd.step(&gradients)?;
            }
            for (p, want) in ddp.parameters().iter().zip(&want.params_final) {
                assert_close(&values(&p.value().unwrap()), want, 1e-6, name);
            }
            if *name == "tinybuckets" {
                assert!(ddp.buckets().unwrap().len() >= 3, "{:?}", ddp.buckets());
            }
            Ok(())
        });
    }
}
