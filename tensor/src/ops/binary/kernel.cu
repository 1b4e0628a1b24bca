// Arithmetic of two tensors, and of a tensor and a number. Bound: reads and writes each element once.

typedef Compute<T> R;

#define KERNELS(name)                                                                              \
    extern "C" __global__ void name(const T *a, View a_view, const T *b, View b_view, T *y,        \
                                    i64 n) {                                                       \
        for (i64 i = first(); i < n; i += step()) {                                                \
            y[i] = narrow<T>(fn_##name<R>(widen(a[a_view.at(i)]), widen(b[b_view.at(i)])));        \
        }                                                                                          \
    }                                                                                              \
    extern "C" __global__ void name##_scalar(const T *x, View view, T *y, i64 n, double number) {  \
        R c = R(number);                                                                           \
        for (i64 i = first(); i < n; i += step()) {                                                \
            y[i] = narrow<T>(with_##name(widen(x[view.at(i)]), c));                                \
        }                                                                                          \
    }

#define with_add fn_add<R>
#define with_sub fn_sub<R>
#define with_mul fn_mul<R>
#define with_div fn_div<R>
#define with_maximum fn_maximum<R>
#define with_minimum fn_minimum<R>

// Squares and cubes are products, as on the CPU.
__device__ inline R with_power(R x, R c) {
    if (c == R(2)) return R(x * x);
    if (c == R(3)) return R(x * x * x);
    return fn_power<R>(x, c);
}

KERNELS(add)
KERNELS(sub)
KERNELS(mul)
KERNELS(div)
KERNELS(maximum)
KERNELS(minimum)
KERNELS(power)
