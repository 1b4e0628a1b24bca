//! Tests of the operations, one module for each family, in one binary. A kernel's reference is
//! plain code over `f64` in the test itself.

mod batch_norm;
mod binary;
mod cast;
mod checks;
mod compare;
mod conv;
mod embedding;
mod fill;
mod in_place;
mod index;
mod layer_norm;
#[path = "../level/mod.rs"]
mod level;
mod limit;
mod linear;
mod matmul;
mod names;
mod norm_and_scale;
mod optim;
mod optim_failures;
mod optim_numbers;
mod pool;
mod random;
mod reduce;
mod shape;
mod softmax;
mod unary;
mod util;
