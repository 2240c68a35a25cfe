// Sums over d for every pair of a tile, in two layouts.
// Panel: lanes over 32 keys, which are transposed to (d, 32). There are no horizontal sums, and the
// sums of 4 queries x 32 keys stay in registers.
// Row: lanes over d, with keys as they are in memory; for a query or two, where transposing would
// cost more than it saves.
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
    if (Rows == 1)  // a decoder step, which reads a panel once
#pragma GCC unroll 4
      for (int e = 0; e < 4; e++)
        prefetch<1>(reinterpret_cast<const char*>(panel + (t + e) * kPanel) + kAhead,
                    Cols * sizeof(V));
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

// out[r, j] = sum_t form(a[r, t], panel[t, j]) for r < rows and j < keys; up to the next whole
// vector out is undefined. a is (rows, lda), panel (depth, kPanel), and depth a multiple of 4.
template <class T, class Form>
inline void panel_sums(const Form& form, const T* a, int64_t lda, int64_t rows, const T* panel,
                       const T* w, int64_t depth, T* out, int64_t ldo, int64_t keys) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    panel_rows<4>(form, a + r * lda, lda, panel, w, depth, out + r * ldo, ldo, keys);
  for (; r + 2 <= rows; r += 2)
    panel_rows<2>(form, a + r * lda, lda, panel, w, depth, out + r * ldo, ldo, keys);
  for (; r < rows; r++)
    panel_rows<1>(form, a + r * lda, lda, panel, w, depth, out + r * ldo, ldo, keys);
}

// sum_t form(a[t], b[t]) over a row in memory. The remainder of d is filled with hidden units of
// weight 0 and a = b = 0. The same number of bytes is prefetched from `next`, which is read soon.
template <class T, class S, class Form>
inline T row_sum(const Form& form, const T* a, const S* b, const T* w, int64_t d,
                 const void* next = nullptr) {
  using V = Vec<T>;
  constexpr int64_t L = kLanes<T>;
  V acc(T(0)), ae[4], be[4], we[4];
  int64_t t = 0;
  for (; t + 4 * L <= d; t += 4 * L) {
    constexpr int64_t bytes = 4 * L * sizeof(S);
    if (next) {
      prefetch<2>(reinterpret_cast<const char*>(b + t) + kAhead, bytes);
      prefetch<2>(static_cast<const char*>(next) + t * sizeof(S), bytes);
    }
#pragma GCC unroll 4
    for (int e = 0; e < 4; e++) {
      ae[e] = load(a + t + e * L);
      be[e] = load_as<T>(b + t + e * L);
      we[e] = load(w + t + e * L);
    }
    form.add(acc, ae, be, we);
  }
  if (t < d) {
#pragma GCC unroll 4
    for (int e = 0; e < 4; e++, t += L) {
      const int64_t at = std::min(t, d), left = std::min(L, d - at);
      ae[e] = V::loadu(a + at, left);
      be[e] = load_as<T>(b + at, left);
      we[e] = V::loadu(w + at, left);
    }
    form.add(acc, ae, be, we);
  }
  return sum(acc);
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
