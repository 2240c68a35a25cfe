// Gradients to which rows are added: summed in the precision of the arithmetic, then rounded to the
// dtype of the result.
#pragma once
#include <cstring>

#include "rows.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// The gradient of queries, keys or values. Sums are in T: in the result itself if T is its dtype;
// else in a worker's scratch if one task finishes an item, and otherwise in `whole`.
template <class T>
struct Accumulator {
  Output out;
  int64_t d, rows;  // of the whole result
  T* whole = nullptr;
  T* copies = nullptr;
  int64_t copy_count = 0;  // besides the first

  Accumulator(const Output& out, int64_t d, int64_t rows, int64_t all_copies,
              bool task_finishes_item, const Host& host)
      : out(out), d(d), rows(rows) {
    if (!wanted()) return;
    if (!in_place() && !task_finishes_item) whole = host.allocate<T>(rows * d);
    copy_count = all_copies - 1;
    copies = host.allocate<T>(copy_count * rows * d);
  }

  bool wanted() const { return out.data; }
  bool in_place() const { return out.dtype == dtype_of<T>; }
  // Number of elements of the scratch in which a task sums `rows` rows.
  int64_t scratch(int64_t rows) const {
    return wanted() && !in_place() && !whole ? padded(rows * d) : 0;
  }
  // The address at which rows of copy c are added: row r at the result + r * d.
  T* at(int64_t c, int64_t first_row, T* scratch) const {
    if (!wanted()) return nullptr;
    if (c > 0) return copies + (c - 1) * rows * d;
    if (in_place()) return static_cast<T*>(out.data);
    return whole ? whole : scratch - first_row * d;
  }
  void clear(T* rows_at, int64_t first, int64_t count) const {
    if (wanted() && count > 0) std::fill(rows_at + first * d, rows_at + (first + count) * d, T(0));
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
        for (int64_t t = 0; t < d; t++) row[t] += copies[(c * rows + i) * d + t];
      if (factor)
        for (int64_t t = 0; t < d; t++) row[t] *= factor[t];
      if (!in_place()) store_row(out.data, out.dtype, i * d, row, d);
    }
  }
};

// Sums for the gradient of `weight` by each piece of each item, in double: of to_w (sweep.h) in the
// first d elements, and of ds after the padded ones.
struct WeightSums {
  double* sums = nullptr;
  int64_t pieces, size;

  WeightSums(const Problem& p, bool wanted, int64_t pieces, const Host& host)
      : pieces(pieces), size(padded(p.d) + 1) {
    if (!wanted) return;
    const int64_t count = p.count * pieces * size;
    sums = host.allocate<double>(count);
    std::fill(sums, sums + count, 0.0);
  }

  double* at(int64_t item, int64_t piece) const {
    return sums ? sums + (item * pieces + piece) * size : nullptr;
  }
  // (E6) for one item, from the sums of its pieces.
  template <class T>
  void finish(const Problem& p, int64_t item, T* grad_weight) const {
    if (!sums) return;
    for (int64_t t = 0; t < p.d; t++) {
      double to_w = 0, ds = 0;
      for (int64_t k = 0; k < pieces; k++) {
        to_w += at(item, k)[t];
        ds += at(item, k)[size - 1];
      }
      const double f = is_logistic(p.activation) ? ds - info(p.activation).span * to_w : to_w;
      grad_weight[item * p.d + t] = static_cast<T>(p.scale * f);
    }
  }
};

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
