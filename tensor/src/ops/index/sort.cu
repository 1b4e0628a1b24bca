// A stable sort of places by key: a radix sort from the lowest 8 bits on. Each pass counts the digits
// of each tile, adds the counts up, and moves the keys; no block waits for another one, and the result
// is the same whatever the order of the blocks. Bound of a pass: reads the keys twice and the places
// once, writes both once.

#define THREADS 256
#define WARPS (THREADS / 32)
#define ROUNDS 8
#define TILE (THREADS * ROUNDS)
#define DIGITS 256

// T stands for the type of the keys and of the places, U is that of the indices.
template <class V> struct Unsigned { typedef u64 type; };
template <> struct Unsigned<i32> { typedef u32 type; };
typedef Unsigned<T>::type K;

__device__ inline int digit_of(K key, int shift) { return (int)(key >> shift) & (DIGITS - 1); }

// keys[i] = start of the line of i + index of i * along; `none` for an index out of range, and
// with `or_none` for the index -1, which is no mistake then.
extern "C" __global__ void make_keys(const U *indices, View index_view, View lines, i64 along,
                                     K *keys, i64 n, i64 extent, int or_none, i64 none,
                                     IndexFault *fault, int op) {
    for (i64 i = first(); i < n; i += step()) {
        i64 index = indices[index_view.at(i)];
        bool known = !(or_none && index == -1) && in_range(index, extent, fault, op);
        keys[i] = known ? (K)(lines.at(i) + index * along) : (K)none;
    }
}

// counts[digit, tile] = how many keys of the tile have the digit. A block for each tile.
extern "C" __global__ void __launch_bounds__(THREADS)
count_digits(const K *keys, i64 n, int shift, K *counts, i64 tiles) {
    __shared__ u32 count[DIGITS];
    int thread = threadIdx.x;
    for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        count[thread] = 0;
        __syncthreads();
        for (int round = 0; round < ROUNDS; round++) {
            i64 i = tile * TILE + round * THREADS + thread;
            // Whole numbers: their order does not matter.
            if (i < n) atomicAdd(&count[digit_of(keys[i], shift)], 1u);
        }
        __syncthreads();
        // This thread reads its count and clears it.
        counts[thread * tiles + tile] = count[thread];
    }
}

// The sum over the threads before this one, and over all in `total`.
__device__ inline K sum_before(K v, K *of_warp, K &total) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    K sum = v;
    for (int d = 1; d < 32; d *= 2) {
        K other = __shfl_up_sync(0xffffffffu, sum, d);
        if (lane >= d) sum += other;
    }
    if (lane == 31) of_warp[warp] = sum;
    __syncthreads();
    K before = sum - v;
    total = 0;
    for (int w = 0; w < WARPS; w++) {
        if (w < warp) before += of_warp[w];
        total += of_warp[w];
    }
    __syncthreads();
    return before;
}

// Replaces the counts of each digit by their sums over the tiles before. A block for each digit.
extern "C" __global__ void __launch_bounds__(THREADS)
sum_tiles(K *counts, i64 tiles, K *totals) {
    __shared__ K of_warp[WARPS];
    K *row = counts + blockIdx.x * tiles;
    K done = 0;
    for (i64 start = 0; start < tiles; start += THREADS) {
        i64 tile = start + threadIdx.x;
        K total;
        K before = sum_before(tile < tiles ? row[tile] : K(0), of_warp, total);
        if (tile < tiles) row[tile] = done + before;
        done += total;
    }
    if (threadIdx.x == 0) totals[blockIdx.x] = done;
}

// Moves keys and places to where their digit puts them; equal digits keep their order. Without
// `places`, each key's place is its own. A block for each tile.
extern "C" __global__ void __launch_bounds__(THREADS)
move_keys(const K *keys, const K *places, K *keys_to, K *places_to, i64 n, int shift,
          const K *counts, const K *totals, i64 tiles) {
    __shared__ K of_warp[WARPS];
    // First how many of a digit each warp has, then where its first one goes.
    __shared__ K target[WARPS][DIGITS];
    int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    K total;
    K start = sum_before(totals[thread], of_warp, total);
    for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        // Where the next key with the digit of this thread's number goes.
        K next = start + counts[thread * tiles + tile];
        for (int round = 0; round < ROUNDS; round++) {
            for (int w = 0; w < WARPS; w++) target[w][thread] = 0;
            __syncthreads();
            i64 i = tile * TILE + round * THREADS + thread;
            K key = i < n ? keys[i] : K(0);
            int digit = i < n ? digit_of(key, shift) : DIGITS;
            u32 same = __match_any_sync(0xffffffffu, digit);
            int rank = __popc(same & ((1u << lane) - 1));
            if (i < n && rank == 0) target[warp][digit] = __popc(same);
            __syncthreads();
            for (int w = 0; w < WARPS; w++) {
                K count = target[w][thread];
                target[w][thread] = next;
                next += count;
            }
            __syncthreads();
            if (i < n) {
                K to = target[warp][digit] + rank;
                keys_to[to] = key;
                places_to[to] = places ? places[i] : (K)i;
            }
            __syncthreads();
        }
    }
}
