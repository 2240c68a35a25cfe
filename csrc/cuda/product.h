// Matrix products of a tile on tensor cores, to float32 accuracy: weights times values in the
// forward, and two more in the backward.
//
// A number is split into its rounding to tf32 and the rest: x = hi + lo. Then a b = lo hi + hi lo +
// hi hi, with an error of at most 2^-21 of each term. (Truncating hi would leave one more bit in
// the rest and increase the error of sums several times.) 16-bit numbers have no rest, which saves
// one of the three products.
//
// Tensor cores round every sum toward zero (Fasi et al. 2021), an error that has the same sign each
// time and grows with the number of sums. They therefore add up no more than eight terms, which are
// added to the others in float32 (Ootomo and Yokota 2022). Warps share the 16 x 8 pieces of a
// result: each has 16 M x 8 N of it.
#pragma once
#include "cuda/maths.h"

namespace attnkernels::cuda {

// A NaN may come out as a number, but the rest, x - high_part(x), is then NaN.
__device__ __forceinline__ float high_part(float x) {
  return __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);
}

// kLean: what follows from the index of the thread is computed again where it is used, in kernels
// whose registers are needed elsewhere.
template <int M, int N, bool kLean = false>
struct Piece {
  float c[M][N][4];

  // Call f(value, row, column) for the values of this lane.
  template <class F>
  __device__ __forceinline__ void each(const F& f) {
    const int lane = this_lane(), g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) f(c[m][n][e], 16 * m + g + e / 2 * 8, 8 * n + 2 * t + e % 2);
  }

  // Set to get(row, column).
  template <class F>
  __device__ __forceinline__ void fill(const F& get) {
    each([&](float& x, int row, int col) { x = get(row, col); });
  }

  // Add scale(row) times y.
  template <class F>
  __device__ __forceinline__ void add(const Piece& y, const F& scale) {
    const int g = this_lane() / 4;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          c[m][n][e] = fmaf(scale(16 * m + g + e / 2 * 8), y.c[m][n][e], c[m][n][e]);
  }

  // Set to sum_k a(row, k) b(k, column) for k < depth, a multiple of 8. kShort: tf32 holds every b.
  template <bool kShort, class A, class B>
  __device__ __forceinline__ void set(int depth, const A& a, const B& b) {
    const int lane = this_lane(), g = lane / 4, t = lane % 4;
    fill([](int, int) { return 0.f; });
#pragma unroll 1
    for (int k = 0; k < depth; k += 8) {
      float b_high[N][2], b_low[N][2];
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const float x = b(k + t + 4 * e, 8 * n + g);
          b_high[n][e] = kShort ? x : high_part(x);
          b_low[n][e] = x - b_high[n][e];
        }
#pragma unroll
      for (int m = 0; m < M; m++) {
        float a_high[4], a_low[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const float x = a(16 * m + g + e % 2 * 8, k + t + e / 2 * 4);
          a_high[e] = high_part(x);
          a_low[e] = x - a_high[e];
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
          float sum[4] = {};
          if (!kShort) mma_tf32(sum, a_high, b_low[n]);
          mma_tf32(sum, a_low, b_high[n]);
          mma_tf32(sum, a_high, b_high[n]);
#pragma unroll
          for (int e = 0; e < 4; e++) c[m][n][e] += sum[e];
        }
      }
    }
    sum_again(depth, a, b);
  }

 private:
  static __device__ __forceinline__ unsigned this_lane() {
    unsigned thread = threadIdx.x;
    if constexpr (kLean) forget(thread);
    return thread % 32;
  }

  // Sum the values that came out as NaN without splitting numbers: an infinite one has a rest of
  // NaN, and so has one that tf32 rounds to infinity.
  template <class A, class B>
  __device__ __forceinline__ void sum_again(int depth, const A& a, const B& b) {
    static_assert(4 * M * N <= 32);
    unsigned bit = 1, again = 0;
    each([&](float& x, int, int) {
      if (x != x) again |= bit;
      bit <<= 1;
    });
#pragma unroll 1
    while (again) {
      const unsigned lowest = again & (0 - again);
      again ^= lowest;
      int row = 0, col = 0;
      bit = 1;
      each([&](float&, int i, int j) {
        if (bit == lowest) row = i, col = j;
        bit <<= 1;
      });
      float sum = 0;
#pragma unroll 1
      for (int k = 0; k < depth; k++) sum = fmaf(a(row, k), b(k, col), sum);
      bit = 1;
      each([&](float& x, int, int) {
        if (bit == lowest) x = sum;
        bit <<= 1;
      });
    }
  }
};

__host__ __device__ constexpr int round_up(int x, int to) { return (x + to - 1) / to * to; }

}  // namespace attnkernels::cuda
