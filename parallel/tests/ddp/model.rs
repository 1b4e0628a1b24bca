//! The model that the tests train.

pub use crate::ranks::{device_for, has_ranks, on_cpus, on_ranks};
use phalanx_autograd::nn::{Factory, Linear, Module, Visitor};
use phalanx_autograd::{Backward, Claims, Gradients, Param, Tape, Var};
use phalanx_parallel::{Ddp, Result};
use phalanx_tensor::{DType, Device, Tensor};

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
