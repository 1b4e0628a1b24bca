//! Groups over a store: what they carry, what they refuse, and what their ranks hear when one goes wrong. Ranks are
//! threads here, over a store in memory and over one that is served; processes are in `torchrun.rs`.

#[path = "small_talk/dropping.rs"]
mod dropping;
#[path = "small_talk/failures.rs"]
mod failures;

use phalanx_comm::backends::store::{MOST_BYTES, world};
use phalanx_comm::{
    DType, Device, Error, Label, MemoryStore, Message, PrefixStore, ProcessGroup, Progress,
    ReduceOp, Result, Store, StoreServer, TcpConfig, TcpStore, Tensor,
};
use phalanx_tensor::Shape;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a program on ranks that share a store; what each returned. A rank's handle is dropped at its end.
fn ranks<T: Send>(
    store: &(dyn Fn(usize) -> Arc<dyn Store> + Sync),
    size: usize,
    deadline: Duration,
    program: impl Fn(&dyn ProcessGroup) -> Result<T> + Sync,
) -> Vec<Result<T>> {
    thread::scope(|scope| {
        let program = &program;
        let rank = |rank: usize| {
            scope.spawn(move || {
                let group = world(store(rank), rank, size, Device::cpu(rank), deadline)?;
                program(&*group)
            })
        };
        let threads: Vec<_> = (0..size).map(rank).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// As `ranks`, on a store in memory.
fn in_memory<T: Send>(
    size: usize,
    deadline: Duration,
    program: impl Fn(&dyn ProcessGroup) -> Result<T> + Sync,
) -> Vec<Result<T>> {
    let store = MemoryStore::new(PATIENCE);
    let handle = move |rank| Arc::new(store.clone().for_rank(rank)) as Arc<dyn Store>;
    ranks(&handle, size, deadline, program)
}

fn client(server: &StoreServer, rank: usize) -> Arc<dyn Store> {
    let config = TcpConfig::new("job").rank(rank).deadline(PATIENCE);
    Arc::new(TcpStore::connect(&server.address().to_string(), config).unwrap())
}

fn number(group: &dyn ProcessGroup, value: i64) -> Result<Tensor> {
    Ok(Tensor::from_slice(&[value], [], group.device())?)
}

fn met(group: &dyn ProcessGroup) -> Result<()> {
    group.barrier()?.wait()
}

fn gathered(group: &dyn ProcessGroup) -> Result<()> {
    group.all_gather(number(group, 1)?)?.wait().map(drop)
}

/// All that it carries, on a group of any size.
fn carries(group: &dyn ProcessGroup) -> Result<()> {
    let (rank, size, device) = (group.rank(), group.size(), group.device());
    let of = |rank: usize| rank as i64 * 100;
    group.barrier()?.wait()?;
    for dtype in DType::ALL {
        let value = |rank: usize| if dtype == DType::Bool { rank % 2 } else { rank + 1 } as f64;
        let mine = Tensor::full([2, 3], value(rank), dtype, device)?;
        let all = group.all_gather(mine.clone())?.wait()?;
        assert_eq!(
            (all.dims(), all.dtype(), all.device()),
            (&[size, 2, 3][..], dtype, device)
        );
        for r in 0..size {
            let want = Tensor::full([2, 3], value(r), dtype, device)?;
            let bytes = want.as_bytes()?;
            assert_eq!(
                &all.as_bytes()?[r * bytes.len()..][..bytes.len()],
                bytes,
                "{dtype}"
            );
        }
        let root = size - 1;
        let got = group.broadcast(mine.clone(), root)?.wait()?;
        let want = Tensor::full([2, 3], value(root), dtype, device)?;
        assert_eq!(got.as_bytes()?, want.as_bytes()?);
        // What others hold stays.
        assert_eq!(
            mine.as_bytes()?,
            Tensor::full([2, 3], value(rank), dtype, device)?.as_bytes()?
        );
    }
    // Views are read in their order; nothing at all is a tensor, too.
    let wide: Vec<i64> = (0..6).map(|i| i + of(rank)).collect();
    let view = Tensor::from_slice(&wide, [2, 3], device)?.transpose(0, 1)?;
    let all = group.all_gather(view)?.wait()?.to_vec::<i64>()?;
    let want: Vec<i64> = (0..size)
        .flat_map(|r| [0, 3, 1, 4, 2, 5].map(|i| i + of(r)))
        .collect();
    assert_eq!(all, want);
    let none = Tensor::zeros([0, 4], DType::F32, device)?;
    assert_eq!(group.all_gather(none)?.wait()?.dims(), [size, 0, 4]);
    // As much as it carries.
    let most = Tensor::full([MOST_BYTES / 8], rank as f64, DType::I64, device)?;
    let all = group.all_gather(most)?.wait()?.to_vec::<i64>()?;
    assert!(
        all.chunks(MOST_BYTES / 8)
            .enumerate()
            .all(|(r, part)| part.iter().all(|&x| x == r as i64))
    );
    // Several tensors by one call, and into a tensor that is there.
    let tensors = vec![
        number(group, of(rank))?,
        Tensor::full([3], rank as f64, DType::F32, device)?,
    ];
    let got = group.broadcast_many(tensors, 0)?.wait()?;
    assert_eq!(got[0].to_vec::<i64>()?, [0]);
    assert_eq!(got[1].to_vec::<f32>()?, [0.0; 3]);
    let into = Tensor::zeros([size], DType::I64, device)?;
    let address = into.as_bytes()?.as_ptr();
    let all = group
        .all_gather_into(into, number(group, of(rank))?)?
        .wait()?;
    assert_eq!(all.to_vec::<i64>()?, (0..size).map(of).collect::<Vec<_>>());
    assert_eq!(all.as_bytes()?.as_ptr(), address);
    // Many in flight, waited for in another order, one of them by looking, one of them never.
    let mut works = Vec::new();
    for i in 0..20 {
        works.push(group.all_gather(number(group, of(rank) + i)?)?);
    }
    drop(group.barrier()?);
    for (i, mut work) in works.into_iter().enumerate().rev() {
        while i == 7 && !work.poll()? {
            thread::yield_now();
        }
        let want: Vec<i64> = (0..size).map(|r| of(r) + i as i64).collect();
        assert_eq!(work.wait()?.to_vec::<i64>()?, want);
    }
    let label = |part| Label::new(1, 2, part);
    group.labelled(label(0)).barrier()?.wait()?;
    group
        .labelled(label(1))
        .all_gather(number(group, 1)?)?
        .wait()?;
    // One that the rank leaves behind when it leaves the group.
    drop(group.barrier()?);
    Ok(())
}

/// The same, in the world and in groups of it, one of which leaves somebody out.
fn carries_all(group: &dyn ProcessGroup) -> Result<()> {
    carries(group)?;
    let (rank, size) = (group.rank(), group.size());
    let half = group
        .split(Some((rank % 2) as u32), -(rank as i32))?
        .unwrap();
    assert_eq!(
        half.world_ranks(),
        (0..size)
            .rev()
            .filter(|r| r % 2 == rank % 2)
            .collect::<Vec<_>>()
    );
    assert!(half.name().starts_with("world/"), "{}", half.name());
    carries(&*half)?;
    let some = group.split((rank > 0).then_some(3), 0)?;
    assert_eq!(some.is_some(), rank > 0);
    if let Some(some) = some {
        carries(&*some)?;
    }
    group.barrier()?.wait()
}

#[test]
fn it_carries_small_talk_and_leaves_nothing_behind() {
    for size in 1..=4 {
        let store = MemoryStore::new(PATIENCE);
        let whole = store.clone();
        let handle = move |rank| Arc::new(whole.clone().for_rank(rank)) as Arc<dyn Store>;
        for end in ranks(&handle, size, PATIENCE, carries_all) {
            end.unwrap();
        }
        // Who came, who left, and how many: no call.
        assert_eq!(store.len(), 2 * size + 2, "{size} ranks");
    }
}

#[test]
fn it_does_so_over_tcp() {
    let server = StoreServer::bind("127.0.0.1:0", "job").unwrap();
    for (epoch, size) in [(0, 2), (1, 3)] {
        let handle = |rank: usize| {
            let whole: Arc<dyn Store> = match rank {
                0 => Arc::new(server.store(PATIENCE).for_rank(0)),
                _ => client(&server, rank),
            };
            Arc::new(PrefixStore::new(&format!("epoch {epoch}"), whole)) as Arc<dyn Store>
        };
        for end in ranks(&handle, size, PATIENCE, carries_all) {
            end.unwrap();
        }
    }
    assert_eq!(server.store(PATIENCE).len(), 2 * 2 + 2 + 2 * 3 + 2);
}

#[test]
fn many_ranks_meet_over_tcp() {
    let server = StoreServer::bind("127.0.0.1:0", "job").unwrap();
    let start = Instant::now();
    let ends = ranks(&|rank| client(&server, rank), 32, PATIENCE, |group| {
        for _ in 0..20 {
            group.barrier()?.wait()?;
        }
        let all = group.all_gather(number(group, group.rank() as i64)?)?;
        all.wait()?.to_vec::<i64>().map_err(Error::from)
    });
    for end in ends {
        assert_eq!(end.unwrap(), (0..32).collect::<Vec<_>>());
    }
    println!("{:?}", start.elapsed());
}

/// Messages match in the order of issue, in each direction for itself, whatever comes between; and one may be of unknown
/// shape.
#[test]
fn messages_go_between_two_ranks() {
    let ends = in_memory(3, PATIENCE, |group| {
        let (rank, size) = (group.rank(), group.size());
        let (to, from) = ((rank + 1) % size, (rank + size - 1) % size);
        let first = group.send(number(group, rank as i64)?, to, 7)?;
        let second = group.send(number(group, 10 + rank as i64)?, to, 8)?;
        group.barrier()?.wait()?;
        let one = group.recv(Shape::from([]), DType::I64, from, 7)?;
        let other = group.recv(Shape::from([]), DType::I64, from, 8)?;
        assert_eq!(other.wait()?.to_vec::<i64>()?, [10 + from as i64]);
        assert_eq!(one.wait()?.to_vec::<i64>()?, [from as i64]);
        first.wait()?;
        second.wait()?;
        let any = Tensor::full([2, 3], rank as f64, DType::BF16, group.device())?;
        let sent = group.send_any(any, to, 1)?;
        let got = group.recv_any(from, 1)?.wait()?;
        sent.wait()?;
        assert_eq!((got.dims(), got.dtype()), (&[2, 3][..], DType::BF16));
        assert_eq!(got.cast(DType::F32)?.to_vec::<f32>()?, [from as f32; 6]);
        met(group)
    });
    ends.into_iter().for_each(|end| end.unwrap());
}

/// The ends of a message that differ are one error on both.
#[test]
fn ends_of_a_message_that_differ() {
    let ends = in_memory(2, PATIENCE, |group| match group.rank() {
        0 => group.send(number(group, 1)?, 1, 3)?.wait(),
        _ => group
            .recv(Shape::from([]), DType::I64, 0, 4)?
            .wait()
            .map(drop),
    });
    let said: Vec<String> = ends
        .into_iter()
        .map(|end| end.unwrap_err().to_string())
        .collect();
    assert_eq!(said[0], said[1]);
    assert!(said[0].contains("disagree on the tag"), "{}", said[0]);
}

/// A call that it does not carry is its own mistake: the group goes on, and no number is used up.
#[test]
fn other_calls_are_refused_with_what_to_use() {
    let ends = in_memory(2, PATIENCE, |group| {
        let mut errors = Vec::new();
        if group.rank() == 1 {
            let one = || Tensor::ones([2], DType::F32, group.device());
            let large = |n| Tensor::zeros([n], DType::U8, group.device());
            errors = vec![
                group.all_reduce(one()?, ReduceOp::Sum).err(),
                group.reduce_scatter(one()?, ReduceOp::Sum).err(),
                group.send(large(MOST_BYTES + 1)?, 0, 0).err(),
                group.gather(one()?, 0).err(),
                group.all_gather(large(MOST_BYTES + 1)?).err(),
                group.broadcast(large(1 << 20)?, 0).err(),
                group
                    .broadcast_many(vec![large(MOST_BYTES)?, large(1)?], 0)
                    .err(),
            ];
        }
        group.barrier()?.wait()?;
        group.all_gather(number(group, 1)?)?.wait()?;
        Ok(errors)
    });
    let errors = ends.into_iter().map(|end| end.unwrap()).nth(1).unwrap();
    for error in errors {
        let error = error.expect("it went through");
        assert!(
            matches!(&error, Error::InvalidArgument { rank: 1, .. }),
            "{error}"
        );
        assert!(!error.is_fatal());
        assert!(
            error
                .to_string()
                .contains("For CPU tensors start the program by mpirun"),
            "{error}"
        );
    }
}

/// Of what goes together, nothing goes where a part is refused: the other rank meets the next message as it should.
#[test]
fn what_goes_together_is_refused_together() {
    let ends = in_memory(2, PATIENCE, |group| {
        let small = || number(group, 5);
        if group.rank() == 1 {
            let any = group.recv_any(0, 1)?.wait()?;
            assert_eq!(any.to_vec::<i64>()?, [5]);
            group.recv(Shape::from([]), DType::I64, 0, 2)?.wait()?;
            return met(group);
        }
        let large = || Tensor::zeros([MOST_BYTES + 1], DType::U8, group.device());
        let message = |tensor: Tensor| Message::Send {
            tensor,
            destination: 1,
            tag: 1,
        };
        let errors = [
            group.send_any(large()?, 1, 1).err(),
            group
                .batch(vec![message(small()?), message(large()?)])
                .err(),
        ];
        for error in errors {
            let error = error.expect("it went through");
            assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
        }
        let mut recent = group.recent();
        recent.retain(|record| record.progress == Progress::Refused);
        assert_eq!(recent.len(), 4, "{recent:?}");
        group.send_any(small()?, 1, 1)?.wait()?;
        group.send(small()?, 1, 2)?.wait()?;
        met(group)
    });
    ends.into_iter().for_each(|end| end.unwrap());
}
