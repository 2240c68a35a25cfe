// Arithmetic of one element, and the dtypes it is loaded from and stored to.
#pragma once
#include "cuda/stages.h"

namespace attnkernels::cuda {

constexpr float kInfinity = __builtin_huge_valf();
constexpr unsigned kWarp = 0xffffffff;

// How far exponents y = gain * x may go, docs/math.md, "Ranges": four factors 1 + exp(y) multiply
// to a finite product while y <= kQuad, two while y <= kPair; exp(y) alone is a normal number while
// |y| <= kFactored.
constexpr float kQuad = 22, kExpQuad = 3.5849128e9f, kPair = 44, kFactored = 86;

// log2(e), and what float32 leaves of it
constexpr float kLog2e = 1.44269502162933349609375f, kLog2eLow = 1.925963033500011e-08f,
                kLn2 = 0.6931471805599453f;

// exp(y) to a few units in the last place while |y| <= kFactored: the hardware's 2^h, and what h
// lost.
__device__ __forceinline__ float exp_exact(float y) {
  const float h = y * kLog2e, low = fmaf(y, kLog2eLow, fmaf(y, kLog2e, -h)), e = exp2_approx(h);
  return fmaf(e, low * kLn2, e);
}

// exp(y) for the softmax, where y <= 0 and errors grow with what does not count.
__device__ __forceinline__ float exp_fast(float y) { return exp2_approx(y * kLog2e); }

// f(x) of relu and leaky relu, and its derivative.
__device__ __forceinline__ float rectified(float x, float slope, float floor) {
  x = max_nan(x, floor);
  return x > 0 ? x : x * slope;
}
__device__ __forceinline__ float rectified_slope(float x, float slope) {
  return x > 0 ? 1.f : x == x ? slope : x;
}

__device__ __forceinline__ float from_bfloat16(uint16_t bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}
__device__ __forceinline__ uint16_t to_bfloat16(float x) {  // to the nearest, ties to even
  const unsigned bits = __float_as_uint(x);
  if (x != x) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// How to load each dtype of the inputs.
struct Float32 {
  using Element = float;
  static __device__ __forceinline__ float load(const void* p, int64_t i) {
    return static_cast<const float*>(p)[i];
  }
  static constexpr bool kShort = false;  // whether tf32 holds every number
};
struct Bfloat16 {
  using Element = uint16_t;
  static __device__ __forceinline__ float load(const void* p, int64_t i) {
    return from_bfloat16(static_cast<const uint16_t*>(p)[i]);
  }
  static constexpr bool kShort = true;
};
struct Float16 {
  using Element = uint16_t;
  static __device__ __forceinline__ float load(const void* p, int64_t i) {
    return from_half(static_cast<const uint16_t*>(p)[i]);
  }
  static constexpr bool kShort = true;
};

template <class T>
__device__ __forceinline__ const void* from(const void* p, int64_t i) {
  return static_cast<const typename T::Element*>(p) + i;
}

template <class F>
__device__ __forceinline__ void by_dtype(Dtype dtype, const F& f) {
  if (dtype == Dtype::f32)
    f(Float32{});
  else if (dtype == Dtype::bf16)
    f(Bfloat16{});
  else
    f(Float16{});
}

__device__ __forceinline__ float load(const void* p, Dtype dtype, int64_t i) {
  if (dtype == Dtype::f32) return Float32::load(p, i);
  return dtype == Dtype::bf16 ? Bfloat16::load(p, i) : Float16::load(p, i);
}

__device__ __forceinline__ void store(void* p, Dtype dtype, int64_t i, float x) {
  if (dtype == Dtype::f32)
    static_cast<float*>(p)[i] = x;
  else
    static_cast<uint16_t*>(p)[i] = dtype == Dtype::bf16 ? to_bfloat16(x) : to_half(x);
}

__device__ __forceinline__ int64_t load_integer(const void* p, Dtype dtype, int64_t i) {
  return dtype == Dtype::i32 ? static_cast<const int32_t*>(p)[i]
                             : static_cast<const int64_t*>(p)[i];
}

// Sum and maximum over a warp; every lane gets it.
__device__ __forceinline__ float warp_sum(float x) {
  for (int lanes = 16; lanes; lanes /= 2) x += __shfl_xor_sync(kWarp, x, lanes);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
  for (int lanes = 16; lanes; lanes /= 2) x = max_nan(x, __shfl_xor_sync(kWarp, x, lanes));
  return x;
}

}  // namespace attnkernels::cuda
