// The choice of kernels: the instruction set that torch itself uses, so that ATEN_CPU_CAPABILITY
// holds.
#include <ATen/Version.h>

#include <string>

#include "aligned.h"
#include "edges.h"

namespace attnkernels::cpu {

extern const Kernels kernels_DEFAULT;
extern const EdgeKernels edge_kernels_DEFAULT;
extern const AlignedKernels aligned_kernels_DEFAULT;
#if defined(__x86_64__)
extern const Kernels kernels_AVX2, kernels_AVX512;
extern const EdgeKernels edge_kernels_AVX2, edge_kernels_AVX512;
extern const AlignedKernels aligned_kernels_AVX2, aligned_kernels_AVX512;
#endif

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
#if defined(__x86_64__)
    const std::string isa = at::get_cpu_capability();
    if (isa == "AVX512") return kernels_AVX512;
    if (isa == "AVX2") return kernels_AVX2;
#endif
    return kernels_DEFAULT;
  }();
  return chosen;
}

const EdgeKernels& edge_kernels() {
#if defined(__x86_64__)
  if (&kernels() == &kernels_AVX512) return edge_kernels_AVX512;
  if (&kernels() == &kernels_AVX2) return edge_kernels_AVX2;
#endif
  return edge_kernels_DEFAULT;
}

const AlignedKernels& aligned_kernels() {
#if defined(__x86_64__)
  if (&kernels() == &kernels_AVX512) return aligned_kernels_AVX512;
  if (&kernels() == &kernels_AVX2) return aligned_kernels_AVX2;
#endif
  return aligned_kernels_DEFAULT;
}

}  // namespace attnkernels::cpu
