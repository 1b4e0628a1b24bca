// What follows the product of an affine layer where the library has no epilogue for it.

typedef Compute<T> R;

template <class R> __device__ R activate(int function, R p, R x);

// y[i, j] = activate(sums[i, j] + bias[j]) for `n` elements in rows of `columns`; y may be sums. Bound:
// reads and writes each element once.
extern "C" __global__ void finish(const R *sums, const T *bias, i64 bias_step, int function, double p,
                                  T *y, i64 n, i64 columns) {
    for (i64 i = first(); i < n; i += step()) {
        R x = sums[i];
        if (bias) x += widen(bias[i % columns * bias_step]);
        y[i] = narrow<T>(activate(function, R(p), x));
    }
}

// y[i] = activate(y[i]) for `n` elements. Bound: reads and writes each element once.
extern "C" __global__ void apply(int function, double p, T *y, i64 n) {
    for (i64 i = first(); i < n; i += step()) {
        y[i] = narrow<T>(activate(function, R(p), R(widen(y[i]))));
    }
}
