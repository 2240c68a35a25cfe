// The products of tensor cores on a CPU; emulator.h includes this.
#pragma once
#include "emulator.h"

namespace attnkernels::emulator {

// Tensor cores round toward zero (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores"),
// the sum of c and the products as a whole. A double holds it exactly unless all but 2^-25 of a
// term cancels; hardware, which shifts terms to the largest, drops more than that.
inline float toward_zero(double x) {
  return static_cast<float>(
      std::bit_cast<double>(std::bit_cast<uint64_t>(x) & ~((uint64_t{1} << 29) - 1)));
}
inline float tf32(float x) { return std::bit_cast<float>(std::bit_cast<unsigned>(x) & ~0x1fffu); }

// c += a b for a 16 x kDepth and b kDepth x 8: Lane::a(l, put) and b(l, put) call put(row, column,
// value) for the numbers of a lane.
template <size_t kDepth, class Lane>
struct Product : Request {
  float* c;
  Lane lane;

  static void multiply(std::span<Request* const> lanes) {
    double a[16][kDepth], b[kDepth][8];
    for (size_t l = 0; l < kWarp; l++) {
      const Lane& from = static_cast<const Product&>(*lanes[l]).lane;
      const size_t g = l / 4, t = l % 4;
      from.a(g, t, [&](size_t row, size_t k, float x) { a[row][k] = x; });
      from.b(g, t, [&](size_t k, size_t column, float x) { b[k][column] = x; });
    }
    for (size_t l = 0; l < kWarp; l++)
      for (size_t e = 0; e < 4; e++) {
        const size_t row = l / 4 + e / 2 * 8, column = l % 4 * 2 + e % 2;
        float& c = static_cast<Product&>(*lanes[l]).c[e];
        double sum = c;
        for (size_t k = 0; k < kDepth; k++) sum += a[row][k] * b[k][column];
        c = toward_zero(sum);
      }
  }
};

struct Tf32Lane {
  const float *left, *right;

  template <class F>
  void a(size_t g, size_t t, const F& put) const {
    for (size_t e = 0; e < 4; e++) put(g + e % 2 * 8, t + e / 2 * 4, tf32(left[e]));
  }
  template <class F>
  void b(size_t g, size_t t, const F& put) const {
    for (size_t e = 0; e < 2; e++) put(t + e * 4, g, tf32(right[e]));
  }
};

// Two float16 in each number, the first in the low bits.
struct HalfLane {
  unsigned left[4], right[2];

  static float half(unsigned two, size_t e) {
    return cuda::from_half(static_cast<uint16_t>(two >> 16 * e));
  }
  template <class F>
  void a(size_t g, size_t t, const F& put) const {
    for (size_t e = 0; e < 8; e++)
      put(g + e / 2 % 2 * 8, 2 * t + e % 2 + e / 4 * 8, half(left[e / 2], e % 2));
  }
  template <class F>
  void b(size_t g, size_t t, const F& put) const {
    for (size_t e = 0; e < 4; e++) put(2 * t + e % 2 + e / 2 * 8, g, half(right[e / 2], e % 2));
  }
};

// Four 8 x 8 matrices of 16-bit numbers, transposed.
struct Transposed : Request {
  unsigned* to;
  const uint16_t* row;

  static void load(std::span<Request* const> lanes) {
    auto number = [&](size_t matrix, size_t i, size_t j) {
      return static_cast<unsigned>(static_cast<const Transposed&>(*lanes[8 * matrix + i]).row[j]);
    };
    for (size_t l = 0; l < kWarp; l++)
      for (size_t k = 0; k < 4; k++) {
        const size_t g = l / 4, t = l % 4;
        static_cast<Transposed&>(*lanes[l]).to[k] = number(k, 2 * t, g) | number(k, 2 * t + 1, g)
                                                                              << 16;
      }
  }
};

}  // namespace attnkernels::emulator

namespace attnkernels::cuda {

inline void load_transposed(unsigned (&x)[4], const void* row, ATTNKERNELS_HERE) {
  using emulator::Transposed;
  Transposed mine{{"load_transposed", here, false, emulator::kEveryLane, Transposed::load},
                  x,
                  static_cast<const uint16_t*>(row)};
  emulator::wait(mine);
}

inline void mma_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2], ATTNKERNELS_HERE) {
  using Product = emulator::Product<8, emulator::Tf32Lane>;
  Product mine{{"mma_tf32", here, false, emulator::kEveryLane, Product::multiply}, c, {a, b}};
  emulator::wait(mine);
}

inline void mma_f16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                    ATTNKERNELS_HERE) {
  using Product = emulator::Product<16, emulator::HalfLane>;
  Product mine{{"mma_f16", here, false, emulator::kEveryLane, Product::multiply},
               c,
               {{a[0], a[1], a[2], a[3]}, {b0, b1}}};
  emulator::wait(mine);
}

}  // namespace attnkernels::cuda
