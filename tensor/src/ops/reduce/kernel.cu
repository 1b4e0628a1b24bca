// Reductions. Bound: reads each element once.
//
// Each thread adds with a compensation for what rounding has lost (Neumaier 1974), and the threads of a
// block are combined as a balanced tree, so that the error is within what the operations promise. The
// order depends on the shape alone.

// T is the type of the elements, U that of the results.
typedef Compute<U> R;

template <class V> struct Low { static __device__ V of() { return -V(__int_as_float(0x7f800000)); } };
template <class V> struct High { static __device__ V of() { return V(__int_as_float(0x7f800000)); } };
template <> struct Low<i64> { static __device__ i64 of() { return -0x7fffffffffffffffLL - 1; } };
template <> struct High<i64> { static __device__ i64 of() { return 0x7fffffffffffffffLL; } };
template <> struct Low<i32> { static __device__ i32 of() { return -0x7fffffff - 1; } };
template <> struct High<i32> { static __device__ i32 of() { return 0x7fffffff; } };
template <> struct Low<u8> { static __device__ u8 of() { return 0; } };
template <> struct High<u8> { static __device__ u8 of() { return 255; } };

template <class V> __device__ inline V plus(V a, V b) { return V(a + b); }
template <> __device__ inline i64 plus(i64 a, i64 b) { return i64(u64(a) + u64(b)); }
template <> __device__ inline i32 plus(i32 a, i32 b) { return i32(u32(a) + u32(b)); }

// A sum of floats, and what its roundings have lost.
template <class V> struct Compensated {
    V sum, lost;
    __device__ Compensated() : sum(0), lost(0) {}
    __device__ void take(V v) {
        V next = sum + v;
        V large = fabs(sum) >= fabs(v) ? sum : v;
        V small = fabs(sum) >= fabs(v) ? v : sum;
        lost += (large - next) + small;
        sum = next;
    }
    // Of an infinite sum, the loss means nothing.
    __device__ V value() const { return lost - lost == V(0) ? sum + lost : sum; }
};
// A sum of integers, which wraps.
template <class V> struct Whole {
    V sum;
    __device__ Whole() : sum(0) {}
    __device__ void take(V v) { sum = plus(sum, v); }
    __device__ V value() const { return sum; }
};
template <class V> struct SumOf { typedef Compensated<V> type; };
template <> struct SumOf<i64> { typedef Whole<i64> type; };
template <> struct SumOf<i32> { typedef Whole<i32> type; };
template <> struct SumOf<u8> { typedef Whole<u8> type; };

struct Sum : SumOf<R>::type {
    static __device__ R combine(R a, R b) { return plus(a, b); }
};
// What is no number stays so.
struct Max {
    R best;
    __device__ Max() : best(Low<R>::of()) {}
    static __device__ R combine(R a, R b) { return a > b || a != a ? a : b; }
    __device__ void take(R v) { best = combine(best, v); }
    __device__ R value() const { return best; }
};
struct Min {
    R best;
    __device__ Min() : best(High<R>::of()) {}
    static __device__ R combine(R a, R b) { return a < b || a != a ? a : b; }
    __device__ void take(R v) { best = combine(best, v); }
    __device__ R value() const { return best; }
};

// y[i] = the fold of x over `reduced`, from the place of i in `kept` on: a block for each result. With
// several `parts` of the elements, a block computes one of them, and puts it where `join` folds them.
template <class F>
__device__ inline void by_block(const T *x, const View &kept, const View &reduced, R *folds, U *y,
                                i64 n, i64 count, i64 parts) {
    __shared__ R part[256];
    int thread = threadIdx.x;
    i64 length = (count + parts - 1) / parts;
    for (i64 unit = blockIdx.x; unit < n * parts; unit += gridDim.x) {
        i64 i = unit % n, which = unit / n;
        i64 from = which * length, to = from + length < count ? from + length : count;
        const T *start = x + kept.at(i);
        F fold;
        for (i64 r = from + thread; r < to; r += 256) fold.take(R(widen(start[reduced.at(r)])));
        part[thread] = fold.value();
        __syncthreads();
        for (int half = 128; half > 0; half /= 2) {
            if (thread < half) part[thread] = F::combine(part[thread], part[thread + half]);
            __syncthreads();
        }
        // What the others write next, nobody reads any more.
        if (thread == 0) {
            if (parts == 1) y[i] = narrow<U>(part[0]);
            else folds[unit] = part[0];
        }
    }
}

// The same with a thread for each result: for few elements, and for neighbouring results.
template <class F>
__device__ inline void by_thread(const T *x, const View &kept, const View &reduced, U *y, i64 n,
                                 i64 count) {
    for (i64 i = first(); i < n; i += step()) {
        const T *from = x + kept.at(i);
        F fold;
        for (i64 r = 0; r < count; r++) fold.take(R(widen(from[reduced.at(r)])));
        y[i] = narrow<U>(fold.value());
    }
}

// The same with a block for 32 neighbouring results, so that a warp reads neighbours: each of its 8 warps
// takes every eighth element.
template <class F>
__device__ inline void by_columns(const T *x, const View &kept, const View &reduced, R *folds, U *y,
                                  i64 n, i64 count, i64 parts) {
    __shared__ R part[8][32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    i64 tiles = (n + 31) / 32, length = (count + parts - 1) / parts;
    for (i64 unit = blockIdx.x; unit < tiles * parts; unit += gridDim.x) {
        i64 i = unit % tiles * 32 + lane, which = unit / tiles;
        i64 from = which * length, to = from + length < count ? from + length : count;
        F fold;
        if (i < n) {
            const T *first = x + kept.at(i);
            for (i64 r = from + warp; r < to; r += 8) fold.take(R(widen(first[reduced.at(r)])));
        }
        part[warp][lane] = fold.value();
        __syncthreads();
        for (int half = 4; half > 0; half /= 2) {
            if (warp < half) part[warp][lane] = F::combine(part[warp][lane], part[warp + half][lane]);
            __syncthreads();
        }
        // What the other warps write next, nobody reads any more.
        if (warp == 0 && i < n) {
            if (parts == 1) y[i] = narrow<U>(part[0][lane]);
            else folds[which * n + i] = part[0][lane];
        }
    }
}

// y[i] = the fold of its parts.
template <class F> __device__ inline void join(const R *folds, U *y, i64 n, i64 parts) {
    for (i64 i = first(); i < n; i += step()) {
        F fold;
        for (i64 p = 0; p < parts; p++) fold.take(folds[p * n + i]);
        y[i] = narrow<U>(fold.value());
    }
}

#define KERNELS(name, F)                                                                           \
    extern "C" __global__ void __launch_bounds__(256, 1)                                           \
    name##_by_block(const T *x, View kept, View reduced, R *folds, U *y, i64 n, i64 count,         \
                    i64 parts) {                                                                   \
        by_block<F>(x, kept, reduced, folds, y, n, count, parts);                                  \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(256, 1)                                           \
    name##_by_columns(const T *x, View kept, View reduced, R *folds, U *y, i64 n, i64 count,       \
                      i64 parts) {                                                                 \
        by_columns<F>(x, kept, reduced, folds, y, n, count, parts);                                \
    }                                                                                              \
    extern "C" __global__ void name##_join(const R *folds, U *y, i64 n, i64 parts) {               \
        join<F>(folds, y, n, parts);                                                               \
    }                                                                                              \
    extern "C" __global__ void name##_by_thread(const T *x, View kept, View reduced, U *y, i64 n,  \
                                                i64 count) {                                       \
        by_thread<F>(x, kept, reduced, y, n, count);                                               \
    }

KERNELS(sum, Sum)
KERNELS(max, Max)
KERNELS(min, Min)
