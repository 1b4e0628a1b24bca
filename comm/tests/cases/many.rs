//! Several tensors by one call, and results in memory that is there already.

use super::data::{of_rank, tensor, values};
use phalanx_comm::{DType, ProcessGroup, ReduceOp, Result, Tensor};

/// Of all sizes and of two types: empty ones, some that travel with the call, some that do not.
fn shapes(g: &dyn ProcessGroup) -> Vec<(DType, Vec<usize>)> {
    let n = g.size();
    let lens = [1, 0, 3, 70_001, 1000, 1, 5_000, 2];
    let dtype = |at: usize| if at % 3 == 1 { DType::F64 } else { DType::F32 };
    let shape = |(at, len)| (dtype(at), vec![n, len]);
    lens.into_iter().enumerate().map(shape).collect()
}

fn mine(g: &dyn ProcessGroup, rank: usize) -> Vec<Tensor> {
    let one = |(dtype, dims): (DType, Vec<usize>)| of_rank(rank, &dims[..], dtype, g.device());
    shapes(g).into_iter().map(one).collect()
}

fn same(many: &[Tensor], one_by_one: &[Tensor]) {
    assert_eq!(many.len(), one_by_one.len());
    for (many, one) in many.iter().zip(one_by_one) {
        assert_eq!((many.dtype(), many.dims()), (one.dtype(), one.dims()));
        assert_eq!(values(many), values(one));
    }
}

/// The same results as one by one, in the order of the call; and none, and while others are under way.
pub fn at_once(g: &dyn ProcessGroup) -> Result<()> {
    let (n, me) = (g.size(), g.rank());
    let sums = g.all_reduce_many(mine(g, me), ReduceOp::Sum)?;
    let parts = g.reduce_scatter_many(mine(g, me), ReduceOp::Max)?;
    let given = g.broadcast_many(mine(g, me), n - 1)?;
    let none = g.all_reduce_many(Vec::new(), ReduceOp::Sum)?;
    assert!(none.wait()?.is_empty());
    let by_one = |t: Tensor| g.all_reduce(t, ReduceOp::Sum)?.wait();
    let want: Vec<Tensor> = mine(g, me).into_iter().map(by_one).collect::<Result<_>>()?;
    same(&sums.wait()?, &want);
    same(&given.wait()?, &mine(g, n - 1));
    let by_one = |t: Tensor| g.reduce_scatter(t, ReduceOp::Max)?.wait();
    let want: Vec<Tensor> = mine(g, me).into_iter().map(by_one).collect::<Result<_>>()?;
    same(&parts.wait()?, &want);
    // One tensor twice: what is shared stays as it was.
    let t = tensor([3], DType::F32, g.device(), |_| 1.0);
    let sums = g.all_reduce_many(vec![t.clone(), t.clone()], ReduceOp::Sum)?;
    for sum in sums.wait()? {
        assert_eq!(values(&sum), [n as f64; 3]);
    }
    assert_eq!(values(&t), [1.0; 3]);
    // A type that one of them may not have.
    let flag = Tensor::zeros([1], DType::Bool, g.device())?;
    let wrong = g.all_reduce_many(vec![t, flag], ReduceOp::Sum);
    assert!(wrong.is_err_and(|e| !e.is_fatal()));
    Ok(())
}

/// Tensors each of which is short, and all of which are long: of all lengths, and several such calls under way.
pub fn many_short_ones(g: &dyn ProcessGroup) -> Result<()> {
    let (n, me) = (g.size(), g.rank());
    let mine = |rank: usize| -> Vec<Tensor> {
        let one = |at: usize| of_rank(rank + at, [n, at * 7 % 130], DType::F64, g.device());
        (0..200).map(one).collect()
    };
    let calls = (0..3).map(|_| g.all_reduce_many(mine(me), ReduceOp::Sum));
    let calls = calls.collect::<Result<Vec<_>>>()?;
    let parts = g.reduce_scatter_many(mine(me), ReduceOp::Sum)?;
    let given = g.broadcast_many(mine(me), n - 1)?;
    let by_one = |t: Tensor| g.all_reduce(t, ReduceOp::Sum)?.wait();
    let want: Vec<Tensor> = mine(me).into_iter().map(by_one).collect::<Result<_>>()?;
    for call in calls {
        same(&call.wait()?, &want);
    }
    same(&given.wait()?, &mine(n - 1));
    let by_one = |t: Tensor| g.reduce_scatter(t, ReduceOp::Sum)?.wait();
    let want: Vec<Tensor> = mine(me).into_iter().map(by_one).collect::<Result<_>>()?;
    same(&parts.wait()?, &want);
    Ok(())
}

/// The buffer comes back as the result; a buffer that somebody else holds stays as it was.
pub fn into_a_buffer(g: &dyn ProcessGroup) -> Result<()> {
    let (n, me) = (g.size(), g.rank());
    for len in [1, 2000, 30_000] {
        let mine = || of_rank(me, [len], DType::F32, g.device());
        let want = g.all_gather(mine())?.wait()?;
        let into = Tensor::zeros([n, len], DType::F32, g.device())?;
        let before = into.address();
        let got = g.all_gather_into(into, mine())?.wait()?;
        assert_eq!(values(&got), values(&want));
        assert_eq!(got.address(), before);
        let held = Tensor::zeros([n, len], DType::F32, g.device())?;
        let got = g.all_gather_into(held.clone(), mine())?.wait()?;
        assert_eq!(values(&got), values(&want));
        assert!(values(&held).iter().all(|v| *v == 0.0));
    }
    let into = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, g.device());
    for wrong in [into(&[n, 3], DType::F32)?, into(&[n, 2], DType::F64)?] {
        let t = tensor([2], DType::F32, g.device(), |_| 1.0);
        let refused = g.all_gather_into(wrong, t);
        assert!(refused.is_err_and(|e| !e.is_fatal()));
    }
    Ok(())
}
