// The forward and its tangents in one pass, (E10)-(E13), and raw scores with theirs. The sweep is
// that of forward.h with two more sums per row: of p (ds - base) and of its product with the
// values.
//
// The softmax does not change if all tangents of a row are shifted by `base`, here the tangent of
// one of its best keys so far: a row with one key has differences of exactly zero.
#pragma once
#include "forward.h"
#include "tangent_score.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

template <class T>
struct SoftmaxJvp {
  Softmax<T> primal;
  T *base, *total, *context;  // sums of the tangents, in the units of the primal

  static SoftmaxJvp take(Parts<T>& parts, int64_t rows, int64_t ld) {
    return {Softmax<T>::take(parts, rows, ld), parts.take(rows), parts.take(rows),
            parts.take(rows * ld)};
  }
  SoftmaxJvp from(int64_t row) const {
    return {primal.from(row), base + row, total + row, context + row * primal.ld};
  }
  void clear(int64_t rows) const {
    primal.clear(rows);
    std::fill(base, base + rows, T(0));
    std::fill(total, total + rows, T(0));
    std::fill(context, context + rows * primal.ld, T(0));
  }
};

template <class T>
struct ForwardJvpScratch {
  T *scorer, *scores, *tangents, *mask, *row, *value, *value_tangent, *alpha;
  SoftmaxJvp<T> state;
  static int64_t carve(const Problem& p, T* base, ForwardJvpScratch* s) {
    const int64_t rows = block_rows(p), tile = tile_keys(p.d), ld = row_stride(p.dv);
    Parts<T> parts(base);
    ForwardJvpScratch f{parts.take(TangentScorer<T>::scratch(p, rows)),
                        parts.take(tile_rows(p) * tile),
                        parts.take(tile_rows(p) * tile),
                        parts.take(tile_rows(p) * tile),
                        parts.take(tile),
                        parts.take(tile * ld),
                        parts.take(tile * ld),
                        parts.take(tile_rows(p)),
                        SoftmaxJvp<T>::take(parts, rows, ld)};
    if (s) *s = f;
    return parts.taken();
  }
};

// ds <- ds + the tangent of a float mask, and 0 for pairs that take no part and for the columns up
// to `ld`. `tile` is that of mask_tile, `row` scratch.
template <class T>
inline void mask_tangents(T* ds, const T* tile, T* row, int64_t ld, const Problem& p,
                          const Item& item, const Matrix& tangent, int64_t i0, int64_t rows,
                          int64_t j0, int64_t keys) {
  for (int64_t r = 0; r < rows; r++, ds += ld, tile += ld) {
    const Span seen = visible(p.window, i0 + r, j0, keys);
    if (tangent.data) {
      load_row(row, tangent.at(i0 + r, j0), 0, seen.end);
      for (int64_t j = seen.begin; j < seen.end; j++) ds[j] += row[j];
    }
    for (int64_t j = seen.begin; item.mask.data && j < seen.end; j++)
      if (tile[j] == -std::numeric_limits<T>::infinity()) ds[j] = T(0);
    std::fill(ds, ds + seen.begin, T(0));
    std::fill(ds + seen.end, ds + ld, T(0));
  }
}

// softmax_row with tangents: turn S into P, and its tangents dS into P (dS - base).
template <class T>
inline T softmax_row_jvp(T* s, T* ds, int64_t ld, T& high, T& total, T& base, T& total_tangent) {
  using V = Vec<T>;
  if (high == -std::numeric_limits<T>::infinity()) base = ds[std::max_element(s, s + ld) - s];
  const T alpha = softmax_row(s, ld, high, total);
  V sums(T(0));
  for (int64_t j = 0; j < ld; j += kLanes<T>) {
    const V e = load(s + j) * (load(ds + j) - V(base));
    e.store(ds + j);
    sums = sums + e;
  }
  total_tangent = total_tangent * alpha + sum(sums);
  return alpha;
}

template <class T>
void forward_jvp_block(const ForwardJvp<T>& p, const Block& b, const ForwardJvpScratch<T>& s,
                       const SoftmaxJvp<T>& state) {
  const Item& item = p.items[b.item];
  const Tangents& tangents = p.tangents[b.item];
  const int64_t rows = b.i1 - b.i0, tile = tile_keys(p.d), ld = state.primal.ld;
  state.clear(rows);
  TangentScorer<T> scorer(p, item, tangents, block_rows(p), s.scorer);
  scorer.queries(b.i0, rows);
  for (int64_t j0 = b.j0, keys; j0 < b.j1; j0 += keys) {
    keys = std::min(tile_from(j0, tile), b.j1 - j0);
    if (p.host->stopped()) break;
    bool prepared = false;
    Matrix value, value_tangent;
    for (int64_t r0 = 0; r0 < rows; r0 += kTileRows) {
      const int64_t i0 = b.i0 + r0, count = std::min(kTileRows, rows - r0);
      if (!mask_tile(s.mask, tile, p, item, i0, count, j0, keys)) continue;
      if (!std::exchange(prepared, true)) {
        scorer.keys(j0, keys);
        value = in_line(item.value.at(j0), keys, p.dv, ld, s.value, true);
        if (tangents.value.data)
          value_tangent = in_line(tangents.value.at(j0), keys, p.dv, ld, s.value_tangent, true);
      }
      scorer.score(r0, count, s.scores, s.tangents, tile);
      apply_mask(s.scores, s.mask, tile, p, item, i0, count, j0, keys);
      mask_tangents(s.tangents, s.mask, s.row, tile, p, item, tangents.mask, i0, count, j0, keys);
      for (int64_t r = 0; r < count; r++) {
        T *row = s.scores + r * tile, *tangent = s.tangents + r * tile;
        const int64_t i = i0 + r, at = r0 + r;
        if (p.weights) {
          const int64_t pair = (item.pair_row + i) * p.pair_cols + j0;
          std::copy(row, row + keys, p.weights + pair);
          std::copy(tangent, tangent + keys, p.weights_tangent + pair);
        }
        s.alpha[r] = softmax_row_jvp(row, tangent, tile, state.primal.high[at],
                                     state.primal.total[at], state.base[at], state.total[at]);
        if (p.dropout.p > 0) {
          drop_row(row, p.dropout.p, p.dropout.seed, item.counter, i, j0, keys);
          drop_row(tangent, p.dropout.p, p.dropout.seed, item.counter, i, j0, keys);
        }
      }
      auto add = [&](const T* p_rows, const Matrix& x, const T* alpha, T* out) {
        product(Coefficients<T>{p_rows, tile, 1}, count, keys, static_cast<const T*>(x.data), x.row,
                alpha, out + r0 * ld, ld, p.dv);
      };
      add(s.scores, value, s.alpha, state.primal.context);
      add(s.tangents, value, s.alpha, state.context);
      if (value_tangent.data)
        add(s.scores, value_tangent, static_cast<const T*>(nullptr), state.context);
    }
  }
}

// Write one row of the tangents from its state: (E12) and (E13), and 0 for a row without keys.
template <class T>
inline void finish_row_jvp(const ForwardJvp<T>& p, int64_t row, const SoftmaxJvp<T>& at) {
  const T total = *at.primal.total, scale = total == 0 ? T(0) : T(1) / total;
  const T mean = *at.total * scale;
  finish_row(p, row, *at.primal.high, total, at.primal.context);
  T* out = p.context_tangent + row * p.dv;
  for (int64_t c = 0; c < p.dv; c++) out[c] = scale * (at.context[c] - mean * at.primal.context[c]);
  p.lse_tangent[row] = total == 0 ? T(0) : *at.base + mean;
}

// Merge the parts of one row of a block, `rows` apart, into the first.
template <class T>
void merge_row_jvp(const SoftmaxJvp<T>& at, int64_t rows, int64_t count, int64_t dv) {
  T high = *at.primal.high, base = *at.base, total = 0, tangent = 0;
  for (int64_t s = 1; s < count; s++) {
    const SoftmaxJvp<T> part = at.from(s * rows);
    if (!(*part.primal.high > high)) continue;
    high = *part.primal.high;
    base = *part.base;
  }
  for (int64_t s = 0; s < count; s++) {
    const SoftmaxJvp<T> part = at.from(s * rows);
    const T n = *part.primal.total;
    const T unit = n == 0 ? T(0) : std::exp(*part.primal.high - high);
    const T shift = n == 0 ? T(0) : *part.base - base;
    total += unit * n;
    tangent += unit * (*part.total + shift * n);
    for (int64_t c = 0; c < dv; c++) {
      const T x = part.primal.context[c], dx = part.context[c];
      at.primal.context[c] = (s ? at.primal.context[c] : T(0)) + unit * x;
      at.context[c] = (s ? at.context[c] : T(0)) + unit * (dx + shift * x);
    }
  }
  *at.primal.high = high;
  *at.primal.total = total;
  *at.base = base;
  *at.total = tangent;
}

template <class T>
struct ForwardJvpSweep {
  using Number = T;
  using State = SoftmaxJvp<T>;
  using Scratch = ForwardJvpScratch<T>;

  static const State& whole(const ForwardJvp<T>&, const Block&, const Scratch& s) {
    return s.state;
  }
  static void block(const ForwardJvp<T>& p, const Block& b, const Scratch& s, const State& state) {
    forward_jvp_block(p, b, s, state);
  }
  static void finish(const ForwardJvp<T>& p, const Block& b, const State& state) {
    for (int64_t r = 0; r < b.i1 - b.i0; r++)
      finish_row_jvp(p, p.items[b.item].query_row + b.i0 + r, state.from(r));
  }
  // Turn tangents of scores into those of the weights in place, (E13).
  static void finish_weights(const ForwardJvp<T>& p, const Block& b, const State& state) {
    const Item& item = p.items[b.item];
    cpu::finish_weights(p, b, state.primal);
    for (int64_t i = b.i0; i < b.i1; i++) {
      const int64_t row = (item.pair_row + i) * p.pair_cols;
      const T lse = p.lse_tangent[item.query_row + i];
      for (int64_t j = row + b.j0; j < row + b.j1; j++)
        p.weights_tangent[j] = p.weights[j] * (p.weights_tangent[j] - lse);
    }
  }
  static void merge(const ForwardJvp<T>& p, const Block* parts, int64_t count, const State& state,
                    int64_t rows_before) {
    const Block& b = parts[0];
    const int64_t rows = b.i1 - b.i0;
    for (int64_t r = 0; r < rows; r++)
      merge_row_jvp(state.from(rows_before + r), rows, count, p.dv);
    finish(p, b, state.from(rows_before));
  }
};

template <class T>
void forward_jvp(const ForwardJvp<T>& p, const Host& host) {
  run_blocks<ForwardJvpSweep<T>>(p, host);
}

template <class T>
void scores_jvp(const ScoresJvp<T>& p, const Host& host) {
  std::vector<Block> blocks;
  cut(p, host.threads, blocks, false);
  const int64_t tile = tile_keys(p.d), rows_most = block_rows(p), area = tile_rows(p) * tile,
                size = TangentScorer<T>::scratch(p, rows_most) + 2 * area;
  T* scratch = host.allocate<T>(host.threads * size);
  host.run(static_cast<int64_t>(blocks.size()), [&](int64_t task, int64_t worker) {
    const Block& b = blocks[task];
    const Item& item = p.items[b.item];
    const int64_t rows = b.i1 - b.i0;
    T *s = scratch + worker * size, *ds = s + area;
    TangentScorer<T> scorer(p, item, p.tangents[b.item], rows_most, ds + area);
    scorer.queries(b.i0, rows);
    for (int64_t j0 = b.j0; j0 < b.j1 && !p.host->stopped(); j0 += tile) {
      const int64_t keys = std::min(tile, b.j1 - j0);
      scorer.keys(j0, keys);
      for (int64_t r0 = 0; r0 < rows; r0 += kTileRows) {
        const int64_t count = std::min(kTileRows, rows - r0);
        scorer.score(r0, count, s, ds, tile);
        for (int64_t r = 0; r < count; r++) {
          const int64_t at = (item.pair_row + b.i0 + r0 + r) * p.pair_cols + j0;
          std::copy_n(s + r * tile, keys, p.scores + at);
          std::copy_n(ds + r * tile, keys, p.scores_tangent + at);
        }
      }
    }
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
