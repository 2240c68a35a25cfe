// What the inner loops read: rows padded to whole vectors, as they are or as exponentials, and
// panels of 32 keys transposed.
#pragma once
#include "pair_sums.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// The largest value and the largest magnitude among inputs; NaN if there is one.
template <class T>
struct Range {
  T high = -std::numeric_limits<T>::infinity(), magnitude = 0;

  void include(const Range& o) {
    high = larger(high, o.high);
    magnitude = larger(magnitude, o.magnitude);
  }
  static T larger(T a, T b) { return a > b || a != a ? a : b; }
};

template <class T>
inline Range<T> range_of(const T* row, int64_t count) {
  using V = Vec<T>;
  using at::vec::maximum;
  Range<T> out;
  V high(out.high), magnitude(T(0));
  int64_t t = 0;
  for (; t + kLanes<T> <= count; t += kLanes<T>) {
    const V x = load(row + t);
    high = maximum(high, x);
    magnitude = maximum(magnitude, x.abs());
  }
  if (t > 0) out = {max(high), max(magnitude)};
  for (; t < count; t++) out.include({row[t], std::abs(row[t])});
  return out;
}

// row <- exp(gain * row), padded with zeros to whole vectors: an absent hidden unit makes x = 1 +
// 0.
template <class T>
inline void exponentiate(T* out, const T* row, int64_t d, T gain) {
  const Vec<T> g(gain);
  int64_t t = 0;
  for (; t + kLanes<T> <= d; t += kLanes<T>) exp(load(row + t) * g).store(out + t);
  if (t < d) exp(Vec<T>::loadu(row + t, d - t) * g).store(out + t, static_cast<int>(d - t));
  std::fill(out + d, out + padded(d), T(0));
}

// (kPanel, ld) rows to a (width, kPanel) panel; width a multiple of 16. Rows past `count` are taken
// as zero.
template <class T>
inline void transpose_panel(T* panel, const Rows<T>& rows, int64_t count, int64_t width) {
  constexpr int64_t L = kLane;
  for (int64_t j = 0; j < kPanel; j += L) {
    T block[L * L] = {};
    for (int64_t t = 0; t < width; t += L) {
      T* out = panel + t * kPanel + j;
      if (j + L <= count) {
        at::vec::transpose_mxn<T, L, L>(rows[j] + t, rows.ld, out, kPanel);
      } else {
        for (int64_t l = 0; j + l < count; l++)
          std::copy(rows[j + l] + t, rows[j + l] + t + L, block + l * L);
        at::vec::transpose_mxn<T, L, L>(block, L, out, kPanel);
      }
    }
  }
}

// The same of exp(gain * rows), 16 hidden units at a time.
template <class T>
inline void exponential_panel(T* panel, const Rows<T>& rows, int64_t count, int64_t d, T gain) {
  T block[kPanel * kLane] = {};
  for (int64_t t = 0; t < d; t += kLane) {
    for (int64_t j = 0; j < count; j++)
      exponentiate(block + j * kLane, rows[j] + t, std::min(kLane, d - t), gain);
    transpose_panel(panel + t * kPanel, Rows<T>{block, kLane}, kPanel, kLane);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
