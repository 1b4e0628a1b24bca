// Matrix products with an epilogue. Bound: 2 m n k operations of the type of computation; each
// element of A and B is read from memory once for every 64 columns or rows of the result. Without
// tensor cores, so far from a library's product for half types.

#define TILE 64
#define DEPTH 16

typedef Compute<T> R;

template <class R> __device__ R activate(int function, R p, R x);

// c[m, n] = activate(a[m, k] b[k, n] + bias[n]), c in row-major order, a and b under any strides.
// A block of 256 threads computes 64 by 64 elements, each thread 4 by 4 of them.
extern "C" __global__ void __launch_bounds__(256)
multiply(const T *a, i64 a0, i64 a1, const T *b, i64 b0, i64 b1,
         const T *bias, i64 bias_step, int function, double p, T *c, i64 m, i64 n, i64 k) {
    // One more column: rows of a tile start in different banks.
    __shared__ R a_tile[DEPTH][TILE + 1];
    __shared__ R b_tile[DEPTH][TILE + 1];
    i64 columns = (n + TILE - 1) / TILE;
    i64 row0 = (i64)blockIdx.x / columns * TILE;
    i64 col0 = (i64)blockIdx.x % columns * TILE;
    int thread = threadIdx.x;
    int row = thread / 16 * 4, col = thread % 16 * 4;
    R sum[4][4] = {};
    for (i64 k0 = 0; k0 < k; k0 += DEPTH) {
        for (int i = thread; i < TILE * DEPTH; i += 256) {
            // Neighbouring threads read neighbouring elements, whichever axis they lie along.
            int down = a1 == 1 ? i / DEPTH : i % TILE;
            int deep = a1 == 1 ? i % DEPTH : i / TILE;
            i64 r = row0 + down, d = k0 + deep;
            a_tile[deep][down] = r < m && d < k ? widen(a[r * a0 + d * a1]) : R(0);
            down = b0 == 1 ? i / DEPTH : i % TILE;
            deep = b0 == 1 ? i % DEPTH : i / TILE;
            i64 s = col0 + down;
            d = k0 + deep;
            b_tile[deep][down] = s < n && d < k ? widen(b[d * b0 + s * b1]) : R(0);
        }
        __syncthreads();
        for (int d = 0; d < DEPTH; d++) {
            R left[4], right[4];
            for (int i = 0; i < 4; i++) {
                left[i] = a_tile[d][row + i];
                right[i] = b_tile[d][col + i];
            }
            for (int i = 0; i < 4; i++) {
                for (int j = 0; j < 4; j++) sum[i][j] += left[i] * right[j];
            }
        }
        __syncthreads();
    }
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            i64 r = row0 + row + i, s = col0 + col + j;
            if (r < m && s < n) {
                R y = sum[i][j];
                if (bias) y += widen(bias[s * bias_step]);
                c[r * n + s] = narrow<T>(activate(function, R(p), y));
            }
        }
    }
}
