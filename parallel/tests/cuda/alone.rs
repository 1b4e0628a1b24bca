//! A group of one rank on a card: a collective gives the rank's own tensor back, `Ddp` gives the gradients that a
//! plain backward gives, and no step waits.

use phalanx_autograd::nn::{BatchNorm2d, Factory, Linear, Module, Relu, Sequential, mse};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Param, Tape};
use phalanx_comm::{LaunchConfig, ProcessGroup, ReduceOp, Work, launch};
use phalanx_parallel::ddp::{CommHook, Completion, GradBucket};
use phalanx_parallel::{Ddp, DdpConfig, Error, Result};
use phalanx_tensor::{DType, Device, Tensor};
use std::sync::Arc;

use crate::counts::Counts;
use crate::support::{read, values};

#[test]
fn a_rank_alone_gets_its_own_tensor_back() {
    let (device, _turn) = card!();
    crate::collectives::it_gets_its_own_tensor_back(device);
}

/// Layers whose gradients share a bucket, and a buffer that moves.
fn model(device: Device) -> Result<Sequential> {
    let mut f = Factory::new(device, 11);
    Ok(Sequential::new()
        .with(Linear::new(7, 12, &mut f)?)
        .with(BatchNorm2d::new(12, &mut f)?)
        .with(Relu)
        .with(Linear::new(12, 3, &mut f)?))
}

fn batch(device: Device) -> Result<(Tensor, Tensor)> {
    let x = values(&[9, 7], DType::F32, 1).to_device(device)?;
    let y = values(&[9, 3], DType::F32, 2).to_device(device)?;
    Ok((x, y))
}

/// Some steps of `ddp`; what the last backward gave.
fn steps<M: Module>(ddp: &Ddp<M>, sgd: &mut Sgd, device: Device, n: usize) -> Result<Tensor> {
    let mut last = None;
    for _ in 0..n {
        let (x, y) = batch(device)?;
        let tape = Tape::new();
        let out = ddp.forward(&tape, &tape.constant(x))?;
        let loss = mse(&out, &tape.constant(y))?;
        let gradients = ddp.backward(&tape, &loss)?;
        sgd.step(&gradients)?;
        last = gradients.get(&ddp.parameters()[0]).cloned();
        assert_eq!(last.as_ref().map(Tensor::device), Some(device));
    }
    Ok(last.expect("there was a step"))
}

fn sgd(params: Vec<Param>) -> Result<Sgd> {
    let config = SgdConfig {
        lr: 0.05,
        momentum: 0.9,
        ..SgdConfig::default()
    };
    Ok(Sgd::new(params, config)?)
}

#[test]
fn a_step_alone_waits_for_nothing() {
    let (device, _turn) = card!();
    let configs = [
        ("buckets", DdpConfig::default()),
        (
            "each alone",
            DdpConfig {
                in_place_bytes: Some(1),
                ..DdpConfig::default()
            },
        ),
        (
            "weights",
            DdpConfig {
                uneven_inputs: true,
                ..DdpConfig::default()
            },
        ),
    ];
    for (name, config) in configs {
        let config = &config;
        let end = launch(LaunchConfig::new(1).device(device), |group| -> Result<()> {
            let ddp = Ddp::new(model(device)?, group, config.clone())?;
            let mut sgd = sgd(ddp.parameters())?;
            steps(&ddp, &mut sgd, device, 3)?;
            let memory = || {
                let memory = device.memory().unwrap();
                (memory.reserved, memory.system_allocations)
            };
            let reserved = memory();
            for _ in 0..4 {
                // The card catches up: a host that is batches ahead of it waits for a free pinned buffer.
                device.synchronize()?;
                let before = Counts::now();
                steps(&ddp, &mut sgd, device, 1)?;
                assert_eq!(memory(), reserved, "{name}: the system is asked for memory");
                let Some(before) = before else {
                    eprintln!("SKIPPED: {}: a real card does not count", module_path!());
                    continue;
                };
                let made = Counts::now().unwrap().since(before);
                assert_eq!((made.waits, made.pageable), (0, 0), "{name}: {made:?}");
            }
            ddp.check_replicas()
        });
        end.unwrap();
    }
}

/// A hook that does what `Ddp` does without one.
struct Plain;

impl CommHook for Plain {
    fn start(
        &self,
        group: &Arc<dyn ProcessGroup>,
        bucket: GradBucket<'_>,
    ) -> Result<Box<dyn Completion>> {
        Ok(Box::new(Sum(
            group.all_reduce(bucket.buffer, ReduceOp::Sum)?
        )))
    }
}

struct Sum(Work<Tensor>);

impl Completion for Sum {
    fn poll(&mut self) -> bool {
        self.0.poll().unwrap_or(true)
    }

    fn finish(self: Box<Self>) -> Result<Tensor> {
        Ok(self.0.wait()?)
    }
}

/// With every configuration the replica ends where plain training ends, bit for bit.
#[test]
fn a_replica_alone_trains_as_the_plain_module() {
    let (device, _turn) = card!();
    let plain = || -> Result<Vec<f64>> {
        let model = model(device)?;
        let mut sgd = sgd(model.parameters())?;
        for _ in 0..5 {
            let (x, y) = batch(device)?;
            let tape = Tape::new();
            let loss = mse(&model.forward(&tape, &tape.constant(x))?, &tape.constant(y))?;
            sgd.step(&tape.backward(&loss)?)?;
        }
        Ok(everything(&model))
    };
    fn everything(model: &impl Module) -> Vec<f64> {
        let params = model.parameters();
        let params = params.iter().map(|p| p.value().unwrap());
        let buffers = model.named_buffers();
        let buffers = buffers.iter().map(|(_, b)| b.value().unwrap());
        params
            .chain(buffers)
            .flat_map(|value| read(&value))
            .collect()
    }
    let expected = plain().unwrap();
    let hook = Arc::new(Plain);
    let configs = [
        DdpConfig::default(),
        DdpConfig {
            in_place_bytes: Some(1),
            ..DdpConfig::default()
        },
        DdpConfig {
            hook: Some(hook),
            ..DdpConfig::default()
        },
    ];
    for config in configs {
        let config = &config;
        let end = launch(LaunchConfig::new(1).device(device), |group| -> Result<_> {
            let ddp = Ddp::new(model(device)?, group, config.clone())?;
            let mut sgd = sgd(ddp.parameters())?;
            steps(&ddp, &mut sgd, device, 5)?;
            ddp.check_replicas()?;
            Ok::<_, Error>(everything(ddp.module()))
        });
        assert_eq!(end.unwrap().remove(0), expected);
    }
}
