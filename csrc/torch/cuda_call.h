// What an operator was called with, as the CUDA kernels see it: merged leading dimensions, and a
// stride over them for every tensor. Nothing on the device is read.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <climits>
#include <initializer_list>

#include "cuda/problem.h"
#include "torch/checks.h"
#include "torch/leading.h"

namespace attnkernels {

// A tensor's strides over the leading dimensions, and where to put them once these are merged.
struct Along {
  Sizes strides;
  cuda::Strides* merged;
};

// Leading dimensions with neighbours made one where all tensors lay them out as one: batch and
// heads of a dense call are one number.
inline cuda::Batch merge(const Leading& leading, const std::vector<Along>& tensors) {
  cuda::Batch batch;
  batch.count = leading.count();
  STD_TORCH_CHECK(batch.count <= INT_MAX, "attnkernels: ", batch.count,
                  " leading indices are more than the CUDA kernels count to, ", INT_MAX);
  for (size_t k = leading.sizes().size(); k-- > 0;) {
    const int64_t size = leading.sizes()[k];
    if (size == 1) continue;
    const int last = batch.rank - 1;
    const bool joins = last >= 0 && std::all_of(tensors.begin(), tensors.end(), [&](auto& t) {
                         return t.strides[k] == t.merged->along[last] * batch.sizes[last];
                       });
    if (joins) {
      batch.sizes[last] *= size;
      continue;
    }
    STD_TORCH_CHECK(batch.rank < cuda::kRank,
                    "attnkernels: more than 8 leading dimensions that do not lie as one: make the "
                    "inputs contiguous");
    batch.sizes[batch.rank] = size;
    for (const Along& t : tensors) t.merged->along[batch.rank] = t.strides[k];
    batch.rank++;
  }
  return batch;
}

inline Leading leading_of(const Tensor& t, int64_t trailing) {
  Leading own;
  own.include(t, trailing);
  return own;
}

// Strides over `leading` of the flat index into the leading dimensions `own`.
inline Sizes index_strides(const Leading& own, const Leading& leading) {
  Sizes strides(leading.sizes().size(), 0);
  int64_t step = 1;
  for (size_t k = 0; k < own.sizes().size(); k++) {
    const int64_t size = own.sizes()[own.sizes().size() - 1 - k];
    if (size != 1) strides[strides.size() - 1 - k] = step;
    step *= size;
  }
  return strides;
}

class CudaCall {
 public:
  Leading leading;
  cuda::Problem problem{};
  cuda::Owners own;

  CudaCall(const Tensor& query, const Tensor& key, const Tensor& weight, int64_t activation,
           double negative_slope, double scale)
      : query_(query), key_(key), weight_(weight) {
    problem.activation = activation_of(activation);
    problem.negative_slope = static_cast<float>(negative_slope);
    problem.scale = static_cast<float>(scale);
    problem.n = size(query, 2, "query");
    problem.m = size(key, 2, "key");
    problem.d = size(query, 1, "query");
    STD_TORCH_CHECK(size(key, 1, "key") == problem.d && size(weight, 1, "weight") == problem.d,
                    "attnkernels: query, key and weight differ in their last dimension");
    take(query, 2, problem.query);
    take(key, 2, problem.key);
    take(weight, 1, problem.weight);
  }

  // What is more than raw scores.
  void attention(const Tensor& value, const Maybe& attn_mask, const Maybe& key_lengths,
                 const Maybe& cu_seqlens_q, const Maybe& cu_seqlens_k, const Maybe& seed,
                 double dropout_p, bool is_causal) {
    take_value(value);
    take_mask(attn_mask);
    take_lengths(key_lengths);
    take_sequences(cu_seqlens_q, cu_seqlens_k);
    take_dropout(seed, dropout_p);
    problem.causal = is_causal;
  }

  // Once all arguments are taken; `more` are tensors that the operator made.
  void done(std::vector<Along> more = {}) {
    const Leading query = leading_of(query_, 2), weight = leading_of(weight_, 1);
    Leading key = leading_of(key_, 2);
    if (lengths_) key.include(*lengths_, 0);
    for (const Given& t : given_)
      more.push_back({Slices(*t.tensor, t.trailing, leading).strides(), &t.matrix->lead});
    more.push_back({index_strides(query, leading), &own.query.index});
    more.push_back({index_strides(key, leading), &own.key.index});
    more.push_back({index_strides(weight, leading), &own.weight.index});
    problem.batch = merge(leading, more);
    own.query.batch = merge(query, {{Slices(query_, 2, query).strides(), &own.query.lead}});
    own.weight.batch = merge(weight, {{Slices(weight_, 1, weight).strides(), &own.weight.lead}});
    std::vector<Along> keys{{Slices(key_, 2, key).strides(), &own.key.lead}};
    if (lengths_) keys.push_back({Slices(*lengths_, 0, key).strides(), &own.key.lengths});
    own.key.batch = merge(key, keys);
  }

 private:
  struct Given {
    const Tensor* tensor;
    int64_t trailing;
    cuda::Matrix* matrix;
  };
  const Tensor &query_, &key_, &weight_;
  const Tensor* lengths_ = nullptr;
  Maybe near_value_;
  std::vector<Given> given_;

  static int size(const Tensor& t, int64_t from_end, const char* name) {
    const int64_t size = t.size(t.dim() - from_end);
    STD_TORCH_CHECK(size <= INT_MAX, "attnkernels: ", name, " has a dimension of ", size,
                    ", and the CUDA kernels count to ", INT_MAX);
    return static_cast<int>(size);
  }
  void take(const Tensor& t, int64_t trailing, cuda::Matrix& matrix) {
    leading.include(t, trailing);
    static_cast<Matrix&>(matrix) = slices(t, trailing, leading).first();
    given_.push_back({&t, trailing, &matrix});
  }
  void take_value(const Tensor& value) {
    STD_TORCH_CHECK(value.size(value.dim() - 2) == problem.m,
                    "attnkernels: key and value differ in length");
    problem.dv = size(value, 1, "value");
    // offsets inside a tile have 32 bits, which few strides exceed
    const int64_t span =
        cuda::kTile * value.stride(value.dim() - 2) + problem.dv * value.stride(value.dim() - 1);
    near_value_ = span <= INT_MAX ? value : torch::stable::contiguous(value);
    take(*near_value_, 2, problem.value);
  }
  void take_mask(const Maybe& mask) {
    if (!mask) return;
    for (int64_t k = 1; k <= std::min<int64_t>(2, mask->dim()); k++) {
      const int64_t size = mask->size(mask->dim() - k);
      STD_TORCH_CHECK(size == 1 || size == (k == 1 ? problem.m : problem.n),
                      "attnkernels: attn_mask does not broadcast to (n, m)");
    }
    take(*mask, std::min<int64_t>(2, mask->dim()), problem.mask);
  }
  void take_lengths(const Maybe& lengths) {
    if (!lengths) return;
    lengths_ = &*lengths;
    take(*lengths, 0, problem.lengths);
  }
  void take_sequences(const Maybe& queries, const Maybe& keys) {
    if (!queries) return;
    STD_TORCH_CHECK(keys && queries->numel() == keys->numel() && queries->numel() >= 1,
                    "attnkernels: cu_seqlens_q and cu_seqlens_k differ in length");
    problem.sequences = static_cast<int>(queries->numel() - 1);
    problem.query_ends = ends(*queries);
    problem.key_ends = ends(*keys);
  }
  void take_dropout(const Maybe& seed, double p) {
    if (!seed) return;
    problem.seed = static_cast<const int64_t*>(seed->const_data_ptr());
    problem.threshold = static_cast<uint64_t>(p * 4294967296.0);
    problem.keep_scale = p < 1 ? static_cast<float>(1 / (1 - p)) : 0.f;
  }
  static cuda::Sequences ends(const Tensor& t) {
    STD_TORCH_CHECK(t.dim() == 1 && (t.stride(0) == 1 || t.numel() == 1),
                    "attnkernels: cu_seqlens must be contiguous and 1-D");
    return {t.const_data_ptr(), dtype_of(t)};
  }
};

}  // namespace attnkernels
