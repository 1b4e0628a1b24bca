// Cross-entropy. Bound: bytes; the logits are read once, a second time from a cache where labels are
// smoothed, and their gradient is written once.

// The loss of a row with the target t is on w[t] nll[t] + off Σ w[c] nll[c], where nll are the
// negative log-probabilities. Targets that are `ignore` do not count.
struct Terms {
    f64 on;
    f64 off;
    i64 classes;
    i64 ignore;
    // The weights of the classes, or 0 where all are 1.
    const T *weight;
    i64 weight_step;
    // Σ w[c], where there are weights and labels are smoothed.
    const f64 *all_weights;

    __device__ R weight_of(i64 c) const { return weight ? widen(weight[c * weight_step]) : R(1); }
    __device__ R all() const { return all_weights ? R(*all_weights) : R(classes); }
};

struct Targets {
    const i64 *targets;
    View view;
    IndexFault *fault;
    i64 op;
};

// The sums over all threads of a block, in the first one. A block has at most 512 threads.
__device__ inline void sum_block(f64 (&sums)[2]) {
    __shared__ f64 part[2][MOST_THREADS];
    int threads = blockDim.x * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (int k = 0; k < 2; k++) part[k][thread] = sums[k];
    __syncthreads();
    for (int half = threads / 2; half > 0; half /= 2) {
        if (thread < half) {
            for (int k = 0; k < 2; k++) part[k][thread] += part[k][thread + half];
        }
        __syncthreads();
    }
    for (int k = 0; k < 2; k++) sums[k] = part[k][thread];
}

// Σ w[c], by one block.
extern "C" __global__ void sum_weights(const T *weight, i64 weight_step, i64 classes, f64 *sum) {
    f64 sums[2] = {0, 0};
    for (i64 c = threadIdx.x; c < classes; c += blockDim.x) sums[0] += f64(widen(weight[c * weight_step]));
    sum_block(sums);
    if (threadIdx.x == 0) *sum = sums[0];
}

// For each row its loss, and for the backward pass (maximum, ln Σ exp(x - maximum)); for each block
// the sums of its losses and of its targets' weights.
template <int N>
__device__ inline void forward(const T *x, const Rows &x_rows, const Targets &targets,
                               const Terms &terms, R *saved, R *losses, f64 *partial, i64 rows,
                               i64 width) {
    f64 sums[2] = {0, 0};
    FOR_ROWS(start, rows) {
        i64 row = start + threadIdx.y;
        const T *from = x + place(x_rows.lead, row);
        Held<N, 1, (N > 1)> held(from, x_rows.inner, row < rows ? width : 0, minus_infinity());
        Exponentials e = exponentials<N>(held);
        R log_sum = log(e.sum);
        R off = R(terms.off), spread = R(0);
        if (off != R(0)) {
            held.each([&](i64 first, const R (&v)[N]) {
#pragma unroll
                for (int i = 0; i < N; i++) {
                    i64 c = first + i;
                    if (held.has(c)) spread += terms.weight_of(c) * (e.max - v[i]);
                }
            });
            spread = over_group<Plus>(spread);
        }
        if (row >= rows || threadIdx.x > 0) continue;
        saved[2 * row] = e.max;
        saved[2 * row + 1] = log_sum;
        R loss = R(0);
        i64 target = targets.targets[place(targets.view, row)];
        if (target != terms.ignore) {
            if (in_range(target, terms.classes, targets.fault, int(targets.op))) {
                R weight = terms.weight_of(target);
                R of_target = e.max - widen(from[place(x_rows.inner, target)]);
                loss = R(terms.on) * weight * (log_sum + of_target);
                if (off != R(0)) loss += off * (spread + terms.all() * log_sum);
                sums[1] += f64(weight);
            } else {
                loss = undefined<R>();
            }
        }
        if (losses) losses[row] = loss;
        sums[0] += f64(loss);
    }
    sum_block(sums);
    if (threadIdx.x == 0 && threadIdx.y == 0) {
        partial[2 * blockIdx.x] = sums[0];
        partial[2 * blockIdx.x + 1] = sums[1];
    }
}

// The sum of all weights and, where it is asked for, that of all losses, which a mean divides by the
// former. By one block.
extern "C" __global__ void cross_entropy_total(const f64 *partial, i64 blocks, int mean, R *loss,
                                               f64 *total_weight) {
    f64 sums[2] = {0, 0};
    for (i64 i = threadIdx.x; i < blocks; i += blockDim.x) {
        sums[0] += partial[2 * i];
        sums[1] += partial[2 * i + 1];
    }
    sum_block(sums);
    if (threadIdx.x == 0) {
        *total_weight = sums[1];
        if (loss) *loss = R(mean ? sums[0] / sums[1] : sums[0]);
    }
}

// The gradient of the logits: that of the loss times
// softmax (on w[t] + off Σ w) - on w[t] [c = t] - off w[c].
template <int N>
__device__ inline void backward(const R *grad, const View &grad_view, int mean,
                                const f64 *total_weight, const T *x, const Rows &x_rows,
                                const R *saved, i64 saved_row, i64 saved_column,
                                const Targets &targets, const Terms &terms, T *dx, i64 rows,
                                i64 width) {
    R scale = mean ? R(1.0 / *total_weight) : R(1);
    for (i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y; row < rows;
         row += (i64)gridDim.x * blockDim.y) {
        const T *from = x + place(x_rows.lead, row);
        T *to = dx + row * width;
        Row<N, (N > 1)> logits(from, x_rows.inner, width);
        i64 chunks = logits.chunks();
        i64 target = targets.targets[place(targets.view, row)];
        bool counts = target != terms.ignore;
        bool known = !counts || (threadIdx.x > 0 ? target >= 0 && target < terms.classes
                                                 : in_range(target, terms.classes, targets.fault,
                                                            int(targets.op)));
        if (!counts || !known) {
            R fill = known ? R(0) : undefined<R>();
            for (i64 chunk = threadIdx.x; chunk < chunks; chunk += blockDim.x) {
                R out[N];
#pragma unroll
                for (int i = 0; i < N; i++) out[i] = fill;
                logits.write(to, logits.first(chunk), out);
            }
            continue;
        }
        R max = saved[row * saved_row], log_sum = saved[row * saved_row + saved_column];
        R of_loss = grad[place(grad_view, row)] * scale;
        R hit = of_loss * (R(terms.on) * terms.weight_of(target));
        R off = of_loss * R(terms.off);
        bool smooth = terms.off != 0;
        R all = smooth ? hit + off * terms.all() : hit;
        for (i64 chunk = threadIdx.x; chunk < chunks; chunk += blockDim.x) {
            R v[N], out[N];
            i64 first = logits.first(chunk);
            logits.read(first, v, R(0));
#pragma unroll
            for (int i = 0; i < N; i++) {
                i64 c = first + i;
                out[i] = exp(v[i] - max - log_sum) * all;
                if (smooth && logits.has(c)) out[i] -= off * terms.weight_of(c);
                if (c == target) out[i] -= hit;
            }
            logits.write(to, first, out);
        }
    }
}

#define ENTROPY_KERNELS(suffix, N)                                                                 \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)                                  \
    cross_entropy_##suffix(const T *x, Rows x_rows, Targets targets, Terms terms, R *saved,        \
                           R *losses, f64 *partial, i64 rows, i64 width) {                         \
        forward<N>(x, x_rows, targets, terms, saved, losses, partial, rows, width);                \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)                                  \
    cross_entropy_backward_##suffix(const R *grad, View grad_view, int mean,                       \
                                    const f64 *total_weight, const T *x, Rows x_rows,              \
                                    const R *saved, i64 saved_row, i64 saved_column,               \
                                    Targets targets, Terms terms, T *dx, i64 rows, i64 width) {    \
        backward<N>(grad, grad_view, mean, total_weight, x, x_rows, saved, saved_row, saved_column, \
                    targets, terms, dx, rows, width);                                              \
    }

ENTROPY_KERNELS(wide, WIDE)
ENTROPY_KERNELS(single, 1)
