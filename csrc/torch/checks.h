// Checks of arguments that keep the kernels within memory. attnkernels/functional/checks.py makes
// the checks that users meet; these are for calls through torch.ops.
#pragma once
#include <algorithm>
#include <string>

#include "common/activation.h"
#include "torch/types.h"

namespace attnkernels {

// The activation of a code, or an error that names the known ones.
inline Activation activation_of(int64_t code) {
  const ActivationInfo* found = find_activation(code);
  if (found) return found->code;
  std::string known;
  for (const ActivationInfo& f : kActivations)
    known += (known.empty() ? "" : ", ") + std::to_string(static_cast<int64_t>(f.code)) + " (" +
             f.name + ")";
  STD_TORCH_CHECK(false, "attnkernels: activation must be one of ", known, ", got ", code);
  return {};
}

}  // namespace attnkernels
