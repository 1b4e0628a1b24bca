// How fast threads can sum buffers so that all of them end with the sum: each thread does its share, straight out of and
// into all buffers, between two spinning barriers. No library, no checks, nobody sleeps: the limit for one machine.
// There is a buffer for each rank, and a thread for each rank that has a core: no rank has to be given the floor.
// cc -O3 -march=native -pthread shm_allreduce.c -o shm_allreduce; ./shm_allreduce RANKS BYTES...
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
#include <unistd.h>

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
enum { MOST = 64, SAMPLES = 9 };

static int ranks, threads;
static lanes *buffer[MOST];
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
    if (atomic_fetch_add(&arrived, 1) == (unsigned)threads - 1) {
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

static void all_reduce(int thread) {
    size_t start = length * thread / threads, end = length * (thread + 1) / threads;
    barrier();  // all inputs are there
    if (ranks == 2) {
        lanes *a = buffer[0], *b = buffer[1];
        for (size_t i = start; i < end; i++) {
            lanes sum = a[i] + b[i];
            a[i] = sum;
            b[i] = sum;
        }
    } else {
        for (size_t i = start; i < end; i++) {
            lanes sum = buffer[0][i];
            for (int r = 1; r < ranks; r++) sum += buffer[r][i];
            for (int r = 0; r < ranks; r++) buffer[r][i] = sum;
        }
    }
    barrier();  // all shares are done
}

static void fill(int rank) {
    lanes value;
    for (int l = 0; l < LANES; l++) value[l] = rank + 1.0f;
    for (size_t i = 0; i < length; i++) buffer[rank][i] = value;
}

static void *run(void *argument) {
    int thread = (int)(intptr_t)argument;
    float sum = ranks * (ranks + 1) / 2;
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(thread, &cpus);
    sched_setaffinity(0, sizeof cpus, &cpus);
    for (int s = -1; s < SAMPLES; s++) {
        double spent = 0;
        for (long c = 0; c < calls; c++) {
            for (int r = thread; r < ranks; r += threads) fill(r);  // freshly written input, as gradients are; not timed
            barrier();
            double start = now();
            all_reduce(thread);
            spent += now() - start;
            for (int r = thread; r < ranks; r += threads)
                if (buffer[r][0][0] != sum || buffer[r][length - 1][LANES - 1] != sum) wrong = 1;
        }
        if (thread == 0 && s >= 0) mean[s] = spent / calls;
        barrier();
    }
    return NULL;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int count, char **words) {
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    ranks = count > 1 ? atoi(words[1]) : 0;
    if (ranks < 1 || ranks > MOST) {
        fprintf(stderr, "shm_allreduce RANKS BYTES...: 1 to %d ranks\n", MOST);
        return 2;
    }
    threads = ranks < cores ? ranks : (int)cores;
    for (int w = 2; w < count; w++) {
        size_t bytes = strtoull(words[w], NULL, 10);
        length = bytes / sizeof(lanes);
        if (!length) length = 1;
        for (int r = 0; r < ranks; r++) {
            size_t room = length * sizeof(lanes);
            buffer[r] = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (buffer[r] == MAP_FAILED) return 1;
            madvise(buffer[r], room, MADV_HUGEPAGE);
        }
        calls = 400000000 / (long)bytes / ranks;
        if (calls > 20000) calls = 20000;
        if (calls < 2) calls = 2;
        pthread_t handles[MOST];
        for (int t = 0; t < threads; t++)
            if (pthread_create(&handles[t], NULL, run, (void *)(intptr_t)t)) return 1;
        for (int t = 0; t < threads; t++) pthread_join(handles[t], NULL);
        if (wrong) {
            fprintf(stderr, "shm_allreduce: the sum is wrong\n");
            return 1;
        }
        qsort(mean, SAMPLES, sizeof *mean, ascending);
        printf("{\"bench\":\"shm_allreduce\",\"ranks\":%d,\"bytes\":%zu,\"microseconds\":%.2f,\"min\":%.2f,\"max\":%.2f}\n",
               ranks, bytes, mean[SAMPLES / 2] * 1e6, mean[0] * 1e6, mean[SAMPLES - 1] * 1e6);
        for (int r = 0; r < ranks; r++) munmap(buffer[r], length * sizeof(lanes));
    }
    return 0;
}
