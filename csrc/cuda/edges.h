// Attention over edges: the interface of its CUDA kernels.
#pragma once
#include "cuda/problem.h"

namespace attnkernels::cuda {

// Edges sorted by one of their ends: those of node i are begin[i] .. begin[i + 1].
struct Adjacency {
  int nodes = 0;
  const int64_t* begin = nullptr;
  const int64_t* other = nullptr;  // the node at the other end
  const int64_t* edge = nullptr;   // by target: its place in the caller's order; by source: its
                                   // place in the order by target
};

// Of a Problem: batch, query, key, value, weight, sizes, scoring and dropout. value.data null: the
// keys are the values. Results over nodes and edges lie by row, (count / together, rows, together,
// cols): the heads that lie together in memory.
struct EdgeProblem : Problem {
  Matrix edge_key, edge_bias;  // data null: none
  int edges = 0, together = 1;
  Adjacency by_target, by_source;
  // Rows can be loaded 16 bytes at a time: widths, strides and addresses are multiples of that.
  bool wide = false;
};

struct EdgeForward {
  float *context = nullptr, *lse = nullptr;
  float* weights = nullptr;  // a number per edge in the caller's order; null: not wanted
  float* softmax = nullptr;  // the maximum and the sum of exp(s - maximum) of every row
};

struct EdgeBackward {
  const float *context = nullptr, *lse = nullptr, *weights = nullptr;  // as the forward gave them
  const float* softmax = nullptr;                                      // null if it gave weights
  const float *grad_context = nullptr, *grad_lse = nullptr, *grad_weights = nullptr;  // null: zero
  Output grad_query, grad_key, grad_value, grad_edge_key;  // data null: not wanted
  float* grad_weight = nullptr;                            // (batch, d)
  float* grad_edge_bias = nullptr;
};

void edge_forward(const EdgeProblem&, EdgeForward, const Host&);
void edge_backward(const EdgeProblem&, const EdgeBackward&, const Host&);

}  // namespace attnkernels::cuda
