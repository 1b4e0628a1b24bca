// What the kernels of random numbers stand on. A thread computes the four words of a block of
// Philox4x32-10 and the elements that they make, so that the numbers do not depend on the grid. Where
// an operation could be rounded in two ways, its rounding is written out: the numbers are the CPU's, bit
// for bit (normal f64 to four units in the last place, since logarithm, sine and cosine are other
// libraries').

struct Words {
    u32 word[4];

    // Block `block` of the stream `key`.
    __device__ Words(u64 key, u64 block) {
        u32 c0 = u32(block), c1 = u32(block >> 32), c2 = 0, c3 = 0;
        u32 k0 = u32(key), k1 = u32(key >> 32);
#pragma unroll
        for (int round = 0; round < 10; round++) {
            u64 a = u64(0xd2511f53u) * c0, b = u64(0xcd9e8d57u) * c2;
            c0 = u32(b >> 32) ^ c1 ^ k0;
            c1 = u32(b);
            c2 = u32(a >> 32) ^ c3 ^ k1;
            c3 = u32(a);
            k0 += 0x9e3779b9u;
            k1 += 0xbb67ae85u;
        }
        word[0] = c0;
        word[1] = c1;
        word[2] = c2;
        word[3] = c3;
    }
    // Two words as one, the low one first.
    __device__ u64 pair(int i) const { return u64(word[2 * i + 1]) << 32 | word[2 * i]; }
};

// Elements that lie together, written at once.
template <class V, int N> struct alignas(sizeof(V) * N) Together {
    V element[N];
};

// out = N elements of each block of words, by `make(words, elements)`.
template <class V, int N, class F>
__device__ inline void fill(u64 key, u64 block, V *out, i64 n, F make) {
    for (i64 i = first(); i * N < n; i += step()) {
        Together<V, N> made;
        make(Words(key, block + i), made.element);
        if ((i + 1) * N <= n) {
            ((Together<V, N> *)out)[i] = made;
        } else {
#pragma unroll
            for (int k = 0; k < N; k++) {
                if (i * N + k < n) out[i * N + k] = made.element[k];
            }
        }
    }
}
