// Raw scores, (E1), without softmax or masks.
#pragma once
#include "blocks.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

template <class T>
void scores(const Scores<T>& p, const Host& host) {
  std::vector<Block> blocks;
  cut(p, host.threads, blocks, false);
  const int64_t tile = tile_keys(p.d), rows_most = block_rows(p),
                size = Scorer<T>::scratch(p, rows_most) + tile_rows(p) * tile;
  T* scratch = host.allocate<T>(host.threads * size);
  host.run(static_cast<int64_t>(blocks.size()), [&](int64_t task, int64_t worker) {
    const Block& b = blocks[task];
    const Item& item = p.items[b.item];
    const int64_t rows = b.i1 - b.i0;
    T* out = scratch + worker * size;
    Scorer<T> scorer(p, item, rows_most, out + tile_rows(p) * tile);
    scorer.queries(b.i0, rows);
    for (int64_t j0 = b.j0; j0 < b.j1 && !p.host->stopped(); j0 += tile) {
      const int64_t keys = std::min(tile, b.j1 - j0);
      scorer.keys(j0, keys);
      for (int64_t r0 = 0; r0 < rows; r0 += kTileRows) {
        const int64_t count = std::min(kTileRows, rows - r0);
        scorer.score(r0, count, out, tile);
        for (int64_t r = 0; r < count; r++)
          std::copy(out + r * tile, out + r * tile + keys,
                    p.scores + (item.pair_row + b.i0 + r0 + r) * p.pair_cols + j0);
      }
    }
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
