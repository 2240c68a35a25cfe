// The operators of attnkernels/ops for CUDA tensors, on torch's stable ABI: they allocate the
// results and call the kernels on torch's current stream. Nothing waits for the device, so calls
// can be captured in a CUDA graph.
//
// Tests define ATTNKERNELS_EMULATED: the operators then take CPU tensors, and the kernels run in
// the emulator.
#include <torch/csrc/stable/library.h>

#include <string>

#include "torch/cuda_call.h"
#include "torch/cuda_host.h"
#include "torch/schemas.h"

namespace {

using namespace attnkernels;

// Sum t over the leading dimensions that `wanted` lacks or has with size 1.
Tensor summed(Tensor t, const Sizes& wanted) {
  const Sizes shape = sizes_of(t);
  const int64_t more = static_cast<int64_t>(shape.size() - wanted.size());
  for (int64_t k = 0; k < static_cast<int64_t>(shape.size()); k++) {
    const bool extra = k < more;
    if (!extra && wanted[k - more] == shape[k]) continue;
    const int64_t dim = extra ? 0 : k - more;
    t = torch::stable::sum(t, torch::headeronly::IntHeaderOnlyArrayRef(&dim, 1), !extra);
  }
  return t;
}

// The gradient of an input, of which the kernels compute one per leading index. Their dtype is that
// of x, or that of the arithmetic if they are still to be summed.
class Spread {
 public:
  Spread(const Tensor& x, const Leading& leading, int64_t trailing, bool wanted, const char* name)
      : x_(x), grad_(nothing(x)), trailing_(trailing), wanted_(wanted) {
    if (!wanted) return;
    Sizes shape = leading.sizes();
    for (int64_t k = x.dim() - trailing; k < x.dim(); k++) shape.push_back(x.size(k));
    grad_ = empty(x, shape, trailing > 1 && shape == sizes_of(x) ? x.scalar_type() : accumulator(x),
                  name);
  }
  const Tensor& spread() const { return grad_; }
  // In the shape and dtype of x; that of the weight is not rounded.
  Tensor take() const {
    if (!wanted_) return grad_;
    const Tensor out = summed(grad_, sizes_of(x_));
    const bool rounds = grad_.scalar_type() != x_.scalar_type() && trailing_ > 1;
    return rounds ? torch::stable::to(out, x_.scalar_type()) : out;
  }

 private:
  const Tensor& x_;
  Tensor grad_;
  int64_t trailing_;
  bool wanted_;
};

struct QueryKeyWeight {
  Spread query, key, weight;

  QueryKeyWeight(const Arguments& in, const CudaCall& call, int64_t wanted)
      : query(in.query, call.leading, 2, wanted & kQuery, "the gradient of query"),
        key(in.key, call.leading, 2, wanted & kKey, "the gradient of key"),
        weight(in.weight, call.leading, 1, wanted & kWeight, "the gradient of weight") {}

  void place(cuda::Backward& f, int64_t wanted) const {
    f.grad_query = output_of(query.spread());
    f.grad_key = output_of(key.spread());
    f.grad_weight = data<float>(weight.spread());
    f.deterministic = wanted & kDeterministic;
  }
};

// The gradient of a mask, to which all pairs that share an entry add. If the order matters, each
// pair has a gradient of its own, and they are summed afterwards.
class MaskGradient {
 public:
  MaskGradient(const Arguments& in, const CudaCall& call, int64_t wanted)
      : grad_(nothing(in.query)), shape_(call.leading.with({call.problem.n, call.problem.m})) {
    if (!(wanted & kMask)) return;
    wanted_.assign(in.attn_mask->sizes().begin(), in.attn_mask->sizes().end());
    summed_ = wanted & kDeterministic && wanted_ != shape_;
    grad_ = zeros(in.query, summed_ ? shape_ : wanted_, "the gradient of attn_mask");
  }
  Along along(const CudaCall& call, cuda::Backward& f) const {
    const Slices at(grad_, mask_rank(grad_), call.leading);
    f.mask_row = at.first().row;
    f.mask_col = at.first().col;
    f.grad_mask = data<float>(grad_);
    return {at.strides(), &f.mask_lead};
  }
  Tensor take() const { return summed_ ? summed(grad_, wanted_) : grad_; }

 private:
  Tensor grad_;
  Sizes shape_, wanted_;
  bool summed_ = false;
};

// The results of the forward, or their tangents. With `keep`, what the backward needs of the
// softmax takes the place of weights that are not returned.
struct Results {
  Tensor context, lse, weights;
  bool returned;

  Results(const Arguments& in, const CudaCall& call, bool return_weights, bool keep = false)
      : context(empty(in.query, call.leading.with({call.problem.n, call.problem.dv}), "context")),
        lse(empty(in.query, call.leading.with({call.problem.n}), "lse")),
        weights(return_weights ? pairs(in, call, kWeights)
                : keep         ? softmax_of(in.query, call.leading, call.problem.n)
                               : nothing(in.query)),
        returned(return_weights) {}

  cuda::Forward place() const {
    float* const last = data<float>(weights);
    return {output_of(context), data<float>(lse), returned ? last : nullptr,
            returned ? nullptr : last};
  }
  static Tensor pairs(const Arguments& in, const CudaCall& call, const char* name) {
    return empty(in.query, call.leading.with({call.problem.n, call.problem.m}), name);
  }
};

struct Cuda {
  static Tensors3 forward(const Arguments& in, bool return_weights) {
    CudaCall call(in);
    call.done();
    const Results out(in, call, return_weights, true);
    const CudaHost torch(in.query);
    cuda::forward(call.problem, call.own, out.place(), torch.host);
    return {out.context, out.lse, out.weights};
  }

  static Tensor inference(const Arguments& in) {
    CudaCall call(in);
    call.done();
    const Tensor context = empty(in.query, call.leading.with({call.problem.n, call.problem.dv}),
                                 in.query.scalar_type(), "context");
    const CudaHost torch(in.query);
    cuda::forward(call.problem, call.own, {output_of(context)}, torch.host);
    return context;
  }

  static Tensors6 forward_jvp(const Arguments& in, const InputTangents& given,
                              bool return_weights) {
    CudaCall call(in);
    cuda::Tangents tangents = call.done(given);
    const Results out(in, call, return_weights), moved(in, call, return_weights);
    tangents.outputs = moved.place();
    const CudaHost torch(in.query);
    cuda::forward_jvp(call.problem, call.own, out.place(), tangents, torch.host);
    return {out.context, out.lse, out.weights, moved.context, moved.lse, moved.weights};
  }

  static Tensor scores(const Arguments& in) {
    CudaCall call(in);
    call.done();
    const Tensor out = Results::pairs(in, call, "scores");
    const CudaHost torch(in.query);
    cuda::scores(call.problem, call.own, data<float>(out), torch.host);
    return out;
  }

  static Tensors2 scores_jvp(const Arguments& in, const InputTangents& given) {
    CudaCall call(in);
    cuda::Tangents tangents = call.done(given);
    const Tensor out = Results::pairs(in, call, "scores"),
                 moved = Results::pairs(in, call, "the tangent of scores");
    tangents.outputs.weights = data<float>(moved);
    const CudaHost torch(in.query);
    cuda::scores_jvp(call.problem, call.own, data<float>(out), tangents, torch.host);
    return {out, moved};
  }

  static Tensors3 scores_backward(const Arguments& in, const Tensor& grad, int64_t wanted) {
    CudaCall call(in);
    call.done();
    const QueryKeyWeight out(in, call, wanted);
    cuda::Backward f;
    f.grad_scores = data<float>(grad);
    out.place(f, wanted);
    const CudaHost torch(in.query);
    cuda::backward(call.problem, call.own, f, torch.host);
    return {out.query.take(), out.key.take(), out.weight.take()};
  }

  static Tensors5 backward(const Arguments& in, const Outputs& from, int64_t wanted) {
    CudaCall call(in);
    cuda::Backward f;
    const MaskGradient mask(in, call, wanted);
    call.done({mask.along(call, f)});
    const QueryKeyWeight out(in, call, wanted);
    const Spread grad_value(*in.value, call.leading, 2, wanted & kValue, "the gradient of value");
    auto floats = [](const Maybe& t) { return t ? data<float>(*t) : nullptr; };
    f.context = data<float>(from.context);
    f.lse = data<float>(from.lse);
    (is_softmax(from.weights, from.lse) ? f.softmax : f.weights) = data<float>(from.weights);
    f.grad_context = floats(from.grad_context);
    f.grad_lse = floats(from.grad_lse);
    f.grad_weights = floats(from.grad_weights);
    f.grad_value = output_of(grad_value.spread());
    out.place(f, wanted);
    const CudaHost torch(in.query);
    cuda::backward(call.problem, call.own, f, torch.host);
    return {out.query.take(), out.key.take(), grad_value.take(), out.weight.take(), mask.take()};
  }
};

#ifdef ATTNKERNELS_EMULATED
std::string isa() { return "emulated CUDA"; }
#endif

}  // namespace

#ifdef ATTNKERNELS_EMULATED
STABLE_TORCH_LIBRARY_IMPL(attnkernels, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(attnkernels, CUDA, m) {
#endif
  Operators<Cuda>::implement(m);
  Operators<Cuda>::implement_jvp(m);
}

#ifdef ATTNKERNELS_EMULATED
STABLE_TORCH_LIBRARY_FRAGMENT(attnkernels, m) { define_operators(m); }
STABLE_TORCH_LIBRARY_IMPL(attnkernels, CompositeExplicitAutograd, m) {
  m.impl("native_isa", TORCH_BOX(&isa));
}
#endif
