//! all_reduce and reduce.

use super::data::{expect, expect_reduced, of_rank, reduce, tensor, value};
use phalanx_comm::op::Op;
use phalanx_comm::{DType, ProcessGroup, ReduceOp, Result, Tensor};

/// Sizes around every boundary of a kernel, and one of several chunks.
const SIZES: [usize; 7] = [0, 1, 7, 64, 1000, 1025, 20_011];

fn wanted(g: &dyn ProcessGroup, dtype: DType, op: ReduceOp, len: usize) -> Vec<f64> {
    let column = |i| {
        (0..g.size())
            .map(|r| value(dtype, r, i))
            .collect::<Vec<_>>()
    };
    (0..len).map(|i| reduce(dtype, op, &column(i))).collect()
}

/// Every type, every reduction, every size.
pub fn match_a_loop(g: &dyn ProcessGroup) -> Result<()> {
    for dtype in DType::ALL {
        for op in ReduceOp::ALL {
            if !g.supports(&Op::AllReduce(op), dtype) {
                let t = of_rank(g.rank(), [3], dtype, g.device());
                let e = g.all_reduce(t, op).unwrap_err();
                assert!(e.to_string().contains(op.name()) && !e.is_fatal(), "{e}");
                continue;
            }
            for len in SIZES {
                let mine = of_rank(g.rank(), [len], dtype, g.device());
                let got = g.all_reduce(mine, op)?.wait()?;
                expect_reduced(g, op, &got, &[len], dtype, &wanted(g, dtype, op, len));
            }
        }
    }
    Ok(())
}

/// Several megabytes, in two ways that must give the same bits.
pub fn large(g: &dyn ProcessGroup) -> Result<()> {
    let len = 1_400_003; // on two ranks, more steps than there are slots for what comes in
    let mine = of_rank(g.rank(), [len], DType::F32, g.device());
    let sum = g.all_reduce(mine.clone(), ReduceOp::Sum)?.wait()?;
    let again = g.all_reduce(mine.contiguous()?, ReduceOp::Sum)?.wait()?;
    let (sum, again) = (sum.to_vec::<f32>()?, again.to_vec::<f32>()?);
    assert!(sum == again);
    for i in (0..len).step_by(997).chain([len - 1]) {
        let column: Vec<f64> = (0..g.size()).map(|r| value(DType::F32, r, i)).collect();
        let want = reduce(DType::F32, ReduceOp::Sum, &column);
        assert_eq!(f64::from(sum[i]), want, "element {i}");
    }
    Ok(())
}

/// A NaN of any rank shows in sum, smallest and largest, wherever it stands.
pub fn nan_is_never_lost(g: &dyn ProcessGroup) -> Result<()> {
    for dtype in DType::ALL.into_iter().filter(|d| d.is_float()) {
        for op in [ReduceOp::Sum, ReduceOp::Avg, ReduceOp::Min, ReduceOp::Max] {
            let is_kept = g.promises(g.device()).expect("an engine").keeps_nan;
            if matches!(op, ReduceOp::Min | ReduceOp::Max) && !is_kept {
                continue;
            }
            // Element `r` is NaN on rank `r` only, and infinite elsewhere for odd ranks.
            let mine = tensor([g.size() + 40], dtype, g.device(), |i| {
                if i == g.rank() { f64::NAN } else { 1.0 }
            });
            let want: Vec<f64> = (0..g.size() + 40)
                .map(|i| {
                    let one = reduce(dtype, op, &vec![1.0; g.size()]);
                    if i < g.size() { f64::NAN } else { one }
                })
                .collect();
            let got = g.all_reduce(mine, op)?.wait()?;
            expect(&got, &[g.size() + 40], dtype, g.device(), &want);
        }
    }
    Ok(())
}

pub fn to_the_root_alone(g: &dyn ProcessGroup) -> Result<()> {
    for root in 0..g.size() {
        for (dtype, op) in [
            (DType::F32, ReduceOp::Avg),
            (DType::BF16, ReduceOp::Sum),
            (DType::U8, ReduceOp::BitXor),
        ] {
            if !g.supports(&Op::Reduce { op, root }, dtype) {
                continue;
            }
            for len in SIZES {
                let mine = of_rank(g.rank(), [len], dtype, g.device());
                let got = g.reduce(mine, op, root)?.wait()?;
                assert_eq!(got.is_some(), g.rank() == root);
                if let Some(got) = got {
                    expect_reduced(g, op, &got, &[len], dtype, &wanted(g, dtype, op, len));
                }
            }
        }
    }
    Ok(())
}

/// Transposed, strided and broadcast tensors.
pub fn views_are_read_in_their_order(g: &dyn ProcessGroup) -> Result<()> {
    let dtype = DType::F32;
    let base = |r: usize| of_rank(r, [6, 9], dtype, g.device());
    type View = fn(&Tensor) -> phalanx_tensor::Result<Tensor>;
    let views: [View; 4] = [
        |t| t.transpose(0, 1),
        |t| t.slice(1, 1..9, 2),
        |t| t.narrow(0, 2, 3),
        |t| t.narrow(0, 1, 1)?.broadcast_to([4, 9]),
    ];
    for view in views {
        let shape = view(&base(0))?.shape().clone();
        let inputs: Vec<Vec<f64>> = (0..g.size())
            .map(|r| Ok(super::data::values(&view(&base(r))?)))
            .collect::<Result<_>>()?;
        let want: Vec<f64> = (0..shape.numel())
            .map(|i| {
                reduce(
                    dtype,
                    ReduceOp::Sum,
                    &inputs.iter().map(|v| v[i]).collect::<Vec<_>>(),
                )
            })
            .collect();
        let got = g
            .all_reduce(view(&base(g.rank()))?, ReduceOp::Sum)?
            .wait()?;
        expect(&got, &shape, dtype, g.device(), &want);
        let all = g.all_gather(view(&base(g.rank()))?)?.wait()?;
        assert_eq!(super::data::values(&all), inputs.concat());
        let from_last = g.broadcast(view(&base(g.rank()))?, g.size() - 1)?.wait()?;
        assert_eq!(super::data::values(&from_last), inputs[g.size() - 1]);
    }
    Ok(())
}

/// Clones and views of what went in keep their values.
pub fn what_others_hold_stays(g: &dyn ProcessGroup) -> Result<()> {
    for len in [5, 50_000] {
        let mine = of_rank(g.rank(), [len], DType::F32, g.device());
        let held = mine.clone();
        let before = super::data::values(&held);
        g.all_reduce(mine.clone(), ReduceOp::Max)?.wait()?;
        g.broadcast(mine.clone(), 0)?.wait()?;
        g.reduce(mine, ReduceOp::Sum, 0)?.wait()?;
        assert_eq!(super::data::values(&held), before);
    }
    Ok(())
}
