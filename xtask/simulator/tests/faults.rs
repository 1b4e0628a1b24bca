//! Planted faults: each is found, with its kind and the line of the source; its twin without the fault is not.

mod support;

use simulator::exec::FindingKind;
use support::Arg::{Int, Pointer};
use support::{Bench, both, line};

#[test]
fn a_read_behind_the_end() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    int i = threadIdx.x;
    if (i < n) y[i] =
        x[i + FAULT]; // HERE
}"#;
    both("read.cu", source, FindingKind::OutOfBounds, 128, 100);
}

#[test]
fn a_write_behind_the_end() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    int i = threadIdx.x;
    if (i < n + FAULT) 
        y[i] = 2; // HERE
}"#;
    both("write.cu", source, FindingKind::OutOfBounds, 128, 100);
}

#[test]
fn a_null_pointer() {
    let source = r#"
extern "C" __global__ void k(float* y) {
    y[threadIdx.x] = 2; // HERE
}"#;
    let Some(bench) = Bench::new("null.cu", source) else {
        return;
    };
    bench.wrong("k", 1, 32, &[Pointer(0)], FindingKind::OutOfBounds, 3);
}

#[test]
fn a_vector_at_an_odd_place() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    if (threadIdx.x) return;
    y[0] = 0;
    #pragma unroll 1
    for (int i = 0; i + 8 < n; i += 4 + FAULT) {
        float4 v = *(const float4*)(x + i); // HERE
        y[0] += v.x + v.y + v.z + v.w;
    }
}"#;
    both("odd.cu", source, FindingKind::Misaligned, 32, 100);
}

#[test]
fn global_memory_that_nobody_wrote() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    if (!FAULT) y[threadIdx.x] = 0;
    y[threadIdx.x] += x[threadIdx.x]; // HERE
}"#;
    both("fresh.cu", source, FindingKind::Uninitialised, 64, 64);
}

#[test]
fn a_trap() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    if (FAULT && threadIdx.x == 7)
        __trap(); // HERE
    y[threadIdx.x] = x[threadIdx.x];
}"#;
    both("trap.cu", source, FindingKind::Trap, 32, 32);
}

#[test]
fn launches_beyond_the_limits() {
    let source = r#"
extern "C" __global__ void __launch_bounds__(64) k(float* y) { extern __shared__ float s[]; s[0] = 1; y[0] = s[0]; }
"#;
    let Some(bench) = Bench::new("limits.cu", source) else {
        return;
    };
    let args = [Pointer(bench.device.empty(4))];
    let launch = |grid, block, shared| {
        bench
            .launch("k", grid, block, shared, &args)
            .map(|_| ())
            .map_err(|f| f.kind)
    };
    assert_eq!(launch([1, 1, 1], [1, 1, 1], 4), Ok(()));
    let limit = Err(FindingKind::Limit);
    assert_eq!(launch([1, 1, 1], [65, 1, 1], 4), limit);
    assert_eq!(launch([1, 65_536, 1], [1, 1, 1], 4), limit);
    assert_eq!(launch([1, 1, 1], [1, 0, 1], 4), limit);
    assert_eq!(launch([1, 1, 1], [1, 1, 1], 228 * 1024), limit);
    assert_eq!(
        launch([1, 1, 1], [1, 1, 1], 0),
        Err(FindingKind::SharedOutOfBounds)
    );
}

#[test]
fn a_thread_that_waits_for_nobody() {
    let source = r#"
extern "C" __global__ void spin(volatile int* flag, int* y) {
    if (threadIdx.x == 0) {
        while (*flag == 0)
            ; // HERE
        y[0] = 1;
    }
}
extern "C" __global__ void handshake(volatile int* flag, int* y) {
    if (threadIdx.x == 0) { while (*flag == 0) ; y[0] = 1; }
    if (threadIdx.x == 32) { *flag = 1; }
    __syncthreads();
    y[1 + threadIdx.x] = y[0];
}"#;
    let Some(mut bench) = Bench::new("spin.cu", source) else {
        return;
    };
    for seed in 0..4 {
        bench.seed = seed;
        let args = [
            Pointer(bench.device.with(&[0i32])),
            Pointer(bench.device.empty(300)),
        ];
        bench.go("handshake", 1, 64, &args);
    }
    let args = [
        Pointer(bench.device.with(&[0i32])),
        Pointer(bench.device.empty(300)),
    ];
    bench.wrong(
        "spin",
        1,
        64,
        &args,
        FindingKind::Deadlock,
        line(source, "HERE") - 1,
    );
}

#[test]
fn a_function_that_calls_itself_for_ever() {
    let source = r#"
__noinline__ __device__ int deep(int* y, int n) {
    if (n == 0) return y[0];
    int a = deep(y, n - 1); // HERE
    y[1] = a;
    return a * n + deep(y, n / 2);
}
extern "C" __global__ void k(int* y, int n) { y[threadIdx.x] = deep(y, n); }
extern "C" __global__ void waits(int* y, int n) { __syncthreads(); y[threadIdx.x] = deep(y, n); }
"#;
    let Some(bench) = Bench::new("deep.cu", source) else {
        return;
    };
    let y = bench.device.with(&[1i32; 64]);
    for kernel in ["k", "waits"] {
        bench.go(kernel, 1, 64, &[Pointer(y), Int(20)]);
        bench.wrong(
            kernel,
            1,
            64,
            &[Pointer(y), Int(1 << 30)],
            FindingKind::Limit,
            2,
        );
    }
}
