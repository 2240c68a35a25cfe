// The results of the operators: tensors in the dtype of the arithmetic, on the device of the
// inputs.
#pragma once
#include <torch/csrc/stable/ops.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>

#include "common/contract.h"
#include "common/matrix.h"
#include "torch/leading.h"

namespace attnkernels {

inline std::string text_of(const Sizes& sizes) {
  std::string out;
  for (int64_t size : sizes) out += (out.empty() ? "(" : ", ") + std::to_string(size);
  return out.empty() ? "()" : out + (sizes.size() == 1 ? ",)" : ")");
}

inline int64_t bytes_of(ScalarType type) {
  if (type == ScalarType::Double || type == ScalarType::Long) return 8;
  return type == ScalarType::Float ? 4 : 2;
}

// A number of bytes in three digits, such as "4.00 TB".
inline std::string text_of_bytes(double bytes) {
  const char* const units[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
  size_t unit = 0;
  for (; bytes >= 1000 && unit + 1 < std::size(units); unit++) bytes /= 1000;
  char out[32];
  std::snprintf(out, sizeof(out), "%.3g %s", bytes, units[unit]);
  return out;
}

// Raise the error of a tensor that could not be allocated. attnkernels/ops/failures.py makes
// torch.OutOfMemoryError of it, by its words.
[[noreturn]] inline void refuse_size(const char* name, const Sizes& sizes, ScalarType type) {
  const char* dtype = type == ScalarType::Double     ? "float64"
                      : type == ScalarType::BFloat16 ? "bfloat16"
                      : type == ScalarType::Half     ? "float16"
                      : type == ScalarType::Long     ? "int64"
                                                     : "float32";
  double bytes = static_cast<double>(bytes_of(type));
  for (int64_t size : sizes) bytes *= static_cast<double>(size);
  throw std::runtime_error("attnkernels: " + std::string(name) + " must fit in memory, got shape " +
                           text_of(sizes) + " of " + dtype + ", " + text_of_bytes(bytes));
}

inline Sizes contiguous_strides(const Sizes& sizes) {
  Sizes strides(sizes.size());
  int64_t step = 1;
  for (size_t k = sizes.size(); k-- > 0; step *= std::max<int64_t>(1, sizes[k])) strides[k] = step;
  return strides;
}

// Ask for huge pages where a large tensor of a CPU will be. The C library returns memory of this
// size whenever it is freed, and a fault for each new page of 4 KiB would take as long as a kernel.
// Systems that give nobody huge pages ignore it.
inline void prefer_huge_pages([[maybe_unused]] const Tensor& t) {
#ifdef __linux__
  constexpr uintptr_t kLarge = 32 << 20, kPage = 2 << 20;
  const uintptr_t bytes = static_cast<uintptr_t>(t.numel() * bytes_of(t.scalar_type()));
  if (bytes < kLarge) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(t.mutable_data_ptr()),
                  first = (begin + kPage - 1) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), (begin + bytes) / kPage * kPage - first, MADV_HUGEPAGE);
#endif
}

// A tensor without gaps on the device of `on`; errors call it `name`. It comes directly from the C
// interface, since new_empty would take a microsecond in the dispatcher, which matters for small
// calls.
inline Tensor empty_strided(const Tensor& on, const Sizes& sizes, const Sizes& strides,
                            ScalarType type, const char* name) {
  const int32_t dtype = type == ScalarType::Double     ? aoti_torch_dtype_float64()
                        : type == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                        : type == ScalarType::Half     ? aoti_torch_dtype_float16()
                        : type == ScalarType::Long     ? aoti_torch_dtype_int64()
                                                       : aoti_torch_dtype_float32();
  int32_t device = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(on.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(on.get(), &index));
  AtenTensorHandle out;
  if (aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               dtype, device, index, &out))
    refuse_size(name, sizes, type);
  Tensor result(out);
  if (device == aoti_torch_device_type_cpu()) prefer_huge_pages(result);
#ifdef ATTNKERNELS_POISON  // in tests, elements that are not written are NaN
  if (result.numel()) std::memset(result.mutable_data_ptr(), 0xff, result.numel() * bytes_of(type));
#endif
  return result;
}
inline Tensor empty(const Tensor& on, const Sizes& sizes, ScalarType type, const char* name) {
  return empty_strided(on, sizes, contiguous_strides(sizes), type, name);
}
inline Tensor empty(const Tensor& on, const Sizes& sizes, const char* name) {
  return empty(on, sizes, accumulator(on), name);
}
inline Tensor zeros(const Tensor& on, const Sizes& sizes, const char* name) {
  Tensor out = empty(on, sizes, name);
  torch::stable::zero_(out);
  return out;
}
constexpr const char* kWeights = "weights (return_weights=True)";

inline Tensor nothing(const Tensor& on) { return empty(on, {0}, "an empty tensor"); }

// What the backward needs of a softmax, (leading, 2 n): for each row the maximum of its scores and
// the sum of exp(s - maximum). It takes the place of weights that are not returned.
inline Tensor softmax_of(const Tensor& on, const Leading& leading, int64_t n) {
  return empty(on, leading.with({2 * n}), "the state of the softmax");
}
inline bool is_softmax(const Tensor& weights, const Tensor& lse) {
  return weights.dim() == lse.dim();
}

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
inline Tensor gradient(const Tensor& x, int64_t wanted, const char* name) {
  return wanted ? empty(x, sizes_of(x), x.scalar_type(), name) : nothing(x);
}

}  // namespace attnkernels
