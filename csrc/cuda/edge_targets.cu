// Attention over edges, the first pass of the gradients, over the edges of every target: ds of
// (E4), dq, dw, and the gradients of what edges have of their own. It works as the forward does
// (edge_forward.cu), with the rows of the gradient of the context beside those of the query, and
// leaves ds and the weights that were used, per edge and head, to the pass over sources.
#include "cuda/edge_target_rows.h"

namespace attnkernels::cuda {
namespace {

template <class Rows, class Act>
__device__ __forceinline__ void targets_team(const EdgeProblem& p, const TargetsJob& job,
                                             const Act& act) {
  const EdgeBackward& f = job.f;
  const Team team(p, job.shares, Rows::kChunked);
  Rows rows(p, job, team);
  Cursor cursor(p.by_target, job.shares, team, p.edges);
  const bool given = f.weights && !p.seed;  // the weights
  const bool own = p.edge_key.data || p.edge_bias.data || f.grad_weights || given;
  const int64_t bias_at = offset(p.batch, team.b, p.edge_bias.lead);
  auto row_of = [&](const Edges& edges) { return team.row(p, p.n, edges.node); };
  // Numbers of a target, and of the edge of this lane.
  struct Numbers {
    float2 softmax = {};
    float delta = 0, bias = 0, grad_weight = 0;
  };
  auto numbers = [&](Numbers& to, const Edges& edges, const Near& near) {
    if (edges.begins()) {
      to.softmax = job.delta.softmax[row_of(edges)];
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
    float a = lives ? weigh(fmaf(p.scale, sum, at.bias), at.softmax) : 0.f;
    if (given && lives) a = f.weights[team.row(p, p.edges, here.edge)];
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
__global__ void __launch_bounds__(kEdgeThreads, kBlocks<kPack<T> * V, 3>)
    edge_targets_kernel(const __grid_constant__ EdgeProblem p,
                        const __grid_constant__ TargetsJob job, const __grid_constant__ Act act) {
  targets_team<HeldTargets<T, V, kOne>>(p, job, act);
}

template <class Act>
__global__ void __launch_bounds__(kEdgeThreads, 2)
    edge_targets_loose_kernel(const __grid_constant__ EdgeProblem p,
                              const __grid_constant__ TargetsJob job,
                              const __grid_constant__ Act act) {
  targets_team<LooseTargets>(p, job, act);
}

}  // namespace

void edge_backward(const EdgeProblem& given, const EdgeBackward& f, const Host& host) {
  const EdgeProblem p = with_values(given);
  TargetsJob job{f, edge_delta(p, f, host), {}, {}, nullptr, {}};
  const bool by_source = f.grad_key.data || f.grad_value.data;
  if (by_source) job.out.pairs = host.allocate<float2>(p.batch.count * p.edges);
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
