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

// y[i] = the fold of x over `reduced`, from the place of i in `kept` on: a block for each result.
template <class F>
__device__ inline void by_block(const T *x, const View &kept, const View &reduced, U *y, i64 n,
                                i64 count) {
    __shared__ R part[256];
    int thread = threadIdx.x;
    for (i64 i = blockIdx.x; i < n; i += gridDim.x) {
        const T *from = x + kept.at(i);
        F fold;
        for (i64 r = thread; r < count; r += 256) fold.take(R(widen(from[reduced.at(r)])));
        part[thread] = fold.value();
        __syncthreads();
        for (int half = 128; half > 0; half /= 2) {
            if (thread < half) part[thread] = F::combine(part[thread], part[thread + half]);
            __syncthreads();
        }
        if (thread == 0) y[i] = narrow<U>(part[0]);
        __syncthreads();
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

#define KERNELS(name, F)                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                              \
    name##_by_block(const T *x, View kept, View reduced, U *y, i64 n, i64 count) {                 \
        by_block<F>(x, kept, reduced, y, n, count);                                                \
    }                                                                                              \
    extern "C" __global__ void name##_by_thread(const T *x, View kept, View reduced, U *y, i64 n,  \
                                                i64 count) {                                       \
        by_thread<F>(x, kept, reduced, y, n, count);                                               \
    }

KERNELS(sum, Sum)
KERNELS(max, Max)
KERNELS(min, Min)
