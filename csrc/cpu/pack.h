// From tensors as they lie in memory (any dtype, any strides, broadcast) to what the inner loops
// read: rows of T padded to whole vectors, as they are or as exponentials, and panels of 32 keys
// transposed.
#pragma once
#include <algorithm>

#include "pair_sums.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

template <class T, class S>
inline void load_row_as(T* out, const S* in, int64_t stride, int64_t count) {
  int64_t t = 0;
  if (stride == 1) {
    if constexpr (!std::is_same_v<S, T>) {
      if constexpr (sizeof(S) == 2 && std::is_same_v<T, float>)
        for (; t + kLanes<T> <= count; t += kLanes<T>) {
          Vec<T> x;
          if constexpr (std::is_same_v<S, c10::Half>)
            at::vec::load_fp32_from_fp16(in + t, x);
          else
            at::vec::load_fp32_from_bf16(in + t, x);
          x.store(out + t);
        }
    } else {
      std::copy(in, in + count, out);
      return;
    }
  }
  for (; t < count; t++) out[t] = static_cast<T>(in[t * stride]);
}

// One row, converted to T.
template <class T>
inline void load_row(T* out, const Matrix& m, int64_t i, int64_t count) {
  const Matrix r = m.at(i);
  switch (m.dtype) {
    case Dtype::f32: return load_row_as(out, static_cast<const float*>(r.data), m.col, count);
    case Dtype::f64: return load_row_as(out, static_cast<const double*>(r.data), m.col, count);
    case Dtype::bf16:
      return load_row_as(out, static_cast<const c10::BFloat16*>(r.data), m.col, count);
    case Dtype::f16: return load_row_as(out, static_cast<const c10::Half*>(r.data), m.col, count);
    default: return;
  }
}

template <class T>
constexpr Dtype dtype_of = sizeof(T) == 4 ? Dtype::f32 : Dtype::f64;

// Rows of T, either where they lie or in scratch, converted and padded with zeros to `width`.
template <class T>
struct Rows {
  const T* data;
  int64_t ld;
  const T* operator[](int64_t i) const { return data + i * ld; }
};

template <class T>
inline Rows<T> rows_of(const Matrix& m, int64_t count, int64_t cols, int64_t width, int64_t ld,
                       T* scratch) {
  if (m.dtype == dtype_of<T> && m.col == 1 && cols == width)
    return {static_cast<const T*>(m.data), m.row};
  for (int64_t i = 0; i < count; i++) {
    load_row(scratch + i * ld, m, i, cols);
    std::fill(scratch + i * ld + cols, scratch + i * ld + width, T(0));
  }
  return {scratch, ld};
}

// The way back: one row of T rounded to the dtype of the output.
template <class T>
inline void store_row(void* out, Dtype dtype, int64_t offset, const T* row, int64_t count) {
  auto store_as = [&](auto* to) {
    using S = std::remove_pointer_t<decltype(to)>;
    int64_t t = 0;
    if constexpr (sizeof(S) == 2 && sizeof(T) == 4)
      for (; t + 2 * kLanes<T> <= count; t += 2 * kLanes<T>)
        at::vec::convert_from_float<S>(load(row + t), load(row + t + kLanes<T>))
            .store(to + offset + t);
    for (; t < count; t++) to[offset + t] = static_cast<S>(row[t]);
  };
  switch (dtype) {
    case Dtype::f32: return store_as(static_cast<float*>(out));
    case Dtype::f64: return store_as(static_cast<double*>(out));
    case Dtype::bf16: return store_as(static_cast<c10::BFloat16*>(out));
    case Dtype::f16: return store_as(static_cast<c10::Half*>(out));
    default: return;
  }
}

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

template <class T>
inline void scale_row(T* out, const T* row, int64_t d, T gain) {
  for (int64_t t = 0; t < d; t++) out[t] = row[t] * gain;
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
