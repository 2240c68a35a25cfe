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

// Where the lanes of a team find the rows of a tensor of T, and how much of them there is.
template <class T, int V>
struct Table {
  static constexpr int K = kPack<T>, N = K * V;  // elements of a lane, side by side K at a time
  const char* first;  // this lane's element of row 0; null: no tensor
  int64_t row;        // bytes
  int lane, lanes, columns;

  // Rows of a tensor of float32 that follow each other: see Team::row.
  __device__ __forceinline__ Table(const void* data, int64_t at, int64_t stride, int columns,
                                   const Team& team)
      : first(nullptr), row(stride * static_cast<int64_t>(sizeof(typename T::Element))),
        lane(team.lane), lanes(team.lanes), columns(columns) {
    if (data) first = static_cast<const char*>(from<T>(data, at + lane * K));
  }
  __device__ __forceinline__ Table(const Matrix& m, const Batch& batch, int columns,
                                   const Team& team)
      : Table(m.data, offset(batch, team.b, m.lead), m.row, columns, team) {}

  __device__ __forceinline__ int column(int v) const { return (v * lanes + lane) * K; }
  // Elements that no row has keep what they were.
  __device__ __forceinline__ void load(Packed<V>& to, int64_t i) const {
    const char* const at = first + i * row;
#pragma unroll
    for (int v = 0; v < V; v++)
      if (column(v) < columns) to.bits[v] = *reinterpret_cast<const uint4*>(at + v * lanes * 16);
  }
  __device__ __forceinline__ void store(int64_t i, const float (&x)[N]) const {
    char* const at = const_cast<char*>(first) + i * row;
#pragma unroll
    for (int v = 0; v < V; v++)
      if (column(v) < columns)
        *reinterpret_cast<uint4*>(at + v * lanes * 16) = PackOf<T>::write(x + v * K);
  }
};

template <class T, int V>
__device__ __forceinline__ void unpack(float (&to)[kPack<T> * V], const Packed<V>& from) {
#pragma unroll
  for (int v = 0; v < V; v++) PackOf<T>::read(to + v * kPack<T>, from.bits[v]);
}

// Rows of float32 in the layout of a Table<T, V>: a lane has K neighbouring elements.
template <class T, int V>
struct FloatTable {
  static constexpr int K = kPack<T>, N = K * V, Q = K / 4;
  const float* data;
  int lane, lanes, columns;

  __device__ __forceinline__ FloatTable(const float* data, int columns, const Team& team)
      : data(data), lane(team.lane), lanes(team.lanes), columns(columns) {}
  __device__ __forceinline__ int column(int v) const { return (v * lanes + lane) * K; }
  // `row`: of Team::row.
  __device__ __forceinline__ void load(Packed<V * Q>& to, int64_t row) const {
#pragma unroll
    for (int v = 0; v < V; v++)
      if (column(v) < columns)
#pragma unroll
        for (int k = 0; k < Q; k++)
          to.bits[v * Q + k] =
              *reinterpret_cast<const uint4*>(data + row * columns + column(v) + 4 * k);
  }
  __device__ __forceinline__ void store(int64_t row, const float (&x)[N]) const {
#pragma unroll
    for (int v = 0; v < V; v++)
      if (column(v) < columns)
#pragma unroll
        for (int k = 0; k < Q; k++)
          *reinterpret_cast<uint4*>(const_cast<float*>(data) + row * columns + column(v) + 4 * k) =
              PackOf<Float32>::write(x + v * K + 4 * k);
  }
};

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
      const int t = (v * team.lanes + team.lane) * kPack<T> + k;
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
    if (e < edges.count) edge_key.load(more[e], edge);
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
