// The inner formulas. A form adds sum_e w_e f(a_e, b_e) over four hidden units to an accumulator,
// one (query, key) pair a lane. What a and b hold (exponentials, or the inputs themselves) is set
// by pack.h. They are always inlined: the operands of a call would go through memory.
#pragma once
#include "common/limits.h"
#include "vec.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// a = exp(y_query), b = exp(y_key): x = 1 + exp(y) is one multiply-add, (E7).
struct Factored {
  template <class T>
  C10_ALWAYS_INLINE Vec<T> operator()(Vec<T> a, Vec<T> b) const {
    return fmadd(a, b, Vec<T>(T(1)));
  }
};

// The same, where the product may be too large to share a reciprocal.
struct Bounded {
  template <class T>
  C10_ALWAYS_INLINE Vec<T> operator()(Vec<T> a, Vec<T> b) const {
    return at_most(Factored{}(a, b), Vec<T>(Limits<T>::exp_quad));
  }
};

// a = query, b = key: the exponential of the sum, right for any inputs.
template <class T>
struct Direct {
  Vec<T> gain, high;
  explicit Direct(T gain) : gain(gain), high(Limits<T>::quad / gain) {}
  C10_ALWAYS_INLINE Vec<T> operator()(Vec<T> a, Vec<T> b) const {
    return exp_plus(at_most(a + b, high), gain, Vec<T>(T(1)));
  }
};

// sum_e w_e / x_e with one division, (E9).
template <class X>
struct SharedReciprocal {
  X x;
  template <class V>
  C10_ALWAYS_INLINE void add(V& acc, const V (&a)[4], const V (&b)[4], const V (&w)[4]) const {
    const V x0 = x(a[0], b[0]), x1 = x(a[1], b[1]), x2 = x(a[2], b[2]), x3 = x(a[3], b[3]);
    const V n01 = fmadd(w[0], x1, w[1] * x0), d01 = x0 * x1;
    const V n23 = fmadd(w[2], x3, w[3] * x2), d23 = x2 * x3;
    acc = acc + fmadd(n01, d23, n23 * d01) / (d01 * d23);
  }
};

// max(x, 0), and with Leaky + slope * min(x, 0), of x = a + b.
template <class T, bool Leaky>
struct Rectified {
  Vec<T> slope;
  C10_ALWAYS_INLINE Vec<T> operator()(Vec<T> x) const {
    const Vec<T> zero(T(0)), up = at_least(x, zero);
    if constexpr (Leaky) return fmadd(at_most(x, zero), slope, up);
    return up;
  }
  C10_ALWAYS_INLINE void add(Vec<T>& acc, const Vec<T> (&a)[4], const Vec<T> (&b)[4],
                             const Vec<T> (&w)[4]) const {
#pragma GCC unroll 4
    for (int e = 0; e < 4; e++) acc = fmadd(w[e], (*this)(a[e] + b[e]), acc);
  }
};

// The plain product: dc_i . u_j in (E4).
struct Dot {
  template <class V>
  C10_ALWAYS_INLINE void add(V& acc, const V (&a)[4], const V (&b)[4], const V (&)[4]) const {
#pragma GCC unroll 4
    for (int e = 0; e < 4; e++) acc = fmadd(a[e], b[e], acc);
  }
};

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
