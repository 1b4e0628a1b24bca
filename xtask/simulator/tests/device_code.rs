//! More kernels as libraries have them: rows, random numbers, tables, calls, matrix instructions.

mod support;

use support::Arg::{Float, Int, Pointer};
use support::Bench;

#[test]
fn rows_are_normalised() {
    let source = r#"
__device__ float all(float v, float* part, bool max) {
    for (int o = 16; o; o >>= 1) { float w = __shfl_xor_sync(~0u, v, o); v = max ? fmaxf(v, w) : v + w; }
    __syncthreads();
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    v = part[0];
    for (int i = 1; i < blockDim.x / 32; i++) v = max ? fmaxf(v, part[i]) : v + part[i];
    return v;
}
extern "C" __global__ void softmax(const float* x, float* y, int n) {
    __shared__ float part[32];
    x += blockIdx.x * n; y += blockIdx.x * n;
    float m = -INFINITY, s = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) m = fmaxf(m, x[i]);
    m = all(m, part, true);
    for (int i = threadIdx.x; i < n; i += blockDim.x) s += expf(x[i] - m);
    s = all(s, part, false);
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = expf(x[i] - m) / s;
}
extern "C" __global__ void layer(const float* x, const float* w, const float* b, float* y, int n) {
    extern __shared__ float row[];
    float* part = row + n;
    x += blockIdx.x * n; y += blockIdx.x * n;
    float s = 0, q = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) { row[i] = x[i]; s += x[i]; }
    float mean = all(s, part, false) / n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) { float d = row[i] - mean; q += d * d; }
    float r = rsqrtf(all(q, part, false) / n + 1e-5f);
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = (row[i] - mean) * r * w[i] + b[i];
}"#;
    let source = source.replace("INFINITY", "__int_as_float(0x7f800000)");
    let Some(mut bench) = Bench::new("rows.cu", &source) else {
        return;
    };
    bench.seed = 9;
    let n = 100;
    let x: Vec<f32> = (0..3 * n)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 11.0)
        .collect();
    let (w, b) = (vec![1.5f32; n], vec![0.25f32; n]);
    let device = &bench.device;
    let (at, y) = (device.with(&x), device.empty(4 * x.len()));
    bench.go("softmax", 3, 64, &[Pointer(at), Pointer(y), Int(n as i32)]);
    for (x, y) in x.chunks(n).zip(device.read::<f32>(y).chunks(n)) {
        let top = x.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = x.iter().map(|x| f64::from(x - top).exp()).sum();
        for (x, y) in x.iter().zip(y) {
            let want = f64::from(x - top).exp() / sum;
            assert!((f64::from(*y) - want).abs() < 1e-6 * want, "{y} {want}");
        }
    }
    let args = [
        Pointer(at),
        Pointer(device.with(&w)),
        Pointer(device.with(&b)),
        Pointer(y),
        Int(n as i32),
    ];
    let done = bench.launch("layer", [3, 1, 1], [64, 1, 1], 4 * n + 128, &args);
    done.unwrap_or_else(|finding| panic!("{finding}"));
    for (x, y) in x.chunks(n).zip(device.read::<f32>(y).chunks(n)) {
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64;
        let var = x
            .iter()
            .map(|x| (f64::from(*x) - mean).powi(2))
            .sum::<f64>()
            / n as f64;
        for (x, y) in x.iter().zip(y) {
            let want = (f64::from(*x) - mean) / (var + 1e-5).sqrt() * 1.5 + 0.25;
            assert!((f64::from(*y) - want).abs() < 1e-5, "{y} {want}");
        }
    }
}

#[test]
fn philox_gives_its_known_numbers() {
    let source = r#"
extern "C" __global__ void philox(unsigned k0, unsigned k1, uint4* out) {
    unsigned c0 = threadIdx.x, c1 = 0, c2 = 0, c3 = 0;
    for (int i = 0; i < 10; i++) {
        unsigned h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
        unsigned h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
        c0 = h1 ^ c1 ^ k0; c1 = l1; c2 = h0 ^ c3 ^ k1; c3 = l0;
        k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
    }
    out[threadIdx.x] = make_uint4(c0, c1, c2, c3);
}"#;
    let Some(bench) = Bench::new("philox.cu", source) else {
        return;
    };
    let out = bench.device.empty(16 * 2);
    bench.go("philox", 1, 2, &[Int(0), Int(0), Pointer(out)]);
    // The known answer of the authors of Philox for counter 0 and key 0.
    assert_eq!(
        bench.device.read::<u32>(out)[..4],
        [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]
    );
}

#[test]
fn tables_are_gathered_and_scattered() {
    let source = r#"
extern "C" __global__ void gather(const float* table, const long long* index, float* out, int* flag, int rows, int width) {
    long long row = index[blockIdx.x];
    if (row < 0 || row >= rows) { if (threadIdx.x == 0) atomicOr(flag, 1); return; }
    for (int i = threadIdx.x; i < width; i += blockDim.x) out[blockIdx.x * width + i] = table[row * width + i];
}
extern "C" __global__ void scatter(float* table, const long long* index, const float* grad, int width) {
    for (int i = threadIdx.x; i < width; i += blockDim.x) atomicAdd(&table[index[blockIdx.x] * width + i], grad[blockIdx.x * width + i]);
}
extern "C" __global__ void count(unsigned long long* wide, int* least, unsigned* swapped, double* sum, const int* x) {
    int v = x[threadIdx.x];
    atomicAdd(wide, (unsigned long long)v << 32);
    atomicMin(least, v);
    unsigned old = *swapped, seen;
    do { seen = old; old = atomicCAS(swapped, seen, seen + 2); } while (old != seen);
    atomicAdd(sum, 0.5);
}"#;
    let Some(bench) = Bench::new("tables.cu", source) else {
        return;
    };
    let device = &bench.device;
    let table: Vec<f32> = (0..40).map(|i| i as f32).collect();
    let (at, index) = (device.with(&table), device.with(&[3i64, 0, 3, 99]));
    let (out, flag) = (device.with(&[0f32; 16]), device.with(&[0i32]));
    bench.go(
        "gather",
        3,
        32,
        &[
            Pointer(at),
            Pointer(index),
            Pointer(out),
            Pointer(flag),
            Int(10),
            Int(4),
        ],
    );
    assert_eq!(
        device.read::<f32>(out)[..12],
        [12., 13., 14., 15., 0., 1., 2., 3., 12., 13., 14., 15.]
    );
    assert_eq!(device.read::<i32>(flag), [0]);
    bench.go(
        "gather",
        4,
        32,
        &[
            Pointer(at),
            Pointer(index),
            Pointer(out),
            Pointer(flag),
            Int(10),
            Int(4),
        ],
    );
    assert_eq!(device.read::<i32>(flag), [1]);
    let grad = device.with(&[1f32; 12]);
    let touched = bench.launch(
        "scatter",
        [3, 1, 1],
        [32, 1, 1],
        0,
        &[Pointer(at), Pointer(index), Pointer(grad), Int(4)],
    );
    assert_eq!(
        device.read::<f32>(at)[..16],
        [
            1., 2., 3., 4., 4., 5., 6., 7., 8., 9., 10., 11., 14., 15., 16., 17.
        ]
    );
    let touched = touched.unwrap();
    assert_eq!(
        (touched[0].read.clone(), touched[0].written.clone()),
        (Some(0..64), Some(0..64))
    );
    assert_eq!(
        (touched[2].read.clone(), touched[2].written.clone()),
        (Some(0..48), None)
    );
    let x: Vec<i32> = (0..64).map(|i| 100 - i).collect();
    let (wide, least, swapped, sum) = (
        device.with(&[7u64]),
        device.with(&[500i32]),
        device.with(&[1u32]),
        device.with(&[0f64]),
    );
    bench.go(
        "count",
        1,
        64,
        &[wide, least, swapped, sum, device.with(&x)].map(Pointer),
    );
    assert_eq!(
        device.read::<u64>(wide)[0],
        (x.iter().sum::<i32>() as u64) << 32 | 7
    );
    assert_eq!(
        (
            device.read::<i32>(least)[0],
            device.read::<u32>(swapped)[0],
            device.read::<f64>(sum)[0]
        ),
        (37, 129, 32.0)
    );
}

#[test]
fn functions_are_called_by_name_by_pointer_and_by_themselves() {
    let source = r#"
typedef float (*Op)(float);
__device__ float twice(float x) { return 2 * x; }
__device__ float next(float x) { return x + 1; }
__device__ Op ops[2] = {twice, next};
__device__ float table[4] = {1, 2, 3, 4};
__device__ float* middle = table + 2;
__constant__ int powers[3] = {1, 10, 100};
__noinline__ __device__ int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
__noinline__ __device__ void fill(int* to, int n) { for (int i = 0; i < n; i++) to[i] = i * i; }
extern "C" __global__ void k(float* y, int n) {
    int square[8];
    fill(square, 8);
    y[0] = ops[n % 2](3) + ops[(n + 1) % 2](3);
    y[1] = fib(n);
    y[2] = *middle + middle[1];
    y[3] = square[n] + powers[n % 3];
    switch (n) {
        case 0: y[4] = 5; break; case 1: y[4] = 7; break; case 2: y[4] = y[0]; break; case 3: y[4] = y[1] * 3; break;
        case 4: y[4] = 1 / y[2]; break; case 5: y[4] = sqrtf(y[3]); break; case 6: y[4] = -1; break; default: y[4] = 2;
    }
}"#;
    let Some(bench) = Bench::new("calls.cu", source) else {
        return;
    };
    let y = bench.device.empty(20);
    bench.go("k", 1, 1, &[Pointer(y), Int(5)]);
    assert_eq!(
        bench.device.read::<f32>(y),
        [10.0, 5.0, 7.0, 125.0, 125f32.sqrt()]
    );
}

#[test]
fn warps_vote_match_and_reduce() {
    let source = r#"
extern "C" __global__ void k(unsigned* y) {
    unsigned t = threadIdx.x, lane = t % 32;
    unsigned r = __ballot_sync(~0u, lane % 3 == 0);
    r ^= __any_sync(~0u, lane == 5) + 2 * __all_sync(~0u, lane < 32) + 4 * __all_sync(~0u, lane < 31);
    y[t] = r;
    int all;
    y[64 + t] = __match_any_sync(~0u, lane / 8);
    y[128 + t] = __match_all_sync(~0u, t / 32, &all) + all;
    y[192 + t] = lane < 8 ? __reduce_add_sync(0xffu, lane) : __reduce_max_sync(~0xffu, lane);
    y[256 + t] = __shfl_sync(~0u, lane, 3, 8) * 1000 + __shfl_up_sync(~0u, lane, 2, 16);
    y[320 + t] = __syncthreads_count(lane < 4) * 16 + __syncthreads_or(t == 40) + 2 * __syncthreads_and(t < 40);
}"#;
    let Some(mut bench) = Bench::new("votes.cu", source) else {
        return;
    };
    for seed in 0..4 {
        bench.seed = seed;
        let y = bench.device.empty(4 * 384);
        bench.go("k", 1, 64, &[Pointer(y)]);
        let y = bench.device.read::<u32>(y);
        for t in 0..64u32 {
            let (lane, at) = (t % 32, t as usize);
            let ballot = (0..32)
                .filter(|lane| lane % 3 == 0)
                .map(|lane| 1 << lane)
                .sum::<u32>();
            assert_eq!(y[at], ballot ^ 3);
            assert_eq!(y[64 + at], 0xff << (lane / 8 * 8));
            assert_eq!(y[128 + at], 0);
            assert_eq!(y[192 + at], if lane < 8 { 28 } else { 31 });
            let up = if lane % 16 < 2 { lane } else { lane - 2 };
            assert_eq!(y[256 + at], (lane / 8 * 8 + 3) * 1000 + up);
            assert_eq!(y[320 + at], 8 * 16 + 1);
        }
    }
}

#[test]
fn matrix_instructions_multiply() {
    let source = r#"
extern "C" __global__ void k(const unsigned* a, const unsigned* b, float* c) {
    __shared__ unsigned x[16 * 8];
    int lane = threadIdx.x, g = lane / 4, p = lane % 4;
    for (int i = lane; i < 128; i += 32) x[i] = a[i];
    __syncthreads();
    unsigned q[4], at = (unsigned)__cvta_generic_to_shared(&x[(lane % 16) * 8 + lane / 16 * 4]);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(q[0]), "=r"(q[1]), "=r"(q[2]), "=r"(q[3]) : "r"(at));
    float d[4];
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(q[0]), "r"(q[1]), "r"(q[2]), "r"(q[3]), "r"(b[g * 8 + p]), "r"(b[g * 8 + p + 4]), "f"(0.5f));
    c[g * 8 + p * 2] = d[0]; c[g * 8 + p * 2 + 1] = d[1]; c[(g + 8) * 8 + p * 2] = d[2]; c[(g + 8) * 8 + p * 2 + 1] = d[3];
}"#;
    let Some(bench) = Bench::new("mma.cu", source) else {
        return;
    };
    // A is 16 x 16 by rows, B is 16 x 8 by columns, two bf16 to a word.
    let pack = |x: &[f32]| {
        x.chunks(2)
            .map(|two| two[0].to_bits() >> 16 | two[1].to_bits() & 0xffff_0000)
            .collect::<Vec<u32>>()
    };
    let a: Vec<f32> = (0..256).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
    let b: Vec<f32> = (0..128).map(|i| (i * 5 % 11) as f32 / 4.0).collect();
    let device = &bench.device;
    let c = device.empty(4 * 128);
    bench.go(
        "k",
        1,
        32,
        &[
            Pointer(device.with(&pack(&a))),
            Pointer(device.with(&pack(&b))),
            Pointer(c),
        ],
    );
    let c = device.read::<f32>(c);
    for row in 0..16 {
        for column in 0..8 {
            let want: f32 = (0..16).map(|k| a[row * 16 + k] * b[column * 16 + k]).sum();
            assert_eq!(c[row * 8 + column], want + 0.5, "{row} {column}");
        }
    }
}

#[test]
fn asynchronous_copies_and_named_barriers() {
    let source = r#"
extern "C" __global__ void k(const float4* x, float* y, float scale) {
    __shared__ float4 s[64];
    unsigned at = (unsigned)__cvta_generic_to_shared(&s[threadIdx.x]);
    if (threadIdx.x < 64) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16; cp.async.commit_group; cp.async.wait_group 0;" :: "r"(at), "l"(x + threadIdx.x));
        asm volatile("bar.sync 1, 64;");
        y[threadIdx.x] = s[63 - threadIdx.x].z * scale;
        asm volatile("bar.arrive 2, 128;");
    } else {
        asm volatile("bar.sync 2, 128;");
        y[threadIdx.x] = s[threadIdx.x - 64].x;
    }
}"#;
    let Some(mut bench) = Bench::new("copies.cu", source) else {
        return;
    };
    let x: Vec<f32> = (0..256).map(|i| i as f32).collect();
    for seed in 0..8 {
        bench.seed = seed;
        let y = bench.device.empty(512);
        bench.go(
            "k",
            1,
            128,
            &[Pointer(bench.device.with(&x)), Pointer(y), Float(2.0)],
        );
        let want: Vec<f32> = (0..128)
            .map(|i| {
                if i < 64 {
                    2.0 * ((63 - i) * 4 + 2) as f32
                } else {
                    ((i - 64) * 4) as f32
                }
            })
            .collect();
        assert_eq!(bench.device.read::<f32>(y), want);
    }
}
