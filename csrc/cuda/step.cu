// A few queries against many keys, as in a decoder: bound by reading every key and value once.
//
//   forward, a block of 256 threads and every 64 keys      backward, every 32 keys
//     a warp 8 keys, 4 at a time: scores of all queries,     the same scores, and dc . value: ds
//       lanes along the hidden units, 16 bytes or 8 a load
//     a warp a query: softmax of the 64                      a thread a hidden unit: dk of the 32
//     a thread a column: context += p value                    keys, dq and dw
//                                                            a thread a column: dvalue
//
// Nothing is prepared: the activation itself from rows as they lie, two of the special functions
// and five other instructions an element. A multiprocessor of an H100 does 8 elements a clock so
// and reads at most 7 of bfloat16. Shared memory: 4 rows of 64 numbers.
#include "cuda/mask.h"
#include "cuda/sums.h"

namespace attnkernels::cuda {
namespace {

constexpr int kBlock = 256, kWarps = kBlock / 32;
constexpr int kAtOnce = 4;         // keys of a warp
constexpr int kBackwardKeys = 32;  // of a block at a time

// Rows of inputs, from which four neighbouring elements are loaded at once where they lie so.
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
  // Of row i, elements t .. t + 3; what is beyond d is 0.
  __device__ __forceinline__ float4 four(int i, int t, int d) const {
    const int64_t first = at + i * row + t * col;
    if (!whole) {
      float x[4];
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

// r = 1 / (1 + exp(gain x)), (E7), from x times `gain` of it and of base 2.
__device__ __forceinline__ float logistic(float x, float gain) {
  return reciprocal(1.f + exp2_approx(x * gain));
}

__device__ __forceinline__ float activation(const Problem& p, float x) {
  return p.logistic ? fmaf(-p.span, logistic(x, p.gain * kLog2e), 1.f)
                    : rectified(x, p.slope, p.floor);
}

__device__ __forceinline__ float dot(const float4& a, const float4& b) {
  return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, a.w * b.w)));
}

// Numbers of a warp's keys and of the queries.
using Few = float[kAtOnce][kStep];

// out[e][i] = sum over t of f(a row i, b row j + e)_t; every lane gets them.
template <class F>
__device__ __forceinline__ void few_sums(Few& out, const Rows& a, const Rows& b, int n, int j,
                                         int columns, int d, const F& f) {
#pragma unroll
  for (int e = 0; e < kAtOnce; e++)
#pragma unroll
    for (int i = 0; i < kStep; i++) out[e][i] = 0;
#pragma unroll 1
  for (int t = threadIdx.x % 32 * 4; t < d; t += 128) {
    float4 y[kAtOnce];
#pragma unroll
    for (int e = 0; e < kAtOnce; e++) y[e] = b.four(min(j + e, columns - 1), t, d);
#pragma unroll
    for (int i = 0; i < kStep; i++)
      if (i < n) {
        const float4 x = a.four(i, t, d);
#pragma unroll
        for (int e = 0; e < kAtOnce; e++) out[e][i] += f(x, y[e], t);
      }
  }
#pragma unroll
  for (int e = 0; e < kAtOnce; e++)
#pragma unroll
    for (int i = 0; i < kStep; i++)
      if (i < n) out[e][i] = warp_sum(out[e][i]);
}

// The scores of keys j .. j + 3, (E1).
__device__ __forceinline__ void few_scores(Few& out, const Problem& p, const Rows& query,
                                           const Rows& key, const Rows& weight, int j,
                                           int columns) {
  few_sums(out, query, key, p.n, j, columns, p.d,
           [&](const float4& q, const float4& k, int t) {
             const float4 w = weight.four(0, t, p.d);
             return dot(w, make_float4(activation(p, q.x + k.x), activation(p, q.y + k.y),
                                       activation(p, q.z + k.z), activation(p, q.w + k.w)));
           });
#pragma unroll
  for (int e = 0; e < kAtOnce; e++)
#pragma unroll
    for (int i = 0; i < kStep; i++) out[e][i] *= p.scale;
}

// Block (b, split of the keys).
__global__ void __launch_bounds__(kBlock)
    step_kernel(const __grid_constant__ Problem p, const __grid_constant__ Split out) {
  SHARED_ARRAY(float, s, kStep * kStepKeys);  // scores, then the weights that values get
  SHARED_ARRAY(float, alphas, kStep);
  const int split = blockIdx.x % out.splits, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t b = blockIdx.x / out.splits;
  const int columns = length_of(p.lengths, p.batch, b, p.lengths.lead, p.m);
  const int end = p.causal ? min(columns, p.n) : columns;
  const int tiles = static_cast<int>(ceil_div(end, kStepKeys));
  const int share = static_cast<int>(ceil_div(tiles, out.splits));
  const int64_t mask_at = offset(p.batch, b, p.mask.lead);
  const Rows query(p.query, offset(p.batch, b, p.query.lead), p.d);
  const Rows key(p.key, offset(p.batch, b, p.key.lead), p.d);
  const Rows weight(p.weight, offset(p.batch, b, p.weight.lead), p.d);
  const int64_t value_at = out.context ? offset(p.batch, b, p.value.lead) : 0;
  const int64_t row0 = (split * p.batch.count + b) * p.n;

  float highest = -kInfinity, total = 0;  // of query `warp`
  bool started = false;
  for (int jt = split * share; jt < min((split + 1) * share, tiles); jt++) {
    const int j0 = jt * kStepKeys;
    if (p.mask.data) {
      float added;
      const int i = threadIdx.x / kStepKeys, j = threadIdx.x % kStepKeys;
      if (!__syncthreads_or(takes_part(p, mask_at, p.n, columns, i, j0 + j, added))) continue;
    }
    for (int e0 = warp * kAtOnce; e0 < kStepKeys && j0 + e0 < end; e0 += kWarps * kAtOnce) {
      Few x;
      few_scores(x, p, query, key, weight, j0 + e0, columns);
      if (lane == 0)
#pragma unroll
        for (int e = 0; e < kAtOnce; e++)
#pragma unroll
          for (int i = 0; i < kStep; i++)
            if (i < p.n) s[i * kStepKeys + e0 + e] = x[e][i];
    }
    __syncthreads();
    if (warp < p.n) {
      float x[2], high = highest, sum = 0;
      for (int h = 0; h < 2; h++) {
        const int j = j0 + lane + 32 * h;
        float added;
        const bool taken = takes_part(p, mask_at, p.n, columns, warp, j, added);
        x[h] = taken ? s[warp * kStepKeys + lane + 32 * h] + added : -kInfinity;
        if (taken && out.scores) out.scores[(b * p.n + warp) * p.m + j] = x[h];
        high = max_nan(high, x[h]);
      }
      high = warp_max(high);
      const float finite = high == -kInfinity ? 0.f : high;
      for (int h = 0; h < 2; h++) {
        const int j = j0 + lane + 32 * h;
        const float y = exp_fast(x[h] - finite);
        const float keep = p.seed ? kept(p, b, warp, j) : 1.f;
        sum += y;
        s[warp * kStepKeys + lane + 32 * h] = dropped(y, keep);
      }
      const float alpha = exp_fast(highest - finite);
      total = total * alpha + warp_sum(sum);
      highest = high;
      if (lane == 0) alphas[warp] = alpha;
    }
    __syncthreads();
    if (out.context)
      by_dtype(p.value.dtype, [&](auto dtype) {
        const int count = min(kStepKeys, end - j0);
        for (int c = threadIdx.x; c < p.dv; c += kBlock) {
          float x[kStep];
#pragma unroll
          for (int i = 0; i < kStep; i++)
            x[i] = i < p.n && started ? alphas[i] * out.context[(row0 + i) * p.dv + c] : 0.f;
          const int64_t at = value_at + j0 * p.value.row + c * p.value.col;
#pragma unroll 8
          for (int j = 0; j < count; j++) {
            const float u = decltype(dtype)::load(p.value.data, at + j * p.value.row);
#pragma unroll
            for (int i = 0; i < kStep; i++)
              if (i < p.n) x[i] = fmaf(s[i * kStepKeys + j], u, x[i]);
          }
#pragma unroll
          for (int i = 0; i < kStep; i++)
            if (i < p.n) out.context[(row0 + i) * p.dv + c] = x[i];
        }
      });
    started = true;
    __syncthreads();  // s and alphas have been read
  }
  if (!out.context) return;

  if (warp < p.n && lane == 0) {
    out.lse[row0 + warp] = highest + logf(total);
    alphas[warp] = total == 0 ? 1.f : total;
  }
  __syncthreads();
  for (int c = threadIdx.x; c < p.dv; c += kBlock)
    for (int i = 0; i < p.n; i++) {
      float& x = out.context[(row0 + i) * p.dv + c];
      x = started ? x / alphas[i] : 0.f;
    }
}

struct StepJob {
  Backward f;
  const float* delta;
  Sum query, weight;
  int parts;
};

// ds of (E4), and the weights after dropout, of keys j .. j + 3 of a warp; returns the sum of ds.
__device__ __forceinline__ float few_gradients(float* ds, float* used, const Problem& p,
                                               const StepJob& job, const Rows& query,
                                               const Rows& key, const Rows& weight, int64_t b,
                                               int j, int columns) {
  const Backward& f = job.f;
  const int lane = threadIdx.x % 32;
  const int64_t mask_at = offset(p.batch, b, p.mask.lead);
  Few x, g;
  if (!f.grad_scores) few_scores(x, p, query, key, weight, j, columns);
  if (f.grad_context) {
    const Matrix dc{f.grad_context, p.dv, 1, {}, Dtype::f32};
    few_sums(g, Rows(dc, b * p.n * p.dv, p.dv),
             Rows(p.value, offset(p.batch, b, p.value.lead), p.dv), p.n, j, columns, p.dv,
             [](const float4& c, const float4& u, int) { return dot(c, u); });
  }
  float total = 0;
#pragma unroll
  for (int e = 0; e < kAtOnce; e++)
#pragma unroll
    for (int i = 0; i < kStep; i++) {
      const int64_t row = b * p.n + i;
      float added, gradient = 0, weighs = 0;
      if (i < p.n && takes_part(p, mask_at, p.n, columns, i, j + e, added)) {
        if (f.grad_scores) {
          gradient = f.grad_scores[row * p.m + j + e];
        } else {
          const float a = exp_fast(x[e][i] + added - f.lse[row]);
          const float keep = p.seed ? kept(p, b, i, j + e) : 1.f;
          float y = f.grad_context ? g[e][i] : 0.f;
          if (f.grad_weights) y += f.grad_weights[row * p.m + j + e];
          weighs = dropped(a, keep);
          gradient = a * (dropped(y, keep) - job.delta[row]);
          if (f.grad_mask && lane == 0)
            atomicAdd(f.grad_mask + offset(p.batch, b, f.mask_lead) + i * f.mask_row +
                          (j + e) * f.mask_col,
                      gradient);
        }
      }
      total += gradient;
      if (i < p.n && lane == 0) {
        ds[i * kBackwardKeys + e] = gradient;
        used[i * kBackwardKeys + e] = weighs;
      }
    }
  return total;
}

// Block (b, part of the keys): (E4)-(E6).
__global__ void __launch_bounds__(kBlock)
    step_backward_kernel(const __grid_constant__ Problem p, const __grid_constant__ StepJob job) {
  SHARED_ARRAY(float, ds, kStep * kBackwardKeys);
  SHARED_ARRAY(float, used, kStep * kBackwardKeys);
  SHARED_ARRAY(float, totals, kWarps);
  const Backward& f = job.f;
  const int part = blockIdx.x % job.parts, warp = threadIdx.x / 32;
  const int64_t b = blockIdx.x / job.parts;
  const int columns = length_of(p.lengths, p.batch, b, p.lengths.lead, p.m);
  const int tiles = static_cast<int>(ceil_div(p.m, kBackwardKeys));
  const int share = static_cast<int>(ceil_div(tiles, job.parts));
  const int64_t query_at = offset(p.batch, b, p.query.lead);
  const int64_t key_at = offset(p.batch, b, p.key.lead);
  const int64_t weight_at = offset(p.batch, b, p.weight.lead);
  const Rows query(p.query, query_at, p.d), key(p.key, key_at, p.d),
      weight(p.weight, weight_at, p.d);
  const float gain = p.gain * kLog2e, factor = p.scale * (p.logistic ? p.span * p.gain : 1.f);
  float* const grad_query = job.query.row(part, b * p.n);
  float* const grad_weight = job.weight.row(part, b);
  float total = 0;

  for (int jt = part * share; jt < min((part + 1) * share, tiles); jt++) {
    const int j0 = jt * kBackwardKeys, e0 = warp * kAtOnce;
    const int there = min(kBackwardKeys, p.m - j0), count = min(there, columns - j0);
    if (j0 + e0 < columns)
      total += few_gradients(ds + e0, used + e0, p, job, query, key, weight, b, j0 + e0, columns);
    __syncthreads();
    for (int t = threadIdx.x; t < p.d; t += kBlock) {
      const float w =
          factor * load(p.weight.data, p.weight.dtype, weight_at + t * p.weight.col);
      float q[kStep], dq[kStep], dw = 0;
#pragma unroll
      for (int i = 0; i < kStep; i++) {
        q[i] = i < p.n ? load(p.query.data, p.query.dtype,
                              query_at + i * p.query.row + t * p.query.col)
                       : 0.f;
        dq[i] = 0;
      }
      for (int j = 0; j < there; j++) {
        float dk = 0;
        if (j < count) {
          const float k = load(p.key.data, p.key.dtype,
                               key_at + (j0 + j) * p.key.row + t * p.key.col);
#pragma unroll
          for (int i = 0; i < kStep; i++)
            if (i < p.n) {
              const float x = q[i] + k, s = ds[i * kBackwardKeys + j];
              const float r = p.logistic ? logistic(x, gain) : rectified(x, p.slope, p.floor);
              const float g = p.logistic ? fmaf(-r, r, r) : rectified_slope(x, p.slope);
              dw = fmaf(s, r, dw);
              dq[i] = fmaf(s, g, dq[i]);
              dk = fmaf(s, g, dk);
            }
        }
        if (f.grad_key.data)
          store(f.grad_key.data, f.grad_key.dtype, (b * p.m + j0 + j) * p.d + t, w * dk);
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
          if (j < count && f.grad_context)
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

void step_forward(const Problem& p, const Split& out, const Host& host) {
  launch("step", step_kernel, p.batch.count * out.splits, kBlock, 0, host.stream, p, out);
}

void step_backward(const Problem& p, const Backward& f, const Host& host) {
  const int parts = parts_for(p.batch.count, ceil_div(p.m, kBackwardKeys), host);
  const int copies = f.deterministic ? parts : 1;
  StepJob job{f, nullptr, {}, {}, parts};
  job.query = sum_for(f.grad_query.data, copies, p.batch.count * p.n, p.d, host);
  job.weight = sum_for(f.grad_weight, copies, p.batch.count, p.d + 1, host);
  if (!f.grad_scores) {
    float* const delta = host.allocate<float>(p.batch.count * p.n);
    make_delta(p, f, delta, host);
    job.delta = delta;
  }
  launch("step_backward", step_backward_kernel, p.batch.count * parts, kBlock, 0, host.stream, p,
         job);
  const float factor = p.scale * (p.logistic ? p.span * p.gain : 1.f);
  finish(job.query, p, f.grad_query, p.n, true, factor, host);
  finish_weight(job.weight, p, f.grad_weight, host);
}

}  // namespace attnkernels::cuda
