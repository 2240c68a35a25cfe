// The operators on scores of keys that see earlier weights, for CPU tensors: allocate the results
// and call the kernels of this processor.
#include "cpu/aligned.h"
#include "torch/cpu_host.h"
#include "torch/operators.h"

namespace {

using namespace attnkernels;
using namespace attnkernels::cpu;

struct Aligned {
  const Tensor &query, &key, &weight, &seen, &filter;
  double scale;
  int64_t batch = query.size(0), d = query.size(1), m = key.size(1), channels = filter.size(0),
          taps = filter.size(1);

  // Raise for what would lead out of the tensors, which only a call through torch.ops can have.
  void check() const {
    check(query, {batch, d}, "query");
    check(key, {batch, m, d}, "key");
    check(weight, {d}, "weight");
    check(filter, {channels, taps, d}, "filter");
    check(seen, {batch, channels, m + taps - 1}, "seen");
  }
  void check(const Tensor& t, const Sizes& sizes, const char* name) const {
    STD_TORCH_CHECK(
        sizes_of(t) == sizes && t.is_contiguous() && t.scalar_type() == accumulator(query),
        "attnkernels: ", name, " must be contiguous, of shape ", text_of(sizes), " and of dtype ",
        toString(accumulator(query)), ", got ", shape_of(t), " and ", toString(t.scalar_type()));
  }

  // Call f(problem, table) with the arithmetic of the inputs.
  template <template <class> class Problem, class F>
  void run(const F& f) const {
    TorchHost torch(query, batch * m * (d + 1) * (channels * taps + 1));
    auto call = [&]<class T>(const AlignedTable<T>& table) {
      Problem<T> p{};
      p.batch = batch, p.m = m, p.d = d, p.channels = channels, p.taps = taps;
      p.query = data<T>(query), p.key = data<T>(key), p.weight = data<T>(weight);
      p.seen = data<T>(seen), p.filter = data<T>(filter);
      p.scale = static_cast<T>(scale);
      f(p, table, torch.host);
    };
    if (accumulator(query) == ScalarType::Double)
      call(aligned_kernels().f64);
    else
      call(aligned_kernels().f32);
  }
};

void check_rank(const Tensor& t, int64_t rank, const char* name) {
  STD_TORCH_CHECK(t.dim() == rank, "attnkernels: ", name, " must have ", rank,
                  " dimensions, got shape ", shape_of(t));
}

Aligned checked(const Tensor& query, const Tensor& key, const Tensor& weight, const Tensor& seen,
                const Tensor& filter, double scale) {
  check_rank(query, 2, "query");
  check_rank(key, 3, "key");
  check_rank(filter, 3, "filter");
  const Aligned in{query, key, weight, seen, filter, scale};
  in.check();
  return in;
}

Tensor scores(const Tensor& query, const Tensor& key, const Tensor& weight, const Tensor& seen,
              const Tensor& filter, double scale) {
  const Aligned in = checked(query, key, weight, seen, filter, scale);
  Tensor out = empty(query, {in.batch, in.m}, "scores");
  in.run<AlignedScores>([&]<class T>(AlignedScores<T>& p, const auto& table, const Host& host) {
    p.scores = data<T>(out);
    table.scores(p, host);
  });
  return out;
}

Tensors2 scores_backward(const Tensor& grad, const Tensor& query, const Tensor& key,
                         const Tensor& weight, const Tensor& seen, const Tensor& filter,
                         const Maybe& grad_key, const Maybe& grad_weight, const Maybe& grad_filter,
                         double scale) {
  const Aligned in = checked(query, key, weight, seen, filter, scale);
  in.check(grad, {in.batch, in.m}, "grad");
  if (grad_key) in.check(*grad_key, sizes_of(key), "grad_key");
  if (grad_weight) in.check(*grad_weight, sizes_of(weight), "grad_weight");
  if (grad_filter) in.check(*grad_filter, sizes_of(filter), "grad_filter");
  Tensor grad_query = empty(query, sizes_of(query), "the gradient of query"),
         grad_seen = empty(query, sizes_of(seen), "the gradient of seen");
  in.run<AlignedBackward>([&]<class T>(AlignedBackward<T>& p, const auto& table, const Host& host) {
    auto optional = [](const Maybe& t) -> T* { return t ? data<T>(*t) : nullptr; };
    p.grad_scores = data<T>(grad);
    p.grad_query = data<T>(grad_query);
    p.grad_seen = data<T>(grad_seen);
    p.grad_key = optional(grad_key);
    p.grad_weight = optional(grad_weight);
    p.grad_filter = optional(grad_filter);
    table.backward(p, host);
  });
  return {grad_query, grad_seen};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnkernels, CPU, m) {
  m.impl("native_aligned_scores", TORCH_BOX(&scores));
  m.impl("native_aligned_scores_backward", TORCH_BOX(&scores_backward));
}
