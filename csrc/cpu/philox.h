// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). The dropout
// mask is a function of (seed, batch, query, key), so it is the same in the backward and at any
// number of threads.
#pragma once
#include <algorithm>

#include "cpu/problem.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

struct Words {
  uint32_t w[4];
};

inline Words philox(uint64_t seed, Words c) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c.w[0], p1 = uint64_t{0xCD9E8D57} * c.w[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.w[1] ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.w[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

// out[j] *= kept / (1 - p) for keys j0 .. j0 + keys of query i.
template <class T>
inline void drop_row(T* out, double p, const Seed& seed, int64_t batch, int64_t i, int64_t j0,
                     int64_t keys) {
  const uint64_t threshold = static_cast<uint64_t>(p * 4294967296.0);
  const T scale = p < 1 ? static_cast<T>(1 / (1 - p)) : T(0);
  i += seed.query;
  j0 += seed.key;
  for (int64_t j = -(j0 % 4); j < keys; j += 4) {
    const Words u =
        philox(seed.bits, {{static_cast<uint32_t>((j0 + j) / 4), static_cast<uint32_t>(i),
                            static_cast<uint32_t>(batch), static_cast<uint32_t>(batch >> 32)}});
    for (int64_t e = std::max<int64_t>(0, -j); e < 4 && j + e < keys; e++)
      out[j + e] = u.w[e] >= threshold ? out[j + e] * scale : T(0);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
