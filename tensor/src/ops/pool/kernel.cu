// Pooling and its gradients. A thread, or a group of threads, computes one element; nobody else writes
// it, and all additions have a fixed order.

typedef Compute<T> R;

// One axis of the windows: `Side` of the Rust code.
struct Side {
    i64 inp, out, kernel, stride, pad, dilation;
};

// Windows that walk over the padded plane, or equal parts of the plane.
struct Windows {
    Side side[2];
    i64 parts;
    // Whether an average divides by padded pixels too.
    i64 count_pad;
};

// Pixels of a window along an axis, `step` apart, and what they add to an average's divisor.
struct Run {
    i64 first, count, step, divisor;
};

__device__ inline i64 min_of(i64 a, i64 b) { return a < b ? a : b; }
__device__ inline i64 max_of(i64 a, i64 b) { return a > b ? a : b; }
// Rounded up, for a >= 0.
__device__ inline i64 ceil_of(i64 a, i64 b) { return (a + b - 1) / b; }

__device__ inline Run run_of(const Windows &w, int axis, i64 o) {
    const Side &s = w.side[axis];
    Run run;
    if (w.parts) {
        run.first = o * s.inp / s.out;
        run.count = ceil_of((o + 1) * s.inp, s.out) - run.first;
        run.step = 1;
        run.divisor = run.count;
        return run;
    }
    i64 start = o * s.stride;
    i64 skip = start >= s.pad ? 0 : min_of(ceil_of(s.pad - start, s.dilation), s.kernel);
    run.first = max_of(start + skip * s.dilation - s.pad, 0);
    i64 room = ceil_of(max_of(s.inp - run.first, 0), s.dilation);
    run.count = min_of(room, s.kernel - skip);
    run.step = s.dilation;
    run.divisor = w.count_pad ? min_of(s.kernel, s.inp + 2 * s.pad - start) : run.count;
    return run;
}

__device__ inline R share_of(const Run &rows, const Run &cols) {
    return R(1.0 / (f64)max_of(rows.divisor * cols.divisor, 1));
}

// The maximum of each window and where in its plane it stands: the first of equals or the first NaN;
// -inf and -1 for a window without pixels. Pixels are `down` and `right` apart, planes lie as in
// `planes`. Bound: reads each pixel once from memory, the windows' overlap from the cache.
extern "C" __global__ void max_forward(const T *x, View planes, i64 down, i64 right, Windows w, T *y,
                                       i64 *at, i64 n) {
    i64 outs = w.side[0].out * w.side[1].out;
    for (i64 i = first(); i < n; i += step()) {
        i64 plane = i / outs, o = i - plane * outs;
        i64 oi = o / w.side[1].out, oj = o - oi * w.side[1].out;
        Run rows = run_of(w, 0, oi), cols = run_of(w, 1, oj);
        const T *from = x + planes.at(plane);
        R best = -R(__int_as_float(0x7f800000));
        i64 best_at = -1;
        for (i64 r = 0; r < rows.count; r++) {
            i64 row = rows.first + r * rows.step;
            for (i64 c = 0; c < cols.count; c++) {
                i64 col = cols.first + c * cols.step;
                R v = widen(from[row * down + col * right]);
                if (best_at < 0 || v > best || (v != v && best == best)) {
                    best = v;
                    best_at = row * w.side[1].inp + col;
                }
            }
        }
        y[i] = narrow<T>(best);
        at[i] = best_at;
    }
}

// The mean of each window by a thread. Bound as for the maximum.
extern "C" __global__ void average_by_thread(const T *x, View planes, i64 down, i64 right, Windows w,
                                             T *y, i64 n) {
    i64 outs = w.side[0].out * w.side[1].out;
    for (i64 i = first(); i < n; i += step()) {
        i64 plane = i / outs, o = i - plane * outs;
        i64 oi = o / w.side[1].out, oj = o - oi * w.side[1].out;
        Run rows = run_of(w, 0, oi), cols = run_of(w, 1, oj);
        const T *from = x + planes.at(plane) + rows.first * down + cols.first * right;
        R sum = R(0);
        for (i64 r = 0; r < rows.count; r++) {
            for (i64 c = 0; c < cols.count; c++) sum += widen(from[r * down + c * right]);
        }
        y[i] = narrow<T>(sum * share_of(rows, cols));
    }
}

// The same by WARPS warps of a block of 256 threads, for large windows that lie apart.
template <int WARPS>
__device__ inline void average_by_group(const T *x, const View &planes, i64 down, i64 right,
                                        const Windows &w, T *y, i64 n) {
    __shared__ R of_warp[8];
    const int group = threadIdx.x / (32 * WARPS), place = threadIdx.x % (32 * WARPS);
    i64 outs = w.side[0].out * w.side[1].out;
    i64 groups = (i64)gridDim.x * (8 / WARPS);
    // All threads of a block walk equally often.
    for (i64 base = (i64)blockIdx.x * (8 / WARPS); base < n; base += groups) {
        i64 i = base + group;
        R sum = R(0), share = R(0);
        if (i < n) {
            i64 plane = i / outs, o = i - plane * outs;
            i64 oi = o / w.side[1].out, oj = o - oi * w.side[1].out;
            Run rows = run_of(w, 0, oi), cols = run_of(w, 1, oj);
            const T *from = x + planes.at(plane) + rows.first * down + cols.first * right;
            for (i64 e = place; e < rows.count * cols.count; e += 32 * WARPS) {
                i64 r = e / cols.count, c = e - r * cols.count;
                sum += widen(from[r * down + c * right]);
            }
            share = share_of(rows, cols);
        }
        for (int d = 16; d > 0; d /= 2) sum += __shfl_down_sync(0xffffffffu, sum, d);
        if (WARPS > 1) {
            if (place % 32 == 0) of_warp[threadIdx.x / 32] = sum;
            __syncthreads();
            sum = R(0);
            for (int k = 0; k < WARPS; k++) sum += of_warp[group * WARPS + k];
            __syncthreads();
        }
        if (place == 0 && i < n) y[i] = narrow<T>(sum * share);
    }
}

extern "C" __global__ void __launch_bounds__(256)
average_by_warp(const T *x, View planes, i64 down, i64 right, Windows w, T *y, i64 n) {
    average_by_group<1>(x, planes, down, right, w, y, n);
}

extern "C" __global__ void __launch_bounds__(256)
average_by_block(const T *x, View planes, i64 down, i64 right, Windows w, T *y, i64 n) {
    average_by_group<8>(x, planes, down, right, w, y, n);
}

// The windows that cover the pixel `at` of an axis: from `start` on, before `end`.
__device__ inline void covering(const Windows &w, int axis, i64 at, i64 &start, i64 &end) {
    const Side &s = w.side[axis];
    if (w.parts) {
        start = at * s.out / s.inp;
        end = ceil_of((at + 1) * s.out, s.inp);
        return;
    }
    i64 place = at + s.pad;
    start = ceil_of(max_of(place - s.kernel + 1, 0), s.stride);
    end = min_of(place / s.stride + 1, s.out);
}

// Each pixel sums the shares of the windows that cover it. Bound: writes each pixel once, and reads
// the gradients once from memory.
extern "C" __global__ void average_backward(const T *dy, View planes, i64 down, i64 right, Windows w,
                                            T *dx, i64 n) {
    i64 width = w.side[1].inp, pixels = w.side[0].inp * width;
    for (i64 i = first(); i < n; i += step()) {
        i64 plane = i / pixels, at = i - plane * pixels;
        i64 row = at / width, col = at - row * width;
        const T *from = dy + planes.at(plane);
        i64 i0, i1, j0, j1;
        covering(w, 0, row, i0, i1);
        covering(w, 1, col, j0, j1);
        R sum = R(0);
        for (i64 oi = i0; oi < i1; oi++) {
            Run rows = run_of(w, 0, oi);
            for (i64 oj = j0; oj < j1; oj++) {
                sum += widen(from[oi * down + oj * right]) * share_of(rows, run_of(w, 1, oj));
            }
        }
        dx[i] = narrow<T>(sum);
    }
}

// sum[plane, at] = the gradients that go there, in the order of the outputs: `outs` of them in each
// plane of `pixels`. A warp for each plane, which takes 32 outputs at a time; of those that meet at one
// pixel the first does the work. Bound: reads gradients and indices once, writes each pixel once and
// once more for the outputs; a plane takes outs / 32 steps, one behind the other.
extern "C" __global__ void __launch_bounds__(256)
max_backward(const T *dy, View dy_view, const i64 *at, View at_view, R *sum, i64 planes, i64 outs,
             i64 pixels, IndexFault *fault, int op) {
    const u32 all = 0xffffffffu;
    int lane = threadIdx.x % 32;
    for (i64 plane = first() / 32; plane < planes; plane += step() / 32) {
        R *to = sum + plane * pixels;
        for (i64 i = lane; i < pixels; i += 32) to[i] = R(0);
        __syncwarp();
        for (i64 base = 0; base < outs; base += 32) {
            i64 o = base + lane, index = -1;
            R v = R(0);
            if (o < outs) {
                index = at[at_view.at(plane * outs + o)];
                if (index != -1 && !in_range(index, pixels, fault, op)) index = -1;
                v = widen(dy[dy_view.at(plane * outs + o)]);
            }
            u32 same = __match_any_sync(all, index);
            bool adds = index >= 0 && lane == __ffs(same) - 1;
            R total = adds ? to[index] : R(0);
            for (u32 rest = same; __any_sync(all, rest != 0); rest &= rest - 1) {
                R next = __shfl_sync(all, v, rest ? __ffs(rest) - 1 : lane);
                if (rest) total += next;
            }
            if (adds) to[index] = total;
            __syncwarp();
        }
    }
}

// Zeros. Bound: writes each element once.
extern "C" __global__ void clear(R *sum, i64 n) {
    for (i64 i = first(); i < n; i += step()) sum[i] = R(0);
}

// Sums rounded to their type. Bound: reads and writes each element once.
extern "C" __global__ void round_sums(const R *sum, T *y, i64 n) {
    for (i64 i = first(); i < n; i += step()) y[i] = narrow<T>(sum[i]);
}
