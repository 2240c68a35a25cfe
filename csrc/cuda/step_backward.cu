// The backward for few queries, (E4)-(E6): see step.cu. A block of 256 threads takes 32 keys at a
// time: each warp makes ds of 4 keys, then each thread has a hidden unit or a column. Keys and
// values are read twice, the second time from the cache; their gradients are written once, in their
// final dtype. Shared memory: 32 gradients and 32 weights per query.
#include "cuda/delta.h"
#include "cuda/step.h"
#include "cuda/sums.h"

namespace attnkernels::cuda {
namespace {

constexpr int kBackwardKeys = 32;  // that a block takes at a time

struct StepJob {
  Backward f;
  Delta delta;
  Sums sums;
  int parts;
  float factor;  // gradient_factor()
};

// Compute ds of (E4) and the weights after dropout for the keys of a warp from j on; return the sum
// of ds.
template <class Act>
__device__ __forceinline__ float few_gradients(float* ds, float* used, const Problem& p,
                                               const StepJob& job, const Act& act,
                                               const Rows& query, const Rows& key,
                                               const Rows& weight, int64_t b, int j,
                                               const Keys& keys) {
  const Backward& f = job.f;
  const int lane = threadIdx.x % 32;
  const int64_t mask_at = offset(p.batch, b, p.mask.lead);
  constexpr int K = kBackwardKeys / kWarps;
  Few<kStep, K> x, g;
  if (!f.grad_scores) few_scores<kStep, K>(x, p, act, query, key, weight, j, keys.end);
  if (f.grad_context) {
    const Matrix dc{{f.grad_context, p.dv, 1, Dtype::f32}, {}};
    few_sums<kStep, K>(
        g, Rows(dc, b * p.n * p.dv, p.dv), Rows(p.value, offset(p.batch, b, p.value.lead), p.dv),
        p.n, j, keys.end, p.dv,
        [](int) { return [](const float4& c, const float4& u) { return dot(c, u); }; });
  }
  float total = 0;
  unsigned most = 0;  // a bit per pair with most of its row
  auto add_mask = [&](int i, int e, float gradient) {
    if (f.grad_mask && lane == 0)
      atomicAdd(
          f.grad_mask + offset(p.batch, b, f.mask_lead) + i * f.mask_row + (j + e) * f.mask_col,
          gradient);
  };
#pragma unroll
  for (int e = 0; e < K; e++)
#pragma unroll
    for (int i = 0; i < kStep; i++) {
      const int64_t row = b * p.n + i;
      float added, gradient = 0, weighs = 0, heavy = 0;
      if (i < p.n && takes_part(p, mask_at, p.n, keys, i, j + e, added)) {
        if (f.grad_scores) {
          gradient = f.grad_scores[row * p.m + j + e];
        } else {
          const float a = weight_of(p, f, job.delta, row, j + e, x[e][i] + added);
          const float keep = p.seed ? kept(p, b, i, j + e) : 1.f;
          float y = f.grad_context ? g[e][i] : 0.f;
          if (f.grad_weights) y += f.grad_weights[row * p.m + j + e];
          weighs = dropped(a, keep);
          if (a > kMost) {
            most |= 1u << (e * kStep + i);
            heavy = a;
          } else {
            gradient = a * (dropped(y, keep) - job.delta.total[row]);
            add_mask(i, e, gradient);
          }
        }
      }
      total += gradient;
      if (i < p.n && lane == 0) {
        ds[i * kBackwardKeys + e] = heavy > 0 ? heavy : gradient;
        used[i * kBackwardKeys + e] = weighs;
      }
    }
  const float error = context_error(p, false);
#pragma unroll 1
  for (int k = 0; k < K * kStep && most >> k; k++) {  // the same in every lane
    if (!(most >> k & 1)) continue;
    const int e = k / kStep, i = k % kStep;
    const float keep = p.seed ? kept(p, b, i, j + e) : 1.f;
    const int64_t value_at = offset(p.batch, b, p.value.lead) + (j + e) * p.value.row;
    const float x = centred(p, f, job.delta, b * p.n + i, j + e, keep, value_at, error);
    if (lane == 0) ds[i * kBackwardKeys + e] *= x;  // its weight
    __syncwarp();
    const float gradient = ds[i * kBackwardKeys + e];
    add_mask(i, e, gradient);
    total += gradient;
  }
  return total;
}

// Block (b, part of the keys): (E4)-(E6).
template <class Act>
__global__ void __launch_bounds__(kBlock)
    step_backward_kernel(const __grid_constant__ Problem p, const __grid_constant__ StepJob job,
                         const __grid_constant__ Act act) {
  SHARED_ARRAY(float, ds, kStep* kBackwardKeys);
  SHARED_ARRAY(float, used, kStep* kBackwardKeys);
  SHARED_ARRAY(float, totals, kWarps);
  const Backward& f = job.f;
  const int part = blockIdx.x % job.parts, warp = threadIdx.x / 32;
  const int64_t b = blockIdx.x / job.parts;
  Keys keys = keys_of(p, b);
  keys.end = seen_keys(p.window, p.n, keys.end);
  const int tiles = static_cast<int>(ceil_div(p.m, kBackwardKeys));
  const int64_t query_at = offset(p.batch, b, p.query.lead);
  const int64_t key_at = offset(p.batch, b, p.key.lead);
  const int64_t weight_at = offset(p.batch, b, p.weight.lead);
  const Rows query(p.query, query_at, p.d), key(p.key, key_at, p.d),
      weight(p.weight, weight_at, p.d);
  float* const grad_query = job.sums.query.row(part, b * p.n);
  float* const grad_weight = job.sums.weight.row(part, b);
  float total = 0;

  for (int jt = part; jt < tiles; jt += job.parts) {  // each has as many that are seen
    const int j0 = jt * kBackwardKeys, e0 = warp * (kBackwardKeys / kWarps);
    const int there = min(kBackwardKeys, p.m - j0);
    auto seen = [&](int j) { return keys.first <= j0 + j && j0 + j < keys.end; };
    if (j0 + e0 < keys.end && keys.first < j0 + e0 + kBackwardKeys / kWarps)
      total += few_gradients(ds + e0, used + e0, p, job, act, query, key, weight, b, j0 + e0, keys);
    __syncthreads();
    for (int t = threadIdx.x; t < p.d; t += kBlock) {
      const float w =
          job.factor * load(p.weight.data, p.weight.dtype, weight_at + t * p.weight.col);
      float q[kStep], dq[kStep], dw = 0;
#pragma unroll
      for (int i = 0; i < kStep; i++) {
        q[i] = i < p.n
                   ? load(p.query.data, p.query.dtype, query_at + i * p.query.row + t * p.query.col)
                   : 0.f;
        dq[i] = 0;
      }
      for (int j = 0; j < there; j++) {
        float dk = 0;
        if (seen(j)) {
          const float k =
              load(p.key.data, p.key.dtype, key_at + (j0 + j) * p.key.row + t * p.key.col);
#pragma unroll
          for (int i = 0; i < kStep; i++)
            if (i < p.n) {
              const float s = ds[i * kBackwardKeys + j];
              const float x = s == 0 ? 0.f : q[i] + k;  // 0 adds 0 even to NaN
              const float2 both = act.with_slope(x);
              dw = fmaf(s, Act::kLogistic ? both.x - 0.5f : both.x, dw);
              dq[i] = fmaf(s, both.y, dq[i]);
              dk = fmaf(s, both.y, dk);
            }
        }
        if (f.grad_key.data)
          store(f.grad_key.data, f.grad_key.dtype, (b * p.m + j0 + j) * p.d + t,
                dk == 0 ? 0.f : w * dk);
      }
#pragma unroll
      for (int i = 0; i < kStep; i++)
        if (i < p.n && grad_query) atomicAdd(grad_query + i * p.d + t, dq[i]);
      if (grad_weight) atomicAdd(grad_weight + t, dw);
    }
    if (f.grad_value.data)
      for (int c = threadIdx.x; c < p.dv; c += kBlock)
        for (int j = 0; j < there; j++) {
          float x = 0;
          if (seen(j) && f.grad_context)
            for (int i = 0; i < p.n; i++)
              x = fmaf(used[i * kBackwardKeys + j], f.grad_context[(b * p.n + i) * p.dv + c], x);
          store(f.grad_value.data, f.grad_value.dtype, (b * p.m + j0 + j) * p.dv + c, x);
        }
    __syncthreads();  // ds and used have been read
  }

  if (threadIdx.x % 32 == 0) totals[warp] = total;
  __syncthreads();
  if (threadIdx.x == 0 && grad_weight) {
    for (int w = 1; w < kWarps; w++) total += totals[w];
    atomicAdd(grad_weight + p.d, total);
  }
}

}  // namespace

void step_backward(const Problem& p, const Backward& f, const Host& host) {
  const int parts = parts_for(p.batch.count, ceil_div(p.m, kBackwardKeys), host);
  const int copies = f.deterministic ? parts : 1;
  StepJob job{f, {}, {}, parts, gradient_factor(p)};
  job.sums.query = sum_for(f.grad_query.data, copies, p.batch.count * p.n, p.d);
  job.sums.weight = sum_for(f.grad_weight, copies, p.batch.count, p.d + 1);
  clear(job.sums.allocate(host), host);
  job.delta = make_delta(p, f, host);
  by_activation(p, [&](auto act) {
    launch("step_backward", step_backward_kernel<decltype(act)>, p.batch.count * parts, kBlock, 0,
           host.stream, p, job, act);
  });
  finish(job.sums, p, f, host);
}

}  // namespace attnkernels::cuda
