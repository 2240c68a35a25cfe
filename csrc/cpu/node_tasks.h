// The division of nodes between tasks, by their edges.
#pragma once
#include <utility>
#include <vector>

#include "edges.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

constexpr int64_t kTaskEdges = 1024;  // about the edges of a task

// Nodes begin .. end with all their edges; or a part of the edges of one node, which is merged with
// the others of that node from slot `part`.
struct NodeRange {
  int64_t begin, end, first_edge, last_edge, part;
};

// The edges of node i in a range.
inline std::pair<int64_t, int64_t> edges_of(const NodeRange& r, const Adjacency& a, int64_t i) {
  return r.part < 0 ? std::pair(a.begin[i], a.begin[i + 1]) : std::pair(r.first_edge, r.last_edge);
}

// A node whose edges are shared by tasks: slots part .. part + count.
struct SplitNode {
  int64_t node, part, count;
};

// Divide nodes by edges, since degrees differ by orders of magnitude. The division does not depend
// on the number of threads, and neither does the result.
struct NodeTasks {
  std::vector<NodeRange> ranges;
  std::vector<SplitNode> splits;
  int64_t parts = 0;

  explicit NodeTasks(const Adjacency& a) {
    int64_t first = 0, work = 0;
    auto close = [&](int64_t end) {
      if (end > first) ranges.push_back({first, end, a.begin[first], a.begin[end], -1});
      first = end;
      work = 0;
    };
    for (int64_t i = 0; i < a.nodes; i++) {
      const int64_t degree = a.begin[i + 1] - a.begin[i];
      if (degree > 2 * kTaskEdges) {
        close(i);
        split(i, a.begin[i], degree);
        first = i + 1;
        continue;
      }
      work += degree + 1;
      if (work >= kTaskEdges) close(i + 1);
    }
    close(a.nodes);
  }

 private:
  void split(int64_t node, int64_t begin, int64_t degree) {
    const int64_t count = (degree + kTaskEdges - 1) / kTaskEdges;
    splits.push_back({node, parts, count});
    for (int64_t k = 0; k < count; k++)
      ranges.push_back({node, node + 1, begin + degree * k / count,
                        begin + degree * (k + 1) / count, parts + k});
    parts += count;
  }
};

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
