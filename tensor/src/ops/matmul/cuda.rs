//! On cards: products by cuBLASLt, as few calls as the strides of the stacks allow.

use crate::cpu::strided::Walk;
use crate::cuda::{Gemm, Issue, Matrix};
use crate::{Layout, Result, Shape, Tensor};

/// `y[i] = a[i] b[i]` for the matrices of two stacks of one leading shape.
pub(super) fn matmul(lane: &mut Issue, a: &Tensor, b: &Tensor, y: &mut Tensor) -> Result<()> {
    let ([.., m, k], [.., n]) = (a.dims(), b.dims()) else {
        unreachable!("the caller gives matrices at least two axes")
    };
    let (m, k, n) = (*m, *k, *n);
    let count = match m * n {
        0 => return Ok(()),
        elements => y.numel() / elements,
    };
    if count == 0 {
        return Ok(());
    }
    let dtype = y.dtype();
    let mut c = Matrix::dense(lane.address(y), m, n);
    if k == 0 {
        // A sum without terms reads nothing.
        return lane.gemm(&Gemm::new([count * m, n, k], dtype, [c, c, c]));
    }
    let ((a, a_layout), (b, b_layout)) = (lane.matrices(a)?, lane.matrices(b)?);
    let matrix = |at, layout: &Layout| {
        let strides = layout.strides();
        let [.., down, along] = strides[..] else {
            unreachable!("a matrix has two axes")
        };
        Matrix::new(at, [down, along], 0)
    };
    let lead = Walk::new([&leading(&a_layout)?, &leading(&b_layout)?]);
    let repeats = lead.axes.iter().all(|(_, [_, b])| *b == 0);
    if let (true, Some(rows)) = (repeats, a_layout.reshape(&Shape::from([count * m, k])))
        && matrix(a, &rows).is_readable(count * m, k)
    {
        // One tall matrix by one: a single product.
        let operands = [matrix(a, &rows), matrix(b, &b_layout), c];
        return lane.gemm(&Gemm::new([count * m, n, k], dtype, operands));
    }
    // The innermost of the leading axes that merge is the library's; a loop goes over the others.
    let Some((&(batch, [a_apart, b_apart]), outer)) = lead.axes.split_last() else {
        unreachable!("a walk has an axis")
    };
    let (a, b) = (
        matrix(a, &a_layout).apart(a_apart),
        matrix(b, &b_layout).apart(b_apart),
    );
    for i in 0..count / batch {
        let (mut rest, mut places) = (i, [0; 2]);
        for (extent, strides) in outer.iter().rev() {
            let index = rest % extent;
            rest /= extent;
            places = [0, 1].map(|operand| places[operand] + index * strides[operand]);
        }
        let operands = [
            a.further(places[0], dtype),
            b.further(places[1], dtype),
            c.apart(m * n),
        ];
        let product = Gemm::new([m, n, k], dtype, operands);
        lane.gemm(&Gemm { batch, ..product })?;
        c = c.further(batch * m * n, dtype);
    }
    Ok(())
}

/// `sum += a b` for matrices.
pub(super) fn addmm(lane: &mut Issue, a: &Tensor, b: &Tensor, sum: &mut Tensor) -> Result<()> {
    let [m, k, n] = [a.dims()[0], a.dims()[1], b.dims()[1]];
    if m == 0 || n == 0 || k == 0 {
        return Ok(());
    }
    let (dtype, c) = (a.dtype(), Matrix::dense(lane.address(sum), m, n));
    let operands = [lane.matrix(a)?, lane.matrix(b)?, c];
    lane.gemm(&Gemm {
        result: sum.dtype(),
        add: true,
        ..Gemm::new([m, n, k], dtype, operands)
    })
}

/// All axes but the last two, whose extents become 1.
fn leading(layout: &Layout) -> Result<Layout> {
    layout.narrow(-1, 0, 1)?.narrow(-2, 0, 1)
}
