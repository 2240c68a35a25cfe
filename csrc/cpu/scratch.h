// Memory of a worker, handed out in parts.
#pragma once
#include <utility>

#include "problem.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// Parts of whole vectors, one after another. Starting from null, it counts their total size.
template <class T>
class Parts {
 public:
  explicit Parts(T* base) : base_(base), at_(base) {}
  T* take(int64_t count) { return std::exchange(at_, at_ + padded(count)); }
  int64_t taken() const { return at_ - base_; }

 private:
  T *base_, *at_;
};

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
