//! Many operations at once, groups within groups, and calls that are refused.

use super::data::{tensor, values};
use phalanx_comm::op::Op;
use phalanx_comm::{
    DType, Error, Label, Name, ProcessGroup, Progress, ReduceOp, Result, Tensor, Work,
};
use std::thread::sleep;
use std::time::{Duration, Instant};

fn number(g: &dyn ProcessGroup, x: usize) -> Tensor {
    tensor([1], DType::F64, g.device(), |_| x as f64)
}

/// Polls until the work is done; all ranks have issued it, or will without waiting for anybody.
fn poll(g: &dyn ProcessGroup, work: &mut Work<Tensor>) {
    let start = Instant::now();
    while !work.poll().unwrap() {
        assert!(start.elapsed() < g.deadline(), "polled in vain");
        std::thread::yield_now();
    }
}

/// What the ranks' numbers add up to.
fn ranks_sum(g: &dyn ProcessGroup) -> usize {
    g.size() * (g.size() - 1) / 2
}

/// Issued before the first is waited for; some large, some small.
pub fn a_thousand_in_flight(g: &dyn ProcessGroup) -> Result<()> {
    let work: Vec<_> = (0..1000)
        .map(|k| {
            let len = if k % 50 == 0 { 5000 } else { 3 };
            let mine = tensor([len], DType::F32, g.device(), |_| (g.rank() + k) as f64);
            g.all_reduce(mine, ReduceOp::Sum)
        })
        .collect::<Result<_>>()?;
    for (k, work) in work.into_iter().enumerate() {
        let want = (ranks_sum(g) + k * g.size()) as f64;
        assert!(
            values(&work.wait()?).iter().all(|v| *v == want),
            "number {k}"
        );
    }
    Ok(())
}

/// A handle with a label is the same group: its calls and those without one are one sequence. A group
/// that is split off a labelled one has no label.
pub fn labelled_calls(g: &dyn ProcessGroup) -> Result<()> {
    // Each rank has a name of its own for it, which nobody compares.
    let labelled = |part| {
        g.labelled(Label {
            name: Name::new(format_args!("part {part} of rank {}", g.rank())),
            ..Label::new(7, 3, part)
        })
    };
    let first = labelled(0).all_reduce(number(g, 1), ReduceOp::Sum)?;
    let second = g.all_reduce(number(g, g.rank()), ReduceOp::Sum)?;
    let third = labelled(1).all_gather(number(g, g.rank()))?;
    assert_eq!(third.wait()?.dims(), [g.size(), 1]);
    assert_eq!(second.wait()?.item::<f64>()?, ranks_sum(g) as f64);
    assert_eq!(first.wait()?.item::<f64>()?, g.size() as f64);
    let all = labelled(2)
        .split(Some(0), 0)?
        .expect("every rank has a color");
    let sum = all.all_reduce(number(g, 2), ReduceOp::Sum)?.wait()?;
    assert_eq!(sum.item::<f64>()?, 2.0 * g.size() as f64);
    let message = |g: &dyn ProcessGroup| -> Result<()> {
        let (me, n) = (g.rank(), g.size());
        if n > 1 && me == 0 {
            g.send(number(g, 5), n - 1, 0)?.wait()?;
        } else if n > 1 && me == n - 1 {
            assert_eq!(
                g.recv([1].into(), DType::F64, 0, 0)?
                    .wait()?
                    .item::<f64>()?,
                5.0
            );
        }
        Ok(())
    };
    message(g)?;
    message(&*labelled(4))
}

/// Waited for last first, and on another thread.
pub fn any_order_any_thread(g: &dyn ProcessGroup) -> Result<()> {
    let mut work = Vec::new();
    for k in 0..20 {
        work.push((k, g.all_reduce(number(g, g.rank() + k), ReduceOp::Sum)?));
        work.push((k, g.broadcast(number(g, k * g.size() + g.rank() * 7), 0)?));
    }
    let ranks = ranks_sum(g);
    let size = g.size();
    let results = std::thread::spawn(move || {
        let results = work
            .into_iter()
            .rev()
            .map(|(k, w)| Ok((k, w.wait()?.item::<f64>()?)));
        results.collect::<Result<Vec<(usize, f64)>>>()
    });
    let results = results.join().expect("no panic")?;
    for pair in results.chunks(2) {
        let ((k, broadcast), (_, sum)) = (pair[0], pair[1]);
        assert_eq!(
            (broadcast, sum),
            ((k * size) as f64, (ranks + k * size) as f64)
        );
    }
    Ok(())
}

/// Now, in ns of a clock that nobody sets and that all ranks share: they are on one machine, be they
/// threads, processes, or in namespaces of a network.
#[allow(unsafe_code)]
fn now() -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: it writes into a live local.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    assert_eq!(failed, 0, "the system has no clock");
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Every rank's two moments: what came before, and what after.
fn moments(g: &dyn ProcessGroup, mine: [i64; 2]) -> Result<Vec<[i64; 2]>> {
    let mine = Tensor::from_slice(&mine, [2], g.device())?;
    let all = g.all_gather(mine)?.wait()?.to_vec::<i64>()?;
    Ok(all.chunks(2).map(|pair| [pair[0], pair[1]]).collect())
}

/// How long a rank is late, so that who does not wait for it is seen to be early.
const LATE: Duration = Duration::from_millis(3);

/// A work that is dropped is done all the same: the others have what they need of it. The drop waits for nobody: the
/// last one to come waits for a word from the dropper. One that is polled long enough is done.
pub fn dropping_and_polling(g: &dyn ProcessGroup) -> Result<()> {
    let (n, me) = (g.size(), g.rank());
    let of = |value: f64, len: usize| tensor([len], DType::F32, g.device(), |_| value);
    // On cards a message takes its turn among the collectives, so nobody could wait for one.
    let waits = n > 1 && g.device().is_cpu();
    for len in [2, 100_000] {
        for late in 0..n {
            let dropper = (late + 1) % n;
            if me == late && waits {
                g.recv([1].into(), DType::F64, dropper, 3)?.wait()?;
            }
            let sum = g.all_reduce(of(me as f64 + 1.0, len), ReduceOp::Sum)?;
            if me == dropper {
                drop(sum);
                if waits {
                    g.send(number(g, 1), late, 3)?.wait()?;
                }
            } else {
                let want = (ranks_sum(g) + n) as f64;
                let sum = values(&sum.wait()?);
                assert!(sum.iter().all(|v| *v == want), "rank {dropper} drops it");
            }
        }
        if n > 1 && me < 2 {
            // Rank 0 drops the send, rank 1 gets the message.
            match me {
                0 => drop(g.send(of(7.0, len), 1, 9)?),
                _ => {
                    let got = g.recv([len].into(), DType::F32, 0, 9)?.wait()?;
                    assert!(values(&got).iter().all(|v| *v == 7.0));
                }
            }
        }
        let mut work = g.all_reduce(of(2.0, len), ReduceOp::Sum)?;
        poll(g, &mut work);
        let want = 2.0 * n as f64;
        assert!(values(&work.wait()?).iter().all(|v| *v == want));
    }
    Ok(())
}

/// Nobody is past a barrier before all have reached it, whoever is late.
pub fn barrier_meets_all(g: &dyn ProcessGroup) -> Result<()> {
    for late in (0..g.size()).cycle().take(20) {
        if g.rank() == late {
            sleep(LATE);
        }
        let before = now();
        g.barrier()?.wait()?;
        let after = now();
        let all = moments(g, [before, after])?;
        let last = all.iter().map(|pair| pair[0]).max();
        let first = all.iter().map(|pair| pair[1]).min();
        assert!(last <= first, "rank {late} was late: {all:?}");
    }
    Ok(())
}

/// Rows and columns of a grid of ranks, both in use at the same time, and the whole besides.
pub fn two_dimensions_at_once(g: &dyn ProcessGroup) -> Result<()> {
    let (n, me) = (g.size(), g.rank());
    let columns = if n % 2 == 0 { 2 } else { 3 };
    let (row, column) = (me / columns, me % columns);
    let rows = g
        .split(Some(row as u32), column as i32)?
        .expect("every rank has a color");
    let cols = g
        .split(Some(column as u32), row as i32)?
        .expect("every rank has a color");
    assert_eq!((rows.rank(), cols.rank()), (column, row));
    assert_ne!(rows.name(), cols.name());
    let in_row: Vec<usize> = (0..n).filter(|r| r / columns == row).collect();
    let in_col: Vec<usize> = (0..n).filter(|r| r % columns == column).collect();
    let world = |ranks: &[usize]| {
        ranks
            .iter()
            .map(|r| g.world_ranks()[*r])
            .collect::<Vec<_>>()
    };
    assert_eq!(rows.world_ranks(), world(&in_row));
    assert_eq!(cols.world_ranks(), world(&in_col));
    let sum = |ranks: &[usize], k: usize| ranks.iter().map(|r| r + k).sum::<usize>() as f64;
    for k in 0..30 {
        let a = rows.all_reduce(number(g, me + k), ReduceOp::Sum)?;
        let b = cols.all_reduce(number(g, me + 2 * k), ReduceOp::Sum)?;
        let c = g.all_reduce(number(g, me + 3 * k), ReduceOp::Sum)?;
        assert_eq!(
            c.wait()?.item::<f64>()?,
            sum(&(0..n).collect::<Vec<_>>(), 3 * k)
        );
        assert_eq!(b.wait()?.item::<f64>()?, sum(&in_col, 2 * k));
        assert_eq!(a.wait()?.item::<f64>()?, sum(&in_row, k));
    }
    // A group of a group.
    let alone = rows
        .split(Some(rows.rank() as u32), 0)?
        .expect("every rank has a color");
    assert_eq!(
        (alone.size(), alone.world_ranks()),
        (1, &g.world_ranks()[me..=me])
    );
    assert_eq!(
        alone
            .all_reduce(number(g, me), ReduceOp::Avg)?
            .wait()?
            .item::<f64>()?,
        me as f64
    );
    Ok(())
}

/// Ranks in the order of the key, and of their old rank where keys are equal.
pub fn split_by_key(g: &dyn ProcessGroup) -> Result<()> {
    let (n, me) = (g.size(), g.rank());
    let reversed = g
        .split(Some(5), -(me as i32))?
        .expect("every rank has a color");
    assert_eq!((reversed.rank(), reversed.size()), (n - 1 - me, n));
    let all = reversed.all_gather(number(g, me))?.wait()?;
    let want: Vec<f64> = (0..n).rev().map(|r| r as f64).collect();
    assert_eq!(values(&all), want);
    let same = g.split(Some(0), 3)?.expect("every rank has a color");
    assert_eq!(
        (same.rank(), same.deadline(), same.device()),
        (me, g.deadline(), g.device())
    );
    // The last rank takes no part, and the group of the others is whole without it.
    let others = g.split((me + 1 < n).then_some(3), 0)?;
    assert_eq!(others.is_none(), me + 1 == n);
    if let Some(others) = others {
        let sum = others.all_reduce(number(g, 1), ReduceOp::Sum)?.wait()?;
        assert_eq!(sum.item::<f64>()?, (n - 1) as f64);
    }
    Ok(())
}

/// A call that makes no sense is refused on its rank, and the group goes on.
pub fn wrong_arguments_hurt_nobody(g: &dyn ProcessGroup) -> Result<()> {
    let (n, me) = (g.size(), g.rank());
    let t = || number(g, 1);
    let errors = [
        g.broadcast(t(), n).err(),
        g.reduce(t(), ReduceOp::Sum, n + 3).err(),
        g.gather(t(), usize::MAX).err(),
        g.scatter(None, [1].into(), DType::F64, n).err(),
        g.scatter(None, [1].into(), DType::F64, me).err(),
        g.scatter(Some(t()), [1].into(), DType::F32, me).err(),
        g.scatter(Some(t()), [2].into(), DType::F64, me).err(),
        g.all_reduce(t(), ReduceOp::BitAnd).err(),
        g.reduce_scatter(
            tensor([n + 1, 2], DType::F32, g.device(), |_| 0.0),
            ReduceOp::Sum,
        )
        .err(),
        g.reduce_scatter(tensor((), DType::F32, g.device(), |_| 0.0), ReduceOp::Sum)
            .err(),
        g.all_to_all(tensor([n + 1], DType::F32, g.device(), |_| 0.0))
            .err(),
        g.all_to_all_v(t(), &vec![1; n + 1], &vec![1; n]).err(),
        g.all_to_all_v(t(), &vec![7; n], &vec![7; n]).err(),
        g.send(t(), me, 0).err(),
        g.send(t(), n, 0).err(),
        g.recv([1].into(), DType::F32, me, 0).err(),
        g.split(Some(u32::MAX), 0).err(),
    ];
    for (i, e) in errors.into_iter().enumerate() {
        let e = e.unwrap_or_else(|| panic!("call {i} went through"));
        assert!(!e.is_fatal(), "{e}");
        let world_rank = g.world_ranks()[me];
        assert!(e.to_string().contains(&format!("rank {world_rank}")), "{e}");
    }
    assert!(matches!(
        g.broadcast(t(), n),
        Err(Error::RankOutOfRange { op: "broadcast", role: "root", value, size, .. }) if value == n && size == n
    ));
    assert_eq!(
        g.all_reduce(t(), ReduceOp::Sum)?.wait()?.item::<f64>()?,
        n as f64
    );
    Ok(())
}

/// Numbers, health and the last calls can be read, and looking at them is no call.
pub fn what_a_group_says_of_itself(g: &dyn ProcessGroup) -> Result<()> {
    let before = g.issued();
    let work = g.all_reduce(number(g, 1), ReduceOp::Sum)?;
    assert_eq!((g.issued(), g.health()), (before + 1, None));
    let last = g.recent().pop().expect("a call was made");
    assert_eq!(last.progress, Progress::UnderWay);
    assert!(
        last.to_string().contains("all_reduce(sum) of f64 [1]"),
        "{last}"
    );
    work.wait()?;
    g.barrier()?.wait()?;
    let recent = g.recent();
    let [.., first, second] = &recent[..] else {
        panic!("{recent:?}")
    };
    assert!(matches!(first.progress, Progress::Done(_)), "{first}");
    assert_eq!(
        (second.call.as_str(), second.number),
        ("barrier", first.number + 1)
    );
    let promises = g
        .promises(g.device())
        .expect("an engine for its own device");
    // Those of threads and of MPI; a rank alone reduces nothing.
    let is_host = g.backend() != "nccl";
    assert_eq!(
        (promises.rank_order, promises.keeps_nan),
        (is_host, is_host)
    );
    let sum = Op::AllReduce(ReduceOp::Sum);
    assert!(g.supports(&sum, DType::BF16) && !g.supports(&sum, DType::Bool));
    Ok(())
}
