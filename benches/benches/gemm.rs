//! Criterion: matrix products, square and of the shapes that training steps have.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use phalanx_tensor::{DType, Device, Rng, Tensor, cpu};

fn products(c: &mut Criterion) {
    let (device, mut rng) = (Device::cpu(0), Rng::new(0));
    let mut group = c.benchmark_group("gemm");
    for dtype in [DType::F32, DType::BF16] {
        for [m, k, n] in [
            [256, 256, 256],
            [1024, 1024, 1024],
            [128, 784, 1024],
            [128, 1024, 10],
        ] {
            let a = Tensor::randn([m, k], dtype, device, &mut rng).expect("room for a");
            let b = Tensor::randn([k, n], dtype, device, &mut rng).expect("room for b");
            group.throughput(Throughput::Elements((2 * m * k * n) as u64));
            let id = BenchmarkId::new(dtype.to_string(), format!("{m}x{k}x{n}"));
            cpu::with_threads(1, || {
                group.bench_function(id, |bench| bench.iter(|| a.matmul(&b).expect("shapes fit")));
            });
        }
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
