// Attention over edges: the arguments of its CPU kernels.
#pragma once
#include "cpu/problem.h"

namespace attnkernels::cpu {

// The operands of one leading index (a head): those of the nodes, and of the edges in the order in
// which the caller has them.
struct EdgeHead {
  Matrix query, key, value, weight, edge_key, edge_bias;
};

// Edges sorted by one of their ends: those of node i are begin[i] .. begin[i + 1].
struct Adjacency {
  int64_t nodes = 0;
  const int64_t* begin = nullptr;
  const int64_t* other = nullptr;  // the node at the other end
  const int64_t* edge = nullptr;   // by target: its place in the caller's order; by source: its
                                   // place in the order by target
};

// A result (head_count / together, rows, together, cols): the heads that lie together in memory.
// Results of the same rows have the same places, which take divisions to find.
template <class T>
struct HeadRows {
  T* data = nullptr;
  int64_t rows = 0, cols = 0, together = 1;
  int64_t place(int64_t head, int64_t row) const {
    return (head / together * rows + row) * together + head % together;
  }
  int64_t offset(int64_t head, int64_t row) const { return place(head, row) * cols; }
  T* at(int64_t head, int64_t row) const { return data + offset(head, row); }
  T* at_place(int64_t place) const { return data + place * cols; }
};

struct EdgeProblem {
  const EdgeHead* heads;
  int64_t head_count;
  int64_t n, m, edges, d, dv;
  bool keys_are_values;  // the heads have no values of their own
  Adjacency by_target, by_source;
  Activation activation;
  double negative_slope, scale;
  Dropout dropout;
};

template <class T>
struct EdgeForward : EdgeProblem {
  HeadRows<T> context, lse;  // of dv columns, of one
  HeadRows<T> weights;       // a row per edge in the caller's order; data null: not wanted
  HeadRows<T> softmax;       // of two: the maximum and the sum of exp(s - maximum); or null
};

// A gradient in its own dtype; data null: not wanted.
struct HeadGradient {
  HeadRows<char> rows;
  Dtype dtype = Dtype::f32;
};

template <class T>
struct EdgeBackward : EdgeProblem {
  HeadRows<const T> context, lse, weights, softmax;        // as the forward returned them
  HeadRows<const T> grad_context, grad_lse, grad_weights;  // data null: zero
  HeadGradient grad_query, grad_key, grad_value, grad_edge_key;
  T* grad_weight;              // (heads, d), or null
  HeadRows<T> grad_edge_bias;  // data null: not wanted
};

template <class T>
struct EdgeTable {
  void (*forward)(const EdgeForward<T>&, const Host&);
  void (*backward)(const EdgeBackward<T>&, const Host&);
};

struct EdgeKernels {
  EdgeTable<float> f32;
  EdgeTable<double> f64;
};

const EdgeKernels& edge_kernels();  // as `kernels`

}  // namespace attnkernels::cpu
