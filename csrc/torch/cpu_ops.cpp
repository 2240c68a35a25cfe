// The operators on torch's stable ABI: allocate the results and call the kernels of this machine.
// The schemas are in attnkernels/ops.py, and what is wrong with an argument is said in Python; what
// is checked here again is what would touch memory that is not there.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "torch/cpu_call.h"
#include "torch/cpu_host.h"

namespace {

using namespace attnkernels;
using namespace attnkernels::cpu;

// f(T{}, table of T): the arithmetic that inputs of this dtype want.
template <class F>
void dispatch(const Tensor& like, const F& f) {
  if (accumulator(like) == ScalarType::Double)
    f(double{}, kernels().f64);
  else
    f(float{}, kernels().f32);
}

struct Options {
  int64_t activation;
  double negative_slope, scale;
  bool is_causal = false;
  double dropout_p = 0;
  const Maybe* seed = nullptr;
};

void describe(Problem& p, const Call& call, const Options& o) {
  p.items = call.items.data();
  p.count = static_cast<int64_t>(call.items.size());
  p.queries = 0;
  for (const Item& item : call.items) p.queries = std::max(p.queries, item.n);
  p.d = call.d;
  p.dv = call.dv;
  p.pair_cols = call.m;
  p.activation = activation_of(o.activation);
  p.negative_slope = o.negative_slope;
  p.scale = o.scale;
  p.causal = o.is_causal;
  if (Call::given(o.seed))
    p.dropout = {o.dropout_p, *static_cast<const uint64_t*>((**o.seed).const_data_ptr())};
}

std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& weight,
    const Maybe& attn_mask, const Maybe& key_lengths, const Maybe& cu_seqlens_q,
    const Maybe& cu_seqlens_k, const Maybe& packed_key, const Maybe& seed, double dropout_p,
    bool is_causal, int64_t activation, double negative_slope, double scale, bool return_weights) {
  const Call call({query, key, weight, &value, &attn_mask, &key_lengths, &cu_seqlens_q,
                   &cu_seqlens_k, &packed_key});
  Tensor context = empty(query, call.leading.with({call.n, call.dv})),
         lse = empty(query, call.leading.with({call.n}));
  Tensor weights =
      return_weights ? zeros(query, call.leading.with({call.n, call.m})) : nothing(query);
  TorchHost torch(query, call.work());
  dispatch(query, [&](auto t, const auto& table) {
    using T = decltype(t);
    Forward<T> p{};
    describe(p, call, {activation, negative_slope, scale, is_causal, dropout_p, &seed});
    p.context = data<T>(context);
    p.lse = data<T>(lse);
    p.weights = data<T>(weights);
    table.forward(p, torch.host);
  });
  return {context, lse, weights};
}

Tensor scores(const Tensor& query, const Tensor& key, const Tensor& weight, int64_t activation,
              double negative_slope, double scale) {
  const Call call({query, key, weight});
  Tensor out = empty(query, call.leading.with({call.n, call.m}));
  TorchHost torch(query, call.work());
  dispatch(query, [&](auto t, const auto& table) {
    using T = decltype(t);
    Scores<T> p{};
    describe(p, call, {activation, negative_slope, scale});
    p.scores = data<T>(out);
    table.scores(p, torch.host);
  });
  return out;
}

struct QueryKeyWeight {
  Tensor query, key, weight;

  QueryKeyWeight(const Inputs& in, const Call& c, int64_t wanted)
      : query(gradient(in.query, c.leading, wanted & kQuery)),
        key(gradient(in.key, c.leading, wanted & kKey)),
        weight(!(wanted & kWeight)            ? nothing(in.query)
               : Call::given(in.cu_seqlens_q) ? empty(in.query, c.leading.with({c.sequences, c.d}))
                                              : empty(in.query, c.leading.with({c.d}))) {}

  template <class T>
  void place(Backward<T>& p) {
    p.grad_query = output_of(query);
    p.grad_key = output_of(key);
    p.grad_weight = data<T>(weight);
  }
};

std::tuple<Tensor, Tensor, Tensor> scores_backward(const Tensor& grad, const Tensor& query,
                                                   const Tensor& key, const Tensor& weight,
                                                   int64_t activation, double negative_slope,
                                                   double scale, int64_t wanted) {
  const Inputs in{query, key, weight};
  const Call call(in);
  const Tensor whole = dense(grad);
  QueryKeyWeight out(in, call, wanted);
  TorchHost torch(query, call.work());
  dispatch(query, [&](auto t, const auto& table) {
    using T = decltype(t);
    Backward<T> p{};
    describe(p, call, {activation, negative_slope, scale});
    p.grad_scores = data<T>(whole);
    out.place(p);
    table.backward(p, torch.host);
  });
  return {out.query, out.key, out.weight};
}

// A gradient of an output, with its last two dimensions (or one) as the columns and all before as
// rows.
Matrix rows_of(const Maybe& grad, int64_t trailing) {
  if (!grad || !grad->numel()) return {};
  const int64_t rank = grad->dim();
  const int64_t cols = trailing == 2 ? grad->size(rank - 1) : 1;
  return {grad->const_data_ptr(), cols, 1, dtype_of(*grad)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Maybe& grad_context, const Maybe& grad_lse, const Maybe& grad_weights,
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& weight,
    const Maybe& attn_mask, const Maybe& key_lengths, const Maybe& cu_seqlens_q,
    const Maybe& cu_seqlens_k, const Maybe& seed, const Tensor& context_, const Tensor& lse_,
    const Tensor& weights_, double dropout_p, bool is_causal, int64_t activation,
    double negative_slope, double scale, int64_t wanted) {
  const Inputs in{query,      key,          weight,        &value,
                  &attn_mask, &key_lengths, &cu_seqlens_q, &cu_seqlens_k};
  Call call(in);
  auto whole = [](const Maybe& t) { return t ? Maybe(dense(*t)) : t; };
  const Maybe dc = whole(grad_context), dl = whole(grad_lse), dw = whole(grad_weights);
  const Tensor context = dense(context_), lse = dense(lse_), weights = dense(weights_);
  QueryKeyWeight out(in, call, wanted);
  const Tensor grad_value = gradient(value, call.leading, wanted & kValue);
  Tensor grad_mask = nothing(query);
  int64_t mask_row = 0, mask_col = 0;
  if (wanted & kMask) {
    const Tensor& mask = *attn_mask;
    Sizes sizes(mask.sizes().begin(), mask.sizes().end());
    grad_mask = zeros(query, sizes);
    const Slices at = slices(grad_mask, std::min<int64_t>(2, mask.dim()), call.leading);
    mask_row = at[0].row;
    mask_col = at[0].col;
    for (size_t b = 0; b < call.items.size(); b++)
      call.items[b].mask_grad = at.offset(static_cast<int64_t>(b));
  }
  TorchHost torch(query, call.work());
  dispatch(query, [&](auto t, const auto& table) {
    using T = decltype(t);
    Backward<T> p{};
    describe(p, call, {activation, negative_slope, scale, is_causal, dropout_p, &seed});
    p.grad_context = rows_of(dc, 2);
    p.grad_lse = rows_of(dl, 1);
    p.grad_weights = rows_of(dw, 2);
    p.context = data<T>(context);
    p.lse = data<T>(lse);
    p.weights = data<T>(weights);
    out.place(p);
    p.grad_value = output_of(grad_value);
    p.grad_mask = data<T>(grad_mask);
    p.grad_mask_row = mask_row;
    p.grad_mask_col = mask_col;
    table.backward(p, torch.host);
  });
  if (cu_seqlens_q && wanted & kWeight) {
    const int64_t sequences = -2;
    out.weight =
        torch::stable::sum(out.weight, torch::headeronly::IntHeaderOnlyArrayRef(&sequences, 1));
  }
  return {out.query, out.key, grad_value, out.weight, grad_mask};
}

Tensor pack_keys(const Tensor& key, int64_t activation) {
  const Activation f = activation_of(activation);
  const int64_t rank = key.dim(), m = key.size(rank - 2), d = key.size(rank - 1),
                panels = panel_count(m);
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
  m.impl("native_forward", TORCH_BOX(&forward));
  m.impl("native_backward", TORCH_BOX(&backward));
  m.impl("native_scores", TORCH_BOX(&scores));
  m.impl("native_scores_backward", TORCH_BOX(&scores_backward));
  m.impl("native_pack_keys", TORCH_BOX(&pack_keys));
}

STABLE_TORCH_LIBRARY_FRAGMENT(attnkernels, m) { m.def("native_isa() -> str"); }
STABLE_TORCH_LIBRARY_IMPL(attnkernels, CompositeExplicitAutograd, m) {
  m.impl("native_isa", TORCH_BOX(&isa));
}
