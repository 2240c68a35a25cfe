// Matrix products of a tile on tensor cores, to float32 accuracy: weights times values in the
// forward, and two more in the backward.
//
// A number is split into its rounding to tf32 and the rest: x = hi + lo. Then a b = hi hi + lo hi +
// hi lo, with an error of at most 2^-21 of each term. (Truncating hi would leave one more bit in
// the rest and increase the error of sums several times.) 16-bit numbers have no rest, which saves
// one of the three products. Infinity gives NaN, and numbers within 2^-12 of the largest float32
// count as infinite. Warps share the 16 x 8 pieces of a result: each has 16 M x 8 N of it.
#pragma once
#include "cuda/maths.h"

namespace attnkernels::cuda {

// A NaN may come out as a number, but the rest, x - high_part(x), is then NaN.
__device__ __forceinline__ float high_part(float x) {
  return __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);
}

template <int M, int N>
struct Piece {
  float c[M][N][4];

  // Start from set(row, column).
  template <class F>
  __device__ __forceinline__ void fill(const F& set) {
    each([&](float& x, int row, int col) { x = set(row, col); });
  }

  // Call f(value, row, column) for the values of this lane.
  template <class F>
  __device__ __forceinline__ void each(const F& f) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) f(c[m][n][e], 16 * m + g + e / 2 * 8, 8 * n + 2 * t + e % 2);
  }

  // Add sum_k a(row, k) b(k, column) for k < depth, a multiple of 8. kShort: tf32 holds every b.
  template <bool kShort, class A, class B>
  __device__ __forceinline__ void add(int depth, const A& a, const B& b) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
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
          if (!kShort) mma_tf32(c[m][n], a_high, b_low[n]);
          mma_tf32(c[m][n], a_low, b_high[n]);
          mma_tf32(c[m][n], a_high, b_high[n]);
        }
      }
    }
  }
};

__host__ __device__ constexpr int round_up(int x, int to) { return (x + to - 1) / to * to; }

}  // namespace attnkernels::cuda
