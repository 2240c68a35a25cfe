// Attention over edges, the first pass of the gradients, over the edges of every target: ds of (E4),
// dq, dw, and the gradients of what edges have of their own. It works as the forward does
// (edge_forward.cu), with the rows of the gradient of the context beside those of the query, and
// leaves ds and the weights that were used, per edge and head, to the pass over sources.
#include "cuda/delta.h"
#include "cuda/edge_gradients.h"

namespace attnkernels::cuda {
namespace {

struct Job {
  EdgeBackward f;
  EdgeDelta delta;
  Shares shares;
  EdgeSums query;
  float* weight;  // (shares, batch, d + 1)
  EdgePairs out;
};

template <class T, int V, bool kOne>
class HeldTargets {
 public:
  static constexpr bool kChunked = false;

 private:
  using Wide = Table<T, V>;
  using Floats = FloatTable<T, V>;
  static constexpr int N = Wide::N, K = Wide::K, U = kOne ? 1 : kEdges, M = kOne ? 1 : N;
  const EdgeProblem& p_;
  const Job& job_;
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
  __device__ __forceinline__ HeldTargets(const EdgeProblem& p, const Job& job, const Team& team)
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
    for (int t = 0; t < N; t++) x[t] = job_.query.factor * w_[t] * dq_[t];
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
 public:
  static constexpr bool kChunked = true;

 private:
  const EdgeProblem& p_;
  const Job& job_;
  const Team& team_;
  const Rows query_, key_, value_, edge_key_, weight_, context_, grad_context_;
  int node_ = -1, others_[kEdges], edges_[kEdges];
  float4 dq_[kLooseQuads], dw_[kLooseQuads];

 public:
  __device__ __forceinline__ LooseTargets(const EdgeProblem& p, const Job& job, const Team& team)
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
      return make_float4(difference(u.x, keep[e], c.x, kOneRounding),
                         difference(u.y, keep[e], c.y, kOneRounding),
                         difference(u.z, keep[e], c.z, kOneRounding),
                         difference(u.w, keep[e], c.w, kOneRounding));
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
            ::attnkernels::cuda::store(
                job_.f.grad_edge_key.data, job_.f.grad_edge_key.dtype,
                team_.row(p_, p_.edges, of(edges_, e)) * p_.d + t + c, gradient);
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
                                 job_.query.factor * w * element(dq_[v], e));
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

template <class Rows, class Act>
__device__ __forceinline__ void targets_team(const EdgeProblem& p, const Job& job, const Act& act) {
  const EdgeBackward& f = job.f;
  const Team team(p, job.shares, Rows::kChunked);
  Rows rows(p, job, team);
  Cursor cursor(p.by_target, job.shares, team, p.edges);
  const bool own = p.edge_key.data || p.edge_bias.data || f.grad_weights;
  const int64_t bias_at = offset(p.batch, team.b, p.edge_bias.lead);
  auto row_of = [&](const Edges& edges) { return team.row(p, p.n, edges.node); };
  // Numbers of a target, and of the edge of this lane.
  struct Numbers {
    float lse = 0, delta = 0, bias = 0, grad_weight = 0;
  };
  auto numbers = [&](Numbers& to, const Edges& edges, const Near& near) {
    if (edges.begins()) {
      to.lse = f.lse[row_of(edges)];
      to.delta = job.delta.total[row_of(edges)];
    }
    to.bias = bias_of(p, bias_at, near);
    if (f.grad_weights && near.other >= 0)
      to.grad_weight = f.grad_weights[team.row(p, p.edges, near.edge)];
  };
  Edges now = cursor.next();
  Near here = near(p.by_target, now, own);
  Edges then = cursor.next();
  Near there = near(p.by_target, then, own);
  rows.fetch(now, here);
  Numbers at;
  numbers(at, now, here);
  float total = 0;  // of ds

  while (__any_sync(kWarp, now.node >= 0)) {
    rows.turn(now, here);
    float x[kEdges], y[kEdges];
    rows.sums(x, y, act);
    const float sum = team_sum(x, team.lanes), product = team_sum(y, team.lanes);
    const int place = now.first + static_cast<int>(threadIdx.x) % kEdges;
    const bool there_is = here.other >= 0, lives = there_is && at.bias != -kInfinity;
    const float a = lives ? exp_fast(fmaf(p.scale, sum, at.bias) - at.lse) : 0.f;
    const float keep = p.seed ? kept(p, team.b, 0, place) : 1.f;
    float ds = lives ? a * (dropped(product + at.grad_weight, keep) - at.delta) : 0.f;
    if (__any_sync(kWarp, a > kMost)) {
#pragma unroll
      for (int e = 0; e < kEdges; e++) y[e] = of_edge(keep, e);
      rows.centred(x, y, now.node);
      float rest = team_sum(x, team.lanes);
      if (a > kMost) {
        if (f.grad_weights)
          rest += difference(at.grad_weight, keep, job.delta.weights[row_of(now)], kOneRounding);
        if (f.grad_lse) rest += f.grad_lse[row_of(now)];
        ds = a * rest;
      }
    }
    if (team.speaks() && there_is) {
      const float used = lives ? dropped(a, keep) : kExcluded;
      if (job.out.pairs) job.out.pairs[place * p.batch.count + team.b] = make_float2(ds, used);
      if (f.grad_edge_bias) f.grad_edge_bias[team.row(p, p.edges, here.edge)] = ds;
    }
    total += ds;
#pragma unroll
    for (int e = 0; e < kEdges; e++) y[e] = of_edge(ds, e);
    rows.add(y, edges_where(lives), now, here, act);
    rows.fetch(then, there);
    numbers(at, then, there);

    if (now.ends() && !now.part()) rows.store_query(row_of(now));
    if (now.ends() && now.part()) rows.store_part(team.slot(p, now));
    now = then;
    here = there;
    then = cursor.next();
    there = near(p.by_target, then, own);
  }
  total += __shfl_xor_sync(kWarp, total, 1);
  total += __shfl_xor_sync(kWarp, total, 2);
  if (!team.works) return;
  if (team.b == 0 && team.speaks() && team.lane == 0) job.shares.cut[team.share] = cursor.cut();
  if (!job.weight) return;
  float* const to = job.weight + (team.share * p.batch.count + team.b) * (p.d + 1);
  rows.store_weight(to);
  if (team.speaks() && team.lane == 0) to[p.d] = total;
}

template <class T, int V, bool kOne, class Act>
__global__ void __launch_bounds__(kEdgeThreads)
    edge_targets_kernel(const __grid_constant__ EdgeProblem p, const __grid_constant__ Job job,
                        const __grid_constant__ Act act) {
  targets_team<HeldTargets<T, V, kOne>>(p, job, act);
}

template <class Act>
__global__ void __launch_bounds__(kEdgeThreads, 2)
    edge_targets_loose_kernel(const __grid_constant__ EdgeProblem p,
                              const __grid_constant__ Job job, const __grid_constant__ Act act) {
  targets_team<LooseTargets>(p, job, act);
}

}  // namespace

void edge_backward(const EdgeProblem& given, const EdgeBackward& f, const Host& host) {
  const EdgeProblem p = with_values(given);
  Job job{f, edge_delta(p, f, host), {}, {}, nullptr, {}};
  const bool by_source = f.grad_key.data || f.grad_value.data;
  if (by_source)
    job.out.pairs = host.allocate<float2>(p.batch.count * p.edges);
  by_width(p, [&]<class T, int V>(Held<T, V> width) {
    job.shares = shares_for(p, p.by_target, width.kColumns, host);
    if (V && f.grad_key.data && !is_logistic(p.activation))
      job.out.signs = host.allocate<uint8_t>((p.batch.count * p.edges * V) << job.shares.shift);
    job.query = sums_for(p, job.shares, f.grad_query.data ? p.d : 0, 0, host);
    job.query.factor = gradient_factor(p);
    job.query.first = f.grad_query;
    if (f.grad_weight)
      job.weight = host.allocate<float>(job.shares.count * p.batch.count * (p.d + 1));
    by_activation(p, [&](auto act) {
      using Act = decltype(act);
      launch_teams(p, job.shares, [&](int64_t blocks) {
        if constexpr (V == 0)
          launch("edge_targets_loose", edge_targets_loose_kernel<Act>, blocks, kEdgeThreads, 0,
                 host.stream, p, job, act);
        else
          launch("edge_targets",
                 p.value.data ? edge_targets_kernel<T, V, false, Act>
                              : edge_targets_kernel<T, V, true, Act>,
                 blocks, kEdgeThreads, 0, host.stream, p, job, act);
      });
    });
  });
  if (f.grad_query.data) merge_sums(p, p.by_target, job.shares, job.query, host);
  if (f.grad_weight) finish_edge_weight(p, job.shares, job.weight, f.grad_weight, host);
  if (by_source) edge_sources(given, f, job.out, host);
}

}  // namespace attnkernels::cuda
