// The gradients of query, key and weight as matrix products of sines, (E16) and (E17).
//
// With y = a + b for the row a of one side and the rows b of the other, and ds of their pairs,
//
//   sum_b ds tanh'(y) = l sum_b ds + sum_p p h c_p (cos(p h a) C_p - sin(p h a) S_p)
//   sum_b ds tanh(y)  = l sum_b ds y + sum_p c_p (sin(p h a) C_p + cos(p h a) S_p)
//
// where C_p and S_p are the sums of ds cos(p h b) and ds sin(p h b): products of ds, in 16 bits
// over the largest of its row, and the sines of the other side. A warp has 16 rows of each side.
// Their ds are in its registers, as fragments, and so are the sines of a quad of hidden units,
// where the products leave their sums as well; shared memory hands the sines to the other warps.
//
// An element takes 0.44 instructions per sine, of both sides, and 1.7 around them.
#pragma once
#include "cuda/score.h"
#include "cuda/sweep.h"

namespace attnkernels::cuda {

constexpr int kSineRows = 2 * kTile * 4;  // sines and cosines of both sides, for one value of p
constexpr int kSweepBytes = (4 * kSineRows + kThreads / 32 * 4) * 4;

// 16 rows of ds of a warp, as the left side of products: a lane has numbers of two rows.
struct Pairs {
  unsigned halves[kTile / 16][4];
  float largest[2], total[2];

  // get(r, column): of the lane's rows. Return whether all numbers of the rows are finite.
  template <class F>
  __device__ __forceinline__ bool take(int t, const F& get) {
    bool finite = true;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float x[kTile / 16][4], high = 0, sum = 0;
#pragma unroll
      for (int k = 0; k < kTile / 16; k++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          x[k][e] = get(r, 16 * k + 2 * t + e % 2 + e / 2 * 8);
          high = max_nan(high, fabsf(x[k][e]));
          sum += x[k][e];
        }
#pragma unroll
      for (int lanes = 1; lanes < 4; lanes *= 2) {
        high = max_nan(high, __shfl_xor_sync(kWarp, high, lanes));
        sum += __shfl_xor_sync(kWarp, sum, lanes);
      }
      finite = finite && high < kInfinity;
      largest[r] = high > 0x1p-100f ? high : 1.f;
      total[r] = sum;
      const float by = 1.f / largest[r];
#pragma unroll
      for (int k = 0; k < kTile / 16; k++)
#pragma unroll
        for (int e = 0; e < 2; e++)
          halves[k][2 * e + r] = to_halves(by * x[k][2 * e], by * x[k][2 * e + 1]);
    }
    return finite;
  }

  // Set sums to {C_p, S_p} of both rows, from the cosines and sines of 64 rows of the other side.
  __device__ __forceinline__ void multiply(float (&sums)[4], const unsigned* other,
                                           int lane) const {
#pragma unroll
    for (int e = 0; e < 4; e++) sums[e] = 0;
#pragma unroll
    for (int k = 0; k < kTile / 16; k += 2) {
      unsigned x[4];
      load_transposed(x, other + (16 * k + lane) * 4);
      mma_f16(sums, halves[k], x[0], x[1]);
      mma_f16(sums, halves[k + 1], x[2], x[3]);
    }
  }
};

// Do what sweep_tile() does, for all hidden units, if the sines of (E14) hold for the tile and ds
// are finite; otherwise return false. All threads of the block call this. ds: as there. shared:
// kSweepBytes of shared memory, which may be in use until the call.
__device__ __forceinline__ bool sine_sweep(const float* ds, float* shared, const Problem& p,
                                           const Sines& act, const Place& at, int it, int jt,
                                           const Gradients& grad) {
  if (!Ranges(p, at.query_panel + it, at.key_panel + jt).within_sines()) return false;
  unsigned thread = threadIdx.x;
  forget(thread);  // what follows from it is not kept from tile to tile
  const int warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int row = 16 * warp + g;  // of both sides, with the eighth after it
  Pairs of_query, of_key;
  bool finite = of_query.take(t, [&](int r, int j) { return ds[j * kPitch + row + 8 * r]; });
  finite &= of_key.take(t, [&](int r, int i) { return ds[(row + 8 * r) * kPitch + i]; });
  if (!__syncthreads_and(finite)) return false;

  const int64_t panel = int64_t{p.padded} * kTile;
  const float* const a = p.queries.data + (at.query_panel + it) * panel + 4 * row + t;
  const float* const b = p.keys.data + (at.key_panel + jt) * panel + 4 * row + t;
  unsigned* const sines = reinterpret_cast<unsigned*>(shared);
  float* const partial = shared + 4 * kSineRows;
  const int rows = at.queries - it * kTile, columns = at.keys.end - jt * kTile;
  int buffer = 0, index = 0;
#pragma unroll 1
  for (int quad = 0; quad < p.padded / 4; quad++) {
    if (quad % (kChunk / 4) == 0) index = series_of_chunk(p, at, it, jt, quad * 4 / kChunk);
    const Series& series = act.table[index];
    const int count = sines_of(index);
    Wave query[2], key[2];
    float query_slope[2] = {}, key_slope[2] = {}, value[2] = {}, line = 0;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float y = kLn2 / 2 * log2_approx(a[quad * 4 * kTile + 32 * r]);
      const float z = kLn2 / 2 * log2_approx(b[quad * 4 * kTile + 32 * r]);
      query[r].start(series.step * y, 1.f);
      key[r].start(series.step * z, 1.f);
      line = fmaf(y, of_query.total[r], fmaf(z, of_key.total[r], line));
    }
#pragma unroll 1
    for (int term = 0; term < count; term += 2) {
      unsigned* const from = sines + buffer;
      auto store = [&](int odd, int side, int r, float cosine, float sine) {
        from[odd * kSineRows + (side * kTile + row + 8 * r) * 4 + t] = to_halves(cosine, sine);
      };
#pragma unroll
      for (int r = 0; r < 2; r++) {
        query[r].step_even();
        key[r].step_even();
        store(0, 0, r, query[r].cosine, query[r].sine);
        store(0, 1, r, key[r].cosine, key[r].sine);
        store(1, 0, r, query[r].even_cosine, query[r].even_sine);
        store(1, 1, r, key[r].even_cosine, key[r].even_sine);
      }
      __syncthreads();
#pragma unroll
      for (int odd = 0; odd < 2; odd++) {
        const float c = series.sines[term + odd];
        const float slope = c * series.step * static_cast<float>(term + odd + 1);
        float sums[4];
        of_query.multiply(sums, from + odd * kSineRows + kTile * 4, lane);
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const float sine = odd ? query[r].even_sine : query[r].sine;
          const float cosine = odd ? query[r].even_cosine : query[r].cosine;
          const float x = fmaf(cosine, sums[2 * r], -sine * sums[2 * r + 1]);
          query_slope[r] = fmaf(slope, x, query_slope[r]);
          value[r] = fmaf(c, fmaf(sine, sums[2 * r], cosine * sums[2 * r + 1]), value[r]);
        }
        of_key.multiply(sums, from + odd * kSineRows, lane);
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const float sine = odd ? key[r].even_sine : key[r].sine;
          const float cosine = odd ? key[r].even_cosine : key[r].cosine;
          const float x = fmaf(cosine, sums[2 * r], -sine * sums[2 * r + 1]);
          key_slope[r] = fmaf(slope, x, key_slope[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < 2; r++) {
        query[r].step_odd();
        key[r].step_odd();
      }
      buffer ^= 2 * kSineRows;
    }

    // r - r^2 is tanh'(y) / 4, and r - 1/2 is -tanh(y) / 2
    const int unit = 4 * quad + t;
    float along = series.linear * line;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int i = row + 8 * r;
      const float dq = query_slope[r] * of_query.largest[r] + series.linear * of_query.total[r];
      const float dk = key_slope[r] * of_key.largest[r] + series.linear * of_key.total[r];
      along = fmaf(value[r], of_query.largest[r], along);
      if (unit < p.d && i < rows && grad.query)
        atomicAdd(grad.query + static_cast<int64_t>(i) * p.d + unit, 0.25f * dq);
      if (unit < p.d && i < columns && grad.key)
        atomicAdd(grad.key + static_cast<int64_t>(i) * p.d + unit, 0.25f * dk);
    }
    if (!grad.weight) continue;
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) along += __shfl_xor_sync(kWarp, along, lanes);
    if (g == 0) partial[4 * warp + t] = along;
    __syncthreads();
    if (warp == 0 && g == 0 && unit < p.d) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kThreads / 32; w++) sum += partial[4 * w + t];
      atomicAdd(grad.weight + unit, -0.5f * sum);
    }
  }
  return true;
}

}  // namespace attnkernels::cuda
