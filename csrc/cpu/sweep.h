// The sums of (E5) and (E6) over a tile of pairs. The factors of w are the same for a whole row and
// are multiplied in at the end. Lanes are over d; 4 keys and their gradients stay in registers for
// all queries of the tile.
#pragma once
#include "score.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// A gradient computes for K keys of one query what each pair adds to dw (`to_w`) and to dq and dk
// (`to_x`).

// r = 1 / x with one division per two keys (batch inversion).
template <int K, class V>
C10_ALWAYS_INLINE void paired_reciprocals(const V (&x)[K], V (&r)[K]) {
  const V one(1);
  if constexpr (K == 1) {
    r[0] = one / x[0];
  } else {
#pragma GCC unroll 4
    for (int c = 0; c < K; c += 2) {
      const V both = one / (x[c] * x[c + 1]);
      r[c] = x[c + 1] * both;
      r[c + 1] = x[c] * both;
    }
  }
}

// f' is r (1 - r), (E8), which is off by the rounding of r.
template <class X>
struct LogisticGradient {
  X x;
  template <int K, class V>
  void operator()(V a, const V (&b)[K], const V (&ds)[K], V (&to_w)[K], V (&to_x)[K]) const {
    V xs[K], r[K];
#pragma GCC unroll 4
    for (int c = 0; c < K; c++) xs[c] = x(a, b[c]);
    paired_reciprocals(xs, r);
#pragma GCC unroll 4
    for (int c = 0; c < K; c++) {
      to_w[c] = ds[c] * r[c];
      to_x[c] = at::vec::fnmadd(to_w[c], r[c], to_w[c]);
    }
  }
};

// The same from e = exp(gain x), for any inputs: f' is e r^2, right to a few roundings of its own
// even near r = 1. NaN and infinities may be among the inputs if keys do not share reciprocals,
// through which a NaN would reach the next one; then a pair whose ds is 0 adds 0.
template <class T, bool Shared>
struct DirectGradient {
  Direct<T> x;
  template <int K, class V>
  void operator()(V a, const V (&b)[K], const V (&ds)[K], V (&to_w)[K], V (&to_x)[K]) const {
    const V one(1), zero(T(0));
    V e[K], xs[K], r[K];
#pragma GCC unroll 4
    for (int c = 0; c < K; c++) {
      e[c] = x.exponential(a, b[c]);
      if (!Shared) e[c] = V::blendv(e[c], zero, ds[c] == zero);
      xs[c] = e[c] + one;
      if (!Shared) r[c] = one / xs[c];
    }
    if (Shared) paired_reciprocals(xs, r);
#pragma GCC unroll 4
    for (int c = 0; c < K; c++) {
      to_w[c] = ds[c] * r[c];
      to_x[c] = to_w[c] * (e[c] * r[c]);
    }
  }
};

// Finite: no input is NaN or infinite, to which a ds of 0 must add 0 as well.
template <class Pointwise, bool Finite>
struct PointwiseGradient {
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
  double* weight;  // (padded d)
  // Factors of each hidden unit, null for 1.
  const T* query_factor = nullptr;
  const T* key_factor = nullptr;
};

template <class T>
C10_ALWAYS_INLINE Vec<T> times(Vec<T> x, const T* factor, int64_t t) {
  const Vec<T> zero(T(0));
  return factor ? Vec<T>::blendv(x * load(factor + t), zero, x == zero) : x;
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
    gradient(load(tile.query[i] + t), b, ds, to_w, to_x);
    V q = load(query + i * ldq);
#pragma GCC unroll 4
    for (int c = 0; c < K; c++) {
      weight = weight + to_w[c];
      q = q + to_x[c];
      key[c] = key[c] + to_x[c];
    }
    q.store(query + i * ldq);
  }
  if (grad_key)
#pragma GCC unroll 4
    for (int c = 0; c < K; c++)
      add_to(grad_key + (j + c) * tile.d + t, times(key[c], factor, t), count);
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
      for (int64_t c = 0; c < 4; c++)
        for (int64_t k = 0; k < kAtOnce; k++) sums[k] += ds[i * ld + j + 4 * k + c];
    for (int64_t k = 0; k < kAtOnce; k++) total += sums[k];
  }
  for (int64_t width = 4; width; width = width == 4 ? 1 : 0)
    for (; j + width <= keys; j += width) {
      T sum = 0;
      for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < width; c++) sum += ds[i * ld + j + c];
      total += sum;
    }
  return total;
}

template <class T>
inline void add_weight(double* out, Vec<T> weight) {
  alignas(64) T lanes[kLanes<T>];
  weight.store(lanes);
  for (int64_t l = 0; l < kLanes<T>; l++) out[l] += static_cast<double>(lanes[l]);
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
        add_to(out.query + i * tile.d + t, times(load(query + i * L), out.query_factor, t), count);
    if (out.weight) add_weight(out.weight + t, weight);
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
        add_to(out.query + i * tile.d + t, times(load(sums + i * ld + t), out.query_factor, t),
               count);
    if (out.weight) add_weight(out.weight + t, load(weight + t));
  }
}

template <class T>
void sweep(const Scorer<T>& scorer, const Tile<T>& tile, const Sums<T>& out, T* sums) {
  auto with = [&](const auto& gradient) {
    tile.rows <= kNarrow ? sweep_rows(gradient, tile, out, sums)
                         : sweep_columns(gradient, tile, out);
  };
  switch (scorer.variant()) {
    case Variant::factored: return with(LogisticGradient<Factored>{});
    case Variant::bounded:
      return scorer.pairs_are_safe() ? with(LogisticGradient<Factored>{})
                                     : with(LogisticGradient<Bounded>{});
    case Variant::direct: return with(DirectGradient<T, false>{Direct<T>(scorer.gain())});
    case Variant::pointwise:
      return scorer.with_activation([&]<class Pointwise>(const Pointwise& f) {
        scorer.finite() ? with(PointwiseGradient<Pointwise, true>{f})
                        : with(PointwiseGradient<Pointwise, false>{f});
      });
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
