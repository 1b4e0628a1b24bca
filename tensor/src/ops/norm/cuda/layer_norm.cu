// Layer normalisation. Bound: bytes; forward and the input's gradient read each operand once and write
// the result once, the parameters' gradients read the output's gradient and the input once more: they
// are sums over rows, and so belong to other threads.

// Normalises rows of `width` elements and keeps their statistics. The variance is the mean square
// distance from the mean, so a mean far from zero costs no digits.
template <int N>
__device__ inline void forward(const T *x, const Rows &x_rows, const T *weight,
                               const View &weight_view, const T *bias, const View &bias_view,
                               f64 eps, R *mean, R *rstd, T *y, i64 rows, i64 width) {
    R count = R(width);
    FOR_ROWS(start, rows) {
        i64 row = start + threadIdx.y;
        Held<N, 1, false> held(x + place(x_rows.lead, row), x_rows.inner, row < rows ? width : 0);
        R sum = R(0);
        held.each([&](i64, const R (&v)[N]) {
#pragma unroll
            for (int i = 0; i < N; i++) sum += v[i];
        });
        R m = over_group<Plus>(sum) / count;
        R squares = R(0);
        held.each([&](i64, const R (&v)[N]) {
#pragma unroll
            for (int i = 0; i < N; i++) squares += (v[i] - m) * (v[i] - m);
        });
        R r = R(1) / sqrt(over_group<Plus>(squares) / count + R(eps));
        if (threadIdx.x == 0 && row < rows) {
            mean[row] = m;
            rstd[row] = r;
        }
        held.each([&](i64 first, const R (&v)[N]) {
            R w[N], b[N], out[N];
            if (weight) read<N>(weight, weight_view, first, w);
            if (bias) read<N>(bias, bias_view, first, b);
#pragma unroll
            for (int i = 0; i < N; i++) {
                out[i] = (v[i] - m) * r;
                if (weight) out[i] *= w[i];
                if (bias) out[i] += b[i];
            }
            write<N>(y + row * width, first, out);
        });
    }
}

// The input's gradient: with x' = (x - mean) rstd and g = dy w, it is
// rstd (g - (Σ g + x' Σ g x') / width).
template <int N>
__device__ inline void backward(const T *dy, const Rows &dy_rows, const T *x, const Rows &x_rows,
                                const T *weight, const View &weight_view, const R *mean,
                                const View &mean_view, const R *rstd, const View &rstd_view, T *dx,
                                i64 rows, i64 width) {
    R share = R(1.0 / f64(width));
    FOR_ROWS(start, rows) {
        i64 row = start + threadIdx.y;
        i64 here = row < rows ? width : 0;
        Held<N, 2, false> gs(dy + place(dy_rows.lead, row), dy_rows.inner, here);
        Held<N, 2, false> xs(x + place(x_rows.lead, row), x_rows.inner, here);
        R m = R(0), r = R(0);
        if (row < rows) {
            m = mean[place(mean_view, row)];
            r = rstd[place(rstd_view, row)];
        }
        R plain = R(0), along = R(0);
        each_of_two(gs, xs, [&](i64 first, const R (&dy)[N], const R (&x)[N]) {
            R w[N];
            if (weight) read<N>(weight, weight_view, first, w);
#pragma unroll
            for (int i = 0; i < N; i++) {
                R g = weight ? dy[i] * w[i] : dy[i];
                plain += g;
                along += g * ((x[i] - m) * r);
            }
        });
        plain = over_group<Plus>(plain) * share;
        along = over_group<Plus>(along) * share;
        each_of_two(gs, xs, [&](i64 first, const R (&dy)[N], const R (&x)[N]) {
            R w[N], out[N];
            if (weight) read<N>(weight, weight_view, first, w);
#pragma unroll
            for (int i = 0; i < N; i++) {
                R g = weight ? dy[i] * w[i] : dy[i];
                out[i] = r * (g - plain - (x[i] - m) * r * along);
            }
            write<N>(dx + row * width, first, out);
        });
    }
}

#define KERNELS(suffix, N)                                                                         \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)                                  \
    layer_norm_##suffix(const T *x, Rows x_rows, const T *weight, View weight_view, const T *bias, \
                        View bias_view, f64 eps, R *mean, R *rstd, T *y, i64 rows, i64 width) {    \
        forward<N>(x, x_rows, weight, weight_view, bias, bias_view, eps, mean, rstd, y, rows,      \
                   width);                                                                         \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)                                  \
    layer_norm_backward_##suffix(const T *dy, Rows dy_rows, const T *x, Rows x_rows,               \
                                 const T *weight, View weight_view, const R *mean, View mean_view, \
                                 const R *rstd, View rstd_view, T *dx, i64 rows, i64 width) {      \
        backward<N>(dy, dy_rows, x, x_rows, weight, weight_view, mean, mean_view, rstd, rstd_view, \
                    dx, rows, width);                                                              \
    }

KERNELS(wide, WIDE)
KERNELS(single, 1)

// A block of 32 by 8 threads sums 32 columns: its rows are dealt out over y, then the eight sums of a
// column are added in order.
#define COLUMNS 32
#define DEALT 8

// The sums of each part of the rows, for Σ dy x' and for Σ dy: partial is [parts, 2, width].
extern "C" __global__ void __launch_bounds__(COLUMNS * DEALT, 1)
layer_norm_columns(const T *dy, Rows dy_rows, const T *x, Rows x_rows, const R *mean,
                   View mean_view, const R *rstd, View rstd_view, R *partial, i64 rows, i64 width,
                   i64 per_part) {
    i64 tiles = (width + COLUMNS - 1) / COLUMNS;
    i64 part = blockIdx.x / tiles;
    i64 column = blockIdx.x % tiles * COLUMNS + threadIdx.x;
    i64 end = min((part + 1) * per_part, rows);
    R along = R(0), plain = R(0);
    if (column < width) {
        const T *dys = dy + place(dy_rows.inner, column);
        const T *xs = x + place(x_rows.inner, column);
#pragma unroll 4
        for (i64 row = part * per_part + threadIdx.y; row < end; row += DEALT) {
            R g = widen(dys[place(dy_rows.lead, row)]);
            R v = widen(xs[place(x_rows.lead, row)]);
            along += g * ((v - mean[place(mean_view, row)]) * rstd[place(rstd_view, row)]);
            plain += g;
        }
    }
    __shared__ R sums[2][DEALT][COLUMNS];
    sums[0][threadIdx.y][threadIdx.x] = along;
    sums[1][threadIdx.y][threadIdx.x] = plain;
    __syncthreads();
    if (threadIdx.y < 2 && column < width) {
        R sum = R(0);
        for (int k = 0; k < DEALT; k++) sum += sums[threadIdx.y][k][threadIdx.x];
        partial[(part * 2 + threadIdx.y) * width + column] = sum;
    }
}

// dw and db: the sums of all parts.
extern "C" __global__ void __launch_bounds__(COLUMNS * DEALT, 1)
layer_norm_parameters(const R *partial, T *dw, T *db, i64 width, i64 parts) {
    i64 column = (i64)blockIdx.x * COLUMNS + threadIdx.x;
    R sum[2] = {R(0), R(0)};
    if (column < width) {
        for (i64 part = threadIdx.y; part < parts; part += DEALT) {
            sum[0] += partial[part * 2 * width + column];
            sum[1] += partial[(part * 2 + 1) * width + column];
        }
    }
    __shared__ R sums[2][DEALT][COLUMNS];
    sums[0][threadIdx.y][threadIdx.x] = sum[0];
    sums[1][threadIdx.y][threadIdx.x] = sum[1];
    __syncthreads();
    if (threadIdx.y < 2 && column < width) {
        R sum = R(0);
        for (int k = 0; k < DEALT; k++) sum += sums[threadIdx.y][k][threadIdx.x];
        (threadIdx.y == 0 ? dw : db)[column] = narrow<T>(sum);
    }
}
