// The division of a forward's work: block (b, tile of queries, split of the keys).
#pragma once
#include "cuda/rows.h"

namespace attnkernels::cuda {

// The part of a block: its tile and number of queries, its tiles of keys, and its first row of the
// context and of lse.
struct Part {
  int it, rows, first, last;
  int64_t row;
};

__device__ __forceinline__ void store_softmax(float* softmax, int64_t row, float high,
                                              float total) {
  if (!softmax) return;
  softmax[2 * row] = high;
  softmax[2 * row + 1] = total;
}

// The softmax of a row, from those of its splits.
struct Combined {
  float highest = -kInfinity, finite, total = 0;

  __device__ __forceinline__ Combined(const Split& parts, int64_t rows, int64_t row) {
    for (int s = 0; s < parts.splits; s++)
      highest = max_nan(highest, parts.softmax[2 * (s * rows + row)]);
    finite = highest == -kInfinity ? 0.f : highest;
    for (int s = 0; s < parts.splits; s++) total += part(parts, s * rows + row);
  }
  // The sum of exp(s - highest) over a split, with its row among those of all splits.
  __device__ __forceinline__ float part(const Split& parts, int64_t row) const {
    return exp_fast(parts.softmax[2 * row] - finite) * parts.softmax[2 * row + 1];
  }
};

// All threads of a block call this; `at` and `part` can be read on return. Every b has n queries
// and m keys in all.
__device__ __forceinline__ void find_part(Place& at, Part& part, const Problem& p, int splits) {
  const int split = blockIdx.x % splits, tile = blockIdx.x / splits % p.queries.tiles;
  const int64_t b = blockIdx.x / splits / p.queries.tiles;
  const int s = sequence_of(p.query_ends, p.sequences, tile);
  find(at, p, b, s);
  if (threadIdx.x == 0) {
    const int it = tile - extent(p.query_ends, s, p.n).tile;
    const Reach seen = reach(p.window, it * kTile, (it + 1) * kTile, at.queries, at.keys);
    const int share = static_cast<int>(ceil_div(max(seen.end - seen.first, 0), splits));
    const int first = seen.first + split * share;
    part = {it, at.queries - it * kTile, first, min(first + share, seen.end),
            split * p.batch.count * p.n + at.query_row + it * kTile};
  }
  __syncthreads();
}

}  // namespace attnkernels::cuda
