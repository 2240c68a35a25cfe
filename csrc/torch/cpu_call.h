// The arguments of a call as the attentions that the CPU kernels work through.
#pragma once
#include "common/contract.h"
#include "cpu/problem.h"
#include "torch/leading.h"
#include "torch/operators.h"

namespace attnkernels {

inline int64_t integer_at(const Tensor& t, int64_t k) {
  return integer_at(t.const_data_ptr(), dtype_of(t), k);
}

// Offsets of packed sequences, which rise from 0 to `total`.
inline std::vector<int64_t> offsets(const Tensor& t, int64_t total, const char* name) {
  std::vector<int64_t> out(t.numel());
  for (size_t k = 0; k < out.size(); k++) {
    out[k] = integer_at(t, static_cast<int64_t>(k));
    const bool rises = k ? out[k - 1] <= out[k] : out[k] == 0;
    STD_TORCH_CHECK(rises && (k + 1 < out.size() || out[k] == total), "attnkernels: ", name,
                    " must rise from 0 to ", total, ", got ", out[k], " at index ", k);
  }
  return out;
}

class Call {
 public:
  using Items = cpu::Items;
  Leading leading;
  int64_t n, m, d, dv;
  int64_t queries, keys, key_rows;  // the most of any item; fewer keys than key_rows by key_lengths
  Items items;

  // Gradients in `wanted` will be computed. Items are leading indices, or sequences of one, unless
  // the call `may_fold` them.
  explicit Call(const Arguments& in, int64_t wanted = 0, bool may_fold = true)
      : n(size_from_end(in.query, 2)), m(size_from_end(in.key, 2)), d(size_from_end(in.query, 1)),
        dv(in.value ? size_from_end(*in.value, 1) : 0), queries(n), keys(m), key_rows(m),
        window_(in.window) {
    check_width(in.key, d, "key");
    check_width(in.weight, d, "weight");
    if (in.value) check_value(*in.value, m);
    if (in.attn_mask) check_mask(*in.attn_mask, n, m);
    leading.include(in.query, 2);
    leading.include(in.key, 2);
    leading.include(in.weight, 1);
    if (in.value) leading.include(*in.value, 2);
    if (in.attn_mask) leading.include(*in.attn_mask, 2);
    if (in.key_lengths) leading.include(*in.key_lengths, 0);
    if (in.key_starts) leading.include(*in.key_starts, 0);
    items.n = n;
    items.m = m;
    items.count = leading.count();
    list_dims();
    take(in.query, 2, Items::query);
    take(in.key, 2, Items::key);
    take(in.weight, 1, Items::weight);
    if (in.value) take(*in.value, 2, Items::value);
    if (in.cu_seqlens_q) {
      take_sequences(in);
    } else {
      if (in.attn_mask) take(*in.attn_mask, mask_rank(*in.attn_mask), Items::mask);
      if (in.key_lengths) take_lengths(*in.key_lengths);
      if (in.key_starts) {
        check_integer(*in.key_starts, "key_starts");
        take(*in.key_starts, 0, Items::starts);
      }
      if (in.packed_key) take_packed(*in.packed_key, in.query, is_logistic(in.activation));
    }
    if (wanted & kQuery) take_gradient(in.query, 2, Items::grad_query, n);
    if (wanted & kKey) take_gradient(in.key, 2, Items::grad_key, m);
    if (wanted & kValue) take_gradient(*in.value, 2, Items::grad_value, m);
    if (wanted & kWeight) take_gradient(in.weight, 1, Items::grad_weight, 1);
    if (wanted & kMask) take_mask_gradient(in.attn_mask);
    if (may_fold && !in.cu_seqlens_q && !in.window.limits() && !in.seed) fold(wanted);
    join();
    items.dims = dims_.data();
    items.rank = static_cast<int64_t>(dims_.size());
    if (in.key_starts && !in.cu_seqlens_q) check_starts();
  }
  Call(const Call&) = delete;

  // Strides of the gradient of attn_mask.
  int64_t mask_row = 0, mask_col = 0;

  // The tangents of every item, of a call that is not folded.
  std::vector<cpu::Tangents> tangents(const InputTangents& in) const {
    std::vector<cpu::Tangents> out(items.count, cpu::Tangents{});
    auto place = [&](const Tensor* t, int64_t trailing, Matrix cpu::Tangents::* field,
                     const std::vector<int64_t>& ends) {
      if (!t) return;
      const Slices at = slices(*t, trailing, leading);
      for (int64_t k = 0; k < items.count; k++)
        out[k].*field = at[k / items.sequences].at(ends.empty() ? 0 : ends[k % items.sequences]);
    };
    place(in.query, 2, &cpu::Tangents::query, query_ends_);
    place(in.key, 2, &cpu::Tangents::key, key_ends_);
    place(in.value, 2, &cpu::Tangents::value, key_ends_);
    place(in.weight, 1, &cpu::Tangents::weight, {});
    if (in.attn_mask) place(in.attn_mask, mask_rank(*in.attn_mask), &cpu::Tangents::mask, {});
    return out;
  }

  // Hidden units and value columns of all pairs.
  int64_t work() const { return pairs_ * (d + dv); }

 private:
  const Window window_;
  std::vector<Items::Dim> dims_;
  std::vector<int64_t> query_ends_, key_ends_;
  int64_t pairs_ = 0;

  void list_dims() {
    for (size_t k = leading.sizes().size(); k-- > 0;) dims_.push_back({leading.sizes()[k], {}});
    pairs_ = items.count * n * window_.width(m);
  }

  // Call f(dim, k) for the leading dimensions k of t along which it varies.
  template <class F>
  void for_dims(const Tensor& t, int64_t trailing, const F& f) {
    const int64_t rank = t.dim() - trailing;
    for (int64_t k = 0; k < rank; k++)
      if (t.size(k) != 1) f(dims_[rank - 1 - k], k);
  }

  void take(const Tensor& t, int64_t trailing, Items::Of what) {
    auto stride = [&](int64_t k) { return t.size(k) == 1 ? 0 : t.stride(k); };
    items.first[what] = {t.const_data_ptr(), trailing > 1 ? stride(t.dim() - 2) : 0,
                         trailing > 0 ? stride(t.dim() - 1) : 0, dtype_of(t)};
    for_dims(t, trailing, [&](Items::Dim& dim, int64_t k) { dim.stride[what] = t.stride(k); });
  }

  // The gradient of t is contiguous. Its strides are those of rows, `rows` per leading index.
  void take_gradient(const Tensor& t, int64_t trailing, Items::Of what, int64_t rows) {
    const int64_t rank = t.dim() - trailing;
    int64_t step = rows;
    for (int64_t k = rank; k-- > 0; step *= t.size(k))
      if (t.size(k) != 1) dims_[rank - 1 - k].stride[what] = step;
  }

  void take_mask_gradient(const Tensor* mask) {
    STD_TORCH_CHECK(mask, "attnkernels: attn_mask must be given to have a gradient");
    const int64_t rank = mask->dim();
    int64_t step = 1;
    if (rank >= 1 && mask->size(rank - 1) != 1) mask_col = 1;
    if (rank >= 1) step = mask->size(rank - 1);
    if (rank >= 2 && mask->size(rank - 2) != 1) mask_row = step;
    if (rank >= 2) step *= mask->size(rank - 2);
    take_gradient(*mask, mask_rank(*mask), Items::grad_mask, step);
  }

  void take_lengths(const Tensor& lengths) {
    check_integer(lengths, "key_lengths");
    take(lengths, 0, Items::lengths);
    const Leading own = [&] {
      Leading out;
      out.include(lengths, 0);
      return out;
    }();
    const Slices at(lengths, 0, own);
    const int64_t count = own.count();
    int64_t most = 0, sum = 0;
    for (int64_t b = 0; b < count; b++) {
      const int64_t length = integer_at(lengths, at.offset(b));
      STD_TORCH_CHECK(0 <= length && length <= m, "attnkernels: key_lengths must be between 0 and ",
                      m, ", got ", length);
      most = std::max(most, length);
      sum += window_.width(length);
    }
    keys = most;
    pairs_ = count ? items.count / count * n * sum : 0;
  }

  void check_starts() {
    pairs_ = 0;
    for (int64_t b = 0; b < items.count; b++) {
      const cpu::Item item = items[b];
      STD_TORCH_CHECK(0 <= item.first && item.first <= m,
                      "attnkernels: key_starts must be between 0 and ", m, ", got ", item.first);
      pairs_ += item.n * window_.width(std::max<int64_t>(0, item.m - item.first));
    }
  }

  // Rows cu_q[s] .. cu_q[s + 1] of the queries, and likewise of the keys, for every sequence s.
  void take_sequences(const Arguments& in) {
    check_offsets(*in.cu_seqlens_q, in.cu_seqlens_k);
    query_ends_ = offsets(*in.cu_seqlens_q, n, "cu_seqlens_q");
    key_ends_ = offsets(*in.cu_seqlens_k, m, "cu_seqlens_k");
    const int64_t sequences = static_cast<int64_t>(query_ends_.size()) - 1;
    queries = keys = pairs_ = 0;
    for (int64_t s = 0; s < sequences; s++) {
      const int64_t q = query_ends_[s + 1] - query_ends_[s], k = key_ends_[s + 1] - key_ends_[s];
      queries = std::max(queries, q);
      keys = std::max(keys, k);
      pairs_ += items.count * q * window_.width(k);
    }
    key_rows = keys;
    items.count *= sequences;
    items.sequences = sequences;
    items.query_ends = query_ends_.data();
    items.key_ends = key_ends_.data();
  }

  void take_packed(const Tensor& packed, const Tensor& query, bool logistic) {
    const int64_t rank = packed.dim();
    const ScalarType type = accumulator(query);
    const bool fits = rank >= 3 && packed.size(rank - 3) == group_count(m) &&
                      packed.size(rank - 2) == kGroupRows && packed.size(rank - 1) == padded(d) &&
                      packed.scalar_type() == type && packed.is_contiguous();
    STD_TORCH_CHECK(fits, "attnkernels: packed_key must be contiguous, of dtype ", toString(type),
                    " and of shape (..., ", group_count(m), ", ", kGroupRows, ", ", padded(d),
                    "), got ", toString(packed.scalar_type()), " of shape ", shape_of(packed));
    STD_TORCH_CHECK(
        logistic,
        "attnkernels: packed_key must be None for an activation that has no exponentials");
    STD_TORCH_CHECK(rank - 3 <= static_cast<int64_t>(dims_.size()),
                    "attnkernels: packed_key must not have more leading dimensions than the call");
    for_dims(packed, 3, [&](const Items::Dim& dim, int64_t k) {
      STD_TORCH_CHECK(packed.size(k) == dim.size, "attnkernels: packed_key must broadcast to ",
                      dim.size, ", got ", packed.size(k));
    });
    take(packed, 3, Items::packed);
  }

  // Where a batch has only queries (and a mask) of its own, it is one attention of all of their
  // rows: keys are then prepared once.
  void fold(int64_t wanted) {
    Matrix &query = items.first[Items::query], &mask = items.first[Items::mask];
    size_t folded = 0;
    for (; folded < dims_.size(); folded++) {
      const Items::Dim& dim = dims_[folded];
      if (dim.size == 1) continue;
      const int64_t rows = items.n;
      auto stays = [&](auto... what) { return ((dim.stride[what] == 0) && ...); };
      auto goes_on = [&](Items::Of what, int64_t row) {
        return rows == 1 || dim.stride[what] == rows * row;
      };
      if (dim.size == 0 || rows == 0 ||
          !stays(Items::key, Items::value, Items::weight, Items::packed, Items::starts,
                 Items::lengths, Items::grad_key, Items::grad_value, Items::grad_weight))
        break;
      if (!goes_on(Items::query, query.row) || (mask.data && !goes_on(Items::mask, mask.row)) ||
          (wanted & kQuery && dim.stride[Items::grad_query] == 0) ||
          (wanted & kMask && !goes_on(Items::grad_mask, mask_row)))
        break;
      if (rows == 1) {
        query.row = dim.stride[Items::query];
        mask.row = dim.stride[Items::mask];
        mask_row = dim.stride[Items::grad_mask];
      }
      items.n *= dim.size;
      items.count /= dim.size;
    }
    dims_.erase(dims_.begin(), dims_.begin() + folded);
    queries = items.n;
  }

  // Make one of neighbouring dimensions that lie as one, so that fewer divisions find an item.
  void join() {
    size_t last = 0, size = 0;  // dims_[0 .. size) are done
    for (size_t k = 0; k < dims_.size(); k++) {
      const Items::Dim dim = dims_[k];
      if (dim.size == 1) continue;
      bool joins = size > 0;
      for (int64_t t = 0; joins && t < Items::kinds; t++)
        joins = dim.stride[t] == dims_[last].stride[t] * dims_[last].size;
      if (joins) {
        dims_[last].size *= dim.size;
        continue;
      }
      last = size++;
      dims_[last] = dim;
    }
    dims_.resize(size);
  }
};

}  // namespace attnkernels
