//! Collectives that move parts: broadcast, gathers, scatters, all_to_all.

use super::data::{expect, expect_reduced, of_rank, reduce, tensor, value, values};
use phalanx_comm::op::Op;
use phalanx_comm::{DType, Message, ProcessGroup, ReduceOp, Result, Tensor};
use phalanx_tensor::Element;

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
        for op in ReduceOp::ALL {
            if !g.supports(&Op::ReduceScatter(op), dtype) {
                continue; // refused: see `reductions`
            }
            for len in [0, 1, 7, 1025, 9000] {
                let mine = of_rank(g.rank(), [n, len], dtype, g.device());
                let got = g.reduce_scatter(mine, op)?.wait()?;
                let want: Vec<f64> = (g.rank() * len..(g.rank() + 1) * len)
                    .map(|i| {
                        let column: Vec<f64> = (0..n).map(|r| value(dtype, r, i)).collect();
                        reduce(dtype, op, &column)
                    })
                    .collect();
                expect_reduced(g, op, &got, &[len], dtype, &want);
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

/// Parts of an odd number of elements, each with its own shift of one pattern, whose length no
/// chunk's is a multiple of.
struct Parts<T> {
    pattern: Vec<T>,
    len: usize,
}

impl<T: Element> Parts<T> {
    /// `ranks` parts are some megabytes.
    fn new(ranks: usize) -> Parts<T> {
        let len = (3_000_000 / size_of::<T>() / ranks) | 1;
        let one: Vec<T> = (0..251).map(|i| T::from_f64(f64::from(i % 251))).collect();
        Parts {
            pattern: one.repeat(len / 251 + 2),
            len,
        }
    }

    /// Rank `r`'s part `s`.
    fn part(&self, r: usize, s: usize) -> &[T] {
        &self.pattern[3 * (8 * r + s)..][..self.len]
    }

    /// Rank `r`'s `n` parts.
    fn of(&self, r: usize, n: usize) -> Vec<T> {
        (0..n).flat_map(|s| self.part(r, s)).copied().collect()
    }
}

/// Several megabytes: many chunks, of which the ranks do a share each. What only moves is bytes,
/// whatever the type.
pub fn large(g: &dyn ProcessGroup) -> Result<()> {
    let (n, me, device) = (g.size(), g.rank(), g.device());
    let parts = Parts::<u8>::new(n);
    let len = parts.len;
    let mine = Tensor::from_vec(parts.of(me, n), [n, len], device)?;
    let for_me: Vec<u8> = (0..n).flat_map(|r| parts.part(r, me)).copied().collect();

    let got = g.broadcast(mine.clone(), n - 1)?.wait()?;
    assert!(got.to_vec::<u8>()? == parts.of(n - 1, n), "broadcast");
    let first = Tensor::from_slice(parts.part(me, 0), [len], device)?;
    let all: Vec<u8> = (0..n).flat_map(|r| parts.part(r, 0)).copied().collect();
    let got = g.all_gather(first.clone())?.wait()?;
    assert!(got.to_vec::<u8>()? == all, "all_gather");
    if let Some(got) = g.gather(first, n / 2)?.wait()? {
        assert!(got.to_vec::<u8>()? == all, "gather");
    }
    let given = (me == n - 1).then(|| mine.clone());
    let got = g.scatter(given, [len].into(), DType::U8, n - 1)?.wait()?;
    assert!(got.to_vec::<u8>()? == parts.part(n - 1, me), "scatter");
    let got = g.all_to_all(mine.clone())?.wait()?;
    assert!(got.to_vec::<u8>()? == for_me, "all_to_all");

    // Rank `r` gives rank `s` the last of its part `s`, another number of rows to each.
    let rows = |r: usize, s: usize| len - (r + 2 * s) % 5;
    let last = |r: usize, s: usize| parts.part(r, s)[len - rows(r, s)..].to_vec();
    let send: Vec<usize> = (0..n).map(|s| rows(me, s)).collect();
    let recv: Vec<usize> = (0..n).map(|r| rows(r, me)).collect();
    let sent: Vec<u8> = (0..n).flat_map(|s| last(me, s)).collect();
    let sent = Tensor::from_vec(sent, [send.iter().sum()], device)?;
    let got = g.all_to_all_v(sent, &send, &recv)?.wait()?;
    let want: Vec<u8> = (0..n).flat_map(|r| last(r, me)).collect();
    assert!(got.to_vec::<u8>()? == want, "all_to_all_v");

    // Small whole numbers: their sum is exact.
    let parts = Parts::<f32>::new(n);
    let len = parts.len;
    let mine = Tensor::from_vec(parts.of(me, n), [n, len], device)?;
    let sum = |s: usize| -> Vec<f32> {
        let mut sum = vec![0.0; len];
        for r in 0..n {
            let all = sum.iter_mut().zip(parts.part(r, s));
            all.for_each(|(sum, x)| *sum += x);
        }
        sum
    };
    let got = g.reduce_scatter(mine.clone(), ReduceOp::Sum)?.wait()?;
    assert!(got.to_vec::<f32>()? == sum(me), "reduce_scatter");
    if let Some(got) = g.reduce(mine, ReduceOp::Sum, n - 1)?.wait()? {
        let want: Vec<f32> = (0..n).flat_map(sum).collect();
        assert!(got.to_vec::<f32>()? == want, "reduce");
    }
    Ok(())
}

/// Transposed, strided and broadcast tensors, and such that begin elsewhere, of which each rank
/// gets a part; and in messages.
pub fn views_are_read_in_their_order(g: &dyn ProcessGroup) -> Result<()> {
    let (n, me, device) = (g.size(), g.rank(), g.device());
    let of = |r: usize, shape: [usize; 2]| of_rank(r, shape, DType::F32, device);
    type View<'a> = &'a dyn Fn(usize) -> phalanx_tensor::Result<Tensor>;
    let views: [View<'_>; 4] = [
        &|r| of(r, [6, n]).transpose(0, 1),
        &|r| of(r, [n, 12]).slice(1, 0..12, 2),
        &|r| of(r, [1, 6]).broadcast_to([n, 6]),
        &|r| of(r, [n + 3, 6]).narrow(0, 2, n),
    ];
    for view in views {
        let inputs: Vec<Vec<f64>> = (0..n)
            .map(|r| Ok(values(&view(r)?)))
            .collect::<Result<_>>()?;
        let part = |r: usize, s: usize| &inputs[r][6 * s..6 * (s + 1)];
        let expect = |t: &Tensor, shape: &[usize], want: &[f64]| {
            expect(t, shape, DType::F32, device, want);
        };
        let sum = |i: usize| {
            let column: Vec<f64> = inputs.iter().map(|of_rank| of_rank[i]).collect();
            reduce(DType::F32, ReduceOp::Sum, &column)
        };
        let sums: Vec<f64> = (0..6 * n).map(sum).collect();

        let given = (me == n - 1).then(|| view(me)).transpose()?;
        let got = g.scatter(given, [6].into(), DType::F32, n - 1)?.wait()?;
        expect(&got, &[6], part(n - 1, me));
        let got = g.reduce_scatter(view(me)?, ReduceOp::Sum)?.wait()?;
        expect(&got, &[6], &sums[6 * me..6 * (me + 1)]);
        if let Some(got) = g.reduce(view(me)?, ReduceOp::Sum, 0)?.wait()? {
            expect(&got, &[n, 6], &sums);
        }
        if let Some(got) = g.gather(view(me)?, 0)?.wait()? {
            expect(&got, &[n, n, 6], &inputs.concat());
        }
        let got = g.all_to_all(view(me)?)?.wait()?;
        let want: Vec<f64> = (0..n).flat_map(|r| part(r, me)).copied().collect();
        expect(&got, &[n, 6], &want);

        // All rows to the next rank.
        let (next, before) = ((me + 1) % n, (me + n - 1) % n);
        let all_at = |rank: usize| (0..n).map(|r| if r == rank { n } else { 0 }).collect();
        let (send, recv): (Vec<usize>, Vec<usize>) = (all_at(next), all_at(before));
        let got = g.all_to_all_v(view(me)?, &send, &recv)?.wait()?;
        expect(&got, &[n, 6], &inputs[before]);
        if n > 1 {
            let receive = Message::Recv {
                shape: [n, 6].into(),
                dtype: DType::F32,
                source: before,
                tag: 3,
            };
            let send = Message::Send {
                tensor: view(me)?,
                destination: next,
                tag: 3,
            };
            let got = g.batch(vec![receive, send])?.wait()?;
            expect(&got[0], &[n, 6], &inputs[before]);
        }
    }
    Ok(())
}
