//! Kernels as libraries have them, compiled by the real NVRTC and checked against the same computation in Rust.

mod support;

use support::Arg::{Float, Int, Pointer};
use support::Bench;

fn values(count: usize, scale: f32) -> Vec<f32> {
    let next = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some(((*state >> 8) as f32 / (1 << 24) as f32 - 0.5) * scale)
    };
    std::iter::repeat(())
        .scan(7, |state, ()| next(state))
        .take(count)
        .collect()
}

#[test]
fn vectors_of_odd_sizes_are_added() {
    let source = r#"
extern "C" __global__ void add(const float* a, const float* b, float* c, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) c[i] = a[i] + b[i];
}"#;
    let Some(mut bench) = Bench::new("add.cu", source) else {
        return;
    };
    for (n, grid, block) in [(1, 1, 32), (1000, 4, 256), (4097, 5, 96), (33, 1, 1024)] {
        bench.seed += 1;
        let (a, b) = (values(n, 4.0), values(n, 0.1));
        let c = bench.device.empty(4 * n);
        let args = [
            Pointer(bench.device.with(&a)),
            Pointer(bench.device.with(&b)),
            Pointer(c),
            Int(n as i32),
        ];
        bench.go("add", grid, block, &args);
        let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        assert_eq!(bench.device.read::<f32>(c), want);
    }
}

#[test]
fn blocks_reduce_by_shuffles() {
    let source = r#"
extern "C" __global__ void sum(const float* x, float* out, int n) {
    __shared__ float part[32];
    float v = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) v += x[blockIdx.x * n + i];
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x < 32) {
        v = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.f;
        for (int o = 16; o; o >>= 1) v += __shfl_down_sync(0xffffffffu, v, o);
        if (threadIdx.x == 0) out[blockIdx.x] = v;
    }
}"#;
    let Some(mut bench) = Bench::new("sum.cu", source) else {
        return;
    };
    let x: Vec<f32> = (0..3 * 1000).map(|i| (i % 17) as f32).collect();
    let out = bench.device.empty(12);
    let args = [Pointer(bench.device.with(&x)), Pointer(out), Int(1000)];
    for block in [32, 128, 1024] {
        bench.seed += 1;
        bench.go("sum", 3, block, &args);
        let want: Vec<f32> = x.chunks(1000).map(|row| row.iter().sum()).collect();
        assert_eq!(bench.device.read::<f32>(out), want);
    }
}

#[test]
fn tiles_in_shared_memory_multiply_matrices() {
    let source = r#"
extern "C" __global__ void mm(const float* a, const float* b, float* c, int n) {
    __shared__ float x[16][16], y[16][17];
    int r = blockIdx.y * 16 + threadIdx.y, q = blockIdx.x * 16 + threadIdx.x;
    float s = 0;
    for (int t = 0; t < n; t += 16) {
        x[threadIdx.y][threadIdx.x] = r < n && t + threadIdx.x < n ? a[r * n + t + threadIdx.x] : 0.f;
        y[threadIdx.y][threadIdx.x] = q < n && t + threadIdx.y < n ? b[(t + threadIdx.y) * n + q] : 0.f;
        __syncthreads();
        for (int k = 0; k < 16; k++) s = fmaf(x[threadIdx.y][k], y[k][threadIdx.x], s);
        __syncthreads();
    }
    if (r < n && q < n) c[r * n + q] = s;
}"#;
    let Some(bench) = Bench::new("mm.cu", source) else {
        return;
    };
    let n = 50;
    let (a, b) = (values(n * n, 2.0), values(n * n, 3.0));
    let c = bench.device.empty(4 * n * n);
    let args = [
        Pointer(bench.device.with(&a)),
        Pointer(bench.device.with(&b)),
        Pointer(c),
        Int(n as i32),
    ];
    bench
        .launch("mm", [4, 4, 1], [16, 16, 1], 0, &args)
        .unwrap_or_else(|finding| panic!("{finding}"));
    let element =
        |i: usize| (0..n).fold(0f32, |s, k| a[i / n * n + k].mul_add(b[k * n + i % n], s));
    assert_eq!(
        bench.device.read::<f32>(c),
        (0..n * n).map(element).collect::<Vec<_>>()
    );
}

#[test]
fn adamw_reads_a_table_of_pointers() {
    let source = r#"
extern "C" __global__ void adamw(float* const* p, const float* const* g, float* const* m, float* const* v, const int* n,
                                 float lr, float decay) {
    int t = blockIdx.y;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n[t]; i += gridDim.x * blockDim.x) {
        float d = g[t][i];
        float a = 0.9f * m[t][i] + 0.1f * d, b = 0.999f * v[t][i] + 0.001f * d * d;
        m[t][i] = a; v[t][i] = b;
        p[t][i] = p[t][i] * (1.f - lr * decay) - lr * a / (sqrtf(b) + 1e-8f);
    }
}"#;
    let Some(bench) = Bench::new("adamw.cu", source) else {
        return;
    };
    let (sizes, device) = ([5i32, 1000, 77], &bench.device);
    let each = |scale: f32| sizes.map(|n| device.with(&values(n as usize, scale)));
    let (p, g) = (each(1.0), each(0.1));
    let (m, v) = (
        sizes.map(|n| device.with(&vec![0f32; n as usize])),
        sizes.map(|n| device.with(&vec![0f32; n as usize])),
    );
    let before = p.map(|p| device.read::<f32>(p));
    let tables = [
        device.with(&p),
        device.with(&g),
        device.with(&m),
        device.with(&v),
        device.with(&sizes),
    ];
    let mut args: Vec<_> = tables.map(Pointer).to_vec();
    args.extend([Float(0.01), Float(0.1)]);
    bench
        .launch("adamw", [2, 3, 1], [128, 1, 1], 0, &args)
        .unwrap_or_else(|finding| panic!("{finding}"));
    for t in 0..3 {
        let (grad, now) = (device.read::<f32>(g[t]), device.read::<f32>(p[t]));
        for i in 0..sizes[t] as usize {
            let (a, b) = (0.1 * grad[i], 0.001 * grad[i] * grad[i]);
            let want = before[t][i] * (1.0 - 0.01 * 0.1) - 0.01 * a / (b.sqrt() + 1e-8);
            assert!(
                (now[i] - want).abs() <= 1e-6 * want.abs().max(1.0),
                "{t} {i}: {} {want}",
                now[i]
            );
        }
    }
}
