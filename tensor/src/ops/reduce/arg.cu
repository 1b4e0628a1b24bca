// Where the extremum of each line is. Bound: reads each element once.

typedef Compute<T> R;

struct Max {
    static __device__ bool beats(R a, R b) { return a > b || (a != a && b == b); }
};
struct Min {
    static __device__ bool beats(R a, R b) { return a < b || (a != a && b == b); }
};

// y[i] = the first place of the extremum of the `count` elements `along` apart, from the place of i in
// `kept` on: a thread for each result, for short lines and for neighbouring results.
template <class F>
__device__ inline void by_thread(const T *x, const View &kept, i64 along, i64 *y, i64 n, i64 count) {
    for (i64 i = first(); i < n; i += step()) {
        const T *from = x + kept.at(i);
        R best = widen(from[0]);
        i64 at = 0;
        for (i64 r = 1; r < count; r++) {
            R v = widen(from[r * along]);
            if (F::beats(v, best)) {
                best = v;
                at = r;
            }
        }
        y[i] = at;
    }
}

// The same with a block for each result. The answer does not depend on the order of comparisons:
// of equal elements the one with the lower index stays.
template <class F>
__device__ inline void by_block(const T *x, const View &kept, i64 along, i64 *y, i64 n, i64 count) {
    __shared__ R best_of[256];
    __shared__ i64 at_of[256];
    int thread = threadIdx.x;
    for (i64 i = blockIdx.x; i < n; i += gridDim.x) {
        const T *from = x + kept.at(i);
        R best = R(0);
        i64 at = -1;
        for (i64 r = thread; r < count; r += 256) {
            R v = widen(from[r * along]);
            if (at < 0 || F::beats(v, best)) {
                best = v;
                at = r;
            }
        }
        best_of[thread] = best;
        at_of[thread] = at;
        __syncthreads();
        for (int half = 128; half > 0; half /= 2) {
            if (thread < half && at_of[thread + half] >= 0) {
                R mine = best_of[thread], other = best_of[thread + half];
                i64 at = at_of[thread], there = at_of[thread + half];
                if (at < 0 || F::beats(other, mine) || (!F::beats(mine, other) && there < at)) {
                    best_of[thread] = other;
                    at_of[thread] = there;
                }
            }
            __syncthreads();
        }
        // What the others write next, nobody reads any more.
        if (thread == 0) y[i] = at_of[0];
    }
}

#define KERNELS(name, F)                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                              \
    name##_by_block(const T *x, View kept, i64 along, i64 *y, i64 n, i64 count) {                  \
        by_block<F>(x, kept, along, y, n, count);                                                  \
    }                                                                                              \
    extern "C" __global__ void name##_by_thread(const T *x, View kept, i64 along, i64 *y, i64 n,   \
                                                i64 count) {                                       \
        by_thread<F>(x, kept, along, y, n, count);                                                 \
    }

KERNELS(argmax, Max)
KERNELS(argmin, Min)
