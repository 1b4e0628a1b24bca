//! `cp.async`: its bytes are there after the wait of the thread that copies, and after a barrier for the others; before
//! that, who touches them makes a finding.

mod support;

use simulator::exec::FindingKind;
use support::Arg::{Int, Pointer};
use support::{Bench, both, line};

const HEAD: &str = r#"
__device__ void begin(float* to, const float* from) {
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(at), "l"(from) : "memory");
}
__device__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ void wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }
"#;

#[test]
fn a_read_before_the_wait() {
    let source = format!(
        r#"{HEAD}
extern "C" __global__ void k(const float* x, float* y, int n) {{
    __shared__ float s[64];
    int t = threadIdx.x;
    begin(s + t, x + t);
    commit();
    if (!FAULT) wait<0>();
    y[t] = s[t]; // HERE
    wait<0>();
}}"#
    );
    both("early.cu", &source, FindingKind::PendingCopy, 64, 64);
}

#[test]
fn a_write_before_the_wait() {
    let source = format!(
        r#"{HEAD}
extern "C" __global__ void k(const float* x, float* y, int n) {{
    __shared__ float s[64];
    int t = threadIdx.x;
    begin(s + t, x + t);
    if (!FAULT) asm volatile("cp.async.wait_all;" ::: "memory");
    s[t] = 1; // HERE
    y[t] = s[t];
}}"#
    );
    both("over.cu", &source, FindingKind::PendingCopy, 64, 64);
}

#[test]
fn a_wait_without_a_barrier() {
    let source = format!(
        r#"{HEAD}
extern "C" __global__ void k(const float* x, float* y, int n) {{
    __shared__ float s[64];
    int t = threadIdx.x;
    begin(s + t, x + t);
    commit();
    wait<0>();
    if (!FAULT) __syncthreads();
    y[t] = s[63 - t]; // HERE
}}"#
    );
    for fault in [0, 1] {
        let text = source.replace("FAULT", &fault.to_string());
        let Some(mut bench) = Bench::new("alone.cu", &text) else {
            return;
        };
        for seed in 0..4 {
            bench.seed = seed;
            let args = [
                Pointer(bench.device.with(&[1f32; 64])),
                Pointer(bench.device.empty(256)),
                Int(64),
            ];
            match (fault, bench.launch("k", [3, 1, 1], [64, 1, 1], 0, &args)) {
                (0, result) => assert!(result.is_ok(), "{result:?}"),
                // Who comes before the copier finds bytes that nobody wrote; that is the same fault.
                (_, result) => {
                    let finding = result.expect_err("the fault was not found");
                    assert!(
                        matches!(
                            finding.kind,
                            FindingKind::SharedRace | FindingKind::Uninitialised
                        ),
                        "{finding}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_pipeline_of_two_stages() {
    let source = format!(
        r#"{HEAD}
extern "C" __global__ void k(const float* x, float* y, int n) {{
    __shared__ float s[2][64];
    int t = threadIdx.x;
    float sum = 0;
    begin(s[0] + t, x + t);
    commit();
    for (int i = 0; i < n; i++) {{
        if (i + 1 < n) begin(s[(i + 1) % 2] + t, x + 64 * (i + 1) + t);
        commit();
        wait<1 + FAULT>();
        __syncthreads();
        sum += s[i % 2][63 - t]; // HERE
        __syncthreads();
    }}
    wait<0>();
    y[t] = sum;
}}"#
    );
    for fault in [0, 1] {
        let text = source.replace("FAULT", &fault.to_string());
        let Some(bench) = Bench::new("stages.cu", &text) else {
            return;
        };
        let x: Vec<f32> = (0..320).map(|i| i as f32).collect();
        let (x, y) = (bench.device.with(&x), bench.device.empty(256));
        let args = [Pointer(x), Pointer(y), Int(5)];
        if fault == 1 {
            let here = line(&text, "HERE");
            bench.wrong("k", 1, 64, &args, FindingKind::PendingCopy, here);
            continue;
        }
        bench.go("k", 1, 64, &args);
        for (t, sum) in bench.device.read::<f32>(y).into_iter().enumerate() {
            let want: usize = (0..5).map(|stage| 64 * stage + 63 - t).sum();
            assert_eq!(sum, want as f32);
        }
    }
}

#[test]
fn what_never_landed_is_forgotten_with_its_block() {
    let source = format!(
        r#"{HEAD}
extern "C" __global__ void k(const float* x, float* y, int n) {{
    __shared__ float s[64];
    int t = threadIdx.x;
    s[t] = x[t];
    y[t] = s[t];
    begin(s + t, x + t);
}}"#
    );
    let Some(bench) = Bench::new("left.cu", &source) else {
        return;
    };
    let (x, y) = (bench.device.with(&[1f32; 64]), bench.device.empty(256));
    for _ in 0..3 {
        bench.go("k", 3, 64, &[Pointer(x), Pointer(y), Int(64)]);
    }
}
