//! Planted faults of threads that share: races, barriers, masks, shared memory. Each is found, with its kind and the line
//! of the source; its twin without the fault is not.

mod support;

use simulator::exec::FindingKind;
use support::Arg::{Int, Pointer};
use support::{Bench, both, line};

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
fn what_lanes_exchange_orders_no_memory() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    __shared__ float s[32];
    s[threadIdx.x] = x[threadIdx.x];
    unsigned all = MEETS;
    y[threadIdx.x] = s[31 - threadIdx.x] + (all > 0); // HERE
}"#;
    for (meets, is_ordered) in [
        ("(__syncwarp(), 1)", true),
        ("__ballot_sync(~0u, threadIdx.x < n)", false),
        ("__match_any_sync(~0u, threadIdx.x / n)", false),
        ("__shfl_xor_sync(~0u, threadIdx.x, 1)", false),
        ("__reduce_add_sync(~0u, threadIdx.x)", false),
    ] {
        let text = source.replace("MEETS", meets);
        let Some(bench) = Bench::new("exchange.cu", &text) else {
            return;
        };
        let args = [
            Pointer(bench.device.with(&[1f32; 32])),
            Pointer(bench.device.empty(128)),
            Int(32),
        ];
        let found = bench.launch("k", [1, 1, 1], [32, 1, 1], 0, &args);
        match found {
            Ok(_) => assert!(is_ordered, "{meets}: the race was not found"),
            Err(finding) => {
                assert!(!is_ordered, "{meets}: {finding}");
                assert_eq!(finding.kind, FindingKind::SharedRace, "{meets}: {finding}");
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
fn one_write_before_one_read() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    __shared__ float s[2];
    if (threadIdx.x == 0) s[0] = x[0];
    if (threadIdx.x == FAULT)
        y[0] = s[0]; // HERE
}"#;
    // In the order of numbers the read comes second, so that nothing but the missing barrier is wrong.
    for fault in [0, 1] {
        let text = source.replace("FAULT", &fault.to_string());
        let Some(bench) = Bench::new("before.cu", &text) else {
            return;
        };
        let args = [
            Pointer(bench.device.with(&[1f32])),
            Pointer(bench.device.empty(4)),
            Int(1),
        ];
        match fault {
            0 => bench.go("k", 1, 64, &args),
            _ => bench.wrong(
                "k",
                1,
                64,
                &args,
                FindingKind::SharedRace,
                line(&text, "HERE"),
            ),
        }
    }
}

#[test]
fn one_read_before_one_write() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    __shared__ float s[2];
    if (threadIdx.x == LAST) s[0] = x[0];
    __syncthreads();
    if (threadIdx.x == LAST) y[0] = s[0];
    if (threadIdx.x == LAST - FAULT)
        s[0] = 1; // HERE
}"#;
    // The last thread passes the barrier first: it reads before another writes. Its own write is no race.
    for (fault, last) in [(0, 63), (1, 63), (0, 32), (32, 63)] {
        let text = source
            .replace("FAULT", &fault.to_string())
            .replace("LAST", &last.to_string());
        let Some(bench) = Bench::new("after.cu", &text) else {
            return;
        };
        let args = [
            Pointer(bench.device.with(&[1f32])),
            Pointer(bench.device.empty(4)),
            Int(1),
        ];
        match fault {
            0 => bench.go("k", 1, last + 1, &args),
            _ => bench.wrong(
                "k",
                1,
                last + 1,
                &args,
                FindingKind::SharedRace,
                line(&text, "HERE"),
            ),
        }
    }
}

#[test]
fn a_divergent_barrier() {
    let source = r#"
extern "C" __global__ void k(const float* x, float* y, int n) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x < EDGE) {
        y[threadIdx.x] = 0;
        __syncthreads(); // HERE
    }
    y[threadIdx.x] += s[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] += s[63 - threadIdx.x];
}"#;
    // Within a warp, and between warps.
    for (fault, edge) in [(0, 64), (1, 40), (1, 32)] {
        let text = source.replace("EDGE", &edge.to_string());
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
