//! The model that the tests train, and how they launch ranks.

use phalanx_autograd::nn::{Factory, Linear, Module, Visitor};
use phalanx_autograd::{Backward, Claims, Gradients, Param, Tape, Var};
use phalanx_comm::env::Start;
use phalanx_comm::{LaunchConfig, ProcessGroup, Ranks, RunConfig, run};
use phalanx_parallel::{Ddp, Result};
use phalanx_tensor::{DType, Device, Tensor};
use std::sync::Arc;
use std::time::Duration;

/// Linear layers with tanh between them.
pub struct Mlp(pub Vec<Linear>);

impl Mlp {
    pub fn new(dims: &[usize], dtype: DType, device: Device, seed: u64) -> Mlp {
        let mut f = Factory {
            dtype,
            ..Factory::new(device, seed)
        };
        let layer = |d: &[usize]| Linear::new(d[0], d[1], &mut f).unwrap();
        Mlp(dims.windows(2).map(layer).collect())
    }

    pub fn params(&self) -> Vec<Param> {
        self.named_parameters()
            .into_iter()
            .map(|(_, p)| p)
            .collect()
    }
}

impl Module for Mlp {
    fn forward(&self, tape: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        let mut x = x.clone();
        for (i, layer) in self.0.iter().enumerate() {
            x = layer.forward(tape, &x)?;
            if i + 1 < self.0.len() {
                x = x.tanh()?;
            }
        }
        Ok(x)
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        for (i, layer) in self.0.iter().enumerate() {
            v.child(&i.to_string(), layer);
        }
    }
}

/// The mean of the squared differences.
pub fn mse(y: &Var, target: &Var) -> phalanx_autograd::Result<Var> {
    y.sub(target)?.square()?.mean_all()
}

/// This rank's own gradients of a wrapped module's parameters, without communication.
pub fn own_gradients<M: Module>(ddp: &Ddp<M>, tape: &Tape, loss: &Var) -> Result<Gradients> {
    Ok(tape.sweep(Backward {
        roots: &[(loss, None)],
        claims: Claims {
            held: &[ddp.claim()],
            beside: &[],
        },
        ..Default::default()
    })?)
}

/// Where `n` ranks compute: on the cards that the environment names, from the first one on, if there are so many.
pub fn device_for(n: usize) -> Device {
    let named = std::env::var("PHALANX_TEST_DEVICE").ok();
    let first = named.map(|name| name.parse().expect("PHALANX_TEST_DEVICE names a device"));
    let Some(Device::Cuda(first)) = first else {
        return Device::cpu(0);
    };
    match (first..first + n).all(|card| Device::cuda(card).memory().is_ok()) {
        true => Device::cuda(first),
        false => {
            eprintln!("there are no {n} cards: {n} ranks compute on the CPU");
            Device::cpu(0)
        }
    }
}

/// Whether the ranks compute on CPUs; else a line that says that the test leaves cards out, and why.
pub fn on_cpus(test: &str, why: &str) -> bool {
    let is_cpu = device_for(1).is_cpu();
    if !is_cpu {
        eprintln!("SKIPPED: {test}: on cards {why}");
    }
    is_cpu
}

/// Runs `f` on `n` ranks, threads of this process; under mpirun on its first `n` processes, of which this is one, and
/// the others wait. Returns what the ranks of this process have returned; panics with the error of the rank that failed.
pub fn on_ranks<T: Send>(
    n: usize,
    f: impl Fn(Arc<dyn ProcessGroup>) -> Result<T> + Sync,
) -> Vec<T> {
    let launch = LaunchConfig::new(n)
        .deadline(Duration::from_secs(20))
        .device(device_for(n));
    let config = RunConfig::new(Ranks::OrAlone(n)).launch(launch);
    let program = |world: Arc<dyn ProcessGroup>| {
        assert!(world.size() >= n, "{n} ranks are needed");
        if world.size() == n {
            return f(world).map(Some);
        }
        let group = world.split((world.rank() < n).then_some(0), 0)?;
        let result = group.map(&f).transpose()?;
        world.barrier()?.wait()?;
        Ok(result)
    };
    let ends = run(config, program).unwrap_or_else(|e| panic!("{e}"));
    ends.into_iter().filter_map(|(_, end)| end).collect()
}

/// Whether there can be `n` ranks: threads always, processes as many as mpirun has started.
pub fn has_ranks(n: usize) -> bool {
    match Start::detect().unwrap() {
        Start::Mpi(process) => process.size >= n,
        Start::Alone | Start::Torchrun(_) => true,
    }
}

pub fn values(t: &Tensor) -> Vec<f64> {
    t.cast(DType::F64).unwrap().to_vec::<f64>().unwrap()
}

#[track_caller]
pub fn assert_close(a: &[f64], b: &[f64], tolerance: f64, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * (1.0 + b.abs()),
            "{what}: element {i} is {a}, not {b}"
        );
    }
}
