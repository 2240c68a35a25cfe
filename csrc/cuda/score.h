// The scores of a tile, (E1) by (E7) and (E9): 64 queries against 64 keys by 128 threads.
//
//              8 threads along the keys, each with 8 of them: j, j + 8, ...
//            +------------------+
//   16       | thread (ti, tj)  |    A thread has a block of 4 x 8 scores in registers and reads,
//   threads, | queries ti + 16r |    for four hidden units, 4 + 8 vectors of 16 bytes from shared
//   4 rows   | keys    tj +  8c |    memory, which is 0.1 instructions per element.
//            +------------------+
//
// Panels (prepare.cu) come through shared memory, 16 hidden units at a time, by asynchronous copies
// into one of two stages while the other is worked on: 2 x (4 KiB + 4 KiB + 64 bytes).
//
// An element takes 3.5 operations and 1/4 of a reciprocal: 3.75 instructions, 0.25 of them for the
// unit for special functions. That is 34 elements per clock and processor of an H100, out of 36.
#pragma once
#include "cuda/mask.h"
#include "cuda/sines.h"

namespace attnkernels::cuda {

constexpr int kRI = 4, kRJ = 8, kTI = kTile / kRI, kTJ = kTile / kRJ;
constexpr int kStageQuads = kStage / 4;
static_assert(kTI * kTJ == kThreads);

using Scores = float[kRI][kRJ];

struct Stage {
  float4 a[kStageQuads * kTile], b[kStageQuads * kTile], w[kStageQuads];
};

enum class Form { factored, bounded, pointwise };

// Return s + sum_t w_t g_t over four hidden units.
template <Form form, class Act>
__device__ __forceinline__ float add_quad(float s, const float4& a, const float4& b,
                                          const float4& w, const Act& act) {
  if constexpr (form == Form::pointwise) {
    float four = w.x * act.value(a.x + b.x);
    four = fmaf(w.y, act.value(a.y + b.y), four);
    four = fmaf(w.z, act.value(a.z + b.z), four);
    return s + fmaf(w.w, act.value(a.w + b.w), four);
  } else {
    float x0 = fmaf(a.x, b.x, 1.f), x1 = fmaf(a.y, b.y, 1.f);
    float x2 = fmaf(a.z, b.z, 1.f), x3 = fmaf(a.w, b.w, 1.f);
    if constexpr (form == Form::bounded) {
      x0 = fminf(x0, Limit::exp_quad);
      x1 = fminf(x1, Limit::exp_quad);
      x2 = fminf(x2, Limit::exp_quad);
      x3 = fminf(x3, Limit::exp_quad);
    }
    const float d01 = x0 * x1, d23 = x2 * x3;
    const float n01 = fmaf(w.x, x1, w.y * x0), n23 = fmaf(w.z, x3, w.w * x2);
    return fmaf(fmaf(n01, d23, n23 * d01), reciprocal(d01 * d23), s);
  }
}

// Add the quads of a stage, and take away `half`, which is half of the sum of their weights: sums
// of r would round by as much as w is large, and so in one direction where hidden units are alike.
template <Form form, class Act>
__device__ __forceinline__ void add_stage(Scores& s, const Stage& from, int quads, float half,
                                          const Act& act) {
  const int ti = threadIdx.x / kTJ, tj = threadIdx.x % kTJ;
#pragma unroll 1
  for (int quad = 0; quad < quads; quad++) {
    const float4 w = from.w[quad];
    float4 b[kRJ];
#pragma unroll
    for (int c = 0; c < kRJ; c++) b[c] = from.b[quad * kTile + tj + c * kTJ];
#pragma unroll
    for (int r = 0; r < kRI; r++) {
      const float4 a = from.a[quad * kTile + ti + r * kTI];
#pragma unroll
      for (int c = 0; c < kRJ; c++) s[r][c] = add_quad<form>(s[r][c], a, b[c], w, act);
    }
  }
  if constexpr (form != Form::pointwise)
#pragma unroll
    for (int r = 0; r < kRI; r++)
#pragma unroll
      for (int c = 0; c < kRJ; c++) s[r][c] -= half;
}

__device__ __forceinline__ void copy_stage(Stage& to, const float4* a, const float4* b,
                                           const float4* w, int quads) {
  for (int k = threadIdx.x; k < quads * kTile; k += kThreads) {
    async_copy16(&to.a[k], a + k);
    async_copy16(&to.b[k], b + k);
  }
  if (static_cast<int>(threadIdx.x) < quads) async_copy16(&to.w[threadIdx.x], w + threadIdx.x);
}

// The panels of a tile and the weights, as vectors of four hidden units.
struct Operands {
  const float4 *a, *b, *w;

  __device__ __forceinline__ Operands(const Problem& p, const Place& at, int it, int jt) {
    const int64_t panel = int64_t{p.padded / 4} * kTile;
    a = reinterpret_cast<const float4*>(p.queries.data) + (at.query_panel + it) * panel;
    b = reinterpret_cast<const float4*>(p.keys.data) + (at.key_panel + jt) * panel;
    w = reinterpret_cast<const float4*>(at.weights);
  }
  __device__ __forceinline__ void copy(Stage& to, int first, int quads) const {
    copy_stage(to, a + first * kTile, b + first * kTile, w + first, quads);
  }
};

// Call copy(stage, first quad, quads), 0 or 1 being the stage, and use(stage, first quad, quads)
// once the copies are there, while the next ones are under way. On return all threads are past
// their last use.
template <class Copy, class Use>
__device__ __forceinline__ void each_stage(int quads, const Copy& copy, const Use& use) {
  auto start = [&](int first) {
    const int left = quads - first;
    if (left > 0) copy(first / kStageQuads % 2, first, left < kStageQuads ? left : kStageQuads);
    async_commit();
  };
  start(0);
#pragma unroll 1
  for (int first = 0; first < quads; first += kStageQuads) {
    start(first + kStageQuads);
    async_wait<1>();
    __syncthreads();
    const int left = quads - first;
    use(first / kStageQuads % 2, first, left < kStageQuads ? left : kStageQuads);
    __syncthreads();
  }
  async_wait<0>();
}

// Quads `begin` to `end` of hidden units, whole stages up to the last.
template <Form form, class Act>
__device__ __forceinline__ void add_panels(Scores& s, Stage* stages, const Problem& p,
                                           const Act& act, const Place& at, int it, int jt,
                                           int begin, int end) {
  const Operands from(p, at, it, jt);
  each_stage(
      end - begin,
      [&](int stage, int first, int quads) { from.copy(stages[stage], begin + first, quads); },
      [&](int stage, int first, int quads) {
        const float half = at.weights[p.padded + 2 + (begin + first) / kStageQuads];
        add_stage<form>(s, stages[stage], quads, half, act);
      });
}

// The same from the inputs, right for any of them: x = 1 + exp(gain (q + k)) may be infinite. The
// sums are centred: those of r would round by as much as w is large where q + k cancels.
__device__ __forceinline__ void add_inputs(Scores& s, const Problem& p, const Logistic& act,
                                           const Place& at, int it, int jt, int begin, int end) {
  const int i0 = it * kTile + threadIdx.x / kTJ, j0 = jt * kTile + threadIdx.x % kTJ;
#pragma unroll 1
  for (int t = 4 * begin; t < min(4 * end, p.d); t++) {
    const float w = at.weights[t];
    float k[kRJ];
#pragma unroll
    for (int c = 0; c < kRJ; c++) {  // beyond the end any row will do
      const int j = min(j0 + c * kTJ, at.keys.end - 1);
      k[c] = load(p.key.data, p.key.dtype, at.key_at + j * p.key.row + t * p.key.col);
    }
#pragma unroll
    for (int r = 0; r < kRI; r++) {
      const int i = min(i0 + r * kTI, at.queries - 1);
      const float q =
          load(p.query.data, p.query.dtype, at.query_at + i * p.query.row + t * p.query.col);
#pragma unroll
      for (int c = 0; c < kRJ; c++) s[r][c] = fmaf(w, act.r(q + k[c]) - 0.5f, s[r][c]);
    }
  }
}

// The same by sines; other activations have none.
template <class Act>
__device__ __forceinline__ void add_sines(Scores& s, Stage* stages, const Problem& p,
                                          const Act& act, const Place& at, int it, int jt,
                                          int begin, int end) {
  if constexpr (kHasSines<Act>) {
    static_assert(sizeof(Stage[2]) >= kSineBytes);
    float* const scores = reinterpret_cast<float*>(stages);
    sine_scores(scores, act, p, at, it, jt, begin, end);
    unsigned thread = threadIdx.x;
    forget(thread);
    const int ti = thread / kTJ, tj = thread % kTJ;
#pragma unroll
    for (int r = 0; r < kRI; r++)
#pragma unroll
      for (int c = 0; c < kRJ; c++) s[r][c] = scores[sine_place(ti + r * kTI, tj + c * kTJ)];
  }
}

// The ranges of two panels together, which decide the form: docs/math.md, "Ranges".
struct Ranges {
  float sum = -kInfinity, size = 0, lowest = kInfinity;

  __device__ __forceinline__ Ranges(const Problem& p, int64_t query_panel, int64_t key_panel) {
    const int chunks = chunks_of(p.d);
    for (int c = 0; c < chunks; c++) {
      const Range q = p.queries.ranges[query_panel * chunks + c];
      const Range k = p.keys.ranges[key_panel * chunks + c];
      sum = fmaxf(sum, q.high + k.high);
      size = fmaxf(size, fmaxf(q.size, k.size));
      lowest = fminf(lowest, q.low + k.low);
    }
  }
  // Whether the sines of (E14) hold for all pairs.
  __device__ __forceinline__ bool within_sines() const {
    return size <= Limit::factored && fmaxf(sum, -lowest) <= 2 * kLastReach;
  }
};

// Compute the scores of queries ti + 16 r of tile `it` and keys tj + 8 c of tile `jt` over quads
// `begin` to `end` of hidden units, whose sums over all quads are the scores. All threads of the
// block call this.
template <class Act>
__device__ __forceinline__ void score_quads(Scores& s, Stage* stages, const Problem& p,
                                            const Act& act, const Place& at, int it, int jt,
                                            int begin, int end) {
#pragma unroll
  for (int r = 0; r < kRI; r++)
#pragma unroll
    for (int c = 0; c < kRJ; c++) s[r][c] = 0;
  const float unit = at.weights[p.padded + 1];
  const float base = begin ? 0.f : at.weights[p.padded];
  if constexpr (Act::kLogistic) {
    const Ranges ranges(p, at.query_panel + it, at.key_panel + jt);
    bool by_sines = false;
    if constexpr (kHasSines<Act>) by_sines = ranges.within_sines() && unit < kInfinity;
    if (by_sines) {
      add_sines(s, stages, p, act, at, it, jt, begin, end);
    } else if (!(ranges.size <= Limit::factored)) {
      add_inputs(s, p, act, at, it, jt, begin, end);
    } else if (ranges.sum <= Limit::quad) {
      add_panels<Form::factored>(s, stages, p, act, at, it, jt, begin, end);
    } else {
      add_panels<Form::bounded>(s, stages, p, act, at, it, jt, begin, end);
    }
  } else {
    add_panels<Form::pointwise>(s, stages, p, act, at, it, jt, begin, end);
  }
#pragma unroll
  for (int r = 0; r < kRI; r++)
#pragma unroll
    for (int c = 0; c < kRJ; c++) s[r][c] = fmaf(s[r][c], unit, base);
}

template <class Act>
__device__ __forceinline__ void score_tile(Scores& s, Stage* stages, const Problem& p,
                                           const Act& act, const Place& at, int it, int jt) {
  score_quads(s, stages, p, act, at, it, jt, 0, p.padded / 4);
}

// Call f(i, j, x[r][c]) for the pairs of this thread. kLean: see Piece.
template <bool kLean = false, class F>
__device__ __forceinline__ void each_pair(int it, int jt, Scores& x, const F& f) {
  unsigned thread = threadIdx.x;
  if constexpr (kLean) forget(thread);
  const int i0 = it * kTile + thread / kTJ, j0 = jt * kTile + thread % kTJ;
#pragma unroll
  for (int r = 0; r < kRI; r++)
#pragma unroll
    for (int c = 0; c < kRJ; c++) f(i0 + r * kTI, j0 + c * kTJ, x[r][c]);
}

// Return true if a tile of reach() must be computed. All threads of the block call this.
__device__ __forceinline__ bool any_takes_part(const Problem& p, const Place& at, int it, int jt) {
  if (!p.mask.data) return true;
  bool some = false;
  for (int pair = threadIdx.x; pair < kTile * kTile && !some; pair += kThreads) {
    float added;
    some = takes_part(p, at.mask_at, at.queries, at.keys, it * kTile + pair / kTile,
                      jt * kTile + pair % kTile, added);
  }
  return __syncthreads_or(some);
}

}  // namespace attnkernels::cuda
