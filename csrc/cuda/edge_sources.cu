// Attention over edges, the second pass of the gradients, over the edges of every source: dk and du
// from ds and the weights of the first pass. A team works as in the forward (edge_forward.cu); the
// rows that it gathers are those of the gradient of the context and, unless the signs of q + k are
// all that matters, of the queries.
#include "cuda/edge_gradients.h"

namespace attnkernels::cuda {
namespace {

struct Job {
  EdgeBackward f;
  Shares shares;
  EdgeSums sums;
  EdgePairs from;
};

template <class T, int V, class Act>
class HeldSources {
  using Wide = Table<T, V>;
  using Floats = FloatTable<T, V>;
  static constexpr bool kSigns = !Act::kLogistic;
  static constexpr int N = Wide::N, Q = kSigns ? 1 : kEdges, M = kSigns ? 1 : N;
  const EdgeProblem& p_;
  const Job& job_;
  const Team& team_;
  const Wide query_, key_, edge_key_;
  const Floats grad_context_;
  Packed<V> key_row_{}, query_rows_[Q]{};
  Packed<N / 4> grad_rows_[kEdges]{};
  unsigned signs_[kEdges][V]{};
  float k_[M], w_[N], dk_[N], du_[N], q_[Q][M], g_[kEdges][N];

 public:
  static constexpr bool kChunked = false;

  __device__ __forceinline__ HeldSources(const EdgeProblem& p, const Job& job, const Team& team)
      : p_(p), job_(job), team_(team), query_(p.query, p.batch, p.d, team),
        key_(p.key, p.batch, p.d, team), edge_key_(p.edge_key, p.batch, p.d, team),
        grad_context_(result_table<T, V>(job.f.grad_context, p, p.n, p.dv, team)) {
    load_weight<T, V>(w_, p, team);
    clear(dk_);
    clear(du_);
  }
  __device__ __forceinline__ void fetch(const Edges& edges, const Near& near) {
    if constexpr (!kSigns)
      if (edges.begins()) key_.load(key_row_, edges.node);
#pragma unroll
    for (int e = 0; e < kEdges; e++) {
      const int other = of_edge(near.other, e);
      if constexpr (kSigns) {
        const int place = of_edge(near.edge, e);
        const uint8_t* const at = signs_at<V>(job_.from.signs, p_, team_, place);
#pragma unroll
        for (int v = 0; v < V; v++)
          if (other >= 0 && job_.from.signs) signs_[e][v] = at[v * team_.lanes];
      } else {
        query_.load(query_rows_[e], other);
      }
      if (job_.f.grad_context) grad_context_.load(grad_rows_[e], other);
    }
  }
  __device__ __forceinline__ void turn(const Edges& edges, const Near& near) {
    if (edges.begins()) {
      clear(dk_);
      clear(du_);
    }
#pragma unroll
    for (int e = 0; e < kEdges; e++) unpack_floats(g_[e], grad_rows_[e]);
    if constexpr (!kSigns) {
      unpack<T, V>(k_, key_row_);
#pragma unroll
      for (int e = 0; e < kEdges; e++) unpack<T, V>(q_[e], query_rows_[e]);
      if (!p_.edge_key.data) return;
      Near caller = near;  // the places in the caller's order
      if (near.other >= 0) caller.edge = static_cast<int>(p_.by_target.edge[near.edge]);
      add_edge_keys<T, V>(q_, edge_key_, edges, caller);
    }
  }
  __device__ __forceinline__ void add(const float (&ds)[kEdges], const float (&a)[kEdges],
                                      unsigned live, const Act& act) {
#pragma unroll
    for (int e = 0; e < kEdges; e++) {
      if (!(live >> e & 1)) continue;
      const EdgeTerm<Act> term(act, ds[e]);
#pragma unroll
      for (int t = 0; t < N; t++) {
        if constexpr (kSigns)
          dk_[t] += term.by_sign(signs_[e][t / Wide::K] >> t % Wide::K & 1);
        else
          dk_[t] += term.to_x(q_[e][t] + k_[t]);
        du_[t] = fmaf(a[e], g_[e][t], du_[t]);
      }
    }
  }
  __device__ __forceinline__ void store(int64_t row) const {
    float x[N];
#pragma unroll
    for (int t = 0; t < N; t++)
      x[t] = weighted(job_.sums.factor * w_[t], dk_[t], job_.sums.joined ? du_[t] : 0.f);
    if (job_.f.grad_key.data) Table<T, V>(job_.f.grad_key.data, 0, p_.d, p_.d, team_).store(row, x);
    if (job_.f.grad_value.data)
      Table<T, V>(job_.f.grad_value.data, 0, p_.dv, p_.dv, team_).store(row, du_);
  }
  __device__ __forceinline__ void store_part(int64_t slot) const {
    const EdgeSums& sums = job_.sums;
    if (sums.d) dense_table<T, V>(sums.first_parts(), p_.d, team_).store(slot, dk_);
    if (sums.more) dense_table<T, V>(sums.second_parts(), p_.dv, team_).store(slot, du_);
  }
};

class LooseSources {
  const EdgeProblem& p_;
  const Job& job_;
  const Team& team_;
  const Rows query_, key_, edge_key_, grad_context_;
  int node_ = -1, others_[kEdges], edges_[kEdges];
  float4 dk_[kLooseQuads], du_[kLooseQuads];

 public:
  static constexpr bool kChunked = true;

  __device__ __forceinline__ LooseSources(const EdgeProblem& p, const Job& job, const Team& team)
      : p_(p), job_(job), team_(team), query_(rows_of(p.query, p, team, p.d)),
        key_(rows_of(p.key, p, team, p.d)), edge_key_(rows_of(p.edge_key, p, team, p.d)),
        grad_context_(float_rows(job.f.grad_context, p, team, p.n, p.dv)) {}
  __device__ __forceinline__ void fetch(const Edges&, const Near&) {}
  __device__ __forceinline__ void turn(const Edges& edges, const Near& near) {
    node_ = edges.node;
    int edge = 0;
    if (p_.edge_key.data && near.other >= 0) edge = static_cast<int>(p_.by_target.edge[near.edge]);
#pragma unroll
    for (int e = 0; e < kEdges; e++) {
      others_[e] = of_edge(near.other, e);
      edges_[e] = of_edge(edge, e);
    }
    if (edges.begins())
#pragma unroll
      for (int v = 0; v < kLooseQuads; v++) dk_[v] = du_[v] = make_float4(0, 0, 0, 0);
  }
  template <class Act>
  __device__ __forceinline__ void add(const float (&ds)[kEdges], const float (&a)[kEdges],
                                      unsigned live, const Act& act) {
#pragma unroll
    for (int v = 0; v < kLooseQuads; v++) {
      const int t = loose_column(team_, v);
#pragma unroll
      for (int e = 0; e < kEdges; e++) {
        if (!(live >> e & 1)) continue;
        if (t < p_.d) {
          float4 k = key_.four(node_, t, p_.d);
          if (p_.edge_key.data) add_scaled(k, 1, edge_key_.four(edges_[e], t, p_.d));
          add_scaled(k, 1, query_.four(others_[e], t, p_.d));
          const EdgeTerm<Act> term(act, ds[e]);
#pragma unroll
          for (int c = 0; c < 4; c++) element(dk_[v], c) += term.to_x(element(k, c));
        }
        if (t < p_.dv && job_.f.grad_context)
          add_scaled(du_[v], a[e], grad_context_.four(others_[e], t, p_.dv));
      }
    }
  }
  __device__ __forceinline__ void store(int64_t row) const {
    const Output &key = job_.f.grad_key, &value = job_.f.grad_value;
    for_loose_columns(team_, [&](int v, int c, int t) {
      if (key.data && t < p_.d) {
        const int64_t at = offset(p_.batch, team_.b, p_.weight.lead) + t * p_.weight.col;
        const float w = job_.sums.factor * load(p_.weight.data, p_.weight.dtype, at);
        const float x =
            weighted(w, element(dk_[v], c), job_.sums.joined ? element(du_[v], c) : 0.f);
        ::attnkernels::cuda::store(key.data, key.dtype, row * p_.d + t, x);
      }
      if (value.data && t < p_.dv)
        ::attnkernels::cuda::store(value.data, value.dtype, row * p_.dv + t, element(du_[v], c));
    });
  }
  __device__ __forceinline__ void store_part(int64_t slot) const {
    for_loose_columns(team_, [&](int v, int c, int t) {
      if (t < job_.sums.d) job_.sums.first_parts()[slot * p_.d + t] = element(dk_[v], c);
      if (t < job_.sums.more) job_.sums.second_parts()[slot * p_.dv + t] = element(du_[v], c);
    });
  }
};

template <class Rows, class Act>
__device__ __forceinline__ void sources_team(const EdgeProblem& p, const Job& job, const Act& act) {
  const Team team(p, job.shares, Rows::kChunked);
  Rows rows(p, job, team);
  Cursor cursor(p.by_source, job.shares, team, p.edges);
  auto pair_of = [&](const Near& near) {
    return near.other < 0 ? make_float2(0, kExcluded)
                          : job.from.pairs[near.edge * p.batch.count + team.b];
  };
  Edges now = cursor.next();
  Near here = near(p.by_source, now, true);
  Edges then = cursor.next();
  Near there = near(p.by_source, then, true);
  rows.fetch(now, here);
  float2 pair = pair_of(here);

  while (__any_sync(kWarp, now.node >= 0)) {
    rows.turn(now, here);
    float ds[kEdges], a[kEdges];
#pragma unroll
    for (int e = 0; e < kEdges; e++) {
      ds[e] = of_edge(pair.x, e);
      a[e] = of_edge(pair.y, e);
    }
    rows.add(ds, a, edges_where(!(pair.y < 0)), act);
    rows.fetch(then, there);
    pair = pair_of(there);
    if (now.ends() && !now.part()) rows.store(team.row(p, p.m, now.node));
    if (now.ends() && now.part()) rows.store_part(team.slot(p, now));
    now = then;
    here = there;
    then = cursor.next();
    there = near(p.by_source, then, true);
  }
  if (team.works && team.b == 0 && team.speaks() && team.lane == 0)
    job.shares.cut[team.share] = cursor.cut();
}

template <class T, int V, class Act>
__global__ void __launch_bounds__(kEdgeThreads, kBlocks<kPack<T> * V, 4>)
    edge_sources_kernel(const __grid_constant__ EdgeProblem p, const __grid_constant__ Job job,
                        const __grid_constant__ Act act) {
  sources_team<HeldSources<T, V, Act>>(p, job, act);
}

template <class Act>
__global__ void __launch_bounds__(kEdgeThreads, 2)
    edge_sources_loose_kernel(const __grid_constant__ EdgeProblem p,
                              const __grid_constant__ Job job, const __grid_constant__ Act act) {
  sources_team<LooseSources>(p, job, act);
}

}  // namespace

void edge_sources(const EdgeProblem& p, const EdgeBackward& f, const EdgePairs& from,
                  const Host& host) {
  by_width(p, [&]<class T, int V>(Held<T, V> width) {
    Job job{f, shares_for(p, p.by_source, width.kColumns, host), {}, from};
    const bool joined = !p.value.data && f.grad_key.data, values = joined || f.grad_value.data;
    job.sums = sums_for(p, job.shares, f.grad_key.data ? p.d : 0, values ? p.dv : 0, host);
    job.sums.factor = gradient_factor(p);
    job.sums.joined = joined;
    job.sums.first = f.grad_key;
    job.sums.second = f.grad_value;
    by_activation(p, [&](auto act) {
      using Act = decltype(act);
      launch_teams(p, job.shares, [&](int64_t blocks) {
        if constexpr (V == 0)
          launch("edge_sources_loose", edge_sources_loose_kernel<Act>, blocks, kEdgeThreads, 0,
                 host.stream, p, job, act);
        else
          launch("edge_sources", edge_sources_kernel<T, V, Act>, blocks, kEdgeThreads, 0,
                 host.stream, p, job, act);
      });
    });
    merge_sums(p, p.by_source, job.shares, job.sums, host);
  });
}

}  // namespace attnkernels::cuda
