// The partial sums of a backward: float32 gradients to which many blocks add, and their finish.
// Blocks add with atomics that return nothing. If torch asks for determinism, each part of the work
// has a copy of its own, to which a single thread adds in a fixed order; otherwise there is one
// copy.
#pragma once
#include "cuda/maths.h"

namespace attnkernels::cuda {

struct Sum {
  float* data = nullptr;  // (copies, rows, cols); null: not wanted
  int copies = 1;
  int64_t rows = 0, cols = 0;

  // Return row `i` of the copy of part k, or null if the sum is not wanted.
  __device__ __forceinline__ float* row(int64_t k, int64_t i) const {
    return data ? data + ((copies == 1 ? 0 : k) * rows + i) * cols : nullptr;
  }
};

inline Sum sum_for(bool wanted, int64_t copies, int64_t rows, int64_t cols, const Host& host) {
  Sum out;
  if (!wanted) return out;
  out = {host.allocate<float>(copies * rows * cols), static_cast<int>(copies), rows, cols};
  zero(out.data, copies * rows * cols * static_cast<int64_t>(sizeof(float)), host.stream);
  return out;
}

// Set out to factor w_t times the sum over copies, or without `weighted` to factor times the sum.
void finish(const Sum&, const Problem&, const Output&, int64_t rows_each, bool weighted,
            float factor, const Host&);
// Compute the gradient of weight, (E6), from (copies, batch, d + 1): the sums over pairs of
// ds (r - 1/2) or ds f, followed by the sum of ds. A hidden unit that is zero, where tanh is, adds
// exactly 0 to them.
void finish_weight(const Sum&, const Problem&, float* out, const Host&);

// Return the factor, beside w_t, that turns sums of ds g into gradients: f' = span gain (r - r^2),
// (E8), and g = r - r^2 or, for a pointwise activation, f' itself.
inline float gradient_factor(const Problem& p) {
  const ActivationInfo& f = info(p.activation);
  return p.scale * static_cast<float>(f.span * f.gain);
}

}  // namespace attnkernels::cuda
