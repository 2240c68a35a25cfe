// The gradients of attention over edges, (E4)-(E6), in two passes: over the edges of every target
// (edge_targets.h) for ds, dq, dw and those of the edges, then over the edges of every source
// (edge_sources.h) for dk and du. Of the size of the edges there are the weights and ds, one of
// each per head; no sum is atomic.
#pragma once
#include "edge_block.h"
#include "signs.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// What the passes share.
template <class T>
struct EdgePass {
  const EdgeBackward<T>& p;
  const Host& host;
  const std::vector<HeadGroup> groups;
  const int64_t width, ld;    // of rows of d and of dv
  T* const factor;            // (heads, width): what the sums of dq and dk leave out
  const int64_t record_size;  // of the record of an edge
  T* const records;           // (edges by target, record_size), or null

  // With signs if the slope of the activation has but two values.
  EdgePass(const EdgeBackward<T>& p, const Host& host, bool with_signs)
      : p(p), host(host), groups(head_groups(p, p.context.together)), width(padded(p.d)),
        ld(padded(p.dv)), factor(host.allocate<T>(p.head_count * width)),
        record_size(p.head_count * 2 + (with_signs ? signs_size() : 0)),
        records(by_source_wanted() ? host.allocate<T>(p.edges * record_size) : nullptr) {
    const ActivationInfo& f = info(p.activation);
    for (int64_t h = 0; h < p.head_count; h++) {
      T* row = factor + h * width;
      load_row(row, p.heads[h].weight, 0, p.d);
      std::fill(row + p.d, row + width, T(0));
      for (int64_t t = 0; t < p.d; t++) row[t] *= static_cast<T>(p.scale * f.span * f.gain);
    }
  }

  bool by_source_wanted() const { return p.grad_key.rows.data || p.grad_value.rows.data; }
  bool has_edge_key() const { return p.heads[0].edge_key.data; }
  bool has_value() const { return !p.keys_are_values; }
  int64_t most_heads() const { return groups[0].count; }  // no group has more

  // The record of an edge, by its place in the order by target: ds of every head, the weights that
  // were used, and the signs of q + k.
  T* record(int64_t place) const { return records + place * record_size; }
  uint8_t* signs(int64_t place, int64_t head) const {
    return reinterpret_cast<uint8_t*>(record(place) + 2 * p.head_count) + head * sign_bytes(p.d);
  }

  // Call f(task's range, its index, a group of heads, worker) for all edges by one of their ends.
  template <class F>
  void for_ranges(const NodeTasks& tasks, const F& f) const {
    const int64_t count = static_cast<int64_t>(groups.size());
    host.run(static_cast<int64_t>(tasks.ranges.size()) * count, [&](int64_t k, int64_t worker) {
      f(tasks.ranges[k / count], k / count, groups[k % count], worker);
    });
  }

 private:
  int64_t signs_size() const {
    const int64_t bytes = p.head_count * sign_bytes(p.d), unit = sizeof(T);
    return (bytes + unit - 1) / unit;
  }
};

// out[t] += sum_e x[e][t], where x is to_x of (E5) for a row and the rows at the other end of its
// edges; the sums of to_w are added to `weight`, if given. A NaN may pass from one edge to another
// here, because the sums have all of them. `visit(e, t, x)` gets every vector of x = q + k.
template <class T, class S, class Gradient, class Visit>
inline void add_gradients(const Gradient& gradient, const T* row, const S* const* others,
                          const T* ds, int64_t count, int64_t d, T* out, T* weight,
                          const Visit& visit) {
  using V = Vec<T>;
  constexpr int64_t L = kLanes<T>;
  for (int64_t t = 0; t < d; t += L) {
    const int64_t left = std::min(L, d - t);
    const V a = load(row + t);
    V x_sum = load(out + t), w_sum(T(0));
    auto add = [&]<int K>(std::integral_constant<int, K>, int64_t e) {
      V b[K], g[K], to_w[K], to_x[K];
#pragma GCC unroll 4
      for (int k = 0; k < K; k++) {
        b[k] = load_as<T>(others[e + k] + t, left);
        g[k] = V(ds[e + k]);
        visit(e + k, t, a + b[k]);
      }
      gradient(a, b, g, to_w, to_x);
#pragma GCC unroll 4
      for (int k = 0; k < K; k++) {
        x_sum = x_sum + to_x[k];
        w_sum = w_sum + to_w[k];
      }
    };
    int64_t e = 0;
    for (; e + 4 <= count; e += 4) add(std::integral_constant<int, 4>{}, e);
    for (; e < count; e++) add(std::integral_constant<int, 1>{}, e);
    x_sum.store(out + t);
    if (weight) (load(weight + t) + w_sum).store(weight + t);
  }
}

constexpr auto kNoVisit = [](int64_t, int64_t, const auto&) {};

// row <- row * factor, where 0 stays 0 even if the factor is not finite: nothing was added to it.
template <class T>
inline void multiply_row(T* row, const T* factor, int64_t count) {
  for (int64_t t = 0; t < count; t++) row[t] = row[t] == 0 ? T(0) : row[t] * factor[t];
}

// out <- out + a row of another dtype.
template <class T, class S>
inline void add_row(T* out, const S* row, int64_t count) {
  for (int64_t t = 0; t < count; t++) out[t] += static_cast<T>(row[t]);
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
