// Kernels over rows. A row is computed by a group of threads: blockDim.x of them, a power of two, so a
// part of a warp, a warp, or a block; a block has blockDim.y groups. Each lane of a group takes every
// blockDim.x-th chunk of the row, which is N neighbouring elements: 16 bytes, or one element where
// rows do not lie so.

// The type of computation.
typedef Compute<T> R;

// Threads of a block, at most: two rows held leave no more registers.
#define MOST_THREADS 512
// Elements in 16 bytes.
#define WIDE (16 / (int)sizeof(T))

// Where the rows of a tensor start, and where the elements of a row are.
struct Rows {
    View lead;
    View inner;
};

// `View::at` for rows and their elements, whose axes nearly always merge: a loop that is not unrolled, since
// the code around it is.
__device__ inline i64 place(const View &view, i64 i) {
    if (view.rank == 1) return i * view.stride[0];
    i64 place = 0;
#pragma unroll 1
    for (int axis = 0; axis < view.rank; axis++) {
        i64 rest = i / view.extent[axis];
        place += (i - rest * view.extent[axis]) * view.stride[axis];
        i = rest;
    }
    return place;
}

__device__ inline R minus_infinity() { return R(__int_as_float(0xff800000)); }

template <int N> __device__ inline void read(const T *row, const View &inner, i64 chunk, R (&v)[N]) {
    if constexpr (N == 1) {
        v[0] = widen(row[place(inner, chunk)]);
    } else {
        union {
            uint4 bits;
            T each[N];
        } pack;
        pack.bits = ((const uint4 *)row)[chunk];
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = widen(pack.each[i]);
    }
}

// The same into a result, whose rows follow each other.
template <int N> __device__ inline void write(T *row, i64 chunk, const R (&v)[N]) {
    if constexpr (N == 1) {
        row[chunk] = narrow<T>(v[0]);
    } else {
        union {
            uint4 bits;
            T each[N];
        } pack;
#pragma unroll
        for (int i = 0; i < N; i++) pack.each[i] = narrow<T>(v[i]);
        ((uint4 *)row)[chunk] = pack.bits;
    }
}

// Chunks of a row that each lane holds in registers, where a kernel passes over `rows` rows at once:
// 64 bytes; 8 elements, where they are read one by one.
template <int N, int rows> struct Chunks {
    static const int held = (N > 1 ? 64 / sizeof(T) : 8) / N / rows;
};

// A row for several passes: the first chunks of each lane are read from memory once; what is beyond
// them, in rows of more than 512 lanes' chunks, is read in each pass.
template <int N, int rows> struct Held {
    static const int held = Chunks<N, rows>::held;
    const T *row;
    const View &inner;
    i64 chunks;
    R chunk_of[held][N];

    __device__ Held(const T *row, const View &inner, i64 chunks)
        : row(row), inner(inner), chunks(chunks) {
#pragma unroll
        for (int k = 0; k < held; k++) {
            i64 chunk = threadIdx.x + k * blockDim.x;
            if (chunk < chunks) read<N>(row, inner, chunk, chunk_of[k]);
        }
    }

    // Calls f(chunk, its elements) for the lane's chunks.
    template <class F> __device__ void each(F f) const {
#pragma unroll
        for (int k = 0; k < held; k++) {
            i64 chunk = threadIdx.x + k * blockDim.x;
            if (chunk < chunks) f(chunk, chunk_of[k]);
        }
        for (i64 chunk = threadIdx.x + held * blockDim.x; chunk < chunks; chunk += blockDim.x) {
            R v[N];
            read<N>(row, inner, chunk, v);
            f(chunk, v);
        }
    }
};

// The same for two rows of one length.
template <int N, class F>
__device__ inline void each_of_two(const Held<N, 2> &a, const Held<N, 2> &b, F f) {
#pragma unroll
    for (int k = 0; k < Held<N, 2>::held; k++) {
        i64 chunk = threadIdx.x + k * blockDim.x;
        if (chunk < a.chunks) f(chunk, a.chunk_of[k], b.chunk_of[k]);
    }
    i64 beyond = threadIdx.x + Held<N, 2>::held * blockDim.x;
    for (i64 chunk = beyond; chunk < a.chunks; chunk += blockDim.x) {
        R v[N], w[N];
        read<N>(a.row, a.inner, chunk, v);
        read<N>(b.row, b.inner, chunk, w);
        f(chunk, v, w);
    }
}

struct Plus {
    template <class V> static __device__ V of(V a, V b) { return a + b; }
};
// Passes over what is no number.
struct Greater {
    template <class V> static __device__ V of(V a, V b) { return b > a ? b : a; }
};

// F over all lanes of the group, as a balanced tree; F is commutative, so each lane has the same
// bits. All threads of the block call it.
template <class F, class V> __device__ inline V over_group(V v) {
    int lanes = blockDim.x < 32 ? blockDim.x : 32;
    for (int apart = lanes / 2; apart > 0; apart /= 2) {
        v = F::of(v, __shfl_xor_sync(~0u, v, apart));
    }
    if (blockDim.x > 32) {
        __shared__ V part[MOST_THREADS / 32];
        int warps = blockDim.x / 32;
        __syncthreads(); // the last call's parts have been read
        if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
        __syncthreads();
        v = part[threadIdx.x % warps];
        for (int apart = warps / 2; apart > 0; apart /= 2) {
            v = F::of(v, __shfl_xor_sync(~0u, v, apart));
        }
    }
    return v;
}

// All threads of a block take each turn, whether or not their group has a row in it: `start` is the
// row of the block's first group.
#define FOR_ROWS(start, rows)                                                                      \
    for (i64 start = (i64)blockIdx.x * blockDim.y; start < rows; start += (i64)gridDim.x * blockDim.y)
