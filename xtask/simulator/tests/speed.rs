//! How fast kernels run. Nothing is asserted, since machines differ: `cargo test -p phalanx-simulator --test speed --
//! --ignored --nocapture` prints the figures.

mod support;

use std::time::Instant;

use simulator::exec::Checks;
use support::Arg::{Int, Pointer};
use support::Bench;

const SOURCE: &str = r#"
extern "C" __global__ void add(const float* a, const float* b, float* c, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}
extern "C" __global__ void barriers(int n) { for (int i = 0; i < n; i++) __syncthreads(); }
extern "C" __global__ void shuffles(float* c, int n) {
    float v = threadIdx.x;
    for (int i = 0; i < n; i++) v += __shfl_xor_sync(0xffffffffu, v, 1);
    if (threadIdx.x == 0) c[blockIdx.x] = v;
}
extern "C" __global__ void tiles(const float* a, const float* b, float* c, int n) {
    __shared__ float x[16][16], y[16][16];
    int r = blockIdx.y * 16 + threadIdx.y, q = blockIdx.x * 16 + threadIdx.x;
    float s = 0;
    for (int t = 0; t < n; t += 16) {
        x[threadIdx.y][threadIdx.x] = a[r * n + t + threadIdx.x];
        y[threadIdx.y][threadIdx.x] = b[(t + threadIdx.y) * n + q];
        __syncthreads();
        for (int k = 0; k < 16; k++) s = fmaf(x[threadIdx.y][k], y[k][threadIdx.x], s);
        __syncthreads();
    }
    c[r * n + q] = s;
}
"#;

/// The best of five runs, in nanoseconds.
fn best(mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64() * 1e9
    };
    (0..5).map(time).fold(f64::INFINITY, f64::min)
}

#[test]
#[ignore = "prints figures of this machine"]
fn figures() {
    for checks in [Checks::Usual, Checks::Races] {
        println!("{checks:?}:");
        figures_with(checks);
    }
}

fn figures_with(checks: Checks) {
    let Some(bench) = Bench::checked("speed.cu", SOURCE, checks) else {
        return;
    };
    let device = &bench.device;
    let n = 1 << 18;
    let (a, b, c) = (
        device.with(&vec![1f32; n]),
        device.with(&vec![2f32; n]),
        device.empty(4 * n),
    );
    let args = [Pointer(a), Pointer(b), Pointer(c), Int(n as i32)];
    let add = best(|| bench.go("add", (n / 256) as u32, 256, &args));
    println!(
        "vector add: {:.1} ns a thread (two loads, one store)",
        add / n as f64
    );
    let small = best(|| (0..1000).for_each(|_| bench.go("add", 1, 32, &args)));
    println!("a launch of one block of 32 threads: {:.2} us", small / 1e6);
    for block in [256, 1024] {
        let rounds = 200;
        let none = best(|| bench.go("barriers", 8, block, &[Int(0)]));
        let some = best(|| bench.go("barriers", 8, block, &[Int(rounds)]));
        let threads = f64::from(8 * block);
        println!(
            "block of {block}: {:.1} ns to start a thread, {:.1} ns per thread and barrier",
            none / threads,
            (some - none) / threads / f64::from(rounds)
        );
        let args = [Pointer(c), Int(rounds)];
        let some = best(|| bench.go("shuffles", 8, block, &args));
        println!(
            "block of {block}: {:.1} ns per thread and shuffle",
            (some - none) / threads / f64::from(rounds)
        );
    }
    let n = 128usize;
    let args = [Pointer(a), Pointer(b), Pointer(c), Int(n as i32)];
    let tiles = best(|| drop(bench.launch("tiles", [8, 8, 1], [16, 16, 1], 0, &args)));
    println!(
        "tiled matmul {n}^3: {:.1} ns per multiplication (two reads of shared memory)",
        tiles / (n * n * n) as f64
    );
}
