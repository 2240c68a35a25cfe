// The kernels of one ISA: this file is compiled once for each, with CPU_CAPABILITY naming it.
#include "backward.h"

namespace attnkernels::cpu {
inline namespace CPU_CAPABILITY {

template <class T>
void forward(const Forward<T>& p, const Host& host) {
  std::vector<Block> blocks;
  const int64_t parts = cut(p, host.threads, blocks, true), ld = row_stride(p.dv);
  const int64_t size = ForwardScratch<T>::carve(p, nullptr, nullptr);
  T* scratch = host.allocate<T>(host.threads * size);
  const Softmax<T> all{host.allocate<T>(parts), host.allocate<T>(parts),
                       host.allocate<T>(parts * ld), ld};

  host.run(static_cast<int64_t>(blocks.size()), [&](int64_t task, int64_t worker) {
    const Block& b = blocks[task];
    ForwardScratch<T> s;
    ForwardScratch<T>::carve(p, scratch + worker * size, &s);
    const Item& item = p.items[b.item];
    if (p.weights)
      for (int64_t i = b.i0; i < b.i1; i++) {
        T* row = p.weights + (item.pair_row + i) * p.pair_cols;
        std::fill(row + b.j0, row + b.j1, -std::numeric_limits<T>::infinity());
      }
    if (b.part >= 0)
      return forward_block(p, b, s,
                           {all.high + b.part, all.total + b.part, all.context + b.part * ld, ld});
    forward_block(p, b, s, {s.high, s.total, s.context, ld});
    for (int64_t r = 0; r < b.i1 - b.i0; r++)
      finish_row(p, item.query_row + b.i0 + r, s.high[r], s.total[r], s.context + r * ld);
    if (p.weights) finish_weights(p, b);
  });

  std::vector<int64_t> first;  // of the parts of one block
  for (int64_t k = 0; k < static_cast<int64_t>(blocks.size()); k++)
    if (blocks[k].part >= 0 && blocks[k].j0 == 0) first.push_back(k);
  host.run(static_cast<int64_t>(first.size()), [&](int64_t task, int64_t) {
    const int64_t k = first[task];
    int64_t end = k + 1;
    while (end < static_cast<int64_t>(blocks.size()) && blocks[end].part >= 0 && blocks[end].j0 > 0)
      end++;
    merge(p, &blocks[k], end - k, all, blocks[k].part);
    if (p.weights)
      for (int64_t e = k; e < end; e++) finish_weights(p, blocks[e]);
  });
}

template <class T>
void scores(const Scores<T>& p, const Host& host) {
  std::vector<Block> blocks;
  cut(p, host.threads, blocks, false);
  const int64_t tile = tile_keys(p.d), rows_most = block_rows(p),
                size = Scorer<T>::scratch(p, rows_most) + tile_rows(p) * tile;
  T* scratch = host.allocate<T>(host.threads * size);
  host.run(static_cast<int64_t>(blocks.size()), [&](int64_t task, int64_t worker) {
    const Block& b = blocks[task];
    const Item& item = p.items[b.item];
    const int64_t rows = b.i1 - b.i0;
    T* out = scratch + worker * size;
    Scorer<T> scorer(p, item, rows_most, out + tile_rows(p) * tile);
    scorer.queries(b.i0, rows);
    for (int64_t j0 = b.j0; j0 < b.j1; j0 += tile) {
      const int64_t keys = std::min(tile, b.j1 - j0);
      scorer.keys(j0, keys, false, rows > kNarrow);
      for (int64_t r0 = 0; r0 < rows; r0 += kTileRows) {
        const int64_t count = std::min(kTileRows, rows - r0);
        scorer.score(r0, count, out, tile);
        for (int64_t r = 0; r < count; r++)
          std::copy(out + r * tile, out + r * tile + keys,
                    p.scores + (item.pair_row + b.i0 + r0 + r) * p.pair_cols + j0);
      }
    }
  });
}

// Every item's rows, queries or keys, in blocks for work that goes row by row; one at least.
std::vector<Block> row_blocks(const Problem& p) {
  constexpr int64_t each = 128;
  std::vector<Block> blocks;
  for (int64_t b = 0; b < p.count; b++)
    for (int64_t i = 0; i < std::max<int64_t>({1, p.items[b].n, p.items[b].m}); i += each)
      blocks.push_back({b, i, i + each, 0, 0, -1});
  return blocks;
}

template <class T>
void backward(const Backward<T>& p, const Host& host) {
  const Plan plan = plan_backward(p, host.threads);
  const bool at_once = plan.pieces == 1;  // a task finishes its item
  int64_t query_rows = 0, key_rows = 0, most_queries = 0, most_keys = 0;
  for (int64_t b = 0; b < p.count; b++) {
    const Item& item = p.items[b];
    query_rows = std::max(query_rows, item.query_row + item.n);
    key_rows = std::max(key_rows, item.key_row + item.key_rows);
    most_queries = std::max(most_queries, item.n);
    most_keys = std::max(most_keys, item.key_rows);
  }
  auto accumulator = [&](const Output& out, int64_t d, int64_t rows, int64_t copies) {
    Accumulator<T> a{out, d, rows};
    if (!a.wanted()) return a;
    if (!a.in_place() && !at_once) a.whole = host.allocate<T>(rows * d);
    a.copy_count = copies - 1;
    a.copies = host.allocate<T>(a.copy_count * rows * d);
    return a;
  };
  const Accumulator<T> query = accumulator(p.grad_query, p.d, query_rows, plan.query_copies());
  const Accumulator<T> key = accumulator(p.grad_key, p.d, key_rows, plan.key_copies());
  const Accumulator<T> value = accumulator(p.grad_value, p.dv, key_rows, plan.key_copies());

  const int64_t kernel_size = BackwardScratch<T>::carve(p, nullptr, nullptr),
                weight_size = padded(p.d) + 1;
  auto sums_size = [&](const Accumulator<T>& a, int64_t rows) {
    return a.wanted() && !a.in_place() && at_once ? padded(rows * a.d) : 0;
  };
  const int64_t query_size = sums_size(query, most_queries), key_size = sums_size(key, most_keys);
  const int64_t size =
      kernel_size + padded(p.d) + query_size + key_size + sums_size(value, most_keys);
  T* scratch = host.allocate<T>(host.threads * size);
  const int64_t weight_count = p.grad_weight ? p.count * plan.pieces * weight_size : 0;
  double* weight_sums = host.allocate<double>(weight_count);
  std::fill(weight_sums, weight_sums + weight_count, 0.0);

  T* delta = p.grad_scores ? nullptr : host.allocate<T>(query_rows);
  const std::vector<Block> blocks = row_blocks(p);
  if (delta)
    host.run(static_cast<int64_t>(blocks.size()), [&](int64_t task, int64_t) {
      const Item& item = p.items[blocks[task].item];
      for (int64_t i = blocks[task].i0; i < std::min(item.n, blocks[task].i1); i++)
        delta[item.query_row + i] = row_delta(p, item, i);
    });

  auto weight_gradient = [&](int64_t b) {
    for (int64_t t = 0; p.grad_weight && t < p.d; t++) {
      double to_w = 0, ds = 0;
      for (int64_t k = 0; k < plan.pieces; k++) {
        const double* sums = weight_sums + (b * plan.pieces + k) * weight_size;
        to_w += sums[t];
        ds += sums[padded(p.d)];
      }
      const double f = is_logistic(p.activation) ? ds - info(p.activation).span * to_w : to_w;
      p.grad_weight[b * p.d + t] = static_cast<T>(p.scale * f);
    }
  };

  for (int64_t step = 0; step < plan.steps(); step++)
    host.run(plan.groups() * plan.pieces, [&](int64_t task, int64_t worker) {
      const int64_t g = task / plan.pieces, k = task % plan.pieces;
      const int64_t qk = plan.query_pieces > 1 ? k : 0,
                    kk = plan.key_pieces > 1 ? (k + step) % plan.key_pieces : 0;
      const int64_t qc = plan.query_pieces > 1 ? 0 : k, kc = plan.key_pieces > 1 ? 0 : k;
      BackwardScratch<T> s;
      T* mine = scratch + worker * size;
      BackwardScratch<T>::carve(p, mine, &s);
      T *factor = mine + kernel_size, *query_sums = factor + padded(p.d),
        *key_sums = query_sums + query_size;
      T* value_sums = key_sums + key_size;
      for (int64_t o = plan.group[g]; o < plan.group[g + 1]; o++) {
        const int64_t b = plan.order[o];
        const Item& item = p.items[b];
        const Span is = piece(item.n, qk, plan.query_pieces, kTileRows),
                   js = piece(item.m, kk, plan.key_pieces, tile_keys(p.d));
        const Gradients<T> out{
            query.at(qc, item.query_row, query_sums), key.at(kc, item.key_row, key_sums),
            value.at(kc, item.key_row, value_sums),
            p.grad_weight ? weight_sums + (b * plan.pieces + k) * weight_size : nullptr};
        if (step == 0) {  // which meets every piece once
          query.clear(out.query, item.query_row + is.begin, is.end - is.begin);
          key.clear(out.key, item.key_row + js.begin, js.end - js.begin);
          value.clear(out.value, item.key_row + js.begin, js.end - js.begin);
          if (k == 0) {
            key.clear_output(item.key_row + item.m, item.key_rows - item.m);
            value.clear_output(item.key_row + item.m, item.key_rows - item.m);
          }
        }
        if (is.begin < is.end && js.begin < js.end) backward_piece(p, item, is, js, delta, out, s);
        if (!at_once) continue;
        row_factor(p, item, factor);
        query.finish(out.query, item.query_row, item.n, factor);
        key.finish(out.key, item.key_row, item.m, factor);
        value.finish(out.value, item.key_row, item.m, nullptr);
        weight_gradient(b);
      }
    });
  if (at_once) return;

  host.run(static_cast<int64_t>(blocks.size()), [&](int64_t task, int64_t worker) {
    const Block& b = blocks[task];
    const Item& item = p.items[b.item];
    T* factor = scratch + worker * size;
    row_factor(p, item, factor);
    const int64_t queries = std::min(b.i1, item.n) - b.i0, keys = std::min(b.i1, item.m) - b.i0;
    query.finish(query.at(0, 0, nullptr), item.query_row + b.i0, queries, factor);
    key.finish(key.at(0, 0, nullptr), item.key_row + b.i0, keys, factor);
    value.finish(value.at(0, 0, nullptr), item.key_row + b.i0, keys, nullptr);
    if (b.i0 == 0) weight_gradient(b.item);
  });
}

}  // namespace CPU_CAPABILITY

#define ATTNKERNELS_NAME_(isa) kernels_##isa
#define ATTNKERNELS_NAME(isa) ATTNKERNELS_NAME_(isa)
#define ATTNKERNELS_STRING_(isa) #isa
#define ATTNKERNELS_STRING(isa) ATTNKERNELS_STRING_(isa)

extern const Kernels ATTNKERNELS_NAME(CPU_CAPABILITY);
const Kernels ATTNKERNELS_NAME(CPU_CAPABILITY) = {
    ATTNKERNELS_STRING(CPU_CAPABILITY),
    {forward<float>, scores<float>, backward<float>, pack_panel<float>},
    {forward<double>, scores<double>, backward<double>, pack_panel<double>},
};

}  // namespace attnkernels::cpu
