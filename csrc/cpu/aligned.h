// Scores of a decoder's step whose keys see the weights of earlier steps: the arguments of their
// CPU kernels.
//
//   s_j = scale * sum_t w_t tanh(q_t + k_jt + sum_c sum_e filter[c, e, t] seen[c, j + e])
#pragma once
#include "cpu/problem.h"

namespace attnkernels::cpu {

// All matrices are contiguous.
template <class T>
struct AlignedScores {
  int64_t batch, m, d, channels, taps;
  const T *query, *key, *weight;  // (batch, d), (batch, m, d), (d)
  const T *seen, *filter;         // (batch, channels, m + taps - 1), (channels, taps, d)
  T scale;
  T* scores;  // (batch, m)
};

template <class T>
struct AlignedBackward : AlignedScores<T> {
  const T* grad_scores;                     // (batch, m)
  T *grad_query, *grad_seen;                // of the shapes of the inputs
  T *grad_key, *grad_weight, *grad_filter;  // the same, which are added to; null: not wanted
};

template <class T>
struct AlignedTable {
  void (*scores)(const AlignedScores<T>&, const Host&);
  void (*backward)(const AlignedBackward<T>&, const Host&);
};

struct AlignedKernels {
  AlignedTable<float> f32;
  AlignedTable<double> f64;
};

const AlignedKernels& aligned_kernels();  // as `kernels`

}  // namespace attnkernels::cpu
