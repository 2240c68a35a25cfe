// What the two passes of the gradients over edges share. The first (edge_targets.cu) leaves ds and
// the weights that were used, a pair per edge and head, to the second (edge_sources.cu).
#pragma once
#include "cuda/edge_sums.h"
#include "cuda/sums.h"

namespace attnkernels::cuda {

// ds and the weight of every edge, in the order by target: (edges, batch). The weight of an edge
// that its bias excludes is kExcluded.
constexpr float kExcluded = -1;

// What an edge with the gradient ds of its score adds: to those of q and k, ds g, and to that of w,
// ds r or ds f; see gradient_factor() for g. A NaN in x is one in ds.
template <class Act>
class EdgeTerm {
 public:
  __device__ __forceinline__ EdgeTerm(const Act& act, float ds) : act_(act), ds_(ds) {
    if constexpr (!Act::kLogistic) low_ = ds * act.negative;
  }
  __device__ __forceinline__ float to_x(float x) const {
    if constexpr (Act::kLogistic) {
      const float r = act_.r(x);
      return ds_ * fmaf(-r, r, r);
    } else {
      return x > 0 ? ds_ : low_;
    }
  }
  __device__ __forceinline__ float to_w(float x) const {
    if constexpr (Act::kLogistic)
      return ds_ * act_.r(x);
    else
      return to_x(x) * max_nan(x, act_.floor);
  }

 private:
  const Act& act_;
  float ds_, low_ = 0;
};

// dk and du, from the pairs of the first pass.
void edge_sources(const EdgeProblem&, const EdgeBackward&, const float2* pairs, const Host&);

}  // namespace attnkernels::cuda
