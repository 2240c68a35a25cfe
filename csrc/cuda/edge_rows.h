// Rows of nodes and edges in the registers of a team: 16 bytes per lane and load.
#pragma once
#include "cuda/edge_team.h"
#include "cuda/step.h"

namespace attnkernels::cuda {

// Elements of 16 bytes.
template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(typename T::Element));

template <class T>
struct PackOf;
template <>
struct PackOf<Float32> {
  static __device__ __forceinline__ void read(float* to, const uint4& bits) {
    to[0] = __uint_as_float(bits.x);
    to[1] = __uint_as_float(bits.y);
    to[2] = __uint_as_float(bits.z);
    to[3] = __uint_as_float(bits.w);
  }
  static __device__ __forceinline__ uint4 write(const float* x) {
    return {__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
            __float_as_uint(x[3])};
  }
};
template <>
struct PackOf<Bfloat16> {
  static __device__ __forceinline__ void read(float* to, const uint4& bits) {
    const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int k = 0; k < 4; k++) {
      to[2 * k] = __uint_as_float(words[k] << 16);
      to[2 * k + 1] = __uint_as_float(words[k] & 0xffff0000u);
    }
  }
  static __device__ __forceinline__ unsigned two(const float* x) {
    return to_bfloat16(x[0]) | static_cast<unsigned>(to_bfloat16(x[1])) << 16;
  }
  static __device__ __forceinline__ uint4 write(const float* x) {
    return {two(x), two(x + 2), two(x + 4), two(x + 6)};
  }
};
template <>
struct PackOf<Float16> {
  static __device__ __forceinline__ void read(float* to, const uint4& bits) {
    const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int k = 0; k < 4; k++) {
      to[2 * k] = from_half(static_cast<uint16_t>(words[k]));
      to[2 * k + 1] = from_half(static_cast<uint16_t>(words[k] >> 16));
    }
  }
  static __device__ __forceinline__ unsigned two(const float* x) {
    return to_half(x[0]) | static_cast<unsigned>(to_half(x[1])) << 16;
  }
  static __device__ __forceinline__ uint4 write(const float* x) {
    return {two(x), two(x + 2), two(x + 4), two(x + 6)};
  }
};

// A row as it was loaded: V times 16 bytes of a lane.
template <int V>
struct Packed {
  uint4 bits[V];
};

// The rows of a tensor, of T or of float32, in the lanes of a team: a lane has V times K
// neighbouring elements. With V > 1 a team is a warp.
template <class T, int V, class E = T>
class Table {
 public:
  static constexpr int K = kPack<T>, N = K * V;
  static constexpr int Q = K / kPack<E>, M = V * Q;  // loads of K elements, and of a row
  static constexpr int kSize = static_cast<int>(sizeof(typename E::Element));

  // Row 0 is at element `at`, and the next one `stride` elements later.
  __device__ __forceinline__ Table(const void* data, int64_t at, int64_t stride, int columns,
                                   const Team& team)
      : first_(static_cast<const char*>(data) + (at + team.lane * K) * kSize),
        row_(static_cast<int>(stride) * kSize) {
#pragma unroll
    for (int v = 0; v < V; v++) least_[v] = column(team, v) < columns ? 0 : 0x7fffffff;
  }
  __device__ __forceinline__ Table(const Matrix& m, const Batch& batch, int columns,
                                   const Team& team)
      : Table(m.data, offset(batch, team.b, m.lead), m.row, columns, team) {}

  static __device__ __forceinline__ int column(const Team& team, int v) {
    return (v * 32 + team.lane) * K;
  }
  // Load row i, nothing if i is negative. Elements that no row has keep what they were.
  __device__ __forceinline__ void load(Packed<M>& to, int i) const {
    const char* const at = first_ + int64_t{i} * row_;
#pragma unroll
    for (int v = 0; v < V; v++)
      if (i >= least_[v])
#pragma unroll
        for (int k = 0; k < Q; k++)
          to.bits[v * Q + k] = *reinterpret_cast<const uint4*>(at + 32 * K * kSize * v + 16 * k);
  }
  __device__ __forceinline__ void store(int64_t i, const float (&x)[N]) const {
    char* const at = const_cast<char*>(first_) + i * row_;
#pragma unroll
    for (int v = 0; v < V; v++)
      if (least_[v] == 0)
#pragma unroll
        for (int k = 0; k < Q; k++)
          *reinterpret_cast<uint4*>(at + 32 * K * kSize * v + 16 * k) =
              PackOf<E>::write(x + v * K + k * kPack<E>);
  }

 private:
  const char* first_;  // this lane's element of row 0
  int row_;            // bytes
  int least_[V];       // of the numbers of rows that are loaded
};

template <class T, int V>
using FloatTable = Table<T, V, Float32>;

// A float32 result with rows that follow each other, or one whose rows are those of Team::row(i).
template <class T, int V>
__device__ __forceinline__ FloatTable<T, V> dense_table(const float* data, int columns,
                                                        const Team& team) {
  return {data, 0, columns, columns, team};
}
template <class T, int V>
__device__ __forceinline__ FloatTable<T, V> result_table(const float* data, const EdgeProblem& p,
                                                         int rows, int columns, const Team& team) {
  return {data, team.row(p, rows, 0) * columns, int64_t{p.together} * columns, columns, team};
}

template <class T, int V>
__device__ __forceinline__ void unpack(float (&to)[kPack<T> * V], const Packed<V>& from) {
#pragma unroll
  for (int v = 0; v < V; v++) PackOf<T>::read(to + v * kPack<T>, from.bits[v]);
}
template <int M>
__device__ __forceinline__ void unpack_floats(float (&to)[4 * M], const Packed<M>& from) {
#pragma unroll
  for (int v = 0; v < M; v++) PackOf<Float32>::read(to + 4 * v, from.bits[v]);
}

template <int N>
__device__ __forceinline__ void clear(float (&x)[N]) {
#pragma unroll
  for (int t = 0; t < N; t++) x[t] = 0;
}

// The score vector: zero beyond its end, where rows hold anything finite or not.
template <class T, int V>
__device__ __forceinline__ void load_weight(float (&w)[kPack<T> * V], const EdgeProblem& p,
                                            const Team& team) {
  const int64_t at = offset(p.batch, team.b, p.weight.lead);
#pragma unroll
  for (int v = 0; v < V; v++)
#pragma unroll
    for (int k = 0; k < kPack<T>; k++) {
      const int t = Table<T, V>::column(team, v) + k;
      w[v * kPack<T> + k] =
          t < p.d ? load(p.weight.data, p.weight.dtype, at + t * p.weight.col) : 0.f;
    }
}

// Add to the keys of a batch what its edges add to them.
template <class T, int V>
__device__ __forceinline__ void add_edge_keys(float (&k)[kEdges][kPack<T> * V],
                                              const Table<T, V>& edge_key, const Edges& edges,
                                              const Near& near) {
  Packed<V> more[kEdges]{};
#pragma unroll
  for (int e = 0; e < kEdges; e++) {
    const int edge = of_edge(near.edge, e);
    edge_key.load(more[e], e < edges.count() ? edge : -1);
  }
#pragma unroll
  for (int e = 0; e < kEdges; e++) {
    float g[kPack<T> * V];
    unpack<T, V>(g, more[e]);
#pragma unroll
    for (int t = 0; t < kPack<T> * V; t++) k[e][t] += g[t];
  }
}

// For rows of any width, stride and address: a lane has V quads of the columns of its chunk.
constexpr int kLooseQuads = 4;

// Column of quad v of a lane.
__device__ __forceinline__ int loose_column(const Team& team, int v) {
  return 4 * ((team.chunk * kLooseQuads + v) * team.lanes + team.lane);
}
__device__ __forceinline__ Rows rows_of(const Matrix& m, const EdgeProblem& p, const Team& team,
                                        int columns) {
  return Rows(m, offset(p.batch, team.b, m.lead), columns);
}
// Rows of a float32 result, whose rows are those of Team::row.
__device__ __forceinline__ Rows float_rows(const float* data, const EdgeProblem& p,
                                           const Team& team, int rows, int columns) {
  const Matrix m{{data, int64_t{p.together} * columns, 1, Dtype::f32}, {}};
  return Rows(m, team.row(p, rows, 0) * columns, columns);
}
__device__ __forceinline__ float& element(float4& x, int e) {
  return e == 0 ? x.x : e == 1 ? x.y : e == 2 ? x.z : x.w;
}
__device__ __forceinline__ float element(const float4& x, int e) {
  return e == 0 ? x.x : e == 1 ? x.y : e == 2 ? x.z : x.w;
}
// Call f(quad, element of it, column) for the columns of a lane.
template <class F>
__device__ __forceinline__ void for_loose_columns(const Team& team, const F& f) {
#pragma unroll
  for (int v = 0; v < kLooseQuads; v++)
#pragma unroll
    for (int e = 0; e < 4; e++) f(v, e, loose_column(team, v) + e);
}

}  // namespace attnkernels::cuda
