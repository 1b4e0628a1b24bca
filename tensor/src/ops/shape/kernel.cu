// Copies from one view to another, on the bits of the elements. Bound: reads and writes each element
// once.

extern "C" __global__ void copy(const T *x, View view, T *y, View place, i64 start, i64 n) {
    for (i64 i = first(); i < n; i += step()) {
        y[start + place.at(i)] = x[view.at(i)];
    }
}
