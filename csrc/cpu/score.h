// Scores of a tile, (E1) by (E7) and (E9). A block of queries is prepared once, for one tile of
// keys after another.
#pragma once
#include <vector>

#include "weight.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// The inner formula, chosen from the ranges of the queries and keys of a tile.
enum class Variant { factored, bounded, direct, pointwise };

constexpr int64_t kNarrow = 2;     // up to this many queries, keys are not transposed
constexpr int64_t kTileRows = 32;  // queries of a tile
static_assert(kPanel % 4 == 0, "dropout takes four keys at a time, from a multiple of four on");

// A range of queries or keys.
struct Span {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Sizes with which the operands of a tile stay in the second-level cache.
inline int64_t tile_keys(int64_t d) { return padded(d) > 1024 ? kPanel : 2 * kPanel; }
inline int64_t block_rows(const Problem& p) {
  const int64_t most = std::clamp<int64_t>((1 << 16) / padded(p.d) / kTileRows * kTileRows,
                                           kTileRows, 8 * kTileRows);
  return std::min(most, std::max<int64_t>(4, (p.queries + 3) / 4 * 4));
}
inline int64_t tile_rows(const Problem& p) { return std::min(kTileRows, block_rows(p)); }

// Rows of d are an odd number of cache lines apart. Otherwise all rows of a column would fall into
// one set of the cache.
constexpr int64_t row_stride(int64_t d) {
  return padded(d) / kLane % 2 ? padded(d) : padded(d) + kLane;
}

template <class T>
class Scorer {
 public:
  // Number of elements of scratch for blocks of up to `rows` queries.
  static int64_t scratch(const Problem& p, int64_t rows) {
    const int64_t width = padded(p.d), ld = row_stride(p.d), keys = tile_keys(p.d);
    return width + 2 * rows * ld + 2 * keys * ld + keys * width;
  }

  // `beside_weight` is the largest magnitude of what is divided as w is.
  Scorer(const Problem& p, const Item& item, int64_t rows, T* scratch, T beside_weight = 0)
      : item_(item), d_(p.d), width_(padded(p.d)), ld_(row_stride(p.d)), activation_(p.activation),
        negative_slope_(static_cast<T>(p.negative_slope)) {
    const int64_t keys = tile_keys(d_);
    w_ = scratch;
    query_exp_ = w_ + width_;
    query_raw_ = query_exp_ + rows * ld_;
    key_raw_ = query_raw_ + rows * ld_;
    key_exp_ = key_raw_ + keys * ld_;
    panels_ = key_exp_ + keys * ld_;
    const ScaledWeight<T> f =
        scale_weight(item.weight, p.activation, p.scale, d_, w_, beside_weight);
    power_ = f.power;
    factor_ = f.factor;
    offset_ = f.offset;
    panel_offset_ = f.panel_offset;
  }

  // Rows i0 .. i0 + rows of the queries.
  void queries(int64_t i0, int64_t rows) {
    i0_ = i0;
    rows_ = rows;
    raw_ready_ = exponentials_ready_ = false;
  }

  // Keys j0 .. j0 + keys. With `row_major` they are also prepared as rows, for use beyond the
  // scores. Without panels and rows they are read from memory as they are: each is used once per
  // query.
  void keys(int64_t j0, int64_t keys, bool row_major, bool panels) {
    keys_ = keys;
    panels_ready_ = panels;
    if (item_.packed && panels && !row_major && use_packed(j0)) return;
    panel_rows_ = width_;
    panel_data_ = panels_;
    const Matrix key = item_.key.at(j0);
    variant_ = is_logistic(activation_) ? Variant::direct : Variant::pointwise;
    if (!row_major && !panels) {
      key_lines_ = in_line(key, keys, d_, ld_, key_raw_);
      return raw_queries();
    }
    if (is_logistic(activation_)) {
      const Matrix lines = in_line(key, keys, d_, ld_, key_raw_);
      Range<T> range;
      if (row_major)
        range = exponential_rows(key_exp_, ld_, lines, keys, d_, gain());
      else
        for (int64_t j = 0; j < keys; j += kPanel)
          range.include(exponential_panel(panels_ + j * width_, lines.at(j),
                                          std::min(kPanel, keys - j), d_, gain()));
      choose(range);
    }
    if (exponentials()) {
      key_rows_ = {key_exp_, ld_};
      if (!row_major) return;
    } else {
      raw_queries();
      key_rows_ = rows_of(key, keys, d_, width_, ld_, key_raw_);
    }
    if (row_major && variant_ == Variant::pointwise)
      finite_ = all_finite(query_rows(), rows_, d_) && all_finite(key_rows_, keys, d_);
    key_lines_ = {key_rows_.data, key_rows_.ld, 1, dtype_of<T>};
    for (int64_t j = 0; panels && j < keys; j += kPanel)
      transpose_panel(panels_ + j * width_, Rows<T>{key_rows_[j], key_rows_.ld},
                      std::min(kPanel, keys - j), width_);
  }

  // out[r, j] = score of query r0 + r and key j of the tile. The rows of `next` are read once,
  // after the keys, and are prefetched meanwhile.
  void score(int64_t r0, int64_t rows, T* out, int64_t ldo, const Matrix& next = {}) const {
    auto logistic = [&]<class X>(const X& x, const T* query) {
      panels_ready_ ? panels(SharedReciprocal<X, true>{x}, query, r0, rows, out, ldo)
                    : lines(SharedReciprocal<X, false>{x}, query, r0, rows, out, ldo, next);
    };
    switch (variant_) {
      case Variant::factored: logistic(Factored{}, query_exp_); break;
      case Variant::bounded: logistic(Bounded{}, query_exp_); break;
      case Variant::direct: logistic(Direct<T>(gain()), query_raw_); break;
      case Variant::pointwise:
        with_activation([&]<class Pointwise>(const Pointwise& f) {
          const PointwiseSum<Pointwise> form{f};
          panels_ready_ ? panels(form, query_raw_, r0, rows, out, ldo)
                        : lines(form, query_raw_, r0, rows, out, ldo, next);
        });
    }
    finish(rows, out, ldo, panels_ready_ ? panel_offset_ : offset_);
  }

  // Scores from the sums of a form.
  void finish(int64_t rows, T* out, int64_t ldo, T add) const {
    const Vec<T> factor(factor_), offset(add);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t j = 0; j < keys_; j += kLanes<T>) {
        T* p = out + r * ldo + j;
        fmadd(load(p), factor, offset).store(p);
      }
  }

  Variant variant() const { return variant_; }
  bool finite() const { return finite_; }  // of the rows of a pointwise activation
  T gain() const { return static_cast<T>(info(activation_).gain); }
  double span() const { return info(activation_).span; }
  // Call f with the pointwise activation.
  template <class F>
  void with_activation(const F& f) const {
    with_pointwise(activation_, negative_slope_, f);
  }
  // The operands of the variant: exponentials, or the queries and keys themselves.
  Rows<T> query_rows() const { return {exponentials() ? query_exp_ : query_raw_, ld_}; }
  Rows<T> key_rows() const { return key_rows_; }
  const T* panel(int64_t j) const { return panel_data_ + j * panel_rows_; }  // keys j .. j + kPanel
  // w, divided by 2^power.
  const T* weight() const { return w_; }
  int power() const { return power_; }
  T offset() const { return offset_; }  // of sums that are not centred
  // A bound of |y_query| + |y_key| over the exponents of the tile.
  T spread() const { return spread_; }

 private:
  bool exponentials() const {
    return variant_ == Variant::factored || variant_ == Variant::bounded;
  }

  void choose(const Range<T>& key) {
    exponential_queries();
    exponent_ = gain() * (query_range_.high + key.high);
    spread_ = gain() * (query_range_.magnitude + key.magnitude);
    const T magnitude = gain() * Range<T>::larger(query_range_.magnitude, key.magnitude);
    variant_ = !(magnitude < Limits<T>::factored) ? Variant::direct
               : exponent_ <= Limits<T>::quad     ? Variant::factored
                                                  : Variant::bounded;
  }

  void exponential_queries() {
    if (exponentials_ready_) return;
    const Matrix lines = in_line(item_.query.at(i0_), rows_, d_, ld_, query_raw_);
    query_range_ = exponential_rows(query_exp_, ld_, lines, rows_, d_, gain());
    exponentials_ready_ = true;
  }

  void raw_queries() {
    for (int64_t r = 0; r < rows_ && !raw_ready_; r++) {
      T* row = query_raw_ + r * ld_;
      load_row(row, item_.query, i0_ + r, d_);
      std::fill(row + d_, row + width_, T(0));
    }
    raw_ready_ = true;
  }

  bool use_packed(int64_t j0) {
    panel_rows_ = packed_rows(d_);
    panel_data_ = static_cast<const T*>(item_.packed) + j0 / kPanel * panel_rows_ * kPanel;
    variant_ = Variant::pointwise;
    if (!is_logistic(activation_)) {
      raw_queries();
      return true;
    }
    Range<T> range;
    for (int64_t j = 0; j < keys_; j += kPanel) {
      const T* stored = panel_data_ + (j / kPanel * panel_rows_ + width_) * kPanel;
      range.include({stored[0], stored[1]});
    }
    choose(range);
    return variant_ != Variant::direct;
  }

  template <class Form>
  void panels(const Form& form, const T* query, int64_t r0, int64_t rows, T* out,
              int64_t ldo) const {
    for (int64_t j = 0; j < keys_; j += kPanel)
      panel_sums(form, query + r0 * ld_, ld_, rows, panel(j), w_, width_, out + j, ldo,
                 std::min(kPanel, keys_ - j));
  }

  template <class Form>
  void lines(const Form& form, const T* query, int64_t r0, int64_t rows, T* out, int64_t ldo,
             const Matrix& next) const {
    typed<T>(key_lines_, [&](const auto* key) {
      for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < keys_; j++)
          out[r * ldo + j] = row_sum(form, query + (r0 + r) * ld_, key + j * key_lines_.row, w_, d_,
                                     next.data ? next.at(j).data : nullptr);
    });
  }

  const Item& item_;
  int64_t d_, width_, ld_, i0_ = 0, rows_ = 0, keys_ = 0, panel_rows_ = 0;
  Activation activation_;
  int power_;
  T negative_slope_, factor_, offset_, panel_offset_, exponent_ = 0, spread_ = 0;
  T *w_, *query_exp_, *query_raw_, *key_raw_, *key_exp_, *panels_;
  const T* panel_data_ = nullptr;
  Rows<T> key_rows_{};
  Matrix key_lines_;
  Range<T> query_range_;
  Variant variant_ = Variant::direct;
  bool finite_ = false, panels_ready_ = false, raw_ready_ = false, exponentials_ready_ = false;
};

// Prepare the keys of one panel for many calls: (width, kPanel), and a row with their range.
template <class T>
void pack_panel(const PackKeys<T>& p, int64_t panel) {
  const int64_t width = padded(p.d), j0 = panel * kPanel, keys = std::min(kPanel, p.m - j0);
  T* out = p.packed + panel * packed_rows(p.d) * kPanel;
  const Matrix key = p.key.at(j0);
  const bool as_they_lie = key.col == 1 && is_logistic(p.activation);
  std::vector<T> gathered(as_they_lie ? 0 : keys * width);
  Range<T> range;
  if (is_logistic(p.activation))
    range = exponential_panel(out, in_line(key, keys, p.d, width, gathered.data()), keys, p.d,
                              static_cast<T>(info(p.activation).gain));
  else
    transpose_panel(out, rows_of(key, keys, p.d, width, width, gathered.data()), keys, width);
  T* stored = out + width * kPanel;
  std::fill(stored, stored + kPanel, T(0));
  stored[0] = range.high;
  stored[1] = range.magnitude;
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
