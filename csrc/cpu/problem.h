// The arguments of the CPU kernels: plain pointers and sizes, without torch's types.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/activation.h"
#include "common/contract.h"
#include "common/matrix.h"
#include "common/window.h"
#include "cpu/items.h"

namespace attnkernels::cpu {

// The tangents of an item's inputs; data is null for a tangent of zero.
struct Tangents {
  Matrix query, key, value, weight, mask;
};

// The seed of dropout's mask. For a block of a larger problem, also the place of its first query
// and key in that, the key's a multiple of 4.
struct Seed {
  uint64_t bits = 0;
  int64_t query = 0, key = 0;
};

struct Dropout {
  double p = 0;
  Seed seed;
};

struct Host;

struct Problem {
  const Host* host;
  Items items;
  int64_t count;
  int64_t queries, keys, key_rows;  // the most of any item: see Item
  int64_t d, dv;
  int64_t pair_cols;  // row length of the (rows, m) outputs
  Activation activation;
  double negative_slope, scale;
  Window window;
  Dropout dropout;
};

// Threads, memory and interrupts, provided by the operator.
struct Host {
  int threads;
  void* self;
  // Memory is uninitialised, and freed when the operator returns.
  void* (*allocate_bytes)(void* self, int64_t bytes);
  void (*run_tasks)(void* self, int64_t tasks,
                    void (*call)(const void* f, int64_t task, int64_t worker), const void* f);
  bool (*is_stopped)(void* self);

  template <class T>
  T* allocate(int64_t count) const {
    return static_cast<T*>(allocate_bytes(self, count * static_cast<int64_t>(sizeof(T))));
  }
  // True once the call was interrupted. Tasks ask before every tile and return, whatever they have
  // not done: `run` then throws.
  bool stopped() const { return is_stopped(self); }
  // Call f(task, worker) for every task, in any order and on any thread. Two tasks that run at the
  // same time have different workers, worker < threads.
  template <class F>
  void run(int64_t tasks, const F& f) const {
    run_tasks(
        self, tasks,
        [](const void* g, int64_t task, int64_t worker) {
          (*static_cast<const F*>(g))(task, worker);
        },
        &f);
  }
};

// A gradient of `rows` rows in all; see Output.
struct Gradient : Output {
  int64_t rows = 0;
};

// Outputs and arithmetic are in T: float for float32, bfloat16 and float16 inputs, double for
// float64.
template <class T>
struct Forward : Problem {
  T* context;  // (rows, dv)
  T* lse;      // (rows), or null
  T* weights;  // (rows, pair_cols), or null
  T* softmax;  // (rows, 2), or null: Softmax::high and total
};

template <class T>
struct Scores : Problem {
  T* scores;  // (rows, pair_cols)
};

// The same with tangents, one per item; results have those of their primals beside them.
template <class T>
struct ForwardJvp : Forward<T> {
  const Tangents* tangents;
  T *context_tangent, *lse_tangent, *weights_tangent;
};

template <class T>
struct ScoresJvp : Scores<T> {
  const Tangents* tangents;
  T* scores_tangent;
};

template <class T>
struct Backward : Problem {
  // Either the gradient of raw scores, or what the backward of the attention needs. Absent ones are
  // null.
  const T* grad_scores;                         // (rows, pair_cols)
  const T *context, *lse, *weights, *softmax;   // as the forward returned them
  Matrix grad_context, grad_lse, grad_weights;  // (rows, dv), (rows, 1), (rows, pair_cols)
  // In the shapes of the inputs: items that share an input add to one gradient.
  Gradient grad_query, grad_key, grad_value;
  T* grad_weight;  // (weight_count, d), or null
  int64_t weight_count;
  T* grad_mask;  // zero on entry, or null
  int64_t grad_mask_row, grad_mask_col;
  bool is_block;  // rows see other keys besides
};

template <class T>
struct PackKeys {
  Matrix key;  // one (m, d) matrix
  int64_t m, d;
  Activation activation;
  T* packed;  // (groups kGroupRows, padded(d))
};

template <class T>
struct Table {
  void (*forward)(const Forward<T>&, const Host&);
  void (*scores)(const Scores<T>&, const Host&);
  void (*backward)(const Backward<T>&, const Host&);
  void (*pack)(const PackKeys<T>&, int64_t group);
  void (*forward_jvp)(const ForwardJvp<T>&, const Host&);
  void (*scores_jvp)(const ScoresJvp<T>&, const Host&);
};

struct Kernels {
  const char* isa;
  Table<float> f32;
  Table<double> f64;
};

const Kernels& kernels();  // for this processor, or for ATEN_CPU_CAPABILITY

}  // namespace attnkernels::cpu
