// Scores of a tile, (E1) by (E7) and (E9). A block of queries is prepared once, for one tile of
// keys after another.
#pragma once
#include <vector>

#include "weight.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// The inner formula, chosen from the ranges of the queries and keys of a tile.
enum class Variant { factored, bounded, passing, direct, pointwise };

constexpr int64_t kNarrow = 2;     // up to this many queries, exponentials of keys are not stored
constexpr int64_t kFew = 8;        // up to this many queries, transposing keys would not pay
constexpr int64_t kTileRows = 32;  // queries of a tile
// Keys of a tile of the backward for a query or two: its operands stay in the first-level cache.
constexpr int64_t kNarrowTile = 16;
static_assert(kNarrowTile <= kPanel && kNarrowTile % kLane == 0, "scratch is for tiles of panels");

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
    row_factor_ = f.row_factor;
    row_offset_ = f.row_offset;
  }

  // Rows i0 .. i0 + rows of the queries.
  void queries(int64_t i0, int64_t rows) {
    i0_ = i0;
    rows_ = rows;
    raw_ready_ = exponentials_ready_ = false;
  }

  // Keys j0 .. j0 + keys for the scores alone.
  void keys(int64_t j0, int64_t keys) {
    const int64_t panels = panel_part(j0, keys);
    if (!use_packed(j0, keys, panels)) lay_out(j0, keys, panels);
  }

  // Keys j0 .. j0 + keys, all of them as panels.
  void panel_keys(int64_t j0, int64_t keys) { lay_out(j0, keys, keys); }

  // Keys j0 .. j0 + keys as rows, for use beyond the scores, and if `scored` for these as well.
  void row_keys(int64_t j0, int64_t keys, bool scored) {
    keys_ = keys;
    panel_keys_ = scored ? panel_part(j0, keys) : 0;
    variant_ = is_logistic(activation_) ? Variant::direct : Variant::pointwise;
    const Matrix key = item_.key.at(j0);
    if (is_logistic(activation_)) {
      const Matrix lines = in_line(key, keys, d_, ld_, key_raw_);
      choose(exponential_rows(key_exp_, ld_, lines, keys, d_, gain()));
    }
    if (exponentials()) {
      key_rows_ = {key_exp_, ld_};
    } else {
      raw_queries();
      key_rows_ = rows_of(key, keys, d_, width_, ld_, key_raw_);
    }
    if (variant_ == Variant::pointwise)
      finite_ = all_finite(query_rows(), rows_, d_) && all_finite(key_rows_, keys, d_);
    lines_ = {key_rows_.data, key_rows_.ld, 1, dtype_of<T>};
    transpose(key_rows_);
  }

  // out[r, j] = score of query r0 + r and key j of the tile. The rows of `next` are read once,
  // after the keys, and are prefetched meanwhile.
  void score(int64_t r0, int64_t rows, T* out, int64_t ldo, const Matrix& next = {}) const {
    auto logistic = [&]<class X>(const X& x, const T* query) {
      panels(SharedReciprocal<X, true>{x}, query, r0, rows, out, ldo, next);
      lines(SharedDifference<X>{x}, query, r0, rows, out, ldo, {panel_keys_, keys_}, next);
    };
    switch (variant_) {
      case Variant::factored: logistic(Factored{}, query_exp_); break;
      case Variant::bounded: logistic(Bounded{}, query_exp_); break;
      case Variant::passing: passing(r0, rows, out, ldo, next); break;
      case Variant::direct: logistic(Direct<T>(gain()), query_raw_); break;
      case Variant::pointwise:
        with_activation([&]<class Pointwise>(const Pointwise& f) {
          const PointwiseSum<Pointwise> form{f};
          panels(form, query_raw_, r0, rows, out, ldo, next);
          lines(form, query_raw_, r0, rows, out, ldo, {panel_keys_, keys_}, next);
        });
    }
  }

  // Scores of keys from the sums of a form: multiply and add.
  void finish(int64_t rows, T* out, int64_t ldo, int64_t begin, int64_t end, T multiply,
              T add) const {
    const Vec<T> factor(multiply), offset(add);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t j = begin; j < end; j += kLanes<T>) {
        T* p = out + r * ldo + j;
        const int64_t count = std::min(kLanes<T>, end - j);
        fmadd(load_as<T>(p, count), factor, offset).store(p, static_cast<int>(count));
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
  const T* panel(int64_t j) const { return panels_ + j * width_; }  // keys j .. j + kPanel
  // w, divided by 2^power.
  const T* weight() const { return w_; }
  int power() const { return power_; }
  // Of sums that are not centred.
  T factor() const { return factor_; }
  T offset() const { return offset_; }
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

  // The keys of a tile that are taken as panels; the rest are lines. Few queries take lines alone.
  // Others take them for a last vector that is hardly filled. The choice does not depend on the
  // tile: scores of a key are the same to the last bit in the forward and the backward, which turns
  // them into weights by the maximum that the forward found.
  int64_t panel_part(int64_t j0, int64_t keys) const {
    if (item_.n <= kFew) return 0;
    const int64_t rest = item_.m % kLanes<T>;
    return j0 + keys == item_.m && 2 * rest <= kLanes<T> ? keys - rest : keys;
  }

  // The first `panels` keys of a tile as panels, the others as lines.
  void lay_out(int64_t j0, int64_t keys, int64_t panels) {
    keys_ = keys;
    panel_keys_ = panels;
    variant_ = is_logistic(activation_) ? Variant::direct : Variant::pointwise;
    const Matrix key = item_.key.at(j0);
    lines_ = in_line(key, keys, d_, ld_, key_raw_);
    if (is_logistic(activation_) && (item_.n > kNarrow || panels)) {
      T* rest = key_exp_ + panels * ld_;
      Range<T> range = exponential_rows(rest, ld_, lines_.at(panels), keys - panels, d_, gain());
      for (int64_t j = 0; j < panels; j += kPanel)
        range.include(exponential_panel(panels_ + j * width_, lines_.at(j),
                                        std::min(kPanel, panels - j), d_, gain()));
      choose(range);
    } else if (is_logistic(activation_)) {
      exponential_queries();
      if (gain() * query_range_.magnitude < Limits<T>::factored) variant_ = Variant::passing;
    }
    if (exponentials()) {
      lines_ = {key_exp_, ld_, 1, dtype_of<T>};
    } else {
      raw_queries();
      if (panels) transpose(rows_of(key, panels, d_, width_, ld_, key_raw_));
    }
  }

  // The same from prepared keys. Return false if they do not suit these queries.
  bool use_packed(int64_t j0, int64_t keys, int64_t panels) {
    if (!item_.packed.data || j0 % kPanel) return false;
    const int64_t groups = group_count(item_.key_rows);
    const Matrix ranges = item_.packed.at(groups * kPanel);
    Range<T> range;
    for (int64_t j = j0; j < j0 + keys; j += kPanel) {
      range.include(range_at(ranges.at(j / kPanel)));
      const int64_t next = (j + keys) / kPanel;  // in the next tile, which would wait for it
      if (next < groups) prefetch<2>(static_cast<const char*>(ranges.at(next).data), 2 * sizeof(T));
    }
    choose(range);
    if (!exponentials()) return false;
    keys_ = keys;
    panel_keys_ = panels;
    lines_ = item_.packed.at(j0);
    for (int64_t j = 0; j < panels; j += kPanel) {
      const int64_t count = std::min(kPanel, panels - j);
      transpose_panel(panels_ + j * width_,
                      rows_of(lines_.at(j), count, width_, width_, ld_, key_raw_), count, width_);
    }
    return true;
  }

  // The range of a group of prepared keys, from its row.
  static Range<T> range_at(const Matrix& row) {
    const T* stored = static_cast<const T*>(row.data);
    return {stored[0], stored[1]};
  }

  void transpose(const Rows<T>& rows) {
    for (int64_t j = 0; j < panel_keys_; j += kPanel)
      transpose_panel(panels_ + j * width_, Rows<T>{rows[j], rows.ld},
                      std::min(kPanel, panel_keys_ - j), width_);
  }

  template <class Form>
  void panels(const Form& form, const T* query, int64_t r0, int64_t rows, T* out, int64_t ldo,
              const Matrix& next) const {
    for (int64_t j = 0; j < panel_keys_; j += kPanel) {
      const int64_t count = std::min(kPanel, panel_keys_ - j);
      Soon soon;
      if (next.data) soon = {next.at(j), count, d_ * element_size(next.dtype)};
      panel_sums(form, query + r0 * ld_, ld_, rows, panel(j), w_, width_, out + j, ldo, count,
                 soon);
    }
    finish(rows, out, ldo, 0, panel_keys_, factor_, panel_offset_);
  }

  // Lines alone. Scores that come out as NaN are computed anew, with those that share a tile of the
  // backward, by which it chooses its form.
  void passing(int64_t r0, int64_t rows, T* out, int64_t ldo, const Matrix& next) const {
    const SharedDifference<Passing<T>> form{Passing<T>(gain())};
    lines(form, query_exp_, r0, rows, out, ldo, {0, keys_}, next);
    const SharedDifference<Direct<T>> direct{Direct<T>(gain())};
    for (int64_t r = 0; r < rows; r++)
      for (int64_t j = 0; j < keys_; j += kNarrowTile) {
        const Span span{j, std::min(j + kNarrowTile, keys_)};
        const T* row = out + r * ldo;
        if (std::any_of(row + span.begin, row + span.end, [](T s) { return std::isnan(s); }))
          lines(direct, query_raw_, r0 + r, 1, out + r * ldo, ldo, span);
      }
  }

  template <class Form>
  void lines(const Form& form, const T* query, int64_t r0, int64_t rows, T* out, int64_t ldo,
             const Span& keys, const Matrix& next = {}) const {
    for (int64_t j = keys.begin, count; j < keys.end; j += count) {
      count = std::min(kPanel - j % kPanel, keys.end - j);
      typed<T>(lines_.at(j), [&](const auto* key) {
        row_sums(form, query + r0 * ld_, ld_, rows, key, lines_.row, w_, d_, out + j, ldo, count,
                 next.data ? next.at(j) : next);
      });
    }
    finish(rows, out, ldo, keys.begin, keys.end, row_factor_, row_offset_);
  }

  const Item& item_;
  int64_t d_, width_, ld_, i0_ = 0, rows_ = 0;
  int64_t keys_ = 0, panel_keys_ = 0;
  Activation activation_;
  int power_;
  T negative_slope_, factor_, offset_, panel_offset_, row_factor_, row_offset_, exponent_ = 0,
                                                                                spread_ = 0;
  T *w_, *query_exp_, *query_raw_, *key_raw_, *key_exp_, *panels_;
  Rows<T> key_rows_{};
  Matrix lines_;
  Range<T> query_range_;
  Variant variant_ = Variant::direct;
  bool finite_ = false, raw_ready_ = false, exponentials_ready_ = false;
};

// Prepare a group of keys for many calls: a row of exponentials for each, and one with their range,
// which comes after all keys, so that these are read without gaps.
template <class T>
void pack_group(const PackKeys<T>& p, int64_t group) {
  const int64_t width = padded(p.d), j0 = group * kPanel, keys = std::min(kPanel, p.m - j0);
  if (!width) return;
  std::vector<T> raw(width);
  Ranges<T> ranges;
  T* row = p.packed + j0 * width;
  for (int64_t j = 0; j < keys; j++, row += width)
    typed<T>(in_line(p.key.at(j0 + j), 1, p.d, width, raw.data()), [&](const auto* in) {
      exponentiate(row, in, p.d, static_cast<T>(info(p.activation).gain), ranges);
    });
  std::fill(row, p.packed + (j0 + kPanel) * width, T(0));
  const Range<T> range = ranges.range();
  row = p.packed + (group_count(p.m) * kPanel + group) * width;
  std::fill(row, row + width, T(0));
  row[0] = range.high;
  row[1] = range.magnitude;
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
