// The sums before and after the sweep of a backward: over rows, and over partial sums. One thread
// per output, or one warp per row; bound by memory.
#include "cuda/delta.h"
#include "cuda/rows.h"
#include "cuda/sums.h"

namespace attnkernels::cuda {
namespace {

__global__ void __launch_bounds__(kThreads)
    finish_kernel(const __grid_constant__ Sum sum, const __grid_constant__ Problem p, Output out,
                  int64_t rows_each, bool weighted, float factor) {
  const int64_t id = blockIdx.x * int64_t{kThreads} + threadIdx.x, count = sum.rows * sum.cols;
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

__global__ void __launch_bounds__(kThreads)
    finish_weight_kernel(const __grid_constant__ Sum sum, const __grid_constant__ Problem p,
                         float* out, bool logistic, float span) {
  const int64_t id = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (id >= p.batch.count * p.d) return;
  const int64_t b = id / p.d, t = id % p.d;
  float x = 0, total = 0;
  for (int k = 0; k < sum.copies; k++) {
    const float* const part = sum.data + (k * sum.rows + b) * sum.cols;
    x += part[t];
    total += part[p.d];
  }
  const float rest = 1 - span / 2;  // f = 1 - span r = rest - span (r - 1/2)
  out[id] = p.scale * (logistic ? (rest == 0 ? 0 : rest * total) - span * x : x);
}

__global__ void __launch_bounds__(kThreads)
    delta_kernel(const __grid_constant__ Problem p, const __grid_constant__ Backward f,
                 const __grid_constant__ Delta delta) {
  const int64_t row = (blockIdx.x * int64_t{kThreads} + threadIdx.x) / 32;
  if (row >= p.batch.count * p.n) return;
  const int lane = threadIdx.x % 32;
  float x = 0, y = 0;
  if (f.grad_context)
    for (int c = lane; c < p.dv; c += 32)
      x = fmaf(f.grad_context[row * p.dv + c], f.context[row * p.dv + c], x);
  if (f.grad_weights) {
    for (int j = lane; j < p.m; j += 32)
      y = fmaf(f.grad_weights[row * p.m + j], f.weights[row * p.m + j], y);
    y = warp_sum(y);
    if (lane == 0) delta.weights[row] = y;
  }
  x = warp_sum(x) + y;
  if (lane != 0) return;
  delta.total[row] = f.grad_lse ? x - f.grad_lse[row] : x;
  const float lse = f.lse[row];
  delta.softmax[row] = f.softmax           ? as_weights(f.softmax, row)
                       : lse == -kInfinity ? make_float2(0, 0)
                                           : make_float2(lse, 1);
}

}  // namespace

int processors(int device) { return multiprocessors(device); }

void finish(const Sum& sum, const Problem& p, const Output& out, int64_t rows_each, bool weighted,
            float factor, const Host& host) {
  if (out.data)
    launch("finish", finish_kernel, ceil_div(sum.rows * sum.cols, kThreads), kThreads, 0,
           host.stream, sum, p, out, rows_each, weighted, factor);
}

void finish_weight(const Sum& sum, const Problem& p, float* out, const Host& host) {
  if (out)
    launch("finish_weight", finish_weight_kernel, ceil_div(p.batch.count * p.d, kThreads), kThreads,
           0, host.stream, sum, p, out, is_logistic(p.activation),
           static_cast<float>(info(p.activation).span));
}

Delta make_delta(const Problem& p, const Backward& f, const Host& host) {
  if (!f.lse) return {};  // of raw scores
  const int64_t rows = p.batch.count * p.n;
  const Delta delta{host.allocate<float>(rows), host.allocate<float>(f.grad_weights ? rows : 0),
                    host.allocate<float2>(rows)};
  launch("delta", delta_kernel, ceil_div(rows, kThreads / 32), kThreads, 0, host.stream, p, f,
         delta);
  return delta;
}

}  // namespace attnkernels::cuda
