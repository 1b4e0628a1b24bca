//! The matrix unit itself: permission, configuration, and the multiplication of packed strips.
//!
//! The compiler knows nothing of tile registers, so they hold nothing between two calls: a kernel
//! loads, multiplies and stores inside one block of assembly.

use super::aside::Aside;
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

/// A kernel around the body of its loop, in which tiles 0 to 3 are the sums, 4 and 5 the rows, 6
/// and 7 the columns.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $splits:literal, ahead: [$($lines:literal)+],
     aside: [$($aside:literal)*], $($body:literal)+) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As [`Kernel`].
        #[target_feature(enable = "avx512f,avx512bw")]
        pub(super) unsafe fn $name(_: &Tiles, strips: Strips, aside: &mut Aside) {
            // SAFETY: tiles are configured with 16 rows of 64 bytes; the loop reads
            // `steps * $splits * 2` tiles of either operand, which follow each other, and the sums
            // are four tiles with rows 128 bytes apart. Prefetches are hints, valid for any
            // address; the caller vouches for what is packed.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    // Constants of the packing, and its range so far.
                    "mov {n:e}, 0x8000",
                    "vpbroadcastd zmm16, {n:e}",
                    "vpternlogd zmm18, zmm18, zmm18, 255",
                    "vpslld zmm17, zmm18, 16",
                    "mov {n:e}, 0xaaaaaaaa",
                    "kmovd k1, {n:e}",
                    "vmovdqu64 zmm19, [{w} + {range}]",
                    "vmovdqu64 zmm20, [{w} + {range} + 64]",
                    "2:",
                    // Memory asked for: two sorts.
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
                    "mov {p}, [{w} + 32]",
                    "mov {n}, [{w} + 48]",
                    "test {n}, {n}",
                    "jz 6f",
                    "5:",
                    $(concat!("prefetcht1 [{p} + ", $lines, "]"),)+
                    "add {p}, [{w} + 40]",
                    "dec {n}",
                    "jnz 5b",
                    "6:",
                    "mov {p}, [{w} + 24]",
                    "add [{w}], {p}",
                    "mov {p}, [{w} + 56]",
                    "add [{w} + 32], {p}",
                    $($aside,)*
                    $($body,)+
                    "add {a}, {step}",
                    "add {b}, {step}",
                    "dec {k}",
                    "jnz 2b",
                    "tilestored [{c} + {s}*2], tmm0",
                    "tilestored [{c} + {s}*2 + 64], tmm1",
                    "tilestored [{c} + {s}*2 + 2048], tmm2",
                    "tilestored [{c} + {s}*2 + 2112], tmm3",
                    "vmovdqu64 [{w} + {range}], zmm19",
                    "vmovdqu64 [{w} + {range} + 64], zmm20",
                    a = inout(reg) strips.rows => _,
                    b = inout(reg) strips.columns => _,
                    c = in(reg) strips.sums,
                    k = inout(reg) strips.steps => _,
                    s = in(reg) 64usize,
                    w = in(reg) std::ptr::from_mut(aside),
                    p = out(reg) _,
                    n = out(reg) _,
                    out("rdx") _, out("rdi") _, out("rsi") _,
                    range = const std::mem::offset_of!(Aside, range),
                    step = const $splits * 2 * TILE,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
                    out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                    out("zmm24") _, out("zmm25") _, out("zmm26") _, out("k1") _,
                    options(nostack),
                );
            }
        }
    };
}

kernel!(
    /// Operands that are `bf16`: one product.
    one, 1, ahead: [0], aside: [],
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
    aside: [
        // As `pack.rs` does it: {p} and rdi from the first term of a pair of vectors to the
        // second, rsi the other half of the strip, rdx the target.
        "cmp qword ptr [{w} + 120], 0"
        "je 9f"
        "mov {n}, [{w} + 112]"
        "test {n}, {n}"
        "jz 8f"
        "mov {p}, [{w} + 64]"
        "mov rdx, [{w} + 72]"
        "mov rdi, [{w} + 88]"
        "7:"
        "mov rsi, [{w} + 128]"
        "add rsi, {p}"
        "prefetcht1 [rsi]"
        "prefetcht1 [rsi + rdi]"
        "add rsi, [{w} + 96]"
        "prefetcht1 [rsi]"
        "prefetcht1 [rsi + rdi]"
        "vmovups zmm21, [{p}]"
        "vmovups zmm22, [{p} + rdi]"
        "vpaddd zmm23, zmm21, zmm21"
        "vpaddd zmm24, zmm22, zmm22"
        "vpmaxud zmm20, zmm20, zmm23"
        "vpaddd zmm23, zmm23, zmm18"
        "vpminud zmm19, zmm19, zmm23"
        "vpmaxud zmm20, zmm20, zmm24"
        "vpaddd zmm24, zmm24, zmm18"
        "vpminud zmm19, zmm19, zmm24"
        "vpaddd zmm23, zmm21, zmm16"
        "vpaddd zmm24, zmm22, zmm16"
        "vpandd zmm25, zmm23, zmm17"
        "vpandd zmm26, zmm24, zmm17"
        "vsubps zmm21, zmm21, zmm25"
        "vsubps zmm22, zmm22, zmm26"
        "vpsrld zmm23, zmm23, 16"
        "vmovdqu16 zmm23{{k1}}, zmm24"
        "vmovdqa64 [rdx + 0], zmm23"
        "vpaddd zmm23, zmm21, zmm16"
        "vpaddd zmm24, zmm22, zmm16"
        "vpandd zmm25, zmm23, zmm17"
        "vpandd zmm26, zmm24, zmm17"
        "vsubps zmm21, zmm21, zmm25"
        "vsubps zmm22, zmm22, zmm26"
        "vpsrld zmm23, zmm23, 16"
        "vmovdqu16 zmm23{{k1}}, zmm24"
        "vmovdqa64 [rdx + 0 + 2048], zmm23"
        "vpsrld zmm21, zmm21, 16"
        "vmovdqu16 zmm21{{k1}}, zmm22"
        "vmovdqa64 [rdx + 0 + 4096], zmm21"
        "mov rsi, [{w} + 96]"
        "add rsi, {p}"
        "vmovups zmm21, [rsi]"
        "vmovups zmm22, [rsi + rdi]"
        "vpaddd zmm23, zmm21, zmm21"
        "vpaddd zmm24, zmm22, zmm22"
        "vpmaxud zmm20, zmm20, zmm23"
        "vpaddd zmm23, zmm23, zmm18"
        "vpminud zmm19, zmm19, zmm23"
        "vpmaxud zmm20, zmm20, zmm24"
        "vpaddd zmm24, zmm24, zmm18"
        "vpminud zmm19, zmm19, zmm24"
        "vpaddd zmm23, zmm21, zmm16"
        "vpaddd zmm24, zmm22, zmm16"
        "vpandd zmm25, zmm23, zmm17"
        "vpandd zmm26, zmm24, zmm17"
        "vsubps zmm21, zmm21, zmm25"
        "vsubps zmm22, zmm22, zmm26"
        "vpsrld zmm23, zmm23, 16"
        "vmovdqu16 zmm23{{k1}}, zmm24"
        "vmovdqa64 [rdx + 1024], zmm23"
        "vpaddd zmm23, zmm21, zmm16"
        "vpaddd zmm24, zmm22, zmm16"
        "vpandd zmm25, zmm23, zmm17"
        "vpandd zmm26, zmm24, zmm17"
        "vsubps zmm21, zmm21, zmm25"
        "vsubps zmm22, zmm22, zmm26"
        "vpsrld zmm23, zmm23, 16"
        "vmovdqu16 zmm23{{k1}}, zmm24"
        "vmovdqa64 [rdx + 1024 + 2048], zmm23"
        "vpsrld zmm21, zmm21, 16"
        "vmovdqu16 zmm21{{k1}}, zmm22"
        "vmovdqa64 [rdx + 1024 + 4096], zmm21"
        "add {p}, [{w} + 80]"
        "add rdx, 64"
        "dec {n}"
        "jnz 7b"
        "8:"
        "mov {p}, [{w} + 104]"
        "add [{w} + 64], {p}"
        "add qword ptr [{w} + 72], 6144"
        "dec qword ptr [{w} + 120]"
        "9:"
    ],
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
