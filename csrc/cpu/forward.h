// Scores, online softmax and context in one pass, (E1)-(E3). A task is one block of queries against
// a range of keys. With few queries the keys are split between tasks too, and the parts merged.
//
//   for a tile of keys:              keys -> exponentials, transposed          (score.h)
//     for 32 queries of the block:   S = scores; P = exp(S - max); context = alpha context + P V
//
// S and P are one tile of 32 x 64 in the first-level cache. Nothing of size n x m exists unless the
// weights are returned.
#pragma once
#include "blocks.h"
#include "mask.h"
#include "philox.h"
#include "product.h"
#include "scratch.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// The running state of (E2) for a block: `high`, sum of exp(s - high), and context in units of that
// sum.
template <class T>
struct Softmax {
  T *high, *total, *context;
  int64_t ld;

  static Softmax take(Parts<T>& parts, int64_t rows, int64_t ld) {
    return {parts.take(rows), parts.take(rows), parts.take(rows * ld), ld};
  }
  Softmax from(int64_t row) const { return {high + row, total + row, context + row * ld, ld}; }
  void clear(int64_t rows) const {
    std::fill(high, high + rows, -std::numeric_limits<T>::infinity());
    std::fill(total, total + rows, T(0));
    std::fill(context, context + rows * ld, T(0));
  }
};

// How far scores may exceed `high` before the sums are scaled to a higher one. Each time they are,
// all that was summed gets the rounding error of alpha, to which the D_i of (E4) is sensitive.
// Exponentials stay below 2, so that they hardly take values out of range.
constexpr double kSlack = 0.69;

// One row of a tile: P = exp(S - high). Return alpha = exp(old high - new high), by which the state
// is scaled. `high` is the maximum so far, or less by up to kSlack.
template <class T>
inline T softmax_row(T* s, int64_t ld, T& high, T& total) {
  using V = Vec<T>;
  V top = load(s);
  for (int64_t j = kLanes<T>; j < ld; j += kLanes<T>) top = at::vec::maximum(top, load(s + j));
  const T before = high;
  high = Range<T>::larger(max(top), before);
  if (high <= before + T(kSlack)) high = before;
  if (high == -std::numeric_limits<T>::infinity()) {
    std::fill(s, s + ld, T(0));
    return T(1);
  }
  const V h(high);
  V sums(T(0));
  for (int64_t j = 0; j < ld; j += kLanes<T>) {
    const V e = exp_weight(load(s + j) - h);
    e.store(s + j);
    sums = sums + e;
  }
  const T alpha = before == high ? T(1) : std::exp(before - high);
  total = total * alpha + sum(sums);
  return alpha;
}

template <class T>
struct ForwardScratch {
  T *scorer, *scores, *mask, *value, *alpha, *high, *total;
  static int64_t carve(const Problem& p, T* base, ForwardScratch* s) {
    const int64_t rows = block_rows(p), tile = tile_keys(p.d), ld = row_stride(p.dv);
    Parts<T> parts(base);
    ForwardScratch f{parts.take(Scorer<T>::scratch(p, rows)),
                     parts.take(tile_rows(p) * tile),
                     parts.take(tile_rows(p) * tile),
                     parts.take(tile * ld),
                     parts.take(tile_rows(p)),
                     parts.take(rows),
                     parts.take(rows)};
    if (s) *s = f;
    return parts.taken();
  }
};

template <class T>
void forward_block(const Forward<T>& p, const Block& b, const ForwardScratch<T>& s,
                   const Softmax<T>& state) {
  const Item& item = p.items[b.item];
  const int64_t rows = b.i1 - b.i0;
  const int64_t tile = tile_keys(p.d);
  state.clear(rows);
  Scorer<T> scorer(p, item, block_rows(p), s.scorer);
  scorer.queries(b.i0, rows);
  for (int64_t j0 = b.j0, keys; j0 < b.j1; j0 += keys) {
    keys = std::min(tile_from(j0, tile), b.j1 - j0);
    if (p.host->stopped()) break;
    bool prepared = false;
    Matrix value;
    for (int64_t r0 = 0; r0 < rows; r0 += kTileRows) {
      const int64_t i0 = b.i0 + r0, count = std::min(kTileRows, rows - r0);
      if (!mask_tile(s.mask, tile, p, item, i0, count, j0, keys)) continue;
      if (!prepared) {
        scorer.keys(j0, keys);
        value = in_line(item.value.at(j0), keys, p.dv, row_stride(p.dv), s.value, rows > kNarrow);
        prepared = true;
      }
      scorer.score(r0, count, s.scores, tile, r0 || value.data == s.value ? Matrix{} : value);
      apply_mask(s.scores, s.mask, tile, p, item, i0, count, j0, keys);
      for (int64_t r = 0; r < count; r++) {
        T* row = s.scores + r * tile;
        const int64_t i = i0 + r;
        if (p.weights)
          std::copy(row, row + keys, p.weights + (item.pair_row + i) * p.pair_cols + j0);
        s.alpha[r] = softmax_row(row, padded(keys), state.high[r0 + r], state.total[r0 + r]);
        if (p.dropout.p > 0) drop_row(row, p.dropout.p, p.dropout.seed, item.counter, i, j0, keys);
      }
      typed<T>(value, [&](const auto* rows) {
        product(Coefficients<T>{s.scores, tile, 1}, count, keys, rows, value.row, s.alpha,
                state.context + r0 * state.ld, state.ld, p.dv);
      });
    }
  }
}

// Write context and lse of one row from its state: 0 and -inf for a row without keys.
template <class T>
inline void finish_row(const Forward<T>& p, int64_t row, T high, T total, const T* context) {
  const T divisor = total == 0 ? T(1) : total;
  T* out = p.context + row * p.dv;
  for (int64_t c = 0; c < p.dv; c++) out[c] = context[c] / divisor;
  if (p.lse) p.lse[row] = total == 0 ? -std::numeric_limits<T>::infinity() : high + std::log(total);
  if (!p.softmax) return;
  p.softmax[2 * row] = high;
  p.softmax[2 * row + 1] = total;
}

// Merge the parts of one block, into the first. The sums of each are in units of exp(its own
// `high`).
template <class T>
void merge(const Forward<T>& p, const Block* parts, int64_t count, const Softmax<T>& state,
           int64_t rows_before) {
  const Block& b = parts[0];
  const int64_t rows = b.i1 - b.i0;
  for (int64_t r = 0; r < rows; r++) {
    const int64_t first = rows_before + r;
    T high = state.high[first];
    for (int64_t s = 1; s < count; s++) high = Range<T>::larger(state.high[first + s * rows], high);
    T total = 0;
    T* context = state.context + first * state.ld;
    for (int64_t s = 0; s < count; s++) {
      const int64_t part = first + s * rows;
      const T unit = state.total[part] == 0 ? T(0) : std::exp(state.high[part] - high);
      total += unit * state.total[part];
      const T* from = state.context + part * state.ld;
      for (int64_t c = 0; c < p.dv; c++) context[c] = (s ? context[c] : T(0)) + unit * from[c];
    }
    state.high[first] = high;
    state.total[first] = total;
    finish_row(p, p.items[b.item].query_row + b.i0 + r, high, total, context);
  }
}

// Turn raw scores into weights in place, with dropout. `state` is that of the whole rows.
template <class T>
void finish_weights(const Forward<T>& p, const Block& b, const Softmax<T>& state) {
  const Item& item = p.items[b.item];
  for (int64_t i = b.i0; i < b.i1; i++) {
    T* row = p.weights + (item.pair_row + i) * p.pair_cols;
    const T total = state.total[i - b.i0];
    const Weigh<T> weigh(state.high[i - b.i0], total);
    for (int64_t j = b.j0; j < b.j1; j += kLanes<T>) {
      const int64_t left = std::min(kLanes<T>, b.j1 - j);
      const Vec<T> e = total == 0 ? Vec<T>(T(0)) : weigh(Vec<T>::loadu(row + j, left));
      e.store(row + j, static_cast<int>(left));
    }
    if (p.dropout.p > 0)
      drop_row(row + b.j0, p.dropout.p, p.dropout.seed, item.counter, i, b.j0, b.j1 - b.j0);
  }
}

// The operations of a sweep, for run_blocks: those of the forward. Its problem is a Forward.
template <class T>
struct ForwardSweep {
  using Number = T;
  using State = Softmax<T>;
  using Scratch = ForwardScratch<T>;

  // The state of a block that is not split. Its context is summed where the result will be.
  static State whole(const Forward<T>& p, const Block& b, const Scratch& s) {
    return {s.high, s.total, p.context + (p.items[b.item].query_row + b.i0) * p.dv, p.dv};
  }
  static void block(const Forward<T>& p, const Block& b, const Scratch& s, const State& state) {
    forward_block(p, b, s, state);
  }
  static void finish(const Forward<T>& p, const Block& b, const State& state) {
    for (int64_t r = 0; r < b.i1 - b.i0; r++)
      finish_row(p, p.items[b.item].query_row + b.i0 + r, state.high[r], state.total[r],
                 state.context + r * state.ld);
  }
  static void finish_weights(const Forward<T>& p, const Block& b, const State& state) {
    cpu::finish_weights(p, b, state);
  }
  static void merge(const Forward<T>& p, const Block* parts, int64_t count, const State& state,
                    int64_t rows_before) {
    cpu::merge(p, parts, count, state, rows_before);
  }
};

// Run the blocks of a sweep, then merge and finish those that were split.
template <class Sweep, class P>
void run_blocks(const P& p, const Host& host) {
  using T = typename Sweep::Number;
  using State = typename Sweep::State;
  using Scratch = typename Sweep::Scratch;
  std::vector<Block> blocks;
  const int64_t parts = cut(p, host.threads, blocks, true), ld = row_stride(p.dv);
  const int64_t size = Scratch::carve(p, nullptr, nullptr);
  T* scratch = host.allocate<T>(host.threads * size);
  Parts<T> counted(nullptr);
  State::take(counted, parts, ld);
  Parts<T> taken(host.allocate<T>(counted.taken()));
  const State all = State::take(taken, parts, ld);

  host.run(static_cast<int64_t>(blocks.size()), [&](int64_t task, int64_t worker) {
    const Block& b = blocks[task];
    Scratch s;
    Scratch::carve(p, scratch + worker * size, &s);
    const Item& item = p.items[b.item];
    if (p.weights)
      for (int64_t i = b.i0; i < b.i1; i++) {
        T* row = p.weights + (item.pair_row + i) * p.pair_cols;
        std::fill(row + b.j0, row + b.j1, -std::numeric_limits<T>::infinity());
      }
    if (b.part >= 0) return Sweep::block(p, b, s, all.from(b.part));
    const State state = Sweep::whole(p, b, s);
    Sweep::block(p, b, s, state);
    Sweep::finish(p, b, state);
    if (p.weights) Sweep::finish_weights(p, b, state);
  });

  // the parts of a block follow one another
  const int64_t count = static_cast<int64_t>(blocks.size());
  auto continues = [&](int64_t k) {
    const Block &b = blocks[k], &before = blocks[k - 1];
    return b.item == before.item && b.i0 == before.i0;
  };
  std::vector<int64_t> first;  // the first part of each block that was split
  for (int64_t k = 0; k < count; k++)
    if (blocks[k].part >= 0 && !(k && continues(k))) first.push_back(k);
  host.run(static_cast<int64_t>(first.size()), [&](int64_t task, int64_t) {
    const int64_t k = first[task];
    int64_t end = k + 1;
    while (end < count && continues(end)) end++;
    Sweep::merge(p, &blocks[k], end - k, all, blocks[k].part);
    if (p.weights)
      for (int64_t e = k; e < end; e++)
        Sweep::finish_weights(p, blocks[e], all.from(blocks[k].part));
  });
}

template <class T>
void forward(const Forward<T>& p, const Host& host) {
  run_blocks<ForwardSweep<T>>(p, host);
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
