//! Races in global memory, between the threads of a block and between blocks: each planted one is found, and names both
//! accesses; its twin that orders them is clean. The order in which the simulator runs blocks and threads plays no part.

mod support;

use simulator::exec::{Checks, Finding, FindingKind};
use support::Arg::{Int, Pointer};
use support::{Bench, line};

/// Runs `kernel` of `blocks` blocks of `threads` on an array of 256 values, three counters and 256 values of output, in
/// several orders; `FAULT` in the source is 1 for the fault, 0 for its twin. Returns what was found of the fault.
fn run(name: &str, source: &str, [blocks, threads]: [u32; 2]) -> Vec<Finding> {
    let mut found = Vec::new();
    for fault in [0, 1] {
        let text = source.replace("FAULT", &fault.to_string());
        let Some(mut bench) = Bench::checked(name, &text, Checks::Races) else {
            return found;
        };
        for seed in 0..6 {
            bench.seed = seed;
            let args = [
                Pointer(bench.device.with(&[1f32; 256])),
                Pointer(bench.device.with(&[0u32; 3])),
                Pointer(bench.device.with(&[0f32; 256])),
                Int(256),
            ];
            let result = bench.launch("k", [blocks, 1, 1], [threads, 1, 1], 0, &args);
            match (fault, result) {
                (0, Ok(_)) => {}
                (0, Err(finding)) => panic!("{name}, seed {seed}: the clean twin: {finding}"),
                (_, Ok(_)) => panic!("{name}, seed {seed}: the fault was not found"),
                (_, Err(finding)) => found.push(finding),
            }
        }
    }
    found
}

/// Each finding is a race, and names all lines that are marked `HERE`.
fn races(name: &str, source: &str, shape: [u32; 2]) {
    for finding in run(name, source, shape) {
        eprintln!("{finding}");
        assert_eq!(finding.kind, FindingKind::GlobalRace, "{finding}");
        let marked = source
            .lines()
            .enumerate()
            .filter(|(_, line)| line.contains("HERE"));
        for (at, _) in marked {
            let place = format!("{name}:{}", at + 1);
            assert!(finding.message.contains(&place), "{place}: {finding}");
        }
    }
}

#[test]
fn threads_of_a_block_without_a_barrier() {
    let source = r#"
extern "C" __global__ void k(float* x, unsigned* c, float* y, int n) {
    int t = threadIdx.x;
    x[t] = t; // HERE
    if (!FAULT) __syncthreads();
    y[t] =
        x[127 - t]; // HERE
}"#;
    races("near.cu", source, [1, 128]);
}

#[test]
fn a_race_names_both_accesses_and_the_allocation() {
    let source = r#"
extern "C" __global__ void k(float* x, unsigned* c, float* y, int n) {
    if (blockIdx.x == 2 && threadIdx.x == 3)
        y[7] = 2; // WRITE
    if (FAULT && blockIdx.x == 1 && threadIdx.x == 5)
        y[8] = y[7]; // READ
}"#;
    let (write, read) = (line(source, "WRITE"), line(source, "READ"));
    for finding in run("names.cu", source, [4, 32]) {
        assert_eq!(finding.kind, FindingKind::GlobalRace, "{finding}");
        for part in [
            "kernel 'k'",
            &format!("names.cu:{write}"),
            &format!("names.cu:{read}"),
            "thread (3, 0, 0) of block (2, 0, 0)",
            "thread (5, 0, 0) of block (1, 0, 0)",
            "byte 28 of 1024 bytes",
            "4 bytes at 0x",
        ] {
            assert!(finding.message.contains(part), "{part}: {finding}");
        }
    }
}

#[test]
fn blocks_that_write_the_same_element() {
    let source = r#"
extern "C" __global__ void k(float* x, unsigned* c, float* y, int n) {
    int i = blockIdx.x * (blockDim.x - FAULT) + threadIdx.x;
    y[i] = 1; // HERE
}"#;
    races("overlap.cu", source, [4, 32]);
}

#[test]
fn a_block_that_reads_what_another_writes() {
    let source = r#"
extern "C" __global__ void k(float* x, unsigned* c, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = x[FAULT ? (i + 1) % n : i]; // HERE
    __syncthreads();
    x[i] = v; // HERE
}"#;
    races("halo.cu", source, [4, 64]);
}

#[test]
fn neighbours_of_one_and_two_bytes_do_not_race() {
    let source = r#"
extern "C" __global__ void k(float* x, unsigned* c, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned char* bytes = (unsigned char*)x;
    unsigned short* halves = (unsigned short*)y;
    bytes[i] = i;
    halves[i] = i;
    if (FAULT && i == 70) bytes[69] = 1;
}"#;
    for finding in run("bytes.cu", source, [4, 32]) {
        assert_eq!(finding.kind, FindingKind::GlobalRace, "{finding}");
    }
}

#[test]
fn an_atomic_sum_is_no_race() {
    let source = r#"
extern "C" __global__ void k(float* x, unsigned* c, float* y, int n) {
    float v = x[blockIdx.x * blockDim.x + threadIdx.x];
    if (FAULT) y[0] += v;
    else { atomicAdd(y, v); atomicMax(c, threadIdx.x); }
}"#;
    races("sum.cu", source, [4, 64]);
}

#[test]
fn the_last_block_finishes() {
    let source = r#"
extern "C" __global__ void k(float* x, unsigned* c, float* y, int n) {
    __shared__ bool last;
    float v = x[blockIdx.x * blockDim.x + threadIdx.x];
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    if (threadIdx.x % 32 == 0) y[blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32] = v; // HERE
    __syncthreads();
    if (threadIdx.x == 0) {
        if (!(FAULT & 1)) __threadfence();
        last = atomicAdd(c, 1) == gridDim.x - 1;
        if (!(FAULT & 2)) __threadfence();
    }
    __syncthreads();
    if (!last) return;
    v = 0;
    for (int i = threadIdx.x; i < gridDim.x * (blockDim.x / 32); i += blockDim.x)
        v += y[i]; // HERE
    x[threadIdx.x] = v;
    if (threadIdx.x == 0) *c = 0;
}"#;
    // Without the fence before the atomic, without the one behind it, and without both.
    for fault in [1, 2, 3] {
        let source = source.replace("FAULT", &format!("(FAULT * {fault})"));
        // The last block also overwrites what others have read, so one of two races is found first.
        for finding in run("last.cu", &source, [4, 64]) {
            assert_eq!(finding.kind, FindingKind::GlobalRace, "{finding}");
            assert!(finding.message.contains("blocks of a launch"), "{finding}");
        }
    }
}

#[test]
fn a_fence_of_the_block_alone_orders_no_blocks() {
    let source = r#"
extern "C" __global__ void k(float* x, unsigned* c, float* y, int n) {
    if (threadIdx.x != 0) return;
    y[blockIdx.x] = 1; // HERE
    if (FAULT) __threadfence_block(); else __threadfence();
    if (atomicAdd(c, 1) != gridDim.x - 1) return;
    __threadfence();
    for (int i = 0; i < gridDim.x; i++)
        x[0] += y[i]; // HERE
}"#;
    races("narrow.cu", source, [4, 32]);
}

#[test]
fn release_and_acquire_without_fences() {
    let source = r#"
__device__ unsigned take(unsigned* c) {
    unsigned old;
    if (FAULT) asm volatile("atom.add.relaxed.gpu.global.u32 %0, [%1], 1;" : "=r"(old) : "l"(c) : "memory");
    else asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(old) : "l"(c) : "memory");
    return old;
}
extern "C" __global__ void k(float* x, unsigned* c, float* y, int n) {
    if (threadIdx.x != 0) return;
    y[blockIdx.x] = 1; // HERE
    if (take(c) != gridDim.x - 1) return;
    for (int i = 0; i < gridDim.x; i++)
        x[0] += y[i]; // HERE
}"#;
    races("acq_rel.cu", source, [4, 32]);
}

#[test]
fn lanes_that_meet_do_not_race() {
    let source = r#"
extern "C" __global__ void k(float* x, unsigned* c, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i];
    __syncwarp();
    float v = y[i ^ 1]; // HERE
    if (!FAULT) __syncwarp();
    y[i] = v; // HERE
    __syncwarp();
    float all = y[i / 32 * 32];
    __syncwarp();
    if (threadIdx.x % 32 == 0) y[i] = all;
}"#;
    races("lanes.cu", source, [2, 64]);
}

#[test]
fn warps_that_meet_at_a_barrier_of_their_own() {
    let source = r#"
extern "C" __global__ void k(float* x, unsigned* c, float* y, int n) {
    int t = threadIdx.x;
    y[t] = x[t]; // HERE
    if (t >= 64) return;
    if (!FAULT) asm volatile("bar.sync 1, 64;" ::: "memory");
    x[128 + t] =
        y[63 - t]; // HERE
}"#;
    races("part.cu", source, [1, 128]);
}

#[test]
fn launches_of_one_after_another_do_not_race() {
    let source = r#"
extern "C" __global__ void k(float* x, unsigned* c, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[(i * 37 + n) % 256] += x[(i + n) % 256];
}"#;
    let Some(mut bench) = Bench::checked("again.cu", source, Checks::Races) else {
        return;
    };
    let (x, c, y) = (
        bench.device.with(&[1f32; 256]),
        bench.device.with(&[0u32; 3]),
        bench.device.with(&[0f32; 256]),
    );
    for round in 0..20 {
        bench.seed = round;
        let args = [Pointer(x), Pointer(c), Pointer(y), Int(round as i32)];
        bench.go("k", 4, 64, &args);
    }
    assert_eq!(bench.device.read::<f32>(y), [20.0; 256]);
}

#[test]
fn an_access_just_outside_of_an_allocation() {
    // The allocation has 12 bytes, and so the same page holds what is behind it.
    for (what, statement) in [
        ("writes", "c[2 + FAULT] = 1;"),
        ("reads", "x[0] = c[2 + FAULT];"),
    ] {
        let source = format!(
            r#"extern "C" __global__ void k(float* x, unsigned* c, float* y, int n) {{
    if (threadIdx.x + blockIdx.x == 0)
        {statement} // HERE
}}"#
        );
        for finding in run("exact.cu", &source, [2, 32]) {
            assert_eq!(finding.kind, FindingKind::OutOfBounds, "{finding}");
            for part in [what, "exact.cu:3", "0 bytes behind the end of 12 bytes"] {
                assert!(finding.message.contains(part), "{part}: {finding}");
            }
        }
    }
}
