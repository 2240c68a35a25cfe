// The backward, (E4)-(E6), in one sweep over tiles of 64 queries and 64 keys.
//
//   for each tile of queries, for each tile of keys           shared memory
//     G = dc value^T, 16 x 64 per warp       (product.h)      ds, 64 x 68 floats, 17 KiB
//     scores in registers, 4 x 8 per thread  (score.h)        2 stages of panels, then
//     a = exp(s - lse), ds = a (G - delta)   (E4)             the weights after dropout: 17 KiB
//     dvalue += a^T dc                       (product.h)      35 KiB: an H100 has room for the
//     dq, dk, dw from ds, one unit per lane  (sweep.h)        three blocks that registers allow
//
// Each element is visited twice, for the scores at 3.9 instructions and for the gradients at 7.5:
// about 11.4, or 11.2 elements per clock and processor of an H100. Gradients are added to memory by
// atomics that return nothing, 12 bytes per 32 elements; see sums.h for their order. Small problems
// are computed in slices (sliced.h), unless torch asks for determinism.
#include <algorithm>

#include "cuda/delta.h"
#include "cuda/outer.h"
#include "cuda/sine_sweep.h"
#include "cuda/sliced.h"
#include "cuda/sweep_tile.h"

namespace attnkernels::cuda {
namespace {

// The part of a block: its index among the copies of the gradients of the keys, among those of the
// queries, and in the leading index; its tiles; and the first element of the gradient of the mask.
struct Part {
  int key_copy, query_copy, whole;
  int query_tile, query_end, key_tile, key_end;
  int64_t mask_at;
};

struct Shared {
  union {
    Stage stages[2];
    float used[kTile * kPitch];  // by key, then query
  };
  float ds[kTile * kPitch];  // by key, then query
  // of the pair with most of a row: how many there are, its key in the tile, its weight
  int most[kTile], most_key[kTile];
  float most_weight[kTile];
  float totals[kThreads];  // of ds, per thread
  Place at;
  Part part;
};

struct Job {
  Backward f;
  Delta delta;
  Sums sums;
  int query_parts, key_parts;
  int key_copies = 1;  // parts of the queries this far apart see different keys
};

// Add used^T dc to dvalue, 32 keys and 32 columns per warp at a time.
template <class Act>
__device__ __forceinline__ void add_value_gradient(const Shared& shared, const Problem& p,
                                                   const float* dc, float* grad, int rows,
                                                   int columns) {
  constexpr int kRows = 32, kColumns = 32;
  const int items = kTile / kRows * static_cast<int>(ceil_div(p.dv, kColumns));
  for (int item = threadIdx.x / 32; item < items; item += kThreads / 32) {
    const int row0 = item % (kTile / kRows) * kRows, col0 = item / (kTile / kRows) * kColumns;
    Piece<kRows / 16, kColumns / 8, kHasSines<Act>> piece;
    value_products(piece, p, shared.used, dc, rows, row0, col0);
    piece.each([&](float x, int j, int c) {
      j += row0;
      c += col0;
      if (j < columns && c < p.dv) atomicAdd(grad + static_cast<int64_t>(j) * p.dv + c, x);
    });
  }
}

// Compute ds and the weights after dropout of a tile, (E4), except ds of pairs with most of their
// row. Return true if this thread has found one.
template <class Act>
__device__ __forceinline__ bool make_gradients(Shared& shared, const Problem& p, const Job& job,
                                               const Act& act, const float* dc, int it, int jt) {
  const Place& at = shared.at;
  const Backward& f = job.f;
  if (threadIdx.x < kTile) shared.most[threadIdx.x] = 0;
  Scores x;
  score_tile(x, shared.stages, p, act, at, it, jt);
  __syncthreads();  // the stages have been read, and G is there
  float total = 0;
  bool found = false;
  each_pair<kHasSines<Act>>(it, jt, x, [&](int i, int j, float s) {
    float& cell = shared.ds[j % kTile * kPitch + i % kTile];
    float added, ds = 0, used = 0;
    if (takes_part(p, at.mask_at, at.queries, at.keys, i, j, added)) {
      const int64_t row = at.query_row + i;
      const float a = weight_of(p, f, job.delta, row, j, s + added);
      const float keep = p.seed ? kept(p, at.item, i, j) : 1.f;
      float g = dc ? cell : 0.f;
      if (f.grad_weights) g += f.grad_weights[row * p.m + j];
      used = dropped(a, keep);
      if (a > kMost && atomicAdd(&shared.most[i % kTile], 1) == 0) {
        shared.most_key[i % kTile] = j % kTile;
        shared.most_weight[i % kTile] = a;
        found = true;
      } else {
        ds = a * (dropped(g, keep) - job.delta.total[row]);
        if (f.grad_mask)
          atomicAdd(f.grad_mask + shared.part.mask_at + i * f.mask_row + j * f.mask_col, ds);
      }
    }
    cell = ds;
    shared.used[j % kTile * kPitch + i % kTile] = used;
    total += ds;
  });
  shared.totals[threadIdx.x] += total;
  return found;
}

// Compute ds of the pairs with most of their row, 16 rows per warp.
__device__ __forceinline__ void centre_pairs(Shared& shared, const Problem& p, const Job& job,
                                             int it, int jt) {
  const Place& at = shared.at;
  const Backward& f = job.f;
  const float error = context_error(p, true);
  for (int row = threadIdx.x / 32; row < kTile; row += kThreads / 32) {
    if (!shared.most[row]) continue;
    const int i = it * kTile + row, key = shared.most_key[row], j = jt * kTile + key;
    const float keep = p.seed ? kept(p, at.item, i, j) : 1.f;
    const float ds = shared.most_weight[row] * centred(p, f, job.delta, at.query_row + i, j, keep,
                                                       at.value_at + j * p.value.row, error);
    if (threadIdx.x % 32 == 0) {
      shared.ds[key * kPitch + row] = ds;
      shared.totals[threadIdx.x] += ds;
      if (f.grad_mask)
        atomicAdd(f.grad_mask + shared.part.mask_at + i * f.mask_row + j * f.mask_col, ds);
    }
  }
}

// Take the gradients of raw scores as ds of a tile.
template <class Act>
__device__ __forceinline__ void take_gradients(Shared& shared, const Problem& p, const Job& job,
                                               int it, int jt) {
  const Place& at = shared.at;
  float total = 0;
  Scores none;
  each_pair<kHasSines<Act>>(it, jt, none, [&](int i, int j, float) {
    const bool there = i < at.queries && j < at.keys.end;
    const float ds = there ? job.f.grad_scores[(at.query_row + i) * p.m + j] : 0.f;
    shared.ds[j % kTile * kPitch + i % kTile] = ds;
    total += ds;
  });
  shared.totals[threadIdx.x] += total;
}

// All threads of a block call this; on return `at` and `part` can be read.
__device__ __forceinline__ void find_part(Shared& shared, const Problem& p, const Job& job) {
  const int64_t item = blockIdx.x / job.key_parts / job.query_parts;  // of (b, sequence)
  const int s = static_cast<int>(item % p.sequences);
  find(shared.at, p, item / p.sequences, s);
  if (threadIdx.x == 0) {
    Part& part = shared.part;
    const int key = blockIdx.x % job.key_parts;
    const int query = blockIdx.x / job.key_parts % job.query_parts;
    part.query_copy = key;
    part.key_copy = query % job.key_copies;
    part.whole = (s * job.query_parts + query) * job.key_parts + key;
    const int query_tiles = static_cast<int>(ceil_div(shared.at.queries, kTile));
    const int query_share = static_cast<int>(ceil_div(query_tiles, job.query_parts));
    part.query_tile = query * query_share;
    part.query_end = min(part.query_tile + query_share, query_tiles);
    const Reach seen = reach(p.window, part.query_tile * kTile, part.query_end * kTile,
                             shared.at.queries, shared.at.keys);
    const int key_share = static_cast<int>(ceil_div(max(seen.end - seen.first, 0), job.key_parts));
    part.key_tile = seen.first + key * key_share;
    part.key_end = min(part.key_tile + key_share, seen.end);
    part.mask_at = offset(p.batch, shared.at.b, job.f.mask_lead);
  }
  __syncthreads();
}

// Blocks of a processor, which limit the registers of each. For sm_100 the compiler spills one of
// the 168 that three would leave a kernel with sines.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 1000
template <class Act>
constexpr int kBlocks = kHasSines<Act> ? 2 : 3;
#else
template <class Act>
constexpr int kBlocks = 3;
#endif

// Block (b, sequence, part of its tiles of queries, part of its tiles of keys).
template <class Act>
__global__ void __launch_bounds__(kThreads, kBlocks<Act>)
    backward_kernel(const __grid_constant__ Problem p, const __grid_constant__ Job job,
                    const __grid_constant__ Act act) {
  DYNAMIC_SHARED(Shared, shared_);
  Shared& shared = *shared_;
  const Place& at = shared.at;
  const Part& part = shared.part;
  const Backward& f = job.f;
  find_part(shared, p, job);
  shared.totals[threadIdx.x] = 0;

  for (int tile = part.query_tile; tile < part.query_end; tile++) {
    const Reach seen = reach(p.window, tile * kTile, (tile + 1) * kTile, at.queries, at.keys);
    auto end = [&] {  // where registers are scarce, again for every tile
      if constexpr (kHasSines<Act>)
        return reach(p.window, tile * kTile, (tile + 1) * kTile, at.queries, at.keys).end;
      else
        return seen.end;
    };
    for (int jt = max(part.key_tile, seen.first); jt < min(part.key_end, end()); jt++) {
      unsigned again = tile;
      if constexpr (kHasSines<Act>) forget(again);
      const int it = again;
      if (!any_takes_part(p, at, it, jt)) continue;
      if (f.grad_scores) {
        take_gradients<Act>(shared, p, job, it, jt);
        __syncthreads();
      } else {
        const int rows = at.queries - it * kTile, columns = at.keys.end - jt * kTile;
        const float* const dc =
            f.grad_context ? f.grad_context + (at.query_row + it * kTile) * p.dv : nullptr;
        if (dc)
          outer_products<kHasSines<Act>>(
              p, at, dc, rows, columns, jt, 0, p.dv,
              [&](float x, int i, int j) { shared.ds[j * kPitch + i] = x; });
        if (__syncthreads_or(make_gradients(shared, p, job, act, dc, it, jt))) {
          centre_pairs(shared, p, job, it, jt);
          __syncthreads();
        }
        float* const grad_value = job.sums.value.row(part.key_copy, at.key_row + jt * kTile);
        if (grad_value && dc) add_value_gradient<Act>(shared, p, dc, grad_value, rows, columns);
      }
      auto gradients = [&](int half) {
        return Gradients{
            job.sums.query.row(part.query_copy, at.query_row + it * kTile + half * kSweep),
            job.sums.key.row(part.key_copy * kHalves + half, at.key_row + jt * kTile),
            job.sums.weight.row(part.whole * kHalves + half, at.b),
        };
      };
      bool swept = false;
      if constexpr (kHasSines<Act>) {
        static_assert(sizeof(shared.used) >= kSweepBytes);
        swept = sine_sweep(shared.ds, shared.used, p, act, at, it, jt, gradients(0));
      }
      if (!swept) sweep_tile(shared.ds, p, act, at, it, jt, 0, p.d, gradients);
      __syncthreads();  // ds and the weights have been read
    }
  }

  __syncthreads();
  float* const last = job.sums.weight.row(part.whole * kHalves, at.b);
  if (threadIdx.x < 32 && last) {
    float total = 0;
    for (int k = threadIdx.x; k < kThreads; k += 32) total += shared.totals[k];
    total = warp_sum(total);
    if (threadIdx.x == 0) atomicAdd(last + p.d, total);
  }
}

// Cut the tiles of queries of an item, and those of the keys that each part sees, into parts. With
// atomics, use enough parts to balance the blocks. If each part has gradients of its own, use as
// few as fill the device, cut so that they take little memory: a copy of those of the keys costs
// 2 m d + m dv, one of those of the queries n d.
void cut(Job& job, const Problem& p, const Host& host) {
  const int64_t items = p.batch.count * p.sequences;
  const int64_t sequences = std::max(p.sequences, 1);
  const int64_t query_tiles = std::max<int64_t>(ceil_div(ceil_div(p.n, sequences), kTile), 1);
  const int64_t key_tiles = std::max<int64_t>(ceil_div(ceil_div(p.m, sequences), kTile), 1);
  const int64_t each = job.f.deterministic ? 4 : 32;
  auto seen = [&](int64_t parts) {
    return tiles_seen(p, ceil_div(query_tiles, parts) * kTile, key_tiles);
  };
  const int64_t wanted = parts_for(items, query_tiles * seen(query_tiles), host, each);
  // Parts of the queries that see a key, and so cannot share a copy. Those of a short sequence are
  // single tiles.
  auto copies = [&](int64_t parts) {
    const int64_t share = p.query_ends.ends ? 1 : ceil_div(query_tiles, parts),
                  around = ceil_div(p.window.left, kTile) + ceil_div(p.window.right, kTile);
    return std::min(parts, ceil_div(around, share) + 1);
  };
  int64_t queries = query_tiles;
  if (job.f.deterministic) {
    auto cost = [&](int64_t parts) {
      return 3 * key_tiles * copies(parts) +
             query_tiles * std::min(seen(parts), ceil_div(wanted, parts));
    };
    queries = 1;
    for (int64_t parts = 2; parts <= std::min(query_tiles, wanted); parts++)
      if (cost(parts) < cost(queries)) queries = parts;
  }
  job.key_parts = static_cast<int>(std::min(seen(queries), ceil_div(wanted, queries)));
  job.query_parts = static_cast<int>(std::min(queries, ceil_div(wanted, job.key_parts)));
  if (job.f.deterministic) job.key_copies = static_cast<int>(copies(job.query_parts));
}

}  // namespace

void backward(Problem p, const Owners& own, const Backward& f, const Host& host) {
  if (is_step(p)) {
    step_backward(p, f, host);
    return;
  }
  prepare(p, own, host);
  if (is_sliced(p, host, kBackwardUnits) && !f.deterministic) {
    sliced_backward(p, f, host);
    return;
  }
  Job job{f, {}, {}, 1, 1};
  cut(job, p, host);
  const int64_t items = p.batch.count * p.sequences;
  const int64_t query_copies = f.deterministic ? job.key_parts : 1;
  const int64_t weight_copies =
      f.deterministic ? int64_t{p.sequences} * job.query_parts * job.key_parts * kHalves : 1;
  job.sums = {sum_for(f.grad_query.data, query_copies, p.batch.count * p.n, p.d),
              sum_for(f.grad_key.data, f.deterministic ? int64_t{job.key_copies} * kHalves : 1,
                      p.batch.count * p.m, p.d),
              sum_for(f.grad_value.data, job.key_copies, p.batch.count * p.m, p.dv),
              sum_for(f.grad_weight, weight_copies, p.batch.count, p.d + 1)};
  clear(job.sums.allocate(host), host);
  job.delta = make_delta(p, f, host);
  by_scored(p, [&](auto act) {
    launch("backward", backward_kernel<decltype(act)>, items * job.query_parts * job.key_parts,
           kThreads, sizeof(Shared), host.stream, p, job, act);
  });
  finish(job.sums, p, f, host);
}

}  // namespace attnkernels::cuda
