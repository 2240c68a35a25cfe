// D_i of (E4), and the pairs near which it cancels.
//
// ds is a difference, a_ij (da_ij - D_i). Where a_ij is almost 1, D_i is almost da_ij, and rounding
// two separate products would leave noise instead of the difference: of a row that sees a single
// key, instead of 0. For a pair with most of its row's weight the terms are subtracted before they
// are multiplied, dc_i . (u_j - c_i), and differences that are smaller than the rounding of c_i
// count as 0. There is at most one such pair in a row.
#pragma once
#include "cuda/maths.h"

namespace attnkernels::cuda {

// The weight above which a pair has most of its row.
constexpr float kMost = 0.5f;

// The relative error of the context of a row that sees a single key: of keep u_j in one rounding,
// or on tensor cores (product.h). These lose the last bit of a float32 u_j, and several of keep
// u_j. 16-bit values are exact in tf32, and sums are in float32, so only keep u_j is rounded.
constexpr float kOneRounding = 0x1p-24f, kLastBit = 0x1p-22f, kSplitBits = 0x1p-20f;

__device__ __forceinline__ float context_error(const Problem& p, bool tensor_cores) {
  if (!tensor_cores || (p.value.dtype != Dtype::f32 && !p.seed)) return kOneRounding;
  return p.seed ? kSplitBits : kLastBit;
}

// Delta_i as a row subtracts it, its sum over the gradients of the weights, and what turns scores
// into weights: (batch, n) each. Null where absent.
struct Delta {
  float *total = nullptr, *weights = nullptr;
  float2* softmax = nullptr;  // for weigh()
};

// Compute delta of (E4); nothing for raw scores, which have none.
Delta make_delta(const Problem&, const Backward&, const Host&);
Delta allocate_delta(const Problem&, const Backward&, const Host&);

// Compute and store delta of a row. All threads of a warp call this, and can read it on return.
__device__ __forceinline__ void store_delta(const Problem& p, const Backward& f, const Delta& delta,
                                            int64_t row) {
  const int lane = threadIdx.x % 32;
  float x = 0, y = 0;
  if (f.grad_context)
    for (int c = lane; c < p.dv; c += 32)
      x = fmaf(f.grad_context[row * p.dv + c], f.context[row * p.dv + c], x);
  if (f.grad_weights) {
    for (int j = lane; j < p.m; j += 32)
      y = fmaf(f.grad_weights[row * p.m + j], f.weights[row * p.m + j], y);
    y = warp_sum(y);
  }
  x = warp_sum(x) + y;
  if (lane == 0) {
    if (f.grad_weights) delta.weights[row] = y;
    delta.total[row] = f.grad_lse ? x - f.grad_lse[row] : x;
    delta.softmax[row] = as_weights(f.softmax, f.lse, row);
  }
  __syncwarp();
}

// The weight of pair (i, j) with this score, before dropout.
__device__ __forceinline__ float weight_of(const Problem& p, const Backward& f, const Delta& delta,
                                           int64_t row, int j, float score) {
  if (f.weights && !p.seed) return f.weights[row * p.m + j];
  return weigh(score, delta.softmax[row]);
}

// keep x - z, or 0 if it is within `error` of z.
__device__ __forceinline__ float difference(float x, float keep, float z, float error) {
  const float rest = (keep == 0 ? 0.f : keep * x) - z;
  return fabsf(rest) <= error * fabsf(z) ? 0.f : rest;
}

// Return da_ij - D_i for key j of a row of the outputs, in every lane of a warp. value_at: the
// first element of u_j.
__device__ __forceinline__ float centred(const Problem& p, const Backward& f, const Delta& delta,
                                         int64_t row, int j, float keep, int64_t value_at,
                                         float error) {
  float x = 0;
  if (f.grad_context)
    for (int c = threadIdx.x % 32; c < p.dv; c += 32) {
      const float u = load(p.value.data, p.value.dtype, value_at + c * p.value.col);
      const int64_t at = row * p.dv + c;
      x = fmaf(f.grad_context[at], difference(u, keep, f.context[at], error), x);
    }
  x = warp_sum(x);
  if (f.grad_weights)
    x += difference(f.grad_weights[row * p.m + j], keep, delta.weights[row], kOneRounding);
  return f.grad_lse ? x + f.grad_lse[row] : x;
}

}  // namespace attnkernels::cuda
