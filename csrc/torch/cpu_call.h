// What an operator was called with, as the list of attentions the kernels work through.
#pragma once
#include "common/contract.h"
#include "cpu/problem.h"
#include "torch/checks.h"
#include "torch/leading.h"

namespace attnkernels {

inline std::vector<int64_t> integers(const Tensor& t) {
  using torch::headeronly::ScalarType;
  const bool small = t.scalar_type() == ScalarType::Int;
  STD_TORCH_CHECK(small || t.scalar_type() == ScalarType::Long,
                  "attnkernels: lengths must be int32 or int64");
  STD_TORCH_CHECK(t.dim() == 1 && t.stride(0) == 1,
                  "attnkernels: cu_seqlens must be contiguous and 1-D");
  std::vector<int64_t> out(t.numel());
  for (size_t k = 0; k < out.size(); k++)
    out[k] = small ? static_cast<const int32_t*>(t.const_data_ptr())[k]
                   : static_cast<const int64_t*>(t.const_data_ptr())[k];
  return out;
}

struct Inputs {
  const Tensor &query, &key, &weight;
  const Tensor* value = nullptr;
  const Maybe *attn_mask = nullptr, *key_lengths = nullptr, *cu_seqlens_q = nullptr,
              *cu_seqlens_k = nullptr, *packed_key = nullptr;
};

class Call {
 public:
  Leading leading;
  int64_t n, m, d, dv, sequences = 1;
  std::vector<cpu::Item> items;

  explicit Call(const Inputs& in)
      : n(in.query.size(in.query.dim() - 2)), m(in.key.size(in.key.dim() - 2)),
        d(in.query.size(in.query.dim() - 1)),
        dv(in.value ? in.value->size(in.value->dim() - 1) : 0) {
    STD_TORCH_CHECK(in.key.size(in.key.dim() - 1) == d && in.weight.size(in.weight.dim() - 1) == d,
                    "attnkernels: query, key and weight differ in their last dimension");
    STD_TORCH_CHECK(!in.value || in.value->size(in.value->dim() - 2) == m,
                    "attnkernels: key and value differ in length");
    leading.include(in.query, 2);
    leading.include(in.key, 2);
    leading.include(in.weight, 1);
    if (in.value) leading.include(*in.value, 2);
    if (given(in.attn_mask)) leading.include(**in.attn_mask, 2);
    if (given(in.key_lengths)) leading.include(**in.key_lengths, 0);
    if (given(in.cu_seqlens_q))
      list_sequences(in, integers(**in.cu_seqlens_q), integers(**in.cu_seqlens_k));
    else
      list_batch(in);
  }

  // Hidden units and value columns of all pairs.
  int64_t work() const {
    int64_t pairs = 0;
    for (const cpu::Item& item : items) pairs += item.n * item.m;
    return pairs * (d + dv);
  }

  static bool given(const Maybe* t) { return t && t->has_value(); }

 private:
  void list_batch(const Inputs& in) {
    const int64_t count = leading.count();
    items.assign(count, cpu::Item{});
    fill(items, in.query, 2, &cpu::Item::query);
    fill(items, in.key, 2, &cpu::Item::key);
    fill(items, in.weight, 1, &cpu::Item::weight);
    if (in.value) fill(items, *in.value, 2, &cpu::Item::value);
    if (given(in.attn_mask)) {
      const Tensor& mask = **in.attn_mask;
      for (int64_t k = 1; k <= std::min<int64_t>(2, mask.dim()); k++) {
        const int64_t size = mask.size(mask.dim() - k);
        STD_TORCH_CHECK(size == 1 || size == (k == 1 ? m : n),
                        "attnkernels: attn_mask does not broadcast to (n, m)");
      }
      fill(items, mask, std::min<int64_t>(2, mask.dim()), &cpu::Item::mask);
    }
    for (int64_t b = 0; b < count; b++) {
      cpu::Item& item = items[b];
      item.n = n;
      item.m = item.key_rows = m;
      item.query_row = item.pair_row = b * n;
      item.key_row = b * m;
      item.counter = b;
    }
    if (given(in.key_lengths)) {
      const Tensor& lengths = **in.key_lengths;
      const Slices at(lengths, 0, leading);
      const bool small = lengths.scalar_type() == torch::headeronly::ScalarType::Int;
      for (int64_t b = 0; b < count; b++) {
        const int64_t k = at.offset(b);
        const int64_t length = small ? static_cast<const int32_t*>(lengths.const_data_ptr())[k]
                                     : static_cast<const int64_t*>(lengths.const_data_ptr())[k];
        STD_TORCH_CHECK(0 <= length && length <= m,
                        "attnkernels: key_lengths must lie between 0 and ", m, ", got ", length);
        items[b].m = length;
      }
    }
    if (given(in.packed_key)) {
      const Tensor& packed = **in.packed_key;
      const int64_t rank = packed.dim(), panels = panel_count(m), rows = packed_rows(d);
      STD_TORCH_CHECK(rank >= 3 && packed.size(rank - 3) == panels &&
                          packed.size(rank - 2) == rows && packed.size(rank - 1) == kPanel &&
                          (dtype_of(packed) == Dtype::f64) == (dtype_of(in.query) == Dtype::f64) &&
                          element_size(dtype_of(packed)) >= 4,
                      "attnkernels: packed_key was not prepared from this key");
      STD_TORCH_CHECK(packed.is_contiguous(), "attnkernels: packed_key must be contiguous");
      const Slices at = slices(packed, 3, leading);
      for (int64_t b = 0; b < count; b++) items[b].packed = at[b].data;
    }
  }

  // Sequence s of leading index h: rows cu_q[s] .. cu_q[s + 1] of the queries, and likewise of the
  // keys.
  void list_sequences(const Inputs& in, const std::vector<int64_t>& cu_q,
                      const std::vector<int64_t>& cu_k) {
    check_sequences(cu_q, n, "cu_seqlens_q");
    check_sequences(cu_k, m, "cu_seqlens_k");
    STD_TORCH_CHECK(cu_q.size() == cu_k.size(),
                    "attnkernels: cu_seqlens_q and cu_seqlens_k differ in length");
    sequences = static_cast<int64_t>(cu_q.size()) - 1;
    std::vector<cpu::Item> whole(leading.count(), cpu::Item{});
    fill(whole, in.query, 2, &cpu::Item::query);
    fill(whole, in.key, 2, &cpu::Item::key);
    fill(whole, in.weight, 1, &cpu::Item::weight);
    if (in.value) fill(whole, *in.value, 2, &cpu::Item::value);
    for (int64_t h = 0; h < leading.count(); h++)
      for (int64_t s = 0; s < sequences; s++) {
        cpu::Item item = whole[h];
        item.query = item.query.at(cu_q[s]);
        item.key = item.key.at(cu_k[s]);
        if (in.value) item.value = item.value.at(cu_k[s]);
        item.n = cu_q[s + 1] - cu_q[s];
        item.m = item.key_rows = cu_k[s + 1] - cu_k[s];
        item.query_row = h * n + cu_q[s];
        item.key_row = h * m + cu_k[s];
        item.counter = h * sequences + s;
        items.push_back(item);
      }
  }

  static void check_sequences(const std::vector<int64_t>& cu, int64_t total, const char* name) {
    bool good = !cu.empty() && cu.front() == 0 && cu.back() == total;
    for (size_t k = 1; k < cu.size(); k++) good = good && cu[k - 1] <= cu[k];
    STD_TORCH_CHECK(good, "attnkernels: ", name, " must rise from 0 to ", total);
  }

  void fill(std::vector<cpu::Item>& out, const Tensor& t, int64_t trailing,
            Matrix cpu::Item::* field) {
    const Slices at = slices(t, trailing, leading);
    for (size_t b = 0; b < out.size(); b++) out[b].*field = at[static_cast<int64_t>(b)];
  }
};

}  // namespace attnkernels
