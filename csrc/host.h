// torch's threads and torch's memory, as the kernels use them.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/problem.h"

namespace attnkernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline ScalarType accumulator(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A contiguous CPU tensor, straight from the C interface: a small call feels the microsecond that
// new_empty takes through the dispatcher.
inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t k = sizes.size(); k-- > 0; step *= std::max<int64_t>(1, sizes[k])) strides[k] = step;
  const int32_t dtype = type == ScalarType::Double     ? aoti_torch_dtype_float64()
                        : type == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                        : type == ScalarType::Half     ? aoti_torch_dtype_float16()
                                                       : aoti_torch_dtype_float32();
  AtenTensorHandle out;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()),
                                                         sizes.data(), strides.data(), dtype,
                                                         aoti_torch_device_type_cpu(), 0, &out));
  return Tensor(out);
}
inline Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes) {
  return empty(sizes, accumulator(like));
}

class TorchHost {
 public:
  // As many threads as torch has, and no more than the work is worth waking.
  explicit TorchHost(int64_t work)
      : host{static_cast<int>(
                 std::min<int64_t>(torch::stable::get_num_threads(), 1 + work / kGrain)),
             this, allocate, run} {}
  TorchHost(const TorchHost&) = delete;

  const cpu::Host host;

 private:
  static constexpr int64_t kGrain = 1 << 15;  // hidden units of pairs: some microseconds

  static void* allocate(void* self, int64_t bytes) {
    if (bytes == 0) return nullptr;
    auto& me = *static_cast<TorchHost*>(self);
    me.memory_.push_back(empty({(bytes + 3) / 4}, ScalarType::Float));
    return me.memory_.back().mutable_data_ptr();
  }

  // Each thread takes the next task when it is free.
  static void run(void* self, int64_t tasks, void (*call)(const void*, int64_t, int64_t),
                  const void* f) {
    const int64_t workers = std::min<int64_t>(static_cast<TorchHost*>(self)->host.threads, tasks);
    if (workers <= 1) {
      for (int64_t t = 0; t < tasks; t++) call(f, t, 0);
      return;
    }
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; worker++)
        for (int64_t t = next++; t < tasks; t = next++) call(f, t, worker);
    });
  }

  std::vector<Tensor> memory_;
};

}  // namespace attnkernels
