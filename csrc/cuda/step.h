// The common part of the kernels for few queries: the scores of the keys of a warp, with lanes
// along the hidden units.
#pragma once
#include "cuda/fours.h"
#include "cuda/mask.h"

namespace attnkernels::cuda {

constexpr int kBlock = 256, kWarps = kBlock / 32;

__device__ __forceinline__ float dot(const float4& a, const float4& b) {
  return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, a.w * b.w)));
}

// One number per key of a warp and per query, up to N queries.
template <int N, int K>
using Few = float[K][N];

// Set out[e][i] to the sum over t of f(a row i, b row j + e)_t, in every lane, where f is at(t). A
// warp has 2 KiB of the rows of b under way before it uses the first of them.
template <int N, int K, class At>
__device__ __forceinline__ void few_sums(Few<N, K>& out, const Rows& a, const Rows& b, int n, int j,
                                         int columns, int d, const At& at) {
#pragma unroll
  for (int e = 0; e < K; e++)
#pragma unroll
    for (int i = 0; i < N; i++) out[e][i] = 0;
  by_fours(b, [&](auto fours) {
    using Bits = typename decltype(fours)::Bits;
    constexpr int kPass = 128, kPasses = K * sizeof(Bits) * 32 < 2048 ? 2 : 1;
#pragma unroll 1
    for (int t0 = threadIdx.x % 32 * 4; t0 < d; t0 += kPasses * kPass) {
      Bits bits[kPasses][K];
#pragma unroll
      for (int pass = 0; pass < kPasses; pass++)
#pragma unroll
        for (int e = 0; e < K; e++) {
          const int t = t0 + pass * kPass;  // beyond the end any will do
          bits[pass][e] = fours.read(b, min(j + e, columns - 1), t < d ? t : t0, d);
        }
#pragma unroll
      for (int pass = 0; pass < kPasses; pass++) {
        const int t = t0 + pass * kPass;
        if (t >= d) break;
        const auto f = at(t);
#pragma unroll
        for (int i = 0; i < N; i++)
          if (i < n) {
            const float4 x = a.four(i, t, d);
#pragma unroll
            for (int e = 0; e < K; e++) out[e][i] += f(x, fours.numbers(bits[pass][e]));
          }
      }
    }
  });
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
  few_sums<N, K>(out, query, key, p.n, j, columns, p.d, [&](int t) {
    return [w = weight.four(0, t, p.d), act](const float4& q, const float4& k) {
      return dot(w, make_float4(act.value(q.x + k.x), act.value(q.y + k.y), act.value(q.z + k.z),
                                act.value(q.w + k.w)));
    };
  });
#pragma unroll
  for (int e = 0; e < K; e++)
#pragma unroll
    for (int i = 0; i < N; i++) out[e][i] *= p.scale;
}

}  // namespace attnkernels::cuda
