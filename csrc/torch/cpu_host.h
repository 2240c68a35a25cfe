// Torch's threads and memory, and Python's signals, for the CPU kernels.
#pragma once
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <utility>

#include "cpu/problem.h"
#include "torch/outputs.h"

namespace attnkernels {

// Functions of the Python that has loaded this library, which has no symbols of Python itself. Null
// in a program without Python.
struct Signals {
  int (*ensure_gil)() = nullptr;
  void (*release_gil)(int) = nullptr;
  int (*check)() = nullptr;  // run the handlers of signals that arrived; not 0 if one raised
  uint64_t main_thread = 0;  // only here Python runs handlers
};

inline Signals& signals() {
  static Signals of_python;
  return of_python;
}

// Read the argument `seed` of an operator: one number, or three for a block of a larger problem.
inline cpu::Seed seed_of(const Tensor& seed) {
  auto* numbers = static_cast<const int64_t*>(seed.const_data_ptr());
  cpu::Seed out{static_cast<uint64_t>(numbers[0])};
  if (seed.dim()) out = {out.bits, numbers[1], numbers[2]};
  return out;
}

class TorchHost {
 public:
  // Use all of torch's threads, or fewer if the work is too small for them.
  TorchHost(const Tensor& on, int64_t work)
      : host{static_cast<int>(
                 std::min<int64_t>(torch::stable::get_num_threads(), 1 + work / kGrain)),
             this, allocate, run, is_stopped},
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
    me.memory_.push_back(empty(me.on_, {(bytes + 3) / 4}, ScalarType::Float, "scratch"));
    return me.memory_.back().mutable_data_ptr();
  }

  // Every thread begins with its own share of the tasks, the same in every call of this size, so
  // that its caches still have the data of the last call. Then it takes tasks from the other
  // shares.
  static void run(void* self, int64_t tasks, void (*call)(const void*, int64_t, int64_t),
                  const void* f) {
    const int64_t workers = std::min<int64_t>(static_cast<TorchHost*>(self)->host.threads, tasks);
    if (workers <= 1) {
      for (int64_t t = 0; t < tasks && !is_stopped(self); t++) call(f, t, 0);
      return check_stopped(self);
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
          for (int64_t t = share.next++; t < share.end && !is_stopped(self); t = share.next++)
            call(f, t, worker);
        }
    });
    check_stopped(self);
  }

  // Ask Python ten times per second whether a signal's handler raises, as Ctrl-C's does: only on
  // the calling thread, which takes part in the work, and only if that is Python's main thread.
  static bool is_stopped(void* self) {
    auto& me = *static_cast<TorchHost*>(self);
    if (me.stopped_.load(std::memory_order_relaxed)) return true;
    const Signals& python = signals();
    if (!python.check || this_thread() != python.main_thread) return false;
    if (++me.asked_ % kTilesPerLook) return false;
    const auto now = std::chrono::steady_clock::now();
    if (me.next_look_ == Time{}) me.next_look_ = now + kBetweenLooks;
    if (now < me.next_look_) return false;
    me.next_look_ = now + kBetweenLooks;
    const int gil = python.ensure_gil();
    const bool raised = python.check() != 0;
    python.release_gil(gil);
    if (raised) me.stopped_ = true;
    return raised;
  }
  // Python's exception stays set: the operator's becomes one that it has caused.
  static void check_stopped(void* self) {
    if (static_cast<TorchHost*>(self)->stopped_)
      throw std::runtime_error("attnkernels: interrupted");
  }
  static uint64_t this_thread() { return (uint64_t)pthread_self(); }

  using Time = std::chrono::steady_clock::time_point;
  static constexpr int64_t kTilesPerLook = 16;
  static constexpr std::chrono::milliseconds kBetweenLooks{100};
  std::atomic<bool> stopped_ = false;
  int64_t asked_ = 0;
  Time next_look_{};

  static constexpr int64_t kSmall = 1 << 16;
  alignas(64) char small_[kSmall];
  int64_t used_ = 0;
  const Tensor& on_;
  std::vector<Tensor> memory_;
};

}  // namespace attnkernels
