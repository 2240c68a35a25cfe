// The inner functions of the CUDA kernels, on a CPU, for tests/backends/test_cuda_maths.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "cuda/product.h"
#include "cuda/score.h"
#include "cuda/sweep.h"

namespace py = pybind11;
using attnkernels::Dtype;
using namespace attnkernels::cuda;

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <class From, class F>
auto map(const Array<From>& in, const F& f) {
  Array<decltype(f(From{}))> out(in.size());
  std::transform(in.data(), in.data() + in.size(), out.mutable_data(), f);
  return out;
}

float4 four_of(const Array<float>& x, int64_t k) {
  const float* at = x.data() + 4 * k;
  return make_float4(at[0], at[1], at[2], at[3]);
}

// Return s + sum_t w_t g_t for every quad of a, b and w, each (quads, 4).
template <Form form>
Array<float> quads(const Array<float>& s, const Array<float>& a, const Array<float>& b,
                   const Array<float>& w, float negative, float floor) {
  Array<float> out(s.size());
  for (int64_t k = 0; k < s.size(); k++)
    out.mutable_data()[k] = add_quad<form>(s.data()[k], four_of(a, k), four_of(b, k), four_of(w, k),
                                           Rectifier{negative, floor});
  return out;
}

// Return four() of the sweep for q (keys, 4) and k (keys).
template <Sweep way>
Array<float> fours(const Array<float>& q, const Array<float>& k) {
  Array<float> out({k.size(), py::ssize_t{4}});
  for (int64_t j = 0; j < k.size(); j++) {
    float f[4];
    four<way>(f, q.data() + 4 * j, k.data()[j]);
    std::copy(f, f + 4, out.mutable_data() + 4 * j);
  }
  return out;
}

struct Matrices {
  const float *a, *b;
  float* c;
  int depth;
};

// Set c to a b, for b of 8 N columns; every warp has 16 M rows of a and c.
template <int M, int N, bool kShort>
__global__ void product(const Matrices p) {
  const int row0 = 16 * M * static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32);
  const auto place = [&](int i, int j) { return p.c + (row0 + i) * 8 * N + j; };
  Piece<M, N> piece;
  piece.template set<kShort>(
      p.depth, [&](int i, int k) { return p.a[(row0 + i) * p.depth + k]; },
      [&](int k, int j) { return p.b[k * 8 * N + j]; });
  piece.each([&](float x, int i, int j) { *place(i, j) = x; });
}

// Two warps per block.
template <int M, int N>
Array<float> multiply(const Array<float>& a, const Array<float>& b, bool is_short) {
  if (b.shape(0) != a.shape(1) || b.shape(1) != 8 * N || a.shape(0) % (32 * M))
    throw py::value_error("sizes that two warps per block do not divide");
  Array<float> out({a.shape(0), b.shape(1)});
  const Matrices p{a.data(), b.data(), out.mutable_data(), static_cast<int>(a.shape(1))};
  const int64_t blocks = a.shape(0) / (32 * M);
  const py::gil_scoped_release others_may_run;
  launch("product", is_short ? product<M, N, true> : product<M, N, false>, blocks, 64, 0, nullptr,
         p);
  return out;
}

// `ends` as bytes, null if there is one sequence.
Sequences sequences_of(const std::optional<Array<uint8_t>>& ends, Dtype dtype) {
  return {ends ? ends->data() : nullptr, dtype};
}

PYBIND11_MODULE(cuda_maths, m) {
  py::enum_<Dtype>(m, "Dtype", py::module_local())
      .value("f32", Dtype::f32)
      .value("bf16", Dtype::bf16)
      .value("f16", Dtype::f16)
      .value("boolean", Dtype::boolean)
      .value("i32", Dtype::i32)
      .value("i64", Dtype::i64);
  m.attr("rank") = kRank;
  m.attr("tile") = kTile;
  m.def("limits",
        [] { return py::make_tuple(Limit::quad, Limit::pair, Limit::factored, Limit::exp_quad); });

  m.def("exp_exact", [](const Array<float>& y) { return map(y, exp_exact); });
  m.def("exp_fast", [](const Array<float>& y) { return map(y, exp_fast); });
  m.def("rectified", [](const Array<float>& x, float negative, float floor) {
    return map(x, [&](float v) { return Rectifier{negative, floor}.value(v); });
  });
  m.def("rectified_slope", [](const Array<float>& x, float negative) {
    return map(x, [&](float v) { return Rectifier{negative, 0}.slope(v); });
  });

  m.def("from_bfloat16", [](const Array<uint16_t>& x) { return map(x, from_bfloat16); });
  m.def("to_bfloat16", [](const Array<float>& x) { return map(x, to_bfloat16); });
  m.def("load", [](const Array<uint8_t>& bytes, Dtype dtype, const Array<int64_t>& at) {
    return map(at, [&](int64_t i) { return load(bytes.data(), dtype, i); });
  });
  m.def("load_by_dtype", [](const Array<uint8_t>& bytes, Dtype dtype, const Array<int64_t>& at) {
    Array<float> out;
    by_dtype(dtype, [&](auto of) {
      out = map(at, [&](int64_t i) { return decltype(of)::load(bytes.data(), i); });
    });
    return out;
  });
  m.def("load_integer", [](const Array<uint8_t>& bytes, Dtype dtype, const Array<int64_t>& at) {
    return map(at, [&](int64_t i) { return load_integer(bytes.data(), dtype, i); });
  });
  m.def("is_short", [](Dtype dtype) {
    bool is = false;
    by_dtype(dtype, [&](auto of) { is = decltype(of)::kShort; });
    return is;
  });
  m.def("store",
        [](Array<uint8_t> bytes, Dtype dtype, const Array<int64_t>& at, const Array<float>& x) {
          for (int64_t k = 0; k < at.size(); k++)
            store(bytes.mutable_data(), dtype, at.data()[k], x.data()[k]);
        });

  m.def("factored", quads<Form::factored>);
  m.def("bounded", quads<Form::bounded>);
  m.def("rectified_quads", quads<Form::pointwise>);
  m.def("shared", fours<Sweep::shared>);
  m.def("single", fours<Sweep::single>);
  m.def("sums", fours<Sweep::direct>);
  m.def("with_slope", [](const Array<float>& x, float gain) {
    const Logistic act{gain * kLog2e, 1};
    return py::make_tuple(map(x, [&](float v) { return act.with_slope(v).x; }),
                          map(x, [&](float v) { return act.with_slope(v).y; }));
  });

  m.def("philox", [](uint64_t seed, const std::vector<uint32_t>& counter) {
    const Words w = philox(seed, {{counter.at(0), counter.at(1), counter.at(2), counter.at(3)}});
    return std::vector<uint32_t>(w.w, w.w + 4);
  });
  m.def("kept_four", [](std::optional<int64_t> seed, uint64_t threshold, float keep_scale,
                        int64_t item, int i, int group) {
    Problem p{};
    p.seed = seed ? &*seed : nullptr, p.threshold = threshold, p.keep_scale = keep_scale;
    const float4 four = kept_four(p, item, i, group);
    return std::vector<float>{four.x, four.y, four.z, four.w};
  });
  m.def("kept", [](std::optional<int64_t> seed, uint64_t threshold, float keep_scale, int64_t item,
                   int i, int j) {
    Problem p{};
    p.seed = seed ? &*seed : nullptr, p.threshold = threshold, p.keep_scale = keep_scale;
    return kept(p, item, i, j);
  });
  m.def("dropped", dropped);
  // takes_part() for all pairs of `height` x `width`, of which `rows` and the columns from `first`
  // to `columns` are there.
  m.def("takes_part", [](const std::optional<Array<uint8_t>>& mask, Dtype dtype, int64_t mask_at,
                         int64_t row, int64_t col, int left, int right, int rows, int first,
                         int columns, int height, int width) {
    Problem p{};
    p.mask.data = mask ? mask->data() : nullptr;
    p.mask.dtype = dtype, p.mask.row = row, p.mask.col = col, p.window = {left, right};
    Array<bool> taken({height, width});
    Array<float> added({height, width});
    for (int i = 0; i < height; i++)
      for (int j = 0; j < width; j++)
        taken.mutable_at(i, j) =
            takes_part(p, mask_at, rows, {first, columns}, i, j, added.mutable_at(i, j));
    return py::make_tuple(taken, added);
  });

  m.def("reach", [](int left, int right, int i0, int i1, int queries, int first, int end) {
    const Reach seen = reach({left, right}, i0, i1, queries, {first, end});
    return py::make_tuple(seen.first, seen.end);
  });

  // By (M, N).
  m.def("product_1_8", multiply<1, 8>);
  m.def("product_2_4", multiply<2, 4>);

  m.def("offset", [](const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                     const Array<int64_t>& b) {
    Batch batch;
    Strides along;
    if (sizes.size() > kRank || strides.size() != sizes.size()) throw py::value_error("rank");
    batch.rank = static_cast<int>(sizes.size());
    std::copy(sizes.begin(), sizes.end(), batch.sizes);
    std::copy(strides.begin(), strides.end(), along.along);
    return map(b, [&](int64_t k) { return offset(batch, k, along); });
  });
  m.def("extent", [](const std::optional<Array<uint8_t>>& ends, Dtype dtype, int s, int rows) {
    const Extent e = extent(sequences_of(ends, dtype), s, rows);
    return py::make_tuple(e.begin, e.count, e.tile);
  });
  // The sequence of every tile.
  m.def("tiles",
        [](const std::optional<Array<uint8_t>>& ends, Dtype dtype, int sequences, int rows) {
          const Sequences of = sequences_of(ends, dtype);
          std::vector<int> out(static_cast<size_t>(tiles_of(of, rows, sequences)));
          for (size_t t = 0; t < out.size(); t++)
            out[t] = sequence_of(of, sequences, static_cast<int>(t));
          return out;
        });
}
