// The numbers of the operator's contract that Python and every kernel share.
// attnkernels/ops/codes.py has the same for Python, and tests/ops/test_codes.py compares the two.
#pragma once
#include <cstdint>

namespace attnkernels {

// Bits of `wanted`: the gradients to compute, whether every sum is taken in a fixed order, and
// whether the keys are only some of those that the rows see, so that weights need not sum to 1.
enum Wanted : int64_t {
  kQuery = 1,
  kKey = 2,
  kWeight = 4,
  kValue = 8,
  kMask = 16,
  kDeterministic = 32,
  kEdgeKey = 64,
  kEdgeBias = 128,
  kIsBlock = 256
};

// Added to the code of a logistic activation, it allows kernels to take f as a sum of sines, (E14):
// those that have no such form compute f itself.
constexpr int64_t kFast = 16;

// A call with at most this many queries is a decoder step.
constexpr int64_t kStepQueries = 4;

// Packed keys have one shape for every instruction set: a row per key, in groups of kPanel, with
// the hidden units rounded up to a multiple of kLane, and then a row per group for its range.
constexpr int64_t kPanel = 32;
constexpr int64_t kLane = 16;
constexpr int64_t padded(int64_t d) { return (d + kLane - 1) / kLane * kLane; }
constexpr int64_t kGroupRows = kPanel + 1;
constexpr int64_t group_count(int64_t m) { return (m + kPanel - 1) / kPanel; }

}  // namespace attnkernels
