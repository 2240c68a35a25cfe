// The second pass of the gradients: over the edges of every source, for dk and du, from the weights
// and ds of the first.
#pragma once
#include "edge_targets.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

template <class T, class S, class Form>
class EdgeSources {
 public:
  EdgeSources(const EdgePass<T>& pass, const Form& form)
      : pass_(pass), p_(pass.p), form_(form), width_(pass.width), ld_(pass.ld),
        sum_size_(width_ + ld_), tasks_(p_.by_source), scratch_size_(carve(nullptr).size),
        scratch_(pass.host.template allocate<T>(pass.host.threads * scratch_size_)),
        parts_(pass.host.template allocate<T>(tasks_.parts * p_.head_count * sum_size_)) {}

  void run() {
    pass_.for_ranges(tasks_, [&](const NodeRange& r, int64_t, const HeadGroup& g, int64_t worker) {
      const Memory mine = carve(scratch_ + worker * scratch_size_);
      for (int64_t j = r.begin; j < r.end; j++) {
        const auto [first, last] = edges_of(r, p_.by_source, j);
        T* sums = r.part < 0 ? mine.sums : part_at(r.part, g.first);
        source(j, first, last, g, mine, sums);
        for (int64_t h = 0; h < g.count && r.part < 0; h++)
          store(j, g.first + h, sums + h * sum_size_);
      }
    });
    for (const SplitNode& split : tasks_.splits)
      for (int64_t h = 0; h < p_.head_count; h++) merge(split, h);
  }

 private:
  // The signs of q + k are known, and need not be computed again.
  static constexpr bool kSigns = kTwoLines<decltype(Form::gradient)>;

  struct Memory {
    T *key, *with_edge, *ds, *weights, *sums;
    int64_t size;
  };
  Memory carve(T* base) const {
    const int64_t heads = pass_.most_heads();
    Parts<T> parts(base);
    Memory m;
    m.key = parts.take(heads * width_);
    m.with_edge = parts.take(pass_.has_edge_key() ? width_ : 0);
    m.ds = parts.take(kEdges);
    m.weights = parts.take(kEdges);
    m.sums = parts.take(heads * sum_size_);
    m.size = parts.taken();
    return m;
  }
  // The sums of dk (width) and du (ld) of one head.
  T* part_at(int64_t part, int64_t head) const {
    return parts_ + (part * p_.head_count + head) * sum_size_;
  }
  bool value_wanted() const {
    return p_.grad_context.data && (p_.grad_value.rows.data || !pass_.has_value());
  }

  void source(int64_t j, int64_t first, int64_t last, const HeadGroup& g, const Memory& mine,
              T* sums) const {
    std::fill(sums, sums + g.count * sum_size_, T(0));
    if (first == last) return;
    for (int64_t h = 0; h < g.count; h++) {
      T* k = mine.key + h * width_;
      load_row(k, p_.heads[g.first + h].key, j, p_.d);
      std::fill(k + p_.d, k + width_, T(0));
    }
    for (int64_t e = first; e < last; e += kEdges)
      block(e, std::min(kEdges, last - e), g, mine, sums);
  }

  void block(int64_t first, int64_t count, const HeadGroup& g, const Memory& mine, T* sums) const {
    const Adjacency& a = p_.by_source;
    for (int64_t e = 0; e < count; e++) {
      const int64_t at = std::min(first + e + kEdgesAhead, p_.edges - 1), ahead = a.other[at];
      prefetch<1>(reinterpret_cast<const char*>(pass_.record(a.edge[at])),
                  pass_.record_size * static_cast<int64_t>(sizeof(T)));
      for (int64_t h = 0; h < g.count; h++) {
        if (!kSigns) prefetch_row<S>(p_.heads[g.first + h].query, ahead, p_.d);
        if (p_.grad_context.data)
          prefetch<1>(reinterpret_cast<const char*>(p_.grad_context.at(g.first + h, ahead)),
                      p_.dv * static_cast<int64_t>(sizeof(T)));
      }
    }
    for (int64_t h = 0; h < g.count; h++) {
      const int64_t head = g.first + h;
      const Matrix& bias = p_.heads[head].edge_bias;
      int64_t places[kEdges], live = 0;
      for (int64_t e = first; e < first + count; e++) {
        if (bias.data && is_excluded<T, S>(bias, p_.by_target.edge[a.edge[e]])) continue;
        const T* record = pass_.record(a.edge[e]);
        mine.ds[live] = record[head];
        mine.weights[live] = record[p_.head_count + head];
        places[live++] = e;
      }
      T* sum = sums + h * sum_size_;
      if (p_.grad_key.rows.data) key_gradient(places, live, head, mine, mine.key + h * width_, sum);
      if (value_wanted()) value_gradient(places, live, head, mine.weights, sum + width_);
    }
  }

  void key_gradient(const int64_t* places, int64_t count, int64_t head, const Memory& mine,
                    const T* k, T* sum) const {
    const Adjacency& a = p_.by_source;
    if constexpr (kSigns) return add_by_signs(places, count, head, mine.ds, sum);
    const S* rows[kEdges];
    for (int64_t e = 0; e < count; e++)
      rows[e] = row_at<S>(p_.heads[head].query, a.other[places[e]]);
    T* const no_weight = nullptr;
    if (!pass_.has_edge_key())
      return add_gradients(form_.gradient, k, rows, mine.ds, count, p_.d, sum, no_weight, kNoVisit);
    for (int64_t e = 0; e < count; e++) {
      std::copy(k, k + width_, mine.with_edge);
      add_row(mine.with_edge,
              row_at<S>(p_.heads[head].edge_key, p_.by_target.edge[a.edge[places[e]]]), p_.d);
      add_gradients(form_.gradient, mine.with_edge, rows + e, mine.ds + e, 1, p_.d, sum, no_weight,
                    kNoVisit);
    }
  }

  void add_by_signs(const int64_t* places, int64_t count, int64_t head, const T* ds, T* sum) const {
    const uint8_t* signs[kEdges];
    for (int64_t e = 0; e < count; e++) signs[e] = pass_.signs(p_.by_source.edge[places[e]], head);
    for (int64_t t = 0; t < p_.d; t += kLanes<T>) {
      Vec<T> x = load(sum + t);
      for (int64_t e = 0; e < count; e++) {
        const Vec<T> above(ds[e]);
        x = x + by_signs<T>(signs[e], t, above, form_.gradient.f.below(above));
      }
      x.store(sum + t);
    }
  }

  void value_gradient(const int64_t* places, int64_t count, int64_t head, const T* weights,
                      T* sum) const {
    constexpr int64_t L = kLanes<T>;
    const T* rows[kEdges];
    for (int64_t e = 0; e < count; e++)
      rows[e] = p_.grad_context.at(head, p_.by_source.other[places[e]]);
    for (int64_t c = 0; c < p_.dv; c += L) {
      const int64_t left = std::min(L, p_.dv - c);
      Vec<T> x = load(sum + c);
      for (int64_t e = 0; e < count; e++)
        x = fmadd(Vec<T>(weights[e]), load_as<T>(rows[e] + c, left), x);
      x.store(sum + c);
    }
  }

  void merge(const SplitNode& split, int64_t head) const {
    T* sum = part_at(split.part, head);
    for (int64_t k = 1; k < split.count; k++)
      for (int64_t t = 0; t < sum_size_; t++) sum[t] += part_at(split.part + k, head)[t];
    store(split.node, head, sum);
  }

  void store(int64_t j, int64_t head, T* sum) const {
    T* du = sum + width_;
    multiply_row(sum, pass_.factor + head * width_, p_.d);
    if (!pass_.has_value())
      for (int64_t t = 0; t < p_.d; t++) sum[t] += du[t];
    auto store_to = [&](const HeadGradient& out, const T* row, int64_t count) {
      if (out.rows.data) store_row(out.rows.data, out.dtype, out.rows.offset(head, j), row, count);
    };
    store_to(p_.grad_key, sum, p_.d);
    store_to(p_.grad_value, du, p_.dv);
  }

  const EdgePass<T>& pass_;
  const EdgeBackward<T>& p_;
  const Form form_;
  const int64_t width_, ld_, sum_size_;
  const NodeTasks tasks_;
  const int64_t scratch_size_;
  T *const scratch_, *const parts_;
};

template <class T>
void edge_backward(const EdgeBackward<T>& p, const Host& host) {
  if (!p.head_count) return;
  typed<T>(p.heads[0].key, [&]<class S>(const S*) {
    with_edge_form<T>(p, [&]<class Form>(const Form& form) {
      const EdgePass<T> pass(p, host, kTwoLines<decltype(form.gradient)>);
      EdgeTargets<T, S, Form>(pass, form).run();
      if (pass.by_source_wanted()) EdgeSources<T, S, Form>(pass, form).run();
    });
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
