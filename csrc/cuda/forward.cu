// Scores, softmax and context in one pass, (E1)-(E3): a tile of 64 queries against tiles of keys.
//
//   for each tile of keys                                   shared memory
//     scores in registers, 4 x 8 per thread  (score.h)      2 stages of panels, 16.1 KiB
//     x -> P, masked                                        P, 64 x 68 floats, 17 KiB
//     P = exp(P - highest), two threads per row (E2)        alpha, highest, total: 64 floats each
//     context = alpha context + P value      (product.h)    34 KiB: an H100 has room for the
//                                                           four blocks that registers allow
// The context is kept in memory because the scores need the registers: every thread reads and
// writes only its own part, in the cache. A tile of scores costs 64 x 64 x d elements at 3.9
// instructions (score.h), its softmax 25 per pair, the update of its context 0.7 per multiply-add.
// If there are few tiles of queries, blocks split the keys and combine_kernel joins their parts.
// Problems of few tiles in all are computed in slices, see sliced.h.
#include "cuda/part.h"
#include "cuda/product.h"
#include "cuda/score.h"
#include "cuda/sliced.h"

namespace attnkernels::cuda {
namespace {

struct Shared {
  Stage stages[2];
  float p[kTile * kPitch];
  float alpha[kTile];
  float highest[kTile], total[kTile];  // per row, so far
  Place at;
  Part part;
};

// Turn the scores of a tile of keys into exponentials P, and compute alpha, which scales the
// context so far.
__device__ __forceinline__ void soften(Shared& shared, const Problem& p, int jt) {
  static_assert(kThreads == 2 * kTile && kTile / 2 % 4 == 0);
  const int row = threadIdx.x / 2, first = threadIdx.x % 2 * (kTile / 2);
  float* const x = shared.p + row * kPitch + first;
  const float before = shared.highest[row];
  float high = before;
  for (int k = 0; k < kTile / 2; k++) high = max_nan(high, x[k]);
  high = max_nan(high, __shfl_xor_sync(kWarp, high, 1));
  const float finite = high == -kInfinity ? 0.f : high;
  float sum = 0;
  for (int k = 0; k < kTile / 2; k += 4) {
    const float4 keep =
        kept_four(p, shared.at.item, shared.part.it * kTile + row, (jt * kTile + first + k) / 4);
    float4& four = *reinterpret_cast<float4*>(x + k);
    const float4 y = make_float4(exp_fast(four.x - finite), exp_fast(four.y - finite),
                                 exp_fast(four.z - finite), exp_fast(four.w - finite));
    sum += (y.x + y.y) + (y.z + y.w);
    four = make_float4(dropped(y.x, keep.x), dropped(y.y, keep.y), dropped(y.z, keep.z),
                       dropped(y.w, keep.w));
  }
  sum += __shfl_xor_sync(kWarp, sum, 1);
  if (first == 0) {
    const float alpha = exp_fast(before - finite);
    shared.alpha[row] = alpha;
    shared.highest[row] = high;
    shared.total[row] = shared.total[row] * alpha + sum;
  }
}

// Columns of the context that a warp takes at a time, with all of its rows: a value is loaded once.
constexpr int kColumns = 16;
template <class Act>
using ContextPiece = Piece<kTile / 16, kColumns / 8, kHasSines<Act>>;

template <class F>
__device__ __forceinline__ void each_item(int dv, const F& f) {
  for (int col0 = threadIdx.x / 32 * kColumns; col0 < dv; col0 += kThreads / 32 * kColumns) f(col0);
}

// Set context to alpha context + P value, or to P value until `started`.
template <class Act>
__device__ __forceinline__ void add_values(const Shared& shared, float* context, bool started,
                                           const Problem& p, int jt) {
  const Keys keys{shared.at.keys.first - jt * kTile, shared.at.keys.end - jt * kTile};
  const int rows = shared.part.rows;
  const int depth = round_up(min(keys.end, kTile), 8);
  const int64_t at = shared.at.value_at + int64_t{jt} * kTile * p.value.row;
  const int value_row = static_cast<int>(p.value.row), value_col = static_cast<int>(p.value.col);
  by_dtype(p.value.dtype, [&](auto dtype) {
    using T = decltype(dtype);
    const void* const value = from<T>(p.value.data, at);
    each_item(p.dv, [&](int col0) {
      ContextPiece<Act> piece;
      piece.template set<T::kShort>(
          depth, [&](int row, int k) { return shared.p[row * kPitch + k]; },
          [&](int k, int col) {
            col += col0;
            return k >= keys.first && k < keys.end && col < p.dv
                       ? T::load(value, k * value_row + col * value_col)
                       : 0.f;
          });
      auto at = [&](int row, int col) { return static_cast<int64_t>(row) * p.dv + col0 + col; };
      auto inside = [&](int row, int col) { return row < rows && col0 + col < p.dv; };
      if (started) {
        ContextPiece<Act> old;  // all of it, so that no load waits for a store
        old.fill([&](int row, int col) { return inside(row, col) ? context[at(row, col)] : 0.f; });
        piece.add(old, [&](int row) { return shared.alpha[row]; });
      }
      piece.each([&](float x, int row, int col) {
        if (inside(row, col)) context[at(row, col)] = x;
      });
    });
  });
}

__device__ __forceinline__ float scaled(float s, float x) { return s == 0 ? 0.f : s * x; }
__device__ __forceinline__ float4 scaled(float s, const float4& x) {
  return make_float4(scaled(s, x.x), scaled(s, x.y), scaled(s, x.z), scaled(s, x.w));
}

// Element or vector k of rows of results.
__device__ __forceinline__ void put(void* out, Dtype dtype, int64_t k, float x) {
  store(out, dtype, k, x);
}
__device__ __forceinline__ void put(void* out, Dtype dtype, int64_t k, const float4& x) {
  if (dtype == Dtype::f32) {
    static_cast<float4*>(out)[k] = x;
    return;
  }
  auto bits = [&](float y) -> unsigned {
    return dtype == Dtype::bf16 ? to_bfloat16(y) : to_half(y);
  };
  static_cast<uint2*>(out)[k] = {bits(x.x) | bits(x.y) << 16, bits(x.z) | bits(x.w) << 16};
}

// Store each row of the context times its share, or 0 where that is 0, as in rows that have not
// started. All threads of the block call this. A thread has four vectors in flight.
template <class V>
__device__ __forceinline__ void store_rows(void* out, Dtype dtype, const V* context,
                                           const float* share, bool started, int rows,
                                           int columns) {
  constexpr int kAhead = 4;
  const int count = rows * columns;
#pragma unroll 1
  for (int first = threadIdx.x; first < count; first += kAhead * kThreads) {
    V x[kAhead] = {};
#pragma unroll
    for (int e = 0; e < kAhead; e++)
      if (started && first + e * kThreads < count) x[e] = context[first + e * kThreads];
#pragma unroll
    for (int e = 0; e < kAhead; e++) {
      const int k = first + e * kThreads;
      if (k < count) put(out, dtype, k, scaled(share[k / columns], x[e]));
    }
  }
}

// Block (b, tile of queries, split of the keys). Every b has n queries and m keys in all.
template <class Act>
__global__ void __launch_bounds__(kThreads, 4)
    forward_kernel(const __grid_constant__ Problem p, const __grid_constant__ Split out,
                   const __grid_constant__ Act act) {
  DYNAMIC_SHARED(Shared, shared_);
  Shared& shared = *shared_;
  const Place& at = shared.at;
  const Part& part = shared.part;
  find_part(shared.at, shared.part, p, out.splits);
  if (part.rows <= 0) return;
  if (threadIdx.x < kTile) {
    shared.highest[threadIdx.x] = -kInfinity;
    shared.total[threadIdx.x] = 0;
  }

  bool started = false;
  for (int jt = part.first; jt < part.last; jt++) {
    if (!any_takes_part(p, at, part.it, jt)) continue;
    Scores x;
    score_tile(x, shared.stages, p, act, at, part.it, jt);
    each_pair(part.it, jt, x, [&](int i, int j, float y) {
      float added;
      const bool taken = takes_part(p, at.mask_at, at.queries, at.keys, i, j, added);
      y = taken ? y + added : -kInfinity;
      shared.p[i % kTile * kPitch + j % kTile] = y;
      if (out.scores && taken) out.scores[(at.query_row + i) * p.m + j] = y;
    });
    __syncthreads();
    soften(shared, p, jt);
    __syncthreads();
    add_values<Act>(shared, out.context + part.row * p.dv, started, p, jt);
    started = true;
    __syncthreads();  // P and alpha have been read
  }

  const int row = threadIdx.x, rows = min(part.rows, kTile);
  if (row < rows) {
    const float total = shared.total[row];
    out.lse[part.row + row] = shared.highest[row] + logf(total);
    store_softmax(out.softmax, part.row + row, shared.highest[row], total);
    shared.alpha[row] = started && total != 0 ? reciprocal(total) : 0.f;
  }
  __syncthreads();
  const float* const context = out.context + part.row * p.dv;
  const Dtype dtype = out.result.dtype;
  char* const to =
      static_cast<char*>(out.result.data) + part.row * p.dv * (dtype == Dtype::f32 ? 4 : 2);
  if (p.dv % 4 == 0 && reinterpret_cast<uint64_t>(context) % 16 == 0 &&
      reinterpret_cast<uint64_t>(to) % 8 == 0)  // `to` is the context if that is float32
    store_rows(to, dtype, reinterpret_cast<const float4*>(context), shared.alpha, started, rows,
               p.dv / 4);
  else
    store_rows(to, dtype, context, shared.alpha, started, rows, p.dv);
}

// One block per row: the contexts of its splits, each weighted by its share of the whole.
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const __grid_constant__ Split part, const __grid_constant__ Forward out,
                   int64_t rows, int dv) {
  const int64_t row = blockIdx.x;
  const Combined all(part, rows, row);
  const float share = all.total == 0 ? 0.f : 1 / all.total;
  for (int c = threadIdx.x; c < dv; c += kThreads) {
    float x = 0;
    for (int s = 0; s < part.splits; s++)
      x += all.part(part, s * rows + row) * part.context[(s * rows + row) * dv + c];
    store(out.context.data, out.context.dtype, row * dv + c, x * share);
  }
  if (threadIdx.x == 0) {
    out.lse[row] = all.highest + logf(all.total);
    store_softmax(out.softmax, row, all.highest, all.total);
  }
}

// Turn scores into weights in place, (E2), after dropout; one thread per pair.
__global__ void __launch_bounds__(kThreads)
    weights_kernel(const __grid_constant__ Problem p, float* weights, const float* softmax) {
  const int64_t id = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (id >= p.batch.count * p.n * p.m) return;
  const int64_t row = id / p.m, b = row / p.n;
  const int i = static_cast<int>(row % p.n), j = static_cast<int>(id % p.m);
  const float keep = p.seed ? kept(p, b, i, j) : 1.f;
  float added;
  const bool taken =
      takes_part(p, offset(p.batch, b, p.mask.lead), p.n, keys_of(p, b), i, j, added);
  weights[id] = taken ? dropped(weigh(weights[id], as_weights(softmax, row)), keep) : 0.f;
}

}  // namespace

void forward(Problem p, const Owners& own, Forward f, const Host& host) {
  const int64_t rows = p.batch.count * p.n;
  if (rows == 0) return;
  const bool step = is_step(p);
  if (!step) prepare(p, own, host);
  const bool sliced = !step && is_sliced(p, host, kForwardUnits);
  const int64_t blocks = step ? p.batch.count : p.batch.count * p.queries.tiles;
  const int64_t tiles = step ? tiles_seen(p, p.n, ceil_div(p.m, kStepKeys), kStepKeys)
                             : tiles_seen(p, kTile, p.keys.tiles);
  if (f.weights) f.softmax = host.allocate<float>(2 * rows);
  if (!f.lse) f.lse = host.allocate<float>(rows);
  Split part{nullptr, f.lse, f.weights, sliced ? 1 : parts_for(blocks, tiles, host), f.softmax};
  if (part.splits > 1) {
    part.softmax = host.allocate<float>(2 * part.splits * rows);
    part.lse = host.allocate<float>(part.splits * rows);
  }
  if (part.splits == 1 && f.context.dtype == Dtype::f32)
    part.context = static_cast<float*>(f.context.data);
  else if (!sliced)
    part.context = host.allocate<float>(part.splits * rows * p.dv);
  part.result = part.splits == 1 ? f.context : Output{part.context, Dtype::f32};
  if (step)
    step_forward(p, part, host);
  else if (sliced)
    sliced_forward(p, f, host);
  else
    by_scored(p, [&](auto act) {
      launch("forward", forward_kernel<decltype(act)>, blocks * part.splits, kThreads,
             sizeof(Shared), host.stream, p, part, act);
    });
  if (part.splits > 1)
    launch("combine", combine_kernel, rows, kThreads, 0, host.stream, part, f, rows, p.dv);
  if (f.weights)
    launch("weights", weights_kernel, ceil_div(rows * p.m, kThreads), kThreads, 0, host.stream, p,
           f.weights, f.softmax);
}

}  // namespace attnkernels::cuda
