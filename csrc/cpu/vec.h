// at::vec under short names, with two additions: a fast accurate exp, and sums over lanes.
// Everything is in the namespace of the instruction set that it is compiled for.
#pragma once
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cmath>
#include <cstdint>
#include <limits>

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

template <class T>
using Vec = at::vec::Vectorized<T>;
template <class T>
constexpr int64_t kLanes = Vec<T>::size();

using at::vec::fmadd;

// min(x, high) and max(x, low), or NaN if x is NaN. At -O3 without vector instructions, GCC 12
// compiles the loops of at::vec for these wrongly.
template <class T>
inline Vec<T> at_most(Vec<T> x, Vec<T> high) {
#if defined(CPU_CAPABILITY_DEFAULT)
  return Vec<T>::blendv(x, high, x > high);
#else
  return at::vec::clamp_max(x, high);
#endif
}
template <class T>
inline Vec<T> at_least(Vec<T> x, Vec<T> low) {
#if defined(CPU_CAPABILITY_DEFAULT)
  return Vec<T>::blendv(x, low, x < low);
#else
  return at::vec::clamp_min(x, low);
#endif
}

template <class T>
inline Vec<T> load(const T* p) {
  return Vec<T>::loadu(p);
}

// Add the first `count` lanes to memory.
template <class T>
inline void add_to(T* p, Vec<T> x, int64_t count) {
  if (count >= kLanes<T>)
    (load(p) + x).store(p);
  else
    (Vec<T>::loadu(p, count) + x).store(p, static_cast<int>(count));
}

template <class T>
inline T sum(Vec<T> x) {
  return at::vec::vec_reduce_all<T>([](Vec<T>& a, Vec<T>& b) { return a + b; }, x);
}
// Store the sums of four vectors: each step adds neighbours, and halves a vector.
template <class T>
inline void store_sums(Vec<T> a, Vec<T> b, Vec<T> c, Vec<T> d, T* out) {
  auto add = [](Vec<T> x, Vec<T> y) {
    const auto [even, odd] = at::vec::deinterleave2(x, y);
    return even + odd;
  };
  if constexpr (kLanes<T> == 2) {  // of doubles, on 64-bit ARM
    add(a, b).store(out);
    add(c, d).store(out + 2);
  } else {
    Vec<T> all = add(add(a, b), add(c, d));
    for (int64_t n = kLanes<T>; n > 4; n /= 2) all = add(all, all);
    all.store(out, 4);
  }
}
template <class T>
inline T max(Vec<T> x) {
  return at::vec::vec_reduce_all<T>([](Vec<T>& a, Vec<T>& b) { return at::vec::maximum(a, b); }, x);
}

// Whether reciprocal() is a division, which takes longer than several products.
#if defined(CPU_CAPABILITY_AVX512)
template <class T>
constexpr bool kDivides = sizeof(T) == 8;
#else
template <class T>
constexpr bool kDivides = true;
#endif

// 1 / x for x > 0 (or NaN) whose reciprocal is a normal number. With AVX-512 an estimate and a
// Newton step take less time than a division, and are as accurate to about one ULP. Powers of two
// are exact.
template <class T>
C10_ALWAYS_INLINE Vec<T> reciprocal(Vec<T> x) {
  const Vec<T> one(T(1));
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (!kDivides<T>) {
    const Vec<T> r = _mm512_rcp14_ps(x);
    return fmadd(at::vec::fnmadd(x, r, one), r, r);
  }
#endif
  return one / x;
}

// exp(x) to about one ULP: x = k ln2 + r, and exp(r) by a minimax polynomial of degree 6 (relative
// error 3.1e-9). Below -87.3 the result is the smallest normal number. Callers keep x below 88.7.
// NaN gives NaN.
inline Vec<float> exp(Vec<float> x) {
  using V = Vec<float>;
  x = at_least(x, V(-87.3f));
  const V magic(
      12582912.f);  // 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits
  const V shifted = fmadd(x, V(1.44269504f), magic), k = shifted - magic;
  V r = fmadd(k, V(-0.693359375f), x);
  r = fmadd(k, V(2.12194440e-4f), r);
  V p = fmadd(r, V(1.381454e-3f), V(8.36874525e-3f));
  p = fmadd(p, r, V(4.16683908e-2f));
  p = fmadd(p, r, V(1.66665204e-1f));
  p = fmadd(p, r, V(4.99999934e-1f));
  p = fmadd(p * r, r, r) + V(1.f);
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_scalef_ps(p, k);
#else
  using I = Vec<int32_t>;
  const I bits = at::vec::cast<int32_t, float>(shifted);
  return p * at::vec::cast<float, int32_t>((bits << I(23)) + I(0x3f800000));
#endif
}
inline Vec<double> exp(Vec<double> x) { return x.exp(); }

// exp(gain x) for |gain x| <= 87 and a gain that is a power of two, with fewer operations than exp:
// 2^(k + r) = 2^k + 2^k r P(r). A fused multiply-add makes the product in r = x gain log2(e) - k
// exact, and P is minimax (relative error 2.0e-9). Besides rounding, the only error is that of the
// constant log2(e), 1.4e-8 of itself, which acts as an equal relative change of the gain.
C10_ALWAYS_INLINE Vec<float> exp_in_range(Vec<float> x, Vec<float> gain) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  using V = Vec<float>;
  using I = Vec<int32_t>;
  const V magic(12582912.f), unit = gain * V(1.44269504f);
  const V shifted = fmadd(x, unit, magic), r = fmadd(x, unit, magic - shifted);
  const I bits = at::vec::cast<int32_t, float>(shifted);
  const V power = at::vec::cast<float, int32_t>((bits << I(23)) + I(0x3f800000));
  V p = fmadd(r, V(1.53533621e-4f), V(1.33988746e-3f));
  p = fmadd(p, r, V(9.61843736e-3f));
  p = fmadd(p, r, V(5.55033247e-2f));
  p = fmadd(p, r, V(0.240226479f));
  p = fmadd(p, r, V(0.693147203f));
  return fmadd(p, r * power, power);
#else
  return exp(x * gain);
#endif
}
C10_ALWAYS_INLINE Vec<double> exp_in_range(Vec<double> x, Vec<double> gain) {
  return (x * gain).exp();
}
// The same, and below `low`, at least -87 / gain, that of low; or with the lowest `low`.
template <class T>
C10_ALWAYS_INLINE Vec<T> exp_times(Vec<T> x, Vec<T> gain, Vec<T> low) {
  return exp_in_range(at_least(x, low), gain);
}
template <class T>
C10_ALWAYS_INLINE Vec<T> exp_times(Vec<T> x, Vec<T> gain) {
  return exp_times(x, gain, Vec<T>(T(sizeof(T) == 4 ? -87 : -708)) / gain);
}

// exp(x) for the softmax, where x is at most small. Results below the normal range are 0.
template <class T>
inline Vec<T> exp_weight(Vec<T> x) {
  constexpr T tiny = sizeof(T) == 4 ? T(-87.3) : T(-708);
  return Vec<T>::blendv(exp(x), Vec<T>(T(0)), x < Vec<T>(tiny));
}

// The weights of a row, exp(s - high) / total. They are not exp(s - lse): lse is rounded, by as
// much as it is large.
template <class T>
struct Weigh {
  Vec<T> high, total;
  Weigh(T high, T total) : high(high), total(total) {}
  C10_ALWAYS_INLINE Vec<T> operator()(Vec<T> s) const { return exp_weight(s - high) / total; }
};

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
