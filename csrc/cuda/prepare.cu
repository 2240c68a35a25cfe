// The operands of scores: panels of queries and keys with their ranges, and weights.
//
//   panel of a tile   quad 0: row 0 | row 1 | ... | row 63      16 bytes per row: 4 hidden units
//   of 64 rows        quad 1: row 0 | ...                       1 KiB per quad
//
// A panel holds exp(gain x), (E7), so that scores need no exponentials of their own: there are
// (n + m) d of them in all. Where float32 cannot hold exp, the range beside the panel says so and
// scores are computed from the inputs. For a pointwise activation, and for tangents, a panel holds
// gain x.
//
// A block of 128 threads makes 64 hidden units of one panel: each thread reads 8 quads, all under
// way together, a warp 128 or 64 bytes per row, and writes them 64 bytes at a time. It is bound by
// memory. Shared memory: 12 floats.
#include "cuda/fours.h"
#include "cuda/rows.h"

namespace attnkernels::cuda {
namespace {

struct Side {
  Matrix x, starts, lengths;
  Own own;
  Sequences ends;
  Panels panels;
  int rows;
};

struct Prepare {
  Side query, key;
  Matrix weight;
  Own own;
  float* weights;
  int sequences, d, padded;
  bool logistic, exponentials;
  float gain, span, scale;
};

// Chunk `chunk` of a panel.
__device__ void make_panel(const Side& side, const Prepare& p, int64_t panel, int chunk) {
  const int tile = static_cast<int>(panel % side.panels.tiles);
  const int64_t b = panel / side.panels.tiles;
  const Extent rows = extent(side.ends, sequence_of(side.ends, p.sequences, tile), side.rows);
  const int first = (tile - rows.tile) * kTile;
  // outside of the keys that take part a panel holds x = 0, whatever the key, or is not made
  const int begin = position_of(side.starts, side.own.batch, b, side.own.starts, 0, rows.count);
  const int end =
      position_of(side.lengths, side.own.batch, b, side.own.lengths, rows.count, rows.count);
  if (first >= end || first + kTile <= begin) return;
  const int64_t at = offset(side.own.batch, b, side.own.lead) + (rows.begin + first) * side.x.row;
  float* const out = side.panels.data + panel * kTile * p.padded;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int quads = p.padded / 4;
  const Rows x(side.x, at, p.d);

  // the quads of this thread: 8 threads along the hidden units, 16 along the rows
  constexpr int kRows = kThreads / 8, kEach = kTile / kRows, kCount = kEach * kChunk / 32;
  auto row_of = [&](int k) { return 4 * warp + lane / 8 + kRows * (k % kEach); };
  auto quad_of = [&](int k) { return chunk * kChunk / 4 + lane % 8 + 8 * (k / kEach); };
  float high = -kInfinity, size = 0, low = kInfinity;
  auto put = [&](int k, const float4& four) {
    const int quad = quad_of(k), row = row_of(k);
    if (quad >= quads) return;
    const bool there = side.x.data && begin <= first + row && first + row < end;
    float y[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int e = 0; e < 4; e++) {
      y[e] = there ? p.gain * y[e] : 0.f;
      high = fmaxf(high, y[e]);
      low = fminf(low, y[e]);
      // NaN counts as infinite: a shared reciprocal would carry it to a neighbour
      size = fmaxf(size, y[e] == y[e] ? fabsf(y[e]) : kInfinity);
      if (p.exponentials) y[e] = exp_exact(y[e]);
    }
    reinterpret_cast<float4*>(out)[quad * kTile + row] = make_float4(y[0], y[1], y[2], y[3]);
  };
  constexpr int kAtOnce = 4;
  if (side.x.data)
    by_fours(x, [&](auto fours) {
#pragma unroll 1
      for (int k0 = 0; k0 < kCount; k0 += kAtOnce) {
        typename decltype(fours)::Bits bits[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; k++)  // beyond the end any will do
          bits[k] = fours.read(x, min(row_of(k0 + k), end - first - 1),
                               4 * min(quad_of(k0 + k), quads - 1), p.d);
#pragma unroll
        for (int k = 0; k < kAtOnce; k++) put(k0 + k, fours.numbers(bits[k]));
      }
    });
  else
    for (int k = 0; k < kCount; k++) put(k, make_float4(0, 0, 0, 0));
  SHARED_ARRAY(float, highs, kThreads / 32);
  SHARED_ARRAY(float, sizes, kThreads / 32);
  SHARED_ARRAY(float, lows, kThreads / 32);
  high = warp_max(high);
  size = warp_max(size);
  low = -warp_max(-low);
  if (lane == 0) {
    highs[warp] = high;
    sizes[warp] = size;
    lows[warp] = low;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kThreads / 32; w++) {
      high = fmaxf(high, highs[w]);
      size = fmaxf(size, sizes[w]);
      low = fminf(low, lows[w]);
    }
    side.panels.ranges[panel * chunks_of(p.d) + chunk] = {high, size, low};
  }
}

// Store w' and (base, unit) such that a score is base + unit * sum_t w'_t g_t, where g is r - 1/2,
// with r = 1 / x of (E7), or the activation itself. The unit is the largest |w'|, so that products
// with w' overflow no sooner than products without. Every warp of the block reduces all of the
// weights. Half the sum of w' of each stage follows.
__device__ void make_weights(const Prepare& p, int64_t b) {
  const int64_t at = offset(p.own.batch, b, p.own.lead);
  float* const out = p.weights + b * weights_size(p.padded);
  const float factor = p.logistic ? -p.span * p.scale : p.scale;
  const int given = p.weight.data ? p.d : 0;
  auto weight = [&](int t) {
    return t < given ? load(p.weight.data, p.weight.dtype, at + t * p.weight.col) : 0.f;
  };
  float largest = 0, sum = 0;
  for (int t = threadIdx.x % 32; t < p.d; t += 32) {
    largest = fmaxf(largest, fabsf(weight(t) * factor));
    sum += weight(t) * p.scale;
  }
  largest = warp_max(largest);
  sum = warp_sum(sum);
  const float unit = largest == 0 ? 1.f : largest;
  for (int t = threadIdx.x; t < p.padded; t += kThreads) out[t] = weight(t) * factor / unit;
  if (threadIdx.x == 0) {
    out[p.padded] = p.logistic ? sum * (1.f - p.span / 2.f) : 0.f;
    out[p.padded + 1] = unit;
  }
  __syncthreads();
  for (int stage = threadIdx.x; stage < stages_of(p.padded); stage += kThreads) {
    float half = 0;
    for (int t = stage * kStage; t < min((stage + 1) * kStage, p.padded); t++) half += out[t] / 2;
    out[p.padded + 2 + stage] = half;
  }
}

// Blocks for the chunks of the panels of the queries, then of the keys, then for the weights.
__global__ void __launch_bounds__(kThreads, 4) prepare_kernel(const __grid_constant__ Prepare p) {
  const int chunks = chunks_of(p.d);
  const int64_t queries = p.query.own.batch.count * p.query.panels.tiles * chunks;
  const int64_t keys = p.key.own.batch.count * p.key.panels.tiles * chunks;
  const int64_t id = blockIdx.x;
  auto make = [&](const Side& side, int64_t of) {
    make_panel(side, p, of / chunks, static_cast<int>(of % chunks));
  };
  if (id < queries)
    make(p.query, id);
  else if (id < queries + keys)
    make(p.key, id - queries);
  else
    make_weights(p, id - queries - keys);
}

void allocate(Side& side, int d, int padded, const Host& host) {
  const int64_t panels = side.own.batch.count * side.panels.tiles;
  side.panels.data = host.allocate<float>(panels * kTile * padded);
  side.panels.ranges = host.allocate<Range>(panels * chunks_of(d));
  for (int k = 0; k < kRank; k++)
    side.panels.lead.along[k] = side.own.index.along[k] * side.panels.tiles;
}

}  // namespace

void prepare(Problem& p, const Owners& own, const Host& host, bool tangents) {
  p.padded = static_cast<int>(ceil_div(p.d, 4) * 4);
  Prepare job{{p.query, {}, {}, own.query, p.query_ends, {}, p.n},
              {p.key, p.starts, p.lengths, own.key, p.key_ends, {}, p.m},
              p.weight,
              own.weight,
              host.allocate<float>(own.weight.batch.count * weights_size(p.padded)),
              p.sequences,
              p.d,
              p.padded,
              is_logistic(p.activation),
              is_logistic(p.activation) && !tangents,
              static_cast<float>(info(p.activation).gain),
              static_cast<float>(info(p.activation).span),
              p.scale};
  job.query.panels.tiles = tiles_of(p.query_ends, p.n, p.sequences);
  job.key.panels.tiles = tiles_of(p.key_ends, p.m, p.sequences);
  allocate(job.query, p.d, p.padded, host);
  allocate(job.key, p.d, p.padded, host);
  p.queries = job.query.panels;
  p.keys = job.key.panels;
  p.weights = job.weights;
  for (int k = 0; k < kRank; k++)
    p.weights_lead.along[k] = own.weight.index.along[k] * weights_size(p.padded);
  const int64_t panels =
      own.query.batch.count * p.queries.tiles + own.key.batch.count * p.keys.tiles;
  const int64_t blocks = panels * chunks_of(p.d) + own.weight.batch.count;
  launch("prepare", prepare_kernel, blocks, kThreads, 0, host.stream, job);
}

}  // namespace attnkernels::cuda
