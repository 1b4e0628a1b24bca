// Batch normalisation, forward. Bound: bytes; the input is read once for the statistics and once to be
// normalised, with the residual, and the result is written once.

// Elements that a thread sums in the type of computation before it goes on in f64.
#define RUN 64

// Number, mean, and squared distances from the mean.
struct Moments {
    f64 count, mean, squares;

    // Chan, Golub and LeVeque 1983.
    __device__ void join(const Moments &other) {
        if (other.count == 0) return;
        if (count == 0) {
            *this = other;
            return;
        }
        f64 total = count + other.count, apart = other.mean - mean, share = other.count / total;
        mean += apart * share;
        squares += other.squares + apart * apart * count * share;
        count = total;
    }
};

// The sums of a run of elements, of their distances from the first one: a mean far from zero costs no
// digits.
struct Run {
    R from, sum, squares;
    int count;

    __device__ void flush(Moments &all) {
        Moments run;
        run.count = count;
        f64 mean = f64(sum) / count;
        run.mean = f64(from) + mean;
        f64 squared = f64(squares) - f64(sum) * mean;
        run.squares = squared < 0 ? 0 : squared; // NaN stays
        all.join(run);
        count = 0;
    }
};

template <int N>
__device__ inline void moments(const T *x, const Image &x_at, const Planes &p, const Split &split,
                               Moments *partial) {
    Moments all = {0, 0, 0};
    Run run = {R(0), R(0), R(0), 0};
    Share share(p, split);
    share.each([&](i64 image, i64 chunk) {
        R v[N];
        read_plane<N>(x, x_at, image, share.channel, chunk, v);
        if (run.count == 0) run = {v[0], R(0), R(0), 0};
#pragma unroll
        for (int i = 0; i < N; i++) {
            R apart = v[i] - run.from;
            run.sum += apart;
            run.squares += apart * apart;
        }
        run.count += N;
        if (run.count >= RUN) run.flush(all);
    });
    if (run.count > 0) run.flush(all);
    join_block(all, p, split, partial);
}

// The statistics of each channel. Without elements they are NaN.
extern "C" __global__ void __launch_bounds__(256)
batch_norm_statistics(const Moments *partial, i64 entries, i64 channels, f64 eps, R *mean, R *var,
                      R *invstd) {
    i64 channel = (i64)blockIdx.x * 8 + threadIdx.x / 32;
    bool known = channel < channels;
    Moments m = join_entries(partial + channel * entries, known ? entries : 0);
    if (!known || threadIdx.x % 32 > 0) return;
    f64 nothing = m.count > 0 ? 0.0 : undefined<f64>();
    f64 v = m.squares / m.count;
    mean[channel] = R(m.mean + nothing);
    var[channel] = R(v);
    invstd[channel] = R(1.0 / sqrt(v + eps));
}

// 1 / √(var + eps).
extern "C" __global__ void batch_norm_invstd(const T *var, View view, f64 eps, R *invstd, i64 n) {
    for (i64 i = first(); i < n; i += step()) {
        invstd[i] = R(1.0 / sqrt(f64(widen(var[place(view, i)])) + eps));
    }
}

// y = relu(map(x) + residual); ReLU keeps NaN.
template <int N>
__device__ inline void normalise(const T *x, const Image &x_at, const Affine &affine,
                                 const T *residual, const Image &residual_at, int relu, T *y,
                                 const Planes &p) {
    i64 n = p.images * p.channels * p.chunks;
    for (i64 i = first(); i < n; i += step()) {
        Spot at(p, i);
        Map map(affine, at.channel);
        R v[N], r[N];
        read_plane<N>(x, x_at, at.image, at.channel, at.chunk, v);
        if (residual) read_plane<N>(residual, residual_at, at.image, at.channel, at.chunk, r);
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] = map.apply(v[k]);
            if (residual) v[k] = plus(v[k], r[k]);
            if (relu && v[k] <= R(0)) v[k] = R(0);
        }
        write<N>(y, i * N, v);
    }
}

#define KERNELS(suffix, N)                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                              \
    batch_norm_moments_##suffix(const T *x, Image x_at, Planes p, Split split, Moments *partial) { \
        moments<N>(x, x_at, p, split, partial);                                                    \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                              \
    batch_norm_##suffix(const T *x, Image x_at, Affine affine, const T *residual,                  \
                        Image residual_at, int relu, T *y, Planes p) {                             \
        normalise<N>(x, x_at, affine, residual, residual_at, relu, y, p);                          \
    }

KERNELS(wide, WIDE)
KERNELS(single, 1)
