// The element types of tensors.
#pragma once
#include <cstdint>

namespace attnkernels {

enum class Dtype : int { f32, bf16, f16, f64, boolean, i32, i64 };

constexpr int64_t element_size(Dtype t) {
  switch (t) {
    case Dtype::f64:
    case Dtype::i64: return 8;
    case Dtype::f32:
    case Dtype::i32: return 4;
    case Dtype::boolean: return 1;
    default: return 2;
  }
}

}  // namespace attnkernels
