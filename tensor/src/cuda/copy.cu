// Copies of strided views into row-major order. Bound: reads and writes each element once.

extern "C" __global__ void gather(const T *x, T *y, i64 n, View view) {
    for (i64 i = first(); i < n; i += step()) {
        y[i] = x[view.at(i)];
    }
}
