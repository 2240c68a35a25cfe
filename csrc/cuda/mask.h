// The pairs that take part, and those that dropout keeps: (E2), and docs/math.md, "Dropout".
#pragma once
#include "cuda/rows.h"

namespace attnkernels::cuda {

// Return true if pair (i, j) of `rows` queries and these keys takes part, and set the number added
// to its score. mask_at: the first element of the mask of the leading index.
__device__ __forceinline__ bool takes_part(const Problem& p, int64_t mask_at, int rows,
                                           const Keys& keys, int i, int j, float& added) {
  added = 0;
  if (i >= rows || j < keys.first || j >= keys.end) return false;
  if (j - i > p.window.right || i - j > p.window.left) return false;
  if (!p.mask.data) return true;
  const int64_t at = mask_at + i * p.mask.row + j * p.mask.col;
  if (p.mask.dtype == Dtype::boolean) return static_cast<const uint8_t*>(p.mask.data)[at] != 0;
  added = load(p.mask.data, p.mask.dtype, at);
  return added != -kInfinity;
}

// Philox4x32-10 (Salmon et al., 2011): four words of random bits per (seed, counter).
struct Words {
  uint32_t w[4];
};

__device__ __forceinline__ Words philox(uint64_t seed, Words c) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; round++) {
    const uint32_t high0 = __umulhi(0xD2511F53u, c.w[0]), low0 = 0xD2511F53u * c.w[0];
    const uint32_t high1 = __umulhi(0xCD9E8D57u, c.w[2]), low1 = 0xCD9E8D57u * c.w[2];
    c = {{high1 ^ c.w[1] ^ k0, low1, high0 ^ c.w[3] ^ k1, low0}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// Return the factors of dropout for query i and the keys from 4 * group to 4 * group + 3: 0, or
// the one that keeps the mean. `item` numbers the sequences of all leading indices.
__device__ __forceinline__ float4 kept_four(const Problem& p, int64_t item, int i, int group) {
  if (!p.seed) return make_float4(1, 1, 1, 1);
  if (p.of_block) {
    i += static_cast<int>(p.seed[1]);
    group += static_cast<int>(p.seed[2] / 4);
  }
  const Words bits = philox(static_cast<uint64_t>(*p.seed),
                            {{static_cast<uint32_t>(group), static_cast<uint32_t>(i),
                              static_cast<uint32_t>(item), static_cast<uint32_t>(item >> 32)}});
  auto factor = [&](uint32_t word) { return word >= p.threshold ? p.keep_scale : 0.f; };
  return make_float4(factor(bits.w[0]), factor(bits.w[1]), factor(bits.w[2]), factor(bits.w[3]));
}

// Return the factor of key j.
__device__ __forceinline__ float kept(const Problem& p, int64_t item, int i, int j) {
  const float4 four = kept_four(p, item, i, j / 4);
  return j % 4 < 2 ? (j % 4 == 0 ? four.x : four.y) : (j % 4 == 2 ? four.z : four.w);
}

// Return x times that factor: 0 if dropped, even for an infinite x.
__device__ __forceinline__ float dropped(float x, float keep) { return keep == 0 ? 0.f : x * keep; }

}  // namespace attnkernels::cuda
