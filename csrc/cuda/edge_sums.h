// What the passes over edges share with the kernels after them: parts of nodes that were cut, which
// edge_sums.cu merges, and the choice of a kernel by the width of rows.
#pragma once
#include "cuda/edge_rows.h"

namespace attnkernels::cuda {

// The softmax of every part of a target: its maximum and sum, and its context.
struct EdgeStates {
  float2* softmax = nullptr;  // (slots)
  float* sums = nullptr;      // (slots, dv)
};

EdgeStates states_for(const EdgeProblem&, const Shares&, const Host&);
void merge_states(const EdgeProblem&, const Shares&, const EdgeStates&, const EdgeForward&,
                  const Host&);
// Turn scores into weights, with dropout.
void finish_weights(const EdgeProblem&, const EdgeForward&, const Host&);

// For rows of T in the registers of a team: V times 16 bytes of a lane. V 0: they stay in memory.
template <class T, int V>
struct Held {
  static constexpr int kColumns = V ? kPack<T> * V : 4 * kLooseQuads;  // of a lane
};

// Call run(Held<T, V>{}) for the rows of a problem.
template <class F>
void by_width(const EdgeProblem& p, const F& run) {
  const int columns = std::max(p.d, p.dv);
  if (p.wide && p.query.dtype == Dtype::f32 && columns <= 32 * Held<Float32, 1>::kColumns)
    run(Held<Float32, 1>{});
  else if (p.wide && p.query.dtype == Dtype::f32 && columns <= 32 * Held<Float32, 2>::kColumns)
    run(Held<Float32, 2>{});
  else if (p.wide && p.query.dtype == Dtype::bf16 && columns <= 32 * Held<Bfloat16, 1>::kColumns)
    run(Held<Bfloat16, 1>{});
  else if (p.wide && p.query.dtype == Dtype::f16 && columns <= 32 * Held<Float16, 1>::kColumns)
    run(Held<Float16, 1>{});
  else
    run(Held<Float32, 0>{});
}

// Keys of edges are added in registers, so the values must have registers of their own.
inline EdgeProblem with_values(EdgeProblem p) {
  if (p.edge_key.data && !p.value.data) p.value = p.key;
  return p;
}

__device__ __forceinline__ void add_scaled(float4& x, float s, const float4& y) {
  x = make_float4(fmaf(s, y.x, x.x), fmaf(s, y.y, x.y), fmaf(s, y.z, x.z), fmaf(s, y.w, x.w));
}

// Set x[e] to this lane's part of the sum over channels of w f(q + k + g) for four edges.
template <class Act>
__device__ __forceinline__ void loose_sums(float (&x)[kEdges], const EdgeProblem& p,
                                           const Team& team, const Act& act, const Rows& query,
                                           const Rows& key, const Rows& edge_key,
                                           const Rows& weight, int node,
                                           const int (&others)[kEdges],
                                           const int (&edges)[kEdges]) {
#pragma unroll
  for (int e = 0; e < kEdges; e++) x[e] = 0;
  if (node < 0) return;
#pragma unroll 1
  for (int t = 4 * team.lane; t < p.d; t += 4 * team.lanes) {
    const float4 q = query.four(node, t, p.d), w = weight.four(0, t, p.d);
#pragma unroll
    for (int e = 0; e < kEdges; e++) {
      if (others[e] < 0) continue;
      float4 k = key.four(others[e], t, p.d);
      if (p.edge_key.data) add_scaled(k, 1, edge_key.four(edges[e], t, p.d));
      x[e] += dot(w, make_float4(act.value(q.x + k.x), act.value(q.y + k.y), act.value(q.z + k.z),
                                 act.value(q.w + k.w)));
    }
  }
}

// The sums of the parts of nodes at one end, and where those of a node go: rows of d, which still
// lack the factor and w, and rows of `more`. With `joined` the second are added to the first.
struct EdgeSums {
  float* parts = nullptr;  // (slots, d), then (slots, more)
  int64_t slots = 0;
  int d = 0, more = 0;  // 0: not wanted
  float factor = 1;
  bool joined = false;
  Output first, second;  // data null: not wanted

  __host__ __device__ float* first_parts() const { return parts; }
  __host__ __device__ float* second_parts() const { return parts + slots * d; }
};

EdgeSums sums_for(const EdgeProblem&, const Shares&, int d, int more, const Host&);
void merge_sums(const EdgeProblem&, const Adjacency&, const Shares&, const EdgeSums&, const Host&);

// The gradient of weight, (E6), from the sums of teams, (shares, batch, d + 1): of ds r or ds f,
// and of ds.
void finish_edge_weight(const EdgeProblem&, const Shares&, const float* sums, float* out,
                        const Host&);

// Delta of (E4) per target, by row; the sum over the gradients of weights alone, or null; and what
// turns scores into weights.
struct EdgeDelta {
  float *total = nullptr, *weights = nullptr;
  float2* softmax = nullptr;  // for weigh()
};
EdgeDelta edge_delta(const EdgeProblem&, const EdgeBackward&, const Host&);

}  // namespace attnkernels::cuda
