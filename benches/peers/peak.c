// How many f32 operations a second the cores can do: multiply-adds on registers, nothing else.
// cc -O3 -march=native -pthread peak.c -o peak; ./peak THREADS
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
// Independent chains: enough to hide the latency of a multiply-add on two ports, few enough for 16 registers.
enum { CHAINS = 12, SAMPLES = 9, MOST_THREADS = 256 };
static const long TURNS = 20000000;

static pthread_barrier_t together;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static float work(long turns, float first) {
    lanes sum[CHAINS], factor, term;
    for (int l = 0; l < LANES; l++) factor[l] = 0.9999f, term[l] = 1e-4f;
    for (int c = 0; c < CHAINS; c++)
        for (int l = 0; l < LANES; l++) sum[c][l] = first + c;
    for (long turn = 0; turn < turns; turn++)
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++) sum[c] = sum[c] * factor + term;
    float total = 0;
    for (int c = 0; c < CHAINS; c++)
        for (int l = 0; l < LANES; l++) total += sum[c][l];
    return total;
}

typedef struct {
    double seconds;
    float result;
} job;

static void *run(void *argument) {
    job *me = argument;
    me->result = work(TURNS / 20, 1.0f);
    pthread_barrier_wait(&together);
    double start = now();
    me->result += work(TURNS, me->result);
    me->seconds = now() - start;
    return NULL;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int count, char **words) {
    int threads = count > 1 ? atoi(words[1]) : 1;
    if (threads < 1 || threads > MOST_THREADS) {
        fprintf(stderr, "peak: THREADS is 1 to %d\n", MOST_THREADS);
        return 2;
    }
    double rates[SAMPLES];
    float result = 0;
    for (int s = 0; s < SAMPLES; s++) {
        job jobs[MOST_THREADS];
        pthread_t handles[MOST_THREADS];
        pthread_barrier_init(&together, NULL, threads);
        for (int t = 0; t < threads; t++)
            if (pthread_create(&handles[t], NULL, run, &jobs[t])) return 1;
        rates[s] = 0;
        for (int t = 0; t < threads; t++) {
            pthread_join(handles[t], NULL);
            rates[s] += 2.0 * CHAINS * LANES * TURNS / jobs[t].seconds * 1e-9;
            result += jobs[t].result;
        }
    }
    qsort(rates, SAMPLES, sizeof *rates, ascending);
    // The sum is printed so that the compiler cannot leave the work out.
    printf("{\"bench\":\"peak\",\"threads\":%d,\"gflops\":%.1f,\"min\":%.1f,\"max\":%.1f,\"sum\":%g}\n", threads,
           rates[SAMPLES / 2], rates[0], rates[SAMPLES - 1], result);
    return 0;
}
