// Leading dimensions: the shape that arguments broadcast to, and the matrix of each argument for an
// index into that shape.
#pragma once
#include <algorithm>
#include <initializer_list>
#include <utility>

#include "common/matrix.h"
#include "torch/types.h"

namespace attnkernels {

// The shape that all arguments broadcast to, without their last `trailing` dimensions.
class Leading {
 public:
  void include(const Tensor& t, int64_t trailing) {
    const int64_t rank = t.dim() - trailing;
    if (rank > static_cast<int64_t>(sizes_.size()))
      sizes_.insert(sizes_.begin(), rank - sizes_.size(), 1);
    for (int64_t k = 0; k < rank; k++) {
      int64_t& size = sizes_[sizes_.size() - rank + k];
      const int64_t given = t.size(k);
      STD_TORCH_CHECK(size == given || size == 1 || given == 1,
                      "attnkernels: leading dimensions must broadcast, got ", size, " and ", given);
      if (size == 1) size = given;
    }
  }
  int64_t count() const {
    int64_t n = 1;
    for (int64_t s : sizes_) n *= s;
    return n;
  }
  Sizes with(std::initializer_list<int64_t> trailing) const {
    Sizes out;
    out.reserve(sizes_.size() + trailing.size());
    out = sizes_;
    out.insert(out.end(), trailing);
    return out;
  }
  const Sizes& sizes() const { return sizes_; }

 private:
  Sizes sizes_;
};

// The stride of a dimension, or 0 if it is broadcast: expanded, or of size 1.
inline int64_t stride_of(const Tensor& t, int64_t k) { return t.size(k) == 1 ? 0 : t.stride(k); }

// The first matrix of one argument: its last two dimensions or fewer.
inline Matrix first_of(const Tensor& t, int64_t trailing, Dtype dtype) {
  const int64_t rank = t.dim();
  return {t.const_data_ptr(), trailing >= 2 ? stride_of(t, rank - 2) : 0,
          trailing >= 1 ? stride_of(t, rank - 1) : 0, dtype};
}

// The strides of one argument over the leading dimensions, the outermost first: 0 where it lacks
// one.
inline Sizes strides_over(const Leading& leading, const Tensor& t, int64_t trailing) {
  Sizes strides(leading.sizes().size(), 0);
  const int64_t lead = t.dim() - trailing;
  for (int64_t k = 0; k < lead; k++) strides[strides.size() - lead + k] = stride_of(t, k);
  return strides;
}

// The matrices of one argument by flat leading index. Nothing is copied. `leading` must outlive the
// object.
class Slices {
 public:
  Slices(const Tensor& t, int64_t trailing, const Leading& leading)
      : first_(first_of(t, trailing, Dtype::f32)), sizes_(leading.sizes()),
        strides_(strides_over(leading, t, trailing)) {}
  Slices as(Dtype dtype) && {
    first_.dtype = dtype;
    return std::move(*this);
  }
  const Matrix& first() const { return first_; }
  // Strides over the leading dimensions, the outermost first.
  const Sizes& strides() const { return strides_; }
  int64_t offset(int64_t index) const {
    int64_t out = 0;
    for (size_t k = sizes_.size(); k-- > 0;) {
      out += index % sizes_[k] * strides_[k];
      index /= sizes_[k];
    }
    return out;
  }
  Matrix operator[](int64_t index) const {
    Matrix m = first_;
    m.data = static_cast<const char*>(m.data) + offset(index) * element_size(m.dtype);
    return m;
  }

 private:
  Matrix first_;
  const Sizes& sizes_;
  Sizes strides_;
};

inline Slices slices(const Tensor& t, int64_t trailing, const Leading& leading) {
  return Slices(t, trailing, leading).as(dtype_of(t));
}

}  // namespace attnkernels
