//! Criterion: collectives between threads. Input is made anew for each call, and its making is timed with it.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use phalanx_benches::ranks::{launch, slowest};
use phalanx_comm::ReduceOp;
use phalanx_tensor::{DType, Device, Tensor};

/// How long `calls` all-reduces of `bytes` bytes take, one after the other.
fn all_reduce(ranks: usize, bytes: usize, calls: u64) -> anyhow::Result<Duration> {
    let times = launch(ranks, Device::cpu(0), move |group| {
        let device = Device::cpu(group.rank());
        let elements = bytes / DType::F32.size();
        group.barrier()?.wait()?;
        let start = Instant::now();
        for _ in 0..calls {
            let input = Tensor::full([elements], 1.0, DType::F32, device)?;
            group.all_reduce(input, ReduceOp::Sum)?.wait()?;
        }
        slowest(&*group, start.elapsed().as_secs_f64())
    })?;
    Ok(Duration::from_secs_f64(times[0]))
}

fn collectives(c: &mut Criterion) {
    let mut group = c.benchmark_group("all_reduce");
    for ranks in [2, 4] {
        for bytes in [1 << 10, 1 << 16, 1 << 20, 1 << 24] {
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_function(BenchmarkId::new(format!("{ranks} ranks"), bytes), |bench| {
                bench.iter_custom(|calls| all_reduce(ranks, bytes, calls).expect("ranks agree"));
            });
        }
    }
}

criterion_group!(benches, collectives);
criterion_main!(benches);
