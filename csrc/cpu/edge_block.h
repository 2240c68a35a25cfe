// A block of edges of one node: up to kEdges rows at their other ends, against the node's own row,
// for a group of heads. Between the passes over a block its rows are in the first-level cache.
#pragma once
#include "node_tasks.h"
#include "pair_sums.h"
#include "philox.h"
#include "scratch.h"
#include "sweep.h"
#include "weight.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

constexpr int64_t kEdges = 16;      // of a block
constexpr int64_t kEdgesAhead = 8;  // rows are prefetched so many edges ahead
static_assert(kEdges % 4 == 0);

// The inner formulas of an activation: of scores, and of gradients.
template <class Sum, class Gradient>
struct EdgeForm {
  Sum sum;
  Gradient gradient;
};

// Call f with the forms for q and k themselves.
template <class T, class F>
void with_edge_form(const EdgeProblem& p, const F& f) {
  if (is_logistic(p.activation)) {
    const T gain = static_cast<T>(info(p.activation).gain);
    const Direct<T> x(gain), in_pairs(gain, Limits<T>::pair);
    return f(
        EdgeForm<SharedReciprocal<Direct<T>, false>, ExponentialGradient<Direct<T>, true, true>>{
            {x}, {in_pairs}});
  }
  with_pointwise(p.activation, static_cast<T>(p.negative_slope), [&]<class P>(const P& pointwise) {
    f(EdgeForm<PointwiseSum<P>, PointwiseGradient<P, true>>{{pointwise}, {pointwise}});
  });
}

// sum_t form(a[t], b[t]) with weights w; a and w are padded with zeros.
template <class T, class S, class Form>
C10_ALWAYS_INLINE T edge_sum(const Form& form, const T* a, const S* b, const T* w, int64_t d) {
  return row_sum(form, a, b, w, d);
}
template <class T, class S, class P>
C10_ALWAYS_INLINE T edge_sum(const PointwiseSum<P>& form, const T* a, const S* b, const T* w,
                             int64_t d) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> acc(T(0));
  for (int64_t t = 0; t < d; t += L)
    acc =
        fmadd(load(w + t), form.f.value(load(a + t) + load_as<T>(b + t, std::min(L, d - t))), acc);
  return sum(acc);
}
template <class T, class S>
C10_ALWAYS_INLINE T edge_dot(const T* a, const S* b, int64_t d) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> acc(T(0));
  for (int64_t t = 0; t < d; t += L)
    acc = fmadd(load(a + t), load_as<T>(b + t, std::min(L, d - t)), acc);
  return sum(acc);
}

// The score vectors of all heads, and s = factor * sum + offset.
template <class T>
struct EdgeWeights {
  int64_t width;
  std::vector<T> rows, factor, offset;

  explicit EdgeWeights(const EdgeProblem& p)
      : width(padded(p.d)), rows(p.head_count * width), factor(p.head_count), offset(p.head_count) {
    for (int64_t h = 0; h < p.head_count; h++) {
      const ScaledWeight<T> f = scale_weight(p.heads[h].weight, p.activation, p.scale, p.d, row(h));
      factor[h] = f.factor;
      offset[h] = f.offset;
    }
  }
  T* row(int64_t head) { return rows.data() + head * width; }
  const T* row(int64_t head) const { return rows.data() + head * width; }
};

// Heads first .. first + count, which a task computes together.
struct HeadGroup {
  int64_t first, count;
};

inline std::vector<HeadGroup> head_groups(const EdgeProblem& p, int64_t together) {
  const int64_t most = std::clamp<int64_t>(8192 / (padded(p.d) + padded(p.dv)), 1, together);
  std::vector<HeadGroup> groups;
  for (int64_t h = 0; h < p.head_count; h += together)
    for (int64_t k = 0; k < together; k += most)
      groups.push_back({h + k, std::min(most, together - k)});
  return groups;
}

// Row `row` of one head. Elements of a row are next to each other.
template <class S>
C10_ALWAYS_INLINE const S* row_at(const Matrix& m, int64_t row) {
  return static_cast<const S*>(m.data) + row * m.row;
}

template <class S>
inline void prefetch_row(const Matrix& m, int64_t row, int64_t cols) {
  prefetch<1>(reinterpret_cast<const char*>(row_at<S>(m, row)),
              cols * static_cast<int64_t>(sizeof(S)));
}

// out[e] *= kept / (1 - p) for the edges first .. first + count in the order by target.
template <class T>
inline void drop_edges(const Dropout& dropout, int64_t head, int64_t first, int64_t count, T* out) {
  T kept[kEdges + 4];
  const int64_t aligned = first / 4 * 4, before = first - aligned;
  std::fill(kept, kept + before + count, T(1));
  drop_row(kept, dropout.p, dropout.seed, head, 0, aligned, before + count);
  for (int64_t e = 0; e < count; e++) out[e] *= kept[before + e];
}

// The score bias of an edge, by its place in the caller's order.
template <class T, class S>
C10_ALWAYS_INLINE T bias_at(const Matrix& bias, int64_t edge) {
  return static_cast<T>(static_cast<const S*>(bias.data)[edge * bias.col]);
}

template <class T, class S>
C10_ALWAYS_INLINE bool is_excluded(const Matrix& bias, int64_t edge) {
  return bias_at<T, S>(bias, edge) == -std::numeric_limits<T>::infinity();
}

// Add the biases of a block to its scores. A bias of -inf excludes an edge, whatever its key holds.
template <class T, class S>
inline void add_biases(const Matrix& bias, const int64_t* edge, int64_t count, T* s) {
  for (int64_t e = 0; e < count; e++)
    s[e] = is_excluded<T, S>(bias, edge[e]) ? -std::numeric_limits<T>::infinity()
                                            : s[e] + bias_at<T, S>(bias, edge[e]);
}

// Copy rows k + g of the block, (heads, kEdges, width), for keys that edges add to.
template <class T, class S>
inline void add_edge_keys(const EdgeProblem& p, const HeadGroup& g, int64_t first, int64_t count,
                          const Adjacency& a, const int64_t* edge, T* out) {
  const int64_t width = padded(p.d);
  for (int64_t h = 0; h < g.count; h++) {
    const EdgeHead& head = p.heads[g.first + h];
    for (int64_t e = 0; e < count; e++) {
      T* row = out + (h * kEdges + e) * width;
      const S *k = row_at<S>(head.key, a.other[first + e]), *x = row_at<S>(head.edge_key, edge[e]);
      for (int64_t t = 0; t < p.d; t++) row[t] = static_cast<T>(k[t]) + static_cast<T>(x[t]);
    }
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
