// Tensors filled with one number, or with one after the other. Bound: writes each element once.

// The element is the first bytes of `bits`.
extern "C" __global__ void full(T *y, i64 n, i64 bits) {
    T element;
    memcpy(&element, &bits, sizeof(T));
    for (i64 i = first(); i < n; i += step()) {
        y[i] = element;
    }
}

extern "C" __global__ void arange(T *y, i64 n, i64 start) {
    for (i64 i = first(); i < n; i += step()) {
        y[i] = Cast<T>::of(start + i);
    }
}
