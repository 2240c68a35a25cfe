// A few queries against many keys, as in a decoder: bound by reading every key and value once.
//
//   for every 64 keys, a block of 256 threads                    shared memory
//     scores: 8 keys per warp, 8 or 4 at a time, lanes along the   scores, 64 floats per query
//       hidden units, 16 or 8 bytes per load             (step.h)
//     softmax: one warp per query
//     context = alpha context + p value: 4 columns per thread,     sums of threads, 4 KiB per query
//       over every so many keys; one of these threads adds them up
//
// Nothing is prepared: the activation is computed from rows as they lie, by two special functions
// and five other instructions per element. That is 8 elements per clock and processor of an H100,
// whose memory delivers 3.5 of bfloat16 keys and as many of values. Such a kernel is bound by the
// number of bytes in flight, 2 KiB per warp.
#include "cuda/step.h"

namespace attnkernels::cuda {
namespace {

// Keys of a warp at a time, for N queries: as many as registers allow.
template <int N>
constexpr int kAtOnce = N == 1 ? 8 : 4;
constexpr int kValues = 8;  // rows of values that a thread reads at a time, 2 KiB or more per warp

__device__ __forceinline__ void add_scaled(float4& x, float s, const float4& y) {
  x = make_float4(fmaf(s, y.x, x.x), fmaf(s, y.y, x.y), fmaf(s, y.z, x.z), fmaf(s, y.w, x.w));
}

// Set context to alpha context + sum of s value over keys `begin` to `count` of a tile, or to that
// sum until `started`.
// A thread has four columns of every so many keys, and one of these threads sums them.
template <int N>
__device__ __forceinline__ void add_values(float* context, const float* s, const float* alphas,
                                           float4* parts, const Problem& p, const Rows& value,
                                           int j0, int begin, int count, bool started) {
  const int quads = static_cast<int>(ceil_div(p.dv, 4));
  for (int first = 0; first < quads; first += kBlock) {
    const int width = min(quads - first, kBlock), groups = kBlock / width;
    const int group = threadIdx.x / width, c = 4 * (first + threadIdx.x % width);
    float4 x[N] = {};
    if (group < groups)
      by_fours(value, [&](auto fours) {
        auto add = [&](int j, const float4& u) {
#pragma unroll
          for (int i = 0; i < N; i++) add_scaled(x[i], s[i * kStepKeys + j], u);
        };
        int j = begin + group;
#pragma unroll 1
        for (; j + (kValues - 1) * groups < count; j += kValues * groups) {
          typename decltype(fours)::Bits bits[kValues];
#pragma unroll
          for (int r = 0; r < kValues; r++)
            bits[r] = fours.read(value, j0 + j + r * groups, c, p.dv);
#pragma unroll
          for (int r = 0; r < kValues; r++) add(j + r * groups, fours.numbers(bits[r]));
        }
#pragma unroll 1
        for (; j < count; j += groups) add(j, fours.numbers(fours.read(value, j0 + j, c, p.dv)));
      });
#pragma unroll
    for (int i = 0; i < N; i++) parts[i * kBlock + threadIdx.x] = x[i];
    __syncthreads();
    if (group == 0)
#pragma unroll
      for (int i = 0; i < N; i++)
        if (i < p.n) {
          float4 sum = make_float4(0, 0, 0, 0);
          for (int g = 0; g < groups; g++)
            add_scaled(sum, 1, parts[i * kBlock + g * width + threadIdx.x]);
          const float part[4] = {sum.x, sum.y, sum.z, sum.w};
          float* const row = context + static_cast<int64_t>(i) * p.dv;
#pragma unroll
          for (int e = 0; e < 4; e++)
            if (c + e < p.dv) row[c + e] = part[e] + (started ? alphas[i] * row[c + e] : 0.f);
        }
    __syncthreads();  // s, alphas and parts have been read
  }
}

// Block (b, split of the keys).
template <int N, class Act>
__global__ void __launch_bounds__(kBlock, 2)
    step_kernel(const __grid_constant__ Problem p, const __grid_constant__ Split out,
                const __grid_constant__ Act act) {
  constexpr int K = kAtOnce<N>;
  SHARED_ARRAY(float, s, (N * kStepKeys));  // scores, then the weights that values get
  SHARED_ARRAY(float, alphas, N);
  SHARED_ARRAY(float4, parts, (N * kBlock));
  const int split = blockIdx.x % out.splits, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t b = blockIdx.x / out.splits;
  const Keys keys = keys_of(p, b);
  const int end = seen_keys(p.window, p.n, keys.end), first_tile = keys.first / kStepKeys;
  const int tiles = static_cast<int>(ceil_div(end, kStepKeys));
  const int share = static_cast<int>(ceil_div(max(tiles - first_tile, 0), out.splits));
  const int begin_tile = first_tile + split * share;
  const int64_t mask_at = offset(p.batch, b, p.mask.lead);
  const Rows query(p.query, offset(p.batch, b, p.query.lead), p.d);
  const Rows key(p.key, offset(p.batch, b, p.key.lead), p.d);
  const Rows weight(p.weight, offset(p.batch, b, p.weight.lead), p.d);
  const Rows value(p.value, offset(p.batch, b, p.value.lead), p.dv);
  const int64_t row0 = (split * p.batch.count + b) * p.n;

  float highest = -kInfinity, total = 0;  // for query `warp`
  bool started = false;
  for (int jt = begin_tile; jt < min(begin_tile + share, tiles); jt++) {
    const int j0 = jt * kStepKeys;
    if (p.mask.data) {
      float added;
      const int i = threadIdx.x / kStepKeys, j = threadIdx.x % kStepKeys;
      static_assert(kBlock >= kStep * kStepKeys);  // a thread for every pair
      if (!__syncthreads_or(takes_part(p, mask_at, p.n, keys, i, j0 + j, added))) continue;
    }
    const int begin = max(keys.first - j0, 0), count = min(kStepKeys, end - j0);
    if (out.lse) value.prefetch(j0 + begin, j0 + count, p.dv);
    for (int e0 = warp * K; e0 < count; e0 += kWarps * K) {
      if (e0 + K <= begin) continue;
      Few<N, K> x;
      few_scores<N, K>(x, p, act, query, key, weight, j0 + e0, keys.end);
      if (lane == 0)
#pragma unroll
        for (int e = 0; e < K; e++)
#pragma unroll
          for (int i = 0; i < N; i++) s[i * kStepKeys + e0 + e] = x[e][i];
    }
    __syncthreads();
    if (warp < p.n) {
      static_assert(kWarps >= kStep &&
                    kStepKeys == 2 * 32);  // one warp per query, two keys per lane
      float x[2], high = highest, sum = 0;
      for (int h = 0; h < 2; h++) {
        const int j = j0 + lane + 32 * h;
        float added;
        const bool taken = takes_part(p, mask_at, p.n, keys, warp, j, added);
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
    if (out.lse)
      add_values<N>(out.context + row0 * p.dv, s, alphas, parts, p, value, j0, begin, count,
                    started);
    __syncthreads();
    started = true;
  }
  if (!out.lse) return;

  if (warp < p.n && lane == 0) {
    out.lse[row0 + warp] = highest + logf(total);
    if (out.softmax) {
      out.softmax[2 * (row0 + warp)] = highest;
      out.softmax[2 * (row0 + warp) + 1] = total;
    }
    alphas[warp] = total == 0 ? 1.f : total;
  }
  __syncthreads();
  for (int c = threadIdx.x; c < p.dv; c += kBlock)
    for (int i = 0; i < p.n; i++) {
      const int64_t at = (row0 + i) * p.dv + c;
      store(out.result.data, out.result.dtype, at, started ? out.context[at] / alphas[i] : 0.f);
    }
}

}  // namespace

void step_forward(const Problem& p, const Split& out, const Host& host) {
  by_activation(p, [&](auto act) {
    using Act = decltype(act);
    launch("step", p.n == 1 ? step_kernel<1, Act> : step_kernel<kStep, Act>,
           p.batch.count * out.splits, kBlock, 0, host.stream, p, out, act);
  });
}

}  // namespace attnkernels::cuda
