// Conversion between element types. Bound: reads and writes each element once.

extern "C" __global__ void cast(const T *x, U *y, i64 n, View view) {
    for (i64 i = first(); i < n; i += step()) {
        y[i] = Cast<U>::of(widen(x[view.at(i)]));
    }
}
