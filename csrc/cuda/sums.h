// The partial sums of a backward: float32 gradients to which many blocks add, and their finish.
// Blocks add with atomics that return nothing. If torch asks for determinism, each part of the work
// has a copy of its own, to which a single thread adds in a fixed order; otherwise there is one
// copy.
#pragma once
#include "cuda/maths.h"

namespace attnkernels::cuda {

struct Sum {
  float* data = nullptr;  // (copies, rows, cols); null: not wanted, or empty
  int copies = 1;
  int64_t rows = 0, cols = 0;

  // Return row `i` of the copy of part k, or null if the sum is not wanted.
  __device__ __forceinline__ float* row(int64_t k, int64_t i) const {
    return data ? data + ((copies == 1 ? 0 : k) * rows + i) * cols : nullptr;
  }
};

inline Sum sum_for(bool wanted, int64_t copies, int64_t rows, int64_t cols) {
  return wanted ? Sum{nullptr, static_cast<int>(copies), rows, cols} : Sum{};
}

// The sums of a backward, each through sum_for(). A small call takes as long as its launches, so
// they are cleared by one, or in one before them, and finished by one.
struct Sums {
  Sum query, key, value, weight;  // that of weight is (copies, batch, d + 1)

  // Allocate those that are wanted, one after another, and return their size: `count` floats from
  // `data` on, which the caller clears.
  struct Memory {
    float* data;
    int64_t count;
  };
  Memory allocate(const Host&);
};

void clear(const Sums::Memory&, const Host&);

// Compute the gradients: of query and key, factor w_t times the sum over copies; of value, the sum;
// of weight, (E6), from the sums over pairs of ds (r - 1/2) or ds f, followed by the sum of ds. A
// hidden unit that is zero, where tanh is, adds exactly 0 to them.
void finish(const Sums&, const Problem&, const Backward&, const Host&);

// Return the factor, beside w_t, that turns sums of ds g into gradients: f' = span gain (r - r^2),
// (E8), and g = r - r^2 or, for a pointwise activation, f' itself.
inline float gradient_factor(const Problem& p) {
  const ActivationInfo& f = info(p.activation);
  return p.scale * static_cast<float>(f.span * f.gain);
}

}  // namespace attnkernels::cuda
