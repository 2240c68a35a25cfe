// Scores, online softmax and context of every target node over its edges, (E1)-(E3). Nothing of the
// size edges x d exists.
#pragma once
#include "edge_block.h"
#include "forward.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

template <class T, class S, class Form>
class EdgeForwardPass {
 public:
  EdgeForwardPass(const EdgeForward<T>& p, const Form& form, const Host& host)
      : p_(p), form_(form), host_(host), weights_(p), tasks_(p.by_target),
        groups_(head_groups(p, p.context.together)), width_(padded(p.d)), ld_(padded(p.dv)),
        scratch_size_(carve(nullptr).size),
        scratch_(host.allocate<T>(host.threads * scratch_size_)),
        parts_(host.allocate<T>(tasks_.parts * p.head_count * (ld_ + 2))), softmax_(p.softmax) {
    if (!softmax_.data)
      softmax_ = {host.allocate<T>(2 * p.n * p.head_count), p.n, 2, p.context.together};
  }

  void run() {
    const int64_t groups = static_cast<int64_t>(groups_.size());
    host_.run(static_cast<int64_t>(tasks_.ranges.size()) * groups, [&](int64_t k, int64_t worker) {
      range(tasks_.ranges[k / groups], groups_[k % groups],
            carve(scratch_ + worker * scratch_size_));
    });
    if (tasks_.splits.empty()) return;
    host_.run(static_cast<int64_t>(tasks_.splits.size()) * p_.head_count, [&](int64_t k, int64_t) {
      merge(tasks_.splits[k / p_.head_count], k % p_.head_count);
    });
    if (p_.weights.data)
      host_.run(static_cast<int64_t>(tasks_.ranges.size()) * p_.head_count,
                [&](int64_t k, int64_t) {
                  const NodeRange& r = tasks_.ranges[k / p_.head_count];
                  if (r.part >= 0)
                    finish_weights(r.begin, r.first_edge, r.last_edge, k % p_.head_count);
                });
  }

 private:
  struct Memory {
    T *query, *key, *scores, *state;
    int64_t size;
  };
  // The running softmax of one head: maximum, sum, context.
  T* state_at(T* states, int64_t k) const { return states + k * (ld_ + 2); }
  T* part_at(int64_t part, int64_t head) const {
    return state_at(parts_, part * p_.head_count + head);
  }

  Memory carve(T* base) const {
    const int64_t heads = groups_[0].count;  // no group has more
    Parts<T> parts(base);
    Memory m;
    m.query = parts.take(heads * width_);
    m.key = parts.take(has_edge_key() ? heads * kEdges * width_ : 0);
    m.scores = parts.take(heads * kEdges);
    m.state = parts.take(heads * (ld_ + 2));
    m.size = parts.taken();
    return m;
  }
  bool has_edge_key() const { return p_.heads[0].edge_key.data; }
  bool has_value() const { return !p_.keys_are_values; }
  const Matrix& values(int64_t head) const {
    return has_value() ? p_.heads[head].value : p_.heads[head].key;
  }

  void range(const NodeRange& r, const HeadGroup& g, const Memory& mine) const {
    for (int64_t i = r.begin; i < r.end; i++) {
      const auto [first, last] = edges_of(r, p_.by_target, i);
      T* states = r.part < 0 ? mine.state : part_at(r.part, g.first);
      node(i, first, last, g, mine, states);
      for (int64_t h = 0; h < g.count && r.part < 0; h++) {
        finish(i, g.first + h, state_at(states, h));
        if (p_.weights.data) finish_weights(i, first, last, g.first + h);
      }
    }
  }

  void node(int64_t i, int64_t first, int64_t last, const HeadGroup& g, const Memory& mine,
            T* states) const {
    for (int64_t h = 0; h < g.count; h++) {
      T* state = state_at(states, h);
      state[0] = -std::numeric_limits<T>::infinity();
      std::fill(state + 1, state + 2 + p_.dv, T(0));
      T* q = mine.query + h * width_;
      load_row(q, p_.heads[g.first + h].query, i, p_.d);
      std::fill(q + p_.d, q + width_, T(0));
    }
    for (int64_t e = first; e < last; e += kEdges)
      block(e, std::min(kEdges, last - e), g, mine, states);
  }

  void block(int64_t first, int64_t count, const HeadGroup& g, const Memory& mine,
             T* states) const {
    if (has_edge_key()) {
      add_edge_keys<T, S>(p_, g, first, count, p_.by_target, p_.by_target.edge + first, mine.key);
      scores(first, count, g, mine,
             [&](int64_t h, int64_t e) { return mine.key + (h * kEdges + e) * width_; });
    } else {
      scores(first, count, g, mine, [&](int64_t h, int64_t e) {
        return row_at<S>(p_.heads[g.first + h].key, p_.by_target.other[first + e]);
      });
    }
    for (int64_t h = 0; h < g.count; h++)
      softmax(first, count, g.first + h, mine.scores + h * kEdges, state_at(states, h));
  }

  template <class Key>
  void scores(int64_t first, int64_t count, const HeadGroup& g, const Memory& mine,
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
      }
    }
  }

  // Take the sums of a block into the softmax of one head, and its values into the context.
  void softmax(int64_t first, int64_t count, int64_t head, T* s, T* state) const {
    const Adjacency& a = p_.by_target;
    const Matrix& bias = p_.heads[head].edge_bias;
    for (int64_t e = 0; e < kEdges; e += kLanes<T>)
      fmadd(load(s + e), Vec<T>(weights_.factor[head]), Vec<T>(weights_.offset[head])).store(s + e);
    if (bias.data) add_biases<T, S>(bias, a.edge + first, count, s);
    std::fill(s + count, s + kEdges, -std::numeric_limits<T>::infinity());
    if (p_.weights.data)
      for (int64_t e = 0; e < count; e++) *p_.weights.at(head, a.edge[first + e]) = s[e];
    const T alpha = softmax_row(s, kEdges, state[0], state[1]);
    if (p_.dropout.p > 0) drop_edges(p_.dropout, head, first, count, s);
    const Matrix& value = values(head);
    const S* rows[kEdges];
    int64_t live = 0;
    for (int64_t e = 0; e < count; e++) {
      if (bias.data && is_excluded<T, S>(bias, a.edge[first + e])) continue;  // 0 * NaN is NaN
      s[live] = s[e];
      rows[live++] = row_at<S>(value, a.other[first + e]);
    }
    add_values(s, rows, live, alpha, state + 2);
  }

  // context <- alpha context + sum_e s[e] rows[e], a few vectors of columns at a time.
  void add_values(const T* s, const S* const* rows, int64_t count, T alpha, T* context) const {
    constexpr int64_t L = kLanes<T>;
    int64_t c = 0;
    for (; c + 2 * L <= p_.dv; c += 2 * L) {
      Vec<T> x0 = load(context + c) * Vec<T>(alpha), x1 = load(context + c + L) * Vec<T>(alpha);
      for (int64_t e = 0; e < count; e++) {
        const Vec<T> a(s[e]);
        x0 = fmadd(a, load_as<T>(rows[e] + c), x0);
        x1 = fmadd(a, load_as<T>(rows[e] + c + L), x1);
      }
      x0.store(context + c);
      x1.store(context + c + L);
    }
    for (; c < p_.dv; c += L) {
      const int64_t left = std::min(L, p_.dv - c);
      Vec<T> x = load(context + c) * Vec<T>(alpha);
      for (int64_t e = 0; e < count; e++) x = fmadd(Vec<T>(s[e]), load_as<T>(rows[e] + c, left), x);
      x.store(context + c);
    }
  }

  void finish(int64_t i, int64_t head, const T* state) const {
    const T total = state[1], scale = total == 0 ? T(0) : T(1) / total;
    const int64_t place = p_.lse.place(head, i);
    T* out = p_.context.at_place(place);
    for (int64_t c = 0; c < p_.dv; c++) out[c] = state[2 + c] * scale;
    *p_.lse.at_place(place) =
        total == 0 ? -std::numeric_limits<T>::infinity() : state[0] + std::log(total);
    std::copy(state, state + 2, softmax_.at_place(place));
  }

  void merge(const SplitNode& split, int64_t head) const {
    T high = -std::numeric_limits<T>::infinity();
    for (int64_t k = 0; k < split.count; k++)
      high = Range<T>::larger(part_at(split.part + k, head)[0], high);
    std::vector<T> whole(2 + p_.dv, T(0));
    whole[0] = high;
    for (int64_t k = 0; k < split.count; k++) {
      const T* part = part_at(split.part + k, head);
      const T unit = part[1] == 0 ? T(0) : std::exp(part[0] - high);
      for (int64_t c = 1; c < 2 + p_.dv; c++) whole[c] += unit * part[c];
    }
    finish(split.node, head, whole.data());
  }

  // Turn raw scores into weights in place, with dropout.
  void finish_weights(int64_t i, int64_t first, int64_t last, int64_t head) const {
    const T *state = softmax_.at(head, i), total = state[1];
    const Weigh<T> weigh(state[0], total);
    for (int64_t b = first; b < last; b += kEdges) {
      const int64_t count = std::min(kEdges, last - b);
      const int64_t* edge = p_.by_target.edge + b;
      T s[kEdges] = {};
      for (int64_t e = 0; e < count; e++) s[e] = *p_.weights.at(head, edge[e]);
      for (int64_t e = 0; e < kEdges; e += kLanes<T>) weigh(load(s + e)).store(s + e);
      if (p_.dropout.p > 0) drop_edges(p_.dropout, head, b, count, s);
      for (int64_t e = 0; e < count; e++) *p_.weights.at(head, edge[e]) = total == 0 ? T(0) : s[e];
    }
  }

  const EdgeForward<T>& p_;
  const Form form_;
  const Host& host_;
  const EdgeWeights<T> weights_;
  const NodeTasks tasks_;
  const std::vector<HeadGroup> groups_;
  const int64_t width_, ld_, scratch_size_;
  T *const scratch_, *const parts_;
  HeadRows<T> softmax_;  // of every row, for its weights and the backward
};

template <class T>
void edge_forward(const EdgeForward<T>& p, const Host& host) {
  if (!p.head_count) return;
  typed<T>(p.heads[0].key, [&]<class S>(const S*) {
    with_edge_form<T>(
        p, [&]<class Form>(const Form& form) { EdgeForwardPass<T, S, Form>(p, form, host).run(); });
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
