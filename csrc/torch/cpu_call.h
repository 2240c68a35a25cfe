// The arguments of a call as the list of attentions that the CPU kernels work through.
#pragma once
#include "common/contract.h"
#include "cpu/problem.h"
#include "torch/leading.h"
#include "torch/operators.h"

namespace attnkernels {

// Element k of a tensor of int32 or int64.
inline int64_t integer_at(const Tensor& t, int64_t k) {
  return t.scalar_type() == ScalarType::Int ? static_cast<const int32_t*>(t.const_data_ptr())[k]
                                            : static_cast<const int64_t*>(t.const_data_ptr())[k];
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
  Leading leading;
  int64_t n, m, d, dv, sequences = 1;
  std::vector<cpu::Item> items;

  explicit Call(const Arguments& in)
      : n(size_from_end(in.query, 2)), m(size_from_end(in.key, 2)), d(size_from_end(in.query, 1)),
        dv(in.value ? size_from_end(*in.value, 1) : 0) {
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
    if (in.cu_seqlens_q)
      list_sequences(in);
    else
      list_batch(in);
  }

  // The tangents of every item.
  std::vector<cpu::Tangents> tangents(const InputTangents& in) const {
    std::vector<cpu::Tangents> out(items.size(), cpu::Tangents{});
    auto place = [&](const Tensor* t, int64_t trailing, Matrix cpu::Tangents::* field,
                     const auto& first_row) {
      if (!t) return;
      const Slices at = slices(*t, trailing, leading);
      for (size_t k = 0; k < items.size(); k++) {
        const int64_t lead = static_cast<int64_t>(k) / sequences;
        out[k].*field = at[lead].at(first_row(items[k], lead));
      }
    };
    auto query_row = [&](const cpu::Item& item, int64_t lead) { return item.query_row - lead * n; };
    auto key_row = [&](const cpu::Item& item, int64_t lead) { return item.key_row - lead * m; };
    auto none = [](const cpu::Item&, int64_t) { return int64_t{0}; };
    place(in.query, 2, &cpu::Tangents::query, query_row);
    place(in.key, 2, &cpu::Tangents::key, key_row);
    place(in.value, 2, &cpu::Tangents::value, key_row);
    place(in.weight, 1, &cpu::Tangents::weight, none);
    if (in.attn_mask) place(in.attn_mask, mask_rank(*in.attn_mask), &cpu::Tangents::mask, none);
    return out;
  }

  // Hidden units and value columns of all pairs.
  int64_t work() const {
    int64_t pairs = 0;
    for (const cpu::Item& item : items) pairs += item.n * item.m;
    return pairs * (d + dv);
  }

 private:
  // One item per leading index.
  void list_batch(const Arguments& in) {
    items = whole_items(in);
    for (size_t k = 0; k < items.size(); k++) {
      cpu::Item& item = items[k];
      const int64_t b = static_cast<int64_t>(k);
      item.n = n;
      item.m = item.key_rows = m;
      item.query_row = item.pair_row = b * n;
      item.key_row = b * m;
      item.counter = b;
    }
    if (in.attn_mask) fill(items, *in.attn_mask, mask_rank(*in.attn_mask), &cpu::Item::mask);
    if (in.key_lengths) shorten(*in.key_lengths);
    if (in.packed_key) take_packed(*in.packed_key, in.query);
  }

  // One item per leading index h and sequence s: rows cu_q[s] .. cu_q[s + 1] of the queries, and
  // likewise of the keys.
  void list_sequences(const Arguments& in) {
    check_offsets(*in.cu_seqlens_q, in.cu_seqlens_k);
    const std::vector<int64_t> cu_q = offsets(*in.cu_seqlens_q, n, "cu_seqlens_q"),
                               cu_k = offsets(*in.cu_seqlens_k, m, "cu_seqlens_k");
    sequences = static_cast<int64_t>(cu_q.size()) - 1;
    const std::vector<cpu::Item> whole = whole_items(in);
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

  // One item per leading index, with the matrices of every call.
  std::vector<cpu::Item> whole_items(const Arguments& in) const {
    std::vector<cpu::Item> out(leading.count(), cpu::Item{});
    fill(out, in.query, 2, &cpu::Item::query);
    fill(out, in.key, 2, &cpu::Item::key);
    fill(out, in.weight, 1, &cpu::Item::weight);
    if (in.value) fill(out, *in.value, 2, &cpu::Item::value);
    return out;
  }

  void shorten(const Tensor& lengths) {
    check_integer(lengths, "key_lengths");
    const Slices at(lengths, 0, leading);
    for (size_t b = 0; b < items.size(); b++) {
      const int64_t length = integer_at(lengths, at.offset(static_cast<int64_t>(b)));
      STD_TORCH_CHECK(0 <= length && length <= m, "attnkernels: key_lengths must be between 0 and ",
                      m, ", got ", length);
      items[b].m = length;
    }
  }

  void take_packed(const Tensor& packed, const Tensor& query) {
    const int64_t rank = packed.dim();
    const bool fits = rank >= 3 && packed.size(rank - 3) == panel_count(m) &&
                      packed.size(rank - 2) == packed_rows(d) && packed.size(rank - 1) == kPanel &&
                      packed.scalar_type() == accumulator(query) && packed.is_contiguous();
    STD_TORCH_CHECK(fits, "attnkernels: packed_key must be contiguous, of dtype ",
                    toString(accumulator(query)), " and of shape (..., ", panel_count(m), ", ",
                    packed_rows(d), ", ", kPanel, "), got ", toString(packed.scalar_type()),
                    " of shape ", shape_of(packed));
    const Slices at = slices(packed, 3, leading);
    for (size_t b = 0; b < items.size(); b++) items[b].packed = at[static_cast<int64_t>(b)].data;
  }

  void fill(std::vector<cpu::Item>& out, const Tensor& t, int64_t trailing,
            Matrix cpu::Item::* field) const {
    const Slices at = slices(t, trailing, leading);
    for (size_t b = 0; b < out.size(); b++) out[b].*field = at[static_cast<int64_t>(b)];
  }
};

}  // namespace attnkernels
