// Comparisons, and the choice by a mask. Bound: reads and writes each element once.

#define COMPARE(name, operator)                                                                    \
    extern "C" __global__ void name(const T *a, View a_view, const T *b, View b_view, u8 *y,       \
                                    i64 n) {                                                       \
        for (i64 i = first(); i < n; i += step()) {                                                \
            y[i] = widen(a[a_view.at(i)]) operator widen(b[b_view.at(i)]);                         \
        }                                                                                          \
    }

COMPARE(eq, ==)
COMPARE(ne, !=)
COMPARE(lt, <)
COMPARE(le, <=)
COMPARE(gt, >)
COMPARE(ge, >=)

extern "C" __global__ void choose(const u8 *cond, View cond_view, const T *a, View a_view,
                                  const T *b, View b_view, T *y, i64 n) {
    for (i64 i = first(); i < n; i += step()) {
        y[i] = cond[cond_view.at(i)] ? a[a_view.at(i)] : b[b_view.at(i)];
    }
}
