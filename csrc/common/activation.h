// The activations f of (E1): one table for every device. attnkernels/ops/codes.py has the same
// table for Python, and tests/ops/test_codes.py compares the two.
#pragma once
#include <cstdint>

#include "common/contract.h"

namespace attnkernels {

enum class Activation : int64_t { tanh = 0, sigmoid = 1, relu = 2, leaky_relu = 3 };

// A logistic activation is f(x) = 1 - span * r with r = 1 / (1 + exp(gain * x)), (E7), and
// f'(x) = span * gain * r * (1 - r), (E8): one kernel serves all of them. A pointwise one is
// computed from x itself, and its gain and span are 1.
enum class Family { logistic, pointwise };

struct ActivationInfo {
  Activation code;
  const char* name;
  Family family;
  double gain, span;
};

constexpr ActivationInfo kActivations[] = {
    {Activation::tanh, "tanh", Family::logistic, 2, 2},
    {Activation::sigmoid, "sigmoid", Family::logistic, 1, 1},
    {Activation::relu, "relu", Family::pointwise, 1, 1},
    {Activation::leaky_relu, "leaky_relu", Family::pointwise, 1, 1},
};

constexpr bool is_fast(int64_t code) { return code & kFast; }

// Return the entry of a code, whether or not kFast was added to it, or null for a code that is not
// in the table.
constexpr const ActivationInfo* find_activation(int64_t code) {
  for (const ActivationInfo& f : kActivations)
    if (static_cast<int64_t>(f.code) == (code & ~kFast))
      return is_fast(code) && f.family != Family::logistic ? nullptr : &f;
  return nullptr;
}

// The entry of a code that the operator has checked.
constexpr const ActivationInfo& info(Activation f) {
  return *find_activation(static_cast<int64_t>(f));
}

constexpr bool is_logistic(Activation f) { return info(f).family == Family::logistic; }

}  // namespace attnkernels
