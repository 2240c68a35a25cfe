// The first pass of the gradients: over the edges of every target, for ds, dq, dw and the gradients
// of what edges have of their own.
#pragma once
#include "edge_gradients.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

template <class T, class S, class Form>
class EdgeTargets {
 public:
  EdgeTargets(const EdgePass<T>& pass, const Form& form)
      : pass_(pass), p_(pass.p), form_(form), width_(pass.width), ld_(pass.ld),
        sum_size_(width_ + kLane), weights_(p_), tasks_(p_.by_target),
        scratch_size_(carve(nullptr).size),
        scratch_(pass.host.template allocate<T>(pass.host.threads * scratch_size_)),
        parts_(pass.host.template allocate<T>(tasks_.parts * p_.head_count * width_)),
        sums_(pass.host.template allocate<T>(static_cast<int64_t>(tasks_.ranges.size()) *
                                             p_.head_count * sum_size_)),
        products_(pass.host.template allocate<double>(
            p_.grad_weights.data ? (p_.n + tasks_.parts) * p_.head_count : 0)) {}

  void run() {
    if (p_.grad_weights.data) sum_products();
    pass_.for_ranges(tasks_,
                     [&](const NodeRange& r, int64_t k, const HeadGroup& g, int64_t worker) {
                       range(r, k, g, carve(scratch_ + worker * scratch_size_));
                     });
    for (const SplitNode& split : tasks_.splits)
      for (int64_t h = 0; h < p_.head_count; h++) merge(split, h);
    if (p_.grad_weight)
      for (int64_t h = 0; h < p_.head_count; h++) finish_weight(h);
  }

 private:
  struct Memory {
    T *query, *key, *scores, *da, *ds, *delta, *grad_context, *grad_query, *sums;
    int64_t size;
  };
  Memory carve(T* base) const {
    const int64_t heads = pass_.most_heads();
    Parts<T> parts(base);
    Memory m;
    m.query = parts.take(heads * width_);
    m.key = parts.take(pass_.has_edge_key() ? heads * kEdges * width_ : 0);
    m.scores = parts.take(heads * kEdges);
    m.da = parts.take(heads * kEdges);
    m.ds = parts.take(kEdges);
    m.delta = parts.take(heads);
    m.grad_context = parts.take(heads * ld_);
    m.grad_query = parts.take(heads * width_);
    m.sums = parts.take(heads * sum_size_);
    m.size = parts.taken();
    return m;
  }

  int64_t edge_at(int64_t place) const { return p_.by_target.edge[place]; }
  bool sums_wanted() const { return p_.grad_query.rows.data || p_.grad_weight; }
  const Matrix& values(int64_t head) const {
    return pass_.has_value() ? p_.heads[head].value : p_.heads[head].key;
  }
  T* part_at(int64_t part, int64_t head) const {
    return parts_ + (part * p_.head_count + head) * width_;
  }

  // The part of D of (E4) that comes from grad_weights: sum_e da_e a_e of every target, by the
  // tasks of its edges.
  void sum_products() {
    double* parts = products_ + p_.n * p_.head_count;
    pass_.for_ranges(tasks_, [&](const NodeRange& r, int64_t, const HeadGroup& g, int64_t) {
      for (int64_t h = g.first; h < g.first + g.count; h++)
        for (int64_t i = r.begin; i < r.end; i++) {
          const auto [first, last] = edges_of(r, p_.by_target, i);
          double total = 0;
          for (int64_t e = first; e < last; e++)
            total += static_cast<double>(*p_.grad_weights.at(h, edge_at(e))) *
                     static_cast<double>(*p_.weights.at(h, edge_at(e)));
          (r.part < 0 ? products_[i * p_.head_count + h] : parts[r.part * p_.head_count + h]) =
              total;
        }
    });
    for (const SplitNode& split : tasks_.splits)
      for (int64_t h = 0; h < p_.head_count; h++) {
        double total = 0;
        for (int64_t k = 0; k < split.count; k++)
          total += parts[(split.part + k) * p_.head_count + h];
        products_[split.node * p_.head_count + h] = total;
      }
  }

  void range(const NodeRange& r, int64_t index, const HeadGroup& g, const Memory& mine) const {
    std::fill(mine.sums, mine.sums + g.count * sum_size_, T(0));
    for (int64_t i = r.begin; i < r.end; i++) {
      const auto [first, last] = edges_of(r, p_.by_target, i);
      target(i, first, last, g, mine);
      for (int64_t h = 0; h < g.count && p_.grad_query.rows.data; h++) {
        T* row = mine.grad_query + h * width_;
        if (r.part < 0)
          store_query(i, g.first + h, row);
        else
          std::copy(row, row + width_, part_at(r.part, g.first + h));
      }
    }
    std::copy(mine.sums, mine.sums + g.count * sum_size_,
              sums_ + (index * p_.head_count + g.first) * sum_size_);
  }

  void store_query(int64_t i, int64_t head, T* row) const {
    const HeadGradient& out = p_.grad_query;
    multiply_row(row, pass_.factor + head * width_, p_.d);
    store_row(out.rows.data, out.dtype, out.rows.offset(head, i), row, p_.d);
  }

  void merge(const SplitNode& split, int64_t head) const {
    if (!p_.grad_query.rows.data) return;
    T* sum = part_at(split.part, head);
    for (int64_t k = 1; k < split.count; k++)
      for (int64_t t = 0; t < p_.d; t++) sum[t] += part_at(split.part + k, head)[t];
    store_query(split.node, head, sum);
  }

  void target(int64_t i, int64_t first, int64_t last, const HeadGroup& g,
              const Memory& mine) const {
    std::fill(mine.grad_query, mine.grad_query + g.count * width_, T(0));
    if (first == last) return;
    for (int64_t h = 0; h < g.count; h++) {
      const int64_t head = g.first + h;
      T *q = mine.query + h * width_, *dc = mine.grad_context + h * ld_;
      load_row(q, p_.heads[head].query, i, p_.d);
      std::fill(q + p_.d, q + width_, T(0));
      mine.delta[h] = 0;
      if (p_.grad_context.data) {
        const int64_t place = p_.context.place(head, i);
        const T* from = p_.grad_context.at_place(place);
        std::fill(std::copy(from, from + p_.dv, dc), dc + ld_, T(0));
        mine.delta[h] = edge_dot(dc, p_.context.at_place(place), p_.dv);
      }
      if (p_.grad_weights.data)
        mine.delta[h] += static_cast<T>(products_[i * p_.head_count + head]);
    }
    for (int64_t e = first; e < last; e += kEdges) block(i, e, std::min(kEdges, last - e), g, mine);
  }

  void block(int64_t i, int64_t first, int64_t count, const HeadGroup& g,
             const Memory& mine) const {
    const Adjacency& a = p_.by_target;
    if (pass_.has_edge_key()) {
      add_edge_keys<T, S>(p_, g, first, count, a, a.edge + first, mine.key);
      block_of(i, first, count, g, mine, [&](int64_t h, int64_t e) -> const T* {
        return mine.key + (h * kEdges + e) * width_;
      });
    } else {
      block_of(i, first, count, g, mine, [&](int64_t h, int64_t e) {
        return row_at<S>(p_.heads[g.first + h].key, a.other[first + e]);
      });
    }
  }

  template <class Key>
  void block_of(int64_t i, int64_t first, int64_t count, const HeadGroup& g, const Memory& mine,
                const Key& key) const {
    products(first, count, g, mine, key);
    for (int64_t h = 0; h < g.count; h++) {
      const int64_t head = g.first + h;
      score_gradient(i, first, count, head, mine, h);
      if (p_.grad_edge_key.rows.data)
        for (int64_t e = 0; e < count; e++)
          edge_key_gradient(mine.query + h * width_, key(h, e), mine.ds[e], head,
                            edge_at(first + e));
      constexpr bool two_lines = kTwoLines<decltype(form_.gradient)>;
      if (!sums_wanted() && !(two_lines && pass_.records)) continue;
      const Matrix& bias = p_.heads[head].edge_bias;
      std::invoke_result_t<Key, int64_t, int64_t> rows[kEdges];
      T *sums = mine.sums + h * sum_size_, *ds = mine.ds;
      int64_t places[kEdges], live = 0;
      for (int64_t e = 0; e < count; e++) {
        if (bias.data && is_excluded<T, S>(bias, edge_at(first + e))) continue;
        sums[width_] += ds[e];
        ds[live] = ds[e];
        places[live] = first + e;
        rows[live++] = key(h, e);
      }
      auto add = [&](const auto& visit) {
        add_gradients(form_.gradient, mine.query + h * width_, rows, ds, live, p_.d,
                      mine.grad_query + h * width_, sums, visit);
      };
      if (two_lines && pass_.records)
        add([&](int64_t e, int64_t t, Vec<T> x) {
          store_signs<T>(pass_.signs(places[e], head), t, signs_of(x));
        });
      else
        add(kNoVisit);
    }
  }

  // The sums of scores, and da = dc . u.
  template <class Key>
  void products(int64_t first, int64_t count, const HeadGroup& g, const Memory& mine,
                const Key& key) const {
    const Adjacency& a = p_.by_target;
    for (int64_t e = 0; e < count; e++) {
      const int64_t ahead = a.other[std::min(first + e + kEdgesAhead, p_.edges - 1)];
      for (int64_t h = 0; h < g.count; h++) {
        const EdgeHead& head = p_.heads[g.first + h];
        prefetch_row<S>(head.key, ahead, p_.d);
        if (pass_.has_value()) prefetch_row<S>(head.value, ahead, p_.dv);
        mine.scores[h * kEdges + e] = edge_sum(form_.sum, mine.query + h * width_, key(h, e),
                                               weights_.row(g.first + h), p_.d);
        mine.da[h * kEdges + e] =
            p_.grad_context.data
                ? edge_dot(mine.grad_context + h * ld_,
                           row_at<S>(values(g.first + h), a.other[first + e]), p_.dv)
                : T(0);
      }
    }
  }

  // ds of (E4) for one head of a block, into mine.ds; with the weights, for the pass over sources.
  void score_gradient(int64_t i, int64_t first, int64_t count, int64_t head, const Memory& mine,
                      int64_t h) const {
    using V = Vec<T>;
    constexpr T kWhole = 1 - 4 * std::numeric_limits<T>::epsilon();
    constexpr T kNone = -std::numeric_limits<T>::infinity();
    T *s = mine.scores + h * kEdges, *da = mine.da + h * kEdges, *ds = mine.ds;
    const Matrix& bias = p_.heads[head].edge_bias;
    const int64_t place = p_.lse.place(head, i);
    const T lse = *p_.lse.at_place(place);
    const T* softmax = p_.softmax.data ? p_.softmax.at_place(place) : nullptr;
    const Weigh<T> weigh(softmax ? softmax[0] : lse, softmax ? softmax[1] : T(1));
    const bool given = p_.weights.data && p_.dropout.p == 0;
    T weights[kEdges];
    if (given) std::fill(weights, weights + kEdges, T(0));
    for (int64_t e = 0; e < count && given; e++)
      weights[e] = *p_.weights.at(head, edge_at(first + e));
    for (int64_t e = 0; e < kEdges; e += kLanes<T>)
      fmadd(load(s + e), V(weights_.factor[head]), V(weights_.offset[head])).store(s + e);
    if (bias.data) add_biases<T, S>(bias, p_.by_target.edge + first, count, s);
    if (p_.grad_weights.data)
      for (int64_t e = 0; e < count; e++) da[e] += *p_.grad_weights.at(head, edge_at(first + e));
    std::fill(s + count, s + kEdges, kNone);
    if (p_.dropout.p > 0) drop_edges(p_.dropout, head, first, count, da);
    const V d_i(mine.delta[h]), dlse(p_.grad_lse.data ? *p_.grad_lse.at_place(place) : T(0)),
        zero(T(0));
    for (int64_t e = 0; e < kEdges; e += kLanes<T>) {
      const V x = load(s + e), a = lse == kNone ? zero : given ? load(weights + e) : weigh(x);
      // an edge with all the weight of its row, up to rounding, moves nothing but lse
      const V moved = V::blendv(load(da + e) - d_i, zero, a >= V(kWhole));
      const V none = lse == kNone ? V(kNone) : x;
      a.store(s + e);
      V::blendv(a * (moved + dlse), zero, none == V(kNone)).store(ds + e);
    }
    if (p_.dropout.p > 0) drop_edges(p_.dropout, head, first, count, s);
    for (int64_t e = 0; e < count && pass_.records; e++) {
      T* record = pass_.record(first + e);
      record[head] = ds[e];
      record[p_.head_count + head] = s[e];
    }
    if (p_.grad_edge_bias.data)
      for (int64_t e = 0; e < count; e++) *p_.grad_edge_bias.at(head, edge_at(first + e)) = ds[e];
  }

  template <class R>
  void edge_key_gradient(const T* q, const R* key, T ds, int64_t head, int64_t edge) const {
    const HeadGradient& out = p_.grad_edge_key;
    const Matrix& bias = p_.heads[head].edge_bias;
    const bool excluded = bias.data && is_excluded<T, S>(bias, edge);
    constexpr int64_t L = kLanes<T>;
    for (int64_t t = 0; t < p_.d; t += L) {
      const int64_t left = std::min(L, p_.d - t);
      Vec<T> b[1] = {load_as<T>(key + t, left)}, g[1] = {Vec<T>(ds)}, to_w[1], to_x[1];
      form_.gradient(load(q + t), b, g, to_w, to_x);
      alignas(64) T row[L];
      (excluded ? Vec<T>(T(0)) : to_x[0] * load(pass_.factor + head * width_ + t)).store(row);
      store_row(out.rows.data, out.dtype, out.rows.offset(head, edge) + t, row, left);
    }
  }

  // (E6) from the sums of all ranges, in their order.
  void finish_weight(int64_t head) const {
    const int64_t ranges = static_cast<int64_t>(tasks_.ranges.size());
    std::vector<double> sums(width_ + 1, 0.0);
    for (int64_t r = 0; r < ranges; r++)
      for (int64_t t = 0; t <= width_; t++)
        sums[t] += static_cast<double>(sums_[(r * p_.head_count + head) * sum_size_ + t]);
    for (int64_t t = 0; t < p_.d; t++) {
      const double f =
          is_logistic(p_.activation) ? sums[width_] - info(p_.activation).span * sums[t] : sums[t];
      p_.grad_weight[head * p_.d + t] = static_cast<T>(p_.scale * f);
    }
  }

  const EdgePass<T>& pass_;
  const EdgeBackward<T>& p_;
  const Form form_;
  const int64_t width_, ld_, sum_size_;
  const EdgeWeights<T> weights_;
  const NodeTasks tasks_;
  const int64_t scratch_size_;
  T *const scratch_, *const parts_, *const sums_;
  double* const products_;  // (n, heads), then (parts, heads)
};

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
