// The interface of the CUDA kernels: plain pointers, sizes and strides, no torch type.
#pragma once
#include <climits>
#include <cstdint>

#include "common/activation.h"
#include "common/contract.h"
#include "common/dtype.h"
#include "common/matrix.h"

namespace attnkernels::cuda {

constexpr int kRank = 8;   // leading dimensions, once neighbours are merged
constexpr int kTile = 64;  // queries, and keys, of a tile

// Leading dimensions, the innermost first, and a tensor's strides over them: 0 where it broadcasts.
struct Batch {
  int rank = 0;
  int64_t count = 1;
  int64_t sizes[kRank] = {};
};
struct Strides {
  int64_t along[kRank] = {};
};

// A tensor of inputs as it lies in memory. Strides count elements.
struct Matrix : attnkernels::Matrix {
  Strides lead;
};

// Tiles of rows as prepare.cu leaves them. Strides count tiles.
struct Range {
  float high, size, low;  // the largest exponent, the largest absolute one, the smallest
};
struct Panels {
  float* data = nullptr;    // (tiles, padded / 4, kTile, 4)
  Range* ranges = nullptr;  // (tiles, chunks_of(d))
  Strides lead;
  int tiles = 0;
};

// Packed sequences: s has the rows from ends[s] to ends[s + 1]. null: one sequence of all rows.
struct Sequences {
  const void* ends = nullptr;
  Dtype dtype = Dtype::i32;
};

// Query i sees the keys from i - left to i + right; INT_MAX is no limit.
struct Window {
  int left = INT_MAX, right = INT_MAX;
};

struct Problem {
  Batch batch;
  Matrix query, key, value, weight, mask, starts, lengths;  // data null: none
  Sequences query_ends, key_ends;
  int sequences = 1;
  int n, m, d, dv;
  Activation activation;
  float negative_slope;  // of leaky_relu
  float scale;
  Window window;
  const int64_t* seed = nullptr;  // null: no dropout
  bool fast = false;              // the activation may be a sum of sines, (E14)
  bool of_block = false;          // the places of the first query and key follow the seed
  uint64_t threshold = 0;         // bits below this threshold, of 2^32, drop a pair
  float keep_scale = 1;
  // set by prepare(), in stages.h
  int padded = 0;  // d rounded up to whole quads
  Panels queries, keys;
  const float* weights = nullptr;  // weights_size(padded) per leading index of weight itself
  Strides weights_lead;
};

// The leading dimensions of one tensor, which is prepared once however it broadcasts; and the
// strides of their flat index over the leading dimensions of the problem.
struct Own {
  Batch batch;
  Strides lead, starts, lengths, index;
};
struct Owners {
  Own query, key, weight;
};

struct Forward {
  Output context;            // (batch, n, dv)
  float* lse = nullptr;      // (batch, n), or null
  float* weights = nullptr;  // (batch, n, m), or null
  // (batch, n, 2), or null: the maximum of the scores, and the sum of exp(s - maximum)
  float* softmax = nullptr;
};

// The tangents of the inputs and of the outputs; an input's tangent without data is zero.
struct Tangents {
  Problem inputs;  // the same problem with tangents as its inputs
  Owners own;
  Forward outputs;
};

struct Backward {
  // Either the gradient of raw scores, or the operands of the backward of the whole operator; null
  // for those that are absent. All are float32 and contiguous.
  const float* grad_scores = nullptr;  // (batch, n, m)
  const float *context = nullptr, *lse = nullptr, *weights = nullptr,
              *softmax = nullptr;  // as the forward gave them
  const float *grad_context = nullptr, *grad_lse = nullptr, *grad_weights = nullptr;
  Output grad_query, grad_key, grad_value;  // (batch, n, d), (batch, m, d), (batch, m, dv)
  float* grad_weight = nullptr;             // (batch, d)
  float* grad_mask = nullptr;               // zero on entry, laid out by its strides
  int64_t mask_row = 0, mask_col = 0;
  Strides mask_lead;
  bool deterministic = false;
};

// The device and its memory, provided by the operator.
struct Host {
  void* stream;
  int processors;
  void* self;
  void* (*allocate_bytes)(void* self, int64_t bytes);  // until the operator returns

  template <class T>
  T* allocate(int64_t count) const {
    return count ? static_cast<T*>(allocate_bytes(self, count * static_cast<int64_t>(sizeof(T))))
                 : nullptr;
  }
};

int processors(int device);  // multiprocessors

void forward(Problem, const Owners&, Forward, const Host&);
void scores(Problem, const Owners&, float* out, const Host&);
void backward(Problem, const Owners&, const Backward&, const Host&);
void forward_jvp(Problem, const Owners&, Forward, Tangents, const Host&);
void scores_jvp(Problem, const Owners&, float* out, Tangents, const Host&);  // in outputs.weights

}  // namespace attnkernels::cuda
