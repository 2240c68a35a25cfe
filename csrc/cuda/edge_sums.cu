// What comes before and after the passes over edges: parts of nodes that were cut are merged in
// their order, by blocks that share columns and parts among their threads; scores become weights;
// delta of (E4). All are bound by memory, and small beside the passes.
#include "cuda/delta.h"
#include "cuda/edge_sums.h"

namespace attnkernels::cuda {
namespace {

constexpr int kMerge = 256;       // threads of a block that merges
constexpr int kMergeShares = 16;  // shares that it looks through
constexpr int kWeightWarps = 32;

// Call merge(node, its share, its number of parts) for every node that is cut first in a share of
// this block, one after another, with all threads; return the leading index.
template <class F>
__device__ __forceinline__ void for_cut(const EdgeProblem& p, const Adjacency& a, const Shares& s,
                                        const F& merge) {
  SHARED_ARRAY(int, cuts, kMergeShares);
  const int64_t task = blockIdx.x / p.batch.count;
  const int b = static_cast<int>(blockIdx.x - task * p.batch.count);
  const int first = static_cast<int>(task) * kMergeShares;
  if (threadIdx.x < kMergeShares)
    cuts[threadIdx.x] = first + static_cast<int>(threadIdx.x) < s.count
                            ? s.cut[first + static_cast<int>(threadIdx.x)]
                            : -1;
  __syncthreads();
  for (int k = 0; k < kMergeShares; k++)
    if (cuts[k] >= 0) merge(b, cuts[k], first + k, parts_of(a, s, first + k, cuts[k]));
}

inline int64_t merge_blocks(const EdgeProblem& p, const Shares& s) {
  return ceil_div(s.count, kMergeShares) * p.batch.count;
}

// Return the sum or the maximum of x over the threads of a block, in all of them.
template <class F>
__device__ __forceinline__ float over_block(float (&shared)[kMerge], float x, const F& combine) {
  shared[threadIdx.x] = x;
  __syncthreads();
  for (int half = kMerge / 2; half; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half)
      shared[threadIdx.x] = combine(shared[threadIdx.x], shared[threadIdx.x + half]);
    __syncthreads();
  }
  const float found = shared[0];
  __syncthreads();
  return found;
}

// Call store(column, sum of part(k, column) over k) for all columns.
template <class F, class G>
__device__ __forceinline__ void sum_parts(float (&shared)[kMerge], int columns, int parts,
                                          const F& part, const G& store) {
  for (int first = 0; first < columns; first += kMerge) {
    const int width = min(columns - first, kMerge), groups = kMerge / width;
    const int group = threadIdx.x / width, column = first + threadIdx.x % width;
    float sum = 0;
    if (group < groups)
#pragma unroll 4
      for (int k = group; k < parts; k += groups) sum += part(k, column);
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (group == 0) {
      for (int g = 1; g < groups; g++) sum += shared[g * width + threadIdx.x];
      store(column, sum);
    }
    __syncthreads();
  }
}

__device__ __forceinline__ int64_t by_row(const EdgeProblem& p, int b, int rows, int64_t i) {
  const int outer = b / p.together;
  return (outer * int64_t{rows} + i) * p.together + b - outer * p.together;
}

__global__ void __launch_bounds__(kMerge, 2)
    edge_merge_states_kernel(const __grid_constant__ EdgeProblem p,
                             const __grid_constant__ Shares shares,
                             const __grid_constant__ EdgeStates from, EdgeForward out) {
  SHARED_ARRAY(float, shared, kMerge);
  for_cut(p, p.by_target, shares, [&](int b, int node, int share, int parts) {
    auto slot = [&](int k) { return slot_of(share, k) * p.batch.count + b; };
    float high = -kInfinity, total = 0;
    for (int k = threadIdx.x; k < parts; k += kMerge) high = max_nan(high, from.softmax[slot(k)].x);
    high = over_block(shared, high, [](float x, float y) { return max_nan(x, y); });
    const float finite = high == -kInfinity ? 0.f : high;
    for (int k = threadIdx.x; k < parts; k += kMerge) {
      const float2 part = from.softmax[slot(k)];
      total = fmaf(exp_fast(part.x - finite), part.y, total);
    }
    total = over_block(shared, total, [](float x, float y) { return x + y; });
    const int64_t row = by_row(p, b, p.n, node);
    const float scale = total == 0 ? 0.f : 1.f / total;
    sum_parts(
        shared, p.dv, parts,
        [&](int k, int column) {
          return exp_fast(from.softmax[slot(k)].x - finite) * from.sums[slot(k) * p.dv + column];
        },
        [&](int column, float sum) { out.context[row * p.dv + column] = scale * sum; });
    if (threadIdx.x == 0) {
      out.lse[row] = high + logf(total);
      out.softmax[2 * row] = high;
      out.softmax[2 * row + 1] = total;
    }
  });
}

__global__ void __launch_bounds__(kMerge, 2)
    edge_merge_sums_kernel(const __grid_constant__ EdgeProblem p,
                           const __grid_constant__ Adjacency a,
                           const __grid_constant__ Shares shares,
                           const __grid_constant__ EdgeSums sums) {
  SHARED_ARRAY(float, shared, kMerge);
  for_cut(p, a, shares, [&](int b, int node, int share, int parts) {
    const int64_t row = by_row(p, b, a.nodes, node);
    const int64_t weight_at = offset(p.batch, b, p.weight.lead);
    auto slot = [&](int k) { return slot_of(share, k) * p.batch.count + b; };
    auto second = [&](int k, int t) { return sums.second_parts()[slot(k) * sums.more + t]; };
    if (sums.first.data)
      sum_parts(
          shared, sums.d, parts,
          [&](int k, int t) {
            const float w = load(p.weight.data, p.weight.dtype, weight_at + t * p.weight.col);
            const float x = weighted(sums.factor * w, sums.first_parts()[slot(k) * sums.d + t]);
            return sums.joined ? x + second(k, t) : x;
          },
          [&](int t, float x) { store(sums.first.data, sums.first.dtype, row * sums.d + t, x); });
    if (sums.second.data)
      sum_parts(shared, sums.more, parts, second, [&](int t, float x) {
        store(sums.second.data, sums.second.dtype, row * sums.more + t, x);
      });
  });
}

// A thread per edge, in the order by source, and leading index.
__global__ void __launch_bounds__(kMerge)
    edge_weights_kernel(const __grid_constant__ EdgeProblem p, EdgeForward out) {
  const int64_t id = blockIdx.x * int64_t{kMerge} + threadIdx.x, k = id / p.batch.count;
  if (k >= p.edges) return;
  const int b = static_cast<int>(id - k * p.batch.count);
  const int64_t place = p.by_source.edge[k];
  float& x = out.weights[by_row(p, b, p.edges, p.by_target.edge[place])];
  const float a = weigh(x, as_weights(out.softmax, by_row(p, b, p.n, p.by_source.other[k])));
  x = p.seed ? dropped(a, kept(p, b, 0, static_cast<int>(place))) : a;
}

// The sums of grad_weights times weights over the edges of every target, and of the parts of those
// that are cut.
struct Products {
  float *rows, *parts;
};

__global__ void __launch_bounds__(kEdgeThreads)
    edge_products_kernel(const __grid_constant__ EdgeProblem p,
                         const __grid_constant__ Shares shares, EdgeBackward f, Products out) {
  const Team team(p, shares, false);
  Cursor cursor(p.by_target, shares, team, p.edges);
  float sum = 0;
  Edges now = cursor.next();
  while (__any_sync(kWarp, now.node >= 0)) {
    const Near here = near(p.by_target, now, true);
    if (now.begins()) sum = 0;
    const int64_t row = team.row(p, p.edges, here.edge);
    if (here.other >= 0) sum = fmaf(f.grad_weights[row], f.weights[row], sum);
    float whole = sum + __shfl_xor_sync(kWarp, sum, 1);
    whole += __shfl_xor_sync(kWarp, whole, 2);
    if (now.ends() && team.lane == 0)
      (now.part() ? out.parts[team.slot(p, now)] : out.rows[team.row(p, p.n, now.node)]) = whole;
    now = cursor.next();
  }
}

// A team of `lanes` lanes per row of the context.
__global__ void __launch_bounds__(kEdgeThreads)
    edge_delta_kernel(const __grid_constant__ EdgeProblem p, const __grid_constant__ Shares shares,
                      EdgeBackward f, Products products, EdgeDelta delta, int shift) {
  const int lanes = 1 << shift, lane = threadIdx.x & (lanes - 1);
  const int64_t row = (blockIdx.x * int64_t{kEdgeThreads} + threadIdx.x) >> shift;
  const bool works = row < p.batch.count * p.n;
  float x = 0, y = 0;
  if (works && f.grad_context)
    for (int c = lane; c < p.dv; c += lanes)
      x = fmaf(f.grad_context[row * p.dv + c], f.context[row * p.dv + c], x);
  if (works && f.grad_weights) {
    const int64_t inner = row % p.together, at = row / p.together;
    const int i = static_cast<int>(at % p.n);
    const int64_t b = at / p.n * p.together + inner, begin = p.by_target.begin[i];
    if (p.by_target.begin[i + 1] - begin < shares.size) {
      if (lane == 0) y = products.rows[row];
    } else {
      const int share = static_cast<int>((begin + i) / shares.size);
      for (int k = lane; k < parts_of(p.by_target, shares, share, i); k += lanes)
        y += products.parts[slot_of(share, k) * p.batch.count + b];
    }
  }
#pragma unroll 1
  for (int bit = lanes / 2; bit; bit /= 2) {
    x += __shfl_xor_sync(kWarp, x, bit);
    y += __shfl_xor_sync(kWarp, y, bit);
  }
  if (!works || lane) return;
  if (delta.weights) delta.weights[row] = y;
  delta.total[row] = f.grad_lse ? x + y - f.grad_lse[row] : x + y;
  delta.softmax[row] = as_weights(f.softmax, f.lse, row);
}

// A block per leading index and 32 columns: the sums of its warps, then those of its threads.
__global__ void __launch_bounds__(32 * kWeightWarps)
    edge_weight_kernel(const __grid_constant__ EdgeProblem p, const float* sums, int copies,
                       float* out, bool logistic, float span) {
  SHARED_ARRAY(float, columns, (32 * kWeightWarps));
  SHARED_ARRAY(float, totals, (32 * kWeightWarps));
  const int tiles = static_cast<int>(ceil_div(p.d, 32)), warp = threadIdx.x / 32;
  const int64_t b = blockIdx.x / tiles;
  const int t = blockIdx.x % tiles * 32 + threadIdx.x % 32;
  float x = 0, total = 0;
#pragma unroll 4
  for (int k = warp; k < copies; k += kWeightWarps) {
    const float* const row = sums + (k * p.batch.count + b) * (p.d + 1);
    x += t < p.d ? row[t] : 0.f;
    total += row[p.d];
  }
  columns[threadIdx.x] = x;
  totals[threadIdx.x] = total;
  __syncthreads();
  if (warp || t >= p.d) return;
  for (int w = 1; w < kWeightWarps; w++) {
    x += columns[w * 32 + threadIdx.x];
    total += totals[w * 32 + threadIdx.x];
  }
  out[b * p.d + t] = p.scale * (logistic ? total - span * x : x);  // f = 1 - span r
}

}  // namespace

EdgeStates states_for(const EdgeProblem& p, const Shares& s, const Host& host) {
  return {host.allocate<float2>(s.slots(p)), host.allocate<float>(s.slots(p) * p.dv)};
}

void merge_states(const EdgeProblem& p, const Shares& s, const EdgeStates& from,
                  const EdgeForward& out, const Host& host) {
  launch("edge_merge_states", edge_merge_states_kernel, merge_blocks(p, s), kMerge, 0, host.stream,
         p, s, from, out);
}

void finish_weights(const EdgeProblem& p, const EdgeForward& out, const Host& host) {
  if (out.weights)
    launch("edge_weights", edge_weights_kernel, ceil_div(p.batch.count * p.edges, kMerge), kMerge,
           0, host.stream, p, out);
}

EdgeSums sums_for(const EdgeProblem& p, const Shares& s, int d, int more, const Host& host) {
  EdgeSums sums;
  sums.slots = s.slots(p);
  sums.parts = host.allocate<float>(sums.slots * (d + more));
  sums.d = d;
  sums.more = more;
  return sums;
}

void merge_sums(const EdgeProblem& p, const Adjacency& a, const Shares& s, const EdgeSums& sums,
                const Host& host) {
  launch("edge_merge_sums", edge_merge_sums_kernel, merge_blocks(p, s), kMerge, 0, host.stream, p,
         a, s, sums);
}

void finish_edge_weight(const EdgeProblem& p, const Shares& s, const float* sums, float* out,
                        const Host& host) {
  launch("edge_weight", edge_weight_kernel, ceil_div(p.d, 32) * p.batch.count, 32 * kWeightWarps, 0,
         host.stream, p, sums, s.count, out, is_logistic(p.activation),
         static_cast<float>(info(p.activation).span));
}

EdgeDelta edge_delta(const EdgeProblem& p, const EdgeBackward& f, const Host& host) {
  const int64_t rows = p.batch.count * p.n;
  EdgeDelta delta{host.allocate<float>(rows), nullptr, host.allocate<float2>(rows)};
  Shares shares;
  Products products{};
  if (f.grad_weights) {
    delta.weights = host.allocate<float>(rows);
    shares = shares_for(p, p.by_target, std::max({p.d, p.dv, 1}), host);  // of a quad each
    products = {host.allocate<float>(rows), host.allocate<float>(shares.slots(p))};
    launch_teams(p, shares, [&](int64_t blocks) {
      launch("edge_products", edge_products_kernel, blocks, kEdgeThreads, 0, host.stream, p, shares,
             f, products);
    });
  }
  int shift = 2;
  while (shift < 5 && 4 << shift < p.dv) shift++;
  launch("edge_delta", edge_delta_kernel, ceil_div(rows << shift, kEdgeThreads), kEdgeThreads, 0,
         host.stream, p, shares, f, products, delta, shift);
  return delta;
}

}  // namespace attnkernels::cuda
