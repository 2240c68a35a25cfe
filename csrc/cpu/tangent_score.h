// Scores of a tile and their tangents, (E10) and (E11): the operands of score.h, and the tangents
// of queries and keys multiplied by w.
#pragma once
#include "pair_tangents.h"
#include "score.h"
#include "scratch.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

template <class T>
class TangentScorer {
 public:
  // Number of elements of scratch for blocks of up to `rows` queries.
  static int64_t scratch(const Problem& p, int64_t rows) {
    Parts<T> parts(nullptr);
    carve(p, rows, parts);
    return parts.taken();
  }

  TangentScorer(const Problem& p, const Item& item, const Tangents& tangents, int64_t rows,
                T* scratch)
      : tangents_(tangents), d_(p.d), width_(padded(p.d)), ld_(row_stride(p.d)),
        needed_(tangents.query.data || tangents.key.data || tangents.weight.data),
        s_(carve(p, rows, Parts<T>(scratch))), scorer_(p, item, rows, s_.scorer, load_weight(p)) {
    const auto& f = info(p.activation);
    const double unit = std::ldexp(p.scale, scorer_.power());
    factor_ = static_cast<T>(is_logistic(p.activation) ? f.span * f.gain * unit : unit);
    double total = 0;
    const T divided = std::ldexp(T(1), -scorer_.power());
    for (int64_t t = 0; t < width_; t++) {
      total += static_cast<double>(s_.weight[t]);
      s_.weight[t] *= is_logistic(p.activation) ? divided / static_cast<T>(f.gain) : divided;
    }
    offset_ = static_cast<T>(is_logistic(p.activation) ? p.scale * total : 0);
    if (!tangents.query.data) std::fill(s_.query, s_.query + rows * ld_, T(0));
    if (!tangents.key.data) std::fill(s_.key, s_.key + tile_keys(d_) * width_, T(0));
  }

  // Rows i0 .. i0 + rows of the queries.
  void queries(int64_t i0, int64_t rows) {
    scorer_.queries(i0, rows);
    for (int64_t r = 0; tangents_.query.data && r < rows; r++)
      weighted_row(s_.query + r * ld_, tangents_.query, i0 + r);
  }

  // Keys j0 .. j0 + keys.
  void keys(int64_t j0, int64_t keys) {
    keys_ = keys;
    scorer_.panel_keys(j0, keys);
    for (int64_t j = 0; tangents_.key.data && j < keys; j += kPanel) {
      const int64_t count = std::min(kPanel, keys - j);
      for (int64_t c = 0; c < count; c++)
        weighted_row(s_.rows + c * ld_, tangents_.key, j0 + j + c);
      transpose_panel(s_.key + j * width_, Rows<T>{s_.rows, ld_}, count, width_);
    }
  }

  // s[r, j] and ds[r, j] = score of query r0 + r and key j of the tile, and its tangent.
  void score(int64_t r0, int64_t rows, T* s, T* ds, int64_t ldo) const {
    if (!needed_) {
      std::fill(ds, ds + rows * ldo, T(0));
      return scorer_.score(r0, rows, s, ldo);
    }
    tangents_.weight.data ? with_form<true>(r0, rows, {s, ds, ldo})
                          : with_form<false>(r0, rows, {s, ds, ldo});
    scorer_.finish(rows, s, ldo, 0, keys_, scorer_.factor(), scorer_.offset());
    const Vec<T> factor(factor_), offset(offset_);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t j = 0; j < keys_; j += kLanes<T>) {
        T* p = ds + r * ldo + j;
        fmadd(load(p), factor, offset).store(p);
      }
  }

 private:
  // query (rows, ld) and key (panels) are multiplied by w; rows has space for the keys of a panel.
  struct Scratch {
    T *scorer, *weight, *query, *key, *rows;
  };
  template <class P>
  static Scratch carve(const Problem& p, int64_t rows, P&& parts) {
    const int64_t ld = row_stride(p.d);
    return {parts.take(Scorer<T>::scratch(p, rows)), parts.take(padded(p.d)), parts.take(rows * ld),
            parts.take(tile_keys(p.d) * padded(p.d)), parts.take(kPanel * ld)};
  }

  // Load the tangent of w; return its largest magnitude.
  T load_weight(const Problem& p) {
    std::fill(s_.weight, s_.weight + width_, T(0));
    if (tangents_.weight.data) load_row(s_.weight, tangents_.weight, 0, p.d);
    return range_of(s_.weight, width_).magnitude;
  }

  void weighted_row(T* row, const Matrix& tangent, int64_t i) const {
    load_row(row, tangent, i, d_);
    std::fill(row + d_, row + width_, T(0));
    for (int64_t t = 0; t < width_; t += kLanes<T>)
      (load(row + t) * load(scorer_.weight() + t)).store(row + t);
  }

  template <bool Weight>
  void with_form(int64_t r0, int64_t rows, const PairSums<T>& out) const {
    switch (scorer_.variant()) {
      case Variant::factored: return sums(LogisticTangent<Factored, Weight>{}, r0, rows, out);
      case Variant::bounded: return sums(LogisticTangent<Bounded, Weight>{}, r0, rows, out);
      case Variant::direct:
        return sums(DirectTangent<T, Weight>{Direct<T>(scorer_.gain())}, r0, rows, out);
      case Variant::pointwise:
        return scorer_.with_activation([&]<class Pointwise>(const Pointwise& f) {
          sums(PointwiseTangent<Pointwise, Weight>{f}, r0, rows, out);
        });
      case Variant::passing: break;  // for scores alone
    }
  }

  template <class Form>
  void sums(const Form& form, int64_t r0, int64_t rows, const PairSums<T>& out) const {
    const Rows<T> query = scorer_.query_rows();
    for (int64_t j = 0; j < keys_; j += kPanel)
      tangent_sums(form,
                   TangentOperands<T>{query[r0], s_.query + r0 * ld_, ld_, scorer_.panel(j),
                                      s_.key + j * width_, scorer_.weight(), s_.weight, width_},
                   rows, std::min(kPanel, keys_ - j),
                   PairSums<T>{out.sum + j, out.tangent + j, out.ld});
  }

  const Tangents& tangents_;
  int64_t d_, width_, ld_, keys_ = 0;
  bool needed_;
  Scratch s_;
  Scorer<T> scorer_;
  T factor_, offset_;
};

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
