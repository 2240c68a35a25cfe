// Every CPU kernel on several threads, called from several threads at once, for ThreadSanitizer. It
// sees only threads that it knows how to wait for, so the host has std::thread instead of torch's.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "cpu/problem.h"

#define ATTNKERNELS_NAME_(isa) kernels_##isa
#define ATTNKERNELS_NAME(isa) ATTNKERNELS_NAME_(isa)

namespace attnkernels::cpu {
extern const Kernels ATTNKERNELS_NAME(CPU_CAPABILITY);
}

namespace {

using namespace attnkernels;
using namespace attnkernels::cpu;

constexpr int kCallers = 3, kThreads = 3;
const Kernels& table = ATTNKERNELS_NAME(CPU_CAPABILITY);

class StdHost {
 public:
  const Host host{kThreads, this, allocate, run};

 private:
  static void* allocate(void* self, int64_t bytes) {
    auto& memory = static_cast<StdHost*>(self)->memory_;
    memory.push_back(std::make_unique<double[]>(bytes / 8 + 1));
    return memory.back().get();
  }

  static void run(void*, int64_t tasks, void (*call)(const void*, int64_t, int64_t),
                  const void* f) {
    std::atomic<int64_t> next = 0;
    std::vector<std::thread> workers;
    for (int64_t worker = 0; worker < kThreads; worker++)
      workers.emplace_back([&, worker] {
        for (int64_t t = next++; t < tasks; t = next++) call(f, t, worker);
      });
    for (std::thread& worker : workers) worker.join();
  }

  std::vector<std::unique_ptr<double[]>> memory_;
};

struct Shape {
  int64_t items, n, m, d, dv;
  bool masked, packed;
};

template <class T>
using Numbers = std::vector<T>;

template <class T>
Numbers<T> normal(int64_t count) {
  static std::mt19937 generator(0);
  std::normal_distribution<T> distribution;
  Numbers<T> out(count);
  for (T& x : out) x = distribution(generator);
  return out;
}

template <class T>
constexpr Dtype dtype = sizeof(T) == 8 ? Dtype::f64 : Dtype::f32;

template <class T>
Matrix matrix(const Numbers<T>& x, int64_t columns, int64_t first_row = 0) {
  return Matrix{x.data(), columns, 1, dtype<T>}.at(first_row);
}

template <class T>
Output output(Numbers<T>& x) {
  return {x.data(), dtype<T>};
}

// The results of one call of every operator.
template <class T>
using Results = std::vector<Numbers<T>>;

template <class T>
class Calls {
 public:
  Calls(const Shape& shape, Activation activation, const Table<T>& kernels)
      : s_(shape), kernels_(kernels), query_(normal<T>(s_.items * s_.n * s_.d)),
        key_(normal<T>(s_.items * s_.m * s_.d)), value_(normal<T>(s_.items * s_.m * s_.dv)),
        weight_(normal<T>(s_.d)), mask_(normal<T>(s_.n * s_.m)),
        grad_context_(normal<T>(s_.items * s_.n * s_.dv)), grad_lse_(normal<T>(s_.items * s_.n)),
        grad_pairs_(normal<T>(s_.items * s_.n * s_.m)) {
    for (int64_t b = 0; b < s_.items; b++) {
      Item item{};
      item.query = matrix(query_, s_.d, b * s_.n);
      item.key = matrix(key_, s_.d, b * s_.m);
      item.value = matrix(value_, s_.dv, b * s_.m);
      item.weight = matrix(weight_, s_.d);
      if (s_.masked) item.mask = matrix(mask_, s_.m);  // one mask: its gradient has many writers
      item.n = s_.n;
      item.m = s_.masked ? s_.m - b : s_.m;
      item.key_rows = s_.m;
      item.query_row = item.pair_row = b * s_.n;
      item.key_row = b * s_.m;
      item.counter = b;
      items_.push_back(item);
    }
    base_ = {items_.data(),
             s_.items,
             s_.n,
             s_.d,
             s_.dv,
             s_.m,
             activation,
             0.2,
             1.0,
             s_.masked,
             Dropout{s_.masked ? 0.3 : 0.0, 7}};
  }

  Results<T> operator()() const {
    const int64_t rows = s_.items * s_.n, keys = s_.items * s_.m;
    Numbers<T> context(rows * s_.dv), lse(rows), weights(rows * s_.m), scores(rows * s_.m),
        packed(s_.items * panel_count(s_.m) * packed_rows(s_.d) * kPanel);
    std::vector<Item> items = items_;
    Problem base = base_;
    if (s_.packed) {
      base.items = items.data();
      for (int64_t b = 0; b < s_.items; b++) items[b].packed = pack(b, packed);
    }
    StdHost host;
    kernels_.forward({base, context.data(), lse.data(), weights.data()}, host.host);
    kernels_.scores({base_, scores.data()}, host.host);

    Backward<T> back{};
    static_cast<Problem&>(back) = base_;
    back.context = context.data();
    back.lse = lse.data();
    back.weights = weights.data();
    back.grad_context = matrix(grad_context_, s_.dv);
    back.grad_lse = matrix(grad_lse_, 1);
    back.grad_weights = matrix(grad_pairs_, s_.m);
    Numbers<T> query(rows * s_.d), key(keys * s_.d), value(keys * s_.dv), weight(s_.items * s_.d),
        mask(s_.n * s_.m), query2 = query, key2 = key, weight2 = weight;
    back.grad_query = output(query);
    back.grad_key = output(key);
    back.grad_value = output(value);
    back.grad_weight = weight.data();
    if (s_.masked) {
      back.grad_mask = mask.data();
      back.grad_mask_row = s_.m;
      back.grad_mask_col = 1;
    }
    kernels_.backward(back, host.host);

    Backward<T> of_scores{};
    static_cast<Problem&>(of_scores) = base_;
    of_scores.grad_scores = grad_pairs_.data();
    of_scores.grad_query = output(query2);
    of_scores.grad_key = output(key2);
    of_scores.grad_weight = weight2.data();
    kernels_.backward(of_scores, host.host);
    return {context, lse, weights, scores, query, key, value, weight, mask, query2, key2, weight2};
  }

 private:
  const T* pack(int64_t b, Numbers<T>& packed) const {
    const int64_t panels = panel_count(s_.m);
    T* out = packed.data() + b * panels * packed_rows(s_.d) * kPanel;
    StdHost host;
    host.host.run(panels, [&](int64_t panel, int64_t) {
      kernels_.pack({items_[b].key, s_.m, s_.d, base_.activation, out}, panel);
    });
    return out;
  }

  const Shape s_;
  const Table<T>& kernels_;
  const Numbers<T> query_, key_, value_, weight_, mask_, grad_context_, grad_lse_, grad_pairs_;
  std::vector<Item> items_;
  Problem base_;
};

template <class T>
bool same(const Results<T>& a, const Results<T>& b) {
  for (size_t k = 0; k < a.size(); k++)
    if (std::memcmp(a[k].data(), b[k].data(), a[k].size() * sizeof(T))) {
      std::printf("result %zu differs between callers\n", k);
      return false;
    }
  return true;
}

template <class T>
bool try_shape(const Shape& shape, Activation activation, const Table<T>& kernels) {
  const Calls<T> calls(shape, activation, kernels);
  std::vector<Results<T>> results(kCallers);
  std::vector<std::thread> callers;
  for (Results<T>& mine : results) callers.emplace_back([&] { mine = calls(); });
  for (std::thread& caller : callers) caller.join();
  bool fine = true;
  for (const Results<T>& each : results) fine = same(results[0], each) && fine;
  return fine;
}

}  // namespace

int main() {
  const Shape shapes[] = {
      {3, 70, 133, 35, 21, false, false}, {3, 70, 133, 35, 21, true, false},
      {1, 1, 600, 40, 16, false, true},   {2, 4, 133, 35, 21, true, true},
      {1, 300, 40, 16, 5, false, false},  {9, 5, 33, 20, 8, true, false},
  };
  bool fine = true;
  for (const Shape& shape : shapes)
    for (const ActivationInfo& f : kActivations) {
      fine = try_shape<float>(shape, f.code, table.f32) && fine;
      fine = try_shape<double>(shape, f.code, table.f64) && fine;
    }
  std::printf("%s kernels: %d callers of %d threads, %s\n", table.isa, kCallers, kThreads,
              fine ? "the same results" : "DIFFERENT RESULTS");
  return fine ? 0 : 1;
}
