// What every kernel stands on: element types, their types of computation, views. No header of CUDA is
// included, so that NVRTC needs nothing but itself.

typedef float f32;
typedef double f64;
typedef long long i64;
typedef int i32;
typedef unsigned char u8;
typedef unsigned long long u64;
typedef unsigned int u32;

// Half types are storage: a value is widened when it is read and rounded once when it is written.
struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };

// A truth value: any byte but 0 is true.
struct boolean { u8 byte; };

// The type in which sums and products of T are computed.
template <class T> struct ComputeOf { typedef T type; };
template <> struct ComputeOf<bf16> { typedef f32 type; };
template <> struct ComputeOf<f16> { typedef f32 type; };
template <> struct ComputeOf<boolean> { typedef u8 type; };
template <class T> using Compute = typename ComputeOf<T>::type;

__device__ inline f32 widen(f32 v) { return v; }
__device__ inline f64 widen(f64 v) { return v; }
__device__ inline i64 widen(i64 v) { return v; }
__device__ inline i32 widen(i32 v) { return v; }
__device__ inline u8 widen(u8 v) { return v; }
__device__ inline u8 widen(boolean v) { return v.byte != 0; }
__device__ inline f32 widen(bf16 v) { return __uint_as_float((u32)v.bits << 16); }
__device__ inline f32 widen(f16 v) {
    f32 wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
    return wide;
}

template <class T> struct Narrow {
    static __device__ T of(T v) { return v; }
};
template <> struct Narrow<bf16> {
    static __device__ bf16 of(f32 v) {
        bf16 narrow;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(v));
        return narrow;
    }
};
template <> struct Narrow<f16> {
    static __device__ f16 of(f32 v) {
        f16 narrow;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(v));
        return narrow;
    }
};

template <> struct Narrow<boolean> {
    static __device__ boolean of(u8 v) {
        boolean narrow;
        narrow.byte = v != 0;
        return narrow;
    }
};

// The nearest T, ties to even.
template <class T> __device__ inline T narrow(Compute<T> v) { return Narrow<T>::of(v); }

// This thread's place among all threads, and how many there are.
__device__ inline i64 first() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline i64 step() { return (i64)gridDim.x * blockDim.x; }

// Extents and strides of a view, innermost axis first.
struct View {
    i64 extent[8];
    i64 stride[8];
    i64 rank;

    // The place of the element `i` in row-major order. A view whose axes all merge takes no division.
    __device__ i64 at(i64 i) const {
        if (rank == 1) return i * stride[0];
        i64 place = 0;
        for (int axis = 0; axis < 8; axis++) {
            // The outermost axis needs no division, so neither does a view of neighbours.
            if (axis + 1 >= rank) return place + i * stride[axis];
            i64 rest = i / extent[axis];
            place += (i - rest * extent[axis]) * stride[axis];
            i = rest;
        }
        return place;
    }
};

// The flag for an index out of range: the first one is noted.
struct IndexFault {
    u32 set;
    u32 op;
    i64 index;
    i64 extent;
};

// Whether `index` lies in 0 .. extent; notes it where it does not.
__device__ inline bool in_range(i64 index, i64 extent, IndexFault *fault, i32 op) {
    if (index >= 0 && index < extent) return true;
    if (atomicCAS(&fault->set, 0u, 1u) == 0u) {
        fault->op = op;
        fault->index = index;
        fault->extent = extent;
    }
    return false;
}

// What a kernel writes where it has no result: bits that are all set, so that a float is NaN.
template <class T> __device__ inline T undefined() {
    T v;
    for (int i = 0; i < (int)sizeof(T); i++) ((u8 *)&v)[i] = 0xff;
    return v;
}
