// out (rows, cols) = alpha out + P X: the value product of (E3), and with P read transposed du of
// (E6).
#pragma once
#include "vec.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// P[r, k] is p[r * row + k * col].
template <class T>
struct Coefficients {
  const T* p;
  int64_t row, col;
};

template <int R, int C, class T>
inline void product_block(Coefficients<T> p, int64_t depth, const T* x, int64_t ldx, const T* alpha,
                          T* out, int64_t ldo, int64_t last) {
  using V = Vec<T>;
  constexpr int64_t L = kLanes<T>;
  V acc[R][C];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) {
      const T* o = out + r * ldo + c * L;
      acc[r][c] = c + 1 < C || last == L ? load(o) : V::loadu(o, last);
      if (alpha) acc[r][c] = acc[r][c] * V(alpha[r]);
    }
  for (int64_t k = 0; k < depth; k++) {
    V row[C];
    for (int c = 0; c < C; c++) row[c] = load(x + k * ldx + c * L);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const V a(p.p[r * p.row + k * p.col]);
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) acc[r][c] = fmadd(a, row[c], acc[r][c]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) {
      T* o = out + r * ldo + c * L;
      if (c + 1 < C || last == L)
        acc[r][c].store(o);
      else
        acc[r][c].store(o, static_cast<int>(last));
    }
}

template <int R, class T>
inline void product_rows(Coefficients<T> p, int64_t depth, const T* x, int64_t ldx, const T* alpha,
                         T* out, int64_t ldo, int64_t cols) {
  constexpr int64_t L = kLanes<T>;
  constexpr int wide = R == 1 ? 8 : 4;
  int64_t c = 0;
  for (; c + wide * L <= cols; c += wide * L)
    product_block<R, wide>(p, depth, x + c, ldx, alpha, out + c, ldo, L);
  for (; c + 2 * L <= cols; c += 2 * L)
    product_block<R, 2>(p, depth, x + c, ldx, alpha, out + c, ldo, L);
  for (; c < cols; c += L)
    product_block<R, 1>(p, depth, x + c, ldx, alpha, out + c, ldo, std::min(L, cols - c));
}

// x must be readable to whole vectors in every row; out is touched in its first `cols` columns
// only.
template <class T>
inline void product(Coefficients<T> p, int64_t rows, int64_t depth, const T* x, int64_t ldx,
                    const T* alpha, T* out, int64_t ldo, int64_t cols) {
  int64_t r = 0;
  auto from = [&](int64_t i) { return Coefficients<T>{p.p + i * p.row, p.row, p.col}; };
  for (; r + 4 <= rows; r += 4)
    product_rows<4>(from(r), depth, x, ldx, alpha ? alpha + r : nullptr, out + r * ldo, ldo, cols);
  for (; r < rows; r++)
    product_rows<1>(from(r), depth, x, ldx, alpha ? alpha + r : nullptr, out + r * ldo, ldo, cols);
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
