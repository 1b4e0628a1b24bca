// The kernels of the tests of streams and memory. `kernels.ptx` beside it was made of them by NVRTC 13.0 for compute_80.

extern "C" __global__ void fill(int *out, int value, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = value;
}

extern "C" __global__ void add(int *out, const int *a, const int *b, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a[i] + b[i];
}

extern "C" __global__ void increment(int *x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] += 1;
}

__device__ int counter = 7;

extern "C" __global__ void count(int *out) {
    out[0] = counter;
}

struct Buffers {
    int *out;
    const int *in[2];
    int scale;
};

extern "C" __global__ void add_scaled(Buffers buffers, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) buffers.out[i] = buffers.scale * (buffers.in[0][i] + buffers.in[1][i]);
}
