// The gradients of attention over edges, (E4)-(E6), in two passes: over the edges of every target
// for ds, dq, dw and those of the edges, then over the edges of every source for dk and du. Of the
// size of the edges there are the weights and ds, one of each per head; no sum is atomic.
#pragma once
#include "edge_block.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// out[t] += sum_e x[e][t], where x is to_x of (E5) for a row and the rows at the other end of its
// edges; the sums of to_w are added to `weight`, if given.
template <class T, class S, class Gradient>
inline void add_gradients(const Gradient& gradient, const T* row, const S* const* others,
                          const T* ds, int64_t count, int64_t d, T* out, T* weight) {
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

template <class T, class S, class Form>
class EdgeBackwardPass {
 public:
  EdgeBackwardPass(const EdgeBackward<T>& p, const Form& form, const Host& host)
      : p_(p), form_(form), host_(host), weights_(p), targets_(p.by_target),
        groups_(head_groups(p, p.context.together)), width_(padded(p.d)), ld_(padded(p.dv)),
        sum_size_(width_ + kLane), source_size_(width_ + ld_),
        factor_(host.allocate<T>(p.head_count * width_)),
        pairs_(by_source_wanted() ? host.allocate<T>(2 * p.edges * p.head_count) : nullptr),
        scratch_size_(carve(nullptr).size),
        scratch_(host.allocate<T>(host.threads * scratch_size_)),
        parts_(host.allocate<T>(targets_.parts * p.head_count * width_)),
        sums_(host.allocate<T>(static_cast<int64_t>(targets_.ranges.size()) * p.head_count *
                               sum_size_)) {
    const ActivationInfo& f = info(p.activation);
    for (int64_t h = 0; h < p.head_count; h++) {
      T* row = factor_ + h * width_;
      load_row(row, p.heads[h].weight, 0, p.d);
      std::fill(row + p.d, row + width_, T(0));
      for (int64_t t = 0; t < p.d; t++) row[t] *= static_cast<T>(p.scale * f.span * f.gain);
    }
  }

  void run() {
    const int64_t groups = static_cast<int64_t>(groups_.size());
    host_.run(static_cast<int64_t>(targets_.ranges.size()) * groups,
              [&](int64_t k, int64_t worker) {
                target_range(k / groups, groups_[k % groups],
                             carve(scratch_ + worker * scratch_size_));
              });
    for (const SplitNode& split : targets_.splits)
      for (int64_t h = 0; h < p_.head_count; h++) merge_query(split, h);
    if (p_.grad_weight)
      for (int64_t h = 0; h < p_.head_count; h++) finish_weight(h);
    if (by_source_wanted()) run_sources();
  }

 private:
  struct Memory {
    T *query, *key, *scores, *da, *ds, *grad_context, *grad_query, *sums, *source;
    int64_t size;
  };

  Memory carve(T* base) const {
    const int64_t heads = groups_[0].count;  // no group has more
    Parts<T> parts(base);
    Memory m;
    m.query = parts.take(heads * width_);
    m.key = parts.take(has_edge_key() ? heads * kEdges * width_ : 0);
    m.scores = parts.take(heads * kEdges);
    m.da = parts.take(heads * kEdges);
    m.ds = parts.take(kEdges);
    m.grad_context = parts.take(heads * ld_);
    m.grad_query = parts.take(heads * width_);
    m.sums = parts.take(heads * sum_size_);
    m.source = parts.take(heads * source_size_);
    m.size = parts.taken();
    return m;
  }

  bool has_edge_key() const { return p_.heads[0].edge_key.data; }
  bool has_value() const { return p_.heads[0].value.data; }
  bool by_source_wanted() const { return p_.grad_key.rows.data || p_.grad_value.rows.data; }
  bool sums_wanted() const { return p_.grad_query.rows.data || p_.grad_weight; }
  const Matrix& values(int64_t head) const {
    return has_value() ? p_.heads[head].value : p_.heads[head].key;
  }

  // Targets.

  void target_range(int64_t index, const HeadGroup& g, const Memory& mine) const {
    const NodeRange& r = targets_.ranges[index];
    std::fill(mine.sums, mine.sums + g.count * sum_size_, T(0));
    for (int64_t i = r.begin; i < r.end; i++) {
      const int64_t first = r.part < 0 ? p_.by_target.begin[i] : r.first_edge,
                    last = r.part < 0 ? p_.by_target.begin[i + 1] : r.last_edge;
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

  T* part_at(int64_t part, int64_t head) const {
    return parts_ + (part * p_.head_count + head) * width_;
  }

  void store_query(int64_t i, int64_t head, T* row) const {
    const HeadGradient& out = p_.grad_query;
    for (int64_t t = 0; t < p_.d; t++) row[t] *= factor_[head * width_ + t];
    store_row(out.rows.data, out.dtype, out.rows.offset(head, i), row, p_.d);
  }

  void merge_query(const SplitNode& split, int64_t head) const {
    if (!p_.grad_query.rows.data) return;
    T* sum = part_at(split.part, head);
    for (int64_t k = 1; k < split.count; k++)
      for (int64_t t = 0; t < p_.d; t++) sum[t] += part_at(split.part + k, head)[t];
    store_query(split.node, head, sum);
  }

  void target(int64_t i, int64_t first, int64_t last, const HeadGroup& g,
              const Memory& mine) const {
    for (int64_t h = 0; h < g.count; h++) {
      T *q = mine.query + h * width_, *dc = mine.grad_context + h * ld_;
      load_row(q, p_.heads[g.first + h].query, i, p_.d);
      std::fill(q + p_.d, q + width_, T(0));
      std::fill(mine.grad_query + h * width_, mine.grad_query + (h + 1) * width_, T(0));
      if (!p_.grad_context.data) continue;
      const T* from = p_.grad_context.at(g.first + h, i);
      std::copy(from, from + p_.dv, dc);
      std::fill(dc + p_.dv, dc + ld_, T(0));
    }
    if (first == last) return;
    for (int64_t e = first; e < last; e += kEdges)
      block(i, e, std::min(kEdges, last - e), g, mine);
  }

  // D of (E4) without the part of lse, by the sums that da is made of: if a row has one edge, they
  // are the same numbers.
  T delta(int64_t i, int64_t head, const T* dc) const {
    T sum = 0;
    if (p_.grad_context.data) sum = edge_dot(dc, p_.context.at(head, i), p_.dv);
    if (p_.grad_weights) {
      double total = 0;
      const int64_t offset = head * p_.edges;
      for (int64_t e = p_.by_target.begin[i]; e < p_.by_target.begin[i + 1]; e++) {
        const int64_t at = offset + p_.by_target.edge[e];
        total += static_cast<double>(p_.grad_weights[at]) * static_cast<double>(p_.weights[at]);
      }
      sum += static_cast<T>(total);
    }
    return sum;
  }

  void block(int64_t i, int64_t first, int64_t count, const HeadGroup& g,
             const Memory& mine) const {
    const Adjacency& a = p_.by_target;
    if (has_edge_key()) {
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
      score_gradient(i, first, count, g.first + h, mine, h);
      std::invoke_result_t<Key, int64_t, int64_t> rows[kEdges];
      for (int64_t e = 0; e < count; e++) rows[e] = key(h, e);
      const T* q = mine.query + h * width_;
      if (sums_wanted()) {
        T* sums = mine.sums + h * sum_size_;
        add_gradients(form_.gradient, q, rows, mine.ds, count, p_.d, mine.grad_query + h * width_,
                      sums);
        for (int64_t e = 0; e < count; e++) sums[width_] += mine.ds[e];
      }
      if (p_.grad_edge_key)
        for (int64_t e = 0; e < count; e++)
          edge_key_gradient(q, rows[e], mine.ds[e], g.first + h, a_edge(first + e));
    }
  }
  int64_t a_edge(int64_t place) const { return p_.by_target.edge[place]; }

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
        if (has_value()) prefetch_row<S>(head.value, ahead, p_.dv);
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
    T *s = mine.scores + h * kEdges, *da = mine.da + h * kEdges, *ds = mine.ds;
    const Matrix& bias = p_.heads[head].edge_bias;
    const T lse = p_.lse[head * p_.n + i];
    for (int64_t e = 0; e < kEdges; e += kLanes<T>)
      fmadd(load(s + e), V(weights_.factor[head]), V(weights_.offset[head])).store(s + e);
    if (bias.data)
      for (int64_t e = 0; e < count; e++)
        s[e] += static_cast<T>(static_cast<const S*>(bias.data)[a_edge(first + e) * bias.row]);
    if (p_.grad_weights)
      for (int64_t e = 0; e < count; e++)
        da[e] += p_.grad_weights[head * p_.edges + a_edge(first + e)];
    std::fill(s + count, s + kEdges, -std::numeric_limits<T>::infinity());
    std::fill(da + count, da + kEdges, T(0));
    if (p_.dropout.p > 0) drop_edges(p_.dropout, head, first, count, da);
    const bool empty = lse == -std::numeric_limits<T>::infinity();
    const T d_i = delta(i, head, mine.grad_context + h * ld_),
            dlse = p_.grad_lse ? p_.grad_lse[head * p_.n + i] : T(0);
    for (int64_t e = 0; e < kEdges; e += kLanes<T>) {
      const V a = empty ? V(T(0)) : exp_weight(load(s + e) - V(lse));
      // an edge with all the weight of its row, up to rounding, moves nothing but lse
      const V moved = V::blendv(load(da + e) - V(d_i), V(T(0)), a >= V(kWhole));
      a.store(s + e);
      (empty ? V(T(0)) : a * (moved + V(dlse))).store(ds + e);
    }
    if (p_.dropout.p > 0) drop_edges(p_.dropout, head, first, count, s);
    for (int64_t e = 0; e < count && pairs_; e++) {
      T* pair = pairs_ + 2 * (first + e) * p_.head_count;
      pair[head] = ds[e];
      pair[p_.head_count + head] = s[e];
    }
    if (p_.grad_edge_bias)
      for (int64_t e = 0; e < count; e++)
        p_.grad_edge_bias[head * p_.edges + a_edge(first + e)] = ds[e];
  }

  template <class R>
  void edge_key_gradient(const T* q, const R* key, T ds, int64_t head, int64_t edge) const {
    const R* rows[1] = {key};
    T* out = p_.grad_edge_key + (head * p_.edges + edge) * p_.d;
    constexpr int64_t L = kLanes<T>;
    for (int64_t t = 0; t < p_.d; t += L) {
      const int64_t left = std::min(L, p_.d - t);
      Vec<T> b[1] = {load_as<T>(rows[0] + t, left)}, g[1] = {Vec<T>(ds)}, to_w[1], to_x[1];
      form_.gradient(load(q + t), b, g, to_w, to_x);
      (to_x[0] * load(factor_ + head * width_ + t)).store(out + t, static_cast<int>(left));
    }
  }

  // (E6) from the sums of all ranges, in their order.
  void finish_weight(int64_t head) const {
    const int64_t ranges = static_cast<int64_t>(targets_.ranges.size());
    std::vector<double> sums(width_ + 1, 0.0);
    for (int64_t r = 0; r < ranges; r++)
      for (int64_t t = 0; t <= width_; t++)
        sums[t] += static_cast<double>(sums_[(r * p_.head_count + head) * sum_size_ + t]);
    for (int64_t t = 0; t < p_.d; t++) {
      const double f = is_logistic(p_.activation)
                           ? sums[width_] - info(p_.activation).span * sums[t]
                           : sums[t];
      p_.grad_weight[head * p_.d + t] = static_cast<T>(p_.scale * f);
    }
  }

  // Sources.

  void run_sources() {
    const NodeTasks sources(p_.by_source);
    const int64_t groups = static_cast<int64_t>(groups_.size());
    T* parts = host_.allocate<T>(sources.parts * p_.head_count * source_size_);
    auto part = [&](int64_t k, int64_t head) {
      return parts + (k * p_.head_count + head) * source_size_;
    };
    host_.run(static_cast<int64_t>(sources.ranges.size()) * groups,
              [&](int64_t k, int64_t worker) {
                const NodeRange& r = sources.ranges[k / groups];
                const HeadGroup& g = groups_[k % groups];
                const Memory mine = carve(scratch_ + worker * scratch_size_);
                for (int64_t j = r.begin; j < r.end; j++) {
                  T* sums = r.part < 0 ? mine.source : part(r.part, g.first);
                  source(j, r.part < 0 ? p_.by_source.begin[j] : r.first_edge,
                         r.part < 0 ? p_.by_source.begin[j + 1] : r.last_edge, g, mine, sums);
                  for (int64_t h = 0; h < g.count && r.part < 0; h++)
                    store_source(j, g.first + h, sums + h * source_size_);
                }
              });
    for (const SplitNode& split : sources.splits)
      for (int64_t h = 0; h < p_.head_count; h++) {
        T* sum = part(split.part, h);
        for (int64_t k = 1; k < split.count; k++)
          for (int64_t t = 0; t < source_size_; t++) sum[t] += part(split.part + k, h)[t];
        store_source(split.node, h, sum);
      }
  }

  void source(int64_t j, int64_t first, int64_t last, const HeadGroup& g, const Memory& mine,
              T* sums) const {
    std::fill(sums, sums + g.count * source_size_, T(0));
    for (int64_t h = 0; h < g.count; h++) {
      T* k = mine.query + h * width_;
      load_row(k, p_.heads[g.first + h].key, j, p_.d);
      std::fill(k + p_.d, k + width_, T(0));
    }
    for (int64_t e = first; e < last; e += kEdges)
      source_block(e, std::min(kEdges, last - e), g, mine, sums);
  }

  void source_block(int64_t first, int64_t count, const HeadGroup& g, const Memory& mine,
                    T* sums) const {
    const Adjacency& a = p_.by_source;
    for (int64_t e = 0; e < count; e++) {
      const int64_t at = std::min(first + e + kEdgesAhead, p_.edges - 1), ahead = a.other[at];
      prefetch<1>(reinterpret_cast<const char*>(pairs_ + 2 * a.edge[at] * p_.head_count),
                  2 * p_.head_count * static_cast<int64_t>(sizeof(T)));
      for (int64_t h = 0; h < g.count; h++) {
        prefetch_row<S>(p_.heads[g.first + h].query, ahead, p_.d);
        if (p_.grad_context.data)
          prefetch<1>(reinterpret_cast<const char*>(p_.grad_context.at(g.first + h, ahead)),
                      p_.dv * static_cast<int64_t>(sizeof(T)));
      }
    }
    for (int64_t h = 0; h < g.count; h++) {
      const int64_t head = g.first + h;
      T *sum = sums + h * source_size_, *weight = mine.scores;
      for (int64_t e = 0; e < count; e++) {
        const T* pair = pairs_ + 2 * a.edge[first + e] * p_.head_count;
        mine.ds[e] = pair[head];
        weight[e] = pair[p_.head_count + head];
      }
      if (p_.grad_key.rows.data) key_gradient(first, count, head, mine, mine.query + h * width_, sum);
      if ((p_.grad_value.rows.data || !has_value()) && p_.grad_context.data)
        for (int64_t e = 0; e < count; e++) {
          const T* dc = p_.grad_context.at(head, a.other[first + e]);
          T* du = sum + width_;
          for (int64_t c = 0; c < p_.dv; c++) du[c] += weight[e] * dc[c];
        }
    }
  }

  void key_gradient(int64_t first, int64_t count, int64_t head, const Memory& mine, const T* k,
                    T* sum) const {
    const Adjacency& a = p_.by_source;
    const S* rows[kEdges];
    for (int64_t e = 0; e < count; e++) rows[e] = row_at<S>(p_.heads[head].query, a.other[first + e]);
    if (!has_edge_key())
      return add_gradients(form_.gradient, k, rows, mine.ds, count, p_.d, sum,
                           static_cast<T*>(nullptr));
    T* with_edge = mine.key;
    for (int64_t e = 0; e < count; e++) {
      const S* x = row_at<S>(p_.heads[head].edge_key, a_edge(a.edge[first + e]));
      for (int64_t t = 0; t < p_.d; t++) with_edge[t] = k[t] + static_cast<T>(x[t]);
      std::fill(with_edge + p_.d, with_edge + width_, T(0));
      add_gradients(form_.gradient, with_edge, rows + e, mine.ds + e, 1, p_.d, sum,
                    static_cast<T*>(nullptr));
    }
  }

  void store_source(int64_t j, int64_t head, T* sum) const {
    const T* factor = factor_ + head * width_;
    T* du = sum + width_;
    for (int64_t t = 0; t < p_.d; t++) sum[t] *= factor[t];
    if (!has_value())
      for (int64_t t = 0; t < p_.d; t++) sum[t] += du[t];
    auto store = [&](const HeadGradient& out, const T* row, int64_t count) {
      if (out.rows.data)
        store_row(out.rows.data, out.dtype, out.rows.offset(head, j), row, count);
    };
    store(p_.grad_key, sum, p_.d);
    store(p_.grad_value, du, p_.dv);
  }

  const EdgeBackward<T>& p_;
  const Form form_;
  const Host& host_;
  const EdgeWeights<T> weights_;
  const NodeTasks targets_;
  const std::vector<HeadGroup> groups_;
  const int64_t width_, ld_, sum_size_, source_size_;
  T* const factor_;  // what the sums of dq and dk leave out: scale w span gain
  T* const pairs_;   // (edges by target, 2, heads): ds, and the weights that were used
  const int64_t scratch_size_;
  T *const scratch_, *const parts_, *const sums_;
};

template <class T>
void edge_backward(const EdgeBackward<T>& p, const Host& host) {
  if (!p.head_count) return;
  typed<T>(p.heads[0].key, [&]<class S>(const S*) {
    with_edge_form<T>(p, [&]<class Form>(const Form& form) {
      EdgeBackwardPass<T, S, Form>(p, form, host).run();
    });
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
