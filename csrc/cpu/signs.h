// The signs of q + k, one bit per hidden unit of an edge. An activation of two straight lines needs
// no more than these for its slope, so the pass over sources reads d bits instead of a row of d.
#pragma once
#include <cstring>

#include "sweep.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

template <class Gradient>
constexpr bool kTwoLines = false;
template <class Pointwise, bool Finite>
  requires requires { &Pointwise::below; }
constexpr bool kTwoLines<PointwiseGradient<Pointwise, Finite>> = true;

// Bytes for the signs of d hidden units; a vector of them begins at a bit t, a multiple of its
// lanes.
constexpr int64_t sign_bytes(int64_t d) { return padded(d) / 8; }

// One bit per lane where x <= 0.
template <class T>
C10_ALWAYS_INLINE uint32_t signs_of(Vec<T> x) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(T) == 4)
    return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LE_OQ);
  else
    return _mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_LE_OQ);
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (sizeof(T) == 4)
    return _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LE_OQ));
  else
    return _mm256_movemask_pd(_mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_LE_OQ));
#else
  T lanes[kLanes<T>];
  x.store(lanes);
  uint32_t bits = 0;
  for (int64_t l = 0; l < kLanes<T>; l++) bits |= static_cast<uint32_t>(lanes[l] <= 0) << l;
  return bits;
#endif
}

template <class T>
C10_ALWAYS_INLINE void store_signs(uint8_t* signs, int64_t t, uint32_t bits) {
  if constexpr (kLanes<T> == 16) {
    const uint16_t two = static_cast<uint16_t>(bits);
    std::memcpy(signs + t / 8, &two, 2);
  } else if constexpr (kLanes<T> == 8) {
    signs[t / 8] = static_cast<uint8_t>(bits);
  } else {  // part of a byte: four lanes, or two, which 64-bit ARM has of doubles
    static_assert(8 % kLanes<T> == 0);
    signs[t / 8] = static_cast<uint8_t>(t % 8 ? signs[t / 8] | bits << t % 8 : bits);
  }
}

// The lanes of `below` where the sign is set, those of `above` elsewhere.
template <class T>
C10_ALWAYS_INLINE Vec<T> by_signs(const uint8_t* signs, int64_t t, Vec<T> above, Vec<T> below) {
  uint32_t bits;
  if constexpr (kLanes<T> == 16) {
    uint16_t two;
    std::memcpy(&two, signs + t / 8, 2);
    bits = two;
  } else {
    bits = kLanes<T> == 8 ? signs[t / 8] : signs[t / 8] >> t % 8;
  }
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(T) == 4)
    return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), above, below);
  else
    return _mm512_mask_blend_pd(static_cast<__mmask8>(bits), above, below);
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (sizeof(T) == 4) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
    return _mm256_blendv_ps(above, below, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)));
  } else {
    const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi64x(bits), lane);
    return _mm256_blendv_pd(above, below, _mm256_castsi256_pd(_mm256_cmpeq_epi64(set, lane)));
  }
#else
  T a[kLanes<T>], b[kLanes<T>];
  above.store(a);
  below.store(b);
  for (int64_t l = 0; l < kLanes<T>; l++) a[l] = bits >> l & 1 ? b[l] : a[l];
  return Vec<T>::loadu(a);
#endif
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
