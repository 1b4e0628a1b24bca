// The flags for an index out of range: what kernels of this card have noted, what came along with data
// of other cards; two places where such flags of another card arrive, and two from which they leave.
extern "C" {
__device__ IndexFault index_faults[6];
}

// Takes over the first of the flags that another card has sent, unless there is one.
extern "C" __global__ void index_faults_arrive(IndexFault *faults) {
    for (int i = 2; i < 4; i++) {
        if (faults[i].set && !faults[1].set) faults[1] = faults[i];
    }
}
