//! What the tape promises: readiness, order, reachability, freed memory, split sweeps, typed errors,
//! sums in `f32`.
//!
//! The operation here is defined in the test, so that nothing but the tape is under test.

mod claims;
mod half;
mod memory;
mod misuse;
mod split;
mod sweep;

use phalanx_autograd::{Grads, Param, Result, Var, Vjp, tensor_bytes};
use phalanx_tensor::{Device, Tensor};
use std::cell::RefCell;

/// Elementwise `a · b`, saving what the other's gradient needs.
#[derive(Debug)]
struct Product {
    a: Option<Tensor>,
    b: Option<Tensor>,
}

fn times(x: &Tensor, y: &Tensor) -> Tensor {
    let (x, y) = (x.to_vec::<f64>().unwrap(), y.to_vec::<f64>().unwrap());
    let out = x.iter().zip(&y).map(|(x, y)| x * y).collect::<Vec<_>>();
    let n = out.len();
    Tensor::from_vec(out, [n], DEVICE.with(|d| *d.borrow())).unwrap()
}

thread_local! {
    static DEVICE: RefCell<Device> = const { RefCell::new(Device::cpu(0)) };
}

fn on(device: usize) -> Device {
    DEVICE.with(|d| *d.borrow_mut() = Device::cpu(device));
    Device::cpu(device)
}

impl Vjp for Product {
    fn name(&self) -> &'static str {
        "product"
    }
    fn backward(&self, grad: Tensor, needs: &[bool]) -> Result<Grads> {
        let side = |needed: bool, other: &Option<Tensor>| {
            needed.then(|| times(&grad, other.as_ref().expect("saved for this gradient")))
        };
        Ok(Grads::from_iter([
            side(needs[0], &self.b),
            side(needs[1], &self.a),
        ]))
    }
    fn saved_bytes(&self) -> usize {
        self.a.iter().chain(&self.b).map(tensor_bytes).sum()
    }
    fn shrink(&mut self, needs: &[bool]) {
        self.b = self.b.take().filter(|_| needs[0]);
        self.a = self.a.take().filter(|_| needs[1]);
    }
}

fn mul(a: &Var, b: &Var) -> Result<Var> {
    Var::from_vjp(a.tape(), &[a, b], times(a.value(), b.value()), |needs| {
        Product {
            a: needs[1].then(|| a.value().clone()),
            b: needs[0].then(|| b.value().clone()),
        }
    })
}

fn tensor(values: &[f64]) -> Tensor {
    Tensor::from_slice(values, [values.len()], DEVICE.with(|d| *d.borrow())).unwrap()
}

fn param(values: &[f64]) -> Param {
    Param::new(tensor(values))
}

fn vals(t: &Tensor) -> Vec<f64> {
    t.to_vec().unwrap()
}

/// Whether updating the parameter writes in place.
fn in_place(p: &Param) -> bool {
    let mut unique = false;
    p.update(|t| {
        unique = t.is_unique();
        Ok(())
    })
    .unwrap();
    unique
}
