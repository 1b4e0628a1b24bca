// What MPI itself needs for an all-reduction: the other side of `bench collectives --backend mpi`.
//
// mpirun -n RANKS mpi_coll BYTES SAMPLES CALLS: seconds of one MPI_Allreduce of so many bytes of float, sum, from one
// buffer to another: the slowest rank's mean over CALLS, the median of SAMPLES. As in our own benchmark, input is written
// and the ranks meet before each call, and neither is timed.
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double mean(float *in, float *out, int count, int calls) {
    double spent = 0, slowest;
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    for (int call = 0; call < calls; call++) {
        for (int i = 0; i < count; i++) in[i] = (float)(rank + 1);
        MPI_Barrier(MPI_COMM_WORLD);
        double start = MPI_Wtime();
        MPI_Allreduce(in, out, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        spent += MPI_Wtime() - start;
    }
    spent /= calls;
    MPI_Allreduce(&spent, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return slowest;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank, ranks;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (argc != 4) {
        if (rank == 0) fprintf(stderr, "usage: mpi_coll BYTES SAMPLES CALLS\n");
        MPI_Finalize();
        return 2;
    }
    int count = (int)(atol(argv[1]) / (long)sizeof(float)), samples = atoi(argv[2]), calls = atoi(argv[3]);
    float *in = malloc(count * sizeof(float)), *out = malloc(count * sizeof(float));
    double *times = malloc(samples * sizeof(double));
    mean(in, out, count, 3);
    for (int s = 0; s < samples; s++) times[s] = mean(in, out, count, calls);
    for (int i = 0; i < count; i++) {
        if (out[i] != (float)(ranks * (ranks + 1) / 2)) {
            fprintf(stderr, "element %d is %f\n", i, out[i]);
            MPI_Abort(MPI_COMM_WORLD, 1);
        }
    }
    qsort(times, samples, sizeof(double), ascending);
    if (rank == 0) printf("{\"microseconds\": %.3f}\n", times[samples / 2] * 1e6);
    MPI_Finalize();
    return 0;
}
