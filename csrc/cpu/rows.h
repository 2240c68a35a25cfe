// Conversion between tensors in memory (any dtype, any strides, broadcast) and rows of T.
#pragma once
#include <algorithm>

#include "problem.h"
#include "vec.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// Prefetch to the cache of that level. A loop over memory that is read once prefetches kAhead bytes
// ahead, three pages, because the processor's own prefetchers stop at the end of a page.
constexpr int64_t kAhead = 12288;
template <int Level>
C10_ALWAYS_INLINE void prefetch(const char* p, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(p + at, 0, 4 - Level);
}

// The first `count` elements at p, converted to T, with zeros in the other lanes.
template <class T, class S>
C10_ALWAYS_INLINE Vec<T> load_as(const S* p, int64_t count = kLanes<T>) {
  if constexpr (std::is_same_v<S, T>) {
    return count < kLanes<T> ? Vec<T>::loadu(p, count) : load(p);
  } else {
    S padded[kLanes<T>];
    if (count < kLanes<T>) {
      std::fill(std::copy(p, p + count, padded), padded + kLanes<T>, S(0));
      p = padded;
    }
    Vec<T> x;
    if constexpr (std::is_same_v<S, c10::Half>)
      at::vec::load_fp32_from_fp16(p, x);
    else
      at::vec::load_fp32_from_bf16(p, x);
    return x;
  }
}

template <class T, class S>
inline void load_row_as(T* out, const S* in, int64_t stride, int64_t count) {
  int64_t t = 0;
  if (stride == 1) {
    if constexpr (std::is_same_v<S, T>) {
      std::copy(in, in + count, out);
      return;
    } else if constexpr (sizeof(S) == 2 && std::is_same_v<T, float>) {
      for (; t + kLanes<T> <= count; t += kLanes<T>) load_as<T>(in + t).store(out + t);
    }
  }
  for (; t < count; t++) out[t] = static_cast<T>(in[t * stride]);
}

// Load one row, converted to T.
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

// Rows of T: those of the tensor itself, or a copy in scratch, padded with zeros to `width`.
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

// Return true if the first `cols` elements of every row are finite.
template <class T>
inline bool all_finite(const Rows<T>& rows, int64_t count, int64_t cols) {
  const Vec<T> none(T(0));
  Vec<T> zero = none;  // or NaN
  for (int64_t i = 0; i < count; i++)
    for (int64_t t = 0; t < cols; t += kLanes<T>)
      zero = fmadd(Vec<T>::loadu(rows[i] + t, std::min(kLanes<T>, cols - t)), none, zero);
  return sum(zero) == 0;
}

// Rows with contiguous elements: those of the tensor itself, or a copy in scratch. With `convert`
// they are of type T as well.
template <class T>
inline Matrix in_line(const Matrix& m, int64_t count, int64_t cols, int64_t ld, T* scratch,
                      bool convert = false) {
  if (m.col == 1 && (m.dtype == dtype_of<T> || !convert)) return m;
  for (int64_t i = 0; i < count; i++) load_row(scratch + i * ld, m, i, cols);
  return {scratch, ld, 1, dtype_of<T>};
}

// Call f with a pointer to the elements, of their own type. Their arithmetic is in T.
template <class T, class F>
inline void typed(const Matrix& m, const F& f) {
  if constexpr (std::is_same_v<T, float>) {
    if (m.dtype == Dtype::bf16) return f(static_cast<const c10::BFloat16*>(m.data));
    if (m.dtype == Dtype::f16) return f(static_cast<const c10::Half*>(m.data));
  }
  f(static_cast<const T*>(m.data));
}

// Store one row of T, rounded to the dtype of the output.
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

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
