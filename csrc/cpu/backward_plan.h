// How the backward is divided between tasks.
//
// A sum over keys belongs to a query and a sum over queries to a key. So each item is cut into P
// pieces of queries and P pieces of keys, and in step s task p works on queries p and keys (p + s)
// mod P: no two tasks of a step share an output, nothing is atomic, and the order of every sum is
// fixed. If one side is too short to be cut, all tasks share it: each adds to its own copy of that
// gradient, and the copies are added at the end.
#pragma once
#include <algorithm>
#include <vector>

#include "score.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// A range of queries or keys.
struct Span {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Piece p of `pieces` of `count`, on multiples of `unit`.
inline Span piece(int64_t count, int64_t p, int64_t pieces, int64_t unit) {
  const int64_t units = (count + unit - 1) / unit;
  return {std::min(count, units * p / pieces * unit),
          std::min(count, units * (p + 1) / pieces * unit)};
}

struct Plan {
  int64_t pieces = 1, query_pieces = 1, key_pieces = 1;
  // Items in order; group g is order[group[g]] .. order[group[g + 1]], the work of one task.
  std::vector<int64_t> order, group;

  int64_t groups() const { return static_cast<int64_t>(group.size()) - 1; }
  int64_t steps() const { return std::min(query_pieces, key_pieces); }
  int64_t query_copies() const { return pieces / query_pieces; }
  int64_t key_copies() const { return pieces / key_pieces; }
  bool task_finishes_item() const { return pieces == 1; }
};

// The pieces that task k works on in a step, and the copies of the gradients that it adds to.
struct Share {
  int64_t query_piece, key_piece, query_copy, key_copy;

  Share(const Plan& plan, int64_t k, int64_t step)
      : query_piece(plan.query_pieces > 1 ? k : 0),
        key_piece(plan.key_pieces > 1 ? (k + step) % plan.key_pieces : 0),
        query_copy(plan.query_pieces > 1 ? 0 : k), key_copy(plan.key_pieces > 1 ? 0 : k) {}
};

// Put items that add to the same mask gradient one after another into one group.
template <class T>
void group_items(const Backward<T>& p, Plan& plan) {
  auto mask = [&](int64_t b) { return p.items[b].mask_grad; };
  for (int64_t b = 0; b < p.count; b++) plan.order.push_back(b);
  if (p.grad_mask)
    std::stable_sort(plan.order.begin(), plan.order.end(),
                     [&](int64_t a, int64_t b) { return mask(a) < mask(b); });
  for (int64_t k = 0; k < p.count; k++)
    if (!k || !p.grad_mask || mask(plan.order[k]) != mask(plan.order[k - 1]))
      plan.group.push_back(k);
  plan.group.push_back(p.count);
}

// Cut items until there are about two tasks per thread, or four if causal pieces differ in size.
template <class T>
void cut_items(const Backward<T>& p, int threads, Plan& plan) {
  int64_t n = 0, m = 0;
  for (int64_t b = 0; b < p.count; b++) {
    n = std::max(n, p.items[b].n);
    m = std::max(m, p.items[b].m);
  }
  const int64_t groups = std::max<int64_t>(1, plan.groups()), tasks = threads * (p.causal ? 4 : 2);
  const int64_t wanted = threads > 1 && groups < tasks ? (tasks + groups - 1) / groups : 1;
  const int64_t queries = (n + kTileRows - 1) / kTileRows,
                keys = (m + tile_keys(p.d) - 1) / tile_keys(p.d);
  // a mask that is broadcast over queries or keys has one gradient for all pieces of them
  const bool row_shared = p.grad_mask && p.grad_mask_row == 0,
             col_shared = p.grad_mask && p.grad_mask_col == 0;
  if (row_shared && col_shared) return;
  if (queries > 1 && keys > 1)
    plan.query_pieces = plan.key_pieces = plan.pieces = std::min({wanted, queries, keys});
  else if (keys > 1 && !col_shared)
    plan.key_pieces = plan.pieces = std::min(wanted, keys);
  else if (queries > 1 && !row_shared)
    plan.query_pieces = plan.pieces = std::min(wanted, queries);
}

template <class T>
Plan plan_backward(const Backward<T>& p, int threads) {
  Plan plan;
  group_items(p, plan);
  cut_items(p, threads, plan);
  return plan;
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
