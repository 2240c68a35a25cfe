// The attentions that a problem consists of. They are made when asked for: a list of a million of
// them would take more memory than their results.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/matrix.h"

namespace attnkernels::cpu {

// One attention: that of a leading index, or of one sequence of a packed batch.
struct Item {
  Matrix query, key, value, weight, mask;  // mask.data null: none
  Matrix packed;                           // prepared keys; data null: none
  int64_t n, m;                            // queries, and the end of the keys that take part
  int64_t first;                           // the first key that takes part, unless m is smaller
  int64_t key_rows;                        // keys in memory, at least m
  int64_t query_row;                       // first row in the outputs of shape (rows, dv)
  int64_t pair_row;                        // first row in the outputs of shape (rows, pair_cols)
  int64_t counter;                         // batch word of the dropout counter
  // The first rows in the gradients, that of the weight, and the offset in that of the mask.
  int64_t grad_query, grad_key, grad_value, grad_weight, grad_mask;
};

class Items {
 public:
  // What differs between leading indices. The last five are gradients, which have strides of rows,
  // except the mask's.
  enum Of {
    query,
    key,
    value,
    weight,
    mask,
    packed,
    starts,
    lengths,
    grad_query,
    grad_key,
    grad_value,
    grad_weight,
    grad_mask,
    kinds
  };
  // A leading dimension, and the strides over it.
  struct Dim {
    int64_t size;
    int64_t stride[kinds];
  };

  Matrix first[lengths + 1];    // of the leading index 0; data is null for what is absent
  const Dim* dims = nullptr;    // the innermost first
  int64_t rank = 0, count = 0;  // count is the number of items
  int64_t n = 0, m = 0;         // rows of queries and keys of a leading index
  // Of packed sequences: their number, and sequences + 1 ends of queries and keys. Or null.
  int64_t sequences = 1;
  const int64_t *query_ends = nullptr, *key_ends = nullptr;

  int64_t queries(int64_t b) const {
    if (!query_ends) return n;
    const int64_t s = b % sequences;
    return query_ends[s + 1] - query_ends[s];
  }

  Matrix weight_of(int64_t lead) const {
    int64_t offset[kinds];
    offsets(lead, offset);
    return moved(weight, offset);
  }

  Item operator[](int64_t b) const {
    const int64_t lead = query_ends ? b / sequences : b;
    int64_t at[kinds];
    offsets(lead, at);
    Item item{moved(query, at),
              moved(key, at),
              moved(value, at),
              moved(weight, at),
              moved(mask, at),
              moved(packed, at),
              n,
              m,
              0,
              m,
              lead * n,
              lead * n,
              b,
              at[grad_query],
              at[grad_key],
              at[grad_value],
              at[grad_weight],
              at[grad_mask]};
    if (first[lengths].data)
      item.m = integer_at(first[lengths].data, first[lengths].dtype, at[lengths]);
    if (first[starts].data)
      item.first = integer_at(first[starts].data, first[starts].dtype, at[starts]);
    if (query_ends) cut(item, b - lead * sequences);
    return item;
  }

 private:
  void offsets(int64_t lead, int64_t (&at)[kinds]) const {
    for (int64_t t = 0; t < kinds; t++) at[t] = 0;
    for (int64_t k = 0; k < rank; k++) {
      const Dim& dim = dims[k];
      const int64_t rest = k + 1 < rank ? lead / dim.size : 0, i = lead - rest * dim.size;
      for (int64_t t = 0; t < kinds; t++) at[t] += i * dim.stride[t];
      lead = rest;
    }
  }

  Matrix moved(Of what, const int64_t (&at)[kinds]) const {
    Matrix out = first[what];
    if (out.data)
      out.data = static_cast<const char*>(out.data) + at[what] * element_size(out.dtype);
    return out;
  }

  // One sequence of a packed batch.
  void cut(Item& item, int64_t s) const {
    const int64_t q = query_ends[s], k = key_ends[s];
    item.query = item.query.at(q);
    item.key = item.key.at(k);
    if (item.value.data) item.value = item.value.at(k);
    item.n = query_ends[s + 1] - q;
    item.m = item.key_rows = key_ends[s + 1] - k;
    item.query_row += q;
    item.pair_row += q;
    item.grad_query += q;
    item.grad_key += k;
    item.grad_value += k;
  }
};

}  // namespace attnkernels::cpu
