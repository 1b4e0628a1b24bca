// Optimizer steps. Bound: each array is read and written once; for SGD with momentum in f32 that is
// 20 bytes for each parameter.

typedef Compute<T> R;

// One step of SGD; `m` is null without momentum. The first step sets the momentum and does not read
// it.
extern "C" __global__ void sgd(T *p, const U *g, R *m, i64 n, int is_first, int nesterov,
                               double lr, double decay, double momentum, double fresh) {
    for (i64 i = first(); i < n; i += step()) {
        R old = widen(p[i]);
        R grad = widen(g[i]) + R(decay) * old;
        R move = grad;
        if (m) {
            R kept = is_first ? grad : R(momentum) * m[i] + R(fresh) * grad;
            m[i] = kept;
            move = nesterov ? grad + R(momentum) * kept : kept;
        }
        p[i] = narrow<T>(old - R(lr) * move);
    }
}

// One step of Adam or AdamW. `rate` and `root` hold the corrections of the bias.
extern "C" __global__ void adam(T *p, const U *g, R *m, R *v, i64 n, double coupled, double shrink,
                                double fresh1, double keep2, double fresh2, double rate,
                                double root, double eps) {
    for (i64 i = first(); i < n; i += step()) {
        R old = widen(p[i]);
        R grad = widen(g[i]) + R(coupled) * old;
        R mean = m[i] + R(fresh1) * (grad - m[i]);
        R square = R(keep2) * v[i] + R(fresh2) * grad * grad;
        m[i] = mean;
        v[i] = square;
        R denominator = sqrt(square) * R(root) + R(eps);
        p[i] = narrow<T>(old * R(shrink) - R(rate) * mean / denominator);
    }
}

// x times the number, which is in the card's memory where `place` is not null.
extern "C" __global__ void scale(T *x, i64 n, double number, const double *place) {
    R factor = R(place ? *place : number);
    for (i64 i = first(); i < n; i += step()) {
        x[i] = narrow<T>(widen(x[i]) * factor);
    }
}
