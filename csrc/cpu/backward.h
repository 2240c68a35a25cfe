// The backward: the plan, the memory of its sums, and the tasks.
#pragma once
#include "accumulator.h"
#include "backward_tile.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

template <class T>
class BackwardPass {
 public:
  BackwardPass(const Backward<T>& p, const Host& host)
      : p_(p), host_(host), plan_(plan_backward(p, host.threads)),
        query_(p.grad_query, p.d, plan_.query_shared, plan_.query_copies(), plan_, host),
        key_(p.grad_key, p.d, plan_.key_shared, plan_.key_copies(), plan_, host),
        value_(p.grad_value, p.dv, plan_.value_shared, plan_.key_copies(), plan_, host),
        weight_(p, plan_, host), scratch_size_(carve(nullptr).size),
        scratch_(host.allocate<T>(host.threads * scratch_size_)),
        delta_(p.grad_scores ? nullptr : host.allocate<Delta<T>>(output_rows())) {}

  void run() {
    prepare();
    for (int64_t step = 0; step < plan_.steps(); step++)
      host_.run(plan_.tasks(), [&](int64_t task, int64_t worker) { run_task(step, task, worker); });
    finish_late();
  }

 private:
  static constexpr int64_t kRows = 128;  // of a task of row-wise work

  // A worker's memory. The sums are used if a task finishes its items.
  struct Memory {
    BackwardScratch<T> tile;
    T *factor, *query, *key, *value;
    int64_t size;
  };

  Memory carve(T* base) const {
    Memory m;
    Parts<T> parts(base);
    BackwardScratch<T>::carve(p_, parts.take(BackwardScratch<T>::carve(p_, nullptr, nullptr)),
                              &m.tile);
    m.factor = parts.take(p_.d);
    m.query = parts.take(query_.scratch(p_.queries));
    m.key = parts.take(key_.scratch(p_.key_rows));
    m.value = parts.take(value_.scratch(p_.key_rows));
    m.size = parts.taken();
    return m;
  }
  Memory memory_of(int64_t worker) const { return carve(scratch_ + worker * scratch_size_); }

  // Rows of the outputs of shape (rows, dv).
  int64_t output_rows() const {
    const Items& items = p_.items;
    return items.sequences ? items.count / items.sequences * items.n : 0;
  }

  // Row-wise work in blocks of rows: of a number of rows, or of a gradient that is late.
  static int64_t blocks(int64_t rows) { return (rows + kRows - 1) / kRows; }
  static int64_t blocks(const Accumulator<T>& sums) {
    return sums.wanted() && sums.late ? blocks(sums.out.rows) : 0;
  }
  struct Block {
    int64_t first, count;
    Block(int64_t k, int64_t rows) : first(k * kRows), count(std::min(kRows, rows - first)) {}
  };

  // Clear the sums of late gradients, and compute delta.
  void prepare() {
    const int64_t query = blocks(query_), key = query + blocks(key_), value = key + blocks(value_);
    const int64_t deltas = !delta_ ? 0 : p_.items.query_ends ? p_.count : blocks(output_rows());
    host_.run(value + deltas, [&](int64_t k, int64_t) {
      auto clear = [](const Accumulator<T>& sums, int64_t block) {
        const Block rows(block, sums.out.rows);
        sums.clear(rows.first, rows.count);
      };
      if (k < query) return clear(query_, k);
      if (k < key) return clear(key_, k - query);
      if (k < value) return clear(value_, k - key);
      compute_delta(k - value);
    });
  }

  // delta of a block of rows, or of a packed sequence.
  void compute_delta(int64_t k) {
    auto compute = [&](const Item& item, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) delta_[item.query_row + i] = row_delta(p_, item, i);
    };
    if (p_.items.query_ends) {
      const Item item = p_.items[k];
      return compute(item, 0, item.n);
    }
    const Block rows(k, output_rows());
    const int64_t n = p_.items.n, end = rows.first + rows.count;
    for (int64_t row = rows.first; row < end;) {
      const int64_t b = row / n, next = std::min(end, (b + 1) * n);
      compute(p_.items[b], row - b * n, next - b * n);
      row = next;
    }
  }

  // Task k of a step.
  void run_task(int64_t step, int64_t k, int64_t worker) const {
    const Task task(plan_, k);
    const Memory mine = memory_of(worker);
    const Axes &groups = plan_.groups, &members = plan_.members;
    const int64_t end = groups.count * (task.bundle + 1) / plan_.bundles,
                  last = members.count * (task.team + 1) / plan_.teams;
    for (int64_t g = groups.count * task.bundle / plan_.bundles; g < end; g++)
      for (int64_t member = members.count * task.team / plan_.teams; member < last; member++)
        run_item(p_.items[groups.at(g) + members.at(member)], step, task, k, worker, mine);
  }

  void run_item(const Item& item, int64_t step, const Task& task, int64_t k, int64_t worker,
                const Memory& mine) const {
    const Share share(plan_, task.piece, step);
    // members of a group share rows: each piece must have the same of them, whatever its length
    const int64_t rows = plan_.members.count > 1 ? item.key_rows : item.m,
                  n = p_.window.queries(item.n, rows), m = p_.window.keys(item.n, rows);
    const Span is = piece(n, share.query_piece, plan_.query_pieces, kTileRows),
               keys = piece(m, share.key_piece, plan_.key_pieces, tile_keys(p_.d)),
               js{std::min(keys.begin, item.m), std::min(keys.end, item.m)};
    const Gradients<T> out{query_.at(task.team, share.query_copy, item.grad_query, mine.query),
                           key_.at(task.team, share.key_copy, item.grad_key, mine.key),
                           value_.at(task.team, share.key_copy, item.grad_value, mine.value),
                           weight_.at(item, plan_, k, worker),
                           early(query_) || early(key_) ? mine.factor : nullptr,
                           early(query_),
                           early(key_)};
    if (out.factor || !query_.late || !key_.late) row_factor(item.weight, mine.factor);
    if (!query_.late) query_.clear(out.query, item.grad_query, item.n);
    if (!key_.late) key_.clear(out.key, item.grad_key, item.m);
    if (!value_.late) value_.clear(out.value, item.grad_value, item.m);
    if (is.size() > 0 && js.size() > 0)
      BackwardPiece<T>(p_, item, delta_, out, mine.tile).run(is, js);
    if (!query_.late) query_.finish(out.query, item.grad_query, item.n, mine.factor);
    if (!key_.late) {
      key_.finish(out.key, item.grad_key, item.m, mine.factor);
      key_.clear_output(item.grad_key + item.m, item.key_rows - item.m);
    }
    if (!value_.late) {
      value_.finish(out.value, item.grad_value, item.m, nullptr);
      value_.clear_output(item.grad_value + item.m, item.key_rows - item.m);
    }
    if (!weight_.late && out.weight) weight_.finish(item.grad_weight, out.weight);
  }

  // Round late sums to results.
  void finish_late() {
    const int64_t query = blocks(query_), key = query + blocks(key_), value = key + blocks(value_),
                  weight = weight_.wanted && weight_.late ? blocks(p_.weight_count) : 0;
    host_.run(value + weight, [&](int64_t k, int64_t worker) {
      T* factor = memory_of(worker).factor;
      if (k < query) return finish_rows(query_, k, p_.items.n, factor);
      if (k < key) return finish_rows(key_, k - query, p_.items.m, factor);
      if (k < value) {
        const Block rows(k - key, value_.out.rows);
        return value_.finish(value_.at(0, 0, 0, nullptr), rows.first, rows.count, nullptr);
      }
      const Block weights(k - value, p_.weight_count);
      for (int64_t w = 0; w < weights.count; w++) weight_.finish(weights.first + w);
    });
  }

  // A block of rows, of which each leading index has `each`.
  void finish_rows(const Accumulator<T>& sums, int64_t block, int64_t each, T* factor) const {
    const Block rows(block, sums.out.rows);
    T* at = sums.at(0, 0, 0, nullptr);
    if (early(sums) || !p_.count) return sums.finish(at, rows.first, rows.count, nullptr);
    const int64_t end = rows.first + rows.count;
    for (int64_t row = rows.first; row < end;) {
      const int64_t lead = weights_differ() ? row / each : 0,
                    next = weights_differ() ? std::min(end, (lead + 1) * each) : end;
      row_factor(p_.items.weight_of(lead), factor);
      sums.finish(at, row, next - row, factor);
      row = next;
    }
  }

  bool weights_differ() const {
    for (int64_t k = 0; k < p_.items.rank; k++)
      if (p_.items.dims[k].stride[Items::weight]) return true;
    return false;
  }
  // True if what is added to a gradient needs its factor before: items with other weights add, too.
  bool early(const Accumulator<T>& sums) const { return sums.shared && weights_differ(); }

  // The factor of (E5) that the sweep left out: scale w_t span gain.
  void row_factor(const Matrix& weight, T* factor) const {
    const ActivationInfo& f = info(p_.activation);
    load_row(factor, weight, 0, p_.d);
    for (int64_t t = 0; t < p_.d; t++) factor[t] *= static_cast<T>(p_.scale * f.span * f.gain);
  }

  const Backward<T>& p_;
  const Host& host_;
  const Plan plan_;
  const Accumulator<T> query_, key_, value_;
  const WeightSums<T> weight_;
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
