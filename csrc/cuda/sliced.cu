// Slices of small problems, and the forward from them: see sliced.h. Shared memory: the stages of
// score.h, 16.1 KiB, then one tile of P, 17 KiB.
#include "cuda/outer.h"
#include "cuda/part.h"
#include "cuda/score.h"
#include "cuda/sliced.h"

namespace attnkernels::cuda {
namespace {

constexpr int kLeastStages = 2, kLeastEights = 8;  // of a slice: of hidden units, of columns

int64_t pairs_of_tiles(const Problem& p) {
  return p.batch.count * tiles_of(p.query_ends, p.n, 1) * tiles_of(p.key_ends, p.m, 1);
}

// Cut `depth` into slices that put two blocks of every tile's on each processor.
Slices cut(const Problem& p, int depth, int least, const Host& host) {
  const int64_t wanted = ceil_div(2 * host.processors, std::max<int64_t>(pairs_of_tiles(p), 1));
  const int64_t count = std::clamp<int64_t>(wanted, 1, ceil_div(depth, least));
  const int each = static_cast<int>(ceil_div(depth, count));
  Slices out{nullptr, static_cast<int>(ceil_div(depth, each)), each};
  out.data = host.allocate<float>(out.count * p.batch.count * p.n * p.m);
  return out;
}

struct SliceShared {
  Stage stages[2];
  Place at;
};

// Block (b, slice, tile of queries, tile of keys).
template <class Act>
__global__ void __launch_bounds__(kThreads, 4)
    slice_kernel(const __grid_constant__ Problem p, const __grid_constant__ SliceJob job,
                 const __grid_constant__ Act act) {
  DYNAMIC_SHARED(SliceShared, shared);
  const Place& at = shared->at;
  for (int64_t k = blockIdx.x * int64_t{kThreads} + threadIdx.x; k < job.count;
       k += gridDim.x * int64_t{kThreads})
    job.cleared[k] = 0;
  const int jt = blockIdx.x % p.keys.tiles, it = blockIdx.x / p.keys.tiles % p.queries.tiles;
  const int tile = blockIdx.x / p.keys.tiles / p.queries.tiles;
  const int slices = job.scores.count + job.products.count, slice = tile % slices;
  find(shared->at, p, tile / slices, 0);
  const Reach seen = reach(p.window, it * kTile, (it + 1) * kTile, at.queries, at.keys);
  if (jt < seen.first || jt >= seen.end || !any_takes_part(p, at, it, jt)) return;
  const int64_t rows = p.batch.count * p.n;
  auto put = [&](const Slices& slices, int slice, int i, int j, float x) {
    if (i < p.n && j < p.m) slices.part(slice, rows, at.query_row + i, p.m, j) = x;
  };
  if (slice < job.scores.count) {
    const int begin = slice * job.scores.each;
    Scores x;
    score_quads(x, shared->stages, p, act, at, it, jt, begin,
                min(begin + job.scores.each, p.padded / 4));
    each_pair(it, jt, x, [&](int i, int j, float y) { put(job.scores, slice, i, j, y); });
  } else {
    const int part = slice - job.scores.count, begin = part * job.products.each;
    outer_products(
        p, at, job.grad_context + (at.query_row + it * kTile) * p.dv, at.queries - it * kTile,
        at.keys.end - jt * kTile, jt, begin, min(begin + job.products.each, p.dv),
        [&](float x, int i, int j) { put(job.products, part, it * kTile + i, jt * kTile + j, x); });
  }
}

// Raw scores from their slices, one thread per pair.
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const __grid_constant__ Slices slices, float* out, int64_t rows, int m) {
  const int64_t id = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (id < rows * m) out[id] = slices.sum(rows, id / m, m, static_cast<int>(id % m));
}

// The softmax of the rows: P, (batch, n, m), and what its products are multiplied by, (batch, n).
struct Softened {
  float *p, *share;
};

// One warp per row, (E2), with lanes along the keys.
__global__ void __launch_bounds__(kThreads)
    rows_kernel(const __grid_constant__ Problem p, const __grid_constant__ Slices scores,
                const __grid_constant__ Forward f, Softened out) {
  const WarpRow at(p);
  if (!at.exists()) return;
  const auto [rows, row, b, mask_at, lane, i, keys] = at;
  float* const x = out.p + row * p.m;
  float high = -kInfinity, sum = 0;
  for (int j = lane; j < p.m; j += 32) {
    float added;
    x[j] = -kInfinity;
    if (takes_part(p, mask_at, p.n, keys, i, j, added)) {
      x[j] = scores.sum(rows, row, p.m, j) + added;
      if (f.weights) f.weights[row * p.m + j] = x[j];
    }
    high = max_nan(high, x[j]);
  }
  high = warp_max(high);
  const float finite = high == -kInfinity ? 0.f : high;
  for (int j = lane; j < p.m; j += 32) {
    const float y = exp_fast(x[j] - finite);
    sum += y;
    x[j] = dropped(y, p.seed ? kept(p, b, i, j) : 1.f);
  }
  sum = warp_sum(sum);
  if (lane != 0) return;
  f.lse[row] = high + logf(sum);
  store_softmax(f.softmax, row, high, sum);
  out.share[row] = sum == 0 ? 0.f : 1 / sum;
}

constexpr int kColumns = 16;  // of the context, per warp
constexpr int kWide = kColumns * kThreads / 32;

struct ContextShared {
  float p[kTile * kPitch];
  Place at;
};

// Block (b, tile of queries, 64 columns of the context), (E3).
__global__ void __launch_bounds__(kThreads, 3)
    context_kernel(const __grid_constant__ Problem p, Output context, Softened softened) {
  DYNAMIC_SHARED(ContextShared, shared);
  const Place& at = shared->at;
  const int parts = static_cast<int>(ceil_div(p.dv, kWide));
  const int part = blockIdx.x % parts, it = blockIdx.x / parts % p.queries.tiles;
  find(shared->at, p, blockIdx.x / parts / p.queries.tiles, 0);
  const int col0 = part * kWide + threadIdx.x / 32 * kColumns;
  const int value_row = static_cast<int>(p.value.row), value_col = static_cast<int>(p.value.col);
  const int rows = p.n - it * kTile;
  const int64_t row0 = at.query_row + it * kTile;
  Piece<kTile / 16, kColumns / 8> total, piece;
  total.fill([](int, int) { return 0.f; });
  const Reach seen = reach(p.window, it * kTile, (it + 1) * kTile, at.queries, at.keys);
  for (int jt = seen.first; jt < seen.end; jt++) {
    const Keys keys{at.keys.first - jt * kTile, min(at.keys.end - jt * kTile, kTile)};
    for (int k = threadIdx.x; k < kTile * kTile; k += kThreads) {
      const int i = k / kTile, j = k % kTile;
      shared->p[i * kPitch + j] =
          i < rows && j < keys.end ? softened.p[(row0 + i) * p.m + jt * kTile + j] : 0.f;
    }
    __syncthreads();
    const int64_t value_at = at.value_at + int64_t{jt} * kTile * p.value.row;
    by_dtype(p.value.dtype, [&](auto dtype) {
      using T = decltype(dtype);
      const void* const value = from<T>(p.value.data, value_at);
      piece.template set<T::kShort>(
          round_up(keys.end, 8), [&](int row, int k) { return shared->p[row * kPitch + k]; },
          [&](int k, int col) {
            col += col0;
            return k >= keys.first && k < keys.end && col < p.dv
                       ? T::load(value, k * value_row + col * value_col)
                       : 0.f;
          });
    });
    total.add(piece, [](int) { return 1.f; });
    __syncthreads();
  }
  total.each([&](float x, int i, int c) {
    c += col0;
    if (i >= rows || c >= p.dv) return;
    const float share = softened.share[row0 + i];
    store(context.data, context.dtype, (row0 + i) * p.dv + c, share == 0 ? 0.f : share * x);
  });
}

}  // namespace

bool is_sliced(const Problem& p, const Host& host, int units) {
#ifdef ATTNKERNELS_UNSLICED  // to compare
  return false;
#endif
  const int64_t tiles = pairs_of_tiles(p);
  return !p.query_ends.ends && !p.key_ends.ends && p.d >= units && 0 < tiles &&
         tiles < host.processors;
}

SliceJob slice(const Problem& p, const float* grad_context, float* cleared, int64_t count,
               const Host& host) {
  SliceJob job{cut(p, stages_of(p.padded), kLeastStages, host), {}, grad_context, cleared, count};
  job.scores.each *= kStage / 4;
  if (grad_context && p.dv > 0) {
    job.products = cut(p, static_cast<int>(ceil_div(p.dv, 8)), kLeastEights, host);
    job.products.each *= 8;
  }
  by_scored(p, [&](auto act) {
    launch("slices", slice_kernel<decltype(act)>,
           pairs_of_tiles(p) * (job.scores.count + job.products.count), kThreads,
           sizeof(SliceShared), host.stream, p, job, act);
  });
  return job;
}

void sliced_scores(const Problem& p, float* out, const Host& host) {
  const Slices scores = slice(p, nullptr, nullptr, 0, host).scores;
  const int64_t rows = p.batch.count * p.n;
  launch("sum", sum_kernel, ceil_div(rows * p.m, kThreads), kThreads, 0, host.stream, scores, out,
         rows, p.m);
}

void sliced_forward(const Problem& p, const Forward& f, const Host& host) {
  const Slices scores = slice(p, nullptr, nullptr, 0, host).scores;
  const int64_t rows = p.batch.count * p.n;
  const Softened softened{host.allocate<float>(rows * p.m), host.allocate<float>(rows)};
  launch("rows", rows_kernel, ceil_div(rows, kThreads / 32), kThreads, 0, host.stream, p, scores, f,
         softened);
  launch("context", context_kernel, p.batch.count * p.queries.tiles * ceil_div(p.dv, kWide),
         kThreads, sizeof(ContextShared), host.stream, p, f.context, softened);
}

}  // namespace attnkernels::cuda
