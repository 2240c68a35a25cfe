// Scores as matrix products of sines and cosines, (E14) and (E15): what precision="fast" allows.
//
// A warp makes those of 16 queries, in the registers of its fragments, and of 16 keys, which all
// warps read from shared memory: a lane stores what the same lane of any warp reads.
//
//   for each two quads of hidden units                        shared memory, in place of stages
//     y of (E14), as the logarithm of panels
//     for each four values of p, by the recurrence            2 x 8 KiB: keys of 4 values of p and
//       sin((p + 1) x) = 2 cos(x) sin(p x) - sin((p - 1) x)   2 quads, written while the others
//       keys to shared memory                                 are read
//       scores += queries keys, 16 x 64 per warp              then the scores, 16 KiB
//
// Sines lie in [-1, 1], where 16 bits round by 2^-12. Tensor cores round sums toward zero: over
// 1024 hidden units by less than 2^-13 of a score, less than the sines do.
//
// An element takes 0.2 instructions per sine, and 0.6 for y and its sine and cosine.
#pragma once
#include "common/series.h"
#include "cuda/rows.h"

namespace attnkernels::cuda {

constexpr int kSeriesCount = sizeof(kSeries) / sizeof(*kSeries);
constexpr float kLastReach = 2.f * kSeriesCount;

// Return the index of the shortest series for a reach up to kLastReach, and its number of sines.
__host__ __device__ constexpr int series_of(float reach) {
  const int k = static_cast<int>(0.5f * reach);
  return k > 0 && 2 * k >= reach ? k - 1 : k;
}
__host__ __device__ constexpr int sines_of(int series) { return 4 + 2 * series; }

constexpr bool is_by_arithmetic() {
  for (int k = 0; k < kSeriesCount; k++) {
    const Series& each = kSeries[k];
    const int sines = sines_of(k);
    if (each.reach != 2 * k + 2 || series_of(each.reach) != k || series_of(each.reach - 0.01f) != k)
      return false;
    if (each.sines[sines - 1] == 0 || (sines < kMostSines && each.sines[sines] != 0)) return false;
  }
  return true;
}
static_assert(is_by_arithmetic());

// A logistic activation that may be taken as a sum of sines. A kernel's arguments lie where all
// lanes of a warp read them at once, so the table is one.
struct Sines : Logistic {
  Series table[kSeriesCount];

  explicit Sines(const Logistic& f) : Logistic(f) {
    for (int k = 0; k < kSeriesCount; k++) table[k] = kSeries[k];
  }
};
template <class Act>
constexpr bool kHasSines = std::is_same_v<Act, Sines>;

// Call run(activation of p), on the host, in kernels that have a form of `Sines`.
template <class F>
void by_scored(const Problem& p, const F& run) {
  by_activation(p, [&](auto act) {
    if constexpr (std::is_same_v<decltype(act), Logistic>)
      if (p.fast) return run(Sines(act));
    run(act);
  });
}

// Sine and cosine of p x, for an odd p, and of the even one before or after it, times a factor.
struct Wave {
  float sine, cosine, even_sine, even_cosine, twice;

  __device__ __forceinline__ void start(float x, float factor) {
    const float s = sin_approx(x), c = cos_approx(x);
    twice = c + c;
    sine = factor * s;
    cosine = factor * c;
    even_sine = 0;
    even_cosine = factor;
  }
  __device__ __forceinline__ void step_even() {
    even_sine = fmaf(twice, sine, -even_sine);
    even_cosine = fmaf(twice, cosine, -even_cosine);
  }
  __device__ __forceinline__ void step_odd() {
    sine = fmaf(twice, even_sine, -sine);
    cosine = fmaf(twice, even_cosine, -cosine);
  }
};

constexpr int kSineQuads = 2;                           // at a time: so many products are under way
constexpr int kSineBuffer = 2 * kSineQuads * kThreads;  // vectors of keys, for two values of p each
constexpr int kSineBytes = 2 * kSineBuffer * 16;
static_assert(kThreads / 32 * 16 == kTile && kTile * kTile * 4 <= kSineBytes);
static_assert(kChunk % (4 * kSineQuads) == 0, "one series serves them");

// Return the index of the series for a chunk of the hidden units of a tile.
__device__ __forceinline__ int series_of_chunk(const Problem& p, const Place& at, int it, int jt,
                                               int chunk) {
  const Range query = p.queries.ranges[(at.query_panel + it) * chunks_of(p.d) + chunk];
  const Range key = p.keys.ranges[(at.key_panel + jt) * chunks_of(p.d) + chunk];
  return series_of(0.5f * fmaxf(query.high + key.high, -(query.low + key.low)));
}

// Where row i and key j lie among the scores of a tile: the lanes of a warp that write, or read,
// at once use different banks.
__device__ __forceinline__ int sine_place(int i, int j) { return i * kTile + (j ^ i % 8 * 8); }

// Leave sum_t w'_t (r_t - 1/2) over quads `begin` to `end` of hidden units in scores[sine_place(i,
// j)], where r - 1/2 is -1/2 tanh(y) and w' are the weights of prepare.cu, at most 1. All threads
// of the block call this; before they write to its memory again there must be a barrier.
__device__ __forceinline__ void sine_scores(float* scores, const Sines& act, const Problem& p,
                                            const Place& at, int it, int jt, int begin, int end) {
  unsigned thread = threadIdx.x;
  forget(thread);  // what follows from it is not kept from tile to tile
  const int warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int row = 16 * warp + g;  // the rows of a lane, of both sides, are this and the eighth on
  const int64_t panel = int64_t{p.padded} * kTile;
  const float* const a = p.queries.data + (at.query_panel + it) * panel + 4 * row + t;
  const float* const b = p.keys.data + (at.key_panel + jt) * panel + 4 * row + t;
  uint4* const shared = reinterpret_cast<uint4*>(scores);

  float sums[kTile / 8][4] = {}, of_query[2] = {}, of_key[2] = {};
  Wave queries[kSineQuads][2], keys[kSineQuads][2];
  int buffer = 0;
  constexpr int kQuads = kChunk / 4;
#pragma unroll 1
  for (int chunk = begin / kQuads; chunk * kQuads < end; chunk++) {
    const int index = series_of_chunk(p, at, it, jt, chunk);
    const Series& series = act.table[index];
    const int count = sines_of(index), last = min(end, (chunk + 1) * kQuads);
    const float step = series.step * (kLn2 / 2), linear = series.linear * (kLn2 / -4);
#pragma unroll 1
    for (int quad = max(begin / kSineQuads * kSineQuads, chunk * kQuads); quad < last;
         quad += kSineQuads) {
#pragma unroll
      for (int u = 0; u < kSineQuads; u++) {
        const int near = min(max(quad + u, begin), end - 1);  // of no weight if it is not this quad
        const float weight = at.weights[4 * near + t], w = near == quad + u ? weight : 0.f;
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const float y = log2_approx(a[near * 4 * kTile + 32 * r]);
          const float z = log2_approx(b[near * 4 * kTile + 32 * r]);
          of_query[r] = fmaf(linear * w, y, of_query[r]);
          of_key[r] = fmaf(linear * w, z, of_key[r]);
          queries[u][r].start(step * y, -0.5f * w);
          keys[u][r].start(step * z, 1.f);
        }
      }
      auto store_keys = [&](uint4* to) {
#pragma unroll
        for (int u = 0; u < kSineQuads; u++) {
          uint4 x;
#pragma unroll
          for (int r = 0; r < 2; r++) {
            Wave& key = keys[u][r];
            key.step_even();
            (r ? x.z : x.x) = to_halves(key.cosine, key.sine);
            (r ? x.w : x.y) = to_halves(key.even_cosine, key.even_sine);
            key.step_odd();
          }
          to[u * kThreads] = x;
        }
      };
      auto add_products = [&](const uint4* from, float odd, float even) {
#pragma unroll
        for (int u = 0; u < kSineQuads; u++) {
          unsigned x[4];
#pragma unroll
          for (int r = 0; r < 2; r++) {
            Wave& query = queries[u][r];
            query.step_even();
            x[r] = to_halves(odd * query.sine, odd * query.cosine);
            x[r + 2] = to_halves(even * query.even_sine, even * query.even_cosine);
            query.step_odd();
          }
#pragma unroll
          for (int n = 0; n < kTile / 16; n++) {
            const uint4 y = from[u * kThreads + 32 * n];
            mma_f16(sums[2 * n], x, y.x, y.y);
            mma_f16(sums[2 * n + 1], x, y.z, y.w);
          }
        }
      };
#pragma unroll 1
      for (int term = 0; term < count; term += 4) {
        const bool both = term + 2 < count;
        uint4* const first = shared + buffer;
        uint4* const second = first + kSineBuffer / 2;
        store_keys(first + thread);
        if (both) store_keys(second + thread);
        __syncthreads();
        add_products(first + lane, series.sines[term], series.sines[term + 1]);
        if (both) add_products(second + lane, series.sines[term + 2], series.sines[term + 3]);
        buffer ^= kSineBuffer;
      }
    }
  }

  // the lines: those of the queries are with the lanes of their rows, those of the keys are not
#pragma unroll
  for (int r = 0; r < 2; r++)
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) {
      of_query[r] += __shfl_xor_sync(kWarp, of_query[r], lanes);
      of_key[r] += __shfl_xor_sync(kWarp, of_key[r], lanes);
    }
  __syncthreads();
  if (t == 0) {
    scores[row] = of_key[0];
    scores[row + 8] = of_key[1];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < kTile / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) sums[n][e] += of_query[e / 2] + scores[8 * n + 2 * t + e % 2];
  __syncthreads();
#pragma unroll
  for (int n = 0; n < kTile / 8; n++)
#pragma unroll
    for (int r = 0; r < 2; r++)
      *reinterpret_cast<float2*>(scores + sine_place(row + 8 * r, 8 * n + 2 * t)) =
          make_float2(sums[n][2 * r], sums[n][2 * r + 1]);
  __syncthreads();
}

}  // namespace attnkernels::cuda
