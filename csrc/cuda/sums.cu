// The sums before and after the sweep of a backward: over rows, and over partial sums. One thread
// per output, or one warp per row; bound by memory.
#include "cuda/delta.h"
#include "cuda/rows.h"
#include "cuda/sums.h"

namespace attnkernels::cuda {
namespace {

// What sums are multiplied by, beside w_t and the scale.
struct Scaling {
  float factor, span;
  bool logistic;
};

__device__ void finish_rows(const Sum& sum, const Problem& p, const Output& out, int64_t rows_each,
                            bool weighted, float factor, int64_t block) {
  const int64_t id = block * kThreads + threadIdx.x, count = sum.rows * sum.cols;
  if (id >= count) return;
  float x = 0;
  for (int k = 0; k < sum.copies; k++) x += sum.data[k * count + id];
  if (weighted) {
    const int64_t b = id / sum.cols / rows_each, t = id % sum.cols;
    const int64_t at = offset(p.batch, b, p.weight.lead) + t * p.weight.col;
    if (x != 0) x *= load(p.weight.data, p.weight.dtype, at);  // rows without pairs, w not finite
  }
  store(out.data, out.dtype, id, factor * x);
}

__device__ void finish_weight(const Sum& sum, const Problem& p, float* out, const Scaling& by,
                              int64_t block) {
  const int64_t id = block * kThreads + threadIdx.x;
  if (id >= p.batch.count * p.d) return;
  const int64_t b = id / p.d, t = id % p.d;
  float x = 0, total = 0;
  for (int k = 0; k < sum.copies; k++) {
    const float* const part = sum.data + (k * sum.rows + b) * sum.cols;
    x += part[t];
    total += part[p.d];
  }
  const float rest = 1 - by.span / 2;  // f = 1 - span r = rest - span (r - 1/2)
  out[id] = p.scale * (by.logistic ? (rest == 0 ? 0 : rest * total) - by.span * x : x);
}

__host__ __device__ int64_t blocks_of(const Sum& sum) {
  return ceil_div(sum.rows * sum.cols, kThreads);
}

// Blocks for the gradients of query, then of key, of value and of weight.
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const __grid_constant__ Sums sums, const __grid_constant__ Problem p,
                  const __grid_constant__ Backward f, const __grid_constant__ Scaling by) {
  int64_t block = blockIdx.x;
  auto is_of = [&](const Sum& sum) {
    const int64_t blocks = blocks_of(sum);
    if (block < blocks) return true;
    block -= blocks;
    return false;
  };
  if (is_of(sums.query))
    finish_rows(sums.query, p, f.grad_query, p.n, true, by.factor, block);
  else if (is_of(sums.key))
    finish_rows(sums.key, p, f.grad_key, p.m, true, by.factor, block);
  else if (is_of(sums.value))
    finish_rows(sums.value, p, f.grad_value, p.m, false, 1, block);
  else
    finish_weight(sums.weight, p, f.grad_weight, by, block);
}

__global__ void __launch_bounds__(kThreads)
    delta_kernel(const __grid_constant__ Problem p, const __grid_constant__ Backward f,
                 const __grid_constant__ Delta delta) {
  const int64_t row = (blockIdx.x * int64_t{kThreads} + threadIdx.x) / 32;
  if (row < p.batch.count * p.n) store_delta(p, f, delta, row);
}

}  // namespace

int processors(int device) { return multiprocessors(device); }

Sums::Memory Sums::allocate(const Host& host) {
  Sum* const all[] = {&query, &key, &value, &weight};
  int64_t count = 0;
  for (const Sum* sum : all) count += sum->copies * sum->rows * sum->cols;
  const Memory memory{host.allocate<float>(count), count};
  float* data = memory.data;
  for (Sum* sum : all) {
    const int64_t size = sum->copies * sum->rows * sum->cols;
    if (size) sum->data = data;
    data += size;
  }
  return memory;
}

void clear(const Sums::Memory& memory, const Host& host) {
  zero(memory.data, memory.count * static_cast<int64_t>(sizeof(float)), host.stream);
}

void finish(const Sums& sums, const Problem& p, const Backward& f, const Host& host) {
  const int64_t blocks =
      blocks_of(sums.query) + blocks_of(sums.key) + blocks_of(sums.value) + blocks_of(sums.weight);
  const Scaling by{gradient_factor(p), static_cast<float>(info(p.activation).span),
                   is_logistic(p.activation)};
  launch("finish", finish_kernel, blocks, kThreads, 0, host.stream, sums, p, f, by);
}

Delta allocate_delta(const Problem& p, const Backward& f, const Host& host) {
  const int64_t rows = p.batch.count * p.n;
  return {host.allocate<float>(rows), host.allocate<float>(f.grad_weights ? rows : 0),
          host.allocate<float2>(rows)};
}

Delta make_delta(const Problem& p, const Backward& f, const Host& host) {
  if (!f.lse) return {};  // of raw scores
  const Delta delta = allocate_delta(p, f, host);
  launch("delta", delta_kernel, ceil_div(p.batch.count * p.n, kThreads / 32), kThreads, 0,
         host.stream, p, f, delta);
  return delta;
}

}  // namespace attnkernels::cuda
