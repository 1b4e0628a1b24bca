// Batch normalisation, backward. Bound: bytes; the output's gradient and the input are read twice, for
// the sums and for the input's gradient. A mask that is read from the output is applied in the first
// pass, which writes the residual's gradient; the second one reads that.

// Elements that a thread sums in the type of computation before it goes on in f64.
#define RUN 64

// Σ g and Σ g (x - mean).
struct Sums {
    f64 plain, along;

    __device__ void join(const Sums &other) {
        plain += other.plain;
        along += other.along;
    }
};

// Where the mask of ReLU comes from: there was none, from the input, from the output.
enum { mask_none, mask_input, mask_output };

// The sums of g, the gradient where ReLU let the value through. `masked` is g, where the mask comes
// from the output.
template <int N>
__device__ inline void sums(const T *dy, const Image &dy_at, const T *x, const Image &x_at,
                            const T *out, const Image &out_at, T *masked, const Affine &affine,
                            int mask, const Planes &p, const Split &split, Sums *partial) {
    Sums all = {0, 0};
    R plain = R(0), along = R(0);
    int count = 0;
    Share share(p, split);
    i64 channel = share.channel;
    Map map(affine, channel);
    share.each([&](i64 image, i64 chunk) {
        R g[N], v[N], y[N];
        read_plane<N>(dy, dy_at, image, channel, chunk, g);
        read_plane<N>(x, x_at, image, channel, chunk, v);
        if (mask == mask_output) read_plane<N>(out, out_at, image, channel, chunk, y);
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (mask != mask_none && (mask == mask_input ? map.apply(v[i]) : y[i]) <= R(0)) {
                g[i] = R(0);
            }
            plain += g[i];
            along += g[i] * (v[i] - map.mean);
        }
        if (mask == mask_output) {
            write<N>(masked, ((image * p.channels + channel) * p.chunks + chunk) * N, g);
        }
        count += N;
        if (count >= RUN) {
            all.plain += plain;
            all.along += along;
            plain = along = R(0);
            count = 0;
        }
    });
    all.plain += plain;
    all.along += along;
    join_block(all, p, split, partial);
}

// The gradients of scale and shift; and what the input's gradient takes from the statistics:
// factor[channel] = (k, shift), for g scale + (x - mean) k + shift.
extern "C" __global__ void __launch_bounds__(256)
batch_norm_parameters(const Sums *partial, i64 entries, i64 channels, Affine affine, Channels dw,
                      Channels db, f64 count, R *factor) {
    i64 channel = (i64)blockIdx.x * 8 + threadIdx.x / 32;
    bool known = channel < channels;
    Sums s = join_entries(partial + channel * entries, known ? entries : 0);
    if (!known || threadIdx.x % 32 > 0) return;
    // Without elements the batch's deviation is NaN.
    f64 inv = count > 0 ? f64(affine.invstd.at(channel, R(1))) : 0.0;
    db.put(channel, R(s.plain));
    dw.put(channel, R(s.along * inv));
    if (factor) {
        f64 scale = Map(affine, channel).scale;
        factor[2 * channel] = R(-scale * inv * inv * s.along / count);
        factor[2 * channel + 1] = R(-scale * s.plain / count);
    }
}

// The input's gradient. Without `factor` the statistics were given, and do not depend on it.
template <int N>
__device__ inline void input(const T *g, const Image &g_at, const T *x, const Image &x_at,
                             const Affine &affine, int mask, const R *factor, T *dx,
                             const Planes &p) {
    i64 n = p.images * p.channels * p.chunks;
    for (i64 i = first(); i < n; i += step()) {
        Spot at(p, i);
        Map map(affine, at.channel);
        R k = factor ? factor[2 * at.channel] : R(0);
        R shift = factor ? factor[2 * at.channel + 1] : R(0);
        R d[N], v[N];
        read_plane<N>(g, g_at, at.image, at.channel, at.chunk, d);
        if (factor || mask == mask_input) {
            read_plane<N>(x, x_at, at.image, at.channel, at.chunk, v);
        }
#pragma unroll
        for (int e = 0; e < N; e++) {
            if (mask == mask_input && map.apply(v[e]) <= R(0)) d[e] = R(0);
            d[e] *= map.scale;
            if (factor) d[e] += (v[e] - map.mean) * k + shift;
        }
        write<N>(dx, i * N, d);
    }
}

#define KERNELS(suffix, N)                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                              \
    batch_norm_sums_##suffix(const T *dy, Image dy_at, const T *x, Image x_at, const T *out,       \
                             Image out_at, T *masked, Affine affine, int mask, Planes p,           \
                             Split split, Sums *partial) {                                         \
        sums<N>(dy, dy_at, x, x_at, out, out_at, masked, affine, mask, p, split, partial);         \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                              \
    batch_norm_input_##suffix(const T *g, Image g_at, const T *x, Image x_at, Affine affine,       \
                              int mask, const R *factor, T *dx, Planes p) {                        \
        input<N>(g, g_at, x, x_at, affine, mask, factor, dx, p);                                   \
    }

KERNELS(wide, WIDE)
KERNELS(single, 1)
