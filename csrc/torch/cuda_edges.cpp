// The operators over edges for CUDA tensors: they allocate the results and call the kernels on
// torch's current stream. Nothing waits for the device or reads from it.
//
// Tests define ATTNKERNELS_EMULATED: see cuda_ops.cpp.
#include "cuda/edges.h"
#include "torch/cuda_call.h"
#include "torch/cuda_host.h"
#include "torch/edge_call.h"

namespace {

using namespace attnkernels;

int count_of(int64_t size, const char* name) {
  STD_TORCH_CHECK(size <= INT_MAX, "attnkernels: ", name, " must be at most ", INT_MAX,
                  " for the CUDA kernels, got ", size);
  return static_cast<int>(size);
}

const int64_t* integers(const Tensor& t) {
  return t.numel() ? static_cast<const int64_t*>(t.const_data_ptr()) : nullptr;
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// A call as the kernels take it. No operand is copied.
class EdgeCall {
 public:
  const EdgeShapes shapes;
  cuda::EdgeProblem problem;

  explicit EdgeCall(const EdgeArguments& in) : shapes(in) {
    problem.activation = in.activation;
    problem.negative_slope = static_cast<float>(in.negative_slope);
    problem.scale = static_cast<float>(in.scale);
    problem.n = count_of(shapes.n, "the rows of query");
    problem.m = count_of(shapes.m, "the rows of key");
    problem.d = count_of(shapes.d, "the last dimension of query");
    problem.dv = count_of(shapes.dv, "the last dimension of value");
    problem.edges = count_of(shapes.edges, "the number of edges");
    count_of(shapes.edges + std::max(shapes.n, shapes.m), "the number of edges and nodes");
    problem.together = count_of(shapes.together(), "a leading dimension");
    problem.by_target = {problem.n, integers(in.edges.target_begin), integers(in.edges.source),
                         integers(in.edges.order)};
    problem.by_source = {problem.m, integers(in.edges.source_begin), integers(in.edges.target),
                         integers(in.edges.place)};
    if (in.seed) take_dropout(problem, *in.seed, in.dropout_p);
    const int64_t pack = 16 / element_size(dtype_of(in.query));
    // Strides of rows are counted in bytes of 32 bits.
    constexpr int64_t kMost = INT_MAX / 4;
    problem.wide = (shapes.d | shapes.dv) % pack == 0 &&
                   shapes.together() * std::max(shapes.d, shapes.dv) <= kMost;
    std::vector<Along> along;
    auto take = [&](const Tensor* t, int64_t trailing, cuda::Matrix& matrix) {
      if (!t) return;
      const Slices at = slices(*t, trailing, shapes.leading);
      static_cast<Matrix&>(matrix) = at.first();
      along.push_back({at.strides(), &matrix.lead});
      if (trailing < 2) return;
      problem.wide &=
          aligned(matrix.data) && matrix.row % pack == 0 && matrix.row <= kMost && matrix.col <= 1;
      for (const int64_t stride : at.strides()) problem.wide &= stride % pack == 0;
    };
    take(&in.query, 2, problem.query);
    take(&in.key, 2, problem.key);
    take(in.value, 2, problem.value);
    take(&in.weight, 1, problem.weight);
    take(in.edge_key, 2, problem.edge_key);
    take(in.edge_bias, 1, problem.edge_bias);
    problem.batch = merge(shapes.leading, along);
  }

  // A result of the forward or its gradient, by row; null where there is none.
  const float* floats(const Maybe& given, int64_t trailing) {
    if (!given || !given->numel()) return nullptr;
    lying_.push_back(by_row(*given, trailing));
    const auto* data = static_cast<const float*>(lying_.back().const_data_ptr());
    if (trailing == 2) problem.wide &= aligned(data);
    return data;
  }

 private:
  std::vector<Tensor> lying_;
};

struct CudaEdges {
  static Tensors3 forward(const EdgeArguments& in, bool return_weights) {
    const EdgeCall call(in);
    const EdgeShapes& s = call.shapes;
    const ScalarType type = ScalarType::Float;
    Tensor context = empty_by_row(in.query, s.rows(s.n, s.dv), 2, type, "context"),
           lse = empty_by_row(in.query, s.leading.with({s.n}), 1, type, "lse"),
           weights = return_weights
                         ? empty_by_row(in.query, s.leading.with({s.edges}), 1, type, kWeights)
                         : s.softmax(in.query, type);
    cuda::EdgeForward f{data<float>(context), data<float>(lse)};
    (return_weights ? f.weights : f.softmax) = data<float>(weights);
    const CudaHost torch(in.query);
    cuda::edge_forward(call.problem, f, torch.host);
    return {context, lse, weights};
  }

  static Tensors6 backward(const EdgeArguments& in, const Outputs& given, int64_t wanted) {
    EdgeCall call(in);
    const EdgeShapes& s = call.shapes;
    const ScalarType type = in.query.scalar_type();
    auto gradient = [&](const Tensor* x, int64_t trailing, int64_t bit, const char* name) {
      return s.gradient(x, trailing, wanted & bit, trailing == 2 ? type : ScalarType::Float,
                        in.query, name);
    };
    Tensor query = gradient(&in.query, 2, kQuery, "query"), key = gradient(&in.key, 2, kKey, "key"),
           value = gradient(in.value, 2, kValue, "value"),
           edge_key = gradient(in.edge_key, 2, kEdgeKey, "edge_key"),
           edge_bias = gradient(in.edge_bias, 1, kEdgeBias, "edge_bias"),
           weight = s.weight_gradient(in.weight, wanted & kWeight);
    cuda::EdgeBackward f;
    f.context = call.floats(given.context, 2);
    f.lse = call.floats(given.lse, 1);
    const bool is_softmax = s.is_softmax(given);
    (is_softmax ? f.softmax : f.weights) = call.floats(given.weights, is_softmax ? 2 : 1);
    f.grad_context = call.floats(given.grad_context, 2);
    f.grad_lse = call.floats(given.grad_lse, 1);
    f.grad_weights = call.floats(given.grad_weights, 1);
    f.grad_query = output_of(query);
    f.grad_key = output_of(key);
    f.grad_value = output_of(value);
    f.grad_edge_key = output_of(edge_key);
    f.grad_weight = data<float>(weight);
    f.grad_edge_bias = data<float>(edge_bias);
    const CudaHost torch(in.query);
    cuda::edge_backward(call.problem, f, torch.host);
    return {query, key, value, weight, edge_key, edge_bias};
  }
};

}  // namespace

#ifdef ATTNKERNELS_EMULATED
STABLE_TORCH_LIBRARY_IMPL(attnkernels, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(attnkernels, CUDA, m) {
#endif
  EdgeOperators<CudaEdges>::implement(m);
}
