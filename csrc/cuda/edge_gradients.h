// What the two passes of the gradients over edges share. The first (edge_targets.cu) leaves ds and
// the weights that were used, a pair per edge and head, to the second (edge_sources.cu).
#pragma once
#include "cuda/edge_sums.h"
#include "cuda/sums.h"

namespace attnkernels::cuda {

// Arrays of (edges, batch), in the order by target.
struct EdgePairs {
  float2* pairs = nullptr;  // ds, and the weight: kExcluded if the bias excludes the edge
  // The signs of q + k for rows in registers, of which the derivative of a rectifier needs no more:
  // a bit per channel, and a byte per lane and load. The second pass then reads no query.
  uint8_t* signs = nullptr;
};
constexpr float kExcluded = -1;

// The bytes of a lane for an edge are `lanes` apart.
template <int V>
__device__ __forceinline__ uint8_t* signs_at(uint8_t* signs, const EdgeProblem& p, const Team& team,
                                             int64_t place) {
  return signs + (place * p.batch.count + team.b) * (V * team.lanes) + team.lane;
}

// What an edge with the gradient ds of its score adds: to those of q and k, ds g, and to that of w,
// ds r or ds f; see gradient_factor() for g. A NaN in x is one in ds.
template <class Act>
class EdgeTerm {
 public:
  __device__ __forceinline__ EdgeTerm(const Act& act, float ds) : act_(act), ds_(ds) {
    if constexpr (!Act::kLogistic) low_ = ds * act.negative;
  }
  __device__ __forceinline__ float to_x(float x) const {
    if constexpr (Act::kLogistic)
      return ds_ * act_.with_slope(x).y;
    else
      return x > 0 ? ds_ : low_;
  }
  // The same for a rectifier, from the sign of x.
  __device__ __forceinline__ float by_sign(bool positive) const { return positive ? ds_ : low_; }
  __device__ __forceinline__ float to_w(float x) const {
    if constexpr (Act::kLogistic)
      return ds_ * act_.with_slope(x).x;
    else
      return to_x(x) * max_nan(x, act_.floor);
  }

 private:
  const Act& act_;
  float ds_, low_ = 0;
};

// dk and du, from the pairs of the first pass.
void edge_sources(const EdgeProblem&, const EdgeBackward&, const EdgePairs&, const Host&);

}  // namespace attnkernels::cuda
