// Kernels over rows. A row is computed by a group of threads: blockDim.x of them, a power of two, so a
// part of a warp, a warp, or a block; a block has blockDim.y groups. Each lane of a group takes every
// blockDim.x-th chunk of the row, which is N neighbouring elements: 16 bytes, or one element where
// those of a row lie apart.

// The type of computation.
typedef Compute<T> R;

// Threads of a block, at most: two rows held leave no more registers. One block to a multiprocessor is
// asked for, or else ptxas spills registers to get more.
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

// The N elements from `first` on, all of which the row has, and which lie at a multiple of 16 bytes.
template <int N> __device__ inline void read(const T *row, const View &inner, i64 first, R (&v)[N]) {
    if constexpr (N == 1) {
        v[0] = widen(row[place(inner, first)]);
    } else {
        union {
            uint4 bits;
            T each[N];
        } pack;
        pack.bits = *(const uint4 *)(row + first);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = widen(pack.each[i]);
    }
}

// The same into a result, whose elements follow each other.
template <int N> __device__ inline void write(T *row, i64 first, const R (&v)[N]) {
    if constexpr (N == 1) {
        row[first] = narrow<T>(v[0]);
    } else {
        union {
            uint4 bits;
            T each[N];
        } pack;
#pragma unroll
        for (int i = 0; i < N; i++) pack.each[i] = narrow<T>(v[i]);
        *(uint4 *)(row + first) = pack.bits;
    }
}

// A row of `width` elements; of none, where a group has no row in this turn. Where it is `cut`, its
// chunks begin at multiples of 16 bytes and the row does not: the first one may begin before the row,
// and the last one end behind it.
template <int N, bool cut> struct Row {
    const T *start;
    const View &inner;
    i64 width;
    // Elements from the multiple of 16 bytes before the row to its start.
    i64 shift;

    __device__ Row(const T *start, const View &inner, i64 width)
        : start(start), inner(inner), width(width), shift(cut ? (u64)start / sizeof(T) % N : 0) {}

    __device__ i64 chunks() const { return width > 0 ? (shift + width + N - 1) / N : 0; }
    // The first element of a chunk, which may be before the row.
    __device__ i64 first(i64 chunk) const { return chunk * N - shift; }
    __device__ bool has(i64 i) const { return !cut || (i >= 0 && i < width); }
    __device__ bool has_all(i64 first) const { return !cut || (first >= 0 && first + N <= width); }

    // The chunk from `first` on; `pad` where the row has no element.
    __device__ void read(i64 first, R (&v)[N], R pad) const {
        if (has_all(first)) {
            ::read<N>(start, inner, first, v);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) v[i] = has(first + i) ? widen(start[first + i]) : pad;
        }
    }
    // The same chunk of a result, whose rows lie as these do.
    __device__ void write(T *to, i64 first, const R (&v)[N]) const {
        if (has_all(first)) {
            ::write<N>(to, first, v);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) {
                if (has(first + i)) to[first + i] = narrow<T>(v[i]);
            }
        }
    }
};

// Chunks of a row that each lane holds in registers, where a kernel passes over `rows` rows at once:
// 64 bytes; 8 elements, where they are read one by one.
template <int N, int rows> struct Chunks {
    static const int held = (N > 1 ? 64 / sizeof(T) : 8) / N / rows;
};

// A row for several passes: the first chunks of each lane are read from memory once; what is beyond
// them, in rows of more than 512 lanes' chunks, is read in each pass.
template <int N, int rows, bool cut> struct Held : Row<N, cut> {
    static const int held = Chunks<N, rows>::held;
    i64 chunks;
    R pad;
    R chunk_of[held][N];

    __device__ Held(const T *start, const View &inner, i64 width, R pad = R(0))
        : Row<N, cut>(start, inner, width), chunks(Row<N, cut>::chunks()), pad(pad) {
#pragma unroll
        for (int k = 0; k < held; k++) {
            i64 chunk = threadIdx.x + k * blockDim.x;
            if (chunk < chunks) this->read(this->first(chunk), chunk_of[k], pad);
        }
    }

    // Calls f(first element, the elements) for the lane's chunks.
    template <class F> __device__ void each(F f) const {
#pragma unroll
        for (int k = 0; k < held; k++) {
            i64 chunk = threadIdx.x + k * blockDim.x;
            if (chunk < chunks) f(this->first(chunk), chunk_of[k]);
        }
        for (i64 chunk = threadIdx.x + held * blockDim.x; chunk < chunks; chunk += blockDim.x) {
            R v[N];
            this->read(this->first(chunk), v, pad);
            f(this->first(chunk), v);
        }
    }
};

// The same for two rows of one length, which lie in the same way.
template <int N, bool cut, class F>
__device__ inline void each_of_two(const Held<N, 2, cut> &a, const Held<N, 2, cut> &b, F f) {
#pragma unroll
    for (int k = 0; k < Chunks<N, 2>::held; k++) {
        i64 chunk = threadIdx.x + k * blockDim.x;
        if (chunk < a.chunks) f(a.first(chunk), a.chunk_of[k], b.chunk_of[k]);
    }
    i64 beyond = threadIdx.x + Chunks<N, 2>::held * blockDim.x;
    for (i64 chunk = beyond; chunk < a.chunks; chunk += blockDim.x) {
        R v[N], w[N];
        a.read(a.first(chunk), v, a.pad);
        b.read(b.first(chunk), w, b.pad);
        f(a.first(chunk), v, w);
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
        // The last call's parts have been read behind it.
        __syncthreads();
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
