// Gradients to which rows are added: summed in the precision of the arithmetic, then rounded to the
// dtype of the result.
#pragma once
#include <cstring>

#include "backward_plan.h"
#include "rows.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// The gradient of queries, keys or values. Sums are in T: in the result itself if T is its dtype,
// else in `whole`, or in a worker's scratch if a task finishes each of its items. Sums that are
// finished `late` are cleared before all tasks and finished after them.
template <class T>
struct Accumulator {
  Gradient out;
  int64_t d;
  bool shared, late;
  int64_t piece_copies, copy_count;  // copy_count besides the first
  T* whole = nullptr;
  T* copies = nullptr;

  Accumulator(const Gradient& out, int64_t d, bool shared, int64_t piece_copies, const Plan& plan,
              const Host& host)
      : out(out), d(d), shared(shared), late(shared || plan.pieces > 1), piece_copies(piece_copies),
        copy_count((shared ? plan.teams : 1) * piece_copies - 1) {
    if (!wanted()) return;
    if (!in_place() && late) whole = host.allocate<T>(out.rows * d);
    copies = host.allocate<T>(copy_count * out.rows * d);
  }

  bool wanted() const { return out.data; }
  bool in_place() const { return out.dtype == dtype_of<T>; }
  // Number of elements of the scratch in which a task sums `rows` rows.
  int64_t scratch(int64_t rows) const {
    return wanted() && !in_place() && !late ? padded(rows * d) : 0;
  }
  // The address at which a team adds rows, to its copy c: row r at the result + r * d.
  T* at(int64_t team, int64_t c, int64_t first_row, T* scratch) const {
    if (!wanted()) return nullptr;
    if (shared) c += team * piece_copies;
    if (c > 0) return copies + (c - 1) * out.rows * d;
    if (in_place()) return static_cast<T*>(out.data);
    return whole ? whole : scratch - first_row * d;
  }
  void clear(T* rows_at, int64_t first, int64_t count) const {
    if (wanted() && count > 0) std::fill(rows_at + first * d, rows_at + (first + count) * d, T(0));
  }
  // Clear rows of all copies.
  void clear(int64_t first, int64_t count) const {
    clear(at(0, 0, 0, nullptr), first, count);
    for (int64_t c = 0; c < copy_count; c++) clear(copies + c * out.rows * d, first, count);
  }
  // Clear rows of the result to which nothing is added.
  void clear_output(int64_t first, int64_t count) const {
    const int64_t size = element_size(out.dtype) * d;
    if (wanted() && count > 0)
      std::memset(static_cast<char*>(out.data) + first * size, 0, count * size);
  }
  // result <- factor * (sums + those of the other copies); a null factor is 1.
  void finish(T* rows_at, int64_t first, int64_t count, const T* factor) const {
    if (!wanted() || (!factor && !copy_count && in_place())) return;
    for (int64_t i = first; i < first + count; i++) {
      T* row = rows_at + i * d;
      for (int64_t c = 0; c < copy_count; c++)
        for (int64_t t = 0; t < d; t++) row[t] += copies[(c * out.rows + i) * d + t];
      if (factor)
        for (int64_t t = 0; t < d; t++)
          row[t] = row[t] == 0 ? T(0) : row[t] * factor[t];  // rows without pairs, w not finite
      if (!in_place()) store_row(out.data, out.dtype, i * d, row, d);
    }
  }
};

// Sums for the gradients of `weight`, in double: of to_w (sweep.h) in the first d elements, and of
// ds after the padded ones. Every task has sums for a single weight; of several weights, each team
// and piece has sums for those that the group shares, or a worker for one item at a time.
template <class T>
struct WeightSums {
  const Backward<T>& p;
  int64_t size, copies = 1;
  bool wanted, single, shared, late;
  double *sums = nullptr, *scratch = nullptr;

  WeightSums(const Backward<T>& p, const Plan& plan, const Host& host)
      : p(p), size(padded(p.d) + 1), wanted(p.grad_weight), single(p.weight_count == 1),
        shared(plan.weight_shared), late(single || shared || plan.pieces > 1) {
    if (!wanted) return;
    if (late) {
      copies = single ? plan.tasks() : (shared ? plan.teams : 1) * plan.pieces;
      const int64_t count = p.weight_count * copies * size;
      sums = host.allocate<double>(count);
      std::fill(sums, sums + count, 0.0);
    } else {
      scratch = host.allocate<double>(host.threads * size);
    }
  }

  double* at(const Item& item, const Plan& plan, int64_t k, int64_t worker) const {
    if (!wanted) return nullptr;
    if (!late) {
      double* mine = scratch + worker * size;
      std::fill(mine, mine + size, 0.0);
      return mine;
    }
    const int64_t copy = single ? k : k % ((shared ? plan.teams : 1) * plan.pieces);
    return sums + (item.grad_weight * copies + copy) * size;
  }
  // (E6) for one weight, from the sums of its copies.
  void finish(int64_t weight, const double* from) const {
    for (int64_t t = 0; t < p.d; t++) {
      double to_w = 0, ds = 0;
      for (int64_t k = 0; k < copies; k++) {
        to_w += from[k * size + t];
        ds += from[k * size + size - 1];
      }
      const double f = is_logistic(p.activation) ? ds - info(p.activation).span * to_w : to_w;
      p.grad_weight[weight * p.d + t] = static_cast<T>(p.scale * f);
    }
  }
  void finish(int64_t weight) const { finish(weight, sums + weight * copies * size); }
};

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
