// The activations of (E1) as the kernels see them: plain constants, shared by every device.
#pragma once
#include <cstdint>

namespace attnkernels {

enum class Activation : int64_t { tanh = 0, sigmoid = 1, relu = 2, leaky_relu = 3 };

// tanh and sigmoid are one function of r = 1 / (1 + exp(gain * x)), (E7):
//   f(x) = 1 - span * r,   f'(x) = span * gain * r * (1 - r)     (E8)
// so one kernel serves both. The others have 1 for both, which changes nothing.
struct Logistic {
  double gain, span;
};

constexpr bool is_logistic(Activation a) {
  return a == Activation::tanh || a == Activation::sigmoid;
}

constexpr Logistic logistic(Activation a) {
  return a == Activation::tanh ? Logistic{2, 2} : Logistic{1, 1};
}

}  // namespace attnkernels
