// How the backward is divided between tasks.
//
// Items that add to the same gradient, because an input or the mask is broadcast to them, form a
// group. One task works through all items of a group; if that makes too few tasks, each item is cut
// into pieces, and then the items of a group are dealt to teams.
//
// A sum over keys belongs to a query and a sum over queries to a key. So each item is cut into P
// pieces of queries and P pieces of keys, and in step s task p works on queries p and keys (p + s)
// mod P: no two tasks of a step share an output, nothing is atomic, and the order of every sum is
// fixed. If one side is too short to be cut, all tasks share it: each adds to its own copy of that
// gradient, and the copies are added at the end. Each team has a copy of the gradients that its
// group shares, too.
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

// Some of the dimensions of the list of items.
struct Axes {
  struct Axis {
    int64_t size, step;
  };
  std::vector<Axis> axes;  // the innermost first
  int64_t count = 1;

  void add(int64_t size, int64_t step) {
    count *= size;
    if (size != 1) axes.push_back({size, step});
  }
  int64_t at(int64_t index) const {
    int64_t item = 0;
    for (const Axis& axis : axes) {
      item += index % axis.size * axis.step;
      index /= axis.size;
    }
    return item;
  }
};

struct Plan {
  int64_t pieces = 1, query_pieces = 1, key_pieces = 1, teams = 1;
  Axes groups, members;  // item groups.at(g) + members.at(k) is member k of group g
  int64_t bundles = 1;   // runs of groups, each the work of one task, or of one for each piece
  bool query_shared = false, key_shared = false, value_shared = false, weight_shared = false;

  int64_t tasks() const { return bundles * teams * pieces; }
  int64_t steps() const { return std::min(query_pieces, key_pieces); }
  int64_t query_copies() const { return pieces / query_pieces; }
  int64_t key_copies() const { return pieces / key_pieces; }
};

// A task of a step.
struct Task {
  int64_t bundle, team, piece;

  Task(const Plan& plan, int64_t k)
      : bundle(k / plan.pieces / plan.teams), team(k / plan.pieces % plan.teams),
        piece(k % plan.pieces) {}
};

// The pieces that task k works on in a step, and the copies of the gradients that it adds to.
struct Share {
  int64_t query_piece, key_piece, query_copy, key_copy;

  Share(const Plan& plan, int64_t k, int64_t step)
      : query_piece(plan.query_pieces > 1 ? k : 0),
        key_piece(plan.key_pieces > 1 ? (k + step) % plan.key_pieces : 0),
        query_copy(plan.query_pieces > 1 ? 0 : k), key_copy(plan.key_pieces > 1 ? 0 : k) {}
};

// Find the dimensions along which items share a gradient.
template <class T>
void group_items(const Backward<T>& p, Plan& plan) {
  const Items& items = p.items;
  const bool weight =
      p.grad_weight && p.weight_count > 1;  // a single one is no obstacle: WeightSums
  if (items.query_ends) {
    (weight ? plan.members : plan.groups).add(items.sequences, 1);
    plan.weight_shared = weight && items.sequences != 1;  // of no sequences, it is zero at once
  }
  int64_t step = items.sequences;
  for (int64_t k = 0; k < items.rank; k++) {
    const Items::Dim& dim = items.dims[k];
    bool any = p.grad_mask && dim.stride[Items::grad_mask] == 0;
    auto look = [&](bool wanted, Items::Of gradient, bool& shared) {
      if (wanted && dim.stride[gradient] == 0) shared = any = true;
    };
    look(p.grad_query.data, Items::grad_query, plan.query_shared);
    look(p.grad_key.data, Items::grad_key, plan.key_shared);
    look(p.grad_value.data, Items::grad_value, plan.value_shared);
    look(weight, Items::grad_weight, plan.weight_shared);
    (any ? plan.members : plan.groups).add(dim.size, step);
    step *= dim.size;
  }
}

// Cut items until there are about two tasks per thread, or four if causal pieces differ in size.
template <class T>
void cut_items(const Backward<T>& p, int64_t wanted, Plan& plan) {
  const int64_t queries = (p.queries + kTileRows - 1) / kTileRows,
                keys = (p.keys + tile_keys(p.d) - 1) / tile_keys(p.d);
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
  constexpr int64_t kBundles = 256;  // each has sums of its own for a single weight
  Plan plan;
  group_items(p, plan);
  const int64_t groups = std::max<int64_t>(1, plan.groups.count),
                tasks = threads * (p.causal ? 4 : 2),
                wanted = threads > 1 && groups < tasks ? (tasks + groups - 1) / groups : 1;
  cut_items(p, wanted, plan);
  if (!p.grad_mask)  // which has no copies
    plan.teams =
        std::clamp<int64_t>(wanted / plan.pieces, 1, std::max<int64_t>(1, plan.members.count));
  plan.bundles = std::min(plan.groups.count, kBundles);
  return plan;
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
