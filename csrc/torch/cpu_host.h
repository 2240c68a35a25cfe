// Torch's threads and memory for the CPU kernels.
#pragma once
#include <atomic>
#include <utility>

#include "cpu/problem.h"
#include "torch/outputs.h"

namespace attnkernels {

class TorchHost {
 public:
  // Use all of torch's threads, or fewer if the work is too small for them.
  TorchHost(const Tensor& on, int64_t work)
      : host{static_cast<int>(
                 std::min<int64_t>(torch::stable::get_num_threads(), 1 + work / kGrain)),
             this, allocate, run},
        on_(on) {}
  TorchHost(const TorchHost&) = delete;

  const cpu::Host host;

 private:
  static constexpr int64_t kGrain = 1
                                    << 15;  // hidden units of pairs, a few microseconds per thread

  // The memory of a small call is part of the host, on the stack, because a tensor takes half a
  // microsecond; not so if tests poison or guard allocations.
  static void* allocate(void* self, int64_t bytes) {
    if (bytes == 0) return nullptr;
    auto& me = *static_cast<TorchHost*>(self);
#ifndef ATTNKERNELS_POISON
    const int64_t whole_lines = (bytes + 63) / 64 * 64;
    if (whole_lines <= kSmall - me.used_)
      return me.small_ + std::exchange(me.used_, me.used_ + whole_lines);
#endif
    me.memory_.push_back(empty(me.on_, {(bytes + 3) / 4}, ScalarType::Float));
    return me.memory_.back().mutable_data_ptr();
  }

  // Every thread begins with its own share of the tasks, the same in every call of this size, so
  // that its caches still have the data of the last call. Then it takes tasks from the other
  // shares.
  static void run(void* self, int64_t tasks, void (*call)(const void*, int64_t, int64_t),
                  const void* f) {
    const int64_t workers = std::min<int64_t>(static_cast<TorchHost*>(self)->host.threads, tasks);
    if (workers <= 1) {
      for (int64_t t = 0; t < tasks; t++) call(f, t, 0);
      return;
    }
    struct alignas(64) Share {
      std::atomic<int64_t> next;
      int64_t end;
    };
    std::vector<Share> shares(workers);
    for (int64_t w = 0; w < workers; w++) {
      shares[w].next = w * tasks / workers;
      shares[w].end = (w + 1) * tasks / workers;
    }
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; worker++)
        for (int64_t k = 0; k < workers; k++) {
          Share& share = shares[(worker + k) % workers];
          for (int64_t t = share.next++; t < share.end; t = share.next++) call(f, t, worker);
        }
    });
  }

  static constexpr int64_t kSmall = 1 << 16;
  alignas(64) char small_[kSmall];
  int64_t used_ = 0;
  const Tensor& on_;
  std::vector<Tensor> memory_;
};

}  // namespace attnkernels
