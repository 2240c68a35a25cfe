// Raw scores, (E1): one block per tile of 64 queries and 64 keys, from registers to memory. Loops
// and shared memory, 16.1 KiB, are those of score.h, with one store per pair.
#include "cuda/score.h"
#include "cuda/sliced.h"

namespace attnkernels::cuda {
namespace {

struct Shared {
  Stage stages[2];
  Place at;
};

template <class Act>
__global__ void __launch_bounds__(kThreads, 4)
    scores_kernel(const __grid_constant__ Problem p, float* out, const __grid_constant__ Act act) {
  DYNAMIC_SHARED(Shared, shared);
  const int jt = blockIdx.x % p.keys.tiles, it = blockIdx.x / p.keys.tiles % p.queries.tiles;
  find(shared->at, p, blockIdx.x / p.keys.tiles / p.queries.tiles, 0);
  const int64_t first = shared->at.query_row;
  Scores x;
  score_tile(x, shared->stages, p, act, shared->at, it, jt);
  each_pair(it, jt, x, [&](int i, int j, float y) {
    if (i < p.n && j < p.m) out[(first + i) * p.m + j] = y;
  });
}

}  // namespace

void scores(Problem p, const Owners& own, float* out, const Host& host) {
  if (is_step(p)) {
    const int splits = parts_for(p.batch.count, ceil_div(p.m, kStepKeys), host);
    step_forward(p, {nullptr, nullptr, out, splits}, host);
    return;
  }
  prepare(p, own, host);
  if (is_sliced(p, host, kForwardUnits)) {
    sliced_scores(p, out, host);
    return;
  }
  by_scored(p, [&](auto act) {
    launch("scores", scores_kernel<decltype(act)>, p.batch.count * p.queries.tiles * p.keys.tiles,
           kThreads, sizeof(Shared), host.stream, p, out, act);
  });
}

}  // namespace attnkernels::cuda
