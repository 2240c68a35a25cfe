// Small kernels, sound or with one of the faults that the emulator must find, for
// tests/backends/test_emulator.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/device.h"

namespace py = pybind11;
using namespace attnkernels::cuda;

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

enum class Fault {
  none,
  tail_cut,
  read_too_early,
  overwritten_too_early,
  no_wait,
  wait_for_too_few,
  lanes_left_out,
  own_lane_left_out,
  masks_differ,
  lane_returned,
  lanes_apart,
  thread_missing,
  two_barriers,
  barrier_and_warp,
  row_unwritten,
  past_dynamic,
  before_dynamic,
  past_array,
  past_global,
  misaligned_shared,
  misaligned_global,
  not_shared,
};
constexpr const char* kFaults[] = {
    "none",
    "tail cut",
    "read too early",
    "overwritten too early",
    "no wait",
    "wait for too few",
    "lanes left out",
    "own lane left out",
    "masks differ",
    "lane returned",
    "lanes apart",
    "thread missing",
    "two barriers",
    "barrier and warp",
    "row unwritten",
    "past dynamic",
    "before dynamic",
    "past array",
    "past global",
    "misaligned shared",
    "misaligned global",
    "not shared",
};

Fault fault_of(const std::string& name) {
  for (size_t k = 0; k < std::size(kFaults); k++)
    if (name == kFaults[k]) return static_cast<Fault>(k);
  throw std::invalid_argument(name);
}

constexpr int kThreads = 128;
constexpr int kTile = 4 * kThreads;
constexpr unsigned kFull = 0xffffffff;

struct Rows {
  const float* x;
  float* sums;
  int rows, columns;
  Fault fault;
};

// Load columns first to first + kTile of the block's row, and zeros after the last one.
__device__ __forceinline__ void load_tile(const Rows& p, float* tile, int first) {
  const float* row = p.x + int64_t{blockIdx.x} * p.columns;
  const int slot = 4 * static_cast<int>(threadIdx.x), j = first + slot;
  if (p.columns % 4 == 0 && j + 4 <= p.columns) {
    const int off_shared = p.fault == Fault::misaligned_shared ? 1 : 0;
    const int off_global = p.fault == Fault::misaligned_global ? 1 : 0;
    float4 elsewhere;
    void* to = p.fault == Fault::not_shared ? static_cast<void*>(&elsewhere) : tile + slot;
    async_copy16(static_cast<float*>(to) + off_shared, row + j + off_global);
    return;
  }
  const int end = p.fault == Fault::tail_cut      ? p.columns - 1
                  : p.fault == Fault::past_global ? p.columns + 1
                                                  : p.columns;
  for (int e = 0; e < 4; e++) tile[slot + e] = j + e < end ? row[j + e] : 0.f;
}

// Return the sum over a warp, in every lane.
__device__ float warp_sum(float x, Fault fault) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  unsigned mask = kFull;
  if (fault == Fault::own_lane_left_out) mask = 0x7fffffff;
  if (fault == Fault::masks_differ && lane >= 16) mask = 0xffff0000;
  if (fault == Fault::lanes_left_out && lane >= 16) return x;
  if (fault == Fault::lanes_apart && lane >= 16) x += __shfl_xor_sync(mask, x, 1);
  for (int bits = 16; bits > 0; bits /= 2) x += __shfl_xor_sync(mask, x, bits);
  return x;
}

// One block per row; tiles arrive by asynchronous copies, one ahead of the sums.
__global__ void __launch_bounds__(kThreads) row_sums(const __grid_constant__ Rows p) {
  DYNAMIC_SHARED(float, tiles);
  SHARED_ARRAY(float, partial, kThreads / 32);
  const int t = static_cast<int>(threadIdx.x), lane = t % 32;
  const int count = (p.columns + kTile - 1) / kTile;
  float sum = 0;
  load_tile(p, tiles, 0);
  async_commit();
  for (int k = 0; k < count; k++) {
    if (k + 1 < count) load_tile(p, tiles + (k + 1) % 2 * kTile, (k + 1) * kTile);
    async_commit();
    if (p.fault == Fault::wait_for_too_few)
      async_wait<2>();
    else if (p.fault != Fault::no_wait)
      async_wait<1>();
    if (p.fault != Fault::read_too_early) __syncthreads();
    for (int e = 0; e < kTile; e += kThreads) sum += tiles[k % 2 * kTile + e + t];
    if (p.fault != Fault::overwritten_too_early) __syncthreads();
  }
  if (p.fault != Fault::no_wait) async_wait<0>();

  const bool last = t == kThreads - 1;
  if ((p.fault == Fault::thread_missing || p.fault == Fault::lane_returned) && last) return;
  if (p.fault == Fault::barrier_and_warp && lane >= 16) __syncwarp();
  if (p.fault == Fault::barrier_and_warp && lane < 16) __syncthreads();
  if (p.fault == Fault::two_barriers && t >= 64) __syncthreads();
  if (p.fault == Fault::past_dynamic && t == 5) tiles[2 * kTile] = 0;
  if (p.fault == Fault::before_dynamic && t == 5) tiles[-1] = 0;

  if (p.fault != Fault::thread_missing) sum = warp_sum(sum, p.fault);
  const int slot = t / 32 + (p.fault == Fault::past_array ? 1 : 0);
  if (lane == 0) partial[slot] = sum;
  __syncthreads();
  if (t > 0 || (p.fault == Fault::row_unwritten && blockIdx.x + 1 == gridDim.x)) return;
  for (int warp = 1; warp < kThreads / 32; warp++) sum += partial[warp];
  p.sums[blockIdx.x] = sum;
}

constexpr int kSide = 32;

// One tile of 32 x 32 per block, eight rows at a time.
__global__ void __launch_bounds__(256)
    transpose(const float* x, float* y, int rows, int columns, Fault fault) {
  SHARED_ARRAY(float, tile, kSide*(kSide + 1));
  const int across = (columns + kSide - 1) / kSide;
  const int i0 = static_cast<int>(blockIdx.x) / across * kSide;
  const int j0 = static_cast<int>(blockIdx.x) % across * kSide;
  const int line = static_cast<int>(threadIdx.x) / kSide;
  const int column = static_cast<int>(threadIdx.x) % kSide;
  for (int r = line; r < kSide; r += 8)
    if (i0 + r < rows && j0 + column < columns)
      tile[r * (kSide + 1) + column] = x[(i0 + r) * columns + j0 + column];
  if (fault != Fault::read_too_early) __syncthreads();
  const int end = fault == Fault::tail_cut ? columns - 1 : columns;
  for (int c = line; c < kSide; c += 8)
    if (j0 + c < end && i0 + column < rows)
      y[(j0 + c) * rows + i0 + column] = tile[column * (kSide + 1) + c];
}

// A warp multiplies sixteen rows of a by the eight columns of b; depth is a multiple of 8.
__global__ void __launch_bounds__(32) product(const float* a, const float* b, float* c, int depth) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const float* top = a + (16 * static_cast<int>(blockIdx.x) + g) * depth;
  float sum[4] = {};
  for (int k = 0; k < depth; k += 8) {
    const float left[4] = {top[k + t], top[8 * depth + k + t], top[k + t + 4],
                           top[8 * depth + k + t + 4]};
    const float right[2] = {b[(k + t) * 8 + g], b[(k + t + 4) * 8 + g]};
    mma_tf32(sum, left, right);
  }
  float* out = c + (16 * static_cast<int>(blockIdx.x) + g) * 8 + 2 * t;
  for (int e = 0; e < 4; e++) out[e / 2 * 64 + e % 2] = sum[e];
}

// Compute the count, the sum and the highest index of each bin.
__global__ void __launch_bounds__(kThreads)
    histogram(const int* bins, int* counts, float* sums, int* highest, int size) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= size) return;
  atomicAdd(counts + bins[i], 1);
  atomicAdd(sums + bins[i], static_cast<float>(i));
  atomicMax(highest + bins[i], i);
}

// One line of 64 results per collective operation.
__global__ void __launch_bounds__(64) collectives(int* out) {
  const int t = static_cast<int>(threadIdx.x), lane = t % 32;
  const auto put = [&](int line, int value) { out[64 * line + t] = value; };
  put(0, __shfl_sync(kFull, t, lane + 1));
  put(1, __shfl_sync(kFull, t, 3, 8));
  put(2, __shfl_xor_sync(kFull, t, 5));
  put(3, __shfl_xor_sync(kFull, t, 12, 8));
  put(4, __shfl_down_sync(kFull, t, 3, 16));
  put(5, __shfl_up_sync(kFull, t, 2));
  put(6, static_cast<int>(__ballot_sync(kFull, lane % 3 == 0)));
  put(7, __any_sync(kFull, t == 39));
  put(8, __all_sync(kFull, t < 32));
  put(9, __syncthreads_or(t == 63));
  put(10, __syncthreads_and(t < 63));
  const int64_t wide = (int64_t{t} << 32) + t;
  put(11, static_cast<int>(__shfl_xor_sync(kFull, wide, 1) >> 32));
  if (lane < 16)
    put(12, __shfl_down_sync(0x0000ffff, t, 1));
  else
    put(12, __shfl_up_sync(0xffff0000, t, 1));
  if (lane % 2) put(13, __float_as_int(__shfl_xor_sync(0xaaaaaaaa, 1.f, 1)));
}

// Record the order in which threads pass each of several barriers.
__global__ void order(int* counters, int* out, int phases) {
  const int block = static_cast<int>(blockIdx.x), threads = static_cast<int>(blockDim.x);
  for (int phase = block * phases; phase < (block + 1) * phases; phase++) {
    __syncthreads();
    out[phase * threads + atomicAdd(counters + phase, 1)] = static_cast<int>(threadIdx.x);
  }
}

__global__ void count(int* threads) {
  DYNAMIC_SHARED(int, unset);
  if (threadIdx.x == 0 && unset[0] != -1) return;
  atomicAdd(threads, 1);
}

template <class T>
Array<T> filled(std::vector<py::ssize_t> shape, T value) {
  Array<T> out(shape);
  std::fill(out.mutable_data(), out.mutable_data() + out.size(), value);
  return out;
}

template <class... P, class... A>
void start(const char* name, void (*kernel)(P...), int64_t blocks, int threads, size_t shared,
           const A&... arguments) {
  const py::gil_scoped_release others_may_run;
  launch(name, kernel, blocks, threads, shared, nullptr, arguments...);
}

template <class From, class To>
Array<To> map(const Array<From>& in, To (*f)(From)) {
  Array<To> out(in.size());
  std::transform(in.data(), in.data() + in.size(), out.mutable_data(), f);
  return out;
}

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

PYBIND11_MODULE(faults, m) {
  m.def("row_sums", [](const Array<float>& x, const std::string& fault) {
    const auto rows = static_cast<int>(x.shape(0)), columns = static_cast<int>(x.shape(1));
    Array<float> sums = filled({rows}, kNaN);
    const Rows p{x.data(), sums.mutable_data(), rows, columns, fault_of(fault)};
    start("row_sums", row_sums, rows, kThreads, 2 * kTile * sizeof(float), p);
    return sums;
  });
  m.def("transpose", [](const Array<float>& x, const std::string& fault) {
    const auto rows = static_cast<int>(x.shape(0)), columns = static_cast<int>(x.shape(1));
    Array<float> y = filled({columns, rows}, kNaN);
    const int blocks = ((rows + kSide - 1) / kSide) * ((columns + kSide - 1) / kSide);
    start("transpose", transpose, blocks, 256, 0, x.data(), y.mutable_data(), rows, columns,
          fault_of(fault));
    return y;
  });
  m.def("product", [](const Array<float>& a, const Array<float>& b) {
    Array<float> c = filled({a.shape(0), 8}, kNaN);
    start("product", product, a.shape(0) / 16, 32, 0, a.data(), b.data(), c.mutable_data(),
          static_cast<int>(a.shape(1)));
    return c;
  });
  m.def("histogram", [](const Array<int>& bins, int size) {
    Array<int> counts = filled({size}, 0), highest = filled({size}, -1);
    Array<float> sums = filled({size}, 0.f);
    start("histogram", histogram, (bins.size() + kThreads - 1) / kThreads, kThreads, 0, bins.data(),
          counts.mutable_data(), sums.mutable_data(), highest.mutable_data(),
          static_cast<int>(bins.size()));
    return py::make_tuple(counts, sums, highest);
  });
  m.def("collectives", [] {
    Array<int> out = filled({14, 64}, 0);
    start("collectives", collectives, 1, 64, 0, out.mutable_data());
    return out;
  });
  m.def("order", [](int blocks, int threads, int phases) {
    Array<int> counters = filled({blocks, phases}, 0), out = filled({blocks, phases, threads}, -1);
    start("order", order, blocks, threads, 0, counters.mutable_data(), out.mutable_data(), phases);
    return out;
  });
  m.def("count", [](int64_t blocks, int threads, size_t shared) {
    Array<int> sum = filled({1}, 0);
    start("count", count, blocks, threads, shared, sum.mutable_data());
    return sum.data()[0];
  });
  m.def("from_half", [](const Array<uint16_t>& x) { return map(x, from_half); });
  m.def("to_half", [](const Array<float>& x) { return map(x, to_half); });
  m.def("exp2", [](const Array<float>& x) { return map(x, exp2_approx); });
  m.def("reciprocal", [](const Array<float>& x) { return map(x, reciprocal); });
  m.def("max_nan", [](float x, float y) { return max_nan(x, y); });
  m.def("min_nan", [](float x, float y) { return min_nan(x, y); });
}
