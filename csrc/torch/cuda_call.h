// The arguments of an operator as the CUDA kernels take them: merged leading dimensions, and the
// strides of every tensor over them. Nothing is read from the device. A small call spends a
// microsecond here, so nothing is allocated without need.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <climits>
#include <initializer_list>
#include <span>

#include "cuda/problem.h"
#include "torch/checks.h"
#include "torch/leading.h"
#include "torch/operators.h"

namespace attnkernels {

// The strides of a tensor over the leading dimensions, and the destination of the merged ones.
struct Along {
  Sizes strides;
  cuda::Strides* merged;
};

// Merge neighbouring leading dimensions that all tensors lay out as one: batch and heads of a dense
// call are one number.
inline cuda::Batch merge(const Leading& leading, std::span<const Along> tensors) {
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

// Return the strides over `leading` of the flat index into the leading dimensions `own`.
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

inline void take_dropout(cuda::Problem& problem, const Tensor& seed, double p) {
  problem.seed = static_cast<const int64_t*>(seed.const_data_ptr());
  problem.of_block = seed.dim() > 0;
  problem.threshold = static_cast<uint64_t>(p * 4294967296.0);
  problem.keep_scale = p < 1 ? static_cast<float>(1 / (1 - p)) : 0.f;
}

class CudaCall {
 public:
  Leading leading;
  cuda::Problem problem{};
  cuda::Owners own;

  explicit CudaCall(const Arguments& in) : in_(in) {
    given_.reserve(kGiven);
    problem.activation = in.activation;
    problem.fast = in.fast;
    problem.negative_slope = static_cast<float>(in.negative_slope);
    problem.scale = static_cast<float>(in.scale);
    problem.n = size(in.query, 2, "query");
    problem.m = size(in.key, 2, "key");
    problem.d = size(in.query, 1, "query");
    check_width(in.key, problem.d, "key");
    check_width(in.weight, problem.d, "weight");
    take(in.query, 2, problem.query);
    take(in.key, 2, problem.key);
    take(in.weight, 1, problem.weight);
    if (in.value) take_value(*in.value);
    if (in.attn_mask) take_mask(*in.attn_mask);
    if (in.key_starts) take(*in.key_starts, 0, problem.starts);
    if (in.key_lengths) take(*in.key_lengths, 0, problem.lengths);
    if (in.cu_seqlens_q) take_sequences(*in.cu_seqlens_q, in.cu_seqlens_k);
    if (in.seed) take_dropout(problem, *in.seed, in.dropout_p);
    auto limit = [](int64_t keys) { return static_cast<int>(std::min<int64_t>(keys, INT_MAX)); };
    problem.window = {limit(in.window.left), limit(in.window.right)};
  }

  // Merge the leading dimensions, once all arguments are registered; `more` has the operator's own
  // tensors.
  void done(std::vector<Along> more = {}) {
    more.reserve(more.size() + given_.size() + kOwners);
    for (const Given& t : given_)
      more.push_back({strides_over(leading, *t.tensor, t.trailing), &t.matrix->lead});
    add_owners(more, own, &in_.query, &in_.key, &in_.weight);
    problem.batch = merge(leading, more);
  }

  // The same for a call with tangents, whose inputs and owners it returns.
  cuda::Tangents done(const InputTangents& in) {
    cuda::Tangents tangents{problem, {}, {}};
    cuda::Problem& inputs = tangents.inputs;
    inputs.query = inputs.key = inputs.value = inputs.weight = inputs.mask = {};
    if (in.query) take(*in.query, 2, inputs.query);
    if (in.key) take(*in.key, 2, inputs.key);
    if (in.weight) take(*in.weight, 1, inputs.weight);
    if (in.value) take_near(near_value_tangent_, *in.value, inputs.value);
    if (in.attn_mask) take(*in.attn_mask, mask_rank(*in.attn_mask), inputs.mask);
    std::vector<Along> more;
    add_owners(more, tangents.own, in.query, in.key, in.weight);
    done(std::move(more));
    inputs.batch = problem.batch;
    inputs.starts.lead = problem.starts.lead;
    inputs.lengths.lead = problem.lengths.lead;
    return tangents;
  }

 private:
  struct Given {
    const Tensor* tensor;
    int64_t trailing;
    cuda::Matrix* matrix;
  };
  static constexpr size_t kGiven = 8;   // tensors of a call without tangents, at most
  static constexpr size_t kOwners = 3;  // query, key and weight
  const Arguments& in_;
  Maybe near_value_, near_value_tangent_;
  std::vector<Given> given_;

  // Describe the tensors that are prepared, null if absent, and add the strides of their indices.
  void add_owners(std::vector<Along>& more, cuda::Owners& of, const Tensor* query,
                  const Tensor* key, const Tensor* weight) const {
    auto add = [&](cuda::Own& own, const Tensor* x, int64_t trailing, const Tensor* starts,
                   const Tensor* lengths) {
      if (!x) return;
      Leading lead = leading_of(*x, trailing);
      if (starts) lead.include(*starts, 0);
      if (lengths) lead.include(*lengths, 0);
      Along tensors[3] = {{strides_over(lead, *x, trailing), &own.lead}};
      size_t count = 1;
      if (starts) tensors[count++] = {strides_over(lead, *starts, 0), &own.starts};
      if (lengths) tensors[count++] = {strides_over(lead, *lengths, 0), &own.lengths};
      own.batch = merge(lead, {tensors, count});
      more.push_back({index_strides(lead, leading), &own.index});
    };
    add(of.query, query, 2, nullptr, nullptr);
    add(of.key, key, 2, in_.key_starts, in_.key_lengths);
    add(of.weight, weight, 1, nullptr, nullptr);
  }

  static int size(const Tensor& t, int64_t from_end, const char* name) {
    const int64_t size = size_from_end(t, from_end);
    STD_TORCH_CHECK(size <= INT_MAX, "attnkernels: ", name, " has a dimension of ", size,
                    ", and the CUDA kernels count to ", INT_MAX);
    return static_cast<int>(size);
  }
  void take(const Tensor& t, int64_t trailing, cuda::Matrix& matrix) {
    leading.include(t, trailing);
    static_cast<Matrix&>(matrix) = first_of(t, trailing, dtype_of(t));
    given_.push_back({&t, trailing, &matrix});
  }
  void take_value(const Tensor& value) {
    check_value(value, problem.m);
    problem.dv = size(value, 1, "value");
    take_near(near_value_, value, problem.value);
  }
  // Offsets inside a tile of values have 32 bits, which few strides exceed.
  void take_near(Maybe& near, const Tensor& value, cuda::Matrix& matrix) {
    const int64_t span =
        cuda::kTile * value.stride(value.dim() - 2) + problem.dv * value.stride(value.dim() - 1);
    near = span <= INT_MAX ? value : torch::stable::contiguous(value);
    take(*near, 2, matrix);
  }
  void take_mask(const Tensor& mask) {
    check_mask(mask, problem.n, problem.m);
    take(mask, mask_rank(mask), problem.mask);
  }
  void take_sequences(const Tensor& queries, const Tensor* keys) {
    check_offsets(queries, keys);
    problem.sequences = static_cast<int>(queries.numel() - 1);
    problem.query_ends = {queries.const_data_ptr(), dtype_of(queries)};
    problem.key_ends = {keys->const_data_ptr(), dtype_of(*keys)};
  }
};

}  // namespace attnkernels
