// What the two passes of the gradients over edges share. The first (edge_targets.cu) leaves ds and
// the weights that were used, a pair per edge and head, to the second (edge_sources.cu).
#pragma once
#include "cuda/edge_sums.h"
#include "cuda/sums.h"

namespace attnkernels::cuda {

// ds and the weight of every edge, in the order by target: (edges, batch). The weight of an edge
// that its bias excludes is kExcluded.
constexpr float kExcluded = -1;

// The derivatives of a score by w and by x, but for factors: r and r - r^2, or f and f'.
template <class Act>
struct Slopes {
  float to_w, to_x;
  __device__ __forceinline__ Slopes(const Act& act, float x) {
    if constexpr (Act::kLogistic) {
      to_w = act.r(x);
      to_x = fmaf(-to_w, to_w, to_w);
    } else {
      to_w = act.value(x);
      to_x = act.slope(x);
    }
  }
};

// dk and du, from the pairs of the first pass.
void edge_sources(const EdgeProblem&, const EdgeBackward&, const float2* pairs, const Host&);

}  // namespace attnkernels::cuda
