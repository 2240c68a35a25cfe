// The part of CUDA that csrc/cuda/device.h needs, on a CPU: kernels are tested without a GPU.
// emulator.cpp runs the threads.
//
// The threads of a block run one after another, each until it waits for others. Their order changes
// from one such point to the next (ascending, descending or shuffled) and is the same in every run.
// Shared memory starts as NaN and lies between guards. A missing barrier therefore shows in the
// results, and launch throws for anything that is undefined or hangs on hardware.
#pragma once
#include <math.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <source_location>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

#define DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(attnkernels::emulator::dynamic_shared())
#define SHARED_ARRAY(T, name, count) \
  static char name##_place;          \
  T(&name)[count] = attnkernels::emulator::shared_array<T, count>(&name##_place)

// The indices of a thread have one dimension, so that a kernel cannot use another.
struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace attnkernels::emulator {

constexpr int kWarp = 32;
constexpr unsigned kEveryLane = 0xffffffff;
constexpr int kUnset = 0xff;  // in every byte: a NaN, or -1

using Where = std::source_location;

template <class... T>
std::string text(const T&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// A collective operation that a thread waits for. It is finished once every lane of the mask, or
// every thread of the block, has requested the same with the same mask.
struct Request {
  const char* name;
  Where where;
  bool block;
  unsigned mask;
  void (*finish)(std::span<Request* const> requests);  // of a warp or block; null for an absent one

  bool meets(const Request& r) const {
    return where.line() == r.where.line() && where.column() == r.where.column() && mask == r.mask &&
           block == r.block && finish == r.finish;
  }
  std::string place() const {
    const std::string file = where.file_name();
    const auto line = text(name, " (", file.substr(file.rfind('/') + 1), ":", where.line(), ")");
    return block ? line : text(line, " with lane mask 0x", std::hex, mask);
  }
};

// The services that launch offers to the threads of a kernel.
void wait(Request& request);
void* dynamic_shared();
void* static_shared(const void* place, size_t bytes);
void copy(void* shared, const void* global);
void commit();
void await(int younger);

// Run body(closure) in every thread.
struct Launch {
  const char* name;
  int64_t blocks;
  int threads;
  size_t shared;
  void (*body)(const void* closure);
  const void* closure;
};
void run(const Launch& launch);
void record(const char* name, int64_t blocks, int threads, size_t shared);

inline int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

template <class T, size_t count>
auto shared_array(const void* place) -> T (&)[count] {
  static_assert(sizeof(T[count]) <= 48 << 10, "more shared memory must be dynamic");
  return *static_cast<T(*)[count]>(static_shared(place, sizeof(T[count])));
}

// Combine the values of threads: any, all, and the lanes of the true ones.
struct Vote : Request {
  bool value;
  bool any = false, all = true;
  unsigned ballot = 0;

  static void count(std::span<Request* const> requests) {
    Vote sum{{}, false};
    for (size_t t = 0; t < requests.size(); t++)
      if (requests[t]) {
        const bool value = static_cast<Vote*>(requests[t])->value;
        sum.any |= value;
        sum.all &= value;
        sum.ballot |= unsigned{value} << t % kWarp;
      }
    for (Request* request : requests)
      if (request) {
        auto& vote = static_cast<Vote&>(*request);
        vote.any = sum.any, vote.all = sum.all, vote.ballot = sum.ballot;
      }
  }
};

inline Vote vote(const char* name, Where where, bool block, unsigned mask, bool value) {
  Vote mine{{name, where, block, mask, Vote::count}, value};
  wait(mine);
  return mine;
}

// Give each lane the value of lane `from`, or NaN where that lane takes no part.
template <class T>
struct Shuffle : Request {
  T value, result;
  int from;

  static void exchange(std::span<Request* const> lanes) {
    for (Request* request : lanes)
      if (request) {
        auto& to = static_cast<Shuffle&>(*request);
        if (const Request* source = lanes[to.from])
          to.result = static_cast<const Shuffle*>(source)->value;
        else
          std::memset(&to.result, kUnset, sizeof(T));
      }
  }
};

template <class T>
T shuffle(const char* name, Where where, unsigned mask, T value, int from) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  Shuffle<T> mine{{name, where, false, mask, Shuffle<T>::exchange}, value, value, from};
  wait(mine);
  return mine.result;
}

// The first and the last lane of the group of `width` lanes that a shuffle stays within.
inline int first_lane(int width) { return lane() & ~(width - 1); }
inline int last_lane(int width) { return lane() | (width - 1); }

inline bool subnormal(float x) { return fabsf(x) < std::numeric_limits<float>::min(); }
inline float flush(float x) { return subnormal(x) ? copysignf(0, x) : x; }

}  // namespace attnkernels::emulator

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(uint64_t{x} * y >> 32);
}
template <class T>
T __ldg(const T* p) {
  return *p;
}

// As in CUDA, int with int64_t is ambiguous.
#define ATTNKERNELS_MIN_MAX(T, A, B)                      \
  constexpr T min(A a, B b) {                             \
    const T x = static_cast<T>(a), y = static_cast<T>(b); \
    return x < y ? x : y;                                 \
  }                                                       \
  constexpr T max(A a, B b) {                             \
    const T x = static_cast<T>(a), y = static_cast<T>(b); \
    return x < y ? y : x;                                 \
  }
#define ATTNKERNELS_MIN_MAX_INTEGER(T)                    \
  ATTNKERNELS_MIN_MAX(T, T, T)                            \
  ATTNKERNELS_MIN_MAX(unsigned T, unsigned T, unsigned T) \
  ATTNKERNELS_MIN_MAX(unsigned T, unsigned T, T)          \
  ATTNKERNELS_MIN_MAX(unsigned T, T, unsigned T)
ATTNKERNELS_MIN_MAX_INTEGER(int)
ATTNKERNELS_MIN_MAX_INTEGER(long)
ATTNKERNELS_MIN_MAX_INTEGER(long long)
#undef ATTNKERNELS_MIN_MAX_INTEGER
#undef ATTNKERNELS_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

// Threads do not interrupt each other.
inline float atomicAdd(float* to, float x) {
  const float old = *to;
  *to += x;
  return old;
}
inline int atomicAdd(int* to, int x) {
  const int old = *to;
  *to = static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(x));
  return old;
}
inline int atomicMax(int* to, int x) {
  const int old = *to;
  *to = max(old, x);
  return old;
}

// `here` is the place of the call: threads that wait in different places do not match.
#define ATTNKERNELS_HERE attnkernels::emulator::Where here = attnkernels::emulator::Where::current()

inline void __syncthreads(ATTNKERNELS_HERE) {
  attnkernels::emulator::vote("__syncthreads", here, true, 0, true);
}
inline int __syncthreads_or(int value, ATTNKERNELS_HERE) {
  return attnkernels::emulator::vote("__syncthreads_or", here, true, 0, value != 0).any;
}
inline int __syncthreads_and(int value, ATTNKERNELS_HERE) {
  return attnkernels::emulator::vote("__syncthreads_and", here, true, 0, value != 0).all;
}
inline void __syncwarp(unsigned mask = attnkernels::emulator::kEveryLane, ATTNKERNELS_HERE) {
  attnkernels::emulator::vote("__syncwarp", here, false, mask, true);
}
inline unsigned __ballot_sync(unsigned mask, int value, ATTNKERNELS_HERE) {
  return attnkernels::emulator::vote("__ballot_sync", here, false, mask, value != 0).ballot;
}
inline int __any_sync(unsigned mask, int value, ATTNKERNELS_HERE) {
  return attnkernels::emulator::vote("__any_sync", here, false, mask, value != 0).any;
}
inline int __all_sync(unsigned mask, int value, ATTNKERNELS_HERE) {
  return attnkernels::emulator::vote("__all_sync", here, false, mask, value != 0).all;
}

// Shuffle within groups of `width` lanes, a power of two. A lane past the end of its group returns
// the caller's own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, ATTNKERNELS_HERE) {
  using namespace attnkernels::emulator;
  const int from = first_lane(width) | (source & (width - 1));
  return shuffle("__shfl_sync", here, mask, value, from);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, ATTNKERNELS_HERE) {
  using namespace attnkernels::emulator;
  const int from = lane() ^ bits;
  return shuffle("__shfl_xor_sync", here, mask, value, from <= last_lane(width) ? from : lane());
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, ATTNKERNELS_HERE) {
  using namespace attnkernels::emulator;
  const int64_t from = lane() + int64_t{delta};
  return shuffle("__shfl_down_sync", here, mask, value,
                 from <= last_lane(width) ? static_cast<int>(from) : lane());
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, ATTNKERNELS_HERE) {
  using namespace attnkernels::emulator;
  const int64_t from = lane() - int64_t{delta};
  return shuffle("__shfl_up_sync", here, mask, value,
                 from >= first_lane(width) ? static_cast<int>(from) : lane());
}

namespace attnkernels::cuda {

using Stream = void*;

// The destination is NaN until the copying thread waits, which is as late as hardware may be.
inline void prefetch_line(const void*) {}
inline void async_copy16(void* shared, const void* global) { emulator::copy(shared, global); }
inline void async_commit() { emulator::commit(); }
template <int N>
void async_wait() {
  emulator::await(N);
}

inline float exp2_approx(float x) { return emulator::flush(exp2f(emulator::flush(x))); }
inline float log2_approx(float x) { return log2f(emulator::flush(x)); }
inline float sin_approx(float x) { return sinf(emulator::flush(x)); }
inline float cos_approx(float x) { return cosf(emulator::flush(x)); }
inline float reciprocal(float x) {
  return emulator::subnormal(x) ? copysignf(INFINITY, x) : emulator::flush(1 / x);
}

inline float max_nan(float x, float y) {
  if (isnan(x) || isnan(y)) return __uint_as_float(0x7fffffff);
  return x > y || (x == y && !signbit(x)) ? x : y;
}
inline float min_nan(float x, float y) { return -max_nan(-x, -y); }

inline void forget(float&) {}  // a matter of registers
inline void forget(unsigned&) {}

inline float from_half(uint16_t bits) {
  const unsigned sign = (bits & 0x8000u) << 16, size = bits & 0x7fffu;
  if (size < 0x400)
    return __uint_as_float(sign | __float_as_uint(static_cast<float>(size) * 0x1p-24f));
  const unsigned exponent = size < 0x7c00 ? 127 - 15 : 255 - 31;  // what is added to its own
  return __uint_as_float(sign | ((size << 13) + (exponent << 23)));
}
// Round to nearest, ties to even.
inline uint16_t to_half(float x) {
  const unsigned bits = __float_as_uint(x), size = bits & 0x7fffffffu;
  const unsigned sign = bits >> 16 & 0x8000u;
  if (size > 0x7f800000u) return 0x7fff;
  if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);  // 65520
  if (size < 0x38800000u)  // 2^-14: adding 1/2 rounds to its last place, 2^-24
    return static_cast<uint16_t>(sign | (__float_as_uint(__uint_as_float(size) + 0.5f) & 0xfff));
  const unsigned rounded = size + 0xfff + (size >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

inline unsigned to_halves(float low, float high) {
  return to_half(low) | static_cast<unsigned>(to_half(high)) << 16;
}

inline void zero(void* data, int64_t bytes, Stream /* stream */) {
#ifdef ATTNKERNELS_UNLAUNCHED
  if (bytes) emulator::record("clear", bytes / 4096 + 1, 256, 0);
#endif
  if (bytes) std::memset(data, 0, static_cast<size_t>(bytes));
}
inline int multiprocessors(int /* device */) {
#ifdef ATTNKERNELS_UNLAUNCHED
  return 132;  // of an H100
#else
  return 3;  // few, so that all of them get work
#endif
}

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), int64_t blocks, int threads, size_t shared,
            Stream /* stream */, const A&... arguments) {
  static_assert((std::is_trivially_copyable_v<P> && ...), "arguments are copied to the GPU");
  static_assert((sizeof(P) + ... + 0) <= 4 << 10, "arguments have 4 KiB");
  if (blocks == 0) return;
#ifdef ATTNKERNELS_UNLAUNCHED  // to time the host alone, and to see what it would launch
  emulator::record(name, blocks, threads, shared);
  return;
#endif
  const auto call = [&] { kernel(arguments...); };
  const auto body = [](const void* f) { (*static_cast<decltype(&call)>(f))(); };
  emulator::run({name, blocks, threads, shared, body, &call});
}

}  // namespace attnkernels::cuda

#include "tensor_cores.h"
