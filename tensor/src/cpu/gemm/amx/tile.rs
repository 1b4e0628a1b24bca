//! The matrix unit itself: permission, configuration, and the multiplication of packed strips.
//!
//! The compiler knows nothing of tile registers, so they hold nothing between two calls: a kernel
//! loads, multiplies and stores inside one block of assembly.

use std::arch::asm;
use std::marker::PhantomData;
use std::sync::LazyLock;

/// Rows and columns of the result that one call of a kernel computes: two tiles by two.
pub(in super::super) const EDGE: usize = 32;
/// Bytes of a tile: sixteen rows of 64.
pub(super) const TILE: usize = 1024;

/// Whether the processor has the unit and the system lets this process use it; asked once.
pub(in super::super) fn available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
        crate::cpu::simd_level() == crate::cpu::SimdLevel::Avx512
            && is_x86_feature_detected!("avx512bf16")
            && has_unit()
            && permitted()
    });
    *AVAILABLE
}

/// CPUID leaf 7: AMX-BF16 is bit 22 of EDX, AMX-TILE bit 24.
fn has_unit() -> bool {
    const UNIT: u32 = 1 << 22 | 1 << 24;
    std::arch::x86_64::__cpuid(0).eax >= 7
        && std::arch::x86_64::__cpuid_count(7, 0).edx & UNIT == UNIT
}

/// Asks Linux for the tile state, which a process does not have unasked (kernel 5.16 and later);
/// no other system is known to grant it.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this request takes a number and touches no memory of ours; a kernel that does not
    // know it answers with an error.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        )
    };
    answer == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight tiles of full size.
static FULL: Shape = Shape {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Proof that this thread's tiles are configured; the end of it gives them back, since a thread
/// with live tiles pays 8 KiB at every context switch.
pub(super) struct Tiles(PhantomData<*mut ()>);

impl Tiles {
    /// # Panics
    /// Where the unit is not [`available`].
    pub fn configure() -> Tiles {
        assert!(available());
        let tiles = Tiles(PhantomData);
        tiles.restore();
        tiles
    }

    /// Configures again, after code that may have given the tiles back.
    pub fn restore(&self) {
        // SAFETY: the unit is available, or there would be no `Tiles`; the shape is a valid one of
        // palette 1. Tiles become zero, and nothing relies on what they held.
        unsafe {
            asm!(
                "ldtilecfg [{shape}]",
                shape = in(reg) &raw const FULL,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the unit is available, or there would be no `Tiles`.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nomem, nostack, preserves_flags),
            );
        }
    }
}

/// Memory that a kernel asks for while it multiplies, because it will be needed next: pieces of 32
/// elements, some in each step.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Ahead {
    /// The first piece. An address that holds nothing does no harm.
    pub p: *const u8,
    /// Bytes from piece to piece.
    pub piece: usize,
    /// Pieces in a step.
    pub pieces: usize,
    /// Bytes from step to step.
    pub step: usize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Ahead = Ahead {
        p: std::ptr::null(),
        piece: 0,
        pieces: 0,
        step: 0,
    };
}

/// What a kernel multiplies.
pub(super) struct Strips {
    /// Steps of 32 terms; not zero.
    pub steps: usize,
    pub rows: *const u8,
    pub columns: *const u8,
    /// Row-major, [`EDGE`] by [`EDGE`].
    pub sums: *mut f32,
    /// Asked for in the second-level cache.
    pub ahead: [Ahead; 2],
}

/// `sums = rows columns` for packed strips.
///
/// # Safety
/// Tiles are configured; `rows` and `columns` hold their packed steps, `sums` is writable for
/// `EDGE * EDGE` elements.
pub(super) type Kernel = unsafe fn(&Tiles, strips: Strips);

/// A kernel around the body of its loop, in which tiles 0 to 3 are the sums, 4 and 5 the rows, 6
/// and 7 the columns.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $splits:literal, ahead: [$($lines:literal)+], $($body:literal)+) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As [`Kernel`].
        pub(super) unsafe fn $name(_: &Tiles, strips: Strips) {
            // SAFETY: tiles are configured with 16 rows of 64 bytes; the loop reads
            // `steps * $splits * 2` tiles of either operand, which follow each other, and the sums
            // are four tiles with rows 128 bytes apart. It changes its own copy of `ahead`;
            // prefetches are hints, valid for any address.
            unsafe {
                let mut ahead = strips.ahead;
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "3:",
                    "mov {p}, [{ahead}]",
                    "mov {n}, [{ahead} + 16]",
                    "test {n}, {n}",
                    "jz 5f",
                    "4:",
                    $(concat!("prefetcht1 [{p} + ", $lines, "]"),)+
                    "add {p}, [{ahead} + 8]",
                    "dec {n}",
                    "jnz 4b",
                    "5:",
                    "mov {p}, [{ahead} + 32]",
                    "mov {n}, [{ahead} + 48]",
                    "test {n}, {n}",
                    "jz 7f",
                    "6:",
                    $(concat!("prefetcht1 [{p} + ", $lines, "]"),)+
                    "add {p}, [{ahead} + 40]",
                    "dec {n}",
                    "jnz 6b",
                    "7:",
                    "mov {p}, [{ahead} + 24]",
                    "add [{ahead}], {p}",
                    "mov {p}, [{ahead} + 56]",
                    "add [{ahead} + 32], {p}",
                    $($body,)+
                    "add {a}, {step}",
                    "add {b}, {step}",
                    "dec {k}",
                    "jnz 3b",
                    "tilestored [{c} + {s}*2], tmm0",
                    "tilestored [{c} + {s}*2 + 64], tmm1",
                    "tilestored [{c} + {s}*2 + 2048], tmm2",
                    "tilestored [{c} + {s}*2 + 2112], tmm3",
                    a = inout(reg) strips.rows => _,
                    b = inout(reg) strips.columns => _,
                    c = in(reg) strips.sums,
                    k = inout(reg) strips.steps => _,
                    s = in(reg) 64usize,
                    ahead = in(reg) &raw mut ahead,
                    p = out(reg) _,
                    n = out(reg) _,
                    step = const $splits * 2 * TILE,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

kernel!(
    /// Operands that are `bf16`: one product.
    one, 1, ahead: [0],
    "tileloadd tmm6, [{b} + {s}]"
    "tileloadd tmm4, [{a} + {s}]"
    "tileloadd tmm7, [{b} + {s} + 1024]"
    "tdpbf16ps tmm0, tmm4, tmm6"
    "tileloadd tmm5, [{a} + {s} + 1024]"
    "tdpbf16ps tmm1, tmm4, tmm7"
    "tdpbf16ps tmm2, tmm5, tmm6"
    "tdpbf16ps tmm3, tmm5, tmm7"
);

kernel!(
    /// Operands in three parts: the six products that matter, the small ones first, in an order
    /// in which each follows from the one before by replacing one operand.
    six, 3, ahead: [0 64],
    // low x high
    "tileloadd tmm6, [{b} + {s}]"
    "tileloadd tmm4, [{a} + {s} + 4096]"
    "tileloadd tmm7, [{b} + {s} + 1024]"
    "tdpbf16ps tmm0, tmm4, tmm6"
    "tileloadd tmm5, [{a} + {s} + 5120]"
    "tdpbf16ps tmm1, tmm4, tmm7"
    // middle x high
    "tileloadd tmm4, [{a} + {s} + 2048]"
    "tdpbf16ps tmm2, tmm5, tmm6"
    "tdpbf16ps tmm3, tmm5, tmm7"
    "tileloadd tmm5, [{a} + {s} + 3072]"
    "tdpbf16ps tmm0, tmm4, tmm6"
    "tdpbf16ps tmm1, tmm4, tmm7"
    "tdpbf16ps tmm2, tmm5, tmm6"
    // middle x middle
    "tileloadd tmm6, [{b} + {s} + 2048]"
    "tdpbf16ps tmm3, tmm5, tmm7"
    "tdpbf16ps tmm0, tmm4, tmm6"
    "tileloadd tmm7, [{b} + {s} + 3072]"
    "tdpbf16ps tmm2, tmm5, tmm6"
    "tdpbf16ps tmm1, tmm4, tmm7"
    // high x middle
    "tileloadd tmm4, [{a} + {s}]"
    "tdpbf16ps tmm3, tmm5, tmm7"
    "tdpbf16ps tmm0, tmm4, tmm6"
    "tileloadd tmm5, [{a} + {s} + 1024]"
    "tdpbf16ps tmm1, tmm4, tmm7"
    "tdpbf16ps tmm2, tmm5, tmm6"
    // high x low
    "tileloadd tmm6, [{b} + {s} + 4096]"
    "tdpbf16ps tmm3, tmm5, tmm7"
    "tdpbf16ps tmm0, tmm4, tmm6"
    "tileloadd tmm7, [{b} + {s} + 5120]"
    "tdpbf16ps tmm2, tmm5, tmm6"
    "tdpbf16ps tmm1, tmm4, tmm7"
    // high x high
    "tileloadd tmm6, [{b} + {s}]"
    "tdpbf16ps tmm3, tmm5, tmm7"
    "tdpbf16ps tmm0, tmm4, tmm6"
    "tileloadd tmm7, [{b} + {s} + 1024]"
    "tdpbf16ps tmm2, tmm5, tmm6"
    "tdpbf16ps tmm1, tmm4, tmm7"
    "tdpbf16ps tmm3, tmm5, tmm7"
);
