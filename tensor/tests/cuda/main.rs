//! What cards do, on real ones or on simulated ones. Where there is none, each test says so.

#[path = "../level/mod.rs"]
mod level;

#[macro_use]
mod support;
mod batch_norm;
mod conv;
mod counts;
mod every;
mod families;
mod fork;
mod host_reads;
mod index;
mod lanes;
mod linear;
mod loading;
mod matmul;
mod norm;
mod optim;
mod order;
mod peers;
mod pool;
mod random;
mod reduce;
mod softmax;
mod steady_state;
mod transfer;
mod unary;
mod waits;
