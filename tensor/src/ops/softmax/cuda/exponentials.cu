// The largest element of a row, and the sum of the exponentials of the distances from it.
struct Exponentials {
    R max, sum;
};

// One pass (Milakov and Gimelshein 2018): a lane's sum is scaled whenever its maximum grows. A row
// whose maximum is -inf has the sum NaN, as has one with +inf or NaN in it.
template <int N> __device__ inline Exponentials exponentials(const Held<N, 1, (N > 1)> &x) {
    R max = minus_infinity(), sum = R(0);
    x.each([&](i64, const R (&v)[N]) {
        R top = max;
#pragma unroll
        for (int i = 0; i < N; i++) top = Greater::of(top, v[i]);
        if (top > max) {
            sum *= exp(max - top);
            max = top;
        }
        // Where there was nothing but -inf so far, the distances from it would be NaN.
        R from = max > minus_infinity() ? max : R(0);
#pragma unroll
        for (int i = 0; i < N; i++) sum += exp(v[i] - from);
    });
    Exponentials row;
    row.max = over_group<Greater>(max);
    row.sum = over_group<Plus>(sum * exp(max - row.max));
    return row;
}
