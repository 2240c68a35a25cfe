// Every kernel of dense attention on small problems, without torch: its start under
// compute-sanitizer would take longer than all of this. Each tensor is an allocation of its own, so
// that an access past its end is noticed.
//
// Built with ATTNKERNELS_EMULATED, it runs on a CPU.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/device.h"
#include "cuda/problem.h"

namespace attnkernels::cuda {
namespace {

constexpr int kBatch = 2, kKeys = 133, kColumns = 21;
struct Size {
  int n, units;
};
// a step, the largest step, more than a tile, and enough hidden units for slices (sliced.h)
constexpr Size kSizes[] = {{1, 35}, {4, 35}, {70, 35}, {70, 260}};

#ifdef ATTNKERNELS_EMULATED
void* reserve(size_t bytes) { return ::operator new(bytes); }
void release(void* memory) { ::operator delete(memory); }
void copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
#else
void* reserve(size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes), "memory");
  return memory;
}
void release(void* memory) { check(cudaFree(memory), "the kernels"); }
void copy(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "the kernels");
}
#endif

// The tensors of a call, released with it.
class Memory {
 public:
  explicit Memory(unsigned seed) : random_(seed) {}
  Memory(const Memory&) = delete;
  ~Memory() {
    for (void* each : held_) release(each);
  }

  template <class T>
  T* unset(int64_t count) {
    held_.push_back(reserve(static_cast<size_t>(count) * sizeof(T)));
    return static_cast<T*>(held_.back());
  }
  template <class T>
  T* of(const std::vector<T>& numbers) {
    T* const memory = unset<T>(static_cast<int64_t>(numbers.size()));
    copy(memory, numbers.data(), numbers.size() * sizeof(T));
    return memory;
  }
  float* normal(int64_t count) {
    std::normal_distribution<float> draw;
    std::vector<float> numbers(static_cast<size_t>(count));
    for (float& each : numbers) each = draw(random_);
    return of(numbers);
  }
  // Normal numbers of a dtype, (batch, rows, cols) or, for the weight, (cols).
  Matrix matrix(Dtype dtype, int64_t rows, int64_t cols, bool whole = true) {
    std::normal_distribution<float> draw;
    const int64_t count = (whole ? kBatch * rows : 1) * cols;
    std::vector<float> wide(static_cast<size_t>(count));
    std::vector<uint16_t> narrow(wide.size());
    for (size_t k = 0; k < wide.size(); k++) {
      wide[k] = draw(random_);
      uint32_t bits;
      std::memcpy(&bits, &wide[k], sizeof bits);
      narrow[k] = static_cast<uint16_t>(bits >> 16);
    }
    Matrix out;
    static_cast<attnkernels::Matrix&>(out) = {
        dtype == Dtype::f32 ? static_cast<const void*>(of(wide)) : of(narrow), cols, 1, dtype};
    if (whole) out.lead.along[0] = rows * cols;
    return out;
  }
  // A mask of bytes that lets most pairs take part.
  Matrix mask(int64_t n) {
    std::vector<uint8_t> bytes(static_cast<size_t>(n * kKeys));
    for (uint8_t& each : bytes) each = random_() % 4 != 0;
    Matrix out;
    static_cast<attnkernels::Matrix&>(out) = {of(bytes), kKeys, 1, Dtype::boolean};
    return out;
  }

  const Host host{nullptr, processors(0), this, [](void* self, int64_t bytes) -> void* {
                    return static_cast<Memory*>(self)->unset<char>(bytes);
                  }};

 private:
  std::mt19937 random_;
  std::vector<void*> held_;
};

struct Kind {
  const char* name;
  bool masked = false, lengths = false, dropout = false, window = false, weights = false;
};
constexpr Kind kKinds[] = {
    {"plain"},
    {"mask and weights", true, false, false, false, true},
    {"lengths and dropout", false, true, true, false, true},
    {"window", false, false, false, true, false},
};

Own own_of(bool whole, bool lengths = false) {
  Own own;
  if (!whole) return own;
  own.batch.rank = 1;
  own.batch.count = own.batch.sizes[0] = kBatch;
  own.index.along[0] = 1;
  if (lengths) own.lengths.along[0] = 1;
  return own;
}

// Compute all that a model can ask of one problem. Return false if a result is NaN or infinite.
bool attend(Dtype dtype, Activation activation, const Size& size, const Kind& kind,
            bool deterministic) {
  const int n = size.n, units = size.units;
  Memory memory(7);
  Problem p{};
  p.batch = own_of(true).batch;
  p.n = n, p.m = kKeys, p.d = units, p.dv = kColumns;
  p.query = memory.matrix(dtype, n, units);
  p.key = memory.matrix(dtype, kKeys, units);
  p.value = memory.matrix(dtype, kKeys, kColumns);
  p.weight = memory.matrix(dtype, 1, units, false);
  p.activation = activation, p.negative_slope = 0.2f, p.scale = 1.f;
  if (kind.masked) p.mask = memory.mask(n);
  if (kind.lengths) {
    static_cast<attnkernels::Matrix&>(p.lengths) = {memory.of<int64_t>({kKeys, 50}), 0, 0,
                                                    Dtype::i64};
    p.lengths.lead.along[0] = 1;
  }
  if (kind.window) p.window = {20, 3};
  if (kind.dropout) {
    p.seed = memory.of<int64_t>({3});
    p.threshold = uint64_t{1} << 30, p.keep_scale = 4 / 3.f;
  }
  Owners own{own_of(true), own_of(true, kind.lengths), own_of(false)};
  for (Own* each : {&own.query, &own.key})
    each->lead = each == &own.query ? p.query.lead : p.key.lead;

  const int64_t rows = kBatch * n, pairs = rows * kKeys;
  float* const context = memory.unset<float>(rows * kColumns);
  Forward f{{context, Dtype::f32},
            memory.unset<float>(rows),
            kind.weights ? memory.unset<float>(pairs) : nullptr,
            kind.weights ? nullptr : memory.unset<float>(2 * rows)};
  forward(p, own, f, memory.host);
  auto rounded = [&](int64_t count) {
    return Output{memory.unset<char>(count * element_size(dtype)), dtype};
  };
  forward(p, own, {rounded(rows * kColumns)}, memory.host);  // for inference

  Backward b;
  b.context = context, b.lse = f.lse, b.weights = f.weights, b.softmax = f.softmax;
  b.grad_context = memory.normal(rows * kColumns);
  if (kind.weights) b.grad_weights = memory.normal(pairs);
  b.grad_query = rounded(rows * units);
  b.grad_key = rounded(int64_t{kBatch} * kKeys * units);
  b.grad_value = rounded(int64_t{kBatch} * kKeys * kColumns);
  b.grad_weight = memory.unset<float>(kBatch * units);
  b.deterministic = deterministic;
  backward(p, own, b, memory.host);

  if (kind.name == kKinds[0].name) {
    float* const raw = memory.unset<float>(pairs);
    scores(p, own, raw, memory.host);
    Backward of_scores;
    of_scores.grad_scores = raw;
    of_scores.grad_query = b.grad_query, of_scores.grad_key = b.grad_key;
    of_scores.grad_weight = b.grad_weight, of_scores.deterministic = deterministic;
    backward(p, own, of_scores, memory.host);
    f.softmax = nullptr;
    const Forward of_tangents{{memory.unset<float>(rows * kColumns), Dtype::f32},
                              memory.unset<float>(rows)};
    forward_jvp(p, own, f, {p, own, of_tangents}, memory.host);
  }
  std::vector<float> found(static_cast<size_t>(rows * kColumns));
  copy(found.data(), context, found.size() * sizeof(float));
  for (float each : found)
    if (!std::isfinite(each)) return false;
  return true;
}

int run() {
  int calls = 0, wrong = 0;
  for (Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (Activation activation : {Activation::tanh, Activation::relu})
      for (const Size& size : kSizes)
        for (const Kind& kind : kKinds)
          for (bool deterministic : {false, true}) {
            const bool right = attend(dtype, activation, size, kind, deterministic);
            if (!right)
              std::printf("%s of %d queries and %d hidden units is not finite\n", kind.name, size.n,
                          size.units);
            calls++, wrong += !right;
          }
  std::printf("%d calls, %d wrong\n", calls, wrong);
  return wrong != 0;
}

}  // namespace
}  // namespace attnkernels::cuda

int main() { return attnkernels::cuda::run(); }
