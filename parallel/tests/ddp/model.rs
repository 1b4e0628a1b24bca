//! The model that the tests train, and how they launch ranks.

use phalanx_autograd::nn::{Factory, Linear, Module, Visitor};
use phalanx_autograd::{Param, Tape, Var};
use phalanx_comm::{LaunchConfig, ProcessGroup, launch};
use phalanx_parallel::Result;
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

/// Runs `f` on `n` ranks; panics with the error of the rank that failed.
pub fn on_ranks<T: Send>(
    n: usize,
    f: impl Fn(Arc<dyn ProcessGroup>) -> Result<T> + Sync,
) -> Vec<T> {
    let config = LaunchConfig::new(n).deadline(Duration::from_secs(20));
    launch(config, f).unwrap_or_else(|e| panic!("{e}"))
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
