// The division of edges between teams of lanes, and what a team's lanes share.
//
// A team of 4 to 32 lanes has one leading index (a head) and one share of the nodes of one end.
// Heads are innermost, so the teams of a warp usually read rows that lie together. Shares are equal
// in edges plus nodes, whatever the degrees: node i takes the positions from begin[i] + i on, and
// share s the nodes whose first position lies in [s size, (s + 1) size). A node with at least
// `size` edges is cut where a share ends; its parts are merged by a second kernel. Nothing of this
// is read back by the host, and no sum depends on the order in which teams run.
#pragma once
#include "cuda/edges.h"
#include "cuda/mask.h"

namespace attnkernels::cuda {

constexpr int kEdgeThreads = 128;
constexpr int kEdges = 4;        // that a team takes at a time: one per lane of a quad
constexpr int kLeastShare = 64;  // edges and nodes of a share
constexpr int kTeamWarps = 128;  // per processor, several times what it holds at once
// Blocks that a processor must have registers for, by the channels in those of a lane. Where this
// is not said, the compiler would rather spill than have fewer.
template <int channels, int few>
constexpr int kBlocks = channels <= 4 ? few : 2;

struct Shares {
  int size = 1, count = 0;
  int shift = 2;   // a team has 1 << shift lanes
  int chunks = 1;  // of columns, for rows that are wider than a team
  // Written by a pass: the node that is cut first in each share, or -1.
  int* cut = nullptr;
  int64_t teams(const Problem& p) const { return p.batch.count * count * chunks; }
  int64_t slots(const Problem& p) const { return 2 * p.batch.count * count; }
};

// Divide the edges of `a` between teams whose lanes hold `width` columns each.
inline Shares shares_for(const EdgeProblem& p, const Adjacency& a, int width, const Host& host) {
  Shares s;
  const int columns = std::max({p.d, p.dv, 1});
  while (s.shift < 5 && width << s.shift < columns) s.shift++;
  s.chunks = static_cast<int>(ceil_div(columns, width << s.shift));
  const int64_t work = int64_t{p.edges} + a.nodes,
                teams = host.processors * kTeamWarps * 32 >> s.shift;
  const int64_t wanted =
      std::max<int64_t>(1, teams / std::max<int64_t>(1, p.batch.count * s.chunks));
  s.size = static_cast<int>(std::max<int64_t>(kLeastShare, ceil_div(work, wanted)));
  s.count = static_cast<int>(ceil_div(work, s.size));
  s.cut = host.allocate<int>(s.count);
  return s;
}

template <class F>
void launch_teams(const EdgeProblem& p, const Shares& s, const F& run) {
  if (p.batch.count && s.count) run(ceil_div(s.teams(p) << s.shift, kEdgeThreads));
}

// Up to kEdges neighbouring edges of one node, or of a part of it.
struct Edges {
  // Bits of `info`: the number of edges, the first and the last batch of the node or the part, a
  // part of a node that is cut, and the first one of these.
  static constexpr int kCount = 7, kBegins = 8, kEnds = 16, kPart = 32, kFirst = 64;
  int node = -1;  // -1: none are left
  int first = 0, info = 0;

  __device__ __forceinline__ int count() const { return info & kCount; }
  __device__ __forceinline__ bool begins() const { return info & kBegins; }
  __device__ __forceinline__ bool ends() const { return info & kEnds; }
  __device__ __forceinline__ bool part() const { return info & kPart; }
};

// The lanes that this thread works with, and their task.
struct Team {
  int lane, lanes;
  int share, chunk, b;
  int outer, inner;  // b as a place among the heads that lie together
  bool works;

  // chunked: false if the shares are known to have one chunk.
  __device__ __forceinline__ Team(const EdgeProblem& p, const Shares& s, bool chunked) {
    const int64_t thread = blockIdx.x * int64_t{kEdgeThreads} + threadIdx.x;
    lanes = 1 << s.shift;
    lane = static_cast<int>(thread) & (lanes - 1);
    const int64_t team = thread >> s.shift, task = team / p.batch.count;
    b = static_cast<int>(team - task * p.batch.count);
    share = static_cast<int>(chunked ? task / s.chunks : task);
    chunk = chunked ? static_cast<int>(task) - share * s.chunks : 0;
    outer = b / p.together;
    inner = b - outer * p.together;
    works = share < s.count;
  }
  // The row of a result of `rows` rows.
  __device__ __forceinline__ int64_t row(const EdgeProblem& p, int rows, int64_t i) const {
    return (outer * int64_t{rows} + i) * p.together + inner;
  }
  // One of the lanes that speak for the edges of a batch.
  __device__ __forceinline__ bool speaks() const { return lane < kEdges && chunk == 0; }
  // The place of a part among the parts of all shares.
  __device__ __forceinline__ int64_t slot(const EdgeProblem& p, const Edges& part) const {
    return (2 * int64_t{share} + (part.info & Edges::kFirst ? 1 : 0)) * p.batch.count + b;
  }
};

// The edges of a share, a batch at a time. Positions fit in an int: the operators check it.
class Cursor {
 public:
  __device__ __forceinline__ Cursor(const Adjacency& a, const Shares& s, const Team& team,
                                    int edges)
      : a_(a), size_(s.size) {
    if (!team.works) return;
    const int64_t after = (team.share + int64_t{1}) * s.size;
    const int start = static_cast<int>(after - s.size);
    limit_ = static_cast<int>(min(after, int64_t{edges} + a.nodes));
    int low = 0, high = a.nodes;
    while (high - low > 1) {
      const int middle = low + (high - low) / 2;
      if (begin(middle) + middle <= start)
        low = middle;
      else
        high = middle;
    }
    from_ = begin(low);
    to_ = begin(low + 1);
    ahead_ = begin(low + 2);
    if (from_ + low >= start) {
      enter(low);
    } else if (to_ - from_ < size_ || start - low >= to_) {
      pass(low + 1);
    } else {  // the rest of a node that an earlier share cut
      node_ = low;
      from_ = start - low;
      end_ = min(to_, limit_ - low);
      flags_ = Edges::kBegins | Edges::kPart;
    }
  }

  __device__ __forceinline__ Edges next() {
    const int count = min(kEdges, end_ - from_);
    Edges out{node_, from_, flags_ + count};
    from_ += count;
    flags_ &= ~Edges::kBegins;
    if (from_ == end_ && node_ >= 0) {
      out.info |= Edges::kEnds;
      pass(node_ + 1);
    }
    return out;
  }
  // The node that is cut for the first time in this share, or -1.
  __device__ __forceinline__ int cut() const { return cut_; }

 private:
  const Adjacency& a_;
  int size_, limit_ = 0;  // the position after the share
  int node_ = -1, from_ = 0, to_ = 0, ahead_ = 0, end_ = 0, cut_ = -1, flags_ = 0;

  __device__ __forceinline__ int begin(int node) const {
    return static_cast<int>(a_.begin[min(node, a_.nodes)]);
  }
  // Go to the next node; the end of the one after it is loaded ahead.
  __device__ __forceinline__ void pass(int node) {
    from_ = to_;
    to_ = ahead_;
    ahead_ = begin(node + 2);
    enter(node);
  }
  __device__ __forceinline__ void enter(int node) {
    const bool there = node < a_.nodes && from_ + node < limit_, cut = to_ - from_ >= size_;
    node_ = there ? node : -1;
    end_ = !there ? from_ : cut ? min(to_, limit_ - node) : to_;
    flags_ = !there ? 0 : cut ? Edges::kBegins | Edges::kPart | Edges::kFirst : Edges::kBegins;
    cut_ = there && cut ? node : cut_;
  }
};

// The slots of the parts of a node that is cut first in share `share`: part 0, 1, ...
__device__ __forceinline__ int64_t slot_of(int share, int part) {
  return part == 0 ? 2 * int64_t{share} + 1 : 2 * (int64_t{share} + part);
}
// The number of these parts.
__device__ __forceinline__ int parts_of(const Adjacency& a, const Shares& s, int share, int node) {
  return static_cast<int>((a.begin[node + 1] - 1 + node) / s.size) - share + 1;
}

// What a lane knows of edge lane % 4 of a batch: the node at its other end, or -1 where there is no
// such edge; and Adjacency::edge.
struct Near {
  int other = -1, edge = 0;
};

__device__ __forceinline__ Near near(const Adjacency& a, const Edges& edges, bool edge) {
  Near out;
  const int k = threadIdx.x % kEdges;
  if (k < edges.count()) {
    out.other = static_cast<int>(a.other[edges.first + k]);
    if (edge) out.edge = static_cast<int>(a.edge[edges.first + k]);
  }
  return out;
}

// The value that lane e of this lane's quad has.
template <class X>
__device__ __forceinline__ X of_edge(X x, int e) {
  return __shfl_sync(kWarp, x, e, kEdges);
}
// Bit e of the result: lane e of this lane's quad holds.
__device__ __forceinline__ unsigned edges_where(bool holds) {
  return __ballot_sync(kWarp, holds) >> (threadIdx.x % 32 & ~(kEdges - 1)) & ((1u << kEdges) - 1);
}

// Return the sum of x[lane % 4] over the lanes of the team. Every step of the first two halves the
// numbers that a lane has.
__device__ __forceinline__ float team_sum(const float (&x)[kEdges], int lanes) {
  const int lane = threadIdx.x;
  const bool odd = lane & 1, high = lane & 2;
  const float a = (odd ? x[1] : x[0]) + __shfl_xor_sync(kWarp, odd ? x[0] : x[1], 1);
  const float b = (odd ? x[3] : x[2]) + __shfl_xor_sync(kWarp, odd ? x[2] : x[3], 1);
  float sum = (high ? b : a) + __shfl_xor_sync(kWarp, high ? a : b, 2);
  if (lanes > 4) sum += __shfl_xor_sync(kWarp, sum, 4);
  if (lanes > 8) sum += __shfl_xor_sync(kWarp, sum, 8);
  if (lanes > 16) sum += __shfl_xor_sync(kWarp, sum, 16);
  return sum;
}

// The bias of an edge; where there is none, 0. -inf excludes the edge.
__device__ __forceinline__ float bias_of(const EdgeProblem& p, int64_t bias_at, const Near& edge) {
  if (!p.edge_bias.data || edge.other < 0) return 0;
  return load(p.edge_bias.data, p.edge_bias.dtype, bias_at + edge.edge * p.edge_bias.col);
}

}  // namespace attnkernels::cuda
