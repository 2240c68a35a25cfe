// The ceiling of one GPU: the rate at which its multiprocessors (SMs) issue the operations that
// docs/math.md counts, and the rate of the inner loop of the scores with nothing around it:
// operands already in shared memory, no masks, softmax or tails. Kernels are compared with these
// rates.
//   nvcc -O3 -std=c++17 -arch=native gpu.cu -o gpu_ceiling && ./gpu_ceiling
// or python -m benchmarks.ceiling.gpu.
// Rates are per clock and SM, so they do not depend on the clock. Prints one JSON object.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#define CHECK(call)                                                                    \
  do {                                                                                 \
    const cudaError_t error = (call);                                                  \
    if (error != cudaSuccess) {                                                        \
      std::fprintf(stderr, "gpu_ceiling: %s: %s\n", #call, cudaGetErrorString(error)); \
      std::exit(1);                                                                    \
    }                                                                                  \
  } while (0)

// volatile: two in a row must not be simplified into one.
__device__ float ex2(float x) {
  asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}
__device__ float rcp(float x) {
  asm volatile("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}
__device__ float hardware_tanh(float x) {
  asm volatile("tanh.approx.f32 %0, %0;" : "+f"(x));
  return x;
}

struct Fma {
  static __device__ float step(float x, float c) { return fmaf(x, c, c); }
};
struct Ex2 {
  static __device__ float step(float x, float) { return ex2(x); }
};
struct Rcp {  // the addition keeps the reciprocal of a reciprocal from being dropped
  static __device__ float step(float x, float c) { return rcp(x + c); }
};
struct Tanh {
  static __device__ float step(float x, float) { return hardware_tanh(x); }
};

constexpr int ISSUE_THREADS = 1024, ISSUE_ROUNDS = 1 << 15;
constexpr int CHAINS = 8;  // independent results per thread, to hide the latency of each

template <class Op>
__global__ void __launch_bounds__(ISSUE_THREADS)
    issue(float seed, float* results, long long* clocks) {
  float chain[CHAINS];
  for (int c = 0; c < CHAINS; c++) chain[c] = seed + 0.01f * c;
  __syncthreads();
  const long long start = clock64();
#pragma unroll 4
  for (int r = 0; r < ISSUE_ROUNDS; r++)
#pragma unroll
    for (int c = 0; c < CHAINS; c++) chain[c] = Op::step(chain[c], seed);
  __syncthreads();
  if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - start;
  for (int c = 1; c < CHAINS; c++) chain[0] += chain[c];
  results[blockIdx.x * ISSUE_THREADS + threadIdx.x] = chain[0];
}

// The loop of the scores: a thread holds QUERIES x KEYS sums and takes four features (a quad) per
// step. Each warp has queries of its own, and each lane keys of its own.
constexpr int WARPS = 16, QUERIES = 4, KEYS = 4, STEPS = 8, SCORE_ROUNDS = 512;
constexpr double ELEMENTS = 32.0 * WARPS * SCORE_ROUNDS * STEPS * QUERIES * KEYS * 4;  // a block's

// Operands between 0.5 and 1.5, without rounding; the host makes the same ones.
__host__ __device__ float operand(int kind, int step, int row, int lane, int t) {
  return 0.5f + ((kind * 29 + step * 7 + row * 13 + lane * 5 + t * 17) & 63) / 64.f;
}
__device__ float4 operands(int kind, int step, int row, int lane) {
  return make_float4(operand(kind, step, row, lane, 0), operand(kind, step, row, lane, 1),
                     operand(kind, step, row, lane, 2), operand(kind, step, row, lane, 3));
}

struct HardwareTanh {  // (E1), one tanh per element
  static __device__ float quad(float4 q, float4 k, float4 w, float sum) {
    sum = fmaf(w.x, hardware_tanh(q.x + k.x), sum);
    sum = fmaf(w.y, hardware_tanh(q.y + k.y), sum);
    sum = fmaf(w.z, hardware_tanh(q.z + k.z), sum);
    return fmaf(w.w, hardware_tanh(q.w + k.w), sum);
  }
  static double exact(double q, double k) { return std::tanh(q + k); }
};
struct SharedReciprocal {  // (E9), a reciprocal for four elements
  static __device__ float quad(float4 a, float4 b, float4 w, float sum) {
    const float x0 = fmaf(a.x, b.x, 1.f), x1 = fmaf(a.y, b.y, 1.f);
    const float x2 = fmaf(a.z, b.z, 1.f), x3 = fmaf(a.w, b.w, 1.f);
    const float d01 = x0 * x1, n01 = fmaf(w.x, x1, w.y * x0);
    const float d23 = x2 * x3, n23 = fmaf(w.z, x3, w.w * x2);
    return fmaf(fmaf(n01, d23, n23 * d01), rcp(d01 * d23), sum);
  }
  static double exact(double a, double b) { return 1 / (1 + a * b); }
};

template <class Form>
__global__ void __launch_bounds__(32 * WARPS, 1) scores(float* sums, long long* clocks) {
  __shared__ float4 queries[STEPS][QUERIES][WARPS], keys[STEPS][KEYS][32], weights[STEPS];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int s = 0; s < STEPS; s++) {
    if (warp < QUERIES && lane < WARPS) queries[s][warp][lane] = operands(0, s, warp, lane);
    if (warp < KEYS) keys[s][warp][lane] = operands(1, s, warp, lane);
    if (threadIdx.x == 0) weights[s] = operands(2, s, 0, 0);
  }
  float sum[QUERIES][KEYS] = {};
  __syncthreads();
  const long long start = clock64();
#pragma unroll 1
  for (int r = 0; r < SCORE_ROUNDS; r++)
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
      float4 q[QUERIES], k[KEYS];
      // other rows in every round, so that no load can be taken out of the loop
      for (int i = 0; i < QUERIES; i++) q[i] = queries[s][i][(warp + r) % WARPS];
      for (int j = 0; j < KEYS; j++) k[j] = keys[s][j][(lane + r) % 32];
#pragma unroll
      for (int i = 0; i < QUERIES; i++)
#pragma unroll
        for (int j = 0; j < KEYS; j++) sum[i][j] = Form::quad(q[i], k[j], weights[s], sum[i][j]);
    }
  __syncthreads();
  if (threadIdx.x == 0) clocks[blockIdx.x] = clock64() - start;
  float total = 0;
  for (int i = 0; i < QUERIES; i++)
    for (int j = 0; j < KEYS; j++) total += sum[i][j];
  sums[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

// The result that the first thread of `scores` should find.
template <class Form>
static double exact_total() {
  double total = 0;
  for (int r = 0; r < SCORE_ROUNDS; r++)
    for (int s = 0; s < STEPS; s++)
      for (int i = 0; i < QUERIES; i++)
        for (int j = 0; j < KEYS; j++)
          for (int t = 0; t < 4; t++)
            total += operand(2, s, 0, 0, t) *
                     Form::exact(operand(0, s, i, r % WARPS, t), operand(1, s, j, r % 32, t));
  return total;
}

__global__ void nothing() {}

static int sms;
static float* results;     // of every thread; if unused, the loops would be dropped
static long long* clocks;  // one per SM, where the host can read them

// The rate in the fastest of five launches of one block per SM; the slowest SM counts.
template <class Launch>
static long long fastest_clocks(Launch launch) {
  long long best = 0;
  for (int run = 0; run < 5; run++) {
    launch();
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    const long long slowest = *std::max_element(clocks, clocks + sms);
    if (run == 0 || slowest < best) best = slowest;
  }
  return best;
}

template <class Op>
static double issue_rate() {
  const auto launch = [] { issue<Op><<<sms, ISSUE_THREADS>>>(0.5f, results, clocks); };
  return double(ISSUE_THREADS) * ISSUE_ROUNDS * CHAINS / fastest_clocks(launch);
}

template <class Form>
static double score_rate() {
  return ELEMENTS / fastest_clocks([] { scores<Form><<<sms, 32 * WARPS>>>(results, clocks); });
}

// Call this right after score_rate of the same form.
template <class Form>
static double score_error() {
  float found;
  CHECK(cudaMemcpy(&found, results, sizeof found, cudaMemcpyDeviceToHost));
  return std::abs(found / exact_total<Form>() - 1);
}

// The milliseconds of the fastest of ten runs on the device.
template <class Work>
static float fastest_ms(Work work) {
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  float best = 0;
  for (int run = 0; run < 10; run++) {
    float ms;
    CHECK(cudaEventRecord(start));
    work();
    CHECK(cudaEventRecord(stop));
    CHECK(cudaEventSynchronize(stop));
    CHECK(cudaEventElapsedTime(&ms, start, stop));
    if (run == 0 || ms < best) best = ms;
  }
  return best;
}

// 10^9 bytes per second, read and written together, of a copy too large for any cache.
static double copy_rate() {
  size_t free, total;
  CHECK(cudaMemGetInfo(&free, &total));
  const size_t bytes = std::min<size_t>(size_t(1) << 30, free / 4);
  void *from, *to;
  CHECK(cudaMalloc(&from, bytes));
  CHECK(cudaMalloc(&to, bytes));
  CHECK(cudaMemset(from, 1, bytes));
  const float ms =
      fastest_ms([=] { CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice)); });
  CHECK(cudaFree(from));
  CHECK(cudaFree(to));
  return 2e-6 * bytes / ms;
}

// Microseconds from one empty kernel to the next if the host does nothing but launch.
static double launch_interval() {
  constexpr int LAUNCHES = 1000;
  return 1e3 / LAUNCHES * fastest_ms([] {
           for (int each = 0; each < LAUNCHES; each++) nothing<<<1, 32>>>();
         });
}

// Microseconds on the host from launching an empty kernel until it is known to have run.
static double launch_and_wait() {
  using clock = std::chrono::steady_clock;
  double best = 1e9;
  for (int run = 0; run < 1000; run++) {
    const auto start = clock::now();
    nothing<<<1, 32>>>();
    CHECK(cudaDeviceSynchronize());
    best = std::min(best, std::chrono::duration<double, std::micro>(clock::now() - start).count());
  }
  return best;
}

int main() {
  CHECK(cudaSetDevice(0));
  CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
  CHECK(cudaMallocHost(&clocks, sms * sizeof *clocks));
  CHECK(cudaMalloc(&results, size_t(sms) * ISSUE_THREADS * sizeof *results));
  const double fma = issue_rate<Fma>(), ex2 = issue_rate<Ex2>(), rcp = issue_rate<Rcp>();
  const double tanh = issue_rate<Tanh>();
  const double tanh_scores = score_rate<HardwareTanh>(), tanh_error = score_error<HardwareTanh>();
  const double scores = score_rate<SharedReciprocal>(), error = score_error<SharedReciprocal>();
  std::printf(
      "{\"multiply_adds\": %.1f, \"ex2\": %.2f, \"rcp\": %.2f, \"tanh\": %.2f, "
      "\"tanh_scores\": %.2f, \"scores\": %.2f, \"tanh_scores_error\": %.1e, "
      "\"scores_error\": %.1e, \"copy_gb\": %.0f, \"launch_us\": %.2f, \"wait_us\": %.2f}\n",
      fma, ex2, rcp, tanh, tanh_scores, scores, tanh_error, error, copy_rate(), launch_interval(),
      launch_and_wait());
  return 0;
}
