// Running statistics. Bound: bytes, of a few channels: one launch for both.

typedef Compute<T> R;

// Floats of a type that is given by its number.
struct Numbers {
    const void *numbers;
    View view;
    i64 dtype;

    // As a T, rounded once.
    __device__ T at(i64 i) const {
        i64 at = view.at(i);
        switch (dtype) {
        case 0: return Cast<T>::of(((const f32 *)numbers)[at]);
        case 1: return Cast<T>::of(((const f64 *)numbers)[at]);
        case 2: return Cast<T>::of(widen(((const bf16 *)numbers)[at]));
        default: return Cast<T>::of(widen(((const f16 *)numbers)[at]));
        }
    }
};

// Products and sums that do not become one operation.
__device__ inline f32 times(f32 a, f32 b) { return __fmul_rn(a, b); }
__device__ inline f64 times(f64 a, f64 b) { return __dmul_rn(a, b); }

// v factor, rounded to T.
__device__ inline R scaled(T v, f64 factor) { return widen(narrow<T>(times(widen(v), R(factor)))); }

// out = running (1 - share) + batch share unbiased, each term rounded to T. The share is that of one
// in `count`, where that is given.
extern "C" __global__ void batch_norm_track(const T *running, View view, Numbers batch, f64 share,
                                            const i64 *count, f64 unbiased, T *out, i64 n) {
    if (count) share = 1.0 / f64(*count);
    for (i64 i = first(); i < n; i += step()) {
        R old = scaled(running[view.at(i)], 1.0 - share);
        R fresh = scaled(batch.at(i), share * unbiased);
        out[i] = narrow<T>(old + fresh);
    }
}
