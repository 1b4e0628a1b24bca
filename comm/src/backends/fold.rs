//! The arithmetic of collectives on the CPU: reads the tensors of all ranks in rank order, writes
//! the result wherever it is wanted. Used by every backend whose buffers the host can address.
#![allow(unsafe_code)]

use crate::op::{Promises, ReduceOp};
use phalanx_tensor::{Bool, DType, Element, Float, bf16, cpu::SimdLevel, cpu::simd_level, f16};
use std::ops::Range;

/// What this arithmetic promises.
pub(crate) const PROMISES: Promises = Promises {
    rank_order: true,
    keeps_nan: true,
};

/// For every element `i` in `range`: the reduction of `src[0][i], src[1][i], …`, in this order,
/// written to every `dst[k][i]`. With one source it is a copy.
///
/// A source may be the same as a destination (`src[a] == dst[b]`, in place).
///
/// # Safety
/// - Every pointer in `src` is valid for reads, and every one in `dst` for writes, of the elements
///   `range` of type `dtype`.
/// - During the call nobody else writes to these elements of a source, or reads or writes those of
///   a destination.
/// - A destination overlaps no other pointer's elements in `range`, but for a source that equals it.
///   Sources may overlap each other.
/// - There is at least one source; with several, `op` is a reduction that supports `dtype`.
pub(crate) unsafe fn fold(
    dtype: DType,
    op: Option<ReduceOp>,
    src: &[*const u8],
    dst: &[*mut u8],
    range: Range<usize>,
) {
    // SAFETY: handed on from the caller; the level is this processor's.
    unsafe { fold_at(simd_level(), dtype, op, src, dst, range) }
}

/// [`fold`], compiled for `level`.
///
/// # Safety
/// As [`fold`]; and the processor has the level.
unsafe fn fold_at(
    level: SimdLevel,
    dtype: DType,
    op: Option<ReduceOp>,
    src: &[*const u8],
    dst: &[*mut u8],
    range: Range<usize>,
) {
    let at = range.start * dtype.size();
    if let &[from] = src {
        let bytes = range.len() * dtype.size();
        for &to in dst.iter().filter(|to| !std::ptr::eq(**to, from)) {
            // SAFETY: valid by the caller; distinct pointers do not overlap.
            unsafe { to.add(at).copy_from_nonoverlapping(from.add(at), bytes) };
        }
        return;
    }
    let Some(op) = op else {
        unreachable!("several sources are only read by a reduction");
    };
    let io = Operands {
        level,
        src,
        dst,
        at,
        len: range.len(),
    };
    // SAFETY: handed on from the caller; the match picks the type that `dtype` names.
    unsafe {
        match dtype {
            DType::F32 => float::<f32, 32>(io, op),
            DType::F64 => float::<f64, 16>(io, op),
            DType::BF16 => float::<bf16, 32>(io, op),
            DType::F16 => float::<f16, 32>(io, op),
            DType::I64 => integer_i64(io, op),
            DType::I32 => integer_i32(io, op),
            DType::U8 => integer_u8(io, op),
            DType::Bool => boolean(io, op),
        }
    }
}

/// Where to read and write, and how: `len` elements from byte `at` of each pointer.
#[derive(Clone, Copy)]
struct Operands<'a> {
    level: SimdLevel,
    src: &'a [*const u8],
    dst: &'a [*mut u8],
    at: usize,
    len: usize,
}

/// Smallest or largest, or NaN.
#[inline(always)]
fn pick<C: PartialOrd + Copy>(acc: C, x: C, better: bool) -> C {
    // `x != x` is true of NaN only; an `acc` that is NaN loses against nothing but NaN.
    #[expect(clippy::eq_op, reason = "a test for NaN that needs no other trait")]
    if better || x != x { x } else { acc }
}

/// # Safety
/// As [`fold`], with elements of type `T`.
unsafe fn float<T: Float, const L: usize>(io: Operands<'_>, op: ReduceOp) {
    let ranks = T::Compute::from_f64(io.src.len() as f64);
    let store = T::narrow;
    // SAFETY: handed on from the caller.
    unsafe {
        match op {
            ReduceOp::Sum => run::<T, _, L>(io, T::widen, |a, x| a + x, store),
            // Multiplying by the reciprocal of a power of two is the same division, but faster.
            ReduceOp::Avg if io.src.len().is_power_of_two() => {
                let share = T::Compute::from_f64(1.0) / ranks;
                run::<T, _, L>(io, T::widen, |a, x| a + x, |a| store(a * share));
            }
            ReduceOp::Avg => run::<T, _, L>(io, T::widen, |a, x| a + x, |a| store(a / ranks)),
            ReduceOp::Product => run::<T, _, L>(io, T::widen, |a, x| a * x, store),
            ReduceOp::Min => run::<T, _, L>(io, T::widen, |a, x| pick(a, x, x < a), store),
            ReduceOp::Max => run::<T, _, L>(io, T::widen, |a, x| pick(a, x, x > a), store),
            ReduceOp::BitAnd | ReduceOp::BitOr | ReduceOp::BitXor => not_supported(op),
        }
    }
}

macro_rules! integer {
    ($name:ident, $t:ty, $lanes:literal) => {
        /// # Safety
        /// As [`fold`], with elements of this type.
        unsafe fn $name(io: Operands<'_>, op: ReduceOp) {
            let same = |x: $t| x;
            // SAFETY: handed on from the caller.
            unsafe {
                match op {
                    ReduceOp::Sum => run::<_, _, $lanes>(io, same, <$t>::wrapping_add, same),
                    ReduceOp::Product => run::<_, _, $lanes>(io, same, <$t>::wrapping_mul, same),
                    ReduceOp::Min => run::<_, _, $lanes>(io, same, |a: $t, x| a.min(x), same),
                    ReduceOp::Max => run::<_, _, $lanes>(io, same, |a: $t, x| a.max(x), same),
                    ReduceOp::BitAnd => run::<_, _, $lanes>(io, same, |a: $t, x| a & x, same),
                    ReduceOp::BitOr => run::<_, _, $lanes>(io, same, |a: $t, x| a | x, same),
                    ReduceOp::BitXor => run::<_, _, $lanes>(io, same, |a: $t, x| a ^ x, same),
                    ReduceOp::Avg => not_supported(op),
                }
            }
        }
    };
}
integer!(integer_i64, i64, 16);
integer!(integer_i32, i32, 32);
integer!(integer_u8, u8, 64);

/// # Safety
/// As [`fold`], with elements of type [`Bool`], whose bytes may be others than 0 and 1.
unsafe fn boolean(io: Operands<'_>, op: ReduceOp) {
    let (load, store) = (|x: Bool| u8::from(x.get()), |x| Bool::from(x != 0));
    // SAFETY: handed on from the caller.
    unsafe {
        match op {
            ReduceOp::Min | ReduceOp::BitAnd => run::<_, _, 64>(io, load, |a, x| a & x, store),
            ReduceOp::Max | ReduceOp::BitOr => run::<_, _, 64>(io, load, |a, x| a | x, store),
            ReduceOp::BitXor => run::<_, _, 64>(io, load, |a, x| a ^ x, store),
            ReduceOp::Sum | ReduceOp::Avg | ReduceOp::Product => not_supported(op),
        }
    }
}

fn not_supported(op: ReduceOp) -> ! {
    unreachable!("check.rs lets no {op} through that its element type does not support")
}

/// # Safety
/// As [`fold`], with elements of type `T`.
unsafe fn run<T: Copy, A: Copy, const L: usize>(
    io: Operands<'_>,
    load: impl Fn(T) -> A + Copy,
    f: impl Fn(A, A) -> A + Copy,
    store: impl Fn(A) -> T + Copy,
) {
    // SAFETY: handed on from the caller; the level says that the processor has the features.
    unsafe {
        match io.level {
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => run_avx512::<T, A, L>(io, load, f, store),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => run_avx2::<T, A, L>(io, load, f, store),
            _ => run_all::<T, A, L>(io, load, f, store),
        }
    }
}

macro_rules! run_at_level {
    ($name:ident, $features:literal) => {
        /// [`run_all`], compiled for one SIMD level. (Through a closure, as in
        /// the `vectorize` of phalanx-tensor, a loop of this size stays a function of its own,
        /// compiled for the baseline, at half the speed.)
        ///
        /// # Safety
        /// As [`fold`]; and the processor has the features.
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        unsafe fn $name<T: Copy, A: Copy, const L: usize>(
            io: Operands<'_>,
            load: impl Fn(T) -> A + Copy,
            f: impl Fn(A, A) -> A + Copy,
            store: impl Fn(A) -> T + Copy,
        ) {
            // SAFETY: handed on from the caller.
            unsafe { run_all::<T, A, L>(io, load, f, store) }
        }
    };
}
run_at_level!(run_avx2, "avx2,fma,f16c,bmi2");
run_at_level!(
    run_avx512,
    "avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl"
);

/// # Safety
/// As [`fold`].
#[inline(always)]
unsafe fn run_all<T: Copy, A: Copy, const L: usize>(
    io: Operands<'_>,
    load: impl Fn(T) -> A + Copy,
    f: impl Fn(A, A) -> A + Copy,
    store: impl Fn(A) -> T + Copy,
) {
    // Two of each stay in registers: most folds have no more.
    let (src, dst) = (
        (io.src[0], io.src[1], &io.src[2..]),
        (io.dst[0], &io.dst[1..]),
    );
    let mut i = 0;
    while i + L <= io.len {
        // SAFETY: elements `i..i + L` are in range.
        unsafe { step::<T, A, L>(src, dst, io.at + i * size_of::<T>(), load, f, store) };
        i += L;
    }
    while i < io.len {
        // SAFETY: element `i` is in range.
        unsafe { step::<T, A, 1>(src, dst, io.at + i * size_of::<T>(), load, f, store) };
        i += 1;
    }
}

/// `L` elements: all loaded before the first is stored, so a source may be a destination.
///
/// # Safety
/// As [`fold`], for the elements from this byte on.
#[inline(always)]
unsafe fn step<T: Copy, A: Copy, const L: usize>(
    src: (*const u8, *const u8, &[*const u8]),
    dst: (*mut u8, &[*mut u8]),
    byte: usize,
    load: impl Fn(T) -> A + Copy,
    f: impl Fn(A, A) -> A + Copy,
    store: impl Fn(A) -> T + Copy,
) {
    // SAFETY: in range by the caller. An unaligned access needs no alignment. Shared memory is
    // only ever touched through raw pointers, never by reference.
    let read = |p: *const u8| unsafe { p.add(byte).cast::<[T; L]>().read_unaligned() };
    // Loops, not `array::map`: that one is now and then left as a call, which is three times slower.
    let (a, b) = (read(src.0), read(src.1));
    let mut acc = [f(load(a[0]), load(b[0])); L];
    for k in 1..L {
        acc[k] = f(load(a[k]), load(b[k]));
    }
    for &p in src.2 {
        let x = read(p);
        for k in 0..L {
            acc[k] = f(acc[k], load(x[k]));
        }
    }
    let mut out = [store(acc[0]); L];
    for k in 1..L {
        out[k] = store(acc[k]);
    }
    // SAFETY: as above.
    let write = |p: *mut u8| unsafe { p.add(byte).cast::<[T; L]>().write_unaligned(out) };
    write(dst.0);
    for &p in dst.1 {
        write(p);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_tensor::{Element, dispatch_float};

    /// The levels that this processor has.
    fn levels() -> impl Iterator<Item = SimdLevel> {
        let all = [SimdLevel::Baseline, SimdLevel::Avx2, SimdLevel::Avx512];
        all.into_iter().filter(|level| *level <= simd_level())
    }

    /// Small numbers of both signs, and now and then a special one.
    fn value<T: Element>(rank: usize, i: usize) -> T {
        const SPECIAL: [f64; 6] = [f64::NAN, -0.0, 0.0, f64::INFINITY, -1e300, 1e-300];
        let mixed = (7 * i + rank * (i % 5)) % 41;
        let special = SPECIAL.get(mixed).copied();
        T::from_f64(special.unwrap_or(f64::from(mixed as i8 - 23) * 1.37))
    }

    /// The reduction of one element of all ranks, one after the other.
    fn float_result<T: Float>(op: ReduceOp, ranks: &[T]) -> T {
        if matches!(op, ReduceOp::Min | ReduceOp::Max) {
            let nan = ranks.iter().find(|x| x.to_f64().is_nan());
            let better =
                |a: T, x: T| (op == ReduceOp::Min && x < a) || (op == ReduceOp::Max && x > a);
            let best = (ranks.iter().copied()).reduce(|a, x| if better(a, x) { x } else { a });
            return *nan.or(best.as_ref()).unwrap();
        }
        let wide = ranks.iter().map(|x| x.widen());
        let result = match op {
            ReduceOp::Product => wide.reduce(|a, x| a * x).unwrap(),
            _ => wide.reduce(|a, x| a + x).unwrap(),
        };
        let share = T::Compute::from_f64(ranks.len() as f64);
        T::narrow(if op == ReduceOp::Avg {
            result / share
        } else {
            result
        })
    }

    /// The same for integers. What wraps at 64 bits is right in the low 32 and 8, too.
    fn integer_result(op: ReduceOp, ranks: impl Iterator<Item = i64>) -> i64 {
        let combine = match op {
            ReduceOp::Sum => i64::wrapping_add,
            ReduceOp::Product => i64::wrapping_mul,
            ReduceOp::Min => Ord::min,
            ReduceOp::Max => Ord::max,
            ReduceOp::BitAnd => |a, x| a & x,
            ReduceOp::BitOr => |a, x| a | x,
            ReduceOp::BitXor => |a, x| a ^ x,
            ReduceOp::Avg => unreachable!("of floats only"),
        };
        ranks.reduce(combine).unwrap()
    }

    /// Whether the bits agree; one NaN is as good as another.
    fn same<T: Element>(a: T, b: T) -> bool {
        let bits = |x: T| x.to_f64().to_bits();
        (a == b && bits(a) == bits(b)) || (a.to_f64().is_nan() && b.to_f64().is_nan())
    }

    /// Folds into the last rank's own buffer and into another, and looks at every element.
    fn check<T: Element>(op: ReduceOp, expected: impl Fn(ReduceOp, &[T]) -> T) {
        for level in levels() {
            for (ranks, len) in [(2, 0), (2, 1), (3, 31), (2, 64), (4, 65), (5, 200)] {
                for range in [0..len, len / 3..len - len / 5] {
                    let before = |rank| (0..len).map(|i| value::<T>(rank, i)).collect();
                    let mut buffers: Vec<Vec<T>> = (0..=ranks).map(before).collect();
                    let old = buffers.clone();
                    let pointers: Vec<*mut u8> = (buffers.iter_mut())
                        .map(|b| b.as_mut_ptr().cast())
                        .collect();
                    let src: Vec<_> = pointers[..ranks].iter().map(|p| p.cast_const()).collect();
                    let (dst, range) = (&pointers[ranks - 1..], range.clone());
                    // SAFETY: the buffers are `len` long and apart; the last source is the first
                    // destination.
                    unsafe { fold_at(level, T::DTYPE, Some(op), &src, dst, range.clone()) };
                    for i in 0..len {
                        let given: Vec<T> = old[..ranks].iter().map(|b| b[i]).collect();
                        for rank in 0..=ranks {
                            let wanted = match rank + 1 >= ranks && range.contains(&i) {
                                true => expected(op, &given),
                                false => old[rank][i],
                            };
                            let found = buffers[rank][i];
                            let at = format!("{op:?} of {given:?} at {level:?}, element {i}");
                            assert!(same(found, wanted), "{at}: {found:?}, not {wanted:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_level_folds_in_rank_order() -> Result<(), phalanx_tensor::Error> {
        for op in ReduceOp::ALL {
            for dtype in DType::ALL.into_iter().filter(|dtype| op.supports(*dtype)) {
                match dtype {
                    DType::I64 => check::<i64>(op, |op, x| integer_result(op, x.iter().copied())),
                    DType::I32 => check::<i32>(op, |op, x| {
                        integer_result(op, x.iter().map(|x| i64::from(*x))) as i32
                    }),
                    DType::U8 => check::<u8>(op, |op, x| {
                        integer_result(op, x.iter().map(|x| i64::from(*x))) as u8
                    }),
                    DType::Bool => check::<Bool>(op, |op, x| {
                        let x = x.iter().map(|x| i64::from(x.get()));
                        Bool::from(integer_result(op, x) != 0)
                    }),
                    _ => dispatch_float!("fold", dtype, T => check::<T>(op, float_result)),
                }
            }
        }
        Ok(())
    }
}
