// A stable counting sort of edges by the node at one of their ends, in parallel.
#pragma once
#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/problem.h"

namespace attnkernels::cpu {

// Write begin (nodes + 1) and order (edges): the edges of node i are order[begin[i]] ..
// order[begin[i + 1]], as they came. Return false, with nothing written, if an end is not a node.
inline bool sort_edges(const int64_t* ends, int64_t edges, int64_t nodes, int64_t* begin,
                       int64_t* order, const Host& host) {
  // Every chunk counts for itself, so that no two threads write to one counter. There are no more
  // chunks than keep all counters about as large as the edges.
  const int64_t chunks = std::clamp<int64_t>(edges / std::max<int64_t>(1, nodes), 1, host.threads);
  auto first_of = [&](int64_t chunk) { return edges * chunk / chunks; };
  std::vector<int64_t> counts(static_cast<size_t>(chunks * nodes), 0);
  std::atomic<bool> fine = true;
  host.run(chunks, [&](int64_t c, int64_t) {
    int64_t* mine = counts.data() + c * nodes;
    for (int64_t e = first_of(c); e < first_of(c + 1); e++) {
      if (static_cast<uint64_t>(ends[e]) >= static_cast<uint64_t>(nodes)) {
        fine = false;
        return;
      }
      mine[ends[e]]++;
    }
  });
  if (!fine) return false;
  int64_t next = 0;
  for (int64_t i = 0; i < nodes; i++) {
    begin[i] = next;
    for (int64_t c = 0; c < chunks; c++) {
      const int64_t count = counts[c * nodes + i];
      counts[c * nodes + i] = next;  // where this chunk's edges of the node go
      next += count;
    }
  }
  begin[nodes] = next;
  host.run(chunks, [&](int64_t c, int64_t) {
    int64_t* mine = counts.data() + c * nodes;
    for (int64_t e = first_of(c); e < first_of(c + 1); e++) order[mine[ends[e]]++] = e;
  });
  return true;
}

}  // namespace attnkernels::cpu
