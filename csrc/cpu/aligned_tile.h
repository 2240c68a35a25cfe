// The operands and the tiles that the kernels of aligned.h share: sums of a query and some keys,
// for some columns, which stay in registers.
#pragma once
#include "aligned.h"
#include "forms.h"
#include "rows.h"
#include "scratch.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

constexpr int64_t kAlignedRows = 32;  // keys that all columns are computed for in turn

// The sums of a tile: keys, and vectors of columns.
constexpr int kTileKeys = 4;
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kTileVectors = 4, kWindowRows = 8;
#else
constexpr int kTileVectors = 2, kWindowRows = 4;
#endif

// acc[r][c] += sum_k a[r * row + k * col] b[k * ldb + c]
template <int R, int C, class T>
C10_ALWAYS_INLINE void multiply(Vec<T> (&acc)[R][C], const T* a, int64_t row, int64_t col,
                                const T* b, int64_t ldb, int64_t depth) {
  for (int64_t k = 0; k < depth; k++) {
    Vec<T> line[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) line[c] = load(b + k * ldb + c * kLanes<T>);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const Vec<T> x(a[r * row + k * col]);
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) acc[r][c] = fmadd(x, line[c], acc[r][c]);
    }
  }
}

template <int R, int C, class T>
C10_ALWAYS_INLINE void clear(Vec<T> (&acc)[R][C]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) acc[r][c] = Vec<T>(T(0));
}

// out[r * ldo + c] += acc[r][c]
template <int R, int C, class T>
C10_ALWAYS_INLINE void add_tile(const Vec<T> (&acc)[R][C], T* out, int64_t ldo) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      T* at = out + r * ldo + c * kLanes<T>;
      (load(at) + acc[r][c]).store(at);
    }
}

// Call f(C, t, count) for C vectors of columns from t on, of which `count` are there in the last.
template <class T, class F>
C10_ALWAYS_INLINE void for_columns(int64_t d, const F& f) {
  constexpr int64_t L = kLanes<T>;
  int64_t t = 0;
  for (; t + kTileVectors * L <= d; t += kTileVectors * L)
    f(std::integral_constant<int, kTileVectors>{}, t, L);
  for (; t < d; t += L) f(std::integral_constant<int, 1>{}, t, std::min(L, d - t));
}

// Call f(R, i) for `count` rows from i on, R at a time and the last ones one by one.
template <int R, class F>
C10_ALWAYS_INLINE void for_rows(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + R <= count; i += R) f(std::integral_constant<int, R>{}, i);
  for (; i < count; i++) f(std::integral_constant<int, 1>{}, i);
}

// Copies of the operands of one worker, padded with zeros.
//
// The rows of the filter are summed over in groups of `taps`, of which the first `given` are there:
// the taps of each channel, or all channels if each has one tap. Row e of group g sees
// seen[g * length + e * next + j] of key j.
template <class T>
struct AlignedOperands {
  const AlignedScores<T>& p;
  const int64_t groups = p.taps == 1 ? 1 : p.channels;
  const int64_t given = p.taps == 1 ? p.channels : p.taps, taps = (given + 3) / 4 * 4;
  const int64_t width = padded(p.d), length = p.m + taps;  // of a channel of `seen`
  const int64_t next = p.taps == 1 ? length : 1, channels = p.taps == 1 ? taps : p.channels;
  T *weight, *query, *filter, *seen;  // (width), (width), (groups, taps, width), (channels, length)

  AlignedOperands(const AlignedScores<T>& p, Parts<T>& parts)
      : p(p), weight(parts.take(width)), query(parts.take(width)),
        filter(parts.take(groups * taps * width)), seen(parts.take(channels * length)) {}

  void begin() {
    copy(p.weight, p.d, weight, width);
    for (int64_t g = 0; g < groups; g++)
      for (int64_t e = 0; e < taps; e++)
        copy(p.filter + (g * given + e) * p.d, e < given ? p.d : 0, filter_row(g, e), width);
    std::fill(seen + p.channels * length, seen + channels * length, T(0));
  }
  void begin(int64_t b) {
    copy(p.query + b * p.d, p.d, query, width);
    const int64_t count = p.m + p.taps - 1;
    for (int64_t c = 0; c < p.channels; c++)
      copy(p.seen + (b * p.channels + c) * count, count, seen + c * length, length);
  }
  T* filter_row(int64_t g, int64_t e) const { return filter + (g * taps + e) * width; }

  // Prefetch the rows that follow `count` rows from j on, some columns of them.
  template <int C>
  C10_ALWAYS_INLINE void prefetch_next(const T* rows, int64_t b, int64_t j, int64_t count,
                                       int64_t t) const {
    const int64_t first = b * p.m + j + count, last = std::min(p.batch * p.m, first + count);
    for (int64_t i = first; i < last; i++)
      prefetch<2>(reinterpret_cast<const char*>(rows + i * p.d + t), C * kLanes<T> * sizeof(T));
  }

  // exp(2 x), (E7), of the sums x of the query and R keys from j on, for C vectors of columns.
  template <int R, int C>
  C10_ALWAYS_INLINE void tile(Vec<T> (&acc)[R][C], int64_t b, int64_t j, int64_t t,
                              int64_t count) const {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) {
        const T* key = p.key + (b * p.m + j + r) * p.d + t + c * kLanes<T>;
        acc[r][c] = load(query + t + c * kLanes<T>) + load_as<T>(key, count);
      }
    for (int64_t g = 0; g < groups; g++)
      multiply(acc, seen + g * length + j, 1, next, filter_row(g, 0) + t, width, given);
    const Direct<T> direct(T(2), Limits<T>::pair);
    const Vec<T> zero(T(0));
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) acc[r][c] = direct.exponential(acc[r][c], zero);
  }

 private:
  static void copy(const T* in, int64_t count, T* out, int64_t size) {
    std::fill(std::copy(in, in + count, out), out + size, T(0));
  }
};

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
