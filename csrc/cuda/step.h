// The common part of the kernels for few queries: rows read four elements at a time, and the scores
// of the keys of a warp, with lanes along the hidden units.
#pragma once
#include "cuda/mask.h"

namespace attnkernels::cuda {

constexpr int kBlock = 256, kWarps = kBlock / 32;

// Rows of inputs. Four neighbouring elements are one load if alignment allows it.
struct Rows {
  const void* data;
  int64_t at, row, col;
  Dtype dtype;
  bool whole;

  __device__ __forceinline__ Rows(const Matrix& x, int64_t first, int d)
      : data(x.data), at(first), row(x.row), col(x.col), dtype(x.dtype) {
    const uint64_t size = dtype == Dtype::f32 ? 16 : 8;
    whole = col == 1 && (d | row | at) % 4 == 0 && reinterpret_cast<uint64_t>(data) % size == 0;
  }
  // Return elements t to t + 3 of row i, and 0 beyond d.
  __device__ __forceinline__ float4 four(int i, int t, int d) const {
    const int64_t first = at + i * row + t * col;
    if (!whole) {
      float x[4];
#pragma unroll
      for (int e = 0; e < 4; e++) x[e] = t + e < d ? load(data, dtype, first + e * col) : 0.f;
      return make_float4(x[0], x[1], x[2], x[3]);
    }
    if (dtype == Dtype::f32) return static_cast<const float4*>(data)[first / 4];
    const uint2 bits = static_cast<const uint2*>(data)[first / 4];
    const uint16_t low[2] = {static_cast<uint16_t>(bits.x), static_cast<uint16_t>(bits.y)};
    const uint16_t high[2] = {static_cast<uint16_t>(bits.x >> 16),
                              static_cast<uint16_t>(bits.y >> 16)};
    if (dtype == Dtype::bf16)
      return make_float4(from_bfloat16(low[0]), from_bfloat16(high[0]), from_bfloat16(low[1]),
                         from_bfloat16(high[1]));
    return make_float4(from_half(low[0]), from_half(high[0]), from_half(low[1]),
                       from_half(high[1]));
  }
};

__device__ __forceinline__ float dot(const float4& a, const float4& b) {
  return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, a.w * b.w)));
}

// One number per key of a warp and per query, up to N queries.
template <int N, int K>
using Few = float[K][N];

// Set out[e][i] to the sum over t of f(a row i, b row j + e)_t, in every lane.
template <int N, int K, class F>
__device__ __forceinline__ void few_sums(Few<N, K>& out, const Rows& a, const Rows& b, int n, int j,
                                         int columns, int d, const F& f) {
#pragma unroll
  for (int e = 0; e < K; e++)
#pragma unroll
    for (int i = 0; i < N; i++) out[e][i] = 0;
#pragma unroll 1
  for (int t = threadIdx.x % 32 * 4; t < d; t += 128) {
    float4 y[K];
#pragma unroll
    for (int e = 0; e < K; e++) y[e] = b.four(min(j + e, columns - 1), t, d);
#pragma unroll
    for (int i = 0; i < N; i++)
      if (i < n) {
        const float4 x = a.four(i, t, d);
#pragma unroll
        for (int e = 0; e < K; e++) out[e][i] += f(x, y[e], t);
      }
  }
#pragma unroll
  for (int e = 0; e < K; e++)
#pragma unroll
    for (int i = 0; i < N; i++)
      if (i < n) out[e][i] = warp_sum(out[e][i]);
}

// Compute the scores of the keys from j to j + K - 1, (E1).
template <int N, int K, class Act>
__device__ __forceinline__ void few_scores(Few<N, K>& out, const Problem& p, const Act& act,
                                           const Rows& query, const Rows& key, const Rows& weight,
                                           int j, int columns) {
  few_sums<N, K>(out, query, key, p.n, j, columns, p.d,
                 [&](const float4& q, const float4& k, int t) {
                   const float4 w = weight.four(0, t, p.d);
                   return dot(w, make_float4(act.value(q.x + k.x), act.value(q.y + k.y),
                                             act.value(q.z + k.z), act.value(q.w + k.w)));
                 });
#pragma unroll
  for (int e = 0; e < K; e++)
#pragma unroll
    for (int i = 0; i < N; i++) out[e][i] *= p.scale;
}

}  // namespace attnkernels::cuda
