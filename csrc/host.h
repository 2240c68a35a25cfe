// torch's threads and torch's memory, as the kernels use them.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <vector>

#include "cpu/problem.h"

namespace attnkernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline ScalarType accumulator(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

class TorchHost {
 public:
  explicit TorchHost(const Tensor& like)
      : host{static_cast<int>(torch::stable::get_num_threads()), this, allocate, run}, like_(like) {}
  TorchHost(const TorchHost&) = delete;

  const cpu::Host host;

 private:
  static void* allocate(void* self, int64_t bytes) {
    auto& me = *static_cast<TorchHost*>(self);
    const ScalarType type = accumulator(me.like_);
    const int64_t unit = type == ScalarType::Double ? 8 : 4;
    if (bytes == 0) return nullptr;
    me.memory_.push_back(torch::stable::new_empty(me.like_, std::vector<int64_t>{(bytes + unit - 1) / unit}, type));
    return me.memory_.back().mutable_data_ptr();
  }

  // Each thread takes the next task when it is free.
  static void run(void* self, int64_t tasks, void (*call)(const void*, int64_t, int64_t), const void* f) {
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

  const Tensor& like_;
  std::vector<Tensor> memory_;
};

}  // namespace attnkernels
