// The gradients of query, key and weight from those of the scores of a tile, (E5) and (E6).
//
// A warp takes 32 hidden units, one per lane, of 32 queries. It holds them in registers with the
// sums of their gradients, and goes through the keys of the tile:
//
//   for key j:   b = exp(gain k_jt), once from memory       ds_0j .. ds_31,j: 8 broadcasts of 16
//     for query i in registers:                             bytes from shared memory
//       r = 1 / (1 + a_i b)
//       g = r - r^2,  dq_i += ds g,  dk += ds g,  dw += ds r
//     dk is complete for these queries: one atomic addition
//
// All sums over queries lie inside a thread, all sums over keys in its registers: nothing is
// exchanged. Half of the reciprocals are shared by two queries, which balances the reciprocal unit,
// at 0.75 per element and 16 per clock, against the others. An element takes 6.5 instructions, or
// 7.5 with its share of the work per key.
#pragma once
#include "cuda/mask.h"
#include "cuda/sums.h"

namespace attnkernels::cuda {

constexpr int kSweep = 32;  // queries per warp

// The form of x = 1 + exp(gain (q + k)): from panels, with reciprocals shared or single; direct
// from the inputs; or the sum q + k of a pointwise activation.
enum class Sweep { shared, single, direct, pointwise };

// The gradients of a tile: rows of d, rows of d, and d; null for those not wanted.
struct Gradients {
  float *query, *key, *weight;
};

// The place of (row, t) in a panel: quads of hidden units, then rows, then the four of a quad.
__device__ __forceinline__ int in_panel(int row, int t) {
  return (t / 4 * kTile + row) * 4 + t % 4;
}

// Sweeps from the inputs themselves.
template <Sweep way>
constexpr bool kFromInputs = way == Sweep::direct || way == Sweep::pointwise;

// r of (E7) for four queries, from exponentials of q and k; from the inputs the sums q + k.
template <Sweep way>
__device__ __forceinline__ void four(float (&f)[4], const float* q, float k) {
  if constexpr (kFromInputs<way>) {
#pragma unroll
    for (int e = 0; e < 4; e++) f[e] = q[e] + k;
  } else {
    const float x0 = fmaf(q[0], k, 1.f), x1 = fmaf(q[1], k, 1.f);
    if constexpr (way == Sweep::shared) {
      const float both = reciprocal(x0 * x1);
      f[0] = x1 * both;
      f[1] = x0 * both;
    } else {
      f[0] = reciprocal(x0);
      f[1] = reciprocal(x1);
    }
    f[2] = reciprocal(fmaf(q[2], k, 1.f));
    f[3] = reciprocal(fmaf(q[3], k, 1.f));
  }
}

// Return the sum of every fourth of kSweep gradients over `columns` keys, in the order in which
// sweep_unit() sums ds r. If r is 1/2 throughout, as it is where a hidden unit of queries and keys
// is 0, the sum of ds r is half of this, exactly.
__device__ __forceinline__ float sum_as_sweep(const float* ds, int columns, int pitch) {
  float sum = 0;
  for (int j = 0; j < columns; j++)
#pragma unroll
    for (int i = 0; i < kSweep; i += 4) sum += ds[j * pitch + i];
  return sum;
}

// Sweep hidden unit t of the queries from `first` to first + 31 of tile `it` against the keys of
// tile `jt`. ds: the gradients of their scores, one row of `pitch` queries per key. halves: halves
// of their sums, of queries e, e + 4, ..., for a logistic activation.
template <Sweep way, class Act>
__device__ __forceinline__ void sweep_unit(const Problem& p, const Act& act, const Place& at,
                                           int it, int jt, int first, int t, const float* ds,
                                           int pitch, const float (&halves)[4],
                                           const Gradients& grad) {
  const int64_t panel = int64_t{kTile} * p.padded;
  const int rows = at.queries - it * kTile - first, columns = min(at.keys.end - jt * kTile, kTile);
  float q[kSweep], dq[kSweep], dw[4] = {};
  if constexpr (way == Sweep::direct) {
    const int64_t from = at.query_at + (it * kTile + first) * p.query.row + t * p.query.col;
#pragma unroll
    for (int i = 0; i < kSweep; i++)
      q[i] = i < rows ? load(p.query.data, p.query.dtype, from + i * p.query.row) : 0.f;
  } else {
    const float* const from = p.queries.data + (at.query_panel + it) * panel;
#pragma unroll
    for (int i = 0; i < kSweep; i++) q[i] = from[in_panel(first + i, t)];
  }
#pragma unroll
  for (int i = 0; i < kSweep; i++) dq[i] = 0;
  const int64_t key_at = at.key_at + int64_t{jt} * kTile * p.key.row + t * p.key.col;
  const float* const key_panel = p.keys.data + (at.key_panel + jt) * panel + in_panel(0, t);
  auto key = [&](int j) {
    if constexpr (way == Sweep::direct)
      return load(p.key.data, p.key.dtype, key_at + min(j, columns - 1) * p.key.row);
    else
      return key_panel[4 * (j % kTile)];
  };
  const bool adds_key = grad.key;
  float* grad_key = grad.key + t;
  float next = key(0);
#pragma unroll 1
  for (int j = 0; j < columns; j++) {
    const float k = next;
    next = key(j + 1);
    const float4* const row = reinterpret_cast<const float4*>(ds + j * pitch);
    float dk[4] = {};
#pragma unroll
    for (int i = 0; i < kSweep; i += 4) {
      const float4 four_ds = row[i / 4];
      const float s[4] = {four_ds.x, four_ds.y, four_ds.z, four_ds.w};
      float f[4];
      four<way>(f, q + i, k);
#pragma unroll
      for (int e = 0; e < 4; e++) {
        float g;
        if constexpr (kFromInputs<way>) {
          const float2 both = act.with_slope(s[e] == 0 ? 0.f : f[e]);  // 0 adds 0 even to NaN
          f[e] = both.x;
          g = both.y;
        } else {
          g = fmaf(-f[e], f[e], f[e]);
        }
        dw[e] = fmaf(s[e], f[e], dw[e]);
        dq[i + e] = fmaf(s[e], g, dq[i + e]);
        dk[e] = fmaf(s[e], g, dk[e]);
      }
    }
    if (adds_key) atomicAdd(grad_key, (dk[0] + dk[1]) + (dk[2] + dk[3]));
    grad_key += p.d;
  }
  if (grad.query)
#pragma unroll
    for (int i = 0; i < kSweep; i++)
      if (i < rows) atomicAdd(grad.query + i * p.d + t, dq[i]);
  if constexpr (way != Sweep::pointwise)
#pragma unroll
    for (int e = 0; e < 4; e++) dw[e] -= halves[e];
  if (grad.weight) atomicAdd(grad.weight + t, (dw[0] + dw[1]) + (dw[2] + dw[3]));
}

}  // namespace attnkernels::cuda
