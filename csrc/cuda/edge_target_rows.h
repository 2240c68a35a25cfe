// The rows of a team in the pass over the edges of every target (edge_targets.cu): in registers, or
// for rows that 16 bytes do not fit, in memory.
#pragma once
#include "cuda/delta.h"
#include "cuda/edge_gradients.h"

namespace attnkernels::cuda {

struct TargetsJob {
  EdgeBackward f;
  EdgeDelta delta;
  Shares shares;
  EdgeSums query;
  float* weight;  // (shares, batch, d + 1)
  EdgePairs out;
};

template <class T, int V, bool kOne>
class HeldTargets {
  using Wide = Table<T, V>;
  using Floats = FloatTable<T, V>;
  static constexpr int N = Wide::N, K = Wide::K, U = kOne ? 1 : kEdges, M = kOne ? 1 : N;
  const EdgeProblem& p_;
  const TargetsJob& job_;
  const Team& team_;
  const Wide query_, key_, value_, edge_key_;
  const Floats grad_context_;
  Packed<V> query_row_{}, key_rows_[kEdges]{}, value_rows_[U]{};
  Packed<N / 4> grad_row_{};
  float q_[N], w_[N], g_[N], dq_[N], dw_[N], k_[kEdges][N], u_[U][M];

  __device__ __forceinline__ float value(int e, int t) const {
    if constexpr (kOne)
      return k_[e][t];
    else
      return u_[e][t];
  }
  template <class Act>
  __device__ __forceinline__ void store_edge_keys(const float (&ds)[kEdges], unsigned live,
                                                  const Edges& edges, const Near& near,
                                                  const Act& act) const {
#pragma unroll
    for (int e = 0; e < kEdges; e++) {
      const int64_t edge = team_.row(p_, p_.edges, of_edge(near.edge, e));
      const EdgeTerm<Act> term(act, ds[e]);
      float x[N];
#pragma unroll
      for (int t = 0; t < N; t++)
        x[t] = live >> e & 1 ? job_.query.factor * w_[t] * term.to_x(q_[t] + k_[e][t]) : 0.f;
      if (e < edges.count())
        Table<T, V>(job_.f.grad_edge_key.data, edge * p_.d, 0, p_.d, team_).store(0, x);
    }
  }

 public:
  static constexpr bool kChunked = false;

  __device__ __forceinline__ HeldTargets(const EdgeProblem& p, const TargetsJob& job,
                                         const Team& team)
      : p_(p), job_(job), team_(team), query_(p.query, p.batch, p.d, team),
        key_(p.key, p.batch, p.d, team), value_(p.value, p.batch, p.dv, team),
        edge_key_(p.edge_key, p.batch, p.d, team),
        grad_context_(result_table<T, V>(job.f.grad_context, p, p.n, p.dv, team)) {
    load_weight<T, V>(w_, p, team);
    clear(dq_);
    clear(dw_);
  }
  __device__ __forceinline__ void fetch(const Edges& edges, const Near& near) {
    if (edges.begins()) {
      query_.load(query_row_, edges.node);
      if (job_.f.grad_context) grad_context_.load(grad_row_, edges.node);
    }
#pragma unroll
    for (int e = 0; e < kEdges; e++) {
      const int other = of_edge(near.other, e);
      key_.load(key_rows_[e], other);
      if constexpr (!kOne) value_.load(value_rows_[e], other);
    }
  }
  __device__ __forceinline__ void turn(const Edges& edges, const Near& near) {
    unpack<T, V>(q_, query_row_);
    unpack_floats(g_, grad_row_);
    if (edges.begins()) clear(dq_);
#pragma unroll
    for (int e = 0; e < kEdges; e++) {
      unpack<T, V>(k_[e], key_rows_[e]);
      if constexpr (!kOne) unpack<T, V>(u_[e], value_rows_[e]);
    }
    if constexpr (!kOne)
      if (p_.edge_key.data) add_edge_keys<T, V>(k_, edge_key_, edges, near);
  }
  // The sums of scores, and da = dc . u.
  template <class Act>
  __device__ __forceinline__ void sums(float (&x)[kEdges], float (&da)[kEdges],
                                       const Act& act) const {
#pragma unroll
    for (int e = 0; e < kEdges; e++) {
      x[e] = da[e] = 0;
#pragma unroll
      for (int t = 0; t < N; t++) {
        x[e] = fmaf(w_[t], act.value(q_[t] + k_[e][t]), x[e]);
        da[e] = fmaf(g_[t], value(e, t), da[e]);
      }
    }
  }
  // dc . (keep u - c), where c is the context of the node.
  __device__ __forceinline__ void centred(float (&x)[kEdges], const float (&keep)[kEdges],
                                          int node) const {
    Packed<N / 4> packed{};
    float c[N];
    if (job_.f.grad_context)
      result_table<T, V>(job_.f.context, p_, p_.n, p_.dv, team_).load(packed, node);
    unpack_floats(c, packed);
#pragma unroll
    for (int e = 0; e < kEdges; e++) {
      x[e] = 0;
#pragma unroll
      for (int t = 0; t < N; t++)
        x[e] = fmaf(g_[t], difference(value(e, t), keep[e], c[t], kOneRounding), x[e]);
    }
  }
  // Add the edges in `live` to dq and dw.
  template <class Act>
  __device__ __forceinline__ void add(const float (&ds)[kEdges], unsigned live, const Edges& edges,
                                      const Near& near, const Act& act) {
    if constexpr (!Act::kLogistic)  // q + k is cheaper than the registers for it
#pragma unroll
      for (int t = 0; t < N; t++) forget(q_[t]);
#pragma unroll
    for (int e = 0; e < kEdges; e++) {
      if (!(live >> e & 1)) continue;
      const EdgeTerm<Act> term(act, ds[e]);
      unsigned signs[V] = {};
#pragma unroll
      for (int t = 0; t < N; t++) {
        const float x = q_[t] + k_[e][t];
        dq_[t] += term.to_x(x);
        dw_[t] += term.to_w(x);
        signs[t / K] |= x > 0 ? 1u << t % K : 0u;
      }
      if (Act::kLogistic || !job_.out.signs) continue;
      uint8_t* const at = signs_at<V>(job_.out.signs, p_, team_, edges.first + e);
#pragma unroll
      for (int v = 0; v < V; v++) at[v * team_.lanes] = static_cast<uint8_t>(signs[v]);
    }
    if constexpr (!kOne)
      if (job_.f.grad_edge_key.data) store_edge_keys(ds, live, edges, near, act);
  }
  __device__ __forceinline__ void store_query(int64_t row) const {
    if (!job_.f.grad_query.data) return;
    float x[N];
#pragma unroll
    for (int t = 0; t < N; t++) x[t] = weighted(job_.query.factor * w_[t], dq_[t]);
    Table<T, V>(job_.f.grad_query.data, 0, p_.d, p_.d, team_).store(row, x);
  }
  __device__ __forceinline__ void store_part(int64_t slot) const {
    if (job_.query.d) dense_table<T, V>(job_.query.first_parts(), p_.d, team_).store(slot, dq_);
  }
  __device__ __forceinline__ void store_weight(float* to) const {
#pragma unroll
    for (int t = 0; t < N; t++) {
      const int column = Wide::column(team_, t / K) + t % K;
      if (column < p_.d) to[column] = dw_[t];
    }
  }
};

class LooseTargets {
  const EdgeProblem& p_;
  const TargetsJob& job_;
  const Team& team_;
  const Rows query_, key_, value_, edge_key_, weight_, context_, grad_context_;
  int node_ = -1, others_[kEdges], edges_[kEdges];
  float4 dq_[kLooseQuads], dw_[kLooseQuads];

 public:
  static constexpr bool kChunked = true;

  __device__ __forceinline__ LooseTargets(const EdgeProblem& p, const TargetsJob& job,
                                          const Team& team)
      : p_(p), job_(job), team_(team), query_(rows_of(p.query, p, team, p.d)),
        key_(rows_of(p.key, p, team, p.d)),
        value_(rows_of(p.value.data ? p.value : p.key, p, team, p.dv)),
        edge_key_(rows_of(p.edge_key, p, team, p.d)), weight_(rows_of(p.weight, p, team, p.d)),
        context_(float_rows(job.f.context, p, team, p.n, p.dv)),
        grad_context_(float_rows(job.f.grad_context, p, team, p.n, p.dv)) {
#pragma unroll
    for (int v = 0; v < kLooseQuads; v++) dw_[v] = dq_[v] = make_float4(0, 0, 0, 0);
  }
  __device__ __forceinline__ void fetch(const Edges&, const Near&) {}
  __device__ __forceinline__ void turn(const Edges& edges, const Near& near) {
    node_ = edges.node;
#pragma unroll
    for (int e = 0; e < kEdges; e++) {
      others_[e] = of_edge(near.other, e);
      edges_[e] = of_edge(near.edge, e);
    }
    if (edges.begins())
#pragma unroll
      for (int v = 0; v < kLooseQuads; v++) dq_[v] = make_float4(0, 0, 0, 0);
  }
  template <class Act>
  __device__ __forceinline__ void sums(float (&x)[kEdges], float (&da)[kEdges],
                                       const Act& act) const {
    loose_sums(x, p_, team_, act, query_, key_, edge_key_, weight_, node_, others_, edges_);
    products(da, [](const float4& u, int, int) { return u; });
  }
  __device__ __forceinline__ void centred(float (&x)[kEdges], const float (&keep)[kEdges],
                                          int) const {
    products(x, [&](const float4& u, int t, int e) {
      const float4 c = context_.four(node_, t, p_.dv);
      return make_float4(
          difference(u.x, keep[e], c.x, kOneRounding), difference(u.y, keep[e], c.y, kOneRounding),
          difference(u.z, keep[e], c.z, kOneRounding), difference(u.w, keep[e], c.w, kOneRounding));
    });
  }
  template <class Act>
  __device__ __forceinline__ void add(const float (&ds)[kEdges], unsigned live, const Edges& edges,
                                      const Near&, const Act& act) {
#pragma unroll
    for (int v = 0; v < kLooseQuads; v++) {
      const int t = loose_column(team_, v);
      if (t >= p_.d || node_ < 0) continue;
      float4 q = query_.four(node_, t, p_.d), w = weight_.four(0, t, p_.d);
#pragma unroll 1
      for (int e = 0; e < edges.count(); e++) {
        const bool lives = live >> e & 1;
        float4 k = make_float4(0, 0, 0, 0);
        if (lives) {
          k = key_.four(of(others_, e), t, p_.d);
          if (p_.edge_key.data) add_scaled(k, 1, edge_key_.four(of(edges_, e), t, p_.d));
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
          float gradient = 0;
          if (lives) {
            const EdgeTerm<Act> term(act, of(ds, e));
            const float x = element(q, c) + element(k, c);
            gradient = term.to_x(x);
            element(dq_[v], c) += gradient;
            element(dw_[v], c) += term.to_w(x);
            gradient *= job_.query.factor * element(w, c);
          }
          if (job_.f.grad_edge_key.data && t + c < p_.d)
            ::attnkernels::cuda::store(job_.f.grad_edge_key.data, job_.f.grad_edge_key.dtype,
                                       team_.row(p_, p_.edges, of(edges_, e)) * p_.d + t + c,
                                       gradient);
        }
      }
    }
  }
  __device__ __forceinline__ void store_query(int64_t row) const {
    if (!job_.f.grad_query.data) return;
    const Output& out = job_.f.grad_query;
    const int64_t weight_at = offset(p_.batch, team_.b, p_.weight.lead);
    for_loose_columns(team_, [&](int v, int e, int t) {
      if (t >= p_.d) return;
      const float w = load(p_.weight.data, p_.weight.dtype, weight_at + t * p_.weight.col);
      ::attnkernels::cuda::store(out.data, out.dtype, row * p_.d + t,
                                 weighted(job_.query.factor * w, element(dq_[v], e)));
    });
  }
  __device__ __forceinline__ void store_part(int64_t slot) const {
    for_loose_columns(team_, [&](int v, int e, int t) {
      if (t < job_.query.d) job_.query.first_parts()[slot * p_.d + t] = element(dq_[v], e);
    });
  }
  __device__ __forceinline__ void store_weight(float* to) const {
    for_loose_columns(team_, [&](int v, int e, int t) {
      if (t < p_.d) to[t] = element(dw_[v], e);
    });
  }

 private:
  // An element whose index the compiler does not know, without an array in memory.
  template <class X>
  static __device__ __forceinline__ X of(const X (&x)[kEdges], int e) {
    return e < 2 ? (e == 0 ? x[0] : x[1]) : (e == 2 ? x[2] : x[3]);
  }
  // Set x[e] to the sum over columns of dc f(u, column, e).
  template <class F>
  __device__ __forceinline__ void products(float (&x)[kEdges], const F& f) const {
#pragma unroll
    for (int e = 0; e < kEdges; e++) x[e] = 0;
    if (node_ < 0 || !job_.f.grad_context) return;
#pragma unroll 1
    for (int t = 4 * team_.lane; t < p_.dv; t += 4 * team_.lanes) {
      const float4 g = grad_context_.four(node_, t, p_.dv);
#pragma unroll
      for (int e = 0; e < kEdges; e++)
        if (others_[e] >= 0) x[e] += dot(g, f(value_.four(others_[e], t, p_.dv), t, e));
    }
  }
};

}  // namespace attnkernels::cuda
