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
  p.items = call.items.data();
  p.count = static_cast<int64_t>(call.items.size());
  p.queries = 0;
  for (const Item& item : call.items) p.queries = std::max(p.queries, item.n);
  p.d = call.d;
  p.dv = call.dv;
  p.pair_cols = call.m;
  p.activation = in.activation;
  p.negative_slope = in.negative_slope;
  p.scale = in.scale;
  p.causal = in.is_causal;
  if (in.seed) p.dropout = {in.dropout_p, *static_cast<const uint64_t*>(in.seed->const_data_ptr())};
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
    place(p);
    compute(table, p, torch.host);
  });
}

struct QueryKeyWeight {
  Tensor query, key, weight;

  QueryKeyWeight(const Arguments& in, const Call& c, int64_t wanted)
      : query(gradient(in.query, c.leading, wanted & kQuery)),
        key(gradient(in.key, c.leading, wanted & kKey)),
        weight(!(wanted & kWeight) ? nothing(in.query)
               : in.cu_seqlens_q   ? empty(in.query, c.leading.with({c.sequences, c.d}))
                                   : empty(in.query, c.leading.with({c.d}))) {}

  template <class T>
  void place(Backward<T>& p) const {
    p.grad_query = output_of(query);
    p.grad_key = output_of(key);
    p.grad_weight = data<T>(weight);
  }
};

// The gradient of a mask, in the mask's own shape: pairs that share an entry add to it.
class MaskGradient {
 public:
  MaskGradient(const Arguments& in, Call& call, int64_t wanted) : grad_(nothing(in.query)) {
    if (!(wanted & kMask)) return;
    STD_TORCH_CHECK(in.attn_mask, "attnkernels: attn_mask must be given to have a gradient");
    const Tensor& mask = *in.attn_mask;
    grad_ = zeros(in.query, Sizes(mask.sizes().begin(), mask.sizes().end()));
    const Slices at = slices(grad_, mask_rank(mask), call.leading);
    row_ = at.first().row;
    col_ = at.first().col;
    for (size_t b = 0; b < call.items.size(); b++)
      call.items[b].mask_grad = at.offset(static_cast<int64_t>(b));
  }

  template <class T>
  void place(Backward<T>& p) const {
    p.grad_mask = data<T>(grad_);
    p.grad_mask_row = row_;
    p.grad_mask_col = col_;
  }
  const Tensor& grad() const { return grad_; }

 private:
  Tensor grad_;
  int64_t row_ = 0, col_ = 0;
};

// The gradient of an output as a matrix: its last dimension, or a single column, and all before it
// as rows.
Matrix rows_of(const Maybe& grad, bool has_columns) {
  if (!grad || !grad->numel()) return {};
  return {grad->const_data_ptr(), has_columns ? size_from_end(*grad, 1) : 1, 1, dtype_of(*grad)};
}

// The results of the forward, or their tangents.
struct ContextLseWeights {
  Tensor context, lse, weights;

  ContextLseWeights(const Arguments& in, const Call& call, bool return_weights)
      : context(empty(in.query, call.leading.with({call.n, call.dv}))),
        lse(empty(in.query, call.leading.with({call.n}))),
        weights(return_weights ? zeros(in.query, call.leading.with({call.n, call.m}))
                               : nothing(in.query)) {}

  template <class T>
  void place(Forward<T>& p) const {
    p.context = data<T>(context);
    p.lse = data<T>(lse);
    p.weights = data<T>(weights);
  }
};

struct Cpu {
  static Tensors3 forward(const Arguments& in, bool return_weights) {
    const Call call(in);
    const ContextLseWeights out(in, call, return_weights);
    run<Forward>(in, call, [&]<class T>(Forward<T>& p) { out.place(p); });
    return {out.context, out.lse, out.weights};
  }

  static Tensors6 forward_jvp(const Arguments& in, const InputTangents& tangents,
                              bool return_weights) {
    const Call call(in);
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
    const Call call(in);
    const std::vector<Tangents> of_items = call.tangents(tangents);
    Tensor out = empty(in.query, call.leading.with({call.n, call.m})),
           tangent = empty(in.query, call.leading.with({call.n, call.m}));
    run<ScoresJvp>(in, call, [&]<class T>(ScoresJvp<T>& p) {
      p.scores = data<T>(out);
      p.tangents = of_items.data();
      p.scores_tangent = data<T>(tangent);
    });
    return {out, tangent};
  }

  static Tensor scores(const Arguments& in) {
    const Call call(in);
    Tensor out = empty(in.query, call.leading.with({call.n, call.m}));
    run<Scores>(in, call, [&]<class T>(Scores<T>& p) { p.scores = data<T>(out); });
    return out;
  }

  static Tensors3 scores_backward(const Arguments& in, const Tensor& grad, int64_t wanted) {
    const Call call(in);
    const QueryKeyWeight out(in, call, wanted);
    run<Backward>(in, call, [&]<class T>(Backward<T>& p) {
      p.grad_scores = data<T>(grad);
      out.place(p);
    });
    return {out.query, out.key, out.weight};
  }

  static Tensors5 backward(const Arguments& in, const Outputs& from, int64_t wanted) {
    Call call(in);
    const QueryKeyWeight out(in, call, wanted);
    const Tensor grad_value = gradient(*in.value, call.leading, wanted & kValue);
    const MaskGradient mask(in, call, wanted);
    run<Backward>(in, call, [&]<class T>(Backward<T>& p) {
      p.grad_context = rows_of(from.grad_context, true);
      p.grad_lse = rows_of(from.grad_lse, false);
      p.grad_weights = rows_of(from.grad_weights, true);
      p.context = data<T>(from.context);
      p.lse = data<T>(from.lse);
      p.weights = data<T>(from.weights);
      out.place(p);
      p.grad_value = output_of(grad_value);
      mask.place(p);
    });
    return {out.query, out.key, grad_value,
            in.cu_seqlens_q && wanted & kWeight ? summed(out.weight) : out.weight, mask.grad()};
  }

 private:
  // Over the sequences of a packed batch.
  static Tensor summed(const Tensor& weight) {
    const int64_t sequences = -2;
    return torch::stable::sum(weight, torch::headeronly::IntHeaderOnlyArrayRef(&sequences, 1));
  }
};

Tensor pack_keys(const Tensor& key, int64_t activation) {
  const Activation f = activation_of(activation);
  const int64_t m = size_from_end(key, 2), d = size_from_end(key, 1), panels = panel_count(m);
  Leading leading;
  leading.include(key, 2);
  Tensor packed = empty(key, leading.with({panels, packed_rows(d), kPanel}));
  TorchHost torch(key, key.numel());
  dispatch(key, [&](auto t, const auto& table) {
    using T = decltype(t);
    const Slices at = slices(key, 2, leading);
    torch.host.run(leading.count() * panels, [&](int64_t task, int64_t) {
      const int64_t b = task / panels;
      T* out = data<T>(packed) + b * panels * packed_rows(d) * kPanel;
      table.pack(PackKeys<T>{at[b], m, d, f, out}, task % panels);
    });
  });
  return packed;
}

std::string isa() { return kernels().isa; }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnkernels, CPU, m) {
  Operators<Cpu>::implement(m);
  Operators<Cpu>::implement_jvp(m);
  m.impl("native_pack_keys", TORCH_BOX(&pack_keys));
}

STABLE_TORCH_LIBRARY_FRAGMENT(attnkernels, m) { define_operators(m); }
STABLE_TORCH_LIBRARY_IMPL(attnkernels, CompositeExplicitAutograd, m) {
  m.impl("native_isa", TORCH_BOX(&isa));
}
