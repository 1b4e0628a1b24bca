//! Planted faults: each is found, with its kind and the line of the source; its twin without the fault is not.

mod support;

use simulator::exec::FindingKind;
use support::Arg::{Int, Pointer};
use support::Bench;

/// The number of the line of `source` that holds `mark`.
fn line(source: &str, mark: &str) -> u32 {
    let found = source.lines().position(|line| line.contains(mark));
    found.unwrap_or_else(|| panic!("no line holds {mark}")) as u32 + 1
}

/// Runs `kernel` on `n` values of input and output; `FAULT` in the source is 1 for the fault, 0 for its twin.
fn both(name: &str, source: &str, kind: FindingKind, block: u32, n: i32) {
    for fault in [0, 1] {
        let text = source.replace("FAULT", &fault.to_string());
        let Some(mut bench) = Bench::new(name, &text) else {
            return;
        };
        for seed in 0..4 {
            bench.seed = seed;
            let x = bench.device.with(&vec![1.5f32; n as usize]);
            let y = bench.device.empty(4 * n as usize);
            let args = [Pointer(x), Pointer(y), Int(n)];
            match fault {
                0 => bench.go("k", 1, block, &args),
                _ => bench.wrong("k", 1, block, &args, kind, line(&text, "HERE")),
            }
        }
    }
}

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
fn a_missing_barrier() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    __shared__ float s[128];
    s[threadIdx.x] = x[threadIdx.x];
    if (!FAULT) __syncthreads();
    y[threadIdx.x] = s[127 - threadIdx.x]; // HERE
}"#;
    // A thread that comes before the writer finds bytes that nobody wrote; that is the other face of the same fault.
    for fault in [0, 1] {
        let text = source.replace("FAULT", &fault.to_string());
        let Some(mut bench) = Bench::new("missing.cu", &text) else {
            return;
        };
        for seed in 0..8 {
            bench.seed = seed;
            let args = [
                Pointer(bench.device.with(&[1f32; 128])),
                Pointer(bench.device.empty(512)),
                Int(128),
            ];
            let found = bench.launch("k", [1, 1, 1], [128, 1, 1], 0, &args);
            match fault {
                0 => assert!(found.is_ok(), "{found:?}"),
                _ => {
                    let finding = found.expect_err("the race was not found");
                    assert!(
                        matches!(
                            finding.kind,
                            FindingKind::SharedRace | FindingKind::Uninitialised
                        ),
                        "{finding}"
                    );
                    assert!(
                        finding
                            .message
                            .contains(&format!("missing.cu:{}", line(&text, "HERE"))),
                        "{finding}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_race_between_a_read_and_the_next_write() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    __shared__ float s[64];
    float v = x[threadIdx.x];
    for (int round = 0; round < 3; round++) {
        s[threadIdx.x] = v + round; // HERE
        __syncthreads();
        v += s[(threadIdx.x + 33) % 64]; // HERE
        if (!FAULT) __syncthreads();
    }
    y[threadIdx.x] = v;
}"#;
    for fault in [0, 1] {
        let text = source.replace("FAULT", &fault.to_string());
        let Some(mut bench) = Bench::new("next.cu", &text) else {
            return;
        };
        for seed in 0..8 {
            bench.seed = seed;
            let args = [
                Pointer(bench.device.with(&[1f32; 64])),
                Pointer(bench.device.empty(256)),
                Int(64),
            ];
            let found = bench.launch("k", [1, 1, 1], [64, 1, 1], 0, &args);
            match fault {
                0 => assert!(found.is_ok(), "{found:?}"),
                _ => assert_eq!(
                    found.expect_err("the race was not found").kind,
                    FindingKind::SharedRace
                ),
            }
        }
    }
}

#[test]
fn a_race_of_16_bit_neighbours_is_none() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    __shared__ unsigned short s[128];
    s[threadIdx.x] = (unsigned short)threadIdx.x;
    if (FAULT && threadIdx.x == 5) s[6] = 0; // HERE
    __syncthreads();
    y[threadIdx.x] = s[127 - threadIdx.x] + x[threadIdx.x];
}"#;
    for fault in [0, 1] {
        let text = source.replace("FAULT", &fault.to_string());
        let Some(bench) = Bench::new("halves.cu", &text) else {
            return;
        };
        let args = [
            Pointer(bench.device.with(&[1f32; 128])),
            Pointer(bench.device.empty(512)),
            Int(128),
        ];
        let found = bench.launch("k", [1, 1, 1], [128, 1, 1], 0, &args);
        match fault {
            0 => assert!(found.is_ok(), "{found:?}"),
            _ => assert_eq!(
                found.expect_err("the race was not found").kind,
                FindingKind::SharedRace
            ),
        }
    }
}

#[test]
fn warps_that_synchronise_do_not_race() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    __shared__ float s[64];
    int t = threadIdx.x;
    s[t] = x[t];
    __syncwarp();
    float v = s[t ^ 1];
    if (!FAULT) __syncwarp();
    s[t] = v; // HERE
    __syncwarp();
    y[t] = s[t ^ 2];
}"#;
    both("warps.cu", source, FindingKind::SharedRace, 64, 64);
}

#[test]
fn atomics_in_shared_memory_do_not_race() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    __shared__ int s;
    if (threadIdx.x == 0) s = 0;
    __syncthreads();
    if (FAULT) s += 1; // HERE
    else atomicAdd(&s, 1);
    __syncthreads();
    y[threadIdx.x] = s + x[threadIdx.x];
}"#;
    both("atomics.cu", source, FindingKind::SharedRace, 64, 64);
}

#[test]
fn a_divergent_barrier() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x < (FAULT ? 40 : 64)) {
        y[threadIdx.x] = 0;
        __syncthreads(); // HERE
    }
    y[threadIdx.x] += s[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] += s[63 - threadIdx.x];
}"#;
    for fault in [0, 1] {
        let text = source.replace("FAULT", &fault.to_string());
        let Some(mut bench) = Bench::new("divergent.cu", &text) else {
            return;
        };
        for seed in 0..4 {
            bench.seed = seed;
            let args = [
                Pointer(bench.device.with(&[1f32; 64])),
                Pointer(bench.device.with(&[1f32; 64])),
                Int(64),
            ];
            let found = bench.launch("k", [1, 1, 1], [64, 1, 1], 0, &args);
            match fault {
                0 => assert!(found.is_ok(), "{found:?}"),
                _ => {
                    let finding = found.expect_err("the barrier was not found");
                    assert_eq!(finding.kind, FindingKind::DivergentBarrier, "{finding}");
                    assert!(
                        finding
                            .message
                            .contains(&format!("divergent.cu:{}", line(&text, "HERE"))),
                        "{finding}"
                    );
                }
            }
        }
    }
}

#[test]
fn threads_that_have_ended_count_as_arrived() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    if (threadIdx.x >= n) return;
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x];
}"#;
    let Some(bench) = Bench::new("ended.cu", source) else {
        return;
    };
    let args = [
        Pointer(bench.device.with(&[1f32; 40])),
        Pointer(bench.device.empty(160)),
        Int(40),
    ];
    bench.go("k", 3, 96, &args);
}

#[test]
fn a_vector_at_an_odd_place() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    if (threadIdx.x) return;
    float4 v = *(const float4*)(x + FAULT); // HERE
    y[0] = v.x + v.y + v.z + v.w;
}"#;
    both("odd.cu", source, FindingKind::Misaligned, 32, 100);
}

#[test]
fn shared_memory_that_nobody_wrote() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    __shared__ float s[64];
    if (threadIdx.x < 64 - FAULT) s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[63 - threadIdx.x]; // HERE
}"#;
    both("poison.cu", source, FindingKind::Uninitialised, 64, 64);
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
fn shared_memory_behind_its_end() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    __shared__ float s[64];
    s[threadIdx.x + FAULT] = x[threadIdx.x]; // HERE
    y[threadIdx.x] = s[threadIdx.x + FAULT];
}"#;
    both("behind.cu", source, FindingKind::SharedOutOfBounds, 64, 64);
}

#[test]
fn a_mask_without_its_own_lane() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    unsigned mask = FAULT ? 0x7fffffffu : 0xffffffffu;
    y[threadIdx.x] = __shfl_xor_sync(mask, x[threadIdx.x], 1); // HERE
}"#;
    both("own.cu", source, FindingKind::BadWarpMask, 32, 32);
}

#[test]
fn a_mask_with_lanes_that_never_come() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    float v = x[threadIdx.x];
    if (threadIdx.x < 16) {
        v = __shfl_xor_sync(FAULT ? 0xffffffffu : 0xffffu, v, 1); // HERE
    }
    __syncthreads();
    y[threadIdx.x] = v;
}"#;
    both("never.cu", source, FindingKind::BadWarpMask, 32, 32);
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
