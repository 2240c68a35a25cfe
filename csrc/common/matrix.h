// Matrices as they lie in memory, without torch's types.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace attnkernels {

// A matrix of inputs. Strides count elements, and a stride of 0 is a broadcast.
struct Matrix {
  const void* data = nullptr;
  int64_t row = 0, col = 0;
  Dtype dtype = Dtype::f32;

  Matrix at(int64_t i, int64_t j = 0) const {
    auto* bytes = static_cast<const char*>(data) + (i * row + j * col) * element_size(dtype);
    return {bytes, row, col, dtype};
  }
};

// Element k of int32 or int64.
inline int64_t integer_at(const void* data, Dtype dtype, int64_t k) {
  return dtype == Dtype::i32 ? static_cast<const int32_t*>(data)[k]
                             : static_cast<const int64_t*>(data)[k];
}

// A contiguous result in its dtype; data is null if it is not wanted.
struct Output {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
};

}  // namespace attnkernels
