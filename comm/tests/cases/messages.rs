//! send and recv.

use super::data::{expect, of_rank, tensor, values};
use phalanx_comm::{DType, ProcessGroup, Result};

/// Received in another order than sent: by tag; and in order within a tag.
pub fn by_tag(g: &dyn ProcessGroup) -> Result<()> {
    if g.size() < 2 {
        return Ok(());
    }
    let (n, me) = (g.size(), g.rank());
    let number = |x: usize| tensor((), DType::F32, g.device(), |_| x as f64);
    let mut sends = Vec::new();
    for peer in (0..n).filter(|p| *p != me) {
        for tag in [7, 0, u32::MAX, 7] {
            let place = sends.len() % 4;
            sends.push(g.send(number(me * 10 + place), peer, tag)?);
        }
    }
    let mut recvs = Vec::new();
    for peer in (0..n).filter(|p| *p != me) {
        for (tag, place) in [(u32::MAX, 2), (7, 0), (7, 3), (0, 1)] {
            let work = g.recv(().into(), DType::F32, peer, tag)?;
            recvs.push((work, peer * 10 + place));
        }
    }
    for (work, want) in recvs {
        assert_eq!(work.wait()?.item::<f64>()?, want as f64);
    }
    sends.into_iter().try_for_each(|s| s.wait())
}

/// Every rank sends to the next and receives from the one before, with a collective between.
pub fn around_a_ring(g: &dyn ProcessGroup) -> Result<()> {
    if g.size() < 2 {
        return Ok(());
    }
    let (n, me) = (g.size(), g.rank());
    let mut t = of_rank(me, [300], DType::BF16, g.device());
    for step in 0..n {
        let got = g.recv([300].into(), DType::BF16, (me + n - 1) % n, step as u32)?;
        let sent = g.send(t, (me + 1) % n, step as u32)?;
        g.barrier()?.wait()?;
        t = got.wait()?;
        sent.wait()?;
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
