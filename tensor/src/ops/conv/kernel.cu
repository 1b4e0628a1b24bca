// Convolutions: the lowering of windows to the columns of a matrix, direct sums for groups of few
// channels, and what stands around the products of matrices. No two threads write one element, and all
// sums have a fixed order.

typedef Compute<T> R;

// How windows walk along one axis: the tap t of the window o reads the pixel
// (o * stride + start + t * step) / divisor, where that is whole and lies in 0 .. inp.
struct Side {
    i64 inp, out, taps, stride, start, step, divisor;
};

// A tensor [n, c, h, w] under any strides.
struct Strides {
    i64 n, c, h, w;
};

// Where a weight lies: group, row within its group, depth, tap down, tap across.
struct Weights {
    i64 group, row, depth, down, across;
};

// The pixel that a tap reads, or -1.
__device__ inline i64 pixel_of(const Side &s, i64 o, i64 t) {
    i64 place = o * s.stride + s.start + t * s.step;
    if (s.divisor > 1) {
        if (place < 0 || place % s.divisor != 0) return -1;
        place /= s.divisor;
    }
    return place >= 0 && place < s.inp ? place : -1;
}

// 16 bytes of elements, which are stored at once.
#define VECTOR ((int)(16 / sizeof(T)))
struct alignas(16) Vector {
    T of[16 / sizeof(T)];
};

// columns[row, image, p] = what tap (row % taps) of channel (row / taps) reads for the output pixel
// `first_pixel + p`, for `images` images from the one at `x` on; 0 beyond the input, and for p from
// `pixels` up to `padded`, a multiple of VECTOR. A thread writes 16 bytes. Bound: writes each element
// of the columns once; reads as many elements, most of them from the cache.
extern "C" __global__ void lower(const T *x, Strides strides, Side down, Side across, T *columns,
                                 i64 n, i64 images, i64 first_pixel, i64 pixels, i64 padded) {
    i64 vectors = padded / VECTOR, taps = down.taps * across.taps;
    for (i64 i = first(); i < n; i += step()) {
        i64 line = i / vectors, p = (i - line * vectors) * VECTOR;
        i64 row = line / images, image = line - row * images;
        i64 channel = row / taps, tap = row - channel * taps;
        i64 t0 = tap / across.taps, t1 = tap - t0 * across.taps;
        const T *from = x + image * strides.n + channel * strides.c;
        i64 oh = (first_pixel + p) / across.out, ow = first_pixel + p - oh * across.out;
        Vector v;
        i64 h = pixel_of(down, oh, t0);
        for (int k = 0; k < VECTOR; k++) {
            i64 w = pixel_of(across, ow, t1);
            bool reads = p + k < pixels && h >= 0 && w >= 0;
            v.of[k] = reads ? from[h * strides.h + w * strides.w] : narrow<T>(R(0));
            if (++ow == across.out) {
                ow = 0;
                h = pixel_of(down, ++oh, t0);
            }
        }
        *(Vector *)(columns + i * VECTOR) = v;
    }
}

// y[group, row, depth, t0, t1] = the weight there. Bound: reads and writes each weight once.
extern "C" __global__ void pack(const T *w, Weights places, T *y, i64 n, i64 rows, i64 depth, i64 t0,
                                i64 t1) {
    for (i64 i = first(); i < n; i += step()) {
        i64 rest = i / t1, across = i - rest * t1;
        i64 next = rest / t0, down = rest - next * t0;
        rest = next / depth;
        i64 d = next - rest * depth;
        i64 group = rest / rows, row = rest - group * rows;
        y[i] = w[group * places.group + row * places.row + d * places.depth + down * places.down +
                 across * places.across];
    }
}

// y[image, channel, p] = the channel's bias, or 0 without one. Bound: writes each element once.
extern "C" __global__ void fill(const T *bias, i64 bias_step, T *y, i64 n, i64 pixels, i64 channels) {
    for (i64 i = first(); i < n; i += step()) {
        y[i] = bias ? bias[i / pixels % channels * bias_step] : narrow<T>(R(0));
    }
}

// Outputs, one below the other, that a thread of `direct` computes.
#define RUN 4

// y[image, channel, :, :] = the sum over the `depth` channels of x in the channel's group and over all
// taps, plus the bias: for groups of few channels. Of the `n` runs of up to four outputs, one below the
// other, a thread computes one, so that neighbouring threads read neighbouring pixels; where windows
// move by one pixel, each is read once for all four. Bound: reads and writes each element once from
// memory, 2 depth taps operations for each output.
extern "C" __global__ void direct(const T *x, Strides strides, Side down, Side across, const T *w,
                                  Weights places, const T *bias, i64 bias_step, T *y, i64 n,
                                  i64 groups, i64 rows, i64 depth) {
    i64 runs = (down.out + RUN - 1) / RUN;
    bool slides = down.divisor == 1 && down.stride == 1 && (down.step == 1 || down.step == -1);
    for (i64 i = first(); i < n; i += step()) {
        i64 rest = i / across.out, ow = i - rest * across.out;
        i64 plane = rest / runs, oh = (rest - plane * runs) * RUN;
        i64 image = plane / (groups * rows), channel = plane - image * (groups * rows);
        i64 group = channel / rows, row = channel - group * rows;
        const T *weights = w + group * places.group + row * places.row;
        R sum[RUN];
        R start = bias ? widen(bias[channel * bias_step]) : R(0);
        for (int k = 0; k < RUN; k++) sum[k] = start;
        for (i64 d = 0; d < depth; d++) {
            const T *from = x + image * strides.n + (group * depth + d) * strides.c;
            for (i64 t1 = 0; t1 < across.taps; t1++) {
                i64 w = pixel_of(across, ow, t1);
                if (w < 0) continue;
                const T *column = from + w * strides.w;
                const T *taps = weights + d * places.depth + t1 * places.across;
                if (slides) {
                    // The pixels under one tap; from tap to tap they move by one.
                    R under[RUN];
                    for (int k = 0; k < RUN; k++) {
                        i64 h = pixel_of(down, oh + k, 0);
                        under[k] = h >= 0 ? widen(column[h * strides.h]) : R(0);
                    }
                    bool forwards = down.step > 0;
                    for (i64 t0 = 0; t0 < down.taps; t0++) {
                        R weight = widen(taps[t0 * places.down]);
                        for (int k = 0; k < RUN; k++) sum[k] += weight * under[k];
                        if (t0 + 1 == down.taps) break;
                        i64 h = pixel_of(down, forwards ? oh + RUN - 1 : oh, t0 + 1);
                        R fresh = h >= 0 ? widen(column[h * strides.h]) : R(0);
                        if (forwards) {
                            for (int k = 0; k + 1 < RUN; k++) under[k] = under[k + 1];
                            under[RUN - 1] = fresh;
                        } else {
                            for (int k = RUN - 1; k > 0; k--) under[k] = under[k - 1];
                            under[0] = fresh;
                        }
                    }
                } else {
                    for (i64 t0 = 0; t0 < down.taps; t0++) {
                        R weight = widen(taps[t0 * places.down]);
                        for (int k = 0; k < RUN; k++) {
                            i64 h = pixel_of(down, oh + k, t0);
                            if (h >= 0) sum[k] += weight * widen(column[h * strides.h]);
                        }
                    }
                }
            }
        }
        T *to = y + (plane * down.out + oh) * across.out + ow;
        for (int k = 0; k < RUN && oh + k < down.out; k++) to[k * across.out] = narrow<T>(sum[k]);
    }
}

// Taps of one weight plane that a block of `weight_partial` sums.
#define TAPS 16

// partial[slice, channel, d, tap] = the sum over the slice's outputs of the gradient times the pixel
// that the tap reads: the blocks along x are the channels, the `depth` channels of x in their group and
// the cuts of 16 taps, those along y the slices of `length` outputs of all `n`. Bound: reads the
// gradient once for each cut and channel, the input from the cache for all but one tap; 2 depth taps
// operations for each output.
extern "C" __global__ void __launch_bounds__(256)
weight_partial(const T *x, Strides x_strides, Side down, Side across, const T *dy,
               Strides dy_strides, R *partial, i64 n, i64 length, i64 rows, i64 depth, i64 cuts) {
    __shared__ R of_warp[8];
    int taps = (int)(down.taps * across.taps), thread = threadIdx.x;
    i64 pair = blockIdx.x / cuts, channel = pair / depth, d = pair - channel * depth;
    int cut = (int)(blockIdx.x - pair * cuts) * TAPS;
    const T *plane = x + (channel / rows * depth + d) * x_strides.c;
    const T *grad = dy + channel * dy_strides.c;
    R sum[TAPS] = {};
    i64 pixels = down.out * across.out;
    i64 end = (blockIdx.y + 1) * length;
    end = end < n ? end : n;
    for (i64 i = blockIdx.y * length + thread; i < end; i += 256) {
        i64 image = i / pixels, p = i - image * pixels;
        i64 oh = p / across.out, ow = p - oh * across.out;
        R g = widen(grad[image * dy_strides.n + oh * dy_strides.h + ow * dy_strides.w]);
        const T *from = plane + image * x_strides.n;
        int t0 = cut / (int)across.taps, t1 = cut - t0 * (int)across.taps;
#pragma unroll
        for (int t = 0; t < TAPS; t++) {
            if (cut + t < taps) {
                i64 h = pixel_of(down, oh, t0), w = pixel_of(across, ow, t1);
                if (h >= 0 && w >= 0) sum[t] += g * widen(from[h * x_strides.h + w * x_strides.w]);
                if (++t1 == across.taps) {
                    t1 = 0;
                    t0++;
                }
            }
        }
    }
    R *to = partial + (i64)blockIdx.y * (gridDim.x / cuts) * taps + pair * taps;
#pragma unroll
    for (int t = 0; t < TAPS; t++) {
        R v = sum[t];
        for (int lanes = 16; lanes > 0; lanes /= 2) v += __shfl_down_sync(0xffffffffu, v, lanes);
        if (thread % 32 == 0) of_warp[thread / 32] = v;
        __syncthreads();
        if (thread == 0 && cut + t < taps) {
            R all = R(0);
            for (int warp = 0; warp < 8; warp++) all += of_warp[warp];
            to[cut + t] = all;
        }
        __syncthreads();
    }
}

// y = the sum of `slices` arrays of `n` elements, rounded; with `add`, and of what is there. Bound: reads
// each element once.
extern "C" __global__ void finish(const R *sums, i64 slices, T *y, i64 n, i64 add) {
    for (i64 i = first(); i < n; i += step()) {
        R sum = sums[i];
        for (i64 slice = 1; slice < slices; slice++) sum += sums[slice * n + i];
        y[i] = narrow<T>(add ? widen(y[i]) + sum : sum);
    }
}

// dx[image, channel, h, w] = the sum of what the windows that cover the pixel hold for it:
// columns[image, channel, t0, t1, p], p an output pixel of its window. `down` and `across` lead from
// the pixels of dx to the outputs. The images and channels are those of a part of dx, which lies
// `image_step` elements from image to image. Bound: reads each element of the columns once.
extern "C" __global__ void raise(const R *columns, Side down, Side across, T *dx, i64 n, i64 channels,
                                 i64 image_step) {
    i64 pixels = down.out * across.out, outputs = down.inp * across.inp;
    i64 taps = down.taps * across.taps;
    for (i64 i = first(); i < n; i += step()) {
        i64 plane = i / pixels, p = i - plane * pixels;
        i64 image = plane / channels, channel = plane - image * channels;
        i64 h = p / across.out, w = p - h * across.out;
        const R *from = columns + plane * taps * outputs;
        R sum = R(0);
        for (i64 t0 = 0; t0 < down.taps; t0++) {
            i64 oh = pixel_of(down, h, t0);
            if (oh < 0) continue;
            for (i64 t1 = 0; t1 < across.taps; t1++) {
                i64 ow = pixel_of(across, w, t1);
                if (ow < 0) continue;
                sum += from[(t0 * across.taps + t1) * outputs + oh * across.inp + ow];
            }
        }
        dx[image * image_step + channel * pixels + p] = narrow<T>(sum);
    }
}
