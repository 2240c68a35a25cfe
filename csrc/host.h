// torch's threads and torch's memory, as the kernels use them.
#pragma once
#include <atomic>

#include "cpu/problem.h"
#include "outputs.h"

namespace attnkernels {

class TorchHost {
 public:
  // As many threads as torch has, and no more than the work is worth waking.
  TorchHost(const Tensor& on, int64_t work)
      : host{static_cast<int>(
                 std::min<int64_t>(torch::stable::get_num_threads(), 1 + work / kGrain)),
             this, allocate, run},
        on_(on) {}
  TorchHost(const TorchHost&) = delete;

  const cpu::Host host;

 private:
  static constexpr int64_t kGrain = 1 << 15;  // hidden units of pairs: some microseconds

  static void* allocate(void* self, int64_t bytes) {
    if (bytes == 0) return nullptr;
    auto& me = *static_cast<TorchHost*>(self);
    me.memory_.push_back(empty(me.on_, {(bytes + 3) / 4}, ScalarType::Float));
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

  const Tensor& on_;
  std::vector<Tensor> memory_;
};

}  // namespace attnkernels
