// Optimizer steps, scaling and sums of squares, each in one launch over any number of tensors. Bound:
// each array is read and written once; for SGD with momentum in f32 that is 20 bytes for each
// parameter, for Adam 28, for scaling 8, for a sum of squares 4.

typedef Compute<T> R;

// Elements of a tensor that a block takes at a time.
constexpr i64 CHUNK = 4096;
// Different numbers in one launch.
constexpr int GROUPS = 16;

// Tables that the host keeps here from one launch to the next.
extern "C" {
__device__ u64 tables[8 * (64 << 10) / sizeof(u64)];
}

// A parameter, its gradient and its states.
struct Row {
    T *p;
    const U *g;
    R *m;
    R *v;
    i64 n;
    i64 group;
};

// Numbers of a step of SGD.
struct SgdNumbers {
    f64 lr;
    const f64 *lr_scale; // null for 1
    f64 decay, momentum, fresh;
    int is_first, nesterov;
};

// Numbers of a step of Adam.
struct AdamNumbers {
    f64 lr;
    const f64 *lr_scale; // null for 1
    f64 coupled, decoupled, beta1, beta2, fresh1, fresh2, eps;
    f64 correction1, correction2; // of the bias, where `step` is null
    const f64 *step;
};

template <class N> struct Groups {
    N of[GROUPS];
};

// What a block works on: the elements from .. to of a row.
struct Piece {
    Row row;
    i64 from, to;
};

// The piece of a chunk. The table has the first chunk of each row, and then the rows; each thread
// searches for itself, and all of them read the same words.
__device__ inline Piece piece(const i64 *table, i64 rows, i64 chunk) {
    i64 low = 0, high = rows;
    while (high - low > 1) {
        i64 middle = (low + high) / 2;
        if (table[middle] <= chunk) low = middle;
        else high = middle;
    }
    Piece piece;
    piece.row = ((const Row *)(table + rows))[low];
    piece.from = (chunk - table[low]) * CHUNK;
    i64 end = piece.from + CHUNK;
    piece.to = end < piece.row.n ? end : piece.row.n;
    return piece;
}

// Four elements side by side: one access of up to 16 bytes, or two.
template <class X> struct alignas(4 * sizeof(X) < 16 ? 4 * sizeof(X) : 16) Four {
    X at[4];
};
template <class X> __device__ inline Four<X> load(const X *x, i64 i) {
    return *(const Four<X> *)(x + i);
}
template <class X> __device__ inline void store(X *x, i64 i, Four<X> v) { *(Four<X> *)(x + i) = v; }

// Whether all arrays of a row begin where four elements may be accessed at once. Chunks begin at
// multiples of four.
__device__ inline bool by_fours(const Row &row) {
    return (((u64)row.p | (u64)row.g | (u64)row.m | (u64)row.v) & 15) == 0;
}

// Calls f.four(i) for each four elements of a piece, and f.one(i) for those that are left.
template <class F> __device__ inline void walk(const Piece &piece, F f) {
    i64 i = piece.from + 4 * threadIdx.x, fours = piece.from;
    if (by_fours(piece.row)) {
        for (; i + 4 <= piece.to; i += 4 * blockDim.x) f.four(i);
        fours = piece.from + (piece.to - piece.from) / 4 * 4;
    }
    for (i = fours + threadIdx.x; i < piece.to; i += blockDim.x) f.one(i);
}

struct Sgd {
    Row row;
    R lr, decay, momentum, fresh;
    bool is_first, nesterov;

    // `m` is the momentum, where there is one; the first step sets it and does not look at it.
    __device__ T step(T p, U g, R &m) const {
        R old = widen(p);
        R grad = widen(g) + decay * old;
        R move = grad;
        if (row.m) {
            m = is_first ? grad : momentum * m + fresh * grad;
            move = nesterov ? grad + momentum * m : m;
        }
        return narrow<T>(old - lr * move);
    }
    __device__ void one(i64 i) const {
        R m = row.m && !is_first ? row.m[i] : R(0);
        row.p[i] = step(row.p[i], row.g[i], m);
        if (row.m) row.m[i] = m;
    }
    __device__ void four(i64 i) const {
        Four<T> p = load(row.p, i);
        Four<U> g = load(row.g, i);
        Four<R> m = {};
        if (row.m && !is_first) m = load((const R *)row.m, i);
        for (int j = 0; j < 4; j++) p.at[j] = step(p.at[j], g.at[j], m.at[j]);
        store(row.p, i, p);
        if (row.m) store(row.m, i, m);
    }
};

// One step of SGD for each row; `m` is null without momentum.
extern "C" __global__ void __launch_bounds__(256)
    sgd(const i64 *table, i64 rows, const __grid_constant__ Groups<SgdNumbers> groups) {
    Piece all = piece(table, rows, blockIdx.x);
    const SgdNumbers &n = groups.of[all.row.group];
    f64 lr = n.lr_scale ? n.lr * *n.lr_scale : n.lr;
    Sgd sgd = {all.row, R(lr), R(n.decay), R(n.momentum), R(n.fresh), n.is_first != 0, n.nesterov != 0};
    walk(all, sgd);
}

struct Adam {
    Row row;
    R coupled, shrink, fresh1, keep2, fresh2, rate, root, eps;

    __device__ T step(T p, U g, R &m, R &v) const {
        R old = widen(p);
        R grad = widen(g) + coupled * old;
        m = m + fresh1 * (grad - m);
        v = keep2 * v + fresh2 * grad * grad;
        R denominator = sqrt(v) * root + eps;
        return narrow<T>(old * shrink - rate * m / denominator);
    }
    __device__ void one(i64 i) const {
        R m = row.m[i], v = row.v[i];
        row.p[i] = step(row.p[i], row.g[i], m, v);
        row.m[i] = m;
        row.v[i] = v;
    }
    __device__ void four(i64 i) const {
        Four<T> p = load(row.p, i);
        Four<U> g = load(row.g, i);
        Four<R> m = load((const R *)row.m, i), v = load((const R *)row.v, i);
        for (int j = 0; j < 4; j++) p.at[j] = step(p.at[j], g.at[j], m.at[j], v.at[j]);
        store(row.p, i, p);
        store(row.m, i, m);
        store(row.v, i, v);
    }
};

// One step of Adam or AdamW for each row. One thread of a block computes what holds for all of them:
// powers in f64 are slow.
extern "C" __global__ void __launch_bounds__(256)
    adam(const i64 *table, i64 rows, const __grid_constant__ Groups<AdamNumbers> groups) {
    __shared__ f64 shrink, rate, root;
    Piece all = piece(table, rows, blockIdx.x);
    const AdamNumbers &n = groups.of[all.row.group];
    if (threadIdx.x == 0) {
        f64 lr = n.lr_scale ? n.lr * *n.lr_scale : n.lr;
        f64 correction1 = n.step ? 1.0 - pow(n.beta1, *n.step) : n.correction1;
        f64 correction2 = n.step ? 1.0 - pow(n.beta2, *n.step) : n.correction2;
        shrink = 1.0 - lr * n.decoupled;
        rate = lr / correction1;
        root = 1.0 / sqrt(correction2);
    }
    __syncthreads();
    Adam adam = {all.row,     R(n.coupled), R(shrink), R(n.fresh1), R(n.beta2),
                 R(n.fresh2), R(rate),      R(root),   R(n.eps)};
    walk(all, adam);
}

struct Scale {
    Row row;
    R factor;

    __device__ T times(T x) const { return narrow<T>(widen(x) * factor); }
    __device__ void one(i64 i) const { row.p[i] = times(row.p[i]); }
    __device__ void four(i64 i) const {
        Four<T> x = load((const T *)row.p, i);
        for (int j = 0; j < 4; j++) x.at[j] = times(x.at[j]);
        store(row.p, i, x);
    }
};

// Each row times the number, which is in the card's memory where `place` is not null. With a `max_norm`
// that is not negative the number is a norm, and the factor is what brings it down to that one, or 1.
// One thread of a block computes the factor: divisions in f64 are slow.
extern "C" __global__ void __launch_bounds__(256)
    scale(const i64 *table, i64 rows, f64 number, const f64 *place, f64 max_norm) {
    __shared__ f64 factor;
    Piece all = piece(table, rows, blockIdx.x);
    if (threadIdx.x == 0) {
        factor = place ? *place : number;
        if (max_norm >= 0.0) {
            factor = max_norm / (factor + 1e-6);
            if (factor > 1.0) factor = 1.0; // what is no number stays so
        }
    }
    __syncthreads();
    Scale scale = {all.row, R(factor)};
    walk(all, scale);
}

struct Squares {
    Row row;
    f64 *sum;

    __device__ void take(T x) const {
        f64 wide = widen(x);
        *sum += wide * wide;
    }
    __device__ void one(i64 i) const { take(row.p[i]); }
    __device__ void four(i64 i) const {
        Four<T> x = load((const T *)row.p, i);
        for (int j = 0; j < 4; j++) take(x.at[j]);
    }
};

// The sum of the threads' values, in thread 0: within each warp, and then of the warps, as a tree.
__device__ inline f64 block_sum(f64 v) {
    __shared__ f64 sums[8];
    for (int apart = 16; apart > 0; apart /= 2) v += __shfl_down_sync(~0u, v, apart);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
    __syncthreads();
    v = threadIdx.x < 8 ? sums[threadIdx.x] : 0.0;
    for (int apart = 4; apart > 0; apart /= 2) v += __shfl_down_sync(~0u, v, apart);
    return v;
}

// sums[block] = the sum of the squares of every so many-th chunk, in f64. The order depends on the
// rows alone, since the number of blocks does.
extern "C" __global__ void __launch_bounds__(256)
    squares(const i64 *table, i64 rows, i64 chunks, f64 *sums) {
    f64 sum = 0.0;
    for (i64 chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
        Piece all = piece(table, rows, chunk);
        Squares squares = {all.row, &sum};
        walk(all, squares);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// total = the sum of the sums, or its root, by one block.
extern "C" __global__ void __launch_bounds__(256)
    total(const f64 *sums, i64 n, f64 *total, int is_root) {
    f64 sum = 0.0;
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) sum += sums[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *total = is_root ? sqrt(sum) : sum;
}
