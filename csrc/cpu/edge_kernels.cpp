// The kernels over edges of one instruction set, as kernels.cpp has those over pairs.
#include "edge_forward.h"
#include "edge_sources.h"

namespace attnkernels::cpu {

#define ATTNKERNELS_NAME_(isa) edge_kernels_##isa
#define ATTNKERNELS_NAME(isa) ATTNKERNELS_NAME_(isa)

extern const EdgeKernels ATTNKERNELS_NAME(CPU_CAPABILITY);
const EdgeKernels ATTNKERNELS_NAME(CPU_CAPABILITY) = {
    {edge_forward<float>, edge_backward<float>},
    {edge_forward<double>, edge_backward<double>},
};

}  // namespace attnkernels::cpu
