// The scores of aligned.h.
#pragma once
#include "aligned_tile.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// Add the sums over C vectors of columns to the scores of R keys from j on.
template <int R, int C, class T>
C10_ALWAYS_INLINE void add_scores(const AlignedOperands<T>& at, int64_t b, int64_t j, int64_t t,
                                  int64_t count, T* scores) {
  Vec<T> acc[R][C], total[R];
  at.tile(acc, b, j, t, count);
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    total[r] = Vec<T>(T(0));
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {  // tanh(x) = -2 (1 / (1 + exp(2 x)) - 1/2)
      const Vec<T> half = reciprocal(acc[r][c] + Vec<T>(T(1))) - Vec<T>(T(0.5));
      total[r] = fmadd(load(at.weight + t + c * kLanes<T>), half, total[r]);
    }
  }
  if constexpr (R == 4) {
    T four[4];
    store_sums(total[0], total[1], total[2], total[3], four);
    for (int r = 0; r < R; r++) scores[r] += four[r];
  } else {
    scores[0] += sum(total[0]);
  }
}

template <class T>
void aligned_scores(const AlignedScores<T>& p, const Host& host) {
  Parts<T> nothing(nullptr);
  const AlignedOperands<T> sized(p, nothing);
  const int64_t size = nothing.taken(), workers = std::min<int64_t>(host.threads, p.batch);
  T* scratch = host.allocate<T>(workers * size);
  host.run(workers, [&](int64_t k, int64_t) {
    Parts<T> parts(scratch + k * size);
    AlignedOperands<T> at(p, parts);
    at.begin();
    for (int64_t b = p.batch * k / workers; b < p.batch * (k + 1) / workers; b++) {
      if (host.stopped()) return;
      at.begin(b);
      T* scores = p.scores + b * p.m;
      std::fill_n(scores, p.m, T(0));
      for (int64_t first = 0; first < p.m; first += kAlignedRows) {
        const int64_t count = std::min(kAlignedRows, p.m - first);
        for_columns<T>(p.d, [&]<int C>(std::integral_constant<int, C>, int64_t t, int64_t in_last) {
          at.template prefetch_next<C>(p.key, b, first, count, t);
          for_rows<kTileKeys>(count, [&]<int R>(std::integral_constant<int, R>, int64_t i) {
            add_scores<R, C>(at, b, first + i, t, in_last, scores + first + i);
          });
        });
      }
      for (int64_t j = 0; j < p.m; j++) scores[j] *= T(-2) * p.scale;
    }
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
