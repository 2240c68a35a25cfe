// Rows of inputs, four neighbouring elements at a time: one load if alignment allows it.
#pragma once
#include "cuda/maths.h"

namespace attnkernels::cuda {

struct Rows {
  const void* data;
  int64_t at, row, col;
  Dtype dtype;
  bool whole;

  __device__ __forceinline__ Rows(const Matrix& x, int64_t first, int d)
      : data(x.data), at(first), row(x.row), col(x.col), dtype(x.dtype) {
    const uint64_t size = dtype == Dtype::f32 ? 16 : 8;
    whole = col == 1 && (d | row | at) % 4 == 0 && reinterpret_cast<uint64_t>(data) % size == 0;
  }
  // Return elements t to t + 3 of row i, and 0 beyond d.
  __device__ __forceinline__ float4 four(int i, int t, int d) const;
  // Bring rows `begin` to `end` of d elements to the second-level cache, all threads of a block.
  __device__ __forceinline__ void prefetch(int begin, int end, int d) const;

  __device__ __forceinline__ int64_t first(int i, int t) const { return at + i * row + t * col; }
};

// How to read four elements: read() begins the load, and numbers() converts its bits. Between the
// two there is room for the loads of other rows.
struct OneByOne {
  using Bits = float4;
  static __device__ __forceinline__ Bits read(const Rows& x, int i, int t, int d) {
    const int64_t first = x.first(i, t);
    float y[4];
#pragma unroll
    for (int e = 0; e < 4; e++) y[e] = t + e < d ? load(x.data, x.dtype, first + e * x.col) : 0.f;
    return make_float4(y[0], y[1], y[2], y[3]);
  }
  static __device__ __forceinline__ float4 numbers(const Bits& x) { return x; }
};

// Of a dtype of by_dtype(), from rows that are `whole`.
template <class T>
struct Whole {
  static constexpr bool kWide = sizeof(typename T::Element) == 4;
  using Bits = std::conditional_t<kWide, float4, uint2>;
  static __device__ __forceinline__ Bits read(const Rows& x, int i, int t, int) {
    return static_cast<const Bits*>(x.data)[x.first(i, t) / 4];
  }
  static __device__ __forceinline__ float4 numbers(const Bits& bits) {
    if constexpr (kWide) {
      return bits;
    } else {
      auto number = [](unsigned x) { return T::number(static_cast<uint16_t>(x)); };
      return make_float4(number(bits.x), number(bits.x >> 16), number(bits.y),
                         number(bits.y >> 16));
    }
  }
};

// Call f with the way to read these rows.
template <class F>
__device__ __forceinline__ void by_fours(const Rows& x, const F& f) {
  if (!x.whole)
    f(OneByOne{});
  else
    by_dtype(x.dtype, [&]<class T>(T) { f(Whole<T>{}); });
}

__device__ __forceinline__ float4 Rows::four(int i, int t, int d) const {
  float4 x;
  by_fours(*this, [&](auto fours) { x = fours.numbers(fours.read(*this, i, t, d)); });
  return x;
}

__device__ __forceinline__ void Rows::prefetch(int begin, int end, int d) const {
  if (!whole) return;
  constexpr int kLine = 128;
  const int64_t size = dtype == Dtype::f32 ? 4 : 2;
  const int lines = static_cast<int>(ceil_div(d * size, kLine));
  for (int k = threadIdx.x; k < (end - begin) * lines; k += blockDim.x)
    prefetch_line(static_cast<const char*>(data) + first(begin + k / lines, 0) * size +
                  k % lines * kLine);
}

}  // namespace attnkernels::cuda
