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
