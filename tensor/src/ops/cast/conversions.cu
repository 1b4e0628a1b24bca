// Conversions between element types: to floats rounded once to nearest even, to integers truncated
// and saturated, where what is no number becomes 0; between integers the low bytes remain.

// The nearest number of f32, but where it is not exact the neighbour towards zero or beyond it whose
// last bit is set: rounded again to a half type, this gives what one rounding gives.
__device__ inline f32 odd(f32 rounded, bool exact) {
    return exact ? rounded : __uint_as_float(__float_as_uint(rounded) | 1u);
}
__device__ inline f32 to_odd(f32 v) { return v; }
__device__ inline f32 to_odd(u8 v) { return f32(v); }
__device__ inline f32 to_odd(f64 v) {
    f32 rounded = __double2float_rz(v);
    return odd(rounded, f64(rounded) == v || v != v);
}
__device__ inline f32 to_odd(i64 v) {
    f32 rounded = __ll2float_rz(v);
    return odd(rounded, __float2ll_rz(rounded) == v);
}

__device__ inline f32 to_odd(i32 v) { return to_odd(i64(v)); }

__device__ inline i64 to_i64(f32 v) { return v == v ? __float2ll_rz(v) : 0; }
__device__ inline i64 to_i64(f64 v) { return v == v ? __double2ll_rz(v) : 0; }
__device__ inline i64 to_i64(i64 v) { return v; }
__device__ inline i64 to_i64(i32 v) { return v; }
__device__ inline i64 to_i64(u8 v) { return v; }

__device__ inline i32 to_i32(f32 v) { return v == v ? __float2int_rz(v) : 0; }
__device__ inline i32 to_i32(f64 v) { return v == v ? __double2int_rz(v) : 0; }
template <class V> __device__ inline i32 to_i32(V v) { return i32(v); }

__device__ inline u8 saturated(i64 v) { return u8(v < 0 ? 0 : v > 255 ? 255 : v); }
__device__ inline u8 to_u8(f32 v) { return saturated(to_i64(v)); }
__device__ inline u8 to_u8(f64 v) { return saturated(to_i64(v)); }
__device__ inline u8 to_u8(i64 v) { return u8(v); }
__device__ inline u8 to_u8(i32 v) { return u8(v); }
__device__ inline u8 to_u8(u8 v) { return v; }

// Of a value in a type of computation.
template <class To> struct Cast {
    template <class V> static __device__ To of(V v) { return To(v); }
};
template <> struct Cast<i64> {
    template <class V> static __device__ i64 of(V v) { return to_i64(v); }
};
template <> struct Cast<i32> {
    template <class V> static __device__ i32 of(V v) { return to_i32(v); }
};
template <> struct Cast<u8> {
    template <class V> static __device__ u8 of(V v) { return to_u8(v); }
};
template <> struct Cast<boolean> {
    template <class V> static __device__ boolean of(V v) { return narrow<boolean>(u8(v != V(0))); }
};
template <> struct Cast<bf16> {
    template <class V> static __device__ bf16 of(V v) { return narrow<bf16>(to_odd(v)); }
};
template <> struct Cast<f16> {
    template <class V> static __device__ f16 of(V v) { return narrow<f16>(to_odd(v)); }
};
