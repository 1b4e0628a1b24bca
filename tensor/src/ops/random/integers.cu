// Random numbers that are no floats. Bound: bytes written.

// 1 with probability threshold / 2^32, or always.
extern "C" __global__ void bernoulli(u64 key, u64 block, i64 threshold, boolean *out, i64 n) {
    fill<boolean, 4>(key, block, out, n, [&](const Words &words, boolean (&made)[4]) {
        for (int k = 0; k < 4; k++) made[k].byte = i64(words.word[k]) < threshold;
    });
}

// low .. low + extent
extern "C" __global__ void randint(u64 key, u64 block, i64 low, i64 extent, i64 *out, i64 n) {
    fill<i64, 2>(key, block, out, n, [&](const Words &words, i64 (&made)[2]) {
        for (int k = 0; k < 2; k++) made[k] = i64(u64(low) + __umul64hi(words.pair(k), u64(extent)));
    });
}
