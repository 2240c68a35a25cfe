// Blocks: the part of an item that one task of the forward or of raw scores takes.
#pragma once
#include <algorithm>
#include <vector>

#include "score.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// Queries i0 .. i1 of an item against its keys j0 .. j1, which are those they see. `part` is the
// first row of an unfinished softmax that is merged later, or -1.
struct Block {
  int64_t item, i0, i1, j0, j1, part;
};

// The keys of a tile of at most `tile` from key j0 on: up to a panel, if j0 lies inside of one.
inline int64_t tile_from(int64_t j0, int64_t tile) {
  return j0 % kPanel ? kPanel - j0 % kPanel : tile;
}

// Cut every item into blocks, enough for the threads and each as large as possible. Return the
// number of rows of unfinished softmaxes.
template <class Blocks>
int64_t cut(const Problem& p, int threads, Blocks& blocks, bool split_keys) {
  int64_t rows = 0;
  for (int64_t b = 0; b < p.count; b++) rows += p.items.queries(b);
  const int64_t most = block_rows(p), tile = tile_keys(p.d);
  // Two blocks per thread, so that one slow thread does not hold up the rest. Larger blocks are
  // better: keys are prepared once per block.
  const int64_t limit = std::clamp<int64_t>((rows + 2 * threads - 1) / (2 * threads),
                                            std::min<int64_t>(kTileRows, most), most);
  auto pieces = [&](int64_t b) { return (p.items.queries(b) + limit - 1) / limit; };
  int64_t count = 0;
  for (int64_t b = 0; b < p.count; b++) count += pieces(b);
  const int64_t wanted = split_keys && count < 2 * threads
                             ? (2 * threads + count - 1) / std::max<int64_t>(1, count)
                             : 1;
  blocks.reserve(count);  // growing would take three times the memory
  int64_t parts = 0;
  for (int64_t b = 0; b < p.count; b++) {
    const Item item = p.items[b];
    if (!item.n) continue;
    const int64_t size =
        ((item.n + pieces(b) - 1) / pieces(b) + 3) / 4 * 4;  // alike, and whole registers
    for (int64_t i = 0; i < item.n; i += size) {
      const int64_t i1 = std::min(item.n, i + size);
      const int64_t seen = std::max(p.window.first(i), item.first), first = seen / tile * tile,
                    last = std::max(first, p.window.end(i1 - 1, item.m)),
                    tiles = (last - first + tile - 1) / tile,
                    split = std::clamp<int64_t>(tiles / 2, 1, wanted);
      for (int64_t s = 0; s < split; s++)
        blocks.push_back(
            {b, i, i1,
             std::clamp(first + tiles * s / split * tile, std::min(item.first, last), last),
             std::min(last, first + tiles * (s + 1) / split * tile),
             split > 1 ? parts + s * (i1 - i) : -1});
      if (split > 1) parts += split * (i1 - i);
    }
  }
  return parts;
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
