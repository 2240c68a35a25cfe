// The sweep of a tile by a block: dq, dk and dw from ds, (E5) and (E6).
#pragma once
#include "cuda/score.h"
#include "cuda/sweep.h"

namespace attnkernels::cuda {

constexpr int kHalves = kTile / kSweep;
static_assert(kHalves * kSweep == kTile);

// Sweep hidden units `begin` to `end` of a tile: a warp has 32 of them and half of the queries at a
// time. ds: shared memory, by key, then query, kPitch apart. gradients(half): where to add.
template <class Act, class To>
__device__ __forceinline__ void sweep_tile(const float* ds, const Problem& p, const Act& act,
                                           const Place& at, int it, int jt, int begin, int end,
                                           const To& gradients) {
  unsigned thread = threadIdx.x;
  if constexpr (kHasSines<Act>) forget(thread);  // there this is the exception
  const int items = kHalves * static_cast<int>(ceil_div(end - begin, 32)), lane = thread % 32;
  float half_sum =
      0;  // in lane e of each half: half the sum of the ds of its queries e, e + 4, ...
  if (Act::kLogistic && lane < 4 * kHalves)
    half_sum = sum_as_sweep(ds + lane / 4 * kSweep + lane % 4, min(at.keys.end - jt * kTile, kTile),
                            kPitch) /
               2;
  auto sweep = [&]<Sweep way>(std::integral_constant<Sweep, way>) {
    for (int item = thread / 32; item < items; item += kThreads / 32) {
      const int half = item % kHalves, t = begin + item / kHalves * 32 + lane;
      const int first = half * kSweep;
      float halves[4];
#pragma unroll
      for (int e = 0; e < 4; e++) halves[e] = __shfl_sync(kWarp, half_sum, 4 * half + e);
      if (it * kTile + first >= at.queries || t >= end) continue;
      sweep_unit<way>(p, act, at, it, jt, first, t, ds + first, kPitch, halves, gradients(half));
    }
  };
  if constexpr (Act::kLogistic) {
    const Ranges ranges(p, at.query_panel + it, at.key_panel + jt);
    if (!(ranges.size <= Limit::factored))
      sweep(std::integral_constant<Sweep, Sweep::direct>{});
    else if (ranges.sum <= Limit::pair)
      sweep(std::integral_constant<Sweep, Sweep::shared>{});
    else
      sweep(std::integral_constant<Sweep, Sweep::single>{});
  } else {
    sweep(std::integral_constant<Sweep, Sweep::pointwise>{});
  }
}

}  // namespace attnkernels::cuda
