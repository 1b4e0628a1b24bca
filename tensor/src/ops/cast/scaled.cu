// Scaled conversion of float types into a place that is there. Bound: reads and writes each element once.

// The wider of the two types of computation.
typedef decltype(Compute<T>() + Compute<U>()) W;

// The factor is in the card's memory where `place` is not null.
extern "C" __global__ void write_scaled(const T *x, View view, U *y, i64 start, i64 n, f64 number,
                                        const f64 *place) {
    W factor = W(place ? *place : number);
    for (i64 i = first(); i < n; i += step()) {
        y[start + i] = Cast<U>::of(W(widen(x[view.at(i)])) * factor);
    }
}
