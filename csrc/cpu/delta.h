// D_i of (E4), and the pairs near which it cancels.
//
// ds is a difference, a_ij (da_ij - D_i). Where a_ij is almost 1, D_i is almost da_ij, and rounding
// two separate products would leave noise instead of the difference: of a row that sees a single
// key, instead of 0. For a pair with most of its row's weight the terms are subtracted before they
// are multiplied, dc_i . (u_j - c_i), and the context of such a row is u_j to the last bit, or near
// it. There is at most one such pair in a row.
#pragma once
#include "mask.h"
#include "philox.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

// The sums that D_i consists of: those over the gradients of context and weights, and dlse_i.
template <class T>
struct Delta {
  T context = 0, weights = 0, lse = 0;
  T total() const { return context + weights - lse; }
};

template <class T>
inline T row_dot(const Matrix& grad, int64_t row, const T* out, int64_t count) {
  const T* g = static_cast<const T*>(grad.at(row).data);
  double sums[kLane] = {};
  int64_t c = 0;
  auto add = [&](int64_t l) {
    sums[l] += static_cast<double>(g[(c + l) * grad.col]) * static_cast<double>(out[c + l]);
  };
  for (; c + kLane <= count; c += kLane)
    for (int64_t l = 0; l < kLane; l++) add(l);
  for (int64_t l = 0; l < count - c; l++) add(l);
  double total = 0;
  for (int64_t l = 0; l < kLane; l++) total += sums[l];
  return static_cast<T>(total);
}

template <class T>
Delta<T> row_delta(const Backward<T>& p, const Item& item, int64_t i) {
  const int64_t row = item.query_row + i;
  Delta<T> out;
  if (p.grad_context.data) out.context = row_dot(p.grad_context, row, p.context + row * p.dv, p.dv);
  if (p.grad_weights.data)
    out.weights =
        row_dot(p.grad_weights.at(item.pair_row + i, item.first), 0,
                p.weights + (item.pair_row + i) * p.pair_cols + item.first, item.m - item.first);
  if (p.grad_lse.data) out.lse = *static_cast<const T*>(p.grad_lse.at(row).data);
  return out;
}

// x y - z, or 0 where z is x y rounded, even if the compiler fuses the operations.
template <class T>
inline Vec<T> difference(Vec<T> x, Vec<T> y, Vec<T> z) {
  const Vec<T> rest = x * y - z, rounding(std::numeric_limits<T>::epsilon() / 2);
  return Vec<T>::blendv(rest, Vec<T>(T(0)), rest.abs() <= z.abs() * rounding);
}

// da_ij - D_i of pair (i, j), with dc_i and u_j as rows that are padded with zeros.
template <class T>
T centred(const Backward<T>& p, const Item& item, const Delta<T>& delta, int64_t i, int64_t j,
          const T* grad_context, const T* value) {
  using V = Vec<T>;
  T keep = 1;
  if (p.dropout.p > 0) {
    T four[4] = {1, 1, 1, 1};
    drop_row(four, p.dropout.p, p.dropout.seed, item.counter, i, j / 4 * 4, 4);
    keep = four[j % 4];
  }
  const V factor(keep), zero(T(0));
  V sums = zero;
  if (p.grad_context.data) {
    const T* context = p.context + (item.query_row + i) * p.dv;
    for (int64_t c = 0; c < p.dv; c += kLanes<T>) {
      const V u = keep == 0 ? zero : load(value + c);  // even if u is not finite
      const V x = difference(u, factor, V::loadu(context + c, std::min(kLanes<T>, p.dv - c)));
      sums = fmadd(load(grad_context + c), x, sums);
    }
  }
  T out = sum(sums);
  if (p.grad_weights.data) {
    const T* grad = static_cast<const T*>(p.grad_weights.at(item.pair_row + i, j).data);
    alignas(64) T lanes[kLanes<T>];
    difference(V(keep == 0 ? T(0) : *grad), factor, V(delta.weights)).store(lanes);
    out += lanes[0];
  }
  return out + delta.lse;
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
