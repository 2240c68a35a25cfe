// Sums over d for every pair of a tile, in two layouts.
// Panel: lanes over 32 keys, which are transposed to (d, 32). There are no horizontal sums, and the
// sums of 4 queries x 32 keys stay in registers.
// Row: lanes over d, with keys as rows; for few queries, where transposing would cost more than it
// saves, and for few keys, which would not fill the lanes.
#pragma once
#include "forms.h"
#include "rows.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

static_assert(kLane % 4 == 0, "forms take four hidden units at a time");

template <int Rows, int Cols, class T, class Form>
inline void panel_block(const Form& form, const T* a, int64_t lda, const T* panel, const T* w,
                        int64_t begin, int64_t end, T* out, int64_t ldo) {
  using V = Vec<T>;
  V acc[Rows][Cols];  // in registers, because every loop over it is unrolled
#pragma GCC unroll 4
  for (int r = 0; r < Rows; r++)
#pragma GCC unroll 2
    for (int c = 0; c < Cols; c++) acc[r][c] = V(T(0));
  for (int64_t t = begin; t < end; t += 4) {
    const V we[4] = {V(w[t]), V(w[t + 1]), V(w[t + 2]), V(w[t + 3])};
#pragma GCC unroll 2
    for (int c = 0; c < Cols; c++) {
      const T* b = panel + t * kPanel + c * kLanes<T>;
      const V be[4] = {load(b), load(b + kPanel), load(b + 2 * kPanel), load(b + 3 * kPanel)};
#pragma GCC unroll 4
      for (int r = 0; r < Rows; r++) {
        const T* p = a + r * lda + t;
        const V ae[4] = {V(p[0]), V(p[1]), V(p[2]), V(p[3])};
        form.add(acc[r][c], ae, be, we);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < Rows; r++)
#pragma GCC unroll 2
    for (int c = 0; c < Cols; c++) {
      T* sum = out + r * ldo + c * kLanes<T>;
      (begin ? load(sum) + acc[r][c] : acc[r][c]).store(sum);
    }
}

template <int Rows, class T, class Form>
inline void panel_rows(const Form& form, const T* a, int64_t lda, const T* panel, const T* w,
                       int64_t depth, T* out, int64_t ldo, int64_t keys) {
  constexpr int64_t wide = 2 * kLanes<T>;
  static_assert(kPanel % wide == 0);
  int64_t c = 0;
  auto blocks = [&]<int Cols>(std::integral_constant<int, Cols>) {
    for (int64_t t = 0; t < depth; t += Form::kDepth)
      panel_block<Rows, Cols>(form, a, lda, panel + c, w, t, std::min(depth, t + Form::kDepth),
                              out + c, ldo);
    c += Cols * kLanes<T>;
  };
  while (c + wide <= kPanel && c + kLanes<T> < keys) blocks(std::integral_constant<int, 2>{});
  while (c < keys) blocks(std::integral_constant<int, 1>{});
}

// Rows of memory that are read soon, `count` of `bytes` bytes.
struct Soon {
  Matrix rows;
  int64_t count = 0, bytes = 0;
  void prefetch_part(int64_t part, int64_t parts) const {
    for (int64_t j = part * count / parts; j < (part + 1) * count / parts; j++)
      prefetch<2>(static_cast<const char*>(rows.at(j).data), bytes);
  }
};

// out[r, j] = sum_t form(a[r, t], panel[t, j]) for r < rows and j < keys; up to the next whole
// vector out is undefined. a is (rows, lda), panel (depth, kPanel), and depth a multiple of 4.
template <class T, class Form>
inline void panel_sums(const Form& form, const T* a, int64_t lda, int64_t rows, const T* panel,
                       const T* w, int64_t depth, T* out, int64_t ldo, int64_t keys,
                       const Soon& soon = {}) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    if (soon.count) soon.prefetch_part(r / 4, rows / 4);
    panel_rows<4>(form, a + r * lda, lda, panel, w, depth, out + r * ldo, ldo, keys);
  }
  for (; r + 2 <= rows; r += 2)
    panel_rows<2>(form, a + r * lda, lda, panel, w, depth, out + r * ldo, ldo, keys);
  for (; r < rows; r++)
    panel_rows<1>(form, a + r * lda, lda, panel, w, depth, out + r * ldo, ldo, keys);
}

// out[r, c] = sum_t form(a[r, t], b[c, t]) for R queries and C keys, whose rows lie in memory. The
// remainder of d is filled with hidden units of weight 0 and a = b = 0. As many bytes as of b are
// prefetched from the rows of `next`, which are read soon.
template <int R, int C, class T, class S, class Form>
inline void row_block(const Form& form, const T* a, int64_t lda, const S* b, int64_t ldb,
                      const T* w, int64_t d, T* out, int64_t ldo, const Matrix& next = {}) {
  using V = Vec<T>;
  constexpr int64_t L = kLanes<T>;
  V acc[R][C];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) acc[r][c] = V(T(0));
  // Four vectors from t on; of the last four, those before d.
  auto add = [&](int64_t t, auto load_from) C10_ALWAYS_INLINE_ATTRIBUTE {
    V we[4], ae[4], be[4];
#pragma GCC unroll 4
    for (int e = 0; e < 4; e++) we[e] = load_from(w, t + e * L);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
#pragma GCC unroll 4
      for (int e = 0; e < 4; e++) be[e] = load_from(b + c * ldb, t + e * L);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
        for (int e = 0; e < 4; e++) ae[e] = load_from(a + r * lda, t + e * L);
        form.add(acc[r][c], ae, be, we);
      }
    }
  };
  int64_t t = 0;
  for (; t + 4 * L <= d; t += 4 * L) {
    constexpr int64_t bytes = 4 * L * sizeof(S);
    if (next.data)
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) {
        prefetch<2>(reinterpret_cast<const char*>(b + c * ldb + t) + kAhead, bytes);
        prefetch<2>(static_cast<const char*>(next.at(c).data) + t * sizeof(S), bytes);
      }
    add(t, [](const auto* row, int64_t at)
               C10_ALWAYS_INLINE_ATTRIBUTE { return load_as<T>(row + at); });
  }
  if (t < d)
    add(t, [&](const auto* row, int64_t at) C10_ALWAYS_INLINE_ATTRIBUTE {
      at = std::min(at, d);
      return load_as<T>(row + at, std::min(L, d - at));
    });
  static_assert(R * C == 1 || R * C == 4);
  if constexpr (R * C == 1) {
    const V zero(T(0));  // in the order of the other blocks: equal keys have equal scores
    T four[4];
    store_sums(acc[0][0], zero, zero, zero, four);
    out[0] = four[0];
  } else if constexpr (C == 4) {
    store_sums(acc[0][0], acc[0][1], acc[0][2], acc[0][3], out);
  } else {
    T four[4];
    store_sums(acc[0][0], acc[1][0], acc[2][0], acc[3][0], four);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) out[r * ldo] = four[r];
  }
}

template <class T, class S, class Form>
inline T row_sum(const Form& form, const T* a, const S* b, const T* w, int64_t d) {
  T out;
  row_block<1, 1>(form, a, 0, b, 0, w, d, &out, 0);
  return out;
}

// out[r, j] = sum_t form(a[r, t], b[j, t]) for r < rows and j < keys. `next` has a row per key.
template <class T, class S, class Form>
inline void row_sums(const Form& form, const T* a, int64_t lda, int64_t rows, const S* b,
                     int64_t ldb, const T* w, int64_t d, T* out, int64_t ldo, int64_t keys,
                     Matrix next) {
  int64_t r = 0, j = 0;
  auto block = [&]<int R, int C>(std::integer_sequence<int, R, C>) {
    row_block<R, C>(form, a + r * lda, lda, b + j * ldb, ldb, w, d, out + r * ldo + j, ldo,
                    next.data ? next.at(j) : next);
  };
  for (; r + 4 <= rows; r += 4, next = {})
    for (j = 0; j < keys; j++) block(std::integer_sequence<int, 4, 1>{});
  for (; r < rows; r++, next = {}) {
    for (j = 0; j + 4 <= keys; j += 4) block(std::integer_sequence<int, 1, 4>{});
    for (; j < keys; j++) block(std::integer_sequence<int, 1, 1>{});
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
