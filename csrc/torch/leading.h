// Leading dimensions: how arguments broadcast against each other, and where each one's matrix lies
// for an index.
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
                      "attnkernels: leading dimensions do not broadcast");
      if (size == 1) size = given;
    }
  }
  int64_t count() const {
    int64_t n = 1;
    for (int64_t s : sizes_) n *= s;
    return n;
  }
  Sizes with(std::initializer_list<int64_t> trailing) const {
    Sizes out = sizes_;
    out.insert(out.end(), trailing);
    return out;
  }
  const Sizes& sizes() const { return sizes_; }

 private:
  Sizes sizes_;
};

// The matrices of one argument: its last two dimensions (or fewer), by flat leading index. Nothing
// is copied: a broadcast dimension has stride 0, whether the tensor was expanded or has size 1 or
// no such dimension. `leading` outlives it.
class Slices {
 public:
  Slices(const Tensor& t, int64_t trailing, const Leading& leading)
      : first_{t.const_data_ptr(), 0, 0, Dtype::f32}, sizes_(leading.sizes()),
        strides_(sizes_.size(), 0) {
    auto stride = [&](int64_t k) { return t.size(k) == 1 ? 0 : t.stride(k); };
    const int64_t rank = t.dim(), lead = rank - trailing;
    if (trailing >= 1) first_.col = stride(rank - 1);
    if (trailing >= 2) first_.row = stride(rank - 2);
    for (int64_t k = 0; k < lead; k++) strides_[strides_.size() - lead + k] = stride(k);
  }
  Slices as(Dtype dtype) && {
    first_.dtype = dtype;
    return std::move(*this);
  }
  const Matrix& first() const { return first_; }
  // Over the leading dimensions, the outermost first.
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
