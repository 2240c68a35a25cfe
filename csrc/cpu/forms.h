// The inner formulas. A form adds sum_e w_e f(a_e, b_e) over four hidden units to an accumulator,
// one (query, key) pair per lane. pack.h sets what a and b hold: exponentials, or the inputs
// themselves. Forms are always inlined; otherwise their operands would go through memory. The sums
// of kDepth hidden units are formed first and then added, which keeps long sums accurate.
#pragma once
#include "common/activation.h"
#include "common/limits.h"
#include "vec.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// Logistic activations: x = 1 + exp(y) of an exponent y = gain * (query + key), in three ways.

// a = exp(y_query), b = exp(y_key): one multiply-add, (E7).
struct Factored {
  template <class T>
  C10_ALWAYS_INLINE Vec<T> operator()(Vec<T> a, Vec<T> b) const {
    return fmadd(a, b, Vec<T>(T(1)));
  }
};

// The same, if the product may be too large to share a reciprocal among four.
struct Bounded {
  template <class T>
  C10_ALWAYS_INLINE Vec<T> operator()(Vec<T> a, Vec<T> b) const {
    return at_most(Factored{}(a, b), Vec<T>(Limits<T>::exp_quad));
  }
};

// a = exp(y_query), b = key: to the last bit what Bounded makes of exp(y_key), which is not stored.
// Keys for which `holds` is false are beyond its range.
template <class T>
struct Passing {
  Vec<T> gain, most;
  explicit Passing(T gain) : gain(gain), most(Limits<T>::factored / gain) {}
  C10_ALWAYS_INLINE Vec<T> operator()(Vec<T> a, Vec<T> b) const {
    return Bounded{}(a, exp_in_range(b, gain));
  }
  C10_ALWAYS_INLINE Vec<T> holds(const Vec<T> (&b)[4]) const {
    const Vec<T> b01 = at_least(b[0].abs(), b[1].abs()), b23 = at_least(b[2].abs(), b[3].abs());
    return at_least(b01, b23) < most;
  }
};

// The product alone, with the bound for reciprocals that two share.
template <class T>
struct BoundedProduct {
  C10_ALWAYS_INLINE Vec<T> exponential(Vec<T> a, Vec<T> b) const {
    return at_most(a * b, Vec<T>(Limits<T>::exp_pair));
  }
};

// a = query, b = key: the exponential of the sum, right for any inputs. Bounds of the exponent keep
// products in range, and those with small numbers normal ones, which take a fraction of the time.
template <class T>
struct Direct {
  Vec<T> gain, low, high;
  explicit Direct(T gain, T most = Limits<T>::quad)
      : gain(gain), low(-most / gain), high(most / gain) {}
  C10_ALWAYS_INLINE Vec<T> exponential(Vec<T> a, Vec<T> b) const {
    return exp_times(at_most(a + b, high), gain, low);
  }
  C10_ALWAYS_INLINE Vec<T> operator()(Vec<T> a, Vec<T> b) const {
    return exponential(a, b) + Vec<T>(T(1));
  }
};

// sum_e w_e / 2, rounded.
template <class V>
C10_ALWAYS_INLINE V half_sum(const V (&w)[4]) {
  return ((w[0] + w[1]) + (w[2] + w[3])) * V(0.5);
}

// sum_e w_e / x_e with one division, (E9), or sum_e w_e (1 / x_e - 1/2) if Centred. Then the terms
// of small inputs are small, as f is, and so are the rounding errors of their sum; centre() in
// weight.h adds up what that takes away. Sums over edges, which share no sum of w, are not. NaN if
// an operand is beyond the range of X.
template <class X, bool Centred>
struct SharedReciprocal {
  static constexpr int64_t kDepth = 32;
  X x;
  template <class V>
  C10_ALWAYS_INLINE void add(V& acc, const V (&a)[4], const V (&b)[4], const V (&w)[4]) const {
    const V x0 = x(a[0], b[0]), x1 = x(a[1], b[1]), x2 = x(a[2], b[2]), x3 = x(a[3], b[3]);
    const V d01 = x0 * x1, d23 = x2 * x3;
    const V n01 = fmadd(w[0], x1, w[1] * x0), n23 = fmadd(w[2], x3, w[3] * x2);
    const V all = d01 * d23, n = fmadd(n01, d23, n23 * d01);
    acc = fmadd(Centred ? at::vec::fnmadd(half_sum(w), all, n) : n, reciprocal(all), acc);
    if constexpr (requires { x.holds(b); })
      acc = V::blendv(V(std::numeric_limits<float>::quiet_NaN()), acc, x.holds(b));
  }
};

// sum_e w_e (2 / x_e - 1), with one division: twice the centred sum. Here each term is small where
// f is, and not only their sum: 2 - x_e has one rounding. It takes an operation more per hidden
// unit.
template <class X>
struct SharedDifference {
  static constexpr int64_t kDepth = 32;
  X x;
  template <class V>
  C10_ALWAYS_INLINE void add(V& acc, const V (&a)[4], const V (&b)[4], const V (&w)[4]) const {
    V xs[4], v[4];
#pragma GCC unroll 4
    for (int e = 0; e < 4; e++) {
      xs[e] = x(a[e], b[e]);
      v[e] = at::vec::fnmadd(w[e], xs[e], w[e] + w[e]);
    }
    const V d01 = xs[0] * xs[1], d23 = xs[2] * xs[3];
    const V n01 = fmadd(v[0], xs[1], v[1] * xs[0]), n23 = fmadd(v[2], xs[3], v[3] * xs[2]);
    acc = fmadd(fmadd(n01, d23, n23 * d01), reciprocal(d01 * d23), acc);
    if constexpr (requires { x.holds(b); })
      acc = V::blendv(V(std::numeric_limits<float>::quiet_NaN()), acc, x.holds(b));
  }
};

// Pointwise activations: `value` is f(x) of x = query + key, and `slope` is f'(x) ds for a gradient
// ds. NaN in x gives NaN in `value`. `slope` takes ds so that f' = 0 gives 0 even if ds is not
// finite. An activation of two straight lines has `below` as well: its slope where x <= 0;
// elsewhere it is ds.

template <class T>
struct Relu {
  C10_ALWAYS_INLINE Vec<T> value(Vec<T> x) const { return at_least(x, Vec<T>(T(0))); }
  C10_ALWAYS_INLINE Vec<T> slope(Vec<T> x, Vec<T> ds) const {
    const Vec<T> zero(T(0));
    return Vec<T>::blendv(ds, zero, x <= zero);
  }
  C10_ALWAYS_INLINE Vec<T> below(Vec<T>) const { return Vec<T>(T(0)); }
};

template <class T>
struct LeakyRelu {
  Vec<T> negative_slope;
  C10_ALWAYS_INLINE Vec<T> value(Vec<T> x) const {
    const Vec<T> zero(T(0));
    return fmadd(at_most(x, zero), negative_slope, at_least(x, zero));
  }
  C10_ALWAYS_INLINE Vec<T> slope(Vec<T> x, Vec<T> ds) const {
    return Vec<T>::blendv(ds, below(ds), x <= Vec<T>(T(0)));
  }
  C10_ALWAYS_INLINE Vec<T> below(Vec<T> ds) const { return ds * negative_slope; }
};

// Call f with the pointwise activation of a code. The switch has no default: the compiler reports
// an activation that is missing.
template <class T, class F>
inline void with_pointwise(Activation activation, T negative_slope, const F& f) {
  switch (activation) {
    case Activation::relu: return f(Relu<T>{});
    case Activation::leaky_relu: return f(LeakyRelu<T>{Vec<T>(negative_slope)});
    case Activation::tanh:
    case Activation::sigmoid: break;  // logistic
  }
  __builtin_trap();  // activation_of has rejected every other code
}

// sum_e w_e f(a_e + b_e), with a = query and b = key.
template <class Pointwise>
struct PointwiseSum {
  static constexpr int64_t kDepth = 32;
  Pointwise f;
  template <class V>
  C10_ALWAYS_INLINE void add(V& acc, const V (&a)[4], const V (&b)[4], const V (&w)[4]) const {
#pragma GCC unroll 4
    for (int e = 0; e < 4; e++) acc = fmadd(w[e], f.value(a[e] + b[e]), acc);
  }
};

// The plain product: dc_i . u_j in (E4).
struct Dot {
  static constexpr int64_t kDepth = 16;
  template <class V>
  C10_ALWAYS_INLINE void add(V& acc, const V (&a)[4], const V (&b)[4], const V (&)[4]) const {
#pragma GCC unroll 4
    for (int e = 0; e < 4; e++) acc = fmadd(a[e], b[e], acc);
  }
};

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
