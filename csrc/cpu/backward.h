// The backward: the plan, the memory of its sums, and the tasks.
#pragma once
#include "accumulator.h"
#include "backward_tile.h"
#include "blocks.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// Sizes of a problem over all of its items.
struct Extent {
  int64_t query_rows = 0, key_rows = 0, most_queries = 0, most_keys = 0;

  explicit Extent(const Problem& p) {
    for (int64_t b = 0; b < p.count; b++) {
      const Item& item = p.items[b];
      query_rows = std::max(query_rows, item.query_row + item.n);
      key_rows = std::max(key_rows, item.key_row + item.key_rows);
      most_queries = std::max(most_queries, item.n);
      most_keys = std::max(most_keys, item.key_rows);
    }
  }
};

template <class T>
class BackwardPass {
 public:
  BackwardPass(const Backward<T>& p, const Host& host)
      : p_(p), host_(host), plan_(plan_backward(p, host.threads)), extent_(p),
        blocks_(row_blocks(p)),
        query_(p.grad_query, p.d, extent_.query_rows, plan_.query_copies(), at_once(), host),
        key_(p.grad_key, p.d, extent_.key_rows, plan_.key_copies(), at_once(), host),
        value_(p.grad_value, p.dv, extent_.key_rows, plan_.key_copies(), at_once(), host),
        weight_(p, p.grad_weight, plan_.pieces, host), scratch_size_(carve(nullptr).size),
        scratch_(host.allocate<T>(host.threads * scratch_size_)),
        delta_(p.grad_scores ? nullptr : host.allocate<Delta<T>>(extent_.query_rows)) {}

  void run() {
    if (delta_) compute_delta();
    for (int64_t step = 0; step < plan_.steps(); step++)
      host_.run(plan_.groups() * plan_.pieces, [&](int64_t task, int64_t worker) {
        run_task(step, task / plan_.pieces, task % plan_.pieces, carve(scratch_of(worker)));
      });
    if (!at_once()) finish_all();
  }

 private:
  // A worker's memory. The sums are used if a task finishes its item.
  struct Memory {
    BackwardScratch<T> tile;
    T *factor, *query, *key, *value;
    int64_t size;
  };

  bool at_once() const { return plan_.task_finishes_item(); }
  T* scratch_of(int64_t worker) const { return scratch_ + worker * scratch_size_; }

  Memory carve(T* base) const {
    Memory m;
    Parts<T> parts(base);
    BackwardScratch<T>::carve(p_, parts.take(BackwardScratch<T>::carve(p_, nullptr, nullptr)),
                              &m.tile);
    m.factor = parts.take(p_.d);
    m.query = parts.take(query_.scratch(extent_.most_queries));
    m.key = parts.take(key_.scratch(extent_.most_keys));
    m.value = parts.take(value_.scratch(extent_.most_keys));
    m.size = parts.taken();
    return m;
  }

  void compute_delta() {
    host_.run(static_cast<int64_t>(blocks_.size()), [&](int64_t task, int64_t) {
      const Block& b = blocks_[task];
      const Item& item = p_.items[b.item];
      for (int64_t i = b.i0; i < std::min(item.n, b.i1); i++)
        delta_[item.query_row + i] = row_delta(p_, item, i);
    });
  }

  // Task k of a step, for the items of one group.
  void run_task(int64_t step, int64_t group, int64_t k, const Memory& mine) const {
    const Share share(plan_, k, step);
    for (int64_t o = plan_.group[group]; o < plan_.group[group + 1]; o++) {
      const int64_t b = plan_.order[o];
      const Item& item = p_.items[b];
      const Span is = piece(item.n, share.query_piece, plan_.query_pieces, kTileRows),
                 js = piece(item.m, share.key_piece, plan_.key_pieces, tile_keys(p_.d));
      const Gradients<T> out{query_.at(share.query_copy, item.query_row, mine.query),
                             key_.at(share.key_copy, item.key_row, mine.key),
                             value_.at(share.key_copy, item.key_row, mine.value), weight_.at(b, k)};
      if (step == 0) clear(item, is, js, out, k == 0);  // the first step meets every piece once
      if (is.size() > 0 && js.size() > 0)
        BackwardPiece<T>(p_, item, delta_, out, mine.tile).run(is, js);
      if (!at_once()) continue;
      finish_rows(item, {0, item.n}, {0, item.m}, out, mine.factor);
      weight_.finish(p_, b, p_.grad_weight);
    }
  }

  void clear(const Item& item, Span is, Span js, const Gradients<T>& out, bool unused_too) const {
    query_.clear(out.query, item.query_row + is.begin, is.size());
    key_.clear(out.key, item.key_row + js.begin, js.size());
    value_.clear(out.value, item.key_row + js.begin, js.size());
    if (!unused_too) return;
    key_.clear_output(item.key_row + item.m, item.key_rows - item.m);
    value_.clear_output(item.key_row + item.m, item.key_rows - item.m);
  }

  // Round sums to results, by blocks of rows.
  void finish_all() {
    host_.run(static_cast<int64_t>(blocks_.size()), [&](int64_t task, int64_t worker) {
      const Block& b = blocks_[task];
      const Item& item = p_.items[b.item];
      const Gradients<T> sums{query_.at(0, 0, nullptr), key_.at(0, 0, nullptr),
                              value_.at(0, 0, nullptr), nullptr};
      finish_rows(item, {b.i0, std::min(b.i1, item.n)}, {b.i0, std::min(b.i1, item.m)}, sums,
                  carve(scratch_of(worker)).factor);
      if (b.i0 == 0) weight_.finish(p_, b.item, p_.grad_weight);
    });
  }

  void finish_rows(const Item& item, Span is, Span js, const Gradients<T>& sums, T* factor) const {
    row_factor(item, factor);
    query_.finish(sums.query, item.query_row + is.begin, is.size(), factor);
    key_.finish(sums.key, item.key_row + js.begin, js.size(), factor);
    value_.finish(sums.value, item.key_row + js.begin, js.size(), nullptr);
  }

  // The factor of (E5) that the sweep left out: scale w_t span gain.
  void row_factor(const Item& item, T* factor) const {
    const ActivationInfo& f = info(p_.activation);
    load_row(factor, item.weight, 0, p_.d);
    for (int64_t t = 0; t < p_.d; t++) factor[t] *= static_cast<T>(p_.scale * f.span * f.gain);
  }

  const Backward<T>& p_;
  const Host& host_;
  const Plan plan_;
  const Extent extent_;
  const std::vector<Block> blocks_;
  const Accumulator<T> query_, key_, value_;
  const WeightSums weight_;
  const int64_t scratch_size_;
  T* const scratch_;
  Delta<T>* const delta_;
};

template <class T>
void backward(const Backward<T>& p, const Host& host) {
  BackwardPass<T>(p, host).run();
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
