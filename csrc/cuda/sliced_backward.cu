// The backward of small problems from slices, see sliced.h: (E4) with one warp per row, then (E5)
// and (E6) with one block per tile and 64 hidden units, and the gradient of value with one per 64
// keys and 64 columns. Shared memory: one tile of ds, or of weights, 17 KiB.
#include "cuda/delta.h"
#include "cuda/outer.h"
#include "cuda/sliced.h"
#include "cuda/sweep_tile.h"

namespace attnkernels::cuda {
namespace {

constexpr int kUnits = 32 * (kThreads / 32) / kHalves;  // of a block: one item per warp
constexpr int kWide = 64;                               // columns of a block

struct Job {
  Backward f;
  Delta delta;
  Sums sums;
  SliceJob slices;
  float *ds, *used;  // (batch, n, m): gradients of scores, and weights after dropout
};

// One warp per row, with lanes along the keys: ds and the weights after dropout, (E4).
__global__ void __launch_bounds__(kThreads)
    ds_kernel(const __grid_constant__ Problem p, const __grid_constant__ Job job) {
  const Backward& f = job.f;
  const WarpRow at(p);
  if (!at.exists()) return;
  const auto [rows, row, b, mask_at, lane, i, keys] = at;
  float total = 0;
  auto put = [&](int j, float ds) {
    job.ds[row * p.m + j] = ds;
    total += ds;
    if (f.grad_mask && ds != 0)
      atomicAdd(f.grad_mask + offset(p.batch, b, f.mask_lead) + i * f.mask_row + j * f.mask_col,
                ds);
  };
  int most_key = -1;  // of the pair of this lane that has most of the row
  float most = 0, most_ds = 0;
  if (!f.grad_scores) store_delta(p, f, job.delta, row);
  for (int j = lane; j < p.m; j += 32) {
    float added, ds = 0, used = 0;
    bool later = false;
    if (f.grad_scores) {
      ds = f.grad_scores[row * p.m + j];
    } else if (takes_part(p, mask_at, p.n, keys, i, j, added)) {
      const float s = job.slices.scores.sum(rows, row, p.m, j) + added;
      const float a = weight_of(p, f, job.delta, row, j, s);
      const float keep = p.seed ? kept(p, b, i, j) : 1.f;
      float g = f.grad_context ? job.slices.products.sum(rows, row, p.m, j) : 0.f;
      if (f.grad_weights) g += f.grad_weights[row * p.m + j];
      used = dropped(a, keep);
      ds = a * (dropped(g, keep) - job.delta.total[row]);
      later = a > kMost && most_key < 0;
      if (later) {
        most_key = j;
        most = a;
        most_ds = ds;
      }
    }
    if (job.used) job.used[row * p.m + j] = used;
    if (!later) put(j, ds);
  }
  // a key is below 2^24 where tiles are few
  const int key = static_cast<int>(warp_max(static_cast<float>(most_key)));
  if (key >= 0) {
    const float keep = p.seed ? kept(p, b, i, key) : 1.f;
    const int64_t value_at = offset(p.batch, b, p.value.lead) + key * p.value.row;
    const float x = centred(p, f, job.delta, row, key, keep, value_at, context_error(p, true));
    if (most_key >= 0) put(most_key, most_key == key ? most * x : most_ds);
  }
  total = warp_sum(total);
  float* const last = job.sums.weight.row(0, b);
  if (lane == 0 && last) atomicAdd(last + p.d, total);
}

struct Shared {
  float tile[kTile * kPitch];  // by key, then query
  Place at;
};

// Load a tile of (batch, n, m): of the pairs of queries below `rows` and keys from `first` to
// `end`.
__device__ __forceinline__ void load_tile(Shared& shared, const Problem& p, const float* from,
                                          int it, int jt) {
  const Place& at = shared.at;
  for (int k = threadIdx.x; k < kTile * kTile; k += kThreads) {
    const int i = it * kTile + k / kTile, j = jt * kTile + k % kTile;
    const bool there = i < p.n && at.keys.first <= j && j < at.keys.end;
    shared.tile[k % kTile * kPitch + k / kTile] = there ? from[(at.query_row + i) * p.m + j] : 0.f;
  }
}

// The gradient of value for a tile of keys and 64 columns: 32 x 32 of it per warp.
__device__ __forceinline__ void make_value_gradient(Shared& shared, const Problem& p,
                                                    const Job& job, int64_t b, int jt, int part) {
  constexpr int kRows = 32, kColumns = 32;
  const Backward& f = job.f;
  const Place& at = shared.at;
  find(shared.at, p, b, 0);
  const int warp = threadIdx.x / 32;
  const int row0 = warp % 2 * kRows, col0 = part * kWide + warp / 2 * kColumns;
  Piece<kRows / 16, kColumns / 8> total, piece;
  total.fill([](int, int) { return 0.f; });
  for (int it = 0; f.grad_context && it < p.queries.tiles; it++) {
    load_tile(shared, p, job.used, it, jt);
    __syncthreads();
    const float* const dc = f.grad_context + (at.query_row + it * kTile) * p.dv;
    value_products(piece, p, shared.tile, dc, p.n - it * kTile, row0, col0);
    total.add(piece, [](int) { return 1.f; });
    __syncthreads();
  }
  total.each([&](float x, int j, int c) {
    j += jt * kTile + row0;
    c += col0;
    if (j >= p.m || c >= p.dv) return;
    const bool there = at.keys.first <= j && j < at.keys.end;
    store(f.grad_value.data, f.grad_value.dtype, (at.key_row + j) * p.dv + c, there ? x : 0.f);
  });
}

// Blocks (b, tile of queries, tile of keys, 64 hidden units) of `sweeps`, then blocks (b, tile of
// keys, 64 columns of the values).
template <class Act>
__global__ void __launch_bounds__(kThreads, 3)
    gradients_kernel(const __grid_constant__ Problem p, const __grid_constant__ Job job,
                     int64_t sweeps, const __grid_constant__ Act act) {
  DYNAMIC_SHARED(Shared, shared_);
  Shared& shared = *shared_;
  const Place& at = shared.at;
  if (blockIdx.x >= sweeps) {
    const int parts = static_cast<int>(ceil_div(p.dv, kWide));
    const int block = static_cast<int>(blockIdx.x - sweeps);
    make_value_gradient(shared, p, job, block / parts / p.keys.tiles, block / parts % p.keys.tiles,
                        block % parts);
    return;
  }
  const int parts = static_cast<int>(ceil_div(p.d, kUnits)), part = blockIdx.x % parts;
  const int jt = blockIdx.x / parts % p.keys.tiles;
  const int tile = blockIdx.x / parts / p.keys.tiles, it = tile % p.queries.tiles;
  find(shared.at, p, tile / p.queries.tiles, 0);
  if (!job.f.grad_scores) {
    const Reach seen = reach(p.window, it * kTile, (it + 1) * kTile, at.queries, at.keys);
    if (jt < seen.first || jt >= seen.end || !any_takes_part(p, at, it, jt)) return;
  }
  load_tile(shared, p, job.ds, it, jt);
  __syncthreads();
  sweep_tile(shared.tile, p, act, at, it, jt, part * kUnits, min((part + 1) * kUnits, p.d),
             [&](int half) {
               return Gradients{
                   job.sums.query.row(0, at.query_row + it * kTile + half * kSweep),
                   job.sums.key.row(0, at.key_row + jt * kTile),
                   job.sums.weight.row(0, at.b),
               };
             });
}

}  // namespace

void sliced_backward(const Problem& p, const Backward& f, const Host& host) {
  const int64_t batch = p.batch.count, pairs = batch * p.n * p.m;
  Job job{f, {}, {}, {}, host.allocate<float>(pairs), nullptr};
  job.sums.query = sum_for(f.grad_query.data, 1, batch * p.n, p.d);
  job.sums.key = sum_for(f.grad_key.data, 1, batch * p.m, p.d);
  job.sums.weight = sum_for(f.grad_weight, 1, batch, p.d + 1);
  const Sums::Memory memory = job.sums.allocate(host);
  if (f.grad_scores) {
    clear(memory, host);
  } else {
    job.delta = allocate_delta(p, f, host);
    job.slices = slice(p, f.grad_context, memory.data, memory.count, host);
  }
  const bool values = f.grad_value.data;
  if (values && f.grad_context) job.used = host.allocate<float>(pairs);
  launch("ds", ds_kernel, ceil_div(batch * p.n, kThreads / 32), kThreads, 0, host.stream, p, job);
  const bool swept = job.sums.query.data || job.sums.key.data || job.sums.weight.data;
  const int64_t sweeps = swept ? batch * p.queries.tiles * p.keys.tiles * ceil_div(p.d, kUnits) : 0;
  const int64_t blocks = sweeps + (values ? batch * p.keys.tiles * ceil_div(p.dv, kWide) : 0);
  by_activation(p, [&](auto act) {
    launch("gradients", gradients_kernel<decltype(act)>, blocks, kThreads, sizeof(Shared),
           host.stream, p, job, sweeps, act);
  });
  finish(job.sums, p, f, host);
}

}  // namespace attnkernels::cuda
