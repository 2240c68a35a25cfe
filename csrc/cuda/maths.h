// Arithmetic of one element: exponentials, activations, and loads and stores of each dtype.
#pragma once
#include <stdexcept>

#include "common/limits.h"
#include "cuda/stages.h"

namespace attnkernels::cuda {

constexpr float kInfinity = __builtin_huge_valf();
constexpr unsigned kWarp = 0xffffffff;

using Limit = Limits<float>;  // of exponents gain * x

// log2(e), and its rounding error in float32
constexpr float kLog2e = 1.44269502162933349609375f, kLog2eLow = 1.925963033500011e-08f,
                kLn2 = 0.6931471805599453f;

// exp(y) to a few units in the last place while |y| <= Limit::factored: the hardware's 2^h,
// corrected for the rounding of h.
__device__ __forceinline__ float exp_exact(float y) {
  const float h = y * kLog2e, low = fmaf(y, kLog2eLow, fmaf(y, kLog2e, -h)), e = exp2_approx(h);
  return fmaf(e, low * kLn2, e);
}

// exp(y) for the softmax, where y <= 0: the relative error grows with |y|, as the weight shrinks.
__device__ __forceinline__ float exp_fast(float y) { return exp2_approx(y * kLog2e); }

// The weight of a score of a row with this maximum and this sum of exp(s - maximum). It is not
// exp(s - lse): lse is rounded, by as much as it is large.
__device__ __forceinline__ float2 as_weights(const float* softmax, int64_t row) {
  const float high = softmax[2 * row], total = softmax[2 * row + 1];
  return total == 0 ? make_float2(0, 0) : make_float2(high, 1 / total);
}
// The same from lse, if the forward did not keep the state of its softmax.
__device__ __forceinline__ float2 as_weights(const float* softmax, const float* lse, int64_t row) {
  if (softmax) return as_weights(softmax, row);
  return lse[row] == -kInfinity ? make_float2(0, 0) : make_float2(lse[row], 1);
}
__device__ __forceinline__ float weigh(float s, const float2& row) {
  return exp_fast(s - row.x) * row.y;
}

// The activations f of (E1). Kernels take one of these types as a template parameter, and a value
// of it, made by by_activation(), as their last argument.

// tanh and sigmoid: f(x) = 1 - span * r with r = 1 / (1 + exp(gain * x)), (E7).
struct Logistic {
  static constexpr bool kLogistic = true;
  float gain, span;  // the gain times log2(e): the base is 2

  __device__ __forceinline__ float exp(float x) const { return exp2_approx(x * gain); }
  __device__ __forceinline__ float r(float x) const { return reciprocal(1.f + exp(x)); }
  __device__ __forceinline__ float value(float x) const { return fmaf(-span, r(x), 1.f); }
  // r, and r (1 - r) of (E8) as e r^2: r - r^2 would be off by the rounding of r, which is all that
  // is left of it near r = 1.
  __device__ __forceinline__ float2 with_slope(float x) const {
    const float e = min_nan(exp(x), 0x1p127f), r = reciprocal(1.f + e);  // 0, not NaN, if infinite
    return make_float2(r, e * r * r);
  }
};

// A pointwise activation computes f and f' from x = q + k. Both are NaN if x is, and f(0) is
// finite: it pads tiles.

// relu and leaky_relu, by one kernel: x above 0, `negative` times max(x, floor) below.
struct Rectifier {
  static constexpr bool kLogistic = false;
  float negative, floor;

  __device__ __forceinline__ float value(float x) const {
    x = max_nan(x, floor);
    return x > 0 ? x : x * negative;
  }
  __device__ __forceinline__ float slope(float x) const {
    return x > 0 ? 1.f : x == x ? negative : x;
  }
  __device__ __forceinline__ float2 with_slope(float x) const {
    return make_float2(value(x), slope(x));
  }
};

// Call run(activation of p), on the host: the one place that knows every activation.
template <class F>
void by_activation(const Problem& p, const F& run) {
  const ActivationInfo& f = info(p.activation);
  switch (p.activation) {
    case Activation::tanh:
    case Activation::sigmoid:
      return run(Logistic{static_cast<float>(f.gain) * kLog2e, static_cast<float>(f.span)});
    case Activation::relu: return run(Rectifier{0, 0});
    case Activation::leaky_relu: return run(Rectifier{p.negative_slope, -kInfinity});
  }
  throw std::logic_error("attnkernels: an activation without a CUDA kernel");
}

__device__ __forceinline__ float from_bfloat16(uint16_t bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}
__device__ __forceinline__ uint16_t to_bfloat16(float x) {  // to the nearest, ties to even
  const unsigned bits = __float_as_uint(x);
  if (x != x) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The loads of each dtype of the inputs. kShort: tf32 holds every number.
struct Float32 {
  using Element = float;
  static __device__ __forceinline__ float load(const void* p, int64_t i) {
    return static_cast<const float*>(p)[i];
  }
  static constexpr bool kShort = false;
};
struct Bfloat16 {
  using Element = uint16_t;
  static __device__ __forceinline__ float number(Element bits) { return from_bfloat16(bits); }
  static __device__ __forceinline__ float load(const void* p, int64_t i) {
    return number(static_cast<const Element*>(p)[i]);
  }
  static constexpr bool kShort = true;
};
struct Float16 {
  using Element = uint16_t;
  static __device__ __forceinline__ float number(Element bits) { return from_half(bits); }
  static __device__ __forceinline__ float load(const void* p, int64_t i) {
    return number(static_cast<const Element*>(p)[i]);
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

// Sum and maximum over a warp, in every lane.
__device__ __forceinline__ float warp_sum(float x) {
  for (int lanes = 16; lanes; lanes /= 2) x += __shfl_xor_sync(kWarp, x, lanes);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
  for (int lanes = 16; lanes; lanes /= 2) x = max_nan(x, __shfl_xor_sync(kWarp, x, lanes));
  return x;
}

// w * sum + plus, where a sum of 0 adds 0 even if w is not finite: nothing was added to it.
__device__ __forceinline__ float weighted(float w, float sum, float plus = 0) {
  return sum == 0 ? plus : fmaf(w, sum, plus);
}

}  // namespace attnkernels::cuda
