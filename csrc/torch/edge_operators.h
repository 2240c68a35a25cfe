// The signatures of the operators over edges, the same for every device, as operators.h has those
// over pairs.
#pragma once
#include "torch/operators.h"

namespace attnkernels {

// Edges sorted by both ends, int64. Those of target i are target_begin[i] .. target_begin[i + 1],
// with their sources and their places in the caller's order; likewise by source, with their places
// in the order by target.
struct EdgeOrders {
  const Tensor &target_begin, &source, &order, &source_begin, &target, &place;
};

// The inputs of attention over edges. Optional ones are null if absent; without a value, the keys
// are the values.
struct EdgeArguments {
  const Tensor &query, &key, &weight;
  const Tensor *value, *edge_key, *edge_bias;
  EdgeOrders edges;
  const Tensor* seed;
  double dropout_p;
  Activation activation;
  double negative_slope, scale;
};

// Device::forward(arguments, return_weights) and Device::backward(arguments, outputs, wanted).
template <class Device>
struct EdgeOperators {
  static Tensors3 forward(const Tensor& query, const Tensor& key, const Maybe& value,
                          const Tensor& weight, const Maybe& edge_key, const Maybe& edge_bias,
                          const Tensor& target_begin, const Tensor& source, const Tensor& order,
                          const Tensor& source_begin, const Tensor& target, const Tensor& place,
                          const Maybe& seed, double dropout_p, int64_t activation,
                          double negative_slope, double scale, bool return_weights) {
    return naming_memory([&] {
      return Device::forward({query,
                              key,
                              weight,
                              given(value),
                              given(edge_key),
                              given(edge_bias),
                              {target_begin, source, order, source_begin, target, place},
                              given(seed),
                              dropout_p,
                              activation_of(activation),
                              negative_slope,
                              scale},
                             return_weights);
    });
  }

  static Tensors6 backward(const Maybe& grad_context, const Maybe& grad_lse,
                           const Maybe& grad_weights, const Tensor& query, const Tensor& key,
                           const Maybe& value, const Tensor& weight, const Maybe& edge_key,
                           const Maybe& edge_bias, const Tensor& target_begin, const Tensor& source,
                           const Tensor& order, const Tensor& source_begin, const Tensor& target,
                           const Tensor& place, const Maybe& seed, const Tensor& context,
                           const Tensor& lse, const Tensor& weights, double dropout_p,
                           int64_t activation, double negative_slope, double scale,
                           int64_t wanted) {
    return naming_memory([&] {
      return Device::backward({query,
                               key,
                               weight,
                               given(value),
                               given(edge_key),
                               given(edge_bias),
                               {target_begin, source, order, source_begin, target, place},
                               given(seed),
                               dropout_p,
                               activation_of(activation),
                               negative_slope,
                               scale},
                              {grad_context, grad_lse, grad_weights, context, lse, weights},
                              wanted);
    });
  }

  static void implement(torch::stable::detail::StableLibrary& m) {
    m.impl("native_sparse_forward", TORCH_BOX(&forward));
    m.impl("native_sparse_backward", TORCH_BOX(&backward));
  }
};

}  // namespace attnkernels
