// The keys that a query sees by their position alone, (E2): a window around it. A causal call is
// one whose window ends at the query.
#pragma once
#include <algorithm>
#include <cstdint>

namespace attnkernels {

struct Window {
  // More than any position; sums of two with a position fit in 64 bits.
  static constexpr int64_t kUnlimited = int64_t{1} << 61;

  // Query i sees the keys from i - left to i + right, both from 0 on at the start of a sequence.
  int64_t left = kUnlimited, right = kUnlimited;

  bool limits() const { return left < kUnlimited || right < kUnlimited; }
  // The keys that query i sees, of m: from first(i) to end(i, m), exclusive. None if end <= first.
  int64_t first(int64_t i) const { return std::max<int64_t>(0, i - left); }
  int64_t end(int64_t i, int64_t m) const { return std::min(m, i + right + 1); }
  // The most keys, of m, that a query sees.
  int64_t width(int64_t m) const { return std::min(m, left + right + 1); }
  // The keys that any of n queries sees, and the queries that see any of m keys: the first ones.
  int64_t keys(int64_t n, int64_t m) const { return std::min(m, n + right); }
  int64_t queries(int64_t n, int64_t m) const { return std::min(n, m + left); }
};

}  // namespace attnkernels
