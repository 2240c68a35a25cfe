// The schemas of the operators. The library defines them itself, so that a program without Python
// can load it, as AOTInductor's packages want. attnkernels/ops/signature.py declares the same,
// which a test compares.
#pragma once
#include <torch/csrc/stable/library.h>

namespace attnkernels {

inline void define_operators(torch::stable::detail::StableLibrary& m) {
  m.def(
      "native_forward(Tensor query, Tensor key, Tensor value, Tensor weight, Tensor? "
      "attn_mask, Tensor? key_lengths, Tensor? key_starts, Tensor? cu_seqlens_q, Tensor? "
      "cu_seqlens_k, Tensor? packed_key, Tensor? seed, float dropout_p, int? window_left, int? "
      "window_right, int activation, float negative_slope, float scale, bool return_weights) -> "
      "(Tensor context, Tensor lse, Tensor weights)");
  // The same without masks, for tanh: arguments take longer to pass than a small call to compute.
  m.def(
      "native_forward.unmasked(Tensor query, Tensor key, Tensor value, Tensor weight, Tensor? "
      "packed_key, Tensor? seed, float dropout_p) -> (Tensor context, Tensor lse, Tensor weights)");
  // The same for calls that want no more than the context, in the dtype of the query.
  m.def(
      "native_forward.inference(Tensor query, Tensor key, Tensor value, Tensor weight, Tensor? "
      "key_lengths, Tensor? packed_key) -> Tensor");
  m.def(
      "native_backward(Tensor? grad_context, Tensor? grad_lse, Tensor? grad_weights, "
      "Tensor query, Tensor key, Tensor value, Tensor weight, Tensor? attn_mask, Tensor? "
      "key_lengths, Tensor? key_starts, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? "
      "seed, Tensor context, Tensor lse, Tensor weights, float dropout_p, int? window_left, int? "
      "window_right, int activation, float negative_slope, float scale, int wanted) -> (Tensor "
      "query, Tensor key, Tensor value, Tensor weight, Tensor attn_mask)");
  m.def(
      "native_scores(Tensor query, Tensor key, Tensor weight, int activation, float "
      "negative_slope, float scale) -> Tensor");
  m.def(
      "native_scores_backward(Tensor grad, Tensor query, Tensor key, Tensor weight, int "
      "activation, float negative_slope, float scale, int wanted) -> (Tensor query, "
      "Tensor key, Tensor weight)");
  m.def("native_pack_keys(Tensor key, int activation) -> Tensor");
  m.def(
      "native_forward_jvp(Tensor? query_tangent, Tensor? key_tangent, Tensor? value_tangent, "
      "Tensor? weight_tangent, Tensor? attn_mask_tangent, Tensor query, Tensor key, Tensor "
      "value, Tensor weight, Tensor? attn_mask, Tensor? key_lengths, Tensor? key_starts, "
      "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? seed, float dropout_p, int? "
      "window_left, int? "
      "window_right, int activation, float negative_slope, float scale, bool return_weights) -> "
      "(Tensor context, Tensor lse, Tensor weights, Tensor context_tangent, Tensor lse_tangent, "
      "Tensor weights_tangent)");
  m.def(
      "native_scores_jvp(Tensor? query_tangent, Tensor? key_tangent, Tensor? weight_tangent, "
      "Tensor query, Tensor key, Tensor weight, int activation, float negative_slope, float "
      "scale) -> (Tensor scores, Tensor scores_tangent)");
  m.def(
      "native_sparse_forward(Tensor query, Tensor key, Tensor? value, Tensor weight, Tensor? "
      "edge_key, Tensor? edge_bias, Tensor target_begin, Tensor source, Tensor order, Tensor "
      "source_begin, Tensor target, Tensor place, Tensor? seed, float dropout_p, int activation, "
      "float negative_slope, float scale, bool return_weights) -> (Tensor context, Tensor lse, "
      "Tensor weights)");
  m.def(
      "native_sparse_backward(Tensor? grad_context, Tensor? grad_lse, Tensor? grad_weights, "
      "Tensor query, Tensor key, Tensor? value, Tensor weight, Tensor? edge_key, Tensor? "
      "edge_bias, Tensor target_begin, Tensor source, Tensor order, Tensor source_begin, Tensor "
      "target, Tensor place, Tensor? seed, Tensor context, Tensor lse, Tensor weights, float "
      "dropout_p, int activation, float negative_slope, float scale, int wanted) -> (Tensor "
      "query, Tensor key, Tensor value, Tensor weight, Tensor edge_key, Tensor edge_bias)");
  m.def("native_sort_edges(Tensor ends, SymInt nodes) -> (Tensor begin, Tensor order)");
  m.def(
      "native_aligned_scores(Tensor query, Tensor key, Tensor weight, Tensor seen, Tensor filter, "
      "float scale) -> Tensor");
  m.def(
      "native_aligned_scores_backward(Tensor grad, Tensor query, Tensor key, Tensor weight, Tensor "
      "seen, Tensor filter, Tensor(a!)? grad_key, Tensor(b!)? grad_weight, Tensor(c!)? "
      "grad_filter, "
      "float scale) -> (Tensor query, Tensor seen)");
  m.def("native_isa() -> str");
  m.def("native_watch(int ensure_gil, int release_gil, int check, int main_thread) -> bool");
}

}  // namespace attnkernels
