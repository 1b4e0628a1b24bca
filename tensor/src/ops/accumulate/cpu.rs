//! Addition in place on the CPU: bound by memory, one pass.

use crate::Float;
use crate::cpu::{parallel_chunks, vectorize};

/// Elements to a thread, at least: some 20 µs of work.
const GRAIN: usize = 32 * 1024;

pub(super) fn add<T: Float>(sum: &mut [T], x: &[T]) {
    parallel_chunks(sum, GRAIN, |start, sum| {
        let x = &x[start..start + sum.len()];
        vectorize(|| {
            for (s, x) in sum.iter_mut().zip(x) {
                *s = T::narrow(s.widen() + x.widen());
            }
        });
    });
}
