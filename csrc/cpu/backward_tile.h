// The gradients of a piece of queries against a piece of keys, (E4)-(E6), tile by tile from
// recomputed scores.
#pragma once
#include "backward_plan.h"
#include "delta.h"
#include "product.h"
#include "scratch.h"
#include "sweep.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

template <class T>
struct BackwardScratch {
  T *scorer, *weight, *ds, *mask, *value, *value_panels, *grad_context, *sums;
  static int64_t rows(const Problem& p) { return std::min(4 * kTileRows, block_rows(p)); }
  static int64_t carve(const Problem& p, T* base, BackwardScratch* s) {
    const int64_t tile = tile_keys(p.d), ld = row_stride(p.dv);
    Parts<T> parts(base);
    BackwardScratch f{parts.take(Scorer<T>::scratch(p, rows(p))),
                      parts.take(tile_rows(p) * tile),
                      parts.take(tile_rows(p) * tile),
                      parts.take(tile_rows(p) * tile),
                      parts.take(tile * ld),
                      parts.take(tile * padded(p.dv)),
                      parts.take(rows(p) * ld),
                      parts.take((kNarrow + 1) * row_stride(p.d))};
    if (s) *s = f;
    return parts.taken();
  }
};

// Turn scores in `weight` and da in `ds` into the weights that were used and ds of (E4): 0 for
// scores of -inf, of pairs that take no part, whatever the row holds besides. `given` are the
// weights, if they need not be computed. Of a row that the tile has all of, D_i is formed from
// these numbers, so that ds adds up to dlse_i, whatever the error of the context is. centre(j)
// computes da_ij - D_i without cancellation, for a pair with most of the row's weight.
template <class T, class Centre>
inline void score_gradient_row(const Backward<T>& p, const Item& item, int64_t i, int64_t j0,
                               int64_t keys, const Delta<T>& delta, const T* given, T* weight,
                               T* ds, const Centre& centre) {
  using V = Vec<T>;
  constexpr T out = -std::numeric_limits<T>::infinity();
  const T lse = p.lse[item.query_row + i];
  if (lse == out) {
    std::fill(weight, weight + keys, T(0));
    std::fill(ds, ds + keys, T(0));
    return;
  }
  if (p.grad_weights.data) {
    const Matrix g = p.grad_weights.at(item.pair_row + i, j0);
    for (int64_t j = 0; j < keys; j++) ds[j] += static_cast<const T*>(g.data)[j * g.col];
  }
  if (p.dropout.p > 0) drop_row(ds, p.dropout.p, p.dropout.seed, item.counter, i, j0, keys);
  const T* softmax = p.softmax ? p.softmax + 2 * (item.query_row + i) : nullptr;
  const Weigh<T> weigh(softmax ? softmax[0] : lse, softmax ? softmax[1] : T(1));
  const V zero(T(0));
  auto weights = [&](int64_t j) {
    return given ? V::loadu(given + j, std::min(kLanes<T>, keys - j)) : weigh(load(weight + j));
  };
  const Span seen = visible(p.window, i, item.first, item.m - item.first);
  T total = delta.total();
  const int64_t begin = item.first + seen.begin, end = item.first + seen.end;
  if (!p.is_block && begin >= j0 && end <= j0 + keys) {  // the tile has all of the row
    V sums = zero;
    for (int64_t j = 0; j < keys; j += kLanes<T>)
      sums = sums + V::blendv(weights(j) * load(ds + j), zero, load(weight + j) == V(out));
    total = sum(sums) - delta.lse;
  }
  V most = zero;
  for (int64_t j = 0; j < keys; j += kLanes<T>) {
    const V excluded = load(weight + j) == V(out), a = V::blendv(weights(j), zero, excluded);
    most = at_least(a, most);
    a.store(weight + j);
    V::blendv(a * (load(ds + j) - V(total)), zero, excluded).store(ds + j);
  }
  const bool only = !p.is_block && seen.size() == 1;
  if (max(most) > (only ? T(0) : T(0.5)))
    for (int64_t j = 0; j < keys; j++) {
      if (only && weight[j] > 0) weight[j] = 1;  // however the score was rounded
      if (weight[j] > T(0.5)) ds[j] = weight[j] * centre(j);
    }
  if (p.dropout.p > 0) drop_row(weight, p.dropout.p, p.dropout.seed, item.counter, i, j0, keys);
}

// The gradients that a task adds to: rows of the whole problem, or of a copy. Null if not wanted.
template <class T>
struct Gradients {
  T *query, *key, *value;
  double* weight;   // (padded d) sums of to_w, then the sum of ds
  const T* factor;  // of each hidden unit, for those gradients that take it now and not at the end
  bool query_takes, key_takes;
};

template <class T>
class BackwardPiece {
 public:
  BackwardPiece(const Backward<T>& p, const Item& item, const Delta<T>* delta,
                const Gradients<T>& out, const BackwardScratch<T>& s)
      : p_(p), item_(item), delta_(delta), out_(out), s_(s), width_(padded(p.dv)),
        ld_(row_stride(p.dv)), scorer_(p, item, BackwardScratch<T>::rows(p), s.scorer) {}

  // Add the contributions of queries `is` and keys `js`.
  void run(Span is, Span js) {
    const int64_t block = BackwardScratch<T>::rows(p_);
    for (int64_t ib = is.begin; ib < is.end; ib += block) {
      take_queries(ib, std::min(block, is.end - ib));
      const int64_t first = std::max({js.begin, item_.first, p_.window.first(ib) / tile_ * tile_}),
                    last = p_.window.end(ib + rows_ - 1, js.end);
      for (int64_t j0 = first; j0 < last && !p_.host->stopped(); j0 += tile_)
        run_keys(j0, std::min(tile_, last - j0));
    }
  }

 private:
  // Queries i0 = block + r0 .. i0 + rows against keys j0 .. j0 + keys.
  struct At {
    int64_t r0, i0, rows, j0, keys;
  };

  bool from_context() const { return p_.grad_context.data; }
  // With a query or two the values are not transposed.
  bool panels() const { return rows_ > kNarrow && !p_.grad_scores; }

  void take_queries(int64_t ib, int64_t rows) {
    ib_ = ib;
    rows_ = rows;
    tile_ = rows > kNarrow ? tile_keys(p_.d) : kNarrowTile;
    scorer_.queries(ib, rows);
    if (from_context())
      grad_context_ = rows_of(p_.grad_context.at(item_.query_row + ib), rows, p_.dv, width_, ld_,
                              s_.grad_context);
  }

  // All queries of the block against one tile of keys, prepared when the first pair takes part.
  void run_keys(int64_t j0, int64_t keys) {
    bool prepared = false;
    for (int64_t r0 = 0; r0 < rows_; r0 += kTileRows) {
      const At at{r0, ib_ + r0, std::min(kTileRows, rows_ - r0), j0, keys};
      if (!mask_tile(s_.mask, tile_, p_, item_, at.i0, at.rows, j0, keys)) continue;
      if (!std::exchange(prepared, true)) take_keys(j0, keys);
      if (p_.grad_scores) {
        copy_score_gradient(at);
      } else {
        score_gradient(at);
        add_value(at);
        add_mask(at);
      }
      add_query_key_weight(at);
    }
  }

  void take_keys(int64_t j0, int64_t keys) {
    scorer_.row_keys(j0, keys, !p_.grad_scores);
    if (!from_context()) return;
    value_ = rows_of(item_.value.at(j0), keys, p_.dv, width_, ld_, s_.value);
    for (int64_t j = 0; panels() && j < keys; j += kPanel)
      transpose_panel(s_.value_panels + j * width_, Rows<T>{value_[j], value_.ld},
                      std::min(kPanel, keys - j), width_);
  }

  void copy_score_gradient(const At& at) {
    for (int64_t r = 0; r < at.rows; r++) {
      const T* g = p_.grad_scores + (item_.pair_row + at.i0 + r) * p_.pair_cols + at.j0;
      std::copy(g, g + at.keys, s_.ds + r * tile_);
    }
  }

  // The weights and ds of (E4), from recomputed scores.
  void score_gradient(const At& at) {
    const bool given = p_.weights && p_.dropout.p == 0;
    if (given)
      std::fill(s_.weight, s_.weight + at.rows * tile_, T(0));
    else
      scorer_.score(at.r0, at.rows, s_.weight, tile_);
    apply_mask(s_.weight, s_.mask, tile_, p_, item_, at.i0, at.rows, at.j0, at.keys);
    context_part(at);
    const bool context = from_context();
    for (int64_t r = 0; r < at.rows; r++) {
      const int64_t i = at.i0 + r;
      const Delta<T>& delta = delta_[item_.query_row + i];
      const T* dc = context ? grad_context_[at.r0 + r] : nullptr;
      score_gradient_row(p_, item_, i, at.j0, at.keys, delta,
                         given ? p_.weights + (item_.pair_row + i) * p_.pair_cols + at.j0 : nullptr,
                         s_.weight + r * tile_, s_.ds + r * tile_, [&](int64_t j) {
                           return centred(p_, item_, delta, i, at.j0 + j, dc,
                                          context ? value_[j] : nullptr);
                         });
    }
  }

  // ds <- dc_i . u_j, the part of the context in da.
  void context_part(const At& at) {
    const Rows<T> dc = grad_context_, value = value_;
    if (!from_context()) {
      std::fill(s_.ds, s_.ds + at.rows * tile_, T(0));
    } else if (panels()) {
      for (int64_t j = 0; j < at.keys; j += kPanel)
        panel_sums(Dot{}, dc[at.r0], dc.ld, at.rows, s_.value_panels + j * width_, s_.value_panels,
                   width_, s_.ds + j, tile_, std::min(kPanel, at.keys - j));
    } else {
      for (int64_t r = 0; r < at.rows; r++)
        for (int64_t j = 0; j < at.keys; j++)
          s_.ds[r * tile_ + j] = row_sum(Dot{}, dc[at.r0 + r], value[j], value[j], p_.dv);
    }
  }

  // du of (E6).
  void add_value(const At& at) {
    if (!out_.value || !from_context()) return;
    product(Coefficients<T>{s_.weight, 1, tile_}, at.keys, at.rows, grad_context_[at.r0],
            grad_context_.ld, static_cast<const T*>(nullptr),
            out_.value + (item_.grad_value + at.j0) * p_.dv, p_.dv, p_.dv);
  }

  void add_mask(const At& at) {
    if (!p_.grad_mask) return;
    const int64_t row = p_.grad_mask_row, col = p_.grad_mask_col;
    T* out = p_.grad_mask + item_.grad_mask + at.i0 * row + at.j0 * col;
    // pairs of the tile that share an entry are summed first, which keeps long sums accurate
    const int64_t rows = row ? at.rows : 1, keys = col ? at.keys : 1;
    for (int64_t r = 0; r < rows; r++)
      for (int64_t j = 0; j < keys; j++) {
        double sum = 0;
        for (int64_t i = r; i < (row ? r + 1 : at.rows); i++)
          for (int64_t k = j; k < (col ? j + 1 : at.keys); k++)
            sum += static_cast<double>(s_.ds[i * tile_ + k]);
        out[r * row + j * col] += static_cast<T>(sum);
      }
  }

  // dq, dk and the sums for dw, (E5) and (E6).
  void add_query_key_weight(const At& at) {
    if (!out_.query && !out_.key && !out_.weight) return;
    const Rows<T> queries = scorer_.query_rows();
    sweep(
        scorer_,
        Tile<T>{
            {queries[at.r0], queries.ld}, scorer_.key_rows(), s_.ds, tile_, at.rows, at.keys, p_.d},
        Sums<T>{out_.query ? out_.query + (item_.grad_query + at.i0) * p_.d : nullptr,
                out_.key ? out_.key + (item_.grad_key + at.j0) * p_.d : nullptr, out_.weight,
                out_.query_takes ? out_.factor : nullptr, out_.key_takes ? out_.factor : nullptr},
        s_.sums);
  }

  const Backward<T>& p_;
  const Item& item_;
  const Delta<T>* delta_;
  const Gradients<T>& out_;
  const BackwardScratch<T>& s_;
  int64_t width_, ld_;  // of rows of values
  int64_t ib_ = 0, rows_ = 0, tile_ = 0;
  Scorer<T> scorer_;
  Rows<T> grad_context_{}, value_{};
};

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
