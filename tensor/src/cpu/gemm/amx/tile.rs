//! The matrix unit itself: permission, configuration, and the multiplication of packed strips.
//!
//! The compiler knows nothing of tile registers, so they hold nothing between two calls: a kernel
//! loads, multiplies and stores inside one block of assembly.

use super::aside::Aside;
use crate::cpu::simd::{self, SimdLevel};
use std::arch::asm;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::sync::LazyLock;

/// Rows and columns of the result that one call of a kernel computes: two tiles by two.
pub(in super::super) const EDGE: usize = 32;
/// Bytes of a tile: sixteen rows of 64.
pub(super) const TILE: usize = 1024;

/// Whether the processor has the unit and the system lets this process use it, which is asked once,
/// and no limit is set that leaves it out.
pub(in super::super) fn available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
        simd::of_processor() == SimdLevel::Avx512
            && is_x86_feature_detected!("avx512bf16")
            && has_unit()
            && permitted()
    });
    simd::matrix_unit_allowed() && *AVAILABLE
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

/// What a kernel multiplies.
pub(super) struct Strips {
    /// Steps of 32 terms; not zero.
    pub steps: usize,
    pub rows: *const u8,
    pub columns: *const u8,
    /// Row-major, [`EDGE`] by [`EDGE`].
    pub sums: *mut f32,
}

/// `sums = rows columns` for packed strips.
///
/// # Safety
/// Tiles are configured; `rows` and `columns` hold their packed steps, `sums` is writable for
/// `EDGE * EDGE` elements; the packing of `aside` reads and writes what its task may; the processor
/// has AVX-512.
///
/// `aside` is what it does by the way; a kernel that has no packing leaves that out.
pub(super) type Kernel = unsafe fn(&Tiles, strips: Strips, aside: &mut Aside);

/// A line of a strip on its way to its tiles, in two halves as `pack.rs` does it: what slot `$slot`
/// of a step does if its bit of `{n}` is set. `{p}` is the line's first vector of a pair, `rdi` on
/// from there the second one, `rdx` the target.
macro_rules! line {
    ($slot:literal, first) => {
        concat!(
            "bt {n:e}, ",
            $slot,
            "\njnc 9f\n",
            "mov rsi, [{w} + {packing} + 64]\n",
            "prefetcht1 [{p} + rsi]\n",
            "mov rsi, [{w} + {packing} + 72]\n",
            "prefetcht1 [{p} + rsi]\n",
            line!("{p}", "rdx"),
            "9:"
        )
    };
    ($slot:literal, second) => {
        concat!(
            "bt {n:e}, ",
            $slot,
            "\njnc 9f\n",
            "mov rsi, [{w} + {packing} + 32]\n",
            "add rsi, {p}\n",
            line!("rsi", "rdx + 1024"),
            "add {p}, [{w} + {packing} + 16]\n",
            "add rdx, 64\n",
            "9:"
        )
    };
    // Sixteen pairs at `$from`: their range, then three vectors of pairs.
    ($from:literal, $to:literal) => {
        concat!(
            "vmovups zmm21, [", $from, "]\n",
            "vmovups zmm22, [", $from, " + rdi]\n",
            "vpaddd zmm23, zmm21, zmm21\n",
            "vpaddd zmm24, zmm22, zmm22\n",
            "vpmaxud zmm20, zmm20, zmm23\n",
            "vpaddd zmm23, zmm23, zmm18\n",
            "vpminud zmm19, zmm19, zmm23\n",
            "vpmaxud zmm20, zmm20, zmm24\n",
            "vpaddd zmm24, zmm24, zmm18\n",
            "vpminud zmm19, zmm19, zmm24\n",
            line!(part $to, "0"),
            line!(part $to, "2048"),
            "vpsrld zmm21, zmm21, 16\n",
            "vmovdqu16 zmm21{{k1}}, zmm22\n",
            "vmovdqa64 [", $to, " + 4096], zmm21\n",
        )
    };
    (part $to:literal, $at:literal) => {
        concat!(
            "vpaddd zmm23, zmm21, zmm16\n",
            "vpaddd zmm24, zmm22, zmm16\n",
            "vpandd zmm25, zmm23, zmm17\n",
            "vpandd zmm26, zmm24, zmm17\n",
            "vsubps zmm21, zmm21, zmm25\n",
            "vsubps zmm22, zmm22, zmm26\n",
            "vpsrld zmm23, zmm23, 16\n",
            "vmovdqu16 zmm23{{k1}}, zmm24\n",
            "vmovdqa64 [", $to, " + ", $at, "], zmm23\n",
        )
    };
}

/// A row of the sums that are finished, if slot `$slot`'s bit of `{f}` is set.
macro_rules! row {
    ($slot:literal) => {
        concat!(
            "bt {f:e}, ",
            $slot,
            "\njnc 9f\n",
            "mov rsi, [{w} + {finishing}]\n",
            "vmovups zmm21, [rsi]\n",
            "vmovups zmm22, [rsi + 64]\n",
            "sub rsi, -128\n",
            "mov [{w} + {finishing}], rsi\n",
            "mov rsi, [{w} + {finishing} + 8]\n",
            "vaddps zmm21{{k2}}, zmm21, [rsi]\n",
            "vaddps zmm22{{k2}}, zmm22, [rsi + 64]\n",
            "sub rsi, -128\n",
            "mov [{w} + {finishing} + 8], rsi\n",
            "vmulps zmm21, zmm21, zmm27\n",
            "vmulps zmm22, zmm22, zmm27\n",
            "mov rsi, [{w} + {finishing} + 16]\n",
            "vmovups [rsi], zmm21\n",
            "vmovups [rsi + 64], zmm22\n",
            "add rsi, [{w} + {finishing} + 24]\n",
            "mov [{w} + {finishing} + 16], rsi\n",
            "9:"
        )
    };
}

/// A kernel around the body of its loop, in which tiles 0 to 3 are the sums, 4 and 5 the rows, 6
/// and 7 the columns.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $splits:literal, ahead: [$($lines:literal)+],
     operands: [$($operand:tt)*], before: [$($before:expr,)*], step: [$($step:expr,)+],
     after: [$($after:expr,)*]) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As [`Kernel`].
        #[target_feature(enable = "avx512f,avx512bw")]
        pub(super) unsafe fn $name(_: &Tiles, strips: Strips, aside: &mut Aside) {
            // SAFETY: tiles are configured with 16 rows of 64 bytes; the loop reads
            // `steps * $splits * 2` tiles of either operand, which follow each other, and the sums
            // are four tiles with rows 128 bytes apart. Prefetches are hints, valid for any
            // address; the caller vouches for what is packed and finished.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    $($before,)*
                    "2:",
                    // Memory asked for.
                    "mov {p}, [{w}]",
                    "mov {n}, [{w} + 16]",
                    "test {n}, {n}",
                    "jz 4f",
                    "3:",
                    $(concat!("prefetcht1 [{p} + ", $lines, "]"),)+
                    "add {p}, [{w} + 8]",
                    "dec {n}",
                    "jnz 3b",
                    "4:",
                    "mov {p}, [{w} + 24]",
                    "add [{w}], {p}",
                    $($step,)+
                    "add {a}, {step}",
                    "add {b}, {step}",
                    "dec {k}",
                    "jnz 2b",
                    "tilestored [{c} + {s}*2], tmm0",
                    "tilestored [{c} + {s}*2 + 64], tmm1",
                    "tilestored [{c} + {s}*2 + 2048], tmm2",
                    "tilestored [{c} + {s}*2 + 2112], tmm3",
                    $($after,)*
                    a = inout(reg) strips.rows => _,
                    b = inout(reg) strips.columns => _,
                    c = in(reg) strips.sums,
                    k = inout(reg) strips.steps => _,
                    s = in(reg) 64usize,
                    w = in(reg) std::ptr::from_mut(aside),
                    p = out(reg) _,
                    n = out(reg) _,
                    step = const $splits * 2 * TILE,
                    $($operand)*
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

kernel!(
    /// Operands that are `bf16`: one product. It packs and finishes nothing.
    one, 1, ahead: [0], operands: [], before: [],
    step: [
        "tileloadd tmm6, [{b} + {s}]",
        "tileloadd tmm4, [{a} + {s}]",
        "tileloadd tmm7, [{b} + {s} + 1024]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{a} + {s} + 1024]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
    ],
    after: []
);

kernel!(
    /// Operands in three parts: the six products that matter, the small ones first, in an order
    /// in which each follows from the one before by replacing one operand.
    ///
    /// Packing and finishing stand between the products, a few instructions at a time: all of a
    /// step's packing in one place would fill the processor's window and keep the next tiles from
    /// being loaded.
    six, 3, ahead: [0 64],
    operands: [
        f = out(reg) _,
        packing = const offset_of!(Aside, packing),
        finishing = const offset_of!(Aside, finishing),
        range = const offset_of!(Aside, range),
        out("rdx") _, out("rdi") _, out("rsi") _,
        out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
        out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
        out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
        out("k1") _, out("k2") _,
    ],
    before: [
        // Constants of the packing, and its range so far.
        "mov {n:e}, 0x8000",
        "vpbroadcastd zmm16, {n:e}",
        "vpternlogd zmm18, zmm18, zmm18, 255",
        "vpslld zmm17, zmm18, 16",
        "mov {n:e}, 0xaaaaaaaa",
        "kmovd k1, {n:e}",
        "vmovdqu64 zmm19, [{w} + {range}]",
        "vmovdqu64 zmm20, [{w} + {range} + 64]",
        // Of the finishing.
        "vbroadcastss zmm27, [{w} + {finishing} + 48]",
        "kmovw k2, [{w} + {finishing} + 52]",
    ],
    step: [
    // What the slots do in this step.
    "xor edx, edx",
    "mov {f:e}, [{w} + {finishing} + 32]",
    "sub qword ptr [{w} + {finishing} + 40], 1",
    "cmovc {f:e}, edx",
    "adc qword ptr [{w} + {finishing} + 40], 0",
    "mov {n:e}, [{w} + {packing} + 48]",
    "sub qword ptr [{w} + {packing} + 56], 1",
    "cmovc {n:e}, edx",
    "adc qword ptr [{w} + {packing} + 56], 0",
    "mov {p}, [{w} + {packing}]",
    "mov rdx, [{w} + {packing} + 8]",
    "mov rdi, [{w} + {packing} + 24]",
    // low x high
    "tileloadd tmm6, [{b} + {s}]",
    "tileloadd tmm4, [{a} + {s} + 4096]",
    "tileloadd tmm7, [{b} + {s} + 1024]",
    "tdpbf16ps tmm0, tmm4, tmm6",
    line!(0, first),
    "tileloadd tmm5, [{a} + {s} + 5120]",
    "tdpbf16ps tmm1, tmm4, tmm7",
    line!(0, second),
    // middle x high
    "tileloadd tmm4, [{a} + {s} + 2048]",
    "tdpbf16ps tmm2, tmm5, tmm6",
    row!(0),
    row!(1),
    "tdpbf16ps tmm3, tmm5, tmm7",
    line!(1, first),
    "tileloadd tmm5, [{a} + {s} + 3072]",
    "tdpbf16ps tmm0, tmm4, tmm6",
    line!(1, second),
    "tdpbf16ps tmm1, tmm4, tmm7",
    row!(2),
    row!(3),
    "tdpbf16ps tmm2, tmm5, tmm6",
    line!(2, first),
    // middle x middle
    "tileloadd tmm6, [{b} + {s} + 2048]",
    "tdpbf16ps tmm3, tmm5, tmm7",
    line!(2, second),
    "tdpbf16ps tmm0, tmm4, tmm6",
    row!(4),
    row!(5),
    "tileloadd tmm7, [{b} + {s} + 3072]",
    "tdpbf16ps tmm2, tmm5, tmm6",
    line!(3, first),
    "tdpbf16ps tmm1, tmm4, tmm7",
    line!(3, second),
    // high x middle
    "tileloadd tmm4, [{a} + {s}]",
    "tdpbf16ps tmm3, tmm5, tmm7",
    row!(6),
    row!(7),
    "tdpbf16ps tmm0, tmm4, tmm6",
    line!(4, first),
    "tileloadd tmm5, [{a} + {s} + 1024]",
    "tdpbf16ps tmm1, tmm4, tmm7",
    line!(4, second),
    "tdpbf16ps tmm2, tmm5, tmm6",
    row!(8),
    row!(9),
    // high x low
    "tileloadd tmm6, [{b} + {s} + 4096]",
    "tdpbf16ps tmm3, tmm5, tmm7",
    line!(5, first),
    "tdpbf16ps tmm0, tmm4, tmm6",
    line!(5, second),
    "tileloadd tmm7, [{b} + {s} + 5120]",
    "tdpbf16ps tmm2, tmm5, tmm6",
    row!(10),
    row!(11),
    "tdpbf16ps tmm1, tmm4, tmm7",
    line!(6, first),
    // high x high
    "tileloadd tmm6, [{b} + {s}]",
    "tdpbf16ps tmm3, tmm5, tmm7",
    line!(6, second),
    "tdpbf16ps tmm0, tmm4, tmm6",
    row!(12),
    row!(13),
    "tileloadd tmm7, [{b} + {s} + 1024]",
    "tdpbf16ps tmm2, tmm5, tmm6",
    line!(7, first),
    "tdpbf16ps tmm1, tmm4, tmm7",
    line!(7, second),
    "tdpbf16ps tmm3, tmm5, tmm7",
    row!(14),
    row!(15),
    "mov {p}, [{w} + {packing} + 40]",
    "add [{w} + {packing}], {p}",
    "add qword ptr [{w} + {packing} + 8], 6144",
    ],
    after: [
        "vmovdqu64 [{w} + {range}], zmm19",
        "vmovdqu64 [{w} + {range} + 64], zmm20",
    ]
);
