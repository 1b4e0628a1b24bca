//! send and recv.

use super::data::{expect, of_rank, tensor, values};
use phalanx_comm::{DType, Device, Message, ProcessGroup, Result, Tensor};
use phalanx_tensor::WriteFault;

/// Between two ranks messages match in the order of issue, whatever their tags and whenever they are waited for.
pub fn in_the_order_of_issue(g: &dyn ProcessGroup) -> Result<()> {
    if g.size() < 2 {
        return Ok(());
    }
    const TAGS: [u32; 4] = [7, 0, u32::MAX, 7];
    let (n, me) = (g.size(), g.rank());
    let number = |x: usize| tensor((), DType::F32, g.device(), |_| x as f64);
    // Of each pair the first one sends first; the pairs come in one order on all ranks.
    let (mut sends, mut recvs) = (Vec::new(), Vec::new());
    let pairs = (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b)));
    for (a, b) in pairs.filter(|(a, b)| me == *a || me == *b) {
        let peer = a + b - me;
        for sends_now in [me == a, me == b] {
            for (place, tag) in TAGS.into_iter().enumerate() {
                match sends_now {
                    true => sends.push(g.send(number(me * 10 + place), peer, tag)?),
                    false => {
                        let work = g.recv(().into(), DType::F32, peer, tag)?;
                        recvs.push((work, peer * 10 + place));
                    }
                }
            }
        }
    }
    for (work, want) in recvs.into_iter().rev() {
        assert_eq!(work.wait()?.item::<f64>()?, want as f64);
    }
    sends.into_iter().rev().try_for_each(|s| s.wait())
}

/// Every rank sends to the next and receives from the one before, with a collective between.
pub fn around_a_ring(g: &dyn ProcessGroup) -> Result<()> {
    if g.size() < 2 {
        return Ok(());
    }
    let (n, me) = (g.size(), g.rank());
    let mut t = of_rank(me, [300], DType::BF16, g.device());
    for step in 0..n {
        let recv = Message::Recv {
            shape: [300].into(),
            dtype: DType::BF16,
            source: (me + n - 1) % n,
            tag: step as u32,
        };
        let send = Message::Send {
            tensor: t,
            destination: (me + 1) % n,
            tag: step as u32,
        };
        let got = g.batch(vec![recv, send])?;
        g.barrier()?.wait()?;
        t = got.wait()?.pop().expect("one of them receives");
        // It has come from so many ranks before this one; at last, it is this rank's own.
        let origin = (me + n - 1 - step) % n;
        let want = of_rank(origin, [300], DType::BF16, g.device());
        assert_eq!(values(&t), values(&want), "after {step} steps");
    }
    Ok(())
}

pub fn of_all_sizes(g: &dyn ProcessGroup) -> Result<()> {
    if g.size() < 2 {
        return Ok(());
    }
    for dtype in DType::ALL {
        for len in [0, 1, 1001, 300_001] {
            let want = of_rank(0, [len], dtype, g.device());
            if g.rank() == 0 {
                g.send(want, g.size() - 1, 1)?.wait()?;
            } else if g.rank() == g.size() - 1 {
                let got = g.recv([len].into(), dtype, 0, 1)?.wait()?;
                expect(&got, &[len], dtype, g.device(), &values(&want));
            }
        }
    }
    Ok(())
}

/// All ranks send to all and receive from all, each in one batch.
pub fn in_a_batch(g: &dyn ProcessGroup) -> Result<()> {
    let (n, me) = (g.size(), g.rank());
    assert!(g.batch(Vec::new())?.wait()?.is_empty());
    for len in [3, 20_000] {
        let peers = || (0..n).filter(|p| *p != me);
        let send = |destination| Message::Send {
            tensor: of_rank(me, [len], DType::F32, g.device()),
            destination,
            tag: 4,
        };
        let recv = |source| Message::Recv {
            shape: [len].into(),
            dtype: DType::F32,
            source,
            tag: 4,
        };
        let got = g.batch(peers().map(send).chain(peers().map(recv)).collect())?;
        let got = got.wait()?;
        assert_eq!(got.len(), n - 1);
        for (from, got) in peers().zip(&got) {
            let want = of_rank(from, [len], DType::F32, g.device());
            assert_eq!(values(got), values(&want));
        }
    }
    Ok(())
}

/// Gives a tensor to one rank, and gets one of unknown shape from another. Ranks of even number send first, so that this
/// goes well where a send waits for its receiver.
fn pass_on(g: &dyn ProcessGroup, mine: Tensor, to: usize, from: usize, tag: u32) -> Result<Tensor> {
    if g.rank().is_multiple_of(2) {
        let sent = g.send_any(mine, to, tag)?;
        let got = g.recv_any(from, tag)?.wait()?;
        sent.wait()?;
        return Ok(got);
    }
    let got = g.recv_any(from, tag)?.wait()?;
    g.send_any(mine, to, tag)?.wait()?;
    Ok(got)
}

/// The receiver knows neither shape nor type.
pub fn of_unknown_shape(g: &dyn ProcessGroup) -> Result<()> {
    let (n, me) = (g.size(), g.rank());
    if n < 2 {
        return Ok(());
    }
    let shapes: [&[usize]; 4] = [&[], &[0, 3], &[2, 1, 5], &[40_000]];
    for (shape, dtype) in shapes
        .into_iter()
        .zip([DType::F32, DType::I64, DType::BF16, DType::F64])
    {
        let from = (me + n - 1) % n;
        let mine = of_rank(me, shape, dtype, g.device());
        let got = pass_on(g, mine, (me + 1) % n, from, 9)?;
        let want = of_rank(from, shape, dtype, g.device());
        expect(&got, shape, dtype, g.device(), &values(&want));
    }
    // It arrives where it was sent from, also where the group is over cards.
    let (to, from) = ((me + 1) % n, (me + n - 1) % n);
    let mine = of_rank(me, [3, 2], DType::F64, Device::cpu(0));
    let got = pass_on(g, mine, to, from, 9)?;
    let want = of_rank(from, [3, 2], DType::F64, Device::cpu(0));
    assert!(got.device().is_cpu(), "it came to {}", got.device());
    expect(&got, &[3, 2], DType::F64, got.device(), &values(&want));
    let deep = Tensor::zeros([1; 15], DType::F32, g.device())?;
    let refused = g.send_any(deep, (me + 1) % n, 0);
    assert!(refused.is_err_and(|e| !e.is_fatal()));
    Ok(())
}

/// A view with gaps; and a batch of which a part is wrong, or a tensor that is lost: nothing of it is sent.
pub fn whole_or_not_at_all(g: &dyn ProcessGroup) -> Result<()> {
    let (n, me) = (g.size(), g.rank());
    if n < 2 {
        return Ok(());
    }
    let (to, from) = ((me + 1) % n, (me + n - 1) % n);
    let send = |destination| Message::Send {
        tensor: of_rank(me, [3, 4], DType::F32, g.device()),
        destination,
        tag: 0,
    };
    let refused = g.batch(vec![send(to), send(n)]);
    assert!(refused.is_err_and(|e| !e.is_fatal()));
    let lost = || {
        let tensor = of_rank(me, [3, 4], DType::F32, g.device());
        let write = WriteFault::new();
        tensor.set_last_write(&write);
        write.declare("on purpose");
        tensor
    };
    let part = Message::Send {
        tensor: lost(),
        destination: to,
        tag: 0,
    };
    for refused in [
        g.send_any(lost(), to, 1).err(),
        g.batch(vec![send(to), part]).err(),
    ] {
        let error = refused.expect("it went through").to_string();
        assert!(error.contains("on purpose"), "{error}");
    }
    let view = |rank| of_rank(rank, [3, 4], DType::F32, g.device()).t();
    let got = pass_on(g, view(me)?, to, from, 1)?;
    expect(&got, &[4, 3], DType::F32, g.device(), &values(&view(from)?));
    Ok(())
}
