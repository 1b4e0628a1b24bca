// Softmax and log-softmax. Bound: bytes; each operand is read once from memory, the result written
// once. Rows that a group does not hold in its registers are read twice, the second time from a cache.

// y = softmax(x), or its logarithm.
template <int N>
__device__ inline void forward(const T *x, const Rows &x_rows, T *y, i64 rows, i64 width, int log_of) {
    FOR_ROWS(start, rows) {
        i64 row = start + threadIdx.y;
        Held<N, 1, (N > 1)> held(x + place(x_rows.lead, row), x_rows.inner, row < rows ? width : 0,
                                 minus_infinity());
        Exponentials e = exponentials<N>(held);
        R shift = log_of ? log(e.sum) : R(0), share = log_of ? R(0) : R(1) / e.sum;
        held.each([&](i64 first, const R (&v)[N]) {
            R out[N];
#pragma unroll
            for (int i = 0; i < N; i++) {
                R below = v[i] - e.max;
                out[i] = log_of ? below - shift : exp(below) * share;
            }
            held.write(y + row * width, first, out);
        });
    }
}

// dx = y (g - Σ g y), or of the logarithm g - exp(y) Σ g.
template <int N>
__device__ inline void backward(const T *g, const Rows &g_rows, const T *y, const Rows &y_rows, T *dx,
                                i64 rows, i64 width, int log_of) {
    FOR_ROWS(start, rows) {
        i64 row = start + threadIdx.y;
        i64 here = row < rows ? width : 0;
        Held<N, 2, (N > 1)> gs(g + place(g_rows.lead, row), g_rows.inner, here);
        Held<N, 2, (N > 1)> ys(y + place(y_rows.lead, row), y_rows.inner, here);
        R sum = R(0);
        each_of_two(gs, ys, [&](i64, const R (&g)[N], const R (&y)[N]) {
#pragma unroll
            for (int i = 0; i < N; i++) sum += log_of ? g[i] : g[i] * y[i];
        });
        sum = over_group<Plus>(sum);
        each_of_two(gs, ys, [&](i64 first, const R (&g)[N], const R (&y)[N]) {
            R out[N];
#pragma unroll
            for (int i = 0; i < N; i++) {
                out[i] = log_of ? g[i] - exp(y[i]) * sum : y[i] * (g[i] - sum);
            }
            gs.write(dx + row * width, first, out);
        });
    }
}

#define KERNELS(suffix, N)                                                                         \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)                                  \
    softmax_##suffix(const T *x, Rows x_rows, T *y, i64 rows, i64 width, int log_of) {             \
        forward<N>(x, x_rows, y, rows, width, log_of);                                             \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)                                  \
    softmax_backward_##suffix(const T *g, Rows g_rows, const T *y, Rows y_rows, T *dx, i64 rows,   \
                              i64 width, int log_of) {                                             \
        backward<N>(g, g_rows, y, y_rows, dx, rows, width, log_of);                                \
    }

KERNELS(wide, WIDE)
KERNELS(single, 1)
