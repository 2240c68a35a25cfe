// The partial sums of a backward: gradients in float32, added to by many blocks, then finished.
//
// Blocks add with atomics that return nothing. Where torch asks for determinism each part of the
// work has a copy of its own, to which one thread adds in its own order; otherwise there is one.
#pragma once
#include "cuda/maths.h"

namespace attnkernels::cuda {

struct Sum {
  float* data = nullptr;  // (copies, rows, cols); null: not wanted
  int copies = 1;
  int64_t rows = 0, cols = 0;

  // Row `i` of the copy of part k; null where it is not wanted.
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

// out = factor w_t sum over copies, with w the weight of the problem where `weighted`.
void finish(const Sum&, const Problem&, const Output&, int64_t rows_each, bool weighted,
            float factor, const Host&);
// The gradient of weight from sums over pairs of ds r, or ds f, and last of ds: (copies, batch,
// d + 1), (E6).
void finish_weight(const Sum&, const Problem&, float* out, const Host&);

// delta_i of (E4), (batch, n): all that a row subtracts. null for raw scores, which have none.
const float* make_delta(const Problem&, const Backward&, const Host&);

// The factor, beside w_t, that makes gradients of sums of ds g: f' = span gain (r - r^2), (E8), or g
// itself where the activation is pointwise.
inline float gradient_factor(const Problem& p) {
  const ActivationInfo& f = info(p.activation);
  return p.scale * static_cast<float>(f.span * f.gain);
}

}  // namespace attnkernels::cuda
