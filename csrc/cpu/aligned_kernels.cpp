// The kernels of aligned.h of one instruction set, as kernels.cpp has those over pairs.
#include "aligned_backward.h"
#include "aligned_scores.h"

namespace attnkernels::cpu {

#define ATTNKERNELS_NAME_(isa) aligned_kernels_##isa
#define ATTNKERNELS_NAME(isa) ATTNKERNELS_NAME_(isa)

extern const AlignedKernels ATTNKERNELS_NAME(CPU_CAPABILITY);
const AlignedKernels ATTNKERNELS_NAME(CPU_CAPABILITY) = {
    {aligned_scores<float>, aligned_backward<float>},
    {aligned_scores<double>, aligned_backward<double>},
};

}  // namespace attnkernels::cpu
