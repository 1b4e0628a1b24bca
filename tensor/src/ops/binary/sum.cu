// Sums whose type is that of computation, or that of both addends. Bound: reads each addend and writes
// each sum once.

typedef Compute<T> R;

extern "C" __global__ void add_into(const U *x, View view, T *y, i64 n) {
    for (i64 i = first(); i < n; i += step()) {
        y[i] = narrow<T>(fn_add<R>(widen(y[i]), R(widen(x[view.at(i)]))));
    }
}

extern "C" __global__ void add_widened(const U *a, View a_view, const U *b, View b_view, T *y,
                                       i64 n) {
    for (i64 i = first(); i < n; i += step()) {
        y[i] = narrow<T>(fn_add<R>(R(widen(a[a_view.at(i)])), R(widen(b[b_view.at(i)]))));
    }
}
