//! Criterion: whole training steps of the workloads, on one thread.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use phalanx_benches::work::{Trainer, Work};
use phalanx_tensor::{Device, cpu};

fn steps(c: &mut Criterion) {
    let mut group = c.benchmark_group("step");
    for work in [Work::Tiny, Work::Mlp, Work::Cnn] {
        let batch = work.batch_size();
        let mut trainer = Trainer::new(work, batch, Device::cpu(0), 0).expect("room for a model");
        group.throughput(Throughput::Elements(batch as u64));
        cpu::with_threads(1, || {
            group.bench_function(work.name(), |bench| {
                bench.iter(|| trainer.step().expect("a step"));
            });
        });
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
