// The types of torch's stable ABI that the operators use, and the element types of tensors.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "common/dtype.h"

namespace attnkernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

inline Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::Double: return Dtype::f64;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    case ScalarType::Bool: return Dtype::boolean;
    case ScalarType::Int: return Dtype::i32;
    case ScalarType::Long: return Dtype::i64;
    default:
      STD_TORCH_CHECK(false,
                      "attnkernels: a tensor must be of dtype float32, float64, bfloat16, float16, "
                      "bool, int32 or int64, got ",
                      toString(t.scalar_type()));
      return {};
  }
}

// The dtype of the arithmetic: double for float64, float for all others.
inline ScalarType accumulator(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace attnkernels
