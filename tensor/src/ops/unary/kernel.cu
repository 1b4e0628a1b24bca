// Functions of one tensor and their derivatives, an instance for each row of the table. Bound: each
// element is read and written once.

typedef Compute<T> R;

#define COMMA ,

#define FORWARD(name, argument) \
    extern "C" __global__ void forward_##name(const T *x, View view, T *y, i64 n, double p) { \
        for (i64 i = first(); i < n; i += step()) { \
            y[i] = narrow<T>(unary_##name(widen(x[view.at(i)]) argument)); \
        } \
    }

#define BACKWARD(name, derivative, argument) \
    extern "C" __global__ void backward_##name(const T *g, View g_view, const T *saved, \
                                               View saved_view, T *dx, i64 n, double p) { \
        for (i64 i = first(); i < n; i += step()) { \
            dx[i] = narrow<T>(derivative(widen(g[g_view.at(i)]), \
                                         widen(saved[saved_view.at(i)]) argument)); \
        } \
    }
