// The inner functions of the CPU kernels for tests/backends/test_maths.py, compiled for one
// instruction set.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/philox.h"
#include "cpu/score.h"

namespace py = pybind11;
using namespace attnkernels;
using namespace attnkernels::cpu;

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// Apply f to whole vectors, the last of them padded with zeros.
template <class T, class F>
Array<T> map(const Array<T>& in, const F& f) {
  Array<T> out(in.size());
  const T* x = in.data();
  for (int64_t t = 0; t < in.size(); t += kLanes<T>) {
    const int64_t count = std::min<int64_t>(kLanes<T>, in.size() - t);
    f(Vec<T>::loadu(x + t, count)).store(out.mutable_data() + t, static_cast<int>(count));
  }
  return out;
}

// The weighted sum of 1 / x0 - 1/2 .. 1 / x3 - 1/2, with x formed by X.
template <class X>
Array<float> quad(const X& x, const Array<float>& a, const Array<float>& b,
                  const std::vector<float>& w) {
  using V = Vec<float>;
  const int64_t pairs = a.size() / 4;
  Array<float> out(pairs);
  for (int64_t p = 0; p < pairs; p++) {
    V acc(0.f), ae[4], be[4], we[4];
    for (int e = 0; e < 4; e++) {
      ae[e] = V(a.data()[4 * p + e]);
      be[e] = V(b.data()[4 * p + e]);
      we[e] = V(w[e]);
    }
    SharedReciprocal<X, true>{x}.add(acc, ae, be, we);
    float lanes[V::size()];
    acc.store(lanes);
    out.mutable_data()[p] = lanes[0];
  }
  return out;
}

PYBIND11_MODULE(maths, m) {
  m.attr("lanes") = kLanes<float>;
  m.def("exp", [](const Array<float>& x) {
    return map<float>(x, [](auto v) { return attnkernels::cpu::exp(v); });
  });
  m.def("exp_double", [](const Array<double>& x) {
    return map<double>(x, [](auto v) { return attnkernels::cpu::exp(v); });
  });
  m.def("exp_times", [](const Array<float>& x, float gain) {
    return map<float>(x, [&](auto v) { return exp_times(v, Vec<float>(gain)); });
  });
  m.def("reciprocal",
        [](const Array<float>& x) { return map<float>(x, [](auto v) { return reciprocal(v); }); });
  m.def("exp_weight",
        [](const Array<float>& x) { return map<float>(x, [](auto v) { return exp_weight(v); }); });
  m.def("range", [](const Array<float>& x) {
    const Range<float> r = range_of(x.data(), x.size());
    return py::make_tuple(r.high, r.magnitude);
  });
  m.def("limits", [] {
    return py::make_tuple(Limits<float>::quad, Limits<float>::pair, Limits<float>::factored);
  });
  m.def("factored", [](const Array<float>& a, const Array<float>& b, const std::vector<float>& w) {
    return quad(Factored{}, a, b, w);
  });
  m.def("bounded", [](const Array<float>& a, const Array<float>& b, const std::vector<float>& w) {
    return quad(Bounded{}, a, b, w);
  });
  m.def("direct", [](const Array<float>& a, const Array<float>& b, const std::vector<float>& w) {
    return quad(Direct<float>(2.f), a, b, w);
  });
  // f(x) and f'(x) ds of a pointwise activation.
  m.def("pointwise", [](int64_t code, float negative_slope, const Array<float>& x, float ds) {
    Array<float> value, slope;
    with_pointwise(static_cast<Activation>(code), negative_slope, [&](const auto& f) {
      value = map<float>(x, [&](auto v) { return f.value(v); });
      slope = map<float>(x, [&](auto v) { return f.slope(v, Vec<float>(ds)); });
    });
    return py::make_tuple(value, slope);
  });
  m.def("transpose", [](const Array<float>& rows) {
    const int64_t count = rows.shape(0), width = rows.shape(1);
    Array<float> panel({width, kPanel});
    transpose_panel(panel.mutable_data(), Rows<float>{rows.data(), width}, count, width);
    return panel;
  });
  m.def("philox", [](uint64_t seed, std::vector<uint32_t> counter) {
    const Words w = philox(seed, {{counter[0], counter[1], counter[2], counter[3]}});
    return std::vector<uint32_t>(w.w, w.w + 4);
  });
}
