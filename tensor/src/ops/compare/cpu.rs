//! CPU kernels.

use super::Comparison;
use crate::cpu::elementwise::{for_widened, map, on_native, stretched_pair};
use crate::cpu::vectorize;
use crate::{Bool, DType, Element, Float, Result, Tensor, bf16, dispatch_any, f16};

/// `out = kind(a, b)`; both broadcast to the shape of `out`.
pub(super) fn compare(
    op: &'static str,
    kind: Comparison,
    a: &Tensor,
    b: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    let operands = stretched_pair(op, [a, b], out.shape())?;
    let operands = operands.each_ref();
    let out = out.make_mut::<Bool>()?;
    on_native!(
        operands[0].dtype(), T => map(operands, out, &|_, x, y| run::<T>(kind, x, y));
        DType::BF16 => map(operands, out, &|_, x, y| run_half::<bf16>(kind, x, y)),
        DType::F16 => map(operands, out, &|_, x, y| run_half::<f16>(kind, x, y)),
    );
    Ok(())
}

fn run<T: Element>(kind: Comparison, x: [&[T]; 2], out: &mut [Bool]) {
    #[inline(always)]
    fn each<T: Copy>([a, b]: [&[T]; 2], out: &mut [Bool], f: impl Fn(&T, &T) -> bool) {
        vectorize(
            #[inline(always)]
            || {
                let operands = a.iter().zip(b);
                out.iter_mut()
                    .zip(operands)
                    .for_each(|(o, (a, b))| *o = Bool::from(f(a, b)));
            },
        );
    }
    match kind {
        Comparison::Eq => each(x, out, T::eq),
        Comparison::Ne => each(x, out, T::ne),
        Comparison::Lt => each(x, out, T::lt),
        Comparison::Le => each(x, out, T::le),
        Comparison::Gt => each(x, out, T::gt),
        Comparison::Ge => each(x, out, T::ge),
    }
}

fn run_half<T: Float<Compute = f32>>(kind: Comparison, x: [&[T]; 2], out: &mut [Bool]) {
    for_widened(x, |range, x| run(kind, x, &mut out[range]));
}

/// `out = cond ? a : b`; all three broadcast to the shape of `out`.
pub(super) fn choose(
    op: &'static str,
    cond: &Tensor,
    a: &Tensor,
    b: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    // The mask is a byte an element: stretched in full, so that the kernel reads it plainly.
    let cond = cond.broadcast_to(out.shape())?.contiguous_for(op)?;
    let cond = cond.as_bytes()?;
    let operands = stretched_pair(op, [a, b], out.shape())?;
    let operands = operands.each_ref();
    dispatch_any!(out.dtype(), T => {
        map(operands, out.make_mut::<T>()?, &|start, [a, b]: [&[T]; 2], out| {
            let cond = &cond[start..];
            vectorize(#[inline(always)] || {
                let operands = cond.iter().zip(a.iter().zip(b));
                out.iter_mut()
                    .zip(operands)
                    .for_each(|(o, (c, (a, b)))| *o = if *c != 0 { *a } else { *b });
            });
        });
    });
    Ok(())
}
