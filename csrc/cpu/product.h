// out (rows, cols) = alpha out + P X: the product with values of (E3), and with P transposed du of
// (E6).
#pragma once
#include "rows.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// P[r, k] is p[r * row + k * col].
template <class T>
struct Coefficients {
  const T* p;
  int64_t row, col;
};

// Terms of a sum that are added up first and then added to it, which keeps long sums accurate.
constexpr int64_t kTerms = 16;

// R rows by C vectors of columns. If C is 1, only the first `last` columns. Every loop is unrolled:
// an accumulator indexed by a variable would be in memory.
template <int R, int C, class T, class S>
inline void product_block(Coefficients<T> p, int64_t depth, const S* x, int64_t ldx, const T* alpha,
                          T* out, int64_t ldo, int64_t last = kLanes<T>) {
  using V = Vec<T>;
  constexpr int64_t L = kLanes<T>;
  const int64_t count = C > 1 ? L : last;
  for (int64_t k0 = 0; k0 < depth; k0 += kTerms) {
    const int64_t k1 = std::min(depth, k0 + kTerms);
    V acc[R][C];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) acc[r][c] = V(T(0));
    for (int64_t k = k0; k < k1; k++) {
      V row[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) row[c] = load_as<T>(x + k * ldx + c * L, count);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const V a(p.p[r * p.row + k * p.col]);
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) acc[r][c] = fmadd(a, row[c], acc[r][c]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) {
        T* sum = out + r * ldo + c * L;
        const V before = load_as<T>(sum, count);
        (alpha && !k0 ? fmadd(before, V(alpha[r]), acc[r][c]) : before + acc[r][c])
            .store(sum, static_cast<int>(count));
      }
  }
}

// All rows, R at a time, for C vectors of columns, so that these columns of X stay in the
// first-level cache.
template <int R, int C, class T, class S>
inline void product_columns(Coefficients<T> p, int64_t rows, int64_t depth, const S* x, int64_t ldx,
                            const T* alpha, T* out, int64_t ldo, int64_t last = kLanes<T>) {
  int64_t r = 0;
  auto block = [&]<int Rows>(std::integral_constant<int, Rows>) {
    product_block<Rows, C>(Coefficients<T>{p.p + r * p.row, p.row, p.col}, depth, x, ldx,
                           alpha ? alpha + r : nullptr, out + r * ldo, ldo, last);
  };
  if constexpr (R > 1)
    for (; r + R <= rows; r += R) block(std::integral_constant<int, R>{});
  for (; r < rows; r++) block(std::integral_constant<int, 1>{});
}

// out = P X for one row of P, K rows of X and `count` columns, or out += P X if it was `begun`.
template <int K, class T, class S>
C10_ALWAYS_INLINE void add_rows_at(const Vec<T> (&p)[K], const S* x, int64_t ldx, T* out,
                                   int64_t count, bool begun) {
  Vec<T> acc = begun ? load_as<T>(out, count) : Vec<T>(T(0));
#pragma GCC unroll 8
  for (int k = 0; k < K; k++) acc = fmadd(p[k], load_as<T>(x + k * ldx, count), acc);
  acc.store(out, static_cast<int>(count));
}

template <int K, class T, class S>
inline void add_rows(Coefficients<T> p, const S* x, int64_t ldx, T* out, int64_t cols, bool begun) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> row[K];
#pragma GCC unroll 8
  for (int k = 0; k < K; k++) row[k] = Vec<T>(p.p[k * p.col]);
  int64_t c = 0;
  for (; c + L <= cols; c += L) add_rows_at(row, x + c, ldx, out + c, L, begun);
  if (c < cols) add_rows_at(row, x + c, ldx, out + c, cols - c, begun);
}

// One row of P with more sums than registers. A step reads X once, from memory, so X is read in
// memory order, in which the processor prefetches.
template <class T, class S>
inline void product_row(Coefficients<T> p, int64_t depth, const S* x, int64_t ldx, T alpha, T* out,
                        int64_t cols) {
  constexpr int64_t kColumns = 1024;  // whose terms stay in the first-level cache
  alignas(64) T terms[kColumns];
  for (int64_t c0 = 0; c0 < cols; c0 += kColumns) {
    const int64_t count = std::min(kColumns, cols - c0);
    for (int64_t k0 = 0; k0 < depth; k0 += kTerms) {
      const int64_t end = std::min(depth, k0 + kTerms);
      auto add = [&]<int K>(std::integral_constant<int, K>, int64_t k) {
        add_rows<K>(Coefficients<T>{p.p + k * p.col, p.row, p.col}, x + k * ldx + c0, ldx, terms,
                    count, k > k0);
      };
      int64_t k = k0;
      for (; k + 8 <= end; k += 8) add(std::integral_constant<int, 8>{}, k);
      for (; k < end; k++) add(std::integral_constant<int, 1>{}, k);
      const T before = k0 ? T(1) : alpha;
      for (int64_t c = 0; c < count; c++) out[c0 + c] = before * out[c0 + c] + terms[c];
    }
  }
}

// Only the first `cols` columns of x and out are accessed. An x of another type than T suits few
// rows only, since each row converts it again.
template <class T, class S>
inline void product(Coefficients<T> p, int64_t rows, int64_t depth, const S* x, int64_t ldx,
                    const T* alpha, T* out, int64_t ldo, int64_t cols) {
  constexpr int64_t L = kLanes<T>;
  constexpr int R = std::is_same_v<S, T> ? 4 : 1;
  constexpr int kWide = 8;  // vectors of sums of one row that fit into registers
  int64_t c = 0;
  if (rows < 4 && cols > kWide * L)
    for (int64_t r = 0; r < rows; r++, c = cols)
      product_row(Coefficients<T>{p.p + r * p.row, p.row, p.col}, depth, x, ldx,
                  alpha ? alpha[r] : T(1), out + r * ldo, cols);
  if (rows < 4)
    for (; c + kWide * L <= cols; c += kWide * L)
      product_columns<1, kWide>(p, rows, depth, x + c, ldx, alpha, out + c, ldo);
  for (; c + 4 * L <= cols; c += 4 * L)
    product_columns<R, 4>(p, rows, depth, x + c, ldx, alpha, out + c, ldo);
  for (; c + 2 * L <= cols; c += 2 * L)
    product_columns<R, 2>(p, rows, depth, x + c, ldx, alpha, out + c, ldo);
  for (; c < cols; c += L)
    product_columns<R, 1>(p, rows, depth, x + c, ldx, alpha, out + c, ldo, std::min(L, cols - c));
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
