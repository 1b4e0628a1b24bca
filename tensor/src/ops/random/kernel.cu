// Random floats. Bound: bytes written; for the normal distribution the logarithm, sine and cosine of
// f64 take longer.

typedef Compute<T> R;

// Uniform in 0 .. 1, of as many bits as make every number exact.
__device__ inline void uniform(const Words &words, f64 (&made)[2]) {
    for (int k = 0; k < 2; k++) made[k] = f64(words.pair(k) >> 11) * 0x1p-53;
}
__device__ inline void uniform(const Words &words, f32 (&made)[4]) {
    for (int k = 0; k < 4; k++) made[k] = f32(words.word[k] >> 8) * 0x1p-24f;
}
__device__ inline void uniform(const Words &words, bf16 (&made)[4]) {
    for (int k = 0; k < 4; k++) made[k] = narrow<bf16>(f32(words.word[k] >> 24) * 0x1p-8f);
}
__device__ inline void uniform(const Words &words, f16 (&made)[4]) {
    for (int k = 0; k < 4; k++) made[k] = narrow<f16>(f32(words.word[k] >> 21) * 0x1p-11f);
}

// The natural logarithm of 2^-33 ..= 1: the polynomial of the CPU's `ln`.
__device__ inline f32 logarithm(f32 x) {
    i32 bits = __float_as_int(x);
    i32 n = (bits - 0x3f3504f3) >> 23; // of √½
    f32 f = __fadd_rn(__int_as_float(bits - n * (1 << 23)), -1.0f);
    f32 exponent = f32(n);
    f32 p = 0.07105355f;
    p = __fmaf_rn(p, f, -0.11962233f);
    p = __fmaf_rn(p, f, 0.1188639f);
    p = __fmaf_rn(p, f, -0.123589516f);
    p = __fmaf_rn(p, f, 0.14213441f);
    p = __fmaf_rn(p, f, -0.1667035f);
    p = __fmaf_rn(p, f, 0.20002511f);
    p = __fmaf_rn(p, f, -0.24999973f);
    p = __fmaf_rn(p, f, 0.33333308f);
    f32 square = __fmul_rn(f, f);
    f32 low = __fmaf_rn(__fmul_rn(square, f), p, __fmul_rn(exponent, -1.9046542e-9f));
    low = __fmaf_rn(square, -0.5f, low);
    return __fmaf_rn(exponent, 0.693147180559945309f, __fadd_rn(f, low));
}

// Sine and cosine of turn 2π / 2^32: the polynomials of the CPU's `sin_cos_turn`.
__device__ inline void sin_cos_turn(u32 turn, f32 &sine, f32 &cosine) {
    i32 quarter = i32(turn + (1u << 29)) >> 30;
    i32 rest = i32(turn - (u32(quarter) << 30));
    f32 a = __fmul_rn(f32(rest), 6.28318530717958647693f * 0x1p-32f);
    f32 s = __fmul_rn(a, a);
    f32 sin = __fmaf_rn(__fmaf_rn(-0.00019514086f, s, 0.008332155f), s, -0.16666655f);
    sin = __fmaf_rn(__fmul_rn(sin, s), a, a);
    f32 cos = __fmaf_rn(__fmaf_rn(2.4434847e-5f, s, -0.0013887337f), s, 0.041666646f);
    cos = __fmaf_rn(__fmul_rn(cos, s), s, __fmaf_rn(s, -0.5f, 1.0f));
    bool odd = quarter & 1;
    sine = odd ? cos : sin;
    cosine = odd ? sin : cos;
    if (quarter & 2) sine = -sine;
    if ((quarter + 1) & 2) cosine = -cosine;
}

// Box and Muller: of each pair of words, the first gives the radius, the second the angle.
__device__ inline void normal(const Words &words, f32 (&made)[4]) {
    for (int k = 0; k < 2; k++) {
        // In (0, 1].
        f32 u = __fmul_rn(__fadd_rn(__uint2float_rn(words.word[2 * k]), 0.5f), 0x1p-32f);
        f32 radius = __fsqrt_rn(__fmul_rn(-2.0f, logarithm(u)));
        f32 sine, cosine;
        sin_cos_turn(words.word[2 * k + 1], sine, cosine);
        made[2 * k] = __fmul_rn(radius, cosine);
        made[2 * k + 1] = __fmul_rn(radius, sine);
    }
}
template <class H> __device__ inline void normal(const Words &words, H (&made)[4]) {
    f32 wide[4];
    normal(words, wide);
    for (int k = 0; k < 4; k++) made[k] = narrow<H>(wide[k]);
}
__device__ inline void normal(const Words &words, f64 (&made)[2]) {
    f64 unit[2];
    for (int k = 0; k < 2; k++) {
        unit[k] = __dmul_rn(__dadd_rn(__ull2double_rn(words.pair(k) >> 11), 0.5), 0x1p-53);
    }
    f64 radius = __dsqrt_rn(__dmul_rn(-2.0, log(unit[0])));
    f64 sine, cosine;
    sincos(__dmul_rn(6.28318530717958647693, unit[1]), &sine, &cosine);
    made[0] = __dmul_rn(radius, cosine);
    made[1] = __dmul_rn(radius, sine);
}

// Elements of a block of words.
#define MADE (sizeof(T) == 8 ? 2 : 4)

extern "C" __global__ void rand(u64 key, u64 block, T *out, i64 n) {
    fill<T, MADE>(key, block, out, n, [](const Words &words, T (&made)[MADE]) { uniform(words, made); });
}

extern "C" __global__ void randn(u64 key, u64 block, T *out, i64 n) {
    fill<T, MADE>(key, block, out, n, [](const Words &words, T (&made)[MADE]) { normal(words, made); });
}

// out = x scale where the mask is not 0, else 0.
extern "C" __global__ void scale_kept(const T *x, View x_view, const u8 *mask, View mask_view, f64 scale,
                                      T *out, i64 n) {
    for (i64 i = first(); i < n; i += step()) {
        R kept = mask[mask_view.at(i)] ? widen(x[x_view.at(i)]) * R(scale) : R(0);
        out[i] = narrow<T>(kept);
    }
}

// The same for operands without gaps, 16 bytes of x at a time.
extern "C" __global__ void scale_kept_wide(const T *x, const u8 *mask, f64 scale, T *out, i64 n) {
    const int N = 16 / sizeof(T);
    for (i64 i = first(); i * N < n; i += step()) {
        Together<T, N> v = ((const Together<T, N> *)x)[i];
        Together<u8, N> kept = ((const Together<u8, N> *)mask)[i];
#pragma unroll
        for (int k = 0; k < N; k++) {
            R scaled = kept.element[k] ? widen(v.element[k]) * R(scale) : R(0);
            v.element[k] = narrow<T>(scaled);
        }
        ((Together<T, N> *)out)[i] = v;
    }
}
