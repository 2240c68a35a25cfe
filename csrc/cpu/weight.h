// The score vector w of (E1), scaled so that no intermediate product overflows.
#pragma once
#include <numeric>

#include "pack.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// The score is factor * (the sum of w / x, or of w f) + offset. Panels, whose sums are centred,
// have another offset; and rows, with sums of differences, another factor as well. w was divided by
// 2^power.
template <class T>
struct ScaledWeight {
  T factor, offset, panel_offset, row_factor, row_offset;
  int power;
};

// What centred sums take away in all, over quads of neighbouring hidden units.
template <class T>
inline double centre(const T* w, int64_t width) {
  double total = 0;
  for (int64_t t = 0; t < width; t += 4)
    total += static_cast<double>(half_sum({w[t], w[t + 1], w[t + 2], w[t + 3]}));
  return total;
}

// Write w (padded d), divided by a power of two so that it, and `beside`, is at most 1/2.
template <class T>
inline ScaledWeight<T> scale_weight(const Matrix& weight, Activation activation, double scale,
                                    int64_t d, T* w, T beside = 0) {
  const int64_t width = padded(d);
  load_row(w, weight, 0, d);
  std::fill(w + d, w + width, T(0));
  const T largest = Range<T>::larger(range_of(w, width).magnitude, beside);
  int power = 0;
  if (largest > 0 && std::isfinite(largest)) std::frexp(largest, &power), power++;
  power = std::clamp(power, std::numeric_limits<T>::min_exponent,
                     std::numeric_limits<T>::max_exponent - 2);
  const T divided = std::ldexp(T(1), -power);
  double totals[kLane] = {};
  for (int64_t t = 0; t < width; t += kLane)
    for (int64_t l = 0; l < kLane; l++) {
      totals[l] += static_cast<double>(w[t + l]);
      w[t + l] *= divided;
    }
  const double total = std::accumulate(totals, totals + kLane, 0.0);
  const double unit = std::ldexp(scale, power);
  if (!is_logistic(activation)) return {static_cast<T>(unit), 0, 0, static_cast<T>(unit), 0, power};
  const double factor = -info(activation).span * unit, offset = scale * total;
  return {static_cast<T>(factor),
          static_cast<T>(offset),
          static_cast<T>(offset + factor * centre(w, width)),
          static_cast<T>(factor / 2),
          static_cast<T>(offset - info(activation).span * scale * total / 2),
          power};
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
