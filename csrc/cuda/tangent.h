// The scores of a tile and their tangents, 64 queries against 64 keys by 128 threads as in score.h.
//
//   s  = base + sum_t w_t f_t
//   s' = base' + sum_t w'_t f_t + (w_t df_t) (q'_t + k'_t)
//
// A dash is a tangent. For a logistic activation f is r of (E7), and dr = (r^2 - r) dy for its
// exponent y = gain (q + k). The tangents are a problem of their own, whose panels (prepare.cu)
// hold gain x' and whose weights are w'. Panels of both come through shared memory as in score.h, 2
// x (8 KiB + 8 KiB + 128 bytes).
//
// An element takes 7 instructions, one of them a reciprocal: (E9) does not give the single r that a
// tangent needs. The unit for special functions is the bound, at 16 elements per clock and
// processor of an H100; all others allow 18.
#pragma once
#include "cuda/score.h"
#include "cuda/sweep.h"

namespace attnkernels::cuda {

struct Both {
  Scores s, tangent;
};

struct BothStages {
  Stage primal[2], tangent[2];
};

__device__ __forceinline__ void spread(float (&to)[4], const float4& x) {
  to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
}

// Add one hidden unit of the queries of a thread and of its key c. q_tangent and k_tangent include
// the factor w.
template <Sweep way, class Act>
__device__ __forceinline__ void add_unit(Both& x, int c, const Act& act, const float (&q)[kRI],
                                         const float (&q_tangent)[kRI], float k, float k_tangent,
                                         float w, float w_tangent) {
  static_assert(kRI == 4);
  float f[kRI];
  four<way>(f, q, k);
#pragma unroll
  for (int r = 0; r < kRI; r++) {
    float slope;
    if constexpr (kFromInputs<way>) {
      const float2 both = act.with_slope(f[r]);
      f[r] = way == Sweep::direct ? both.x - 0.5f : both.x;  // as add_inputs()
      slope = way == Sweep::direct ? -both.y : both.y;
    } else {
      slope = fmaf(f[r], f[r], -f[r]);
    }
    x.s[r][c] = fmaf(w, f[r], x.s[r][c]);
    x.tangent[r][c] = fmaf(w_tangent, f[r], fmaf(slope, q_tangent[r] + k_tangent, x.tangent[r][c]));
  }
}

// The factors of the weights in memory, and the sums that scores and tangents start from.
struct Units {
  float w, w_tangent, base, base_tangent;

  __device__ __forceinline__ Units(const Problem& p, const Place& at, const Place& tangent)
      : w(at.weights[p.padded + 1]), w_tangent(tangent.weights[p.padded + 1]),
        base(at.weights[p.padded]), base_tangent(tangent.weights[p.padded]) {}
};

// Add the quads of a stage, and take away halves of sums of weights as add_stage() does.
template <Sweep way, class Act>
__device__ __forceinline__ void add_both(Both& x, const Stage& from, const Stage& tangent,
                                         const Units& units, int quads, float half,
                                         float half_tangent, const Act& act) {
  const int ti = threadIdx.x / kTJ, tj = threadIdx.x % kTJ;
#pragma unroll 1
  for (int quad = 0; quad < quads; quad++) {
    float w[4], w_tangent[4], q[4][kRI], q_tangent[4][kRI];
    spread(w, from.w[quad]);
    spread(w_tangent, tangent.w[quad]);
#pragma unroll
    for (int t = 0; t < 4; t++) {
      w[t] *= units.w;
      w_tangent[t] *= units.w_tangent;
    }
#pragma unroll
    for (int r = 0; r < kRI; r++) {
      float four_q[4], four_tangents[4];
      spread(four_q, from.a[quad * kTile + ti + r * kTI]);
      spread(four_tangents, tangent.a[quad * kTile + ti + r * kTI]);
#pragma unroll
      for (int t = 0; t < 4; t++) {
        q[t][r] = four_q[t];
        q_tangent[t][r] = w[t] * four_tangents[t];
      }
    }
#pragma unroll
    for (int c = 0; c < kRJ; c++) {
      float k[4], k_tangent[4];
      spread(k, from.b[quad * kTile + tj + c * kTJ]);
      spread(k_tangent, tangent.b[quad * kTile + tj + c * kTJ]);
#pragma unroll
      for (int t = 0; t < 4; t++)
        add_unit<way>(x, c, act, q[t], q_tangent[t], k[t], w[t] * k_tangent[t], w[t], w_tangent[t]);
    }
  }
  if constexpr (Act::kLogistic)
#pragma unroll
    for (int r = 0; r < kRI; r++)
#pragma unroll
      for (int c = 0; c < kRJ; c++) {
        x.s[r][c] -= half;
        x.tangent[r][c] -= half_tangent;
      }
}

// The same from the inputs, right for any of them, with the tangents from their panels in memory.
template <class Act>
__device__ __forceinline__ void add_both_inputs(Both& x, const Problem& p, const Problem& tangents,
                                                const Act& act, const Place& at,
                                                const Place& tangent, const Units& units, int it,
                                                int jt) {
  const int ti = threadIdx.x / kTJ, tj = threadIdx.x % kTJ;
  const int64_t panel = int64_t{kTile} * p.padded;
  const float* const query_panel = tangents.queries.data + (tangent.query_panel + it) * panel;
  const float* const key_panel = tangents.keys.data + (tangent.key_panel + jt) * panel;
#pragma unroll 1
  for (int t = 0; t < p.d; t++) {
    const float w = at.weights[t] * units.w, w_tangent = tangent.weights[t] * units.w_tangent;
    float q[kRI], q_tangent[kRI];
#pragma unroll
    for (int r = 0; r < kRI; r++) {  // beyond the end any row will do
      const int i = min(it * kTile + ti + r * kTI, at.queries - 1);
      q[r] = load(p.query.data, p.query.dtype, at.query_at + i * p.query.row + t * p.query.col);
      q_tangent[r] = w * query_panel[in_panel(ti + r * kTI, t)];
    }
#pragma unroll
    for (int c = 0; c < kRJ; c++) {
      const int j = min(jt * kTile + tj + c * kTJ, at.keys.end - 1);
      const float k = load(p.key.data, p.key.dtype, at.key_at + j * p.key.row + t * p.key.col);
      add_unit<Sweep::direct>(x, c, act, q, q_tangent, k, w * key_panel[in_panel(tj + c * kTJ, t)],
                              w, w_tangent);
    }
  }
}

// Compute the scores and tangents of tile (it, jt), placed as by score_tile(). All threads of the
// block call this; on return they are past their last use of the stages.
template <class Act>
__device__ __forceinline__ void tangent_tile(Both& x, BothStages& stages, const Problem& p,
                                             const Problem& tangents, const Act& act,
                                             const Place& at, const Place& tangent, int it,
                                             int jt) {
  const Units units(p, at, tangent);
#pragma unroll
  for (int r = 0; r < kRI; r++)
#pragma unroll
    for (int c = 0; c < kRJ; c++) {
      x.s[r][c] = units.base;
      x.tangent[r][c] = units.base_tangent;
    }
  if constexpr (Act::kLogistic) {
    if (!(Ranges(p, at.query_panel + it, at.key_panel + jt).size <= Limit::factored)) {
      add_both_inputs(x, p, tangents, act, at, tangent, units, it, jt);
      return;
    }
  }
  constexpr Sweep way = Act::kLogistic ? Sweep::single : Sweep::pointwise;
  const Operands from(p, at, it, jt), from_tangents(tangents, tangent, it, jt);
  each_stage(
      p.padded / 4,
      [&](int stage, int first, int quads) {
        from.copy(stages.primal[stage], first, quads);
        from_tangents.copy(stages.tangent[stage], first, quads);
      },
      [&](int stage, int first, int quads) {
        const int half = p.padded + 2 + first / kStageQuads;
        add_both<way>(x, stages.primal[stage], stages.tangent[stage], units, quads,
                      at.weights[half] * units.w, tangent.weights[half] * units.w_tangent, act);
      });
}

// Call f(i, j, score, tangent) for the pairs of this thread.
template <class F>
__device__ __forceinline__ void each_pair(int it, int jt, Both& x, const F& f) {
  const int i0 = it * kTile + threadIdx.x / kTJ, j0 = jt * kTile + threadIdx.x % kTJ;
#pragma unroll
  for (int r = 0; r < kRI; r++)
#pragma unroll
    for (int c = 0; c < kRJ; c++) f(i0 + r * kTI, j0 + c * kTJ, x.s[r][c], x.tangent[r][c]);
}

}  // namespace attnkernels::cuda
