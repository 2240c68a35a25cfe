// The operators of ops.cpp for CUDA tensors, on torch's stable ABI: allocate the results and call
// the kernels on torch's current stream. Nothing waits for the device, so that calls can be
// captured in a CUDA graph.
//
// With ATTNKERNELS_EMULATED, for tests, they are for CPU tensors and the kernels run in the
// emulator.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "torch/cuda_call.h"
#include "torch/outputs.h"

#ifndef ATTNKERNELS_EMULATED
// It lives in the part of torch that is for CUDA: weak, so that the library loads without it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif

namespace {

using namespace attnkernels;

#ifdef ATTNKERNELS_EMULATED
struct Device {
  explicit Device(const Tensor&) {}
  void* stream() const { return nullptr; }
  int index() const { return 0; }
};
#else
class Device {
 public:
  explicit Device(const Tensor& on) : index_(on.get_device_index()), guard_(index_) {}
  void* stream() const {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "attnkernels: this torch has no CUDA");
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return stream;
  }
  int index() const { return index_; }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};
#endif

// torch's stream and torch's memory, as the kernels use them.
class CudaHost {
 public:
  explicit CudaHost(const Tensor& on)
      : on_(on), device_(on),
        host{device_.stream(), cuda::processors(device_.index()), this, allocate} {}
  CudaHost(const CudaHost&) = delete;

 private:
  const Tensor& on_;
  Device device_;
  std::vector<Tensor> memory_;

  static void* allocate(void* self, int64_t bytes) {
    auto& me = *static_cast<CudaHost*>(self);
    me.memory_.push_back(empty(me.on_, {(bytes + 3) / 4}, ScalarType::Float));
    return me.memory_.back().mutable_data_ptr();
  }

 public:
  const cuda::Host host;
};

std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& weight,
    const Maybe& attn_mask, const Maybe& key_lengths, const Maybe& cu_seqlens_q,
    const Maybe& cu_seqlens_k, const Maybe&, const Maybe& seed, double dropout_p, bool is_causal,
    int64_t activation, double negative_slope, double scale, bool return_weights) {
  CudaCall call(query, key, weight, activation, negative_slope, scale);
  call.attention(value, attn_mask, key_lengths, cu_seqlens_q, cu_seqlens_k, seed, dropout_p,
                 is_causal);
  call.done();
  const int64_t n = call.problem.n;
  Tensor context = empty(query, call.leading.with({n, call.problem.dv})),
         lse = empty(query, call.leading.with({n}));
  Tensor weights =
      return_weights ? empty(query, call.leading.with({n, call.problem.m})) : nothing(query);
  const CudaHost torch(query);
  cuda::forward(call.problem, call.own,
                {data<float>(context), data<float>(lse), data<float>(weights)}, torch.host);
  return {context, lse, weights};
}

Tensor scores(const Tensor& query, const Tensor& key, const Tensor& weight, int64_t activation,
              double negative_slope, double scale) {
  CudaCall call(query, key, weight, activation, negative_slope, scale);
  call.done();
  Tensor out = empty(query, call.leading.with({call.problem.n, call.problem.m}));
  const CudaHost torch(query);
  cuda::scores(call.problem, call.own, data<float>(out), torch.host);
  return out;
}

Output output(const Tensor& t) {
  return {t.numel() ? t.mutable_data_ptr() : nullptr, dtype_of(t)};
}

struct QueryKeyWeight {
  Tensor query, key, weight;

  QueryKeyWeight(const CudaCall& call, const Tensor& q, const Tensor& k, int64_t wanted)
      : query(gradient(q, call.leading, wanted & kQuery)),
        key(gradient(k, call.leading, wanted & kKey)),
        weight(wanted & kWeight ? empty(q, call.leading.with({call.problem.d})) : nothing(q)) {}

  void place(cuda::Backward& f, int64_t wanted) const {
    f.grad_query = output(query);
    f.grad_key = output(key);
    f.grad_weight = data<float>(weight);
    f.deterministic = wanted & kDeterministic;
  }
};

std::tuple<Tensor, Tensor, Tensor> scores_backward(const Tensor& grad, const Tensor& query,
                                                   const Tensor& key, const Tensor& weight,
                                                   int64_t activation, double negative_slope,
                                                   double scale, int64_t wanted) {
  CudaCall call(query, key, weight, activation, negative_slope, scale);
  call.done();
  const QueryKeyWeight out(call, query, key, wanted);
  const Tensor whole = dense(grad);
  cuda::Backward f;
  f.grad_scores = data<float>(whole);
  out.place(f, wanted);
  const CudaHost torch(query);
  cuda::backward(call.problem, call.own, f, torch.host);
  return {out.query, out.key, out.weight};
}

// The gradient of a mask is added to by all pairs that share an entry. Where the order matters each
// pair has its own, and they are summed afterwards.
class MaskGradient {
 public:
  MaskGradient(const Maybe& mask, const CudaCall& call, const Tensor& query, int64_t wanted)
      : grad_(nothing(query)), shape_(call.leading.with({call.problem.n, call.problem.m})) {
    if (!(wanted & kMask)) return;
    wanted_.assign(mask->sizes().begin(), mask->sizes().end());
    summed_ = wanted & kDeterministic && wanted_ != shape_;
    grad_ = zeros(query, summed_ ? shape_ : wanted_);
  }
  Along along(const CudaCall& call, cuda::Backward& f) const {
    const Slices at(grad_, std::min<int64_t>(2, grad_.dim()), call.leading);
    f.mask_row = at.first().row;
    f.mask_col = at.first().col;
    f.grad_mask = data<float>(grad_);
    return {at.strides(), &f.mask_lead};
  }
  Tensor take() const {
    if (!summed_) return grad_;
    Tensor out = grad_;
    const int64_t more = static_cast<int64_t>(shape_.size() - wanted_.size());
    for (int64_t k = 0; k < static_cast<int64_t>(shape_.size()); k++) {
      const bool extra = k < more;
      if (!extra && wanted_[k - more] == shape_[k]) continue;
      const int64_t dim = extra ? 0 : k - more;
      out = torch::stable::sum(out, torch::headeronly::IntHeaderOnlyArrayRef(&dim, 1), !extra);
    }
    return out;
  }

 private:
  Tensor grad_;
  Sizes shape_, wanted_;
  bool summed_ = false;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Maybe& grad_context, const Maybe& grad_lse, const Maybe& grad_weights,
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& weight,
    const Maybe& attn_mask, const Maybe& key_lengths, const Maybe& cu_seqlens_q,
    const Maybe& cu_seqlens_k, const Maybe& seed, const Tensor& context_, const Tensor& lse_,
    const Tensor& weights_, double dropout_p, bool is_causal, int64_t activation,
    double negative_slope, double scale, int64_t wanted) {
  CudaCall call(query, key, weight, activation, negative_slope, scale);
  call.attention(value, attn_mask, key_lengths, cu_seqlens_q, cu_seqlens_k, seed, dropout_p,
                 is_causal);
  cuda::Backward f;
  const MaskGradient mask(attn_mask, call, query, wanted);
  call.done({mask.along(call, f)});
  const QueryKeyWeight out(call, query, key, wanted);
  const Tensor grad_value = gradient(value, call.leading, wanted & kValue);
  auto whole = [](const Maybe& t) { return t ? Maybe(dense(*t)) : t; };
  const Maybe dc = whole(grad_context), dl = whole(grad_lse), dw = whole(grad_weights);
  const Tensor context = dense(context_), lse = dense(lse_), weights = dense(weights_);
  f.context = data<float>(context);
  f.lse = data<float>(lse);
  f.weights = data<float>(weights);
  f.grad_context = dc ? data<float>(*dc) : nullptr;
  f.grad_lse = dl ? data<float>(*dl) : nullptr;
  f.grad_weights = dw ? data<float>(*dw) : nullptr;
  f.grad_value = output(grad_value);
  out.place(f, wanted);
  const CudaHost torch(query);
  cuda::backward(call.problem, call.own, f, torch.host);
  return {out.query, out.key, grad_value, out.weight, mask.take()};
}

#ifdef ATTNKERNELS_EMULATED
std::string isa() { return "emulated CUDA"; }
#endif

}  // namespace

#ifdef ATTNKERNELS_EMULATED
STABLE_TORCH_LIBRARY_IMPL(attnkernels, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(attnkernels, CUDA, m) {
#endif
  m.impl("native_forward", TORCH_BOX(&forward));
  m.impl("native_backward", TORCH_BOX(&backward));
  m.impl("native_scores", TORCH_BOX(&scores));
  m.impl("native_scores_backward", TORCH_BOX(&scores_backward));
}

#ifdef ATTNKERNELS_EMULATED
STABLE_TORCH_LIBRARY_FRAGMENT(attnkernels, m) { m.def("native_isa() -> str"); }
STABLE_TORCH_LIBRARY_IMPL(attnkernels, CompositeExplicitAutograd, m) {
  m.impl("native_isa", TORCH_BOX(&isa));
}
#endif
