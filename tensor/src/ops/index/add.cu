// Sums of elements that meet at one index, in the order of the indices, so that they repeat bit for
// bit and are the CPU's: no atomics. A thread adds up all that meets at one element of the sum, and
// nobody else touches that element.

// T is the type of the elements, which add up in their type of computation.
typedef Compute<T> R;

// What U stands for as a key of a sort.
template <class V> struct Unsigned { typedef u64 type; };
template <> struct Unsigned<i32> { typedef u32 type; };

// sum[start of the line of i + index of i * along] += x[i], where a line has `length` places `inner`
// apart. U is the type of the indices. Of the places of a line with one index the first does the work.
// Bound: reads `length` indices for each element, which is for short lines.
extern "C" __global__ void add_few(const T *x, View x_view, const U *indices, View index_view,
                                   R *sum, View lines, i64 along, i64 n, i64 length, i64 inner,
                                   i64 extent, IndexFault *fault, int op) {
    for (i64 i = first(); i < n; i += step()) {
        i64 index = indices[index_view.at(i)];
        if (!in_range(index, extent, fault, op)) continue;
        i64 place = i / inner % length;
        bool is_first = true;
        for (i64 q = 1; q <= place && is_first; q++) {
            is_first = indices[index_view.at(i - q * inner)] != index;
        }
        if (!is_first) continue;
        R *to = sum + lines.at(i) + index * along;
        R total = *to + widen(x[x_view.at(i)]);
        for (i64 q = 1; q < length - place; q++) {
            i64 other = i + q * inner;
            if (indices[index_view.at(other)] == index) total += widen(x[x_view.at(other)]);
        }
        *to = total;
    }
}

// sum[group, key, j] += x[group, place, j] for the `count` sorted keys and their places; slices of
// `inner` elements, `extent` of them in each group of the sum; keys from `extent` on are left out.
// U stands for the type of the keys and places. The thread of the first of equal keys adds up all.
// Bound: reads each element once, and each key twice for each element of a slice. One key that most
// places share makes its slices' threads walk over all of these, four loads at a time.
extern "C" __global__ void add_sorted(const T *x, View x_view, const Unsigned<U>::type *keys,
                                      const Unsigned<U>::type *places, R *sum, i64 n, i64 count,
                                      i64 inner, i64 extent) {
    for (i64 i = first(); i < n; i += step()) {
        i64 row = i / inner, j = i - row * inner;
        i64 group = row / count, q = row - group * count;
        auto key = keys[q];
        if (key >= extent || (q > 0 && keys[q - 1] == key)) continue;
        R *to = sum + (group * extent + key) * inner + j;
        i64 base = group * count;
        R total = *to;
        // Sorted: where the last of four is equal, all are.
        for (; q + 4 <= count && keys[q + 3] == key; q += 4) {
            R v[4];
            for (int k = 0; k < 4; k++) v[k] = widen(x[x_view.at((base + places[q + k]) * inner + j)]);
            for (int k = 0; k < 4; k++) total += v[k];
        }
        for (; q < count && keys[q] == key; q++) {
            total += widen(x[x_view.at((base + places[q]) * inner + j)]);
        }
        *to = total;
    }
}
