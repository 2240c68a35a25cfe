// Addresses: leading indices, and the rows of packed sequences.
#pragma once
#include "cuda/maths.h"

namespace attnkernels::cuda {

// Return the offset of leading index b. Divisions have 32 bits; a single dimension, as dense inputs
// have, needs none.
__device__ __forceinline__ int64_t offset(const Batch& batch, int64_t b, const Strides& strides) {
  if (batch.rank == 0) return 0;
  int64_t at = 0;
  auto rest = static_cast<unsigned>(b);
  for (int k = 0; k < batch.rank - 1; k++) {
    const auto size = static_cast<unsigned>(batch.sizes[k]);
    at += rest % size * strides.along[k];
    rest /= size;
  }
  return at + rest * strides.along[batch.rank - 1];
}

// Sequence s: its first row, the number of its rows, and its first tile.
struct Extent {
  int64_t begin;
  int count, tile;
};

__device__ __forceinline__ Extent extent(const Sequences& of, int s, int rows) {
  if (!of.ends) return {0, rows, 0};
  const int64_t begin = load_integer(of.ends, of.dtype, s);
  const int64_t end = load_integer(of.ends, of.dtype, s + 1);
  return {begin, static_cast<int>(end - begin), static_cast<int>(begin / kTile) + s};
}

// Return the sequence that a tile belongs to. Sequence s owns the tiles from ends[s] / kTile + s
// on. These are enough wherever it starts, so the number of tiles is known without reading `ends`
// back.
__device__ __forceinline__ int sequence_of(const Sequences& of, int sequences, int tile) {
  if (!of.ends) return 0;
  int low = 0, high = sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (load_integer(of.ends, of.dtype, middle) / kTile + middle <= tile)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// The keys of a leading index that take part: from `first` to `end`, exclusive.
struct Keys {
  int first, end;
};

// Return a position among m keys, of leading index b, or `absent` if the call has none.
__device__ __forceinline__ int position_of(const Matrix& positions, const Batch& batch, int64_t b,
                                           const Strides& strides, int absent, int m) {
  if (!positions.data) return absent;
  const int64_t at = load_integer(positions.data, positions.dtype, offset(batch, b, strides));
  return static_cast<int>(at < 0 ? 0 : at < m ? at : m);
}

__device__ __forceinline__ Keys keys_of(const Problem& p, int64_t b) {
  return {position_of(p.starts, p.batch, b, p.starts.lead, 0, p.m),
          position_of(p.lengths, p.batch, b, p.lengths.lead, p.m, p.m)};
}

// Return the end of the keys, of `keys`, that the queries before `end` see.
__device__ __forceinline__ int seen_keys(const Window& window, int end, int keys) {
  return window.right < keys - end ? end + window.right : keys;
}

// The tiles of keys that neighbouring queries see: none if end <= first.
struct Reach {
  int first, end;
};

// Return those of the queries from i0 to i1, exclusive, that exist.
__device__ __forceinline__ Reach reach(const Window& window, int i0, int i1, int queries,
                                       const Keys& keys) {
  const int first = max(keys.first, i0 > window.left ? i0 - window.left : 0);
  const int end = seen_keys(window, min(i1, queries), keys.end);
  return {first / kTile, first < end ? static_cast<int>(ceil_div(end, kTile)) : 0};
}

// The leading index and sequence of a block. It lies in shared memory because registers are scarce.
struct Place {
  int64_t query_panel, key_panel;               // the first tile's
  int64_t query_at, key_at, value_at, mask_at;  // the first element
  int64_t query_row, key_row;                   // the first row in outputs of (batch, rows, ...)
  int64_t b, item;                              // the leading index, and dropout's: with sequences
  const float* weights;
  int queries;  // their number
  Keys keys;
};

// All threads of a block call this; `at` can be read on return.
__device__ __forceinline__ void find(Place& at, const Problem& p, int64_t b, int s) {
  if (threadIdx.x == 0) {
    const Extent q = extent(p.query_ends, s, p.n), k = extent(p.key_ends, s, p.m);
    at.query_panel = offset(p.batch, b, p.queries.lead) + q.tile;
    at.key_panel = offset(p.batch, b, p.keys.lead) + k.tile;
    at.query_at = offset(p.batch, b, p.query.lead) + q.begin * p.query.row;
    at.key_at = offset(p.batch, b, p.key.lead) + k.begin * p.key.row;
    at.value_at = offset(p.batch, b, p.value.lead) + k.begin * p.value.row;
    at.mask_at = offset(p.batch, b, p.mask.lead);
    at.query_row = b * p.n + q.begin;
    at.key_row = b * p.m + k.begin;
    at.b = b;
    at.item = b * p.sequences + s;
    at.weights = p.weights + offset(p.batch, b, p.weights_lead);
    at.queries = q.count;
    at.keys = p.key_ends.ends ? Keys{0, k.count} : keys_of(p, b);
  }
  __syncthreads();
}

}  // namespace attnkernels::cuda
