// Scores and their tangents for every pair of a panel, (E10): one reciprocal serves both. The
// layout is that of panel_sums: lanes over keys, which are transposed to (d, 32).
#pragma once
#include "forms.h"
#include "rows.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// A form adds w f to `sum`, and w f' (da + db) + dw f to `tangent`, over four hidden units; da and
// db are the tangents of query and key, multiplied by w. Without a tangent of w (`Weight` false) dw
// is not read.

// Four quotients 1 / x with one division, or with two where registers are few.
template <class V>
C10_ALWAYS_INLINE void reciprocals(const V (&x)[4], V (&r)[4]) {
  const V one(1), x01 = x[0] * x[1], x23 = x[2] * x[3];
  V r01, r23;
#if defined(CPU_CAPABILITY_AVX512)
  const V all = one / (x01 * x23);
  r01 = x23 * all;
  r23 = x01 * all;
#else
  r01 = one / x01;
  r23 = one / x23;
#endif
  r[0] = x[1] * r01;
  r[1] = x[0] * r01;
  r[2] = x[3] * r23;
  r[3] = x[2] * r23;
}

// f = 1 - span r and f' = span gain r (1 - r): adds w r, and r (c (1 - r) - dw / gain) for
// c = da + db. The caller divides dw by the gain and multiplies by the constants, (E11).
template <class X, bool Weight>
struct LogisticTangent {
  X x;
  template <class V>
  C10_ALWAYS_INLINE void add(V& sum, V& tangent, const V (&a)[4], const V (&b)[4], const V (&w)[4],
                             const V (&c)[4], const V (&dw)[4]) const {
    V r[4];
    reciprocals({x(a[0], b[0]), x(a[1], b[1]), x(a[2], b[2]), x(a[3], b[3])}, r);
#pragma GCC unroll 4
    for (int e = 0; e < 4; e++) {
      sum = fmadd(w[e], r[e], sum);
      V slope = at::vec::fnmadd(c[e], r[e], c[e]);
      if constexpr (Weight) slope = slope - dw[e];
      tangent = fmadd(slope, r[e], tangent);
    }
  }
};

// The same from e = exp(gain x), with 1 - r as e r, which does not cancel.
template <class T, bool Weight>
struct DirectTangent {
  Direct<T> x;
  template <class V>
  C10_ALWAYS_INLINE void add(V& sum, V& tangent, const V (&a)[4], const V (&b)[4], const V (&w)[4],
                             const V (&c)[4], const V (&dw)[4]) const {
    V exponentials[4], xs[4], r[4];
#pragma GCC unroll 4
    for (int e = 0; e < 4; e++) {
      exponentials[e] = x.exponential(a[e], b[e]);
      xs[e] = exponentials[e] + V(T(1));
    }
    reciprocals(xs, r);
#pragma GCC unroll 4
    for (int e = 0; e < 4; e++) {
      sum = fmadd(w[e], r[e], sum);
      V slope = c[e] * (exponentials[e] * r[e]);
      if constexpr (Weight) slope = slope - dw[e];
      tangent = fmadd(slope, r[e], tangent);
    }
  }
};

template <class Pointwise, bool Weight>
struct PointwiseTangent {
  Pointwise f;
  template <class V>
  C10_ALWAYS_INLINE void add(V& sum, V& tangent, const V (&a)[4], const V (&b)[4], const V (&w)[4],
                             const V (&c)[4], const V (&dw)[4]) const {
#pragma GCC unroll 4
    for (int e = 0; e < 4; e++) {
      const V x = a[e] + b[e], value = f.value(x);
      sum = fmadd(w[e], value, sum);
      tangent = tangent + f.slope(x, c[e]);
      if constexpr (Weight) tangent = fmadd(dw[e], value, tangent);
    }
  }
};

// What a form reads: rows of queries `ld` apart and panels of keys, each with its tangents, and w.
template <class T>
struct TangentOperands {
  const T *query, *query_tangent;
  int64_t ld;
  const T *key, *key_tangent;
  const T *weight, *weight_tangent;
  int64_t depth;
};

template <class T>
struct PairSums {
  T *sum, *tangent;  // (rows, ld)
  int64_t ld;
};

// Sums over this many hidden units are formed first and then added, which keeps long sums accurate.
constexpr int64_t kTangentDepth = 128;

// As many queries as registers allow.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kTangentRows = 4;
#else
constexpr int kTangentRows = 2;
#endif

// R queries r .. r + R by one vector of keys, j .. j + lanes, over the hidden units t0 .. t1.
template <int R, class T, class Form>
inline void tangent_block(const Form& form, const TangentOperands<T>& in, int64_t r, int64_t j,
                          int64_t t0, int64_t t1, const PairSums<T>& out) {
  using V = Vec<T>;
  V sum[R], tangent[R];  // in registers, because every loop over them is unrolled
#pragma GCC unroll 4
  for (int i = 0; i < R; i++) sum[i] = tangent[i] = V(T(0));
  for (int64_t t = t0; t < t1; t += 4) {
    V b[4], db[4], w[4], dw[4];
#pragma GCC unroll 4
    for (int e = 0; e < 4; e++) {
      b[e] = load(in.key + (t + e) * kPanel + j);
      db[e] = load(in.key_tangent + (t + e) * kPanel + j);
      w[e] = V(in.weight[t + e]);
      dw[e] = V(in.weight_tangent[t + e]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < R; i++) {
      const int64_t at = (r + i) * in.ld + t;
      V a[4], c[4];
#pragma GCC unroll 4
      for (int e = 0; e < 4; e++) {
        a[e] = V(in.query[at + e]);
        c[e] = V(in.query_tangent[at + e]) + db[e];
      }
      form.add(sum[i], tangent[i], a, b, w, c, dw);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; i++) {
    T *s = out.sum + (r + i) * out.ld + j, *ds = out.tangent + (r + i) * out.ld + j;
    (t0 ? load(s) + sum[i] : sum[i]).store(s);
    (t0 ? load(ds) + tangent[i] : tangent[i]).store(ds);
  }
}

// All pairs of `rows` queries and `keys` keys of a panel; up to the next whole vector of keys, out
// is undefined.
template <class T, class Form>
inline void tangent_sums(const Form& form, const TangentOperands<T>& in, int64_t rows, int64_t keys,
                         const PairSums<T>& out) {
  for (int64_t t = 0; t < in.depth; t += kTangentDepth) {
    const int64_t end = std::min(in.depth, t + kTangentDepth);
    int64_t r = 0;
    for (; r + kTangentRows <= rows; r += kTangentRows)
      for (int64_t j = 0; j < keys; j += kLanes<T>)
        tangent_block<kTangentRows>(form, in, r, j, t, end, out);
    for (; r < rows; r++)
      for (int64_t j = 0; j < keys; j += kLanes<T>) tangent_block<1>(form, in, r, j, t, end, out);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
