// One sweep over tiles of pairs computes every gradient, (E4)-(E6), from scores made anew.
//
// A sum over keys belongs to a query and a sum over queries to a key, so each item is cut into P
// pieces of queries and P pieces of keys, and in step s task p works on queries p and keys (p + s)
// mod P: no two tasks of a step share an output, nothing is atomic, and the order of every sum is
// fixed. Where one side is too short to be cut, tasks share it and each has its own copy of its
// gradient, added at the end.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "forward.h"
#include "sweep.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// Keys a tile for a query or two: its operands stay in the first-level cache.
constexpr int64_t kNarrowTile = 16;

struct Plan {
  int64_t pieces = 1, query_pieces = 1, key_pieces = 1;
  std::vector<int64_t> order,
      group;  // items in order; group g is order[group[g]] .. order[group[g + 1]]

  int64_t groups() const { return static_cast<int64_t>(group.size()) - 1; }
  int64_t steps() const { return std::min(query_pieces, key_pieces); }
  int64_t query_copies() const { return pieces / query_pieces; }
  int64_t key_copies() const { return pieces / key_pieces; }
};

struct Span {
  int64_t begin, end;
};

// Piece p of `pieces` of `count`, on multiples of `unit`.
inline Span piece(int64_t count, int64_t p, int64_t pieces, int64_t unit) {
  const int64_t units = (count + unit - 1) / unit;
  return {std::min(count, units * p / pieces * unit),
          std::min(count, units * (p + 1) / pieces * unit)};
}

template <class T>
Plan plan_backward(const Backward<T>& p, int threads) {
  Plan plan;
  int64_t n = 0, m = 0;
  for (int64_t b = 0; b < p.count; b++) {
    plan.order.push_back(b);
    n = std::max(n, p.items[b].n);
    m = std::max(m, p.items[b].m);
  }
  // items that add to the same mask gradient follow each other in one task
  auto mask = [&](int64_t b) { return p.items[b].mask_grad; };
  if (p.grad_mask)
    std::stable_sort(plan.order.begin(), plan.order.end(),
                     [&](int64_t a, int64_t b) { return mask(a) < mask(b); });
  for (int64_t k = 0; k < p.count; k++)
    if (!k || !p.grad_mask || mask(plan.order[k]) != mask(plan.order[k - 1]))
      plan.group.push_back(k);
  plan.group.push_back(p.count);

  const int64_t groups = std::max<int64_t>(1, plan.groups()), tasks = threads * (p.causal ? 4 : 2);
  const int64_t wanted = threads > 1 && groups < tasks ? (tasks + groups - 1) / groups : 1;
  const int64_t queries = (n + kTileRows - 1) / kTileRows,
                keys = (m + tile_keys(p.d) - 1) / tile_keys(p.d);
  const bool row_shared = p.grad_mask && p.grad_mask_row == 0,
             col_shared = p.grad_mask && p.grad_mask_col == 0;
  if (row_shared && col_shared) return plan;
  if (queries > 1 && keys > 1)
    plan.query_pieces = plan.key_pieces = plan.pieces = std::min({wanted, queries, keys});
  else if (keys > 1 && !col_shared)
    plan.key_pieces = plan.pieces = std::min(wanted, keys);
  else if (queries > 1 && !row_shared)
    plan.query_pieces = plan.pieces = std::min(wanted, queries);
  return plan;
}

template <class T>
struct BackwardScratch {
  T *scorer, *weight, *ds, *mask, *value, *value_panels, *grad_context, *sums;
  static int64_t rows(const Problem& p) { return std::min<int64_t>(128, block_rows(p)); }
  static int64_t carve(const Problem& p, T* base, BackwardScratch* s) {
    const int64_t tile = tile_keys(p.d), ld = row_stride(p.dv);
    T* at = base;
    auto take = [&](int64_t count) {
      T* out = at;
      at += padded(count);
      return out;
    };
    BackwardScratch f{take(Scorer<T>::scratch(p, rows(p))),
                      take(tile_rows(p) * tile),
                      take(tile_rows(p) * tile),
                      take(tile_rows(p) * tile),
                      take(tile * ld),
                      take(tile * padded(p.dv)),
                      take(rows(p) * ld),
                      take((kNarrow + 1) * row_stride(p.d))};
    if (s) *s = f;
    return at - base;
  }
};

// delta_i = sum_j a_ij da_ij - dlse_i, where da is the gradient of the weights: D_i of (E4) with
// every output's part.
template <class T>
T row_delta(const Backward<T>& p, const Item& item, int64_t i) {
  const int64_t row = item.query_row + i;
  T delta = 0;
  auto add = [&](const Matrix& g, int64_t g_row, const T* out, int64_t count) {
    const T* grad = static_cast<const T*>(g.at(g_row).data);
    double total = 0;
    for (int64_t c = 0; c < count; c++) total += static_cast<double>(grad[c * g.col] * out[c]);
    delta += static_cast<T>(total);
  };
  if (p.grad_context.data) add(p.grad_context, row, p.context + row * p.dv, p.dv);
  if (p.grad_weights.data)
    add(p.grad_weights, item.pair_row + i, p.weights + (item.pair_row + i) * p.pair_cols, item.m);
  if (p.grad_lse.data) delta -= *static_cast<const T*>(p.grad_lse.at(row).data);
  return delta;
}

// From scores in `weight` and da in `ds` to the weights used, and ds of (E4).
template <class T>
inline void score_gradient_row(const Backward<T>& p, const Item& item, int64_t i, int64_t j0,
                               int64_t keys, T delta, T* weight, T* ds) {
  using V = Vec<T>;
  const T lse = p.lse[item.query_row + i];
  if (lse == -std::numeric_limits<T>::infinity()) {
    std::fill(weight, weight + keys, T(0));
    std::fill(ds, ds + keys, T(0));
    return;
  }
  if (p.grad_weights.data) {
    const Matrix g = p.grad_weights.at(item.pair_row + i, j0);
    for (int64_t j = 0; j < keys; j++) ds[j] += static_cast<const T*>(g.data)[j * g.col];
  }
  if (p.dropout.p > 0) drop_row(ds, p.dropout.p, p.dropout.seed, item.counter, i, j0, keys);
  for (int64_t j = 0; j < keys; j += kLanes<T>) {
    const V a = exp_weight(load(weight + j) - V(lse));
    a.store(weight + j);
    (a * (load(ds + j) - V(delta))).store(ds + j);
  }
  if (p.dropout.p > 0) drop_row(weight, p.dropout.p, p.dropout.seed, item.counter, i, j0, keys);
}

template <class T>
struct Gradients {
  T *query, *key, *value;  // rows of the whole problem, or of a copy
  double* weight;          // (padded d) sums of to_w, then the sum of ds
};

// Queries `is` against keys `js` of one item.
template <class T>
void backward_piece(const Backward<T>& p, const Item& item, Span is, Span js, const T* delta,
                    const Gradients<T>& out, const BackwardScratch<T>& s) {
  const int64_t block = BackwardScratch<T>::rows(p), width = padded(p.dv), ld = row_stride(p.dv);
  const bool from_context = p.grad_context.data != nullptr,
             sweeps = out.query || out.key || out.weight;
  Scorer<T> scorer(p, item, block, s.scorer);
  for (int64_t ib = is.begin; ib < is.end; ib += block) {
    const int64_t rows = std::min(block, is.end - ib);
    const bool panels = rows > kNarrow && !p.grad_scores;
    const int64_t tile = rows > kNarrow ? tile_keys(p.d) : kNarrowTile;
    scorer.queries(ib, rows);
    Rows<T> dc{};
    if (from_context)
      dc = rows_of(p.grad_context.at(item.query_row + ib), rows, p.dv, width, ld, s.grad_context);
    for (int64_t j0 = js.begin; j0 < js.end; j0 += tile) {
      const int64_t keys = std::min(tile, js.end - j0);
      if (!visible(p.causal, ib + rows - 1, j0, keys)) break;
      bool prepared = false;
      Rows<T> value{};
      for (int64_t r0 = 0; r0 < rows; r0 += kTileRows) {
        const int64_t i0 = ib + r0, count = std::min(kTileRows, rows - r0);
        if (!mask_tile(s.mask, tile, p, item, i0, count, j0, keys)) continue;
        if (!prepared) {
          prepared = true;
          scorer.keys(j0, keys, true, panels);
          if (from_context) value = rows_of(item.value.at(j0), keys, p.dv, width, ld, s.value);
          if (from_context && panels)
            for (int64_t j = 0; j < keys; j += kPanel)
              transpose_panel(s.value_panels + j * width, Rows<T>{value[j], value.ld},
                              std::min(kPanel, keys - j), width);
        }
        if (p.grad_scores) {
          for (int64_t r = 0; r < count; r++) {
            const T* g = p.grad_scores + (item.pair_row + i0 + r) * p.pair_cols + j0;
            std::copy(g, g + keys, s.ds + r * tile);
          }
        } else {
          scorer.score(r0, count, s.weight, tile);
          apply_mask(s.weight, s.mask, tile, p, item, i0, count, j0, keys);
          if (!from_context)
            std::fill(s.ds, s.ds + count * tile, T(0));
          else if (panels)
            for (int64_t j = 0; j < keys; j += kPanel)
              panel_sums(Dot{}, dc[r0], dc.ld, count, s.value_panels + j * width, s.value_panels,
                         width, s.ds + j, tile, std::min(kPanel, keys - j));
          else
            for (int64_t r = 0; r < count; r++)
              for (int64_t j = 0; j < keys; j++)
                s.ds[r * tile + j] = row_sum(Dot{}, dc[r0 + r], value[j], value[j], p.dv);
          for (int64_t r = 0; r < count; r++)
            score_gradient_row(p, item, i0 + r, j0, keys, delta[item.query_row + i0 + r],
                               s.weight + r * tile, s.ds + r * tile);
          if (out.value && from_context)
            product(Coefficients<T>{s.weight, 1, tile}, keys, count, dc[r0], dc.ld,
                    static_cast<const T*>(nullptr), out.value + (item.key_row + j0) * p.dv, p.dv,
                    p.dv);
          if (p.grad_mask)
            for (int64_t r = 0; r < count; r++) {
              T* g =
                  p.grad_mask + item.mask_grad + (i0 + r) * p.grad_mask_row + j0 * p.grad_mask_col;
              for (int64_t j = 0; j < keys; j++) g[j * p.grad_mask_col] += s.ds[r * tile + j];
            }
        }
        if (!sweeps) continue;
        if (out.weight) {
          double total = 0;
          for (int64_t r = 0; r < count; r++)
            for (int64_t j = 0; j < keys; j++) total += static_cast<double>(s.ds[r * tile + j]);
          out.weight[padded(p.d)] += total;
        }
        const Rows<T> queries = scorer.query_rows();
        sweep(scorer,
              Tile<T>{{queries[r0], queries.ld}, scorer.key_rows(), s.ds, tile, count, keys, p.d},
              Sums<T>{out.query ? out.query + (item.query_row + i0) * p.d : nullptr,
                      out.key ? out.key + (item.key_row + j0) * p.d : nullptr, out.weight},
              s.sums);
      }
    }
  }
}

// The factor of (E5) that the sweep left out: scale w_t span gain.
template <class T>
void row_factor(const Problem& p, const Item& item, T* factor) {
  const ActivationInfo& f = info(p.activation);
  load_row(factor, item.weight, 0, p.d);
  for (int64_t t = 0; t < p.d; t++) factor[t] *= static_cast<T>(p.scale * f.span * f.gain);
}

// One of the gradients that rows are added to. Sums are in T: in the output itself if that is its
// dtype, else in `whole`, or in each worker's scratch where a task finishes what it began.
template <class T>
struct Accumulator {
  Output out;
  int64_t d, rows;  // of the whole output
  T* whole = nullptr;
  T* copies = nullptr;
  int64_t copy_count = 0;

  bool wanted() const { return out.data; }
  bool in_place() const { return out.dtype == dtype_of<T>; }
  // Where row r of copy c is added to: the result + r * d.
  T* at(int64_t c, int64_t first_row, T* scratch) const {
    if (!wanted()) return nullptr;
    if (c > 0) return copies + (c - 1) * rows * d;
    if (in_place()) return static_cast<T*>(out.data);
    return whole ? whole : scratch - first_row * d;
  }
  void clear(T* rows_at, int64_t first, int64_t count) const {
    if (wanted() && count > 0) std::fill(rows_at + first * d, rows_at + (first + count) * d, T(0));
  }
  // Rows of the output that nothing is added to.
  void clear_output(int64_t first, int64_t count) const {
    const int64_t size = element_size(out.dtype) * d;
    if (wanted() && count > 0)
      std::memset(static_cast<char*>(out.data) + first * size, 0, count * size);
  }
  // output <- factor * (sums + those of the other copies); no factor: 1.
  void finish(T* rows_at, int64_t first, int64_t count, const T* factor) const {
    if (!wanted() || (!factor && !copy_count && in_place())) return;
    for (int64_t i = first; i < first + count; i++) {
      T* row = rows_at + i * d;
      for (int64_t c = 0; c < copy_count; c++)
        for (int64_t t = 0; t < d; t++) row[t] += copies[(c * rows + i) * d + t];
      if (factor)
        for (int64_t t = 0; t < d; t++) row[t] *= factor[t];
      if (!in_place()) store_row(out.data, out.dtype, i * d, row, d);
    }
  }
};

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
