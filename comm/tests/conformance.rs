//! smoke
use phalanx_comm::*;
#[test]
fn smoke() {
    for n in 1..=8 {
        for len in [0usize, 1, 7, 1000, 5000, 100_000] {
            let out = launch(n, |g| {
                let mut outs = vec![];
                for k in 0..20 {
                    let mine = Tensor::full([len], (g.rank() + k) as f64, DType::F32, g.device())?;
                    outs.push(g.all_reduce(mine, ReduceOp::Sum)?);
                }
                for (k, w) in outs.into_iter().enumerate() {
                    let v = w.wait()?.to_vec::<f32>()?;
                    let want = (0..n).map(|r| (r + k) as f32).sum::<f32>();
                    assert!(v.len() == len && v.iter().all(|x| *x == want));
                }
                let b = Tensor::full([len], g.rank() as f64, DType::F32, g.device())?;
                let b = g.broadcast(b, n - 1)?.wait()?.to_vec::<f32>()?;
                assert!(b.iter().all(|x| *x == (n - 1) as f32));
                g.barrier()?.wait()?;
                let s = g.split((g.rank() % 2) as u32, -(g.rank() as i32))?;
                let x = Tensor::full([3], g.rank() as f64, DType::F32, g.device())?;
                let x = s.all_gather(x)?.wait()?;
                let want: Vec<f32> = (0..n)
                    .rev()
                    .filter(|r| r % 2 == g.rank() % 2)
                    .flat_map(|r| [r as f32; 3])
                    .collect();
                assert_eq!(x.to_vec::<f32>()?, want);
                Ok::<_, Error>(g.rank())
            });
            assert_eq!(out.unwrap(), (0..n).collect::<Vec<_>>());
        }
    }
}
