//! Memory that a thread keeps between products, so that a product at steady state allocates
//! nothing.

use crate::cpu::scratch::Buffer;
use std::cell::Cell;

/// The buffers of one task.
#[derive(Default)]
pub(super) struct Scratch {
    /// The packed block of the vectorised operand.
    pub vectors: Buffer,
    /// Packed stripes.
    pub stripes: Buffer,
    /// A widened piece of an operand in a half type.
    pub wide: Buffer,
    /// Sums of a result in a half type.
    pub sums: Buffer,
}

thread_local! {
    static SPARE: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Runs `f` with this thread's buffers, or with fresh ones inside another product's epilogue.
pub(super) fn with<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    let mut scratch = SPARE.take().unwrap_or_default();
    let result = f(&mut scratch);
    SPARE.set(Some(scratch));
    result
}
