// Small problems: fewer tiles of pairs than the device has processors, and many hidden units. Their
// tiles are cut into slices of hidden units as well, so that every processor has work. Scores, and
// in the backward gradients of weights, exist in memory then, which is little of it.
//
//   forward    slices: partial scores, (E1)      rows: sums of slices, P, lse, (E2)
//              context: P value, (E3), 64 columns per block
//   backward   slices: the same, and partial dc value^T      rows: delta, ds, weights, (E4)
//              gradients: by tile and 64 hidden units, (E5), (E6); of value by 64 columns
//
// A forward takes two launches more than one kernel for everything, and a backward none.
#pragma once
#include "cuda/rows.h"

namespace attnkernels::cuda {

// Hidden units from which on slices pay, as estimated by benchmarks.predict.
constexpr int kForwardUnits = 256, kBackwardUnits = 128;

// Return whether to compute a problem of at least so many hidden units in slices.
bool is_sliced(const Problem&, const Host&, int units);

// After prepare(). The forward leaves P unnormalized and gives Forward::softmax if that is wanted.
void sliced_scores(const Problem&, float* out, const Host&);
void sliced_forward(const Problem&, const Forward&, const Host&);
void sliced_backward(const Problem&, const Backward&, const Host&);

// Partial sums over a slice of the depth: (count, batch, n, m).
struct Slices {
  float* data = nullptr;
  int count = 0, each = 0;  // `each`: quads of hidden units, or columns of values

  __device__ __forceinline__ float& part(int slice, int64_t rows, int64_t row, int m, int j) const {
    return data[(slice * rows + row) * m + j];
  }
  // The sum of the slices of a pair.
  __device__ __forceinline__ float sum(int64_t rows, int64_t row, int m, int j) const {
    float x = 0;
#pragma unroll 4
    for (int s = 0; s < count; s++) x += part(s, rows, row, m, j);
    return x;
  }
};

// The row of a warp, with lanes along the keys, in kernels of one warp per row.
struct WarpRow {
  int64_t rows, row, b, mask_at;
  int lane, i;
  Keys keys;

  __device__ __forceinline__ explicit WarpRow(const Problem& p)
      : rows(p.batch.count * p.n), row((blockIdx.x * int64_t{kThreads} + threadIdx.x) / 32),
        b(row / p.n), lane(threadIdx.x % 32), i(static_cast<int>(row % p.n)) {
    if (!exists()) return;
    mask_at = offset(p.batch, b, p.mask.lead);
    keys = keys_of(p, b);
  }
  __device__ __forceinline__ bool exists() const { return row < rows; }
};

// Launch the slices: of scores, and of dc value^T if grad_context is not null. They clear `count`
// floats from `cleared` on.
struct SliceJob {
  Slices scores, products;
  const float* grad_context;
  float* cleared;
  int64_t count;
};
SliceJob slice(const Problem&, const float* grad_context, float* cleared, int64_t count,
               const Host&);

}  // namespace attnkernels::cuda
