// The operators over edges for CPU tensors: allocate the results and call the kernels of this
// processor.
#include "cpu/edges.h"
#include "cpu/sort_edges.h"
#include "torch/cpu_host.h"
#include "torch/edge_call.h"

namespace {

using namespace attnkernels;
using namespace attnkernels::cpu;

const int64_t* integers(const Tensor& t) { return static_cast<const int64_t*>(t.const_data_ptr()); }

// A call as the kernels take it: one set of operands per leading index, which are never copied if
// the elements of their rows are next to each other.
class EdgeCall {
 public:
  const EdgeShapes shapes;

  explicit EdgeCall(const EdgeArguments& in) : shapes(in), in_(in) {
    operand(in.query, 2, &EdgeHead::query);
    operand(in.key, 2, &EdgeHead::key);
    if (in.value) operand(*in.value, 2, &EdgeHead::value);
    operand(in.weight, 1, &EdgeHead::weight);
    if (in.edge_key) operand(*in.edge_key, 2, &EdgeHead::edge_key);
    if (in.edge_bias) operand(*in.edge_bias, 1, &EdgeHead::edge_bias);
  }

  void describe(EdgeProblem& p) const {
    p.heads = heads_.data();
    p.head_count = static_cast<int64_t>(heads_.size());
    p.n = shapes.n;
    p.m = shapes.m;
    p.edges = shapes.edges;
    p.d = shapes.d;
    p.dv = shapes.dv;
    p.keys_are_values = !in_.value;
    p.by_target = {shapes.n, integers(in_.edges.target_begin), integers(in_.edges.source),
                   integers(in_.edges.order)};
    p.by_source = {shapes.m, integers(in_.edges.source_begin), integers(in_.edges.target),
                   integers(in_.edges.place)};
    p.activation = in_.activation;
    p.negative_slope = in_.negative_slope;
    p.scale = in_.scale;
    if (in_.seed) p.dropout = {in_.dropout_p, seed_of(*in_.seed)};
  }

  // Hidden units and value columns of all edges and nodes.
  int64_t work() const {
    return (shapes.edges + shapes.n + shapes.m) * (shapes.d + shapes.dv) *
           static_cast<int64_t>(heads_.size());
  }

  // Raise for edges that lead out of the operands, which only a call through torch.ops can have.
  void check(const Host& host, bool by_source) const {
    const EdgeOrders& e = in_.edges;
    check_begin(host, e.target_begin, "target_begin");
    check_places(host, e.source, shapes.m, "source");
    check_places(host, e.order, shapes.edges, "order");
    if (!by_source) return;
    check_begin(host, e.source_begin, "source_begin");
    check_places(host, e.target, shapes.n, "target");
    check_places(host, e.place, shapes.edges, "place");
  }

 private:
  const EdgeArguments& in_;
  std::vector<Tensor> copies_;
  std::vector<EdgeHead> heads_;

  void operand(const Tensor& t, int64_t trailing, Matrix EdgeHead::* field) {
    heads_.resize(shapes.leading.count());
    copies_.push_back(trailing == 2 ? in_rows(t) : t);
    const Slices at = slices(copies_.back(), trailing, shapes.leading);
    for (size_t k = 0; k < heads_.size(); k++) heads_[k].*field = at[static_cast<int64_t>(k)];
  }

  static constexpr int64_t kChunk = 1 << 16;
  template <class F>
  static bool all(const Host& host, int64_t count, const F& holds) {
    std::atomic<bool> fine = true;
    host.run((count + kChunk - 1) / kChunk, [&](int64_t k, int64_t) {
      if (!holds(k * kChunk, std::min(count, (k + 1) * kChunk))) fine = false;
    });
    return fine;
  }
  void check_places(const Host& host, const Tensor& t, int64_t count, const char* name) const {
    const int64_t* x = integers(t);
    const bool fine = all(host, t.numel(), [&](int64_t first, int64_t last) {
      uint64_t most = 0;
      for (int64_t k = first; k < last; k++) most = std::max(most, static_cast<uint64_t>(x[k]));
      return most < static_cast<uint64_t>(count);
    });
    STD_TORCH_CHECK(fine, "attnkernels: ", name, " must lie in [0, ", count - 1, "]");
  }
  void check_begin(const Host& host, const Tensor& t, const char* name) const {
    const int64_t *x = integers(t), count = t.numel();
    const bool fine = all(host, count - 1, [&](int64_t first, int64_t last) {
      bool rises = true;
      for (int64_t k = first; k < last; k++) rises &= x[k] <= x[k + 1];
      return rises;
    });
    STD_TORCH_CHECK(fine && x[0] == 0 && x[count - 1] == shapes.edges, "attnkernels: ", name,
                    " must rise from 0 to ", shapes.edges);
  }
};

// Call f(T{}, table of T) with the arithmetic T of inputs of this dtype.
template <class F>
void dispatch(const Tensor& like, const F& f) {
  if (accumulator(like) == ScalarType::Double)
    f(double{}, edge_kernels().f64);
  else
    f(float{}, edge_kernels().f32);
}

template <class T>
HeadRows<T> rows_of(const Tensor& t, const EdgeShapes& s, int64_t rows, int64_t cols) {
  return {data<T>(t), rows, cols, s.together()};
}

HeadGradient gradient_of(const Tensor& t, const EdgeShapes& s, int64_t rows, int64_t cols) {
  return {{data<char>(t), rows, cols, s.together()}, dtype_of(t)};
}

struct CpuEdges {
  static Tensors3 forward(const EdgeArguments& in, bool return_weights) {
    const EdgeCall call(in);
    const EdgeShapes& s = call.shapes;
    const ScalarType type = accumulator(in.query);
    Tensor context = empty_by_row(in.query, s.rows(s.n, s.dv), 2, type, "context"),
           lse = empty_by_row(in.query, s.leading.with({s.n}), 1, type, "lse"),
           weights = return_weights
                         ? empty_by_row(in.query, s.leading.with({s.edges}), 1, type, kWeights)
                         : s.softmax(in.query, type);
    TorchHost torch(in.query, call.work());
    call.check(torch.host, false);
    dispatch(in.query, [&](auto t, const auto& table) {
      using T = decltype(t);
      EdgeForward<T> p{};
      call.describe(p);
      p.context = rows_of<T>(context, s, s.n, s.dv);
      p.lse = rows_of<T>(lse, s, s.n, 1);
      if (return_weights)
        p.weights = rows_of<T>(weights, s, s.edges, 1);
      else
        p.softmax = rows_of<T>(weights, s, s.n, 2);
      table.forward(p, torch.host);
    });
    return {context, lse, weights};
  }

  static Tensors6 backward(const EdgeArguments& in, const Outputs& given, int64_t wanted) {
    const EdgeCall call(in);
    const EdgeShapes& s = call.shapes;
    const ScalarType type = in.query.scalar_type(), arithmetic = accumulator(in.query);
    auto gradient = [&](const Tensor* x, int64_t trailing, int64_t bit, const char* name) {
      return s.gradient(x, trailing, wanted & bit, trailing == 2 ? type : arithmetic, in.query,
                        name);
    };
    Tensor query = gradient(&in.query, 2, kQuery, "query"), key = gradient(&in.key, 2, kKey, "key"),
           value = gradient(in.value, 2, kValue, "value"),
           edge_key = gradient(in.edge_key, 2, kEdgeKey, "edge_key"),
           edge_bias = gradient(in.edge_bias, 1, kEdgeBias, "edge_bias"),
           weight = s.weight_gradient(in.weight, wanted & kWeight);
    const Tensor context = by_row(given.context, 2), lse = by_row(given.lse, 1);
    auto optional = [](const Maybe& t, int64_t trailing) {
      return t && t->numel() ? Maybe(by_row(*t, trailing)) : std::nullopt;
    };
    const Maybe grad_context = optional(given.grad_context, 2),
                grad_lse = optional(given.grad_lse, 1),
                grad_weights = optional(given.grad_weights, 1);
    const bool is_softmax = s.is_softmax(given);
    const Maybe weights = optional(given.weights, is_softmax ? 2 : 1);
    TorchHost torch(in.query, call.work());
    call.check(torch.host, true);
    dispatch(in.query, [&](auto t, const auto& table) {
      using T = decltype(t);
      EdgeBackward<T> p{};
      call.describe(p);
      auto place = [&](HeadRows<const T>& rows, const Maybe& t, int64_t count, int64_t cols) {
        if (t) rows = rows_of<const T>(*t, s, count, cols);
      };
      place(p.context, context, s.n, s.dv);
      place(p.lse, lse, s.n, 1);
      if (is_softmax)
        place(p.softmax, weights, s.n, 2);
      else
        place(p.weights, weights, s.edges, 1);
      place(p.grad_context, grad_context, s.n, s.dv);
      place(p.grad_lse, grad_lse, s.n, 1);
      place(p.grad_weights, grad_weights, s.edges, 1);
      p.grad_query = gradient_of(query, s, s.n, s.d);
      p.grad_key = gradient_of(key, s, s.m, s.d);
      p.grad_value = gradient_of(value, s, s.m, s.dv);
      p.grad_edge_key = gradient_of(edge_key, s, s.edges, s.d);
      p.grad_edge_bias = rows_of<T>(edge_bias, s, s.edges, 1);
      p.grad_weight = data<T>(weight);
      table.backward(p, torch.host);
    });
    return {query, key, value, weight, edge_key, edge_bias};
  }
};

Tensors2 sort(const Tensor& ends, int64_t nodes) {
  STD_TORCH_CHECK(nodes >= 0, "attnkernels: nodes must be at least 0, got ", nodes);
  check_ends(ends, ends.numel(), "ends");
  Tensor begin = empty(ends, {nodes + 1}, ScalarType::Long, "the order of edges"),
         order = empty(ends, {ends.numel()}, ScalarType::Long, "the order of edges");
  TorchHost torch(ends, ends.numel() + nodes);
  const bool fine = sort_edges(integers(ends), ends.numel(), nodes,
                               static_cast<int64_t*>(begin.mutable_data_ptr()),
                               static_cast<int64_t*>(order.mutable_data_ptr()), torch.host);
  STD_TORCH_CHECK(fine, "attnkernels: ends must lie in [0, ", nodes - 1, "]");
  return {begin, order};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnkernels, CPU, m) {
  EdgeOperators<CpuEdges>::implement(m);
  m.impl("native_sort_edges", TORCH_BOX(&sort));
}
