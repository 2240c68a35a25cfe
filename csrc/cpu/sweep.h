// The sums of (E5) and (E6) over a tile of pairs. The factors of w are the same for a whole row and
// are multiplied in at the end. Lanes are over d; 4 keys and their gradients stay in registers for
// all queries of the tile.
#pragma once
#include "score.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// A gradient computes for K keys of one query what each pair adds to dw (`to_w`) and to dq and dk
// (`to_x`); for logistic activations, ds r and ds r (1 - r). If it is kFactored, to_x lacks the
// factor a b, which is left to the sums: those for dq are of to_x b, and are multiplied by a at the
// end, and those for dk the other way round. If it is kCentred, to_w is ds (2 r - 1) instead, and
// to_x is 4 times as large.

// r = 1 / x with one division per two keys (batch inversion). Where there is none to save, two
// reciprocals take no longer, and are right to fewer roundings.
template <int K, class T>
C10_ALWAYS_INLINE void paired_reciprocals(const Vec<T> (&x)[K], Vec<T> (&r)[K]) {
  if constexpr (K == 1 || !kDivides<T>) {
#pragma GCC unroll 4
    for (int c = 0; c < K; c++) r[c] = reciprocal(x[c]);
  } else {
#pragma GCC unroll 4
    for (int c = 0; c < K; c += 2) {
      const Vec<T> both = reciprocal(x[c] * x[c + 1]);
      r[c] = x[c + 1] * both;
      r[c + 1] = x[c] * both;
    }
  }
}

// Three forms of f', (E8), from rows of exponentials. The first makes it from g = 2 r - 1, which is
// -tanh of half the exponent: 4 r (1 - r) = 1 - g^2. While g is small, so are the errors of this
// form and of sums with g in the place of r. Where r is near 1 it is off by the rounding of g.
struct NearGradient {
  static constexpr bool kFactored = false, kCentred = true;
  template <int K, class V>
  C10_ALWAYS_INLINE void operator()(V a, const V (&b)[K], const V (&ds)[K], V (&to_w)[K],
                                    V (&to_x)[K]) const {
    const V one(1);
    V x[K], g[K];
#pragma GCC unroll 4
    for (int c = 0; c < K; c++) x[c] = Factored{}(a, b[c]);
    if constexpr (K == 1 || !kDivides<typename V::value_type>) {
#pragma GCC unroll 4
      for (int c = 0; c < K; c++) g[c] = fmadd(V(2), reciprocal(x[c]), -one);
    } else {
#pragma GCC unroll 4
      for (int c = 0; c < K; c += 2) {
        const V half = reciprocal(x[c] * x[c + 1]), both = half + half;
        g[c] = fmadd(x[c + 1], both, -one);
        g[c + 1] = fmadd(x[c], both, -one);
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < K; c++) {
      to_w[c] = ds[c] * g[c];
      to_x[c] = at::vec::fnmadd(to_w[c], g[c], ds[c]);
    }
  }
};

// That from a b r^2 is right to a few roundings of its own. Its factors must be in range apart.
struct FactoredGradient {
  static constexpr bool kFactored = true, kCentred = false;
  template <int K, class V>
  C10_ALWAYS_INLINE void operator()(V a, const V (&b)[K], const V (&ds)[K], V (&to_w)[K],
                                    V (&to_x)[K]) const {
    V x[K], r[K];
#pragma GCC unroll 4
    for (int c = 0; c < K; c++) x[c] = Factored{}(a, b[c]);
    paired_reciprocals(x, r);
#pragma GCC unroll 4
    for (int c = 0; c < K; c++) {
      to_w[c] = ds[c] * r[c];
      to_x[c] = to_w[c] * r[c];
    }
  }
};

// That from e r^2, with the exponential e at hand, takes any exponentials, and if they are formed
// from the sum, as Direct does, any inputs. With Near it is r (1 - r) up to r = 3/4, where that is
// the more accurate. NaN and infinities may be among the inputs if keys do not share reciprocals,
// through which a NaN would reach the next one; then a pair whose ds is 0 adds 0.
template <class X, bool Shared, bool Near>
struct ExponentialGradient {
  static constexpr bool kFactored = false, kCentred = false;
  X x;
  template <int K, class V>
  C10_ALWAYS_INLINE void operator()(V a, const V (&b)[K], const V (&ds)[K], V (&to_w)[K],
                                    V (&to_x)[K]) const {
    const V one(1), zero(0), near(4. / 3);
    V e[K], xs[K], r[K];
#pragma GCC unroll 4
    for (int c = 0; c < K; c++) {
      e[c] = x.exponential(a, b[c]);
      if (!Shared) e[c] = V::blendv(e[c], zero, ds[c] == zero);
      xs[c] = e[c] + one;
      if (!Shared) r[c] = reciprocal(xs[c]);
    }
    if (Shared) paired_reciprocals(xs, r);
#pragma GCC unroll 4
    for (int c = 0; c < K; c++) {
      to_w[c] = ds[c] * r[c];
      to_x[c] = to_w[c] * (Near ? V::blendv(e[c] * r[c], one - r[c], xs[c] > near) : e[c] * r[c]);
    }
  }
};

// Finite: no input is NaN or infinite, to which a ds of 0 must add 0 as well.
template <class Pointwise, bool Finite>
struct PointwiseGradient {
  static constexpr bool kFactored = false, kCentred = false;
  Pointwise f;
  template <int K, class V>
  void operator()(V a, const V (&b)[K], const V (&ds)[K], V (&to_w)[K], V (&to_x)[K]) const {
#pragma GCC unroll 4
    for (int c = 0; c < K; c++) {
      const V zero(0), sum = a + b[c], x = Finite ? sum : V::blendv(sum, zero, ds[c] == zero);
      to_w[c] = ds[c] * f.value(x);
      to_x[c] = f.slope(x, ds[c]);
    }
  }
};

template <class T>
struct Tile {
  Rows<T> query, key;  // as the variant reads them
  const T* ds;         // (rows, ld)
  int64_t ld, rows, keys, d;
};

// The sums to add to; null if not wanted.
template <class T>
struct Sums {
  T *query, *key;  // rows of d
  double* weight;  // (padded d), and the sum of ds after them
  // Factors of each hidden unit, null for 1.
  const T* query_factor = nullptr;
  const T* key_factor = nullptr;
};

template <class T>
C10_ALWAYS_INLINE Vec<T> times(Vec<T> x, const T* factor, int64_t t) {
  const Vec<T> zero(T(0));
  return factor ? Vec<T>::blendv(x * load(factor + t), zero, x == zero) : x;
}

// The sum over the keys, pairs first: a rounding of a long sum per four terms is enough.
template <int K, class V>
C10_ALWAYS_INLINE V sum_of(const V (&x)[K]) {
  if constexpr (K == 4)
    return (x[0] + x[1]) + (x[2] + x[3]);
  else
    return x[0];
}

// The sum for dq or dk of a row from that of to_x, and the row itself.
template <class Gradient, class V>
C10_ALWAYS_INLINE V finish_sum(V sum, V row) {
  return Gradient::kFactored ? sum * row : Gradient::kCentred ? sum * V(0.25) : sum;
}

// Add the sums of keys j .. j + K and hidden units t .. t + lanes over all queries to `grad_key`,
// and those over these keys to `query` (rows, ldq). Return those for dw.
template <int K, class T, class Gradient>
inline Vec<T> sweep_keys(const Gradient& gradient, const Tile<T>& tile, int64_t j, int64_t t,
                         int64_t count, T* query, int64_t ldq, T* grad_key, const T* factor) {
  using V = Vec<T>;
  V b[K], key[K], weight(T(0));
#pragma GCC unroll 4
  for (int c = 0; c < K; c++) {
    b[c] = load(tile.key[j + c] + t);
    key[c] = V(T(0));
  }
  for (int64_t i = 0; i < tile.rows; i++) {
    V ds[K], to_w[K], to_x[K];
#pragma GCC unroll 4
    for (int c = 0; c < K; c++) ds[c] = V(tile.ds[i * tile.ld + j + c]);
    const V a = load(tile.query[i] + t);
    gradient(a, b, ds, to_w, to_x);
    V x = to_x[0];
    if constexpr (Gradient::kFactored) {
      x = x * b[0];
#pragma GCC unroll 4
      for (int c = 1; c < K; c++) x = fmadd(to_x[c], b[c], x);
#pragma GCC unroll 4
      for (int c = 0; c < K; c++) key[c] = fmadd(to_x[c], a, key[c]);
    } else {
      x = sum_of(to_x);
#pragma GCC unroll 4
      for (int c = 0; c < K; c++) key[c] = key[c] + to_x[c];
    }
    (load(query + i * ldq) + x).store(query + i * ldq);
    weight = weight + sum_of(to_w);
  }
  if (grad_key)
#pragma GCC unroll 4
    for (int c = 0; c < K; c++) {
      const V sum = finish_sum<Gradient>(key[c], b[c]);
      add_to(grad_key + (j + c) * tile.d + t, times(sum, factor, t), count);
    }
  return weight;
}

// The sum of ds in the order in which a sweep sums ds r. If r is 1/2 throughout, as it is where a
// hidden unit of queries and keys is 0, sum ds - 2 sum ds r is 0, as the sum of ds tanh(0) is.
template <class T>
T sum_as_sweep(const T* ds, int64_t ld, int64_t rows, int64_t keys) {
  constexpr int64_t kAtOnce = 4;  // sums that do not wait for each other
  T total = 0;
  int64_t j = 0;
  for (; j + 4 * kAtOnce <= keys; j += 4 * kAtOnce) {
    T sums[kAtOnce] = {};
    for (int64_t i = 0; i < rows; i++)
      for (int64_t k = 0; k < kAtOnce; k++) {
        const T* p = ds + i * ld + j + 4 * k;
        sums[k] += (p[0] + p[1]) + (p[2] + p[3]);
      }
    for (int64_t k = 0; k < kAtOnce; k++) total += sums[k];
  }
  for (int64_t width = 4; width; width = width == 4 ? 1 : 0)
    for (; j + width <= keys; j += width) {
      T sum = 0;
      for (int64_t i = 0; i < rows; i++) {
        const T* p = ds + i * ld + j;
        sum += width == 4 ? (p[0] + p[1]) + (p[2] + p[3]) : p[0];
      }
      total += sum;
    }
  return total;
}

// Add sums of to_w; halved, those of ds (2 r - 1) are those of ds (r - 1/2).
template <class Gradient, class T>
inline void add_weight(double* out, Vec<T> weight) {
  alignas(64) T lanes[kLanes<T>];
  weight.store(lanes);
  for (int64_t l = 0; l < kLanes<T>; l++)
    out[l] += (Gradient::kCentred ? 0.5 : 1.0) * static_cast<double>(lanes[l]);
}

// One vector of hidden units at a time, for all keys of the tile. The sums of a tile are formed
// first and then added, which keeps long sums accurate.
template <class T, class Gradient>
void sweep_columns(const Gradient& gradient, const Tile<T>& tile, const Sums<T>& out) {
  constexpr int64_t L = kLanes<T>;
  alignas(64) T query[kTileRows * L];
  for (int64_t t = 0; t < tile.d; t += L) {
    const int64_t count = std::min(L, tile.d - t);
    std::fill(query, query + tile.rows * L, T(0));
    Vec<T> weight(T(0));
    int64_t j = 0;
    for (; j + 4 <= tile.keys; j += 4)
      weight =
          weight + sweep_keys<4>(gradient, tile, j, t, count, query, L, out.key, out.key_factor);
    for (; j < tile.keys; j++)
      weight =
          weight + sweep_keys<1>(gradient, tile, j, t, count, query, L, out.key, out.key_factor);
    if (out.query)
      for (int64_t i = 0; i < tile.rows; i++)
        add_to(out.query + i * tile.d + t,
               times(finish_sum<Gradient>(load(query + i * L), load(tile.query[i] + t)),
                     out.query_factor, t),
               count);
    if (out.weight) add_weight<Gradient>(out.weight + t, weight);
  }
}

// The same for a query or two, where nothing would stay in registers for long: keys are read, and
// their gradients written, row by row. `sums` is scratch for kNarrow + 1 rows.
template <class T, class Gradient>
void sweep_rows(const Gradient& gradient, const Tile<T>& tile, const Sums<T>& out, T* sums) {
  constexpr int64_t L = kLanes<T>;
  const int64_t ld = row_stride(tile.d);
  T* weight = sums + tile.rows * ld;
  std::fill(sums, weight + ld, T(0));
  for (int64_t j = 0; j < tile.keys;) {
    const bool four = j + 4 <= tile.keys;
    for (int64_t t = 0; t < tile.d; t += L) {
      const int64_t count = std::min(L, tile.d - t);
      const Vec<T> w =
          four ? sweep_keys<4>(gradient, tile, j, t, count, sums + t, ld, out.key, out.key_factor)
               : sweep_keys<1>(gradient, tile, j, t, count, sums + t, ld, out.key, out.key_factor);
      (load(weight + t) + w).store(weight + t);
    }
    j += four ? 4 : 1;
  }
  for (int64_t t = 0; t < tile.d; t += L) {
    const int64_t count = std::min(L, tile.d - t);
    if (out.query)
      for (int64_t i = 0; i < tile.rows; i++)
        add_to(out.query + i * tile.d + t,
               times(finish_sum<Gradient>(load(sums + i * ld + t), load(tile.query[i] + t)),
                     out.query_factor, t),
               count);
    if (out.weight) add_weight<Gradient>(out.weight + t, load(weight + t));
  }
}

// The spread of exponents up to which NearGradient is the more accurate: |q| + |k| up to 3 for
// tanh, as where both have a standard deviation of 0.3.
constexpr double kNear = 6;

template <class T>
void sweep(const Scorer<T>& scorer, const Tile<T>& tile, const Sums<T>& out, T* sums) {
  auto with = [&]<class Gradient>(const Gradient& gradient) {
    // of the sum of ds, what is left when that of ds / 2 was taken from the sums of ds r
    const double rest = Gradient::kCentred ? 1 - scorer.span() / 2 : 1;
    if (out.weight && rest != 0)
      out.weight[padded(tile.d)] +=
          rest * static_cast<double>(sum_as_sweep(tile.ds, tile.ld, tile.rows, tile.keys));
    tile.rows <= kNarrow ? sweep_rows(gradient, tile, out, sums)
                         : sweep_columns(gradient, tile, out);
  };
  switch (scorer.variant()) {
    case Variant::factored:
    case Variant::bounded:
      if (scorer.spread() <= kNear) return with(NearGradient{});
      if (scorer.spread() <= Limits<T>::quad) return with(FactoredGradient{});
      return with(ExponentialGradient<BoundedProduct<T>, true, false>{});
    case Variant::direct:
      return with(
          ExponentialGradient<Direct<T>, false, true>{Direct<T>(scorer.gain(), Limits<T>::pair)});
    case Variant::pointwise:
      return scorer.with_activation([&]<class Pointwise>(const Pointwise& f) {
        scorer.finite() ? with(PointwiseGradient<Pointwise, true>{f})
                        : with(PointwiseGradient<Pointwise, false>{f});
      });
    case Variant::passing: break;  // for scores alone
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
