// Checks of arguments that keep the kernels within memory. attnkernels/functional/checks.py makes
// the checks that users meet; these are for calls through torch.ops.
#pragma once
#include <algorithm>
#include <string>

#include "common/activation.h"
#include "torch/types.h"

namespace attnkernels {

// The activation of a code, or an error that names the known ones.
inline Activation activation_of(int64_t code) {
  const ActivationInfo* found = find_activation(code);
  if (found) return found->code;
  std::string known;
  for (const ActivationInfo& f : kActivations)
    known += (known.empty() ? "" : ", ") + std::to_string(static_cast<int64_t>(f.code)) + " (" +
             f.name + ")";
  STD_TORCH_CHECK(false, "attnkernels: activation must be one of ", known, ", got ", code);
  return {};
}

inline std::string shape_of(const Tensor& t) {
  std::string out;
  for (int64_t k = 0; k < t.dim(); k++) out += (k ? ", " : "(") + std::to_string(t.size(k));
  return out.empty() ? "()" : out + ")";
}

inline int64_t size_from_end(const Tensor& t, int64_t k) { return t.size(t.dim() - k); }

inline void check_width(const Tensor& t, int64_t d, const char* name) {
  STD_TORCH_CHECK(size_from_end(t, 1) == d, "attnkernels: ", name,
                  " must have the last dimension of query, ", d, ", got ", size_from_end(t, 1));
}

inline void check_value(const Tensor& value, int64_t m) {
  STD_TORCH_CHECK(size_from_end(value, 2) == m,
                  "attnkernels: value must have as many rows as key, ", m, ", got ",
                  size_from_end(value, 2));
}

inline int64_t mask_rank(const Tensor& mask) { return std::min<int64_t>(2, mask.dim()); }

inline void check_mask(const Tensor& mask, int64_t n, int64_t m) {
  for (int64_t k = 1; k <= mask_rank(mask); k++) {
    const int64_t size = size_from_end(mask, k);
    STD_TORCH_CHECK(size == 1 || size == (k == 1 ? m : n),
                    "attnkernels: attn_mask must broadcast to (..., ", n, ", ", m, "), got ",
                    shape_of(mask));
  }
}

inline void check_integer(const Tensor& t, const char* name) {
  const bool integer = t.scalar_type() == ScalarType::Int || t.scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(integer, "attnkernels: ", name, " must be int32 or int64, got ",
                  toString(t.scalar_type()));
}

inline void check_tangent(const Maybe& tangent, const Tensor& primal, const char* name) {
  if (!tangent) return;
  bool same = tangent->dim() == primal.dim();
  for (int64_t k = 0; same && k < primal.dim(); k++) same = tangent->size(k) == primal.size(k);
  STD_TORCH_CHECK(same && tangent->scalar_type() == primal.scalar_type(), "attnkernels: ", name,
                  " must have the shape and dtype of its primal, ", shape_of(primal), " and ",
                  toString(primal.scalar_type()), ", got ", shape_of(*tangent), " and ",
                  toString(tangent->scalar_type()));
}

// Offsets of packed sequences: both tensors, of the same length.
inline void check_offsets(const Tensor& queries, const Tensor* keys) {
  STD_TORCH_CHECK(keys, "attnkernels: cu_seqlens_k must be given with cu_seqlens_q");
  auto check = [](const Tensor& t, const char* name) {
    check_integer(t, name);
    STD_TORCH_CHECK(t.dim() == 1 && t.numel() >= 1 && (t.stride(0) == 1 || t.numel() == 1),
                    "attnkernels: ", name, " must be 1-D, contiguous and not empty, got shape ",
                    shape_of(t));
  };
  check(queries, "cu_seqlens_q");
  check(*keys, "cu_seqlens_k");
  STD_TORCH_CHECK(queries.numel() == keys->numel(),
                  "attnkernels: cu_seqlens_k must have as many elements as cu_seqlens_q, ",
                  queries.numel(), ", got ", keys->numel());
}

}  // namespace attnkernels
