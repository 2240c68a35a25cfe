// The results of the operators: tensors in the dtype of the arithmetic, on the device of the
// inputs.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "common/contract.h"
#include "common/matrix.h"
#include "torch/leading.h"

namespace attnkernels {

// A contiguous tensor on the device of `on`. It comes directly from the C interface, since
// new_empty would take a microsecond in the dispatcher, which matters for small calls.
inline Tensor empty(const Tensor& on, const Sizes& sizes, ScalarType type) {
  Sizes strides(sizes.size());
  int64_t step = 1;
  for (size_t k = sizes.size(); k-- > 0; step *= std::max<int64_t>(1, sizes[k])) strides[k] = step;
  const int32_t dtype = type == ScalarType::Double     ? aoti_torch_dtype_float64()
                        : type == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                        : type == ScalarType::Half     ? aoti_torch_dtype_float16()
                                                       : aoti_torch_dtype_float32();
  int32_t device = 0, index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(on.get(), &device));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(on.get(), &index));
  AtenTensorHandle out;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()),
                                                         sizes.data(), strides.data(), dtype,
                                                         device, index, &out));
  Tensor result(out);
#ifdef ATTNKERNELS_POISON  // in tests, elements that are not written are NaN
  if (result.numel())
    std::memset(result.mutable_data_ptr(), 0xff,
                result.numel() * (type == ScalarType::Double  ? 8
                                  : type == ScalarType::Float ? 4
                                                              : 2));
#endif
  return result;
}
inline Tensor empty(const Tensor& on, const Sizes& sizes) {
  return empty(on, sizes, accumulator(on));
}
inline Tensor zeros(const Tensor& on, const Sizes& sizes) {
  Tensor out = empty(on, sizes);
  torch::stable::zero_(out);
  return out;
}
inline Tensor nothing(const Tensor& on) { return empty(on, {0}); }

inline Tensor dense(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

template <class T>
T* data(const Tensor& t) {
  return t.numel() ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}

inline Output output_of(const Tensor& t) {
  return {t.numel() ? t.mutable_data_ptr() : nullptr, dtype_of(t)};
}

inline Sizes sizes_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

// The gradient of x, in the shape and the dtype of x.
inline Tensor gradient(const Tensor& x, int64_t wanted) {
  return wanted ? empty(x, sizes_of(x), x.scalar_type()) : nothing(x);
}

}  // namespace attnkernels
