// Attention over edges, forward: (E1)-(E3) by an online softmax down the edges of every target.
//
// A team (edge_team.h) takes four edges at a time; its lanes hold the channels of the query, of the
// four keys and values, and of the context, which no other thread touches. The rows of the next
// four are requested as soon as these have been used, and the indices of the four after them a
// batch earlier, so a warp always has 2 KiB or more in flight.
//
// A lane sums its own channels of four scores; four sums over the team take 3 to 6 shuffles, and
// leave one score in each lane of a quad, so that each exponential is computed once per quad. Rows
// that 16 bytes do not fit are read from memory wherever they are needed (LooseForward).
#include "cuda/edge_rows.h"
#include "cuda/edge_sums.h"

namespace attnkernels::cuda {
namespace {

struct Job {
  EdgeForward out;
  Shares shares;
  EdgeStates parts;
};

// The rows of a team in its registers. kOne: the keys are the values.
template <class T, int V, bool kOne>
class HeldForward {
  using Wide = Table<T, V>;
  static constexpr int N = Wide::N, U = kOne ? 1 : kEdges, M = kOne ? 1 : N;
  const EdgeProblem& p_;
  const Wide query_, key_, value_, edge_key_;
  const Team& team_;
  Packed<V> query_row_{}, key_rows_[kEdges]{}, value_rows_[U]{};
  float q_[N], w_[N], c_[N], k_[kEdges][N], u_[U][M];

 public:
  static constexpr bool kChunked = false;

  __device__ __forceinline__ HeldForward(const EdgeProblem& p, const Job&, const Team& team)
      : p_(p), query_(p.query, p.batch, p.d, team), key_(p.key, p.batch, p.d, team),
        value_(p.value, p.batch, p.dv, team), edge_key_(p.edge_key, p.batch, p.d, team),
        team_(team) {
    load_weight<T, V>(w_, p, team);
    clear(c_);
  }
  // Load the rows of a batch.
  __device__ __forceinline__ void fetch(const Edges& edges, const Near& near) {
    if (edges.begins()) query_.load(query_row_, edges.node);
#pragma unroll
    for (int e = 0; e < kEdges; e++) {
      const int other = of_edge(near.other, e);
      key_.load(key_rows_[e], other);
      if constexpr (!kOne) value_.load(value_rows_[e], other);
    }
  }
  // Go to the batch that was loaded.
  __device__ __forceinline__ void turn(const Edges& edges, const Near& near) {
    unpack<T, V>(q_, query_row_);
    if (edges.begins()) clear(c_);
#pragma unroll
    for (int e = 0; e < kEdges; e++) {
      unpack<T, V>(k_[e], key_rows_[e]);
      if constexpr (!kOne) unpack<T, V>(u_[e], value_rows_[e]);
    }
    if constexpr (!kOne)
      if (p_.edge_key.data) add_edge_keys<T, V>(k_, edge_key_, edges, near);
  }
  template <class Act>
  __device__ __forceinline__ void sums(float (&x)[kEdges], const Act& act) const {
#pragma unroll
    for (int e = 0; e < kEdges; e++) {
      x[e] = 0;
#pragma unroll
      for (int t = 0; t < N; t++) x[e] = fmaf(w_[t], act.value(q_[t] + k_[e][t]), x[e]);
    }
  }
  // context <- alpha context + sum of a[e] value[e] over the edges that are in `live`.
  __device__ __forceinline__ void add(float alpha, const float (&a)[kEdges], unsigned live) {
#pragma unroll
    for (int t = 0; t < N; t++) c_[t] *= alpha;
#pragma unroll
    for (int e = 0; e < kEdges; e++) {
      if (!(live >> e & 1)) continue;  // its row may be of another edge, or NaN
#pragma unroll
      for (int t = 0; t < N; t++) {
        if constexpr (kOne)
          c_[t] = fmaf(a[e], k_[e][t], c_[t]);
        else
          c_[t] = fmaf(a[e], u_[e][t], c_[t]);
      }
    }
  }
  // Store the context times `scale` in a row of `to`, a context or parts of one.
  __device__ __forceinline__ void store(float* to, int64_t row, float scale) const {
    float x[N];
#pragma unroll
    for (int t = 0; t < N; t++) x[t] = scale * c_[t];
    dense_table<T, V>(to, p_.dv, team_).store(row, x);
  }
};

class LooseForward {
  const EdgeProblem& p_;
  const Team& team_;
  const Rows query_, key_, value_, edge_key_, weight_;
  int node_ = 0, others_[kEdges], edges_[kEdges];
  float4 c_[kLooseQuads];

 public:
  static constexpr bool kChunked = true;

  __device__ __forceinline__ LooseForward(const EdgeProblem& p, const Job&, const Team& team)
      : p_(p), team_(team), query_(rows_of(p.query, p, team, p.d)),
        key_(rows_of(p.key, p, team, p.d)),
        value_(rows_of(p.value.data ? p.value : p.key, p, team, p.dv)),
        edge_key_(rows_of(p.edge_key, p, team, p.d)), weight_(rows_of(p.weight, p, team, p.d)) {}
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
      for (int v = 0; v < kLooseQuads; v++) c_[v] = make_float4(0, 0, 0, 0);
  }
  template <class Act>
  __device__ __forceinline__ void sums(float (&x)[kEdges], const Act& act) const {
    loose_sums(x, p_, team_, act, query_, key_, edge_key_, weight_, node_, others_, edges_);
  }
  __device__ __forceinline__ void add(float alpha, const float (&a)[kEdges], unsigned live) {
#pragma unroll
    for (int v = 0; v < kLooseQuads; v++) {
      c_[v] = make_float4(alpha * c_[v].x, alpha * c_[v].y, alpha * c_[v].z, alpha * c_[v].w);
      const int t = loose_column(team_, v);
      if (t >= p_.dv) continue;
#pragma unroll
      for (int e = 0; e < kEdges; e++)
        if (live >> e & 1) add_scaled(c_[v], a[e], value_.four(others_[e], t, p_.dv));
    }
  }
  __device__ __forceinline__ void store(float* to, int64_t row, float scale) const {
#pragma unroll
    for (int v = 0; v < kLooseQuads; v++) {
      const float x[4] = {c_[v].x, c_[v].y, c_[v].z, c_[v].w};
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int t = loose_column(team_, v) + e;
        if (t < p_.dv) to[row * p_.dv + t] = scale * x[e];
      }
    }
  }
};

template <class Held, class Act>
__device__ __forceinline__ void forward_team(const EdgeProblem& p, const Job& job, const Act& act) {
  const Team team(p, job.shares, Held::kChunked);
  Held rows(p, job, team);
  Cursor cursor(p.by_target, job.shares, team, p.edges);
  const bool own = p.edge_key.data || p.edge_bias.data || job.out.weights;
  const int64_t bias_at = offset(p.batch, team.b, p.edge_bias.lead);
  Edges now = cursor.next();
  Near here = near(p.by_target, now, own);
  Edges then = cursor.next();
  Near there = near(p.by_target, then, own);
  rows.fetch(now, here);
  float bias = bias_of(p, bias_at, here), highest = -kInfinity, total = 0;

  while (__any_sync(kWarp, now.node >= 0)) {
    rows.turn(now, here);
    if (now.begins()) {
      highest = -kInfinity;
      total = 0;
    }

    float x[kEdges], a[kEdges];
    rows.sums(x, act);
    const bool lives = here.other >= 0 && bias != -kInfinity;
    const float sum = team_sum(x, team.lanes);
    const float s = lives ? fmaf(p.scale, sum, bias) : -kInfinity;
    if (job.out.weights && team.speaks() && here.other >= 0)
      job.out.weights[team.row(p, p.edges, here.edge)] = s;
    float top = max_nan(s, __shfl_xor_sync(kWarp, s, 1));
    top = max_nan(max_nan(top, __shfl_xor_sync(kWarp, top, 2)), highest);
    const float finite = top == -kInfinity ? 0.f : top, alpha = exp_fast(highest - finite);
    float y = exp_fast(s - finite), some = y + __shfl_xor_sync(kWarp, y, 1);
    some += __shfl_xor_sync(kWarp, some, 2);
    total = fmaf(total, alpha, some);
    highest = top;
    if (p.seed) y = dropped(y, kept(p, team.b, 0, now.first + threadIdx.x % kEdges));
#pragma unroll
    for (int e = 0; e < kEdges; e++) a[e] = of_edge(y, e);
    rows.add(alpha, a, edges_where(lives));
    rows.fetch(then, there);
    bias = bias_of(p, bias_at, there);

    if (now.ends() && !now.part()) {
      const int64_t row = team.row(p, p.n, now.node);
      rows.store(job.out.context, row, total == 0 ? 0.f : 1.f / total);
      if (team.speaks() && team.lane == 0) {
        job.out.lse[row] = highest + logf(total);
        job.out.softmax[2 * row] = highest;
        job.out.softmax[2 * row + 1] = total;
      }
    } else if (now.ends()) {
      const int64_t row = team.slot(p, now);
      rows.store(job.parts.sums, row, 1);
      if (team.speaks() && team.lane == 0) job.parts.softmax[row] = make_float2(highest, total);
    }
    now = then;
    here = there;
    then = cursor.next();
    there = near(p.by_target, then, own);
  }
  if (team.works && team.b == 0 && team.speaks() && team.lane == 0)
    job.shares.cut[team.share] = cursor.cut();
}

template <class T, int V, bool kOne, class Act>
__global__ void __launch_bounds__(kEdgeThreads, kBlocks<kPack<T> * V, (kOne ? 5 : 4)>)
    edge_forward_kernel(const __grid_constant__ EdgeProblem p, const __grid_constant__ Job job,
                        const __grid_constant__ Act act) {
  forward_team<HeldForward<T, V, kOne>>(p, job, act);
}

template <class Act>
__global__ void __launch_bounds__(kEdgeThreads, 2)
    edge_forward_loose_kernel(const __grid_constant__ EdgeProblem p,
                              const __grid_constant__ Job job, const __grid_constant__ Act act) {
  forward_team<LooseForward>(p, job, act);
}

}  // namespace

void edge_forward(const EdgeProblem& given, EdgeForward out, const Host& host) {
  const EdgeProblem p = with_values(given);
  if (!out.softmax) out.softmax = host.allocate<float>(2 * p.batch.count * p.n);
  by_width(p, [&]<class T, int V>(Held<T, V> width) {
    Job job{out, shares_for(p, p.by_target, width.kColumns, host), {}};
    job.parts = states_for(p, job.shares, host);
    by_activation(p, [&](auto act) {
      using Act = decltype(act);
      launch_teams(p, job.shares, [&](int64_t blocks) {
        if constexpr (V == 0)
          launch("edge_forward_loose", edge_forward_loose_kernel<Act>, blocks, kEdgeThreads, 0,
                 host.stream, p, job, act);
        else
          launch("edge_forward",
                 p.value.data ? edge_forward_kernel<T, V, false, Act>
                              : edge_forward_kernel<T, V, true, Act>,
                 blocks, kEdgeThreads, 0, host.stream, p, job, act);
      });
    });
    merge_states(p, job.shares, job.parts, out, host);
  });
  finish_weights(p, out, host);
}

}  // namespace attnkernels::cuda
