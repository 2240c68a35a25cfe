// Attention over edges: the arguments of its CPU kernels, and how nodes are divided between tasks.
#pragma once
#include <algorithm>
#include <vector>

#include "problem.h"
#include "vec.h"

namespace attnkernels::cpu {

// The operands of one leading index (a head): those of the nodes, and of the edges in the order in
// which the caller has them. value.data null: the keys are the values.
struct EdgeHead {
  Matrix query, key, value, weight, edge_key, edge_bias;
};

// Edges sorted by one of their ends: those of node i are begin[i] .. begin[i + 1].
struct Adjacency {
  int64_t nodes = 0;
  const int64_t *begin = nullptr;
  const int64_t *other = nullptr;  // the node at the other end
  const int64_t *edge = nullptr;   // by target: its place in the caller's order; by source: its
                                   // place in the order by target
};

// A result (head_count / together, rows, together, cols): the heads that lie together in memory.
template <class T>
struct HeadRows {
  T* data = nullptr;
  int64_t rows = 0, cols = 0, together = 1;
  int64_t offset(int64_t head, int64_t row) const {
    return ((head / together * rows + row) * together + head % together) * cols;
  }
  T* at(int64_t head, int64_t row) const { return data + offset(head, row); }
};

struct EdgeProblem {
  const EdgeHead* heads;
  int64_t head_count;
  int64_t n, m, edges, d, dv;
  Adjacency by_target, by_source;
  Activation activation;
  double negative_slope, scale;
  Dropout dropout;
};

template <class T>
struct EdgeForward : EdgeProblem {
  HeadRows<T> context;  // of dv columns
  T* lse;               // (head_count, n)
  T* weights;           // (head_count, edges) in the caller's order, or null
};

// A gradient in its own dtype; data null: not wanted.
struct HeadGradient {
  HeadRows<char> rows;
  Dtype dtype = Dtype::f32;
};

template <class T>
struct EdgeBackward : EdgeProblem {
  HeadRows<const T> context, grad_context;     // grad_context.data may be null, as may those below
  const T *lse, *weights;                      // as the forward returned them
  const T *grad_lse, *grad_weights;            // as `lse` and `weights`
  HeadGradient grad_query, grad_key, grad_value;
  T *grad_weight, *grad_edge_key, *grad_edge_bias;  // (heads, d), (heads, edges, d), (heads, edges)
};

inline namespace CPU_CAPABILITY {

constexpr int64_t kTaskEdges = 2048;  // about the edges of a task

// Nodes begin .. end with all their edges; or a part of the edges of one node, which is merged with
// the others of that node from slot `part`.
struct NodeRange {
  int64_t begin, end, first_edge, last_edge, part;
};

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
