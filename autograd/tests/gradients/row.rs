//! What a row of the table is: operations, and how a random case of them is made.

use crate::util::TestRng;
use phalanx_autograd::{Result, Tape, Var};
use phalanx_tensor::Tensor;

/// What a row computes.
pub type Function = Box<dyn Fn(&Tape, &[Var]) -> Result<Var>>;

/// A function of some inputs, and the inputs.
pub struct Case {
    pub inputs: Vec<Tensor>,
    pub f: Function,
}

/// One or more operations.
pub struct Row {
    pub ops: &'static [&'static str],
    pub make: fn(&mut TestRng) -> Case,
    /// Allowed error against `f64`, in roundings of the type, relative to the largest element.
    pub roundings: f64,
    /// Where element types are part of the operation.
    pub f64_only: bool,
    /// Whether the result of half types is `f32`.
    pub wide: bool,
}

pub const fn row(ops: &'static [&'static str], make: fn(&mut TestRng) -> Case) -> Row {
    Row {
        ops,
        make,
        roundings: 16.0,
        f64_only: false,
        wide: false,
    }
}

/// A loss: of half types it is `f32`.
pub const fn loss(ops: &'static [&'static str], make: fn(&mut TestRng) -> Case) -> Row {
    Row {
        wide: true,
        ..row(ops, make)
    }
}

pub fn case(inputs: Vec<Tensor>, f: impl Fn(&Tape, &[Var]) -> Result<Var> + 'static) -> Case {
    Case {
        inputs,
        f: Box::new(f),
    }
}
