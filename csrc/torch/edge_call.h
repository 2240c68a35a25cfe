// The arguments of attention over edges: what is checked, and how operands and results lie.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "torch/edge_operators.h"

namespace attnkernels {

// Tensors with rows per node or edge, (*L, rows, cols) or (*L, rows), lie by row: the last of the
// leading dimensions, usually that of heads, is inside of the rows, as in graph libraries' (nodes,
// heads, channels). attnkernels/ops/fakes.py says the same.
inline Sizes strides_by_row(const Sizes& sizes, int64_t trailing) {
  const size_t rank = sizes.size(), rows = rank - trailing;
  if (rows == 0) return contiguous_strides(sizes);
  Sizes lying = sizes;
  std::swap(lying[rows - 1], lying[rows]);
  Sizes strides = contiguous_strides(lying);
  std::swap(strides[rows - 1], strides[rows]);
  return strides;
}

inline Tensor empty_by_row(const Tensor& on, const Sizes& sizes, int64_t trailing, ScalarType type,
                           const char* name) {
  return empty_strided(on, sizes, strides_by_row(sizes, trailing), type, name);
}

// The tensor itself if it lies by row, or a copy that does.
inline Tensor by_row(const Tensor& t, int64_t trailing) {
  const Sizes sizes = sizes_of(t), strides = strides_by_row(sizes, trailing);
  bool lies = true;
  for (int64_t k = 0; k < t.dim(); k++) lies &= sizes[k] == 1 || t.stride(k) == strides[k];
  if (lies || !t.numel()) return t;
  Tensor copy = empty_strided(t, sizes, strides, t.scalar_type(), "a copy by row");
  torch::stable::copy_(copy, t);
  return copy;
}

// The tensor itself if the elements of its rows are next to each other, or a copy.
inline Tensor in_rows(const Tensor& t) {
  const bool lies = t.size(t.dim() - 1) == 1 || t.stride(t.dim() - 1) == 1;
  return lies ? t : by_row(t, 2);
}

inline void check_ends(const Tensor& t, int64_t count, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long && t.dim() == 1 && t.is_contiguous() &&
                      t.size(0) == count,
                  "attnkernels: ", name, " must be int64, contiguous and of shape (", count,
                  ",), got ", toString(t.scalar_type()), " of shape ", shape_of(t));
}

// The shapes of a call.
struct EdgeShapes {
  Leading leading;
  int64_t n, m, edges, d, dv;

  explicit EdgeShapes(const EdgeArguments& in)
      : n(size_from_end(in.query, 2)), m(size_from_end(in.key, 2)), edges(in.edges.source.numel()),
        d(size_from_end(in.query, 1)), dv(size_from_end(in.value ? *in.value : in.key, 1)) {
    check_width(in.key, d, "key");
    check_width(in.weight, d, "weight");
    if (in.value) check_value(*in.value, m);
    include(in.query, 2, in.query, "query");
    include(in.key, 2, in.query, "key");
    include(in.weight, 1, in.query, "weight");
    if (in.value) include(*in.value, 2, in.query, "value");
    if (in.edge_key) {
      check_width(*in.edge_key, d, "edge_key");
      check_edges(*in.edge_key, 2, "edge_key");
      include(*in.edge_key, 2, in.query, "edge_key");
    }
    if (in.edge_bias) {
      check_edges(*in.edge_bias, 1, "edge_bias");
      include(*in.edge_bias, 1, in.query, "edge_bias");
    }
    check_ends(in.edges.target_begin, n + 1, "target_begin");
    check_ends(in.edges.source, edges, "source");
    check_ends(in.edges.order, edges, "order");
    check_ends(in.edges.source_begin, m + 1, "source_begin");
    check_ends(in.edges.target, edges, "target");
    check_ends(in.edges.place, edges, "place");
  }

  Sizes rows(int64_t rows, int64_t cols) const { return leading.with({rows, cols}); }
  // What the backward needs of a softmax, as softmax_of, but (leading, n, 2), by row.
  Tensor softmax(const Tensor& on, ScalarType type) const {
    return empty_by_row(on, rows(n, 2), 2, type, "the state of the softmax");
  }
  static bool is_softmax(const Outputs& given) { return given.weights.dim() > given.lse.dim(); }
  // How many heads lie together.
  int64_t together() const { return leading.sizes().empty() ? 1 : leading.sizes().back(); }

  // The gradient of x, (..., rows, cols) or (..., rows), which must not be broadcast.
  Tensor gradient(const Tensor* x, int64_t trailing, int64_t wanted, ScalarType type,
                  const Tensor& on, const char* name) const {
    if (!wanted) return nothing(on);
    STD_TORCH_CHECK(x, "attnkernels: ", name, " must be given to have a gradient");
    check_whole(*x, trailing, name);
    return empty_by_row(on, sizes_of(*x), trailing, type, name);
  }
  Tensor weight_gradient(const Tensor& weight, int64_t wanted) const {
    if (!wanted) return nothing(weight);
    check_whole(weight, 1, "weight");
    return empty(weight, sizes_of(weight), "the gradient of weight");
  }

 private:
  void include(const Tensor& t, int64_t trailing, const Tensor& like, const char* name) {
    STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), "attnkernels: ", name,
                    " must have the dtype of query, ", toString(like.scalar_type()), ", got ",
                    toString(t.scalar_type()));
    leading.include(t, trailing);
  }
  void check_whole(const Tensor& x, int64_t trailing, const char* name) const {
    const int64_t lead = x.dim() - trailing;
    bool whole = lead == static_cast<int64_t>(leading.sizes().size());
    for (int64_t k = 0; whole && k < lead; k++) whole = x.size(k) == leading.sizes()[k];
    STD_TORCH_CHECK(whole, "attnkernels: ", name,
                    " must have all leading dimensions of the call to have a gradient, got shape ",
                    shape_of(x));
  }
  void check_edges(const Tensor& t, int64_t place, const char* name) const {
    STD_TORCH_CHECK(size_from_end(t, place) == edges, "attnkernels: ", name,
                    " must have a row per edge, ", edges, ", got shape ", shape_of(t));
  }
};

}  // namespace attnkernels
