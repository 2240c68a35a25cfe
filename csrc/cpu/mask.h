// The pairs of a tile that take part: window, bool mask and float mask.
#pragma once
#include "pack.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// The keys, of the `keys` from j0 on, that query i sees, counted from j0.
inline Span visible(const Window& window, int64_t i, int64_t j0, int64_t keys) {
  return {std::min(keys, std::max<int64_t>(0, window.first(i) - j0)),
          std::max<int64_t>(0, window.end(i, j0 + keys) - j0)};
}

// Return true if one of the queries i0 .. i0 + rows sees one of the keys j0 .. j0 + keys.
inline bool any_visible(const Window& window, int64_t i0, int64_t rows, int64_t j0, int64_t keys) {
  return window.first(i0) < j0 + keys && window.end(i0 + rows - 1, j0 + keys) > j0;
}

// row[j] <- the mask of (i, j0 + j) as a term of the score: 0 or -inf for a bool mask. Return false
// if no key takes part.
template <class T>
inline bool mask_row(T* row, const Matrix& mask, int64_t i, int64_t j0, int64_t keys) {
  constexpr T out = -std::numeric_limits<T>::infinity();
  const Matrix m = mask.at(i, j0);
  if (m.dtype == Dtype::boolean) {
    auto* bits = static_cast<const uint8_t*>(m.data);
    for (int64_t j = 0; j < keys; j++) row[j] = bits[j * m.col] ? T(0) : out;
  } else {
    load_row(row, m, 0, keys);
  }
  for (int64_t j = 0; j < keys; j++)
    if (row[j] != out) return true;
  return false;
}

// Load the mask of a tile into `tile` (rows, ld). Return false if none of its pairs takes part, so
// that it need not be computed.
template <class T>
inline bool mask_tile(T* tile, int64_t ld, const Problem& p, const Item& item, int64_t i0,
                      int64_t rows, int64_t j0, int64_t keys) {
  if (!any_visible(p.window, i0, rows, j0, keys)) return false;
  if (!item.mask.data) return true;
  bool any = false;
  for (int64_t r = 0; r < rows; r++) any |= mask_row(tile + r * ld, item.mask, i0 + r, j0, keys);
  return any;
}

// scores <- scores + mask, and -inf for pairs that take no part and for the columns up to `ld`.
template <class T>
inline void apply_mask(T* scores, const T* tile, int64_t ld, const Problem& p, const Item& item,
                       int64_t i0, int64_t rows, int64_t j0, int64_t keys) {
  constexpr T out = -std::numeric_limits<T>::infinity();
  for (int64_t r = 0; r < rows; r++) {
    T* s = scores + r * ld;
    const Span seen = visible(p.window, i0 + r, j0, keys);
    std::fill(s, s + seen.begin, out);
    if (item.mask.data) {
      const T* m = tile + r * ld;
      for (int64_t j = seen.begin; j < seen.end; j++)
        s[j] = m[j] == out ? out : s[j] + m[j];  // even if s is NaN
    }
    std::fill(s + seen.end, s + ld, out);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
