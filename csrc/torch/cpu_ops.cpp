// The operators for CPU tensors, on torch's stable ABI: allocate the results and call the kernels
// of this processor.
#include <string>

#include "torch/cpu_call.h"
#include "torch/cpu_host.h"
#include "torch/schemas.h"

namespace {

using namespace attnkernels;
using namespace attnkernels::cpu;

// Call f(T{}, table of T) with the arithmetic T of inputs of this dtype.
template <class F>
void dispatch(const Tensor& like, const F& f) {
  if (accumulator(like) == ScalarType::Double)
    f(double{}, kernels().f64);
  else
    f(float{}, kernels().f32);
}

void describe(Problem& p, const Call& call, const Arguments& in) {
  p.items = call.items;
  p.count = call.items.count;
  p.queries = call.queries;
  p.keys = call.keys;
  p.key_rows = call.key_rows;
  p.d = call.d;
  p.dv = call.dv;
  p.pair_cols = call.m;
  p.activation = in.activation;
  p.negative_slope = in.negative_slope;
  p.scale = in.scale;
  p.window = in.window;
  if (in.seed) p.dropout = {in.dropout_p, seed_of(*in.seed)};
}

template <class T>
void compute(const Table<T>& table, const Forward<T>& p, const Host& host) {
  table.forward(p, host);
}
template <class T>
void compute(const Table<T>& table, const Scores<T>& p, const Host& host) {
  table.scores(p, host);
}
template <class T>
void compute(const Table<T>& table, const ForwardJvp<T>& p, const Host& host) {
  table.forward_jvp(p, host);
}
template <class T>
void compute(const Table<T>& table, const ScoresJvp<T>& p, const Host& host) {
  table.scores_jvp(p, host);
}
template <class T>
void compute(const Table<T>& table, const Backward<T>& p, const Host& host) {
  table.backward(p, host);
}

// Compute one of the problems of problem.h, whose outputs `place` sets.
template <template <class> class Operation, class Place>
void run(const Arguments& in, const Call& call, const Place& place) {
  TorchHost torch(in.query, call.work());
  dispatch(in.query, [&](auto t, const auto& table) {
    Operation<decltype(t)> p{};
    describe(p, call, in);
    p.host = &torch.host;
    place(p);
    compute(table, p, torch.host);
  });
}

Gradient gradient_of(const Tensor& t) {
  const int64_t width = t.numel() ? size_from_end(t, 1) : 1;
  return {output_of(t), t.numel() / width};
}

struct QueryKeyWeight {
  Tensor query, key, weight;

  QueryKeyWeight(const Arguments& in, int64_t wanted)
      : query(gradient(in.query, wanted & kQuery, "the gradient of query")),
        key(gradient(in.key, wanted & kKey, "the gradient of key")),
        weight(wanted & kWeight ? empty(in.query, sizes_of(in.weight), "the gradient of weight")
                                : nothing(in.query)) {}

  template <class T>
  void place(Backward<T>& p) const {
    p.grad_query = gradient_of(query);
    p.grad_key = gradient_of(key);
    p.grad_weight = data<T>(weight);
    p.weight_count = gradient_of(weight).rows;
  }
};

// The gradient of an output as a matrix: its last dimension, or a single column, and all before it
// as rows.
Matrix rows_of(const Maybe& grad, bool has_columns) {
  if (!grad || !grad->numel()) return {};
  return {grad->const_data_ptr(), has_columns ? size_from_end(*grad, 1) : 1, 1, dtype_of(*grad)};
}

Tensor context_of(const Arguments& in, const Call& call) {
  return empty(in.query, call.leading.with({call.n, call.dv}), "context");
}

// The results of the forward, or their tangents. With `keep`, what the backward needs of the
// softmax takes the place of weights that are not returned.
struct ContextLseWeights {
  Tensor context, lse, weights;
  bool returned;

  ContextLseWeights(const Arguments& in, const Call& call, bool return_weights, bool keep = false)
      : context(context_of(in, call)), lse(empty(in.query, call.leading.with({call.n}), "lse")),
        weights(return_weights ? zeros(in.query, call.leading.with({call.n, call.m}), kWeights)
                : keep         ? softmax_of(in.query, call.leading, call.n)
                               : nothing(in.query)),
        returned(return_weights) {}

  template <class T>
  void place(Forward<T>& p) const {
    p.context = data<T>(context);
    p.lse = data<T>(lse);
    (returned ? p.weights : p.softmax) = data<T>(weights);
  }
};

struct Cpu {
  static Tensors3 forward(const Arguments& in, bool return_weights) {
    const Call call(in);
    const ContextLseWeights out(in, call, return_weights, true);
    run<Forward>(in, call, [&]<class T>(Forward<T>& p) { out.place(p); });
    return {out.context, out.lse, out.weights};
  }

  static Tensor inference(const Arguments& in) {
    const Call call(in);
    const Tensor context = context_of(in, call);
    run<Forward>(in, call, [&]<class T>(Forward<T>& p) { p.context = data<T>(context); });
    const ScalarType wanted = in.query.scalar_type();
    return context.scalar_type() == wanted ? context : torch::stable::to(context, wanted);
  }

  static Tensors6 forward_jvp(const Arguments& in, const InputTangents& tangents,
                              bool return_weights) {
    const Call call(in, 0, false);
    const std::vector<Tangents> of_items = call.tangents(tangents);
    const ContextLseWeights out(in, call, return_weights), tangent(in, call, return_weights);
    run<ForwardJvp>(in, call, [&]<class T>(ForwardJvp<T>& p) {
      out.place(p);
      p.tangents = of_items.data();
      p.context_tangent = data<T>(tangent.context);
      p.lse_tangent = data<T>(tangent.lse);
      p.weights_tangent = data<T>(tangent.weights);
    });
    return {out.context, out.lse, out.weights, tangent.context, tangent.lse, tangent.weights};
  }

  static Tensors2 scores_jvp(const Arguments& in, const InputTangents& tangents) {
    const Call call(in, 0, false);
    const std::vector<Tangents> of_items = call.tangents(tangents);
    Tensor out = empty(in.query, call.leading.with({call.n, call.m}), "scores"),
           tangent = empty(in.query, call.leading.with({call.n, call.m}), "the tangent of scores");
    run<ScoresJvp>(in, call, [&]<class T>(ScoresJvp<T>& p) {
      p.scores = data<T>(out);
      p.tangents = of_items.data();
      p.scores_tangent = data<T>(tangent);
    });
    return {out, tangent};
  }

  static Tensor scores(const Arguments& in) {
    const Call call(in);
    Tensor out = empty(in.query, call.leading.with({call.n, call.m}), "scores");
    run<Scores>(in, call, [&]<class T>(Scores<T>& p) { p.scores = data<T>(out); });
    return out;
  }

  static Tensors3 scores_backward(const Arguments& in, const Tensor& grad, int64_t wanted) {
    const Call call(in, wanted);
    const QueryKeyWeight out(in, wanted);
    run<Backward>(in, call, [&]<class T>(Backward<T>& p) {
      p.grad_scores = data<T>(grad);
      out.place(p);
    });
    return {out.query, out.key, out.weight};
  }

  static Tensors5 backward(const Arguments& in, const Outputs& from, int64_t wanted) {
    const Call call(in, wanted);
    const QueryKeyWeight out(in, wanted);
    const Tensor grad_value = gradient(*in.value, wanted & kValue, "the gradient of value"),
                 grad_mask = wanted & kMask ? zeros(in.query, sizes_of(*in.attn_mask),
                                                    "the gradient of attn_mask")
                                            : nothing(in.query);
    run<Backward>(in, call, [&]<class T>(Backward<T>& p) {
      p.grad_context = rows_of(from.grad_context, true);
      p.grad_lse = rows_of(from.grad_lse, false);
      p.grad_weights = rows_of(from.grad_weights, true);
      p.context = data<T>(from.context);
      p.lse = data<T>(from.lse);
      (is_softmax(from.weights, from.lse) ? p.softmax : p.weights) = data<T>(from.weights);
      out.place(p);
      p.grad_value = gradient_of(grad_value);
      p.grad_mask = data<T>(grad_mask);
      p.grad_mask_row = call.mask_row;
      p.grad_mask_col = call.mask_col;
      p.is_block = wanted & kIsBlock;
    });
    return {out.query, out.key, grad_value, out.weight, grad_mask};
  }
};

Tensor pack_keys(const Tensor& key, int64_t activation) {
  const Activation f = activation_of(activation);
  STD_TORCH_CHECK(is_logistic(f), "attnkernels: keys are prepared for tanh and sigmoid, got ",
                  info(f).name);
  const int64_t m = size_from_end(key, 2), width = padded(size_from_end(key, 1)),
                groups = group_count(m);
  Leading leading;
  leading.include(key, 2);
  Tensor packed = empty(key, leading.with({groups, kGroupRows, width}), "packed_key");
  TorchHost torch(key, key.numel());
  dispatch(key, [&](auto t, const auto& table) {
    using T = decltype(t);
    const Slices at = slices(key, 2, leading);
    torch.host.run(leading.count() * groups, [&](int64_t task, int64_t) {
      const int64_t b = task / groups;
      T* out = data<T>(packed) + b * groups * kGroupRows * width;
      table.pack(PackKeys<T>{at[b], m, size_from_end(key, 1), f, out}, task % groups);
    });
  });
  return packed;
}

std::string isa() { return kernels().isa; }

// Take the addresses of Python's functions for `Signals`.
bool watch(int64_t ensure_gil, int64_t release_gil, int64_t check, int64_t main_thread) {
  signals() = {reinterpret_cast<int (*)()>(ensure_gil),
               reinterpret_cast<void (*)(int)>(release_gil), reinterpret_cast<int (*)()>(check),
               static_cast<uint64_t>(main_thread)};
  return true;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnkernels, CPU, m) {
  Operators<Cpu>::implement(m);
  Operators<Cpu>::implement_jvp(m);
  m.impl("native_pack_keys", TORCH_BOX(&pack_keys));
}

STABLE_TORCH_LIBRARY_FRAGMENT(attnkernels, m) { define_operators(m); }
STABLE_TORCH_LIBRARY_IMPL(attnkernels, CompositeExplicitAutograd, m) {
  m.impl("native_isa", TORCH_BOX(&isa));
  m.impl("native_watch", TORCH_BOX(&watch));
}
