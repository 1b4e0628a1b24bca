//! What a run can find, and the sentence that says it.

use super::kernel::Kernel;

/// What kind of a fault was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FindingKind {
    /// An access to memory that is no allocation, or that leaves one.
    OutOfBounds,
    /// A write to memory that may only be read.
    ReadOnly,
    /// A read of bytes that nobody wrote.
    Uninitialised,
    /// An address that is not a multiple of the width of the access.
    Misaligned,
    /// Two threads touch the same bytes of shared memory, one of them writes, and nothing orders them.
    SharedRace,
    /// Two threads of a launch touch the same bytes of global memory, one of them writes, and nothing orders them.
    GlobalRace,
    /// An access to shared memory that a `cp.async` is about to write.
    PendingCopy,
    /// An access behind the shared memory of the block.
    SharedOutOfBounds,
    /// An access outside of the local memory of the thread.
    LocalOutOfBounds,
    /// Threads wait at different barriers, or at one that others never reach.
    DivergentBarrier,
    /// A warp operation whose mask does not name the lanes that take part in it.
    BadWarpMask,
    /// The kernel gave up by `trap` or a failed `assert`.
    Trap,
    /// The launch asks for more than a card has.
    Limit,
    /// Threads wait for each other in a way that no other kind says.
    Deadlock,
}

/// A fault of a kernel; the launch ended there.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What kind of a fault it is.
    pub kind: FindingKind,
    /// A sentence: what, where, which thread.
    pub message: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Finding {}

/// Which thread of which block, for a sentence.
#[derive(Debug, Clone, Copy)]
pub struct Who {
    pub block: [u32; 3],
    pub thread: [u32; 3],
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ([x, y, z], [i, j, k]) = (self.block, self.thread);
        write!(f, "thread ({i}, {j}, {k}) of block ({x}, {y}, {z})")
    }
}

impl Finding {
    /// A finding at a site of generated code.
    pub fn at(kind: FindingKind, kernel: &Kernel, site: u32, who: Who, what: &str) -> Finding {
        let place = kernel.line(site);
        Finding {
            kind,
            message: format!("kernel '{}', {place}: {who} {what}", kernel.name),
        }
    }

    /// A launch that a card would refuse.
    pub fn limit(kernel: &Kernel, what: String) -> Finding {
        Finding {
            kind: FindingKind::Limit,
            message: format!("kernel '{}' cannot be launched: {what}", kernel.name),
        }
    }
}
