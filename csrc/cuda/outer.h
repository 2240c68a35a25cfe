// Products of a tile in the backward, (E4) and (E6), on tensor cores: G = dc value^T, 16 queries
// per warp against 64 keys, and used^T dc, where `used` are weights after dropout.
#pragma once
#include "cuda/product.h"
#include "cuda/rows.h"

namespace attnkernels::cuda {

// Call f(G, i, j) for the pairs of this thread, numbered within the tile, with the sum over columns
// c0 to c1 of the values. dc: the rows of the tile's queries.
template <bool kLean = false, class F>
__device__ __forceinline__ void outer_products(const Problem& p, const Place& at, const float* dc,
                                               int rows, int columns, int jt, int c0, int c1,
                                               const F& f) {
  static_assert(kThreads / 32 * 16 == kTile);
  unsigned thread = threadIdx.x;
  if constexpr (kLean) forget(thread);
  const int row0 = thread / 32 * 16;
  const int64_t value_at = at.value_at + int64_t{jt} * kTile * p.value.row;
  const int value_row = static_cast<int>(p.value.row), value_col = static_cast<int>(p.value.col);
  by_dtype(p.value.dtype, [&](auto dtype) {
    using T = decltype(dtype);
    const void* const value = from<T>(p.value.data, value_at);
    Piece<1, kTile / 8, kLean> piece;
    piece.template set<T::kShort>(
        round_up(c1 - c0, 8),
        [&](int i, int k) {
          i += row0;
          k += c0;
          return i < rows && k < c1 ? dc[static_cast<int64_t>(i) * p.dv + k] : 0.f;
        },
        [&](int k, int j) {
          k += c0;
          return k < c1 && j < columns ? T::load(value, j * value_row + k * value_col) : 0.f;
        });
    piece.each([&](float x, int i, int j) { f(x, row0 + i, j); });
  });
}

// Set `piece` to used^T dc: keys from row0 on, and columns from col0. used: shared memory, by key,
// then query, kPitch apart. dc: the rows of the tile's queries.
template <int M, int N, bool kLean>
__device__ __forceinline__ void value_products(Piece<M, N, kLean>& piece, const Problem& p,
                                               const float* used, const float* dc, int rows,
                                               int row0, int col0) {
  piece.template set<false>(
      round_up(min(rows, kTile), 8), [&](int j, int i) { return used[(row0 + j) * kPitch + i]; },
      [&](int i, int c) {
        c += col0;
        return i < rows && c < p.dv ? dc[static_cast<int64_t>(i) * p.dv + c] : 0.f;
      });
}

}  // namespace attnkernels::cuda
