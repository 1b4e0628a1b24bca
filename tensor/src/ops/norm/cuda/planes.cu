// What the kernels of batch normalisation share: [n, c, …] as planes, of which each channel has n.

// Images, channels, and chunks of a plane, which are N elements each.
struct Planes {
    i64 images;
    i64 channels;
    i64 chunks;
};

// Where the planes of a tensor are.
struct Image {
    i64 image;
    i64 channel;
    View plane;
};

template <int N>
__device__ inline void read_plane(const T *x, const Image &at, i64 image, i64 channel, i64 chunk,
                                  R (&v)[N]) {
    read<N>(x + image * at.image + channel * at.channel, at.plane, chunk * N, v);
}

// One number for each channel, of the elements' type or of the type of computation; or none.
struct Channels {
    void *numbers;
    i64 step;
    i64 computed;

    __device__ R at(i64 channel, R missing) const {
        if (!numbers) return missing;
        if (computed) return ((const R *)numbers)[channel * step];
        return widen(((const T *)numbers)[channel * step]);
    }
    __device__ void put(i64 channel, R v) const {
        if (computed) {
            ((R *)numbers)[channel * step] = v;
        } else {
            ((T *)numbers)[channel * step] = narrow<T>(v);
        }
    }
};

// Operations that are rounded one by one, as on the CPU: a product and a sum do not become one.
__device__ inline f32 times(f32 a, f32 b) { return __fmul_rn(a, b); }
__device__ inline f64 times(f64 a, f64 b) { return __dmul_rn(a, b); }
__device__ inline f32 plus(f32 a, f32 b) { return __fadd_rn(a, b); }
__device__ inline f64 plus(f64 a, f64 b) { return __dadd_rn(a, b); }

// The statistics, the scale and the shift of each channel.
struct Affine {
    Channels mean;
    Channels invstd;
    Channels weight;
    Channels bias;
};

// The affine map of one channel. Forward and backward share it, so that a mask that is computed again
// is the mask that was applied.
struct Map {
    R mean, scale, shift;

    __device__ Map(const Affine &a, i64 channel) {
        mean = a.mean.at(channel, R(0));
        scale = times(a.weight.at(channel, R(1)), a.invstd.at(channel, R(1)));
        shift = a.bias.at(channel, R(0));
    }
    __device__ R apply(R x) const { return plus(times(plus(x, -mean), scale), shift); }
};

__device__ inline i64 quotient(i64 a, i64 b) {
    return (u64)(a | b) >> 32 ? a / b : i64(u32(a) / u32(b));
}

// The chunk with the number i among all.
struct Spot {
    i64 image, channel, chunk;

    __device__ Spot(const Planes &p, i64 i) {
        i64 row = quotient(i, p.chunks);
        chunk = i - row * p.chunks;
        image = quotient(row, p.channels);
        channel = row - image * p.channels;
    }
};

// Sums over the elements of each channel, in two stages, the first of which has 256 threads in a block
// and makes `entries` sums for each channel.
//
// Where planes are large, a block sums one part of one channel, a number of chunks, and there is an
// entry for each part. Where they are small, a thread sums one place of the planes of one part of the
// images: 32 neighbouring places and eight threads for each; there is an entry for each place and part.
struct Split {
    i64 parts;
    i64 per_part;
    i64 by_place;
};

// What a thread sums: chunks of one channel.
struct Share {
    i64 channel;
    // Whether it has any: the last tile of places may not be full.
    bool some;
    i64 image, chunk, end, chunks;
    bool by_place;

    __device__ Share(const Planes &p, const Split &split) : chunks(p.chunks), by_place(split.by_place) {
        if (by_place) {
            i64 places = p.channels * p.chunks;
            i64 tiles = (places + 31) / 32;
            i64 part = blockIdx.x / tiles;
            i64 place = blockIdx.x % tiles * 32 + threadIdx.x % 32;
            some = place < places;
            channel = some ? place / p.chunks : 0;
            chunk = place % p.chunks;
            image = part * split.per_part + threadIdx.x / 32;
            end = min((part + 1) * split.per_part, p.images);
        } else {
            channel = blockIdx.x / split.parts;
            i64 part = blockIdx.x % split.parts;
            i64 at = part * split.per_part + threadIdx.x;
            end = min((part + 1) * split.per_part, p.images * p.chunks);
            some = at < end;
            image = quotient(at, p.chunks);
            chunk = at - image * p.chunks;
        }
    }

    // f(image, chunk) for each of them.
    template <class F> __device__ void each(F f) {
        if (!some) return;
        if (by_place) {
            for (i64 at = image; at < end; at += 8) f(at, chunk);
            return;
        }
        i64 images = 256 / chunks, rest = 256 % chunks;
        for (i64 at = image * chunks + chunk; at < end; at += 256) {
            f(image, chunk);
            image += images;
            chunk += rest;
            if (chunk >= chunks) {
                chunk -= chunks;
                image++;
            }
        }
    }
};

// Joins what the threads of a block have, and stores it as the entry of each channel that the block
// has summed: partial is [channels, entries].
template <class S>
__device__ inline void join_block(const S &mine, const Planes &p, const Split &split, S *partial) {
    __shared__ S part[256];
    int thread = threadIdx.x;
    part[thread] = mine;
    __syncthreads();
    int last = split.by_place ? 32 : 1;
    for (int half = 128; half >= last; half /= 2) {
        if (thread < half) part[thread].join(part[thread + half]);
        __syncthreads();
    }
    if (split.by_place) {
        i64 places = p.channels * p.chunks;
        i64 tiles = (places + 31) / 32;
        i64 place = blockIdx.x % tiles * 32 + thread;
        if (thread < 32 && place < places) {
            partial[place * split.parts + blockIdx.x / tiles] = part[thread];
        }
    } else if (thread == 0) {
        partial[blockIdx.x] = part[0];
    }
}

// The second stage: a warp joins the entries of a channel, in the order of its lanes; in the first lane.
template <class S> __device__ inline S join_entries(const S *partial, i64 entries) {
    __shared__ S part[256];
    int lane = threadIdx.x % 32;
    S sum = {};
    for (i64 i = lane; i < entries; i += 32) sum.join(partial[i]);
    part[threadIdx.x] = sum;
    __syncwarp();
    for (int half = 16; half > 0; half /= 2) {
        if (lane < half) part[threadIdx.x].join(part[threadIdx.x + half]);
        __syncwarp();
    }
    return part[threadIdx.x];
}
