//! What training keeps stays where it is on every rank, on any device: parameters, buffers, the state
//! of the optimizer and the flat buffers of gradients, also while somebody holds a snapshot; and wrapping
//! a module moves nothing. Each test program that includes this file says by `on_own_devices` where the
//! ranks are.

use crate::on_own_devices;
use phalanx_autograd::nn::{BatchNorm2d, Factory, Linear, Module, Sequential, cross_entropy};
use phalanx_autograd::optim::{Adam, AdamConfig, Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Gradients, State, Tape};
use phalanx_parallel::{Ddp, DdpConfig, Result};
use phalanx_tensor::{DType, Device, Rng, Tensor};

fn of_module(module: &dyn Module) -> Vec<u64> {
    let (params, buffers) = (module.named_parameters(), module.named_buffers());
    let params = params.iter().map(|(_, p)| p.read(Tensor::address));
    let buffers = buffers.iter().map(|(_, b)| b.read(Tensor::address));
    params.chain(buffers).collect()
}

fn of_gradients(module: &dyn Module, gradients: &Gradients) -> Vec<u64> {
    let params = module.parameters();
    let found = params.iter().filter_map(|p| gradients.get(p));
    found.map(Tensor::address).collect()
}

fn model(device: Device, seed: u64) -> Result<Sequential> {
    let mut f = Factory::new(device, seed);
    Ok(Sequential::new()
        .with(Linear::new(12, 40, &mut f)?)
        .with(BatchNorm2d::new(40, &mut f)?.with_relu())
        .with(Linear::new(40, 40, &mut f)?)
        .with(Linear::new(40, 5, &mut f)?))
}

/// A step of an optimizer, which tells where its state lies.
type Step = Box<dyn FnMut(&Gradients) -> Result<Vec<u64>>>;

fn optimizer<M: Module>(ddp: &Ddp<M>, adam: bool) -> Result<Step> {
    if adam {
        let mut adam = Adam::new(ddp.parameters(), AdamConfig::adamw())?;
        return Ok(Box::new(move |gradients| {
            adam.step(gradients)?;
            Ok(adam.kept().map(Tensor::address).collect())
        }));
    }
    let config = SgdConfig {
        lr: 0.05,
        momentum: 0.9,
        ..SgdConfig::default()
    };
    let mut sgd = Sgd::new(ddp.parameters(), config)?;
    Ok(Box::new(move |gradients| {
        sgd.step(gradients)?;
        Ok(sgd.kept().map(Tensor::address).collect())
    }))
}

/// How the gradients of the ranks become one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Average {
    Plain,
    Weighted,
}

#[test]
fn from_the_third_step_on_nothing_moves_and_nothing_grows() {
    let cases = [
        (800, false, Average::Plain),
        (810, true, Average::Plain),
        (820, false, Average::Weighted),
    ];
    for (first_device, adam, average) in cases {
        on_own_devices(first_device, |group, device| {
            let rank = group.rank();
            // Other values on every rank, so that wrapping writes them.
            let model = model(device, 1 + rank as u64)?;
            let module = of_module(&model);
            let config = DdpConfig {
                first_bucket_bytes: Some(1000),
                bucket_cap_bytes: Some(5000),
                ..Default::default()
            };
            let copies = device.memory()?.copies;
            let ddp = Ddp::new(model, group.clone(), config)?;
            assert_eq!(of_module(&ddp), module, "wrapping moves nothing");
            let mut optimizer = optimizer(&ddp, adam)?;
            let mut rng = Rng::new(rank as u64);
            let x = Tensor::randn([16, 12], DType::F32, device, &mut rng)?;
            let y = Tensor::randint(0, 5, [16], device, &mut rng)?;
            let tape = Tape::new();
            let mut step = || -> Result<[Vec<u64>; 3]> {
                let out = ddp.forward(&tape, &tape.constant(x.clone()))?;
                let loss = cross_entropy(&out, &y)?;
                let gradients = match average {
                    Average::Plain => ddp.backward(&tape, &loss)?,
                    Average::Weighted => ddp.backward_weighted(&tape, &loss, 1.0 + rank as f64)?,
                };
                let state = optimizer(&gradients)?;
                // A card catches up: what its pool holds is not to depend on how far ahead the host is.
                device.synchronize()?;
                // A divided sum is a tensor of its own, behind the buffer that travels.
                let gradients = match average {
                    Average::Plain => of_gradients(&ddp, &gradients),
                    Average::Weighted => Vec::new(),
                };
                Ok([of_module(&ddp), state, gradients])
            };
            let [_, first_state, _] = step()?;
            assert_eq!(first_state.len(), if adam { 16 } else { 8 });
            let plan = ddp.buckets().unwrap();
            assert!(
                plan.len() > 1 && plan.iter().all(|b| !b.is_single()),
                "{plan:?}"
            );
            let state = State::of(&ddp)?;
            let taken = state.to_bytes()?;
            step()?;
            let warm_addresses = step()?;
            assert_eq!(warm_addresses[..2], [module, first_state]);
            let warm = device.memory()?;
            for _ in 0..8 {
                assert_eq!(step()?, warm_addresses);
                let now = device.memory()?;
                assert_eq!(
                    (now.live, now.reserved, now.system_allocations, now.copies),
                    (warm.live, warm.reserved, warm.system_allocations, copies),
                );
            }
            assert_eq!(state.to_bytes()?, taken, "the snapshot is as it was");
            assert_ne!(State::of(&ddp)?.to_bytes()?, taken);
            ddp.check_replicas()?;
            Ok(())
        });
    }
}

#[test]
fn a_flat_buffer_is_nobody_elses_between_two_steps() {
    on_own_devices(840, |group, device| {
        let ddp = Ddp::new(model(device, 1)?, group.clone(), DdpConfig::default())?;
        let tape = Tape::new();
        let x = Tensor::ones([16, 12], DType::F32, device)?;
        let y = Tensor::zeros([16], DType::I64, device)?;
        let mut found = Vec::new();
        for step in 0..6 {
            // Whatever else is allocated takes what the pool has for it, and keeps it for a step.
            let plan = ddp.buckets().filter(|_| step % 2 == 1);
            let lens = plan.iter().flat_map(|plan| plan.iter()).map(|b| b.len);
            let in_the_way: Vec<Tensor> = lens
                .map(|len| Tensor::zeros([len], DType::F32, device))
                .collect::<Result<_, _>>()?;
            let out = ddp.forward(&tape, &tape.constant(x.clone()))?;
            let gradients = ddp.backward(&tape, &cross_entropy(&out, &y)?)?;
            found.push(of_gradients(&ddp, &gradients));
            drop(in_the_way);
        }
        assert!(found.iter().all(|f| *f == found[0]), "{found:?}");
        Ok(())
    });
}

#[test]
fn gradients_that_somebody_keeps_are_not_written_over() {
    on_own_devices(830, |group, device| {
        let ddp = Ddp::new(model(device, 1)?, group.clone(), DdpConfig::default())?;
        let tape = Tape::new();
        let mut rng = Rng::new(group.rank() as u64);
        let y = Tensor::randint(0, 5, [16], device, &mut rng)?;
        let values = |gradients: &Gradients| -> Vec<Vec<f32>> {
            let all = gradients.iter();
            all.map(|(_, g)| g.to_vec().unwrap()).collect()
        };
        let (mut kept, mut noted) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let x = Tensor::randn([16, 12], DType::F32, device, &mut rng)?;
            let out = ddp.forward(&tape, &tape.constant(x))?;
            let gradients = ddp.backward(&tape, &cross_entropy(&out, &y)?)?;
            noted.push(values(&gradients));
            kept.push(gradients);
        }
        assert!(noted[0] != noted[1] && noted[1] != noted[2]);
        assert_eq!(kept.iter().map(values).collect::<Vec<_>>(), noted);
        Ok(())
    });
}
