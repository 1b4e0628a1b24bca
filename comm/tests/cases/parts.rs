//! Collectives that move parts: broadcast, gathers, scatters, all_to_all.

use super::data::{expect, of_rank, reduce, tensor, value, values};
use phalanx_comm::{DType, ProcessGroup, ReduceOp, Result};

const SIZES: [usize; 5] = [0, 1, 7, 1000, 20_011];

/// The elements of rank `r`.
fn of(dtype: DType, r: usize, len: usize) -> Vec<f64> {
    (0..len).map(|i| value(dtype, r, i)).collect()
}

pub fn broadcast(g: &dyn ProcessGroup) -> Result<()> {
    for dtype in DType::ALL {
        for root in 0..g.size() {
            for len in SIZES {
                let mine = of_rank(g.rank(), [len], dtype, g.device());
                let got = g.broadcast(mine, root)?.wait()?;
                expect(&got, &[len], dtype, g.device(), &of(dtype, root, len));
            }
        }
    }
    Ok(())
}

pub fn gathers(g: &dyn ProcessGroup) -> Result<()> {
    let n = g.size();
    for dtype in DType::ALL {
        for len in SIZES {
            let want: Vec<f64> = (0..n).flat_map(|r| of(dtype, r, len)).collect();
            let all = g
                .all_gather(of_rank(g.rank(), [len, 1], dtype, g.device()))?
                .wait()?;
            expect(&all, &[n, len, 1], dtype, g.device(), &want);
            let root = len % n;
            let some = g
                .gather(of_rank(g.rank(), [len], dtype, g.device()), root)?
                .wait()?;
            assert_eq!(some.is_some(), g.rank() == root);
            if let Some(some) = some {
                expect(&some, &[n, len], dtype, g.device(), &want);
            }
        }
    }
    // Scalars gain an axis, too.
    let all = g
        .all_gather(of_rank(g.rank(), (), DType::I64, g.device()))?
        .wait()?;
    assert_eq!(all.dims(), [n]);
    Ok(())
}

pub fn scatter(g: &dyn ProcessGroup) -> Result<()> {
    let n = g.size();
    for dtype in DType::ALL {
        for len in SIZES {
            let root = (len + 1) % n;
            let parts = (g.rank() == root).then(|| of_rank(9, [n, len], dtype, g.device()));
            let got = g.scatter(parts, [len].into(), dtype, root)?.wait()?;
            let want = &of(dtype, 9, n * len)[g.rank() * len..][..len];
            expect(&got, &[len], dtype, g.device(), want);
        }
    }
    Ok(())
}

pub fn reduce_scatter(g: &dyn ProcessGroup) -> Result<()> {
    let n = g.size();
    for dtype in DType::ALL {
        for op in ReduceOp::ALL.into_iter().filter(|op| op.supports(dtype)) {
            for len in [0, 1, 7, 1025, 9000] {
                let mine = of_rank(g.rank(), [n, len], dtype, g.device());
                let got = g.reduce_scatter(mine, op)?.wait()?;
                let want: Vec<f64> = (g.rank() * len..(g.rank() + 1) * len)
                    .map(|i| {
                        let column: Vec<f64> = (0..n).map(|r| value(dtype, r, i)).collect();
                        reduce(dtype, op, &column)
                    })
                    .collect();
                expect(&got, &[len], dtype, g.device(), &want);
            }
        }
    }
    Ok(())
}

pub fn all_to_all(g: &dyn ProcessGroup) -> Result<()> {
    let n = g.size();
    for dtype in DType::ALL {
        for len in SIZES {
            let mine = of_rank(g.rank(), [n, len], dtype, g.device());
            let got = g.all_to_all(mine)?.wait()?;
            let me = g.rank() * len;
            let want: Vec<f64> = (0..n)
                .flat_map(|r| of(dtype, r, n * len)[me..me + len].to_vec())
                .collect();
            expect(&got, &[n, len], dtype, g.device(), &want);
        }
    }
    Ok(())
}

/// Rank `r` sends `rows(r, s)` rows to rank `s`, none to some.
pub fn all_to_all_v(g: &dyn ProcessGroup) -> Result<()> {
    let (n, me) = (g.size(), g.rank());
    for width in [0, 1, 3, 700] {
        let rows = |r: usize, s: usize| (3 * r + 5 * s) % 4;
        let send: Vec<usize> = (0..n).map(|s| rows(me, s)).collect();
        let recv: Vec<usize> = (0..n).map(|r| rows(r, me)).collect();
        // Each element says where it comes from, where it goes, and its place.
        let mark = |r: usize, s: usize, i: usize| (r * 100_000 + s * 10_000 + i) as f64;
        let sent: Vec<f64> = (0..n)
            .flat_map(|s| (0..rows(me, s) * width).map(move |i| mark(me, s, i)))
            .collect();
        let shape = [send.iter().sum(), width];
        let mine = tensor(shape, DType::F64, g.device(), |i| sent[i]);
        let got = g.all_to_all_v(mine, &send, &recv)?.wait()?;
        let want: Vec<f64> = (0..n)
            .flat_map(|r| (0..rows(r, me) * width).map(move |i| mark(r, me, i)))
            .collect();
        assert_eq!(got.dims(), [recv.iter().sum(), width]);
        assert_eq!(values(&got), want);
    }
    Ok(())
}
