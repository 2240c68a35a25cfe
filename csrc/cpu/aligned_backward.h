// The gradients of the scores of aligned.h. The gradients of some keys, for some columns, are
// computed in registers and stay in the first-level cache for the two products with them.
#pragma once
#include "aligned_tile.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

static_assert(kAlignedRows % kWindowRows == 0 && kAlignedRows % kTileKeys == 0);

// The memory of a chunk of the batch, which is computed in order, and its sums over the batch.
template <class T>
struct AlignedChunk {
  AlignedOperands<T> at;
  const int64_t rows = at.groups * at.taps, columns = padded(rows);  // of the filter
  static constexpr int64_t kGroup = kTileVectors * kLanes<T>;
  T* transposed;                      // (width, columns), the filter
  T* windows;                         // (kAlignedRows, columns): gradients of what each key sees
  T* keys;                            // (kAlignedRows, kGroup): gradients of keys
  T *query, *weight, *filter, *seen;  // gradients, as AlignedOperands has the operands

  AlignedChunk(const AlignedScores<T>& p, Parts<T>& parts)
      : at(p, parts), transposed(parts.take(at.width * columns)),
        windows(parts.take(kAlignedRows * columns)), keys(parts.take(kAlignedRows * kGroup)),
        query(parts.take(at.width)), weight(parts.take(at.width)),
        filter(parts.take(rows * at.width)), seen(parts.take(p.channels * at.length)) {}

  void begin() {
    const AlignedScores<T>& p = at.p;
    at.begin();
    std::fill_n(transposed, at.width * columns, T(0));
    for (int64_t e = 0; e < rows; e++)
      for (int64_t t = 0; t < p.d; t++) transposed[t * columns + e] = at.filter[e * at.width + t];
    std::fill_n(weight, at.width, T(0));
    std::fill_n(filter, rows * at.width, T(0));
  }

  void run(const AlignedBackward<T>& p, int64_t b) {
    at.begin(b);
    std::fill_n(query, at.width, T(0));
    std::fill_n(seen, p.channels * at.length, T(0));
    for (int64_t first = 0; first < p.m; first += kAlignedRows) {
      const int64_t count = std::min(kAlignedRows, p.m - first);
      const T* grad = p.grad_scores + b * p.m + first;
      if (std::all_of(grad, grad + count, [](T x) { return x == 0; })) continue;  // padding
      std::fill_n(windows, kAlignedRows * columns, T(0));
      for_columns<T>(p.d, [&]<int C>(std::integral_constant<int, C>, int64_t t, int64_t in_last) {
        at.template prefetch_next<C>(p.key, b, first, count, t);
        if (p.grad_key) at.template prefetch_next<C>(p.grad_key, b, first, count, t);
        T* sums = p.grad_key ? p.grad_key + (b * p.m + first) * p.d + t : nullptr;
        for_rows<kTileKeys>(count, [&]<int R>(std::integral_constant<int, R>, int64_t i) {
          differentiate<R, C>(b, first + i, t, in_last, grad + i, keys + i * kGroup,
                              sums ? sums + i * p.d : nullptr);
        });
        const int64_t whole = (count + kWindowRows - 1) / kWindowRows * kWindowRows;
        std::fill_n(keys + count * kGroup, (whole - count) * kGroup, T(0));
        add_windows<C>(whole, t);
        if (p.grad_filter) add_filter<C>(first, count, t);
      });
      add_seen(first, count);
    }
    std::copy_n(query, p.d, p.grad_query + b * p.d);
    const int64_t wanted = p.m + p.taps - 1;
    for (int64_t c = 0; c < p.channels; c++)
      std::copy_n(seen + c * at.length, wanted, p.grad_seen + (b * p.channels + c) * wanted);
  }

 private:
  // The gradients of R keys from j on, which are added to those of query, weight and keys.
  template <int R, int C>
  C10_ALWAYS_INLINE void differentiate(int64_t b, int64_t j, int64_t t, int64_t count,
                                       const T* grad, T* out, T* sums) {
    using V = Vec<T>;
    V acc[R][C];
    at.tile(acc, b, j, t, count);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      const int64_t at_t = t + c * kLanes<T>;
      const V w = load(at.weight + at_t) * V(4 * at.p.scale);
      V to_query = load(query + at_t), to_weight = load(weight + at_t);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const V e = acc[r][c], x = reciprocal(e + V(T(1))), ds(grad[r]);
        const V dk = ds * w * (e * x * x);  // (E5), (E8): 1 - x = e x
        to_query = to_query + dk;
        to_weight = fmadd(ds, x - V(T(0.5)), to_weight);
        dk.store(out + r * kGroup + c * kLanes<T>);
        if (sums) add_to(sums + r * at.p.d + c * kLanes<T>, dk, count);
      }
      to_query.store(query + at_t);
      to_weight.store(weight + at_t);
    }
  }

  // windows += keys of C vectors of columns from t on, times the transposed filter
  template <int C>
  C10_ALWAYS_INLINE void add_windows(int64_t rows, int64_t t) {
    constexpr int64_t L = kLanes<T>;
    const T* of_columns = transposed + t * columns;
    for (int64_t i = 0; i < rows; i += kWindowRows) {
      int64_t e = 0;
      auto add = [&]<int Vectors>(std::integral_constant<int, Vectors>) {
        Vec<T> acc[kWindowRows][Vectors];
        clear(acc);
        multiply(acc, keys + i * kGroup, kGroup, 1, of_columns + e, columns, C * L);
        add_tile(acc, windows + i * columns + e, columns);
      };
      for (; e + 2 * L <= columns; e += 2 * L) add(std::integral_constant<int, 2>{});
      for (; e < columns; e += L) add(std::integral_constant<int, 1>{});
    }
  }

  // filter += what the keys first .. first + count see, transposed, times their gradients
  template <int C>
  C10_ALWAYS_INLINE void add_filter(int64_t first, int64_t count, int64_t t) {
    for (int64_t g = 0; g < at.groups; g++)
      for (int64_t e = 0; e < at.taps; e += 4) {
        const T* of_rows = at.seen + g * at.length + e * at.next + first;
        Vec<T> acc[4][C];
        clear(acc);
        multiply(acc, of_rows, at.next, 1, keys, kGroup, count);
        add_tile(acc, filter + (g * at.taps + e) * at.width + t, at.width);
      }
  }

  // The gradients of what each key sees, added up where the windows of keys overlap.
  void add_seen(int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; i++)
      for (int64_t g = 0; g < at.groups; g++) {
        T* out = seen + g * at.length + first + i;
        const T* window = windows + i * columns + g * at.taps;
        for (int64_t e = 0; e < at.given; e++) out[e * at.next] += window[e];
      }
  }
};

// Every thread has a chunk of the batch, so that the order of all sums depends on the number of
// threads alone.
template <class T>
void aligned_backward(const AlignedBackward<T>& p, const Host& host) {
  Parts<T> nothing(nullptr);
  const AlignedChunk<T> sized(p, nothing);
  const int64_t size = nothing.taken(), chunks = std::min<int64_t>(host.threads, p.batch);
  T* scratch = host.allocate<T>(chunks * size);
  auto chunk_at = [&](int64_t k) {
    Parts<T> parts(scratch + k * size);
    return AlignedChunk<T>(p, parts);
  };
  host.run(chunks, [&](int64_t k, int64_t) {
    AlignedChunk<T> chunk = chunk_at(k);
    chunk.begin();
    for (int64_t b = p.batch * k / chunks; b < p.batch * (k + 1) / chunks; b++) {
      if (host.stopped()) return;
      chunk.run(p, b);
    }
  });
  for (int64_t k = 0; k < chunks; k++) {
    const AlignedChunk<T> chunk = chunk_at(k);
    if (p.grad_weight)
      for (int64_t t = 0; t < p.d; t++) p.grad_weight[t] += T(-2) * p.scale * chunk.weight[t];
    if (p.grad_filter)
      for (int64_t g = 0; g < chunk.at.groups; g++)
        for (int64_t e = 0; e < chunk.at.given; e++)
          for (int64_t t = 0; t < p.d; t++)
            p.grad_filter[(g * chunk.at.given + e) * p.d + t] +=
                chunk.filter[(g * chunk.at.taps + e) * chunk.at.width + t];
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace attnkernels::cpu
