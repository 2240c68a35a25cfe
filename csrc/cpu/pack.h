// The operands of the inner loops: rows padded to whole vectors, of inputs or of exponentials, and
// transposed panels of keys.
#pragma once
#include "pair_sums.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// A panel is transposed in blocks of kLane rows and columns, each of whole vectors.
static_assert(kPanel % kLane == 0 && kLane % kLanes<float> == 0 && kLane % kLanes<double> == 0);

// The largest value and the largest magnitude of inputs; NaN if one is not finite.
template <class T>
struct Range {
  T high = -std::numeric_limits<T>::infinity(), magnitude = 0;

  void include(const Range& o) {
    high = larger(high, o.high);
    magnitude = larger(magnitude, o.magnitude);
  }
  static T larger(T a, T b) { return a > b || a != a ? a : b; }
};

// The same per lane, for many rows. Lanes beyond the end of a row count as 0.
template <class T>
class Ranges {
 public:
  C10_ALWAYS_INLINE void include(Vec<T> x) {
    high_ = at_least(x, high_);
    magnitude_ = at_least(x.abs(), magnitude_);
    zero_ = fmadd(x, Vec<T>(T(0)), zero_);
  }
  Range<T> range() const {
    const T zero = sum(zero_);  // or NaN
    return {max(high_) + zero, max(magnitude_) + zero};
  }

 private:
  Vec<T> high_{Range<T>{}.high}, magnitude_{T(0)}, zero_{T(0)};
};

template <class T>
inline Range<T> range_of(const T* row, int64_t count) {
  Ranges<T> ranges;
  int64_t t = 0;
  for (; t + kLanes<T> <= count; t += kLanes<T>) ranges.include(load(row + t));
  if (t < count) ranges.include(Vec<T>::loadu(row + t, count - t));
  return ranges.range();
}

// out <- exp(gain * in), padded with zeros to whole vectors, so that an absent hidden unit has
// x = 1 + 0. Results above the range of the factored forms are undefined, and not used.
template <int64_t Ahead = 0, class T, class S>
C10_ALWAYS_INLINE void exponentiate(T* out, const S* in, int64_t count, T gain, Ranges<T>& ranges) {
  const Vec<T> g(gain);
  int64_t t = 0;
  for (; t + kLanes<T> <= count; t += kLanes<T>) {
    const Vec<T> x = load_as<T>(in + t);
    if (Ahead) prefetch<2>(reinterpret_cast<const char*>(in + t) + Ahead, 1);
    ranges.include(x);
    exp_times(x, g).store(out + t);
  }
  if (t < count) {
    const Vec<T> x = load_as<T>(in + t, count - t);
    ranges.include(x);
    exp_times(x, g).store(out + t, static_cast<int>(count - t));
  }
  std::fill(out + count, out + padded(count), T(0));
}

// Convert rows of in_line() to rows of exponentials, `ld` apart.
template <class T>
inline Range<T> exponential_rows(T* out, int64_t ld, const Matrix& rows, int64_t count, int64_t d,
                                 T gain) {
  Range<T> range;
  typed<T>(rows, [&](const auto* in) {
    Ranges<T> ranges;
    for (int64_t i = 0; i < count; i++)
      exponentiate<kAhead>(out + i * ld, in + i * rows.row, d, gain, ranges);
    range = ranges.range();
  });
  return range;
}

// Transpose rows to a (width, kPanel) panel; width is a multiple of kLane. Rows from `count` on are
// taken as zero up to the next multiple of kLane, and lanes beyond are undefined.
template <class T>
inline void transpose_panel(T* panel, const Rows<T>& rows, int64_t count, int64_t width) {
  constexpr int64_t L = kLane;
  for (int64_t j = 0; j < count; j += L) {
    T block[L * L] = {};
    for (int64_t t = 0; t < width; t += L) {
      T* out = panel + t * kPanel + j;
      if (j + L <= count) {
        at::vec::transpose_mxn<T, L, L>(rows[j] + t, rows.ld, out, kPanel);
      } else {
        for (int64_t l = 0; j + l < count; l++)
          std::copy(rows[j + l] + t, rows[j + l] + t + L, block + l * L);
        at::vec::transpose_mxn<T, L, L>(block, L, out, kPanel);
      }
    }
  }
}

// Convert rows of in_line() to a panel of exponentials, kLane hidden units at a time.
constexpr int64_t kLinesAhead = 256;
template <class T>
inline Range<T> exponential_panel(T* panel, const Matrix& rows, int64_t count, int64_t d, T gain) {
  Range<T> range;
  T block[kPanel * kLane] = {};
  typed<T>(rows, [&](const auto* in) {
    Ranges<T> ranges;
    for (int64_t t = 0; t < d; t += kLane) {
      const int64_t left = d - t;
      for (int64_t j = 0; j < count; j++) {
        T* out = block + j * kLane;
        // one line of each row at a time is no pattern that the processor sees
        prefetch<1>(reinterpret_cast<const char*>(in + j * rows.row + t) + kLinesAhead, 1);
        if (left >= kLane)
          exponentiate(out, in + j * rows.row + t, kLane, gain, ranges);
        else
          exponentiate(out, in + j * rows.row + t, left, gain, ranges);
      }
      transpose_panel(panel + t * kPanel, Rows<T>{block, kLane}, count, kLane);
    }
    range = ranges.range();
  });
  return range;
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
