// The stages of a call, and the division of its work into blocks.
#pragma once
#include <algorithm>

#include "cuda/device.h"
#include "cuda/problem.h"

namespace attnkernels::cuda {

constexpr int kThreads = 128;        // per block that works on tiles
constexpr int kPitch = kTile + 4;    // floats from row to row in shared memory: rows of a fragment
                                     // lie in different banks
constexpr int kChunk = 64;           // hidden units that have a range of their own
constexpr int kStep = kStepQueries;  // the most queries of a decoder step, step.cu
constexpr int kStepKeys = 64;        // keys that a block of step.cu takes at a time

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__host__ __device__ constexpr int chunks_of(int d) { return (d + kChunk - 1) / kChunk; }

constexpr int kStage = 16;  // hidden units that scores are computed for at a time

__host__ __device__ constexpr int stages_of(int padded) { return (padded + kStage - 1) / kStage; }

// The weights of a leading index, as prepare.cu leaves them: `padded` of them, two numbers that
// belong to all, and one per stage; whole vectors of 16 bytes.
__host__ __device__ constexpr int weights_size(int padded) {
  return padded + (2 + stages_of(padded) + 3) / 4 * 4;
}

inline bool is_step(const Problem& p) { return p.n <= kStep && !p.query_ends.ends; }

// Return the tiles of all sequences of a leading index; see sequence_of() in rows.h.
inline int tiles_of(const Sequences& s, int rows, int sequences) {
  return static_cast<int>(s.ends ? rows / kTile + sequences : ceil_div(rows, kTile));
}

// Return the most tiles of `tile` keys, of `tiles`, that `rows` neighbouring queries see.
inline int64_t tiles_seen(const Problem& p, int64_t rows, int64_t tiles, int64_t tile = kTile) {
  const int64_t keys = std::min(p.window.left, p.n) + rows + p.window.right;
  return std::min(tiles, ceil_div(keys, tile) + 1);
}

// Return the number of parts to cut `tiles` into, so that `blocks` blocks per part put `each`
// blocks on every processor.
inline int parts_for(int64_t blocks, int64_t tiles, const Host& host, int64_t each = 4) {
  const int64_t wanted = each * host.processors / std::max<int64_t>(blocks, 1);
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(tiles, 1)));
}

// Make panels, ranges and weights: prepare.cu. A problem of tangents may lack its inputs, which are
// then zero.
void prepare(Problem&, const Owners&, const Host&, bool tangents = false);

// The outputs of the blocks of a forward, which split the keys among them.
struct Split {
  float *context, *lse;  // (splits, batch, n, dv), (splits, batch, n); lse null: only scores
  float* scores;         // (batch, n, m), for the pairs that take part; or null
  int splits;
  float* softmax = nullptr;  // (splits, batch, n, 2): see Forward; or null
  Output result = {};        // where the context goes at the end, which may be `context` itself
};

// For few queries: step.cu and step_backward.cu.
void step_forward(const Problem&, const Split&, const Host&);
void step_backward(const Problem&, const Backward&, const Host&);

}  // namespace attnkernels::cuda
