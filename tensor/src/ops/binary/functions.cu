// Functions of two numbers, in a type of computation. Integers wrap.

template <class R> __device__ inline R fn_add(R a, R b) { return R(a + b); }
template <class R> __device__ inline R fn_sub(R a, R b) { return R(a - b); }
template <class R> __device__ inline R fn_mul(R a, R b) { return R(a * b); }
template <> __device__ inline i64 fn_add(i64 a, i64 b) { return i64(u64(a) + u64(b)); }
template <> __device__ inline i32 fn_add(i32 a, i32 b) { return i32(u32(a) + u32(b)); }
template <> __device__ inline i64 fn_sub(i64 a, i64 b) { return i64(u64(a) - u64(b)); }
template <> __device__ inline i32 fn_sub(i32 a, i32 b) { return i32(u32(a) - u32(b)); }
template <> __device__ inline i64 fn_mul(i64 a, i64 b) { return i64(u64(a) * u64(b)); }
template <> __device__ inline i32 fn_mul(i32 a, i32 b) { return i32(u32(a) * u32(b)); }

// What is no number stays so.
template <class R> __device__ inline R fn_maximum(R a, R b) { return a > b || a != a ? a : b; }
template <class R> __device__ inline R fn_minimum(R a, R b) { return a < b || a != a ? a : b; }

// Of floats: nobody asks for those of integers.
template <class R> __device__ inline R fn_div(R a, R b) { return R(a / b); }
template <class R> __device__ inline R fn_power(R a, R b) { return R(pow(f64(a), f64(b))); }
template <> __device__ inline f32 fn_power(f32 a, f32 b) { return powf(a, b); }
