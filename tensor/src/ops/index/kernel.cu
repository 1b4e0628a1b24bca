// Slices at indices, on the bits of the elements. Bound: reads and writes each element once, and each
// index once for each element.

// y[group, place, j] = x[group, index of place, j], for the row-major order of both: `count` places,
// slices of `inner` elements, `extent` of them in each group of `x`.
extern "C" __global__ void select(const T *x, View x_view, const U *indices, View index_view,
                                  T *y, i64 n, i64 count, i64 inner, i64 extent,
                                  IndexFault *fault, int op) {
    for (i64 i = first(); i < n; i += step()) {
        i64 row = i / inner, j = i - row * inner;
        i64 group = row / count, place = row - group * count;
        i64 index = indices[index_view.at(place)];
        bool known = in_range(index, extent, fault, op);
        y[i] = known ? x[x_view.at((group * extent + index) * inner + j)] : undefined<T>();
    }
}

// y[i] = x[start of the line of i + index of i * step], for the row-major order of the indices.
extern "C" __global__ void gather(const T *x, View lines, i64 along, const U *indices,
                                  View index_view, T *y, i64 n, i64 extent, IndexFault *fault,
                                  int op) {
    for (i64 i = first(); i < n; i += step()) {
        i64 index = indices[index_view.at(i)];
        bool known = in_range(index, extent, fault, op);
        y[i] = known ? x[lines.at(i) + index * along] : undefined<T>();
    }
}

// Looks at indices that select nothing, since their slices are empty.
extern "C" __global__ void check(const U *indices, View index_view, i64 n, i64 extent,
                                 IndexFault *fault, int op) {
    for (i64 i = first(); i < n; i += step()) in_range(indices[index_view.at(i)], extent, fault, op);
}
