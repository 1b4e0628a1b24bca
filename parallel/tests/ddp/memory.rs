//! A training step at steady state takes nothing from the system and leaves nothing behind.

use crate::model::{Mlp, mse, on_ranks, own_gradients};
use phalanx_autograd::Tape;
use phalanx_autograd::nn::{BatchNorm2d, Factory, Linear, Module, Sequential};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_parallel::{Ddp, DdpConfig};
use phalanx_tensor::{DType, Device, Tensor};

#[test]
fn after_warm_up_a_step_takes_no_memory_from_the_system() {
    steady(500, |device| {
        Mlp::new(&[64, 300, 200, 10], DType::F32, device, 1)
    });
}

#[test]
fn after_warm_up_buffers_take_no_memory_from_the_system_either() {
    steady(700, |device| {
        let mut f = Factory::new(device, 1);
        Sequential::new()
            .with(Linear::new(64, 300, &mut f).unwrap())
            .with(BatchNorm2d::new(300, &mut f).unwrap())
            .with(Linear::new(300, 10, &mut f).unwrap())
    });
}

/// Trains a model of 64 inputs and 10 outputs on devices from this one on, which are the test's
/// own: their accounts see nothing else.
fn steady<M: Module>(first_device: usize, model: impl Fn(Device) -> M + Sync) {
    for world in [1, 2, 4] {
        on_ranks(world, |group| {
            let device = Device::cpu(first_device + 10 * world + group.rank());
            let model = model(device);
            let barrier = group.clone();
            let ddp = Ddp::new(
                model,
                group,
                DdpConfig {
                    bucket_cap_bytes: Some(10_000),
                    ..Default::default()
                },
            )?;
            let mut sgd = Sgd::new(
                ddp.parameters(),
                SgdConfig {
                    lr: 0.01,
                    momentum: 0.9,
                    ..Default::default()
                },
            )?;
            let x = Tensor::ones([32, 64], DType::F32, device)?;
            let y = Tensor::zeros([32, 10], DType::F32, device)?;
            let tape = Tape::new();
            let mut after = Vec::new();
            for _ in 0..12 {
                let loss = mse(
                    &ddp.forward(&tape, &tape.constant(x.clone()))?,
                    &tape.constant(y.clone()),
                )?;
                let gradients = ddp.backward(&tape, &loss)?;
                sgd.step(&gradients)?;
                drop((loss, gradients));
                // Another rank may still read this rank's gradients: all have to be through.
                barrier.barrier()?.wait()?;
                after.push(device.memory()?);
            }
            let (warm, last) = (after[3], after[11]);
            assert_eq!(
                warm.system_allocations, last.system_allocations,
                "{after:?}"
            );
            assert!(after[3..].iter().all(|m| m.live == warm.live), "{after:?}");
            assert!(
                last.peak > last.live && last.peak <= last.reserved,
                "{last:?}"
            );
            Ok(())
        });
    }
}

#[test]
fn large_gradients_are_reduced_where_they_lie() {
    const DIMS: [usize; 4] = [64, 300, 200, 10];
    // The peak of a backward, with and without the wrapper, on devices of this test's own.
    let peaks = on_ranks(2, |group| {
        let mut peaks = Vec::new();
        for (i, wrapped) in [false, true].into_iter().enumerate() {
            let device = Device::cpu(600 + 2 * group.rank() + i);
            let model = Mlp::new(&DIMS, DType::F32, device, 1);
            let x = Tensor::ones([32, 64], DType::F32, device)?;
            let y = Tensor::zeros([32, 10], DType::F32, device)?;
            let config = DdpConfig {
                in_place_bytes: Some(1),
                ..Default::default()
            };
            let ddp = Ddp::new(model, group.clone(), config)?;
            let tape = Tape::new();
            for _ in 0..2 {
                let y = tape.constant(y.clone());
                let loss = mse(&ddp.forward(&tape, &tape.constant(x.clone()))?, &y)?;
                device.reset_peak()?;
                let gradients = match wrapped {
                    true => ddp.backward(&tape, &loss)?,
                    false => own_gradients(&ddp, &tape, &loss)?,
                };
                drop(gradients);
                group.barrier()?.wait()?;
            }
            peaks.push(device.memory()?.peak);
        }
        Ok(peaks)
    });
    for peak in peaks {
        assert_eq!(
            peak[0], peak[1],
            "the wrapper takes no memory of its own for large gradients"
        );
    }
}
