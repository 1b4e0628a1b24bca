// How fast two threads can sum each other's buffers, both ending with the sum: each does one half, straight out of and
// into both buffers, between two spinning barriers. No library, no checks, nobody sleeps: the limit for one machine.
// cc -O3 -march=native -pthread shm_allreduce.c -o shm_allreduce; ./shm_allreduce BYTES...
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
enum { RANKS = 2, SAMPLES = 9 };

static lanes *buffer[RANKS];
static size_t length;  // of a buffer, in vectors
static long calls;
static double mean[SAMPLES];
static int wrong;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void barrier(void) {
    static _Alignas(128) atomic_uint arrived;
    static _Alignas(128) atomic_uint generation;
    unsigned mine = atomic_load_explicit(&generation, memory_order_relaxed);
    if (atomic_fetch_add(&arrived, 1) == RANKS - 1) {
        atomic_store(&arrived, 0);
        atomic_store(&generation, mine + 1);
    } else {
        while (atomic_load_explicit(&generation, memory_order_acquire) == mine) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
    }
}

static void all_reduce(int rank) {
    size_t half = length / 2, start = rank * half, end = rank ? length : half;
    lanes *a = buffer[0], *b = buffer[1];
    barrier();  // both inputs are there
    for (size_t i = start; i < end; i++) {
        lanes sum = a[i] + b[i];
        a[i] = sum;
        b[i] = sum;
    }
    barrier();  // both halves are done
}

static void fill(int rank) {
    lanes value;
    for (int l = 0; l < LANES; l++) value[l] = rank + 1.0f;
    for (size_t i = 0; i < length; i++) buffer[rank][i] = value;
}

static void *run(void *argument) {
    int rank = (int)(intptr_t)argument;
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(rank, &cpus);
    sched_setaffinity(0, sizeof cpus, &cpus);
    for (int s = -1; s < SAMPLES; s++) {
        double spent = 0;
        for (long c = 0; c < calls; c++) {
            fill(rank);  // freshly written input, as gradients are; not timed
            barrier();
            double start = now();
            all_reduce(rank);
            spent += now() - start;
            if (buffer[rank][0][0] != 3.0f || buffer[rank][length - 1][LANES - 1] != 3.0f) wrong = 1;
        }
        if (rank == 0 && s >= 0) mean[s] = spent / calls;
        barrier();
    }
    return NULL;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int count, char **words) {
    for (int w = 1; w < count; w++) {
        size_t bytes = strtoull(words[w], NULL, 10);
        length = bytes / sizeof(lanes);
        if (!length) length = 1;
        for (int r = 0; r < RANKS; r++) {
            size_t room = length * sizeof(lanes);
            buffer[r] = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (buffer[r] == MAP_FAILED) return 1;
            madvise(buffer[r], room, MADV_HUGEPAGE);
        }
        calls = 200000000 / (long)bytes;
        if (calls > 20000) calls = 20000;
        if (calls < 2) calls = 2;
        pthread_t handles[RANKS];
        for (int r = 0; r < RANKS; r++)
            if (pthread_create(&handles[r], NULL, run, (void *)(intptr_t)r)) return 1;
        for (int r = 0; r < RANKS; r++) pthread_join(handles[r], NULL);
        if (wrong) {
            fprintf(stderr, "shm_allreduce: the sum is wrong\n");
            return 1;
        }
        qsort(mean, SAMPLES, sizeof *mean, ascending);
        printf("{\"bench\":\"shm_allreduce\",\"ranks\":%d,\"bytes\":%zu,\"microseconds\":%.2f,\"min\":%.2f,\"max\":%.2f}\n",
               RANKS, bytes, mean[SAMPLES / 2] * 1e6, mean[0] * 1e6, mean[SAMPLES - 1] * 1e6);
        for (int r = 0; r < RANKS; r++) munmap(buffer[r], length * sizeof(lanes));
    }
    return 0;
}
