// The forward with the tangents of its outputs, in one pass: a tile of 64 queries against tiles of
// keys. With a dash for a tangent, P the softmax after dropout, and u the values,
//
//   lse'_i = sum_j a_ij s'_ij       c'_i = sum_j P_ij (s'_ij - lse'_i) u_j + P_ij u'_j
//   a'_ij  = a_ij (s'_ij - lse'_i), after dropout
//
//   for each tile of keys                                          shared memory
//     scores and tangents in registers, 4 x 8 each    (tangent.h)  2 stages of panels, then
//     e = exp(s - highest), P = e after dropout, (E2)              P, P s': 34 KiB in all
//     c' = alpha (c' + shift c) + (P s') u + P u'     (product.h)  and per row 1.5 KiB
//     c  = alpha c + P u
//
// Tangents count from that of the row's highest score so far, its origin, so that sums do not
// cancel: a row with one key has tangents of exactly 0, but for those of its value and of lse. They
// change by shift as the origin moves.
//
// A tile takes 64 x 64 x d elements at 7 instructions (tangent.h), about twice the forward's time,
// and three products where the forward has one. Both contexts are kept in memory. One kernel serves
// every n: a decoder step fills few rows of a tile, and costs as much as 64 queries.
#include "cuda/part.h"
#include "cuda/product.h"
#include "cuda/tangent.h"

namespace attnkernels::cuda {
namespace {

struct Shared {
  union {
    BothStages stages;
    struct {
      float p[kTile * kPitch], tangent[kTile * kPitch];
    };
  };
  float alpha[kTile], shift[kTile];
  float highest[kTile], total[kTile];  // per row, so far
  float moment[kTile], origin[kTile];  // sum e (s' - origin); s' of the highest score
  Place at, tangent_at;
  Part part;
};

// The outputs of the parts of the keys, and their tangents.
struct Parts {
  Split primal, tangent;
};

// Turn the scores of a tile of keys into P and their tangents into P (s' - origin).
__device__ __forceinline__ void soften(Shared& shared, const Problem& p, int jt) {
  const int row = threadIdx.x / 2, first = threadIdx.x % 2 * (kTile / 2);
  float* const x = shared.p + row * kPitch + first;
  float* const tangent = shared.tangent + row * kPitch + first;
  const float before = shared.highest[row], from = shared.origin[row];
  float high = -kInfinity, origin = 0;
  for (int k = 0; k < kTile / 2; k++) {
    if (x[k] > high) origin = tangent[k];
    high = max_nan(high, x[k]);
  }
  const float theirs = __shfl_xor_sync(kWarp, high, 1);
  const float their_origin = __shfl_xor_sync(kWarp, origin, 1);
  if (first ? theirs >= high : theirs > high) origin = their_origin;
  high = max_nan(high, theirs);
  if (!(high > before)) origin = from;
  high = max_nan(high, before);
  const float finite = high == -kInfinity ? 0.f : high;
  float sum = 0, moment = 0;
  for (int k = 0; k < kTile / 2; k += 4) {
    const float4 four =
        kept_four(p, shared.at.item, shared.part.it * kTile + row, (jt * kTile + first + k) / 4);
    float keep[4];
    spread(keep, four);
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float y = exp_fast(x[k + e] - finite), moved = y * (tangent[k + e] - origin);
      sum += y;
      moment += moved;
      x[k + e] = dropped(y, keep[e]);
      tangent[k + e] = dropped(moved, keep[e]);
    }
  }
  sum += __shfl_xor_sync(kWarp, sum, 1);
  moment += __shfl_xor_sync(kWarp, moment, 1);
  if (first == 0) {
    const float alpha = exp_fast(before - finite);
    const float shift = before == -kInfinity ? 0.f : from - origin;
    shared.alpha[row] = alpha;
    shared.shift[row] = shift;
    shared.moment[row] = fmaf(alpha, fmaf(shift, shared.total[row], shared.moment[row]), moment);
    shared.total[row] = shared.total[row] * alpha + sum;
    shared.highest[row] = high;
    shared.origin[row] = origin;
  }
}

// Columns of the contexts that a warp takes at a time, with all of their rows.
constexpr int kColumns = 16;
using ContextPiece = Piece<kTile / 16, kColumns / 8>;

template <class F>
__device__ __forceinline__ void each_item(int dv, const F& f) {
  for (int col0 = threadIdx.x / 32 * kColumns; col0 < dv; col0 += kThreads / 32 * kColumns) f(col0);
}

// Update both contexts by a tile, or set them until `started`.
__device__ __forceinline__ void add_values(const Shared& shared, float* context, float* tangent,
                                           bool started, const Problem& p, const Problem& tangents,
                                           int jt) {
  const Keys keys{shared.at.keys.first - jt * kTile, shared.at.keys.end - jt * kTile};
  const int rows = shared.part.rows;
  const int depth = round_up(min(keys.end, kTile), 8);
  const bool moves = tangents.value.data;
  by_dtype(p.value.dtype, [&](auto dtype) {
    using T = decltype(dtype);
    each_item(p.dv, [&](int col0) {
      auto inside = [&](int row, int col) { return row < rows && col0 + col < p.dv; };
      auto at = [&](int row, int col) { return static_cast<int64_t>(row) * p.dv + col0 + col; };
      auto multiply = [&](ContextPiece& piece, const float* weights, const Matrix& value,
                          int64_t first) {
        const void* const data = from<T>(value.data, first + int64_t{jt} * kTile * value.row);
        const int value_row = static_cast<int>(value.row), value_col = static_cast<int>(value.col);
        piece.template set<T::kShort>(
            depth, [&](int row, int k) { return weights[row * kPitch + k]; },
            [&](int k, int col) {
              return k >= keys.first && k < keys.end && col0 + col < p.dv
                         ? T::load(data, k * value_row + (col0 + col) * value_col)
                         : 0.f;
            });
      };
      auto store = [&](float* to, ContextPiece& piece) {
        piece.each([&](float x, int row, int col) {
          if (inside(row, col)) to[at(row, col)] = x;
        });
      };
      ContextPiece piece, old;
      multiply(piece, shared.tangent, p.value, shared.at.value_at);
      if (started) {
        old.fill([&](int row, int col) {
          if (!inside(row, col)) return 0.f;
          const int64_t k = at(row, col);
          return fmaf(shared.shift[row], context[k], tangent[k]);
        });
        piece.add(old, [&](int row) { return shared.alpha[row]; });
      }
      if (moves) {
        multiply(old, shared.p, tangents.value, shared.tangent_at.value_at);
        piece.add(old, [](int) { return 1.f; });
      }
      store(tangent, piece);
      multiply(piece, shared.p, p.value, shared.at.value_at);
      if (started) {
        old.fill([&](int row, int col) { return inside(row, col) ? context[at(row, col)] : 0.f; });
        piece.add(old, [&](int row) { return shared.alpha[row]; });
      }
      store(context, piece);
    });
  });
}

// Store the results of the rows of a block, whose contexts are divided by the totals here.
__device__ __forceinline__ void finish_rows(Shared& shared, const Parts& out, bool started,
                                            int dv) {
  const Part& part = shared.part;
  const int row = threadIdx.x;
  if (row < kTile) {
    const float total = shared.total[row], share = total == 0 ? 0.f : 1 / total;
    const float mean = shared.moment[row] * share;
    shared.alpha[row] = share;
    shared.shift[row] = -mean;
    if (row < part.rows) {
      out.primal.lse[part.row + row] = shared.highest[row] + logf(total);
      store_softmax(out.primal.softmax, part.row + row, shared.highest[row], total);
      out.tangent.lse[part.row + row] = shared.origin[row] + mean;
    }
  }
  __syncthreads();
  float* const context = out.primal.context + part.row * dv;
  float* const tangent = out.tangent.context + part.row * dv;
  each_item(dv, [&](int col0) {
    ContextPiece piece;
    piece.each([&](float, int r, int col) {
      col += col0;
      if (r >= part.rows || col >= dv) return;
      const int64_t k = static_cast<int64_t>(r) * dv + col;
      const float share = shared.alpha[r];
      const bool some = started && share != 0;
      tangent[k] = some ? share * fmaf(shared.shift[r], context[k], tangent[k]) : 0.f;
      context[k] = some ? share * context[k] : 0.f;
    });
  });
}

// Block (b, tile of queries, split of the keys). Every b has n queries and m keys in all.
template <class Act>
__global__ void __launch_bounds__(kThreads, 2)
    jvp_kernel(const __grid_constant__ Problem p, const __grid_constant__ Problem tangents,
               const __grid_constant__ Parts out, const __grid_constant__ Act act) {
  DYNAMIC_SHARED(Shared, shared_);
  Shared& shared = *shared_;
  const Place &at = shared.at, &tangent_at = shared.tangent_at;
  const Part& part = shared.part;
  find_part(shared.at, shared.part, p, out.primal.splits);
  if (part.rows <= 0) return;
  find(shared.tangent_at, tangents, at.b, static_cast<int>(at.item % p.sequences));
  if (threadIdx.x < kTile) {
    shared.highest[threadIdx.x] = -kInfinity;
    shared.total[threadIdx.x] = shared.moment[threadIdx.x] = shared.origin[threadIdx.x] = 0;
  }

  const Matrix& mask = tangents.mask;
  bool started = false;
  for (int jt = part.first; jt < part.last; jt++) {
    if (!any_takes_part(p, at, part.it, jt)) continue;
    Both x;
    tangent_tile(x, shared.stages, p, tangents, act, at, tangent_at, part.it, jt);
    each_pair(part.it, jt, x, [&](int i, int j, float s, float tangent) {
      float added;
      const bool taken = takes_part(p, at.mask_at, at.queries, at.keys, i, j, added);
      s = taken ? s + added : -kInfinity;
      if (taken && mask.data)
        tangent += load(mask.data, mask.dtype, tangent_at.mask_at + i * mask.row + j * mask.col);
      const int cell = i % kTile * kPitch + j % kTile;
      shared.p[cell] = s;
      shared.tangent[cell] = taken ? tangent : 0.f;
      if (out.primal.scores && taken) {
        out.primal.scores[(at.query_row + i) * p.m + j] = s;
        out.tangent.scores[(at.query_row + i) * p.m + j] = tangent;
      }
    });
    __syncthreads();
    soften(shared, p, jt);
    __syncthreads();
    add_values(shared, out.primal.context + part.row * p.dv, out.tangent.context + part.row * p.dv,
               started, p, tangents, jt);
    started = true;
    __syncthreads();  // P and its tangents have been read
  }
  finish_rows(shared, out, started, p.dv);
}

// One block per row: the results of its splits, each weighted by its share of the whole.
__global__ void __launch_bounds__(kThreads, 4)
    combine_jvp_kernel(const __grid_constant__ Parts part, const __grid_constant__ Forward out,
                       const __grid_constant__ Forward tangent, int64_t rows, int dv) {
  const int64_t row = blockIdx.x;
  const Combined all(part.primal, rows, row);
  auto share = [&](int s) {
    return all.total == 0 ? 0.f : all.part(part.primal, s * rows + row) / all.total;
  };
  float moved = 0;
  for (int s = 0; s < part.primal.splits; s++) moved += share(s) * part.tangent.lse[s * rows + row];
  for (int c = threadIdx.x; c < dv; c += kThreads) {
    float x = 0, y = 0;
    for (int s = 0; s < part.primal.splits; s++) {
      const int64_t at = (s * rows + row) * dv + c;
      const float apart = part.tangent.lse[s * rows + row] - moved;
      x += share(s) * part.primal.context[at];
      y += share(s) * fmaf(apart, part.primal.context[at], part.tangent.context[at]);
    }
    static_cast<float*>(out.context.data)[row * dv + c] = x;
    static_cast<float*>(tangent.context.data)[row * dv + c] = y;
  }
  if (threadIdx.x == 0) {
    out.lse[row] = all.highest + logf(all.total);
    store_softmax(out.softmax, row, all.highest, all.total);
    tangent.lse[row] = moved;
  }
}

// Turn scores into weights in place, (E2), and their tangents into those of the weights, both after
// dropout; one thread per pair.
__global__ void __launch_bounds__(kThreads)
    weights_jvp_kernel(const __grid_constant__ Problem p, const __grid_constant__ Forward out,
                       const __grid_constant__ Forward tangent) {
  const int64_t id = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (id >= p.batch.count * p.n * p.m) return;
  const int64_t row = id / p.m, b = row / p.n;
  const int i = static_cast<int>(row % p.n), j = static_cast<int>(id % p.m);
  const float keep = p.seed ? kept(p, b, i, j) : 1.f;
  float added;
  if (takes_part(p, offset(p.batch, b, p.mask.lead), p.n, keys_of(p, b), i, j, added)) {
    const float a = weigh(out.weights[id], as_weights(out.softmax, row));
    out.weights[id] = dropped(a, keep);
    tangent.weights[id] = dropped(a * (tangent.weights[id] - tangent.lse[row]), keep);
  } else {
    out.weights[id] = tangent.weights[id] = 0;
  }
}

struct ScoresShared {
  BothStages stages;
  Place at, tangent_at;
};

// One block per tile of 64 queries and 64 keys: raw scores, (E1), and their tangents. The registers
// of a third block would be a few too few.
template <class Act>
__global__ void __launch_bounds__(kThreads, 2)
    scores_jvp_kernel(const __grid_constant__ Problem p, const __grid_constant__ Problem tangents,
                      float* out, float* out_tangent, const __grid_constant__ Act act) {
  DYNAMIC_SHARED(ScoresShared, shared);
  const unsigned jt = blockIdx.x % p.keys.tiles, rest = blockIdx.x / p.keys.tiles;
  const unsigned it = rest % p.queries.tiles, b = rest / p.queries.tiles;
  find(shared->at, p, b, 0);
  find(shared->tangent_at, tangents, b, 0);
  Both x;
  tangent_tile(x, shared->stages, p, tangents, act, shared->at, shared->tangent_at, it, jt);
  each_pair(it, jt, x, [&](int i, int j, float s, float tangent) {
    if (i >= p.n || j >= p.m) return;
    const int64_t k = (shared->at.query_row + i) * p.m + j;
    out[k] = s;
    out_tangent[k] = tangent;
  });
}

}  // namespace

void forward_jvp(Problem p, const Owners& own, Forward f, Tangents tangents, const Host& host) {
  const int64_t rows = p.batch.count * p.n;
  if (rows == 0) return;
  prepare(p, own, host);
  prepare(tangents.inputs, tangents.own, host, true);
  const Forward& moved = tangents.outputs;
  const int64_t blocks = p.batch.count * p.queries.tiles;
  const int splits = parts_for(blocks, tiles_seen(p, kTile, p.keys.tiles), host, 2);
  if (f.weights) f.softmax = host.allocate<float>(2 * rows);
  auto floats = [](const Output& x) { return static_cast<float*>(x.data); };
  Parts part{{floats(f.context), f.lse, f.weights, splits, f.softmax},
             {floats(moved.context), moved.lse, moved.weights, splits}};
  if (splits > 1) {
    for (Split* each : {&part.primal, &part.tangent}) {
      each->context = host.allocate<float>(splits * rows * p.dv);
      each->lse = host.allocate<float>(splits * rows);
    }
    part.primal.softmax = host.allocate<float>(2 * splits * rows);
  }
  by_activation(p, [&](auto act) {
    launch("forward_jvp", jvp_kernel<decltype(act)>, blocks * splits, kThreads, sizeof(Shared),
           host.stream, p, tangents.inputs, part, act);
  });
  if (splits > 1)
    launch("combine_jvp", combine_jvp_kernel, rows, kThreads, 0, host.stream, part, f, moved, rows,
           p.dv);
  if (f.weights)
    launch("weights_jvp", weights_jvp_kernel, ceil_div(rows * p.m, kThreads), kThreads, 0,
           host.stream, p, f, moved);
}

void scores_jvp(Problem p, const Owners& own, float* out, Tangents tangents, const Host& host) {
  prepare(p, own, host);
  prepare(tangents.inputs, tangents.own, host, true);
  by_activation(p, [&](auto act) {
    launch("scores_jvp", scores_jvp_kernel<decltype(act)>,
           p.batch.count * p.queries.tiles * p.keys.tiles, kThreads, sizeof(ScoresShared),
           host.stream, p, tangents.inputs, out, tangents.outputs.weights, act);
  });
}

}  // namespace attnkernels::cuda
