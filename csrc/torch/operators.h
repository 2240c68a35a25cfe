// The signatures of the operators, in the order of the schemas of attnkernels/ops/schema.py. They
// are the same for every device: `Operators<Device>` hands named arguments to the functions of
// `Device`.
#pragma once
#include <torch/csrc/stable/library.h>

#include <new>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "common/window.h"
#include "torch/checks.h"
#include "torch/outputs.h"

namespace attnkernels {

// The inputs of an operator; raw scores have only the first six. Optional ones are null if absent.
struct Arguments {
  const Tensor &query, &key, &weight;
  Activation activation;
  bool fast;  // it may be a sum of sines
  double negative_slope, scale;
  const Tensor *value = nullptr, *attn_mask = nullptr, *key_lengths = nullptr,
               *key_starts = nullptr, *cu_seqlens_q = nullptr, *cu_seqlens_k = nullptr,
               *packed_key = nullptr, *seed = nullptr;
  double dropout_p = 0;
  Window window = {};
};

using MaybeInt = std::optional<int64_t>;

// The window of the arguments of an operator, which are absent where they limit nothing.
inline Window window_of(const MaybeInt& left, const MaybeInt& right) {
  auto limit = [](const MaybeInt& keys) {
    return std::min(keys.value_or(Window::kUnlimited), Window::kUnlimited);
  };
  return {limit(left), limit(right)};
}

// Further arguments of the backward of attention: gradients of the outputs, contiguous and null if
// absent, and the outputs as the forward returned them.
struct Outputs {
  Maybe grad_context, grad_lse, grad_weights;
  Tensor context, lse, weights;
};

// The tangents of the inputs, null where they are zero.
struct InputTangents {
  const Tensor *query, *key, *weight, *value = nullptr, *attn_mask = nullptr;
};

using Tensors2 = std::tuple<Tensor, Tensor>;
using Tensors3 = std::tuple<Tensor, Tensor, Tensor>;
using Tensors5 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Tensors6 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Call f. Where the lists of its tasks do not fit in memory, say so as for tensors.
template <class F>
auto naming_memory(const F& f) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    throw std::runtime_error("attnkernels: the list of tasks must fit in memory, got too many");
  }
}
inline const Tensor* given(const Maybe& t) { return t ? &*t : nullptr; }

// Device::forward(arguments, return_weights), Device::inference(arguments),
// Device::scores(arguments), Device::scores_backward(arguments, grad, wanted) and
// Device::backward(arguments, outputs, wanted). A device with forward-mode derivatives has
// Device::forward_jvp(arguments, tangents, return_weights) and Device::scores_jvp(arguments,
// tangents) as well.
template <class Device>
struct Operators {
  static Tensors3 forward(const Tensor& query, const Tensor& key, const Tensor& value,
                          const Tensor& weight, const Maybe& attn_mask, const Maybe& key_lengths,
                          const Maybe& key_starts, const Maybe& cu_seqlens_q,
                          const Maybe& cu_seqlens_k, const Maybe& packed_key, const Maybe& seed,
                          double dropout_p, const MaybeInt& window_left,
                          const MaybeInt& window_right, int64_t activation, double negative_slope,
                          double scale, bool return_weights) {
    return naming_memory([&] {
      return Device::forward(
          {query, key, weight, activation_of(activation), is_fast(activation), negative_slope,
           scale, &value, given(attn_mask), given(key_lengths), given(key_starts),
           given(cu_seqlens_q), given(cu_seqlens_k), given(packed_key), given(seed), dropout_p,
           window_of(window_left, window_right)},
          return_weights);
    });
  }

  static Tensors3 unmasked(const Tensor& query, const Tensor& key, const Tensor& value,
                           const Tensor& weight, const Maybe& packed_key, const Maybe& seed,
                           double dropout_p) {
    return naming_memory([&] {
      Arguments in{query, key, weight, Activation::tanh, false, 0, 1, &value};
      in.packed_key = given(packed_key);
      in.seed = given(seed);
      in.dropout_p = dropout_p;
      return Device::forward(in, false);
    });
  }

  // The context alone, in the dtype of the query.
  static Tensor inference(const Tensor& query, const Tensor& key, const Tensor& value,
                          const Tensor& weight, const Maybe& key_lengths, const Maybe& packed_key) {
    return naming_memory([&] {
      Arguments in{query, key, weight, Activation::tanh, false, 0, 1, &value};
      in.key_lengths = given(key_lengths);
      in.packed_key = given(packed_key);
      return Device::inference(in);
    });
  }

  static Tensors5 backward(const Maybe& grad_context, const Maybe& grad_lse,
                           const Maybe& grad_weights, const Tensor& query, const Tensor& key,
                           const Tensor& value, const Tensor& weight, const Maybe& attn_mask,
                           const Maybe& key_lengths, const Maybe& key_starts,
                           const Maybe& cu_seqlens_q, const Maybe& cu_seqlens_k, const Maybe& seed,
                           const Tensor& context, const Tensor& lse, const Tensor& weights,
                           double dropout_p, const MaybeInt& window_left,
                           const MaybeInt& window_right, int64_t activation, double negative_slope,
                           double scale, int64_t wanted) {
    auto whole = [](const Maybe& t) { return t ? Maybe(dense(*t)) : t; };
    return naming_memory([&] {
      return Device::backward({query, key, weight, activation_of(activation), is_fast(activation),
                               negative_slope, scale, &value, given(attn_mask), given(key_lengths),
                               given(key_starts), given(cu_seqlens_q), given(cu_seqlens_k), nullptr,
                               given(seed), dropout_p, window_of(window_left, window_right)},
                              {whole(grad_context), whole(grad_lse), whole(grad_weights),
                               dense(context), dense(lse), dense(weights)},
                              wanted);
    });
  }

  static Tensor scores(const Tensor& query, const Tensor& key, const Tensor& weight,
                       int64_t activation, double negative_slope, double scale) {
    return naming_memory([&] {
      return Device::scores({query, key, weight, activation_of(activation), is_fast(activation),
                             negative_slope, scale});
    });
  }

  static Tensors3 scores_backward(const Tensor& grad, const Tensor& query, const Tensor& key,
                                  const Tensor& weight, int64_t activation, double negative_slope,
                                  double scale, int64_t wanted) {
    return naming_memory([&] {
      return Device::scores_backward({query, key, weight, activation_of(activation),
                                      is_fast(activation), negative_slope, scale},
                                     dense(grad), wanted);
    });
  }

  static Tensors6 forward_jvp(const Maybe& query_tangent, const Maybe& key_tangent,
                              const Maybe& value_tangent, const Maybe& weight_tangent,
                              const Maybe& attn_mask_tangent, const Tensor& query,
                              const Tensor& key, const Tensor& value, const Tensor& weight,
                              const Maybe& attn_mask, const Maybe& key_lengths,
                              const Maybe& key_starts, const Maybe& cu_seqlens_q,
                              const Maybe& cu_seqlens_k, const Maybe& seed, double dropout_p,
                              const MaybeInt& window_left, const MaybeInt& window_right,
                              int64_t activation, double negative_slope, double scale,
                              bool return_weights) {
    check_tangent(query_tangent, query, "query_tangent");
    check_tangent(key_tangent, key, "key_tangent");
    check_tangent(value_tangent, value, "value_tangent");
    check_tangent(weight_tangent, weight, "weight_tangent");
    if (attn_mask_tangent) {
      const bool floating = attn_mask && attn_mask->scalar_type() != ScalarType::Bool;
      STD_TORCH_CHECK(floating, "attnkernels: attn_mask must be floating to have a tangent");
      check_tangent(attn_mask_tangent, *attn_mask, "attn_mask_tangent");
    }
    return naming_memory([&] {
      return Device::forward_jvp(
          {query, key, weight, activation_of(activation), is_fast(activation), negative_slope,
           scale, &value, given(attn_mask), given(key_lengths), given(key_starts),
           given(cu_seqlens_q), given(cu_seqlens_k), nullptr, given(seed), dropout_p,
           window_of(window_left, window_right)},
          {given(query_tangent), given(key_tangent), given(weight_tangent), given(value_tangent),
           given(attn_mask_tangent)},
          return_weights);
    });
  }

  static Tensors2 scores_jvp(const Maybe& query_tangent, const Maybe& key_tangent,
                             const Maybe& weight_tangent, const Tensor& query, const Tensor& key,
                             const Tensor& weight, int64_t activation, double negative_slope,
                             double scale) {
    check_tangent(query_tangent, query, "query_tangent");
    check_tangent(key_tangent, key, "key_tangent");
    check_tangent(weight_tangent, weight, "weight_tangent");
    return naming_memory([&] {
      return Device::scores_jvp({query, key, weight, activation_of(activation), is_fast(activation),
                                 negative_slope, scale},
                                {given(query_tangent), given(key_tangent), given(weight_tangent)});
    });
  }

  static void implement_jvp(torch::stable::detail::StableLibrary& m) {
    m.impl("native_forward_jvp", TORCH_BOX(&forward_jvp));
    m.impl("native_scores_jvp", TORCH_BOX(&scores_jvp));
  }

  static void implement(torch::stable::detail::StableLibrary& m) {
    m.impl("native_forward", TORCH_BOX(&forward));
    m.impl("native_forward.unmasked", TORCH_BOX(&unmasked));
    m.impl("native_forward.inference", TORCH_BOX(&inference));
    m.impl("native_backward", TORCH_BOX(&backward));
    m.impl("native_scores", TORCH_BOX(&scores));
    m.impl("native_scores_backward", TORCH_BOX(&scores_backward));
  }
};

}  // namespace attnkernels
