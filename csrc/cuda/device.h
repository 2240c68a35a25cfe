// Everything of CUDA that the kernels use: the real thing under nvcc, and under
// ATTNKERNELS_EMULATED the model in tests/emulator, which runs the same sources on a CPU.
//
// Grids and blocks have one dimension. Shared memory is either dynamic, DYNAMIC_SHARED(T, name), or
// a small array, SHARED_ARRAY(T, name, count).
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef ATTNKERNELS_EMULATED
#include "emulator.h"
#else
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <tuple>

#define DYNAMIC_SHARED(T, name)                   \
  extern __shared__ __align__(16) char name##_[]; \
  T* const name = reinterpret_cast<T*>(name##_)
#define SHARED_ARRAY(T, name, count) __shared__ T name[count]

namespace attnkernels::cuda {

using Stream = void*;

// Copy 16 bytes from global to shared memory, past the registers. async_commit() ends a group of
// copies; async_wait<N>() waits until at most the N newest groups are incomplete.
__device__ __forceinline__ void async_copy16(void* shared, const void* global) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
__device__ __forceinline__ void async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N>
__device__ __forceinline__ void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Bring the line of this address to the second-level cache.
__device__ __forceinline__ void prefetch_line(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// c += a b for a 16 x 8, b 8 x 8 and c 16 x 8 spread over a warp as PTX defines mma.m16n8k8 with
// tf32: lane l, with g = l / 4 and t = l % 4, has a = {(g, t), (g + 8, t), (g, t + 4), (g + 8,
// t + 4)}, b = {(t, g), (t + 4, g)}, c = {(g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)}. It
// reads the first 10 bits of the fraction of each float of a and b.
__device__ __forceinline__ void mma_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// The same for a 16 x 16 and b 16 x 8 of float16, mma.m16n8k16, two numbers of neighbouring columns
// of a, or rows of b, in each: a = {(g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)}, b = {(2t,
// g), (2t + 8, g)}.
__device__ __forceinline__ void mma_f16(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                        unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Load four 8 x 8 matrices of 16-bit numbers from shared memory and transpose them: lane 8 k + i
// has the address of row i of matrix k, 16 bytes, and lane l gets (2t, g) and (2t + 1, g) of each.
__device__ __forceinline__ void load_transposed(unsigned (&x)[4], const void* row) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(from)
               : "memory");
}

// The unit for special functions: 2^x within 2 units in the last place and 1 / x within 1.
// Subnormal numbers count as 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The logarithm within 2^-22 of its size, or of 1 for x in [1/2, 2]; sine and cosine within 2^-20
// for |x| up to pi, beyond by 2^-24 of |x| as well.
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float sin_approx(float x) {
  float y;
  asm("sin.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float cos_approx(float x) {
  float y;
  asm("cos.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// max(x, y) and min(x, y), or NaN if either is NaN.
__device__ __forceinline__ float max_nan(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}
__device__ __forceinline__ float min_nan(float x, float y) {
  float z;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

// Make the compiler compute again what it has computed from x, rather than keep it in registers.
__device__ __forceinline__ void forget(float& x) { asm volatile("" : "+f"(x)); }
__device__ __forceinline__ void forget(unsigned& x) { asm volatile("" : "+r"(x)); }

__device__ __forceinline__ float from_half(uint16_t bits) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
  return y;
}
__device__ __forceinline__ uint16_t to_half(float x) {
  uint16_t y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ unsigned to_halves(float low, float high) {
  unsigned y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("attnkernels: ") + what + ": " +
                             cudaGetErrorString(status));
}

inline void zero(void* data, int64_t bytes, Stream stream) {
  if (bytes)
    check(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)),
          "zero");
}

inline int multiprocessors(int device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "processors");
  return count;
}

// Start kernel(arguments...) on `blocks` blocks of `threads` threads with `shared` bytes of dynamic
// shared memory, or throw std::runtime_error.
template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), int64_t blocks, int threads, size_t shared,
            Stream stream, const A&... arguments) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX)
    throw std::runtime_error(std::string("attnkernels: too many blocks: ") + name);
  if (shared > 48 << 10)
    check(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        name);
  std::tuple<P...> copies(arguments...);
  std::apply(
      [&](P&... each) {
        void* pointers[] = {&each...};
        check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel),
                               dim3(static_cast<unsigned>(blocks)),
                               dim3(static_cast<unsigned>(threads)), pointers, shared,
                               static_cast<cudaStream_t>(stream)),
              name);
      },
      copies);
}

}  // namespace attnkernels::cuda
#endif
